"""The example configuration of nginx, run as it is but for its paths, ports and name, all on this machine."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
OPENSSL = shutil.which("openssl")
CONFIG = Path(__file__).resolve().parents[2] / "docs" / "reverse-proxy" / "nginx.conf"
TOKEN, USER, PASSWORD = "a-token-of-enough-characters", "ada", "a password"
SECONDS = 60
WRAPPER = """\
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/label.conf;
}}
"""

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light"),
    pytest.mark.skipif(OPENSSL is None, reason="needs openssl, for a certificate"),
]


@pytest.fixture(scope="module")
def server(start_server, studies, bundles, tmp_path_factory):
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    conf = ("--conf", "models", "reggan", "--conf", "bundles", str(bundles), "--conf", "token_file", str(token))
    return start_server(studies, *conf, headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.fixture(scope="module")
def proxy(server, free_port, tmp_path_factory):
    """Folder of a running nginx, and its ports for HTTPS and HTTP."""
    folder = tmp_path_factory.mktemp("nginx")
    tls, plain = free_port(), free_port()
    command = [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    shown = subprocess.run([OPENSSL, "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True).stdout
    (folder / "users").write_text(f"{USER}:{shown}")
    (folder / "token.conf").write_text(f'proxy_set_header Authorization "Bearer {TOKEN}";\n')
    text = re.sub(r"\n *listen \[::\].*", "", CONFIG.read_text())
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{tls} ssl"),
        ("listen 80", f"listen 127.0.0.1:{plain}"),
        ("label.example.org", "localhost"),
        ("/etc/nginx/label/", f"{folder}/"),
        ("/var/log/nginx/", f"{folder}/"),
        ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
        ("client_max_body_size 1g", "client_max_body_size 2m"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "label.conf").write_text(text)
    user = "user root;" if os.geteuid() == 0 else ""  # the tests' folders are for one user only
    (folder / "nginx.conf").write_text(WRAPPER.format(user=user, folder=folder))
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], stdout=output, stderr=output
        )
    deadline = time.monotonic() + SECONDS
    while True:
        assert process.poll() is None, (folder / "output.txt").read_text() + (folder / "error.log").read_text()
        assert time.monotonic() < deadline
        try:
            requests.get(f"https://localhost:{tls}/health/live", verify=str(folder / "cert.pem"), timeout=SECONDS)
            break
        except requests.ConnectionError:
            time.sleep(0.1)
    yield folder, tls, plain
    process.terminate()
    process.wait(20)


@pytest.fixture
def ask(proxy):
    """Asks through the proxy, over HTTPS, as a user unless told otherwise."""
    folder, tls, _ = proxy

    def request(method, path, **arguments):
        arguments = {"auth": (USER, PASSWORD), "timeout": SECONDS, "verify": str(folder / "cert.pem")} | arguments
        return requests.request(method, f"https://localhost:{tls}{path}", **arguments)

    return request


def test_users_log_in_with_a_password_and_do_not_know_the_token(ask, server):
    assert ask("GET", "/info/", auth=None).status_code == 401
    assert ask("GET", "/info/", auth=(USER, "wrong")).status_code == 401
    assert ask("GET", "/info/", auth=None, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 401
    assert ask("GET", "/info/").status_code == 200
    direct = requests.get(f"{server.address}/info/", auth=(USER, PASSWORD), timeout=SECONDS)
    assert direct.status_code == 401


def test_a_translation_through_the_proxy_is_that_of_the_server(ask, server, studies):
    direct = server.translate("ras").content
    query = {"image": "ras", "output": "image"}
    through = ask("POST", "/infer/reggan", params=query)
    assert through.status_code == 200, through.text
    upload = {"file": ("ras.nii.gz", (studies / "ras.nii.gz").read_bytes())}
    sent = ask("POST", "/infer/reggan", params={"output": "image"}, files=upload)
    expected = nib.Nifti1Image.from_bytes(gzip.decompress(direct)).get_fdata()
    for answer in (through, sent):
        np.testing.assert_array_equal(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).get_fdata(), expected)
    assert len(through.headers["X-Model-SHA256"]) == 64
    assert through.headers["Strict-Transport-Security"]


def test_plain_http_leads_to_https(proxy):
    _, _, plain = proxy
    answer = requests.get(f"http://localhost:{plain}/info/?a=b", allow_redirects=False, timeout=SECONDS)
    assert (answer.status_code, answer.headers["Location"]) == (301, "https://localhost/info/?a=b")


def test_health_needs_no_password(ask):
    for path in ("/health/live", "/health/ready"):
        assert ask("GET", path, auth=None).status_code == 200


def test_web_pages_of_the_proxys_own_address_are_served_and_others_are_not(ask, proxy):
    _, tls, _ = proxy
    assert ask("GET", "/info/", headers={"Origin": f"https://localhost:{tls}"}).status_code == 200
    assert ask("GET", "/info/", headers={"Origin": "https://elsewhere.example.org"}).status_code == 403


def test_too_much_is_refused(ask):
    answer = ask("POST", "/infer/reggan", files={"file": ("large.nii", bytes(3 << 20))})
    assert answer.status_code == 413


def test_one_request_is_one_line_in_both_logs_and_neither_has_the_image(ask, proxy, server):
    folder, _, _ = proxy
    given = ask("POST", "/infer/reggan", params={"image": "lps", "output": "json"}, headers={"X-Request-ID": "mine"})
    current = given.headers["X-Request-ID"]
    assert re.fullmatch("[0-9a-f]{32}", current)
    deadline = time.monotonic() + 10
    while current not in (folder / "label.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [line] = [line for line in (folder / "label.log").read_text().splitlines() if current in line]
    assert f" {USER} " in line
    assert "POST /infer/reggan 200" in line
    assert f"[{current}] POST /infer/{{model}} 200" in server.log.read_text()
    assert "lps" not in (folder / "label.log").read_text()


def test_a_client_that_hangs_up_gives_up_its_place(ask, server):
    with pytest.raises(requests.exceptions.ReadTimeout):
        ask("POST", "/infer/reggan", params={"image": "oblique", "output": "image"}, timeout=(SECONDS, 0.05))
    deadline = time.monotonic() + 20
    while server.request("GET", "/queue").json()["translations"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    deadline = time.monotonic() + 10
    while " POST /infer/{model} 499 " not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        time.sleep(0.1)
