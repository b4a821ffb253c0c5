"""What is passed on to a DICOM server, and what never is."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.label_app.proxy import ProxyError, allowed_path, allowed_query, decoded, fetch

UID = "1.2.840.10008.5"


@pytest.mark.parametrize(
    "path",
    [
        *("studies", "series", "instances", f"studies/{UID}", f"studies/{UID}/metadata", f"studies/{UID}/series/{UID}"),
        *(f"studies/{UID}/series/{UID}/instances/{UID}/{end}" for end in ("metadata", "frames/1,2", "bulk/7fe00010")),
        *(f"studies/{UID}/series/{UID}/{end}" for end in ("rendered", "thumbnail", "instances")),
    ],
)
def test_searches_and_retrieval_are_passed_on(path):
    assert allowed_path(f"/{path}/".replace(".", "%2e")) == path


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "system",
            "../system",
            "%252e%252e/system",
            "studies/..",
            f"studies/{UID}/../system",
            "studies/.",
            "studies/1.",
        ),
        *(
            "studies/1..2",
            "studies/\u0661",
            "studies/x",
            f"studies/{UID}/archive",
            f"studies/{UID}\n",
            "studies\\..",
            "studies/1/2",
        ),
        *(
            "STUDIES",
            "studies?x",
            "studies#x",
            f"studies/{'1' * 65}",
            f"studies/{UID}/series/{UID}/instances/{UID}/frames/0x1",
        ),
    ],
)
def test_nothing_else_is(path):
    with pytest.raises(ProxyError):
        allowed_path(path)


def test_what_is_encoded_without_end_is_refused():
    assert decoded("%252e%252e") == ".."
    with pytest.raises(ProxyError, match="encoded more than"):
        decoded("%" + "25" * 20 + "2e")


def test_queries_are_written_anew():
    assert (
        allowed_query("PatientName=A%5EB&limit=5&includefield=00081030")
        == "PatientName=A%5EB&limit=5&includefield=00081030"
    )
    assert allowed_query("00101002.00100020=x%26y%3d%2e%2e%2f") == "00101002.00100020=x%26y%3D..%2F"
    for query in (
        "limit=-1",
        "limit=x",
        "a/b=1",
        "a=%0a",
        "a=%ff",
        "&".join(f"a{i}=1" for i in range(200)),
        "%2e%2e=1",
    ):
        with pytest.raises(ProxyError):
            allowed_query(query)


@pytest.fixture
def upstream():
    """A DICOM server that notes what it is asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, dict(self.headers)))
            status = int(self.path.rpartition("/")[2].partition("?")[0]) if self.path[-3:].isdigit() else 200
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Set-Cookie", "a=b")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web", asked
    server.shutdown()


def test_of_the_client_nothing_but_what_it_accepts_is_told(upstream):
    address, asked = upstream
    status, kind, content = fetch(address, "studies", "limit=1", "application/dicom+json", ("user", "password"))
    assert (status, kind, b"".join(content)) == (200, "application/dicom+json", b"[]")
    path, headers = asked[-1]
    assert path == "/dicom-web/studies?limit=1"
    assert headers["Accept"] == "application/dicom+json"
    assert headers["Authorization"].startswith("Basic ")
    assert set(headers) <= {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection", "Authorization"}
    fetch(address, "studies", accept="a\r\nX: 1")
    assert "X" not in asked[-1][1]


@pytest.mark.parametrize(("there", "here"), [(302, 502), (401, 502), (403, 403), (404, 404), (500, 502)])
def test_errors_and_other_places_are_not_passed_on(upstream, there, here):
    address, asked = upstream
    with pytest.raises(ProxyError, match=f"answered {there}") as caught:
        fetch(address, str(there))
    assert caught.value.status == here
    assert len(asked) == 1


def test_a_server_that_is_gone():
    with pytest.raises(ProxyError, match="does not answer") as caught:
        fetch("http://127.0.0.1:9", "studies")
    assert caught.value.status == 504
