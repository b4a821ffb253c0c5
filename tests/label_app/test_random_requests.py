"""Hundreds of requests at random: none makes the server fail, and none leaves a byte outside the studies."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import urllib.parse
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

SEED = 20261128
ROUTES = [
    *(
        ("GET", path)
        for path in ("/", "/info/", "/docs", "/openapi.json", "/favicon.ico", "/static/favicon.ico", "/ohif/")
    ),
    *(
        ("GET", path)
        for path in ("/ohif/app-config.js", "/logs/gpu", "/queue", "/queue/x", "/health/live", "/health/ready")
    ),
    *(
        ("GET", path)
        for path in ("/batch/infer", "/train/", "/datastore/", "/datastore/dataset", "/proxy/dicom/studies")
    ),
    *(
        ("GET", path)
        for path in ("/datastore/image", "/datastore/image/info", "/datastore/label", "/datastore/label/info")
    ),
    *(("GET", path) for path in ("/session/x", "/model/bare", "/model/info/reggan", "/auth/", "/scoring/", "/logs/")),
    *(("HEAD", path) for path in ("/datastore/image", "/datastore/label", "/docs")),
    *(
        ("POST", path)
        for path in ("/infer/reggan", "/infer/reggan", "/infer/reggan", "/infer/bare", "/infer/wsi/reggan")
    ),
    *(
        ("POST", path)
        for path in ("/batch/infer/reggan", "/batch/infer/reggan", "/train/bare", "/train/reggan", "/reload")
    ),
    *(
        ("POST", path)
        for path in ("/activelearning/random", "/activelearning/x", "/auth/token", "/scoring/x", "/train/")
    ),
    *(
        ("PUT", path)
        for path in ("/datastore/image", "/datastore/image", "/datastore/", "/datastore/label", "/session/")
    ),
    *(("PUT", path) for path in ("/datastore/image/info", "/datastore/label/info", "/datastore/updatelabelinfo")),
    *(("PUT", path) for path in ("/datastore/label", "/session/", "/model/reggan", "/model/bare", "/model/x")),
    *(
        ("DELETE", path)
        for path in ("/datastore/", "/datastore/image", "/datastore/label", "/session/x", "/model/bare")
    ),
    *(("DELETE", path) for path in ("/train/", "/batch/infer", "/queue/x")),
    *(("OPTIONS", path) for path in ("/info/", "/infer/reggan")),
]
ODD_PATHS = [
    *(
        "/../x",
        "/%2e%2e/x",
        "/%252e%252e/x",
        "/..%5cx",
        "/%c0%ae%c0%ae/x",
        "/%ef%bc%8e%ef%bc%8e/x",
        "/%00",
        "/x%0ay",
        "//",
        "/%",
    ),
    *(
        "/infer/%2e%2e%2fx",
        "/session/%2e",
        "/model/..%2f..",
        "/proxy/dicom/%252e%252e/system",
        "/static/%2e%2e/app.py",
        "/nothing",
    ),
]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "WORDS"]
VALUES = [
    *(
        "ras",
        "new",
        "x",
        "",
        "..",
        "../x",
        "/etc/passwd",
        "a\0b",
        "a\nb",
        "\uff0e\uff0e",
        "x" * 300,
        "x" * 5000,
        "-1",
        "0",
        "1",
    ),
    *(
        "1e999",
        "9" * 400,
        "NaN",
        "null",
        "true",
        "[]",
        "{}",
        "\ud7ff",
        "\u202e",
        "%2e%2e",
        "%00",
        "all",
        "image",
        "json",
    ),
    *("final", "original", "unlabeled", "00000000-0000-0000-0000-000000000000"),
]
QUERIES = [
    "image",
    "label",
    "tag",
    "id",
    "session_id",
    "output",
    "images",
    "run_sync",
    "enqueue",
    "expiry",
    "uncompress",
    "lines",
]
QUERIES += ["check_sum", "limit_cases", "update_ts", "all", "check_if_running", "words", "model", "params"]
JSONS = [
    *(
        "",
        "{}",
        "[]",
        "null",
        "5",
        "NaN",
        "{",
        '{"images": ["free"]}',
        '{"images": null}',
        '{"images": []}',
        '{"images": [5]}',
    ),
    *(
        '{"device": NaN}',
        '{"device": 5}',
        '{"max_epochs": -1}',
        '{"val_split": 5}',
        '{"noise_level": [1]}',
        '{"strategy": []}',
    ),
    *(
        '{"label_tag": "../x", "save_label": true}',
        '{"result_extension": ".seg.nrrd"}',
        '{"a": "\\ud800"}',
        '{"client_id": 5}',
    ),
    *(
        '{"image": "/etc/passwd"}',
        '{"model": {}}',
        '{"a": ' + "9" * 5000 + "}",
        "[" * 2000,
        '{"a": 1e999}',
        '{"note": "x"}',
    ),
]
FILES = [
    "a.nii.gz",
    "a.nii",
    "a.nrrd",
    "a.mha",
    "a.mhd",
    "a.nhdr",
    "a.tar",
    "a.zip",
    "..",
    "../x.nii.gz",
    "",
    "x" * 300,
    "a.pt",
]
FIELDS = ["file", "files", "label", "params", "info", "words"]
TYPES = [
    *("application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=", "application/xml", ""),
    *(
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x; charset=words",
        "application/json; charset=utf-7",
    ),
]
TOKENS = ["Bearer x", "Bearer", "Basic YTpi", "Bearer e30.e30.", "x" * 3000, "Bearer \xe9"]
ENCODINGS = ["gzip", "deflate", "br", "identity", "words", "chunked"]
HOSTS = ["localhost", "127.0.0.1:80", "elsewhere.example.org", "", "[::1]", "a b", "testclient"]


@pytest.fixture(scope="module")
def contents(ward):
    good = (ward.studies / "ras.nii.gz").read_bytes()
    raw = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_bytes()
    secret = str(ward.folder / "secret").encode()
    return [
        *(b"", b"x", b"\0" * 5000, good, good[:3000], raw, gzip.compress(raw), gzip.compress(bytes(1 << 24))),
        b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = " + secret + b"\n",
        b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: " + secret + b"\n\n",
        ward.weights.read_bytes()[:5000],
    ]


def form(chance, contents):
    """A form, mostly as it should be, and its type."""
    boundary = "b" + "0123456789"
    parts = []
    for _ in range(chance.choice([0, 1, 1, 1, 2, 5])):
        field, name = chance.choice(FIELDS), chance.choice(FILES)
        body = chance.choice(contents)
        if chance.random() < 0.5:
            name, body = "a.nii.gz", gzip.compress(contents[5])
        if field in ("params", "info") and chance.random() < 0.8:
            head, body = f'form-data; name="{field}"', chance.choice(JSONS).encode()
        else:
            head, body = f'form-data; name="{field}"; filename="{name}"', body
        parts.append(f"--{boundary}\r\nContent-Disposition: {head}\r\n\r\n".encode() + body + b"\r\n")
    content = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return content if chance.random() < 0.9 else content[
        : len(content) // 2
    ], f"multipart/form-data; boundary={boundary}"


def make(chance, contents):
    """A request: method, address, headers and body."""
    method, path = chance.choice(ROUTES)
    if chance.random() < 0.08:
        method = chance.choice(METHODS)
    if chance.random() < 0.08:
        path = chance.choice(ODD_PATHS)
    if (method, path) == ("DELETE", "/model/reggan"):  # weights are taken out of use by whoever may
        path = "/model/bare"
    names = chance.sample(QUERIES, chance.choice([0, 1, 1, 2, 3]))
    pairs = {name: chance.choice(VALUES) for name in names}
    for name, often in (
        ("image", 0.6),
        ("label", 0.3),
        ("id", 0.5),
        ("tag", 0.5),
    ):  # what is right, so that more is tried
        if chance.random() < often:
            pairs[name] = {"tag": chance.choice(["final", "mine"]), "id": "new"}.get(
                name, chance.choice(["ras", "new"])
            )
    if path.startswith("/infer/") and chance.random() < 0.6:
        pairs.pop("image", None)
    if chance.random() < 0.6:
        pairs = {
            name: value for name, value in pairs.items() if name not in ("output", "session_id", "expiry", "lines")
        }
    query = urllib.parse.urlencode(pairs)
    if method == "POST":  # what is right would begin something
        query += {"/batch": "&images=words", "/train": "&run_sync=true"}.get(path[:6], "")
    headers, body = {}, b""
    if method not in ("GET", "HEAD", "TRACE") or chance.random() < 0.1:
        if chance.random() < 0.6:
            body, headers["Content-Type"] = form(chance, contents)
        else:
            body = chance.choice(JSONS).encode() if chance.random() < 0.8 else chance.choice(contents)
            headers["Content-Type"] = chance.choice(TYPES)
    for name, values, often in (
        ("Authorization", TOKENS, 0.2),
        ("Content-Encoding", ENCODINGS, 0.1),
        ("Accept-Encoding", ENCODINGS, 0.1),
        ("Host", HOSTS, 0.05),
        ("Origin", ["null", "http://localhost", "https://elsewhere.example.org"], 0.05),
        ("Range", ["bytes=0-5", "bytes=5-0", "bytes=-", "words=1", "bytes=" + "0-1," * 300], 0.2),
        ("Cookie", ["a=b", "x" * 3000], 0.1),
        ("X-Request-ID", ["a", "a\x1b", "x" * 500], 0.1),
        ("Expect", ["100-continue"], 0.02),
        ("X-HTTP-Method-Override", ["DELETE"], 0.1),
    ):
        if chance.random() < often:
            headers[name] = chance.choice(values)
    return method, path + (f"?{query}" if query and "?" not in path else ""), headers, body


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_random_requests(ward, contents, count):
    chance, statuses, failures = random.Random(SEED), Counter(), []
    before, weights = ward.outside(), ward.weights.read_bytes()
    for number in range(count):
        method, address, headers, body = make(chance, contents)
        connection = http.client.HTTPConnection("127.0.0.1", ward.server.port, timeout=60)
        try:
            connection.putrequest(method, address, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(body)
            response = connection.getresponse()
            status, answer = response.status, response.read()
        finally:
            connection.close()
        statuses[status] += 1
        shown = answer.decode("utf-8", "replace")
        if status >= 500 or "Traceback" in shown:
            failures.append((number, method, address[:200], headers, body[:300], status, shown[:300]))
        if 400 <= status < 500 and "json" in (response.getheader("content-type") or "") and method != "HEAD":
            detail = json.loads(shown)["detail"]
            if not isinstance(detail, str) or str(ward.folder) in detail:
                failures.append((number, method, address[:200], "says", detail))
    print(f"{count} requests: {dict(sorted(statuses.items()))}")
    assert failures == []
    assert statuses[200] > count // 10
    ward.wait_until_tidy(before)
    assert ward.weights.read_bytes() == weights
    assert ward.server.request("GET", "/info/").status_code == 200
    assert [path for path in ward.studies.rglob(".*") if path.name != ".lock"] == []
