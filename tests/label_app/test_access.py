"""Who is let in: the guard alone, and a server with a token and with MONAI Label's own authentication."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.label_app.access import Guard, read_token

TOKEN = "a-token-of-enough-characters"


def ask(path="/infer/reggan", query="", client="127.0.0.1", method="POST", guard=None, **headers):
    """Status of a request: 200 if the server behind the guard was reached."""
    sent = []

    async def server(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "client": (client, 5000),
        "headers": [(name.encode(), value.encode()) for name, value in {"host": "localhost:8000", **headers}.items()],
    }
    asyncio.run(Guard(server, **(guard or {}))(scope, None, send))
    return sent[0]["status"]


def test_without_a_token_serves_its_own_machine_only():
    assert ask() == 200
    assert ask(client="::ffff:127.0.0.1", host="[::1]:8000") == 200
    assert ask(client="192.0.2.7") == 403
    assert ask(host="rebound.example.org") == 403
    assert ask(client="192.0.2.7", guard={"others": True}) == 200


def test_with_a_token_serves_who_has_it():
    guard = {"token": TOKEN}
    assert ask(client="192.0.2.7", guard=guard) == 401
    assert ask(guard=guard, authorization=f"Bearer {TOKEN}x") == 401
    assert ask(guard=guard, authorization=f"Basic {TOKEN}") == 401
    assert ask(guard=guard, authorization="Bearer tökén") == 401
    assert ask(client="192.0.2.7", guard=guard, host="label.example.org", authorization=f"Bearer {TOKEN}") == 200


def test_web_pages_of_other_origins_are_refused():
    assert ask(origin="http://localhost:8000") == 200
    assert ask(origin="https://elsewhere.example.org") == 403
    assert ask(origin="null") == 403
    listed = {"origins": ["https://viewer.example.org/"]}
    assert ask(origin="https://viewer.example.org", guard=listed) == 200
    assert ask(origin="https://viewer.example.org", guard={**listed, "token": TOKEN}) == 401
    assert ask(method="OPTIONS", origin="https://viewer.example.org", guard={**listed, "token": TOKEN}) == 200


@pytest.mark.parametrize(
    "query", ["image=/etc/passwd", "image=..", "tag=a%2Fb", "id=a%5Cb", "label=C:x", "session_id=..%2Fx", "image=a%00"]
)
def test_names_that_are_paths_are_refused(query):
    assert ask(query=query) == 400


def test_what_the_server_does_not_do_is_refused():
    assert ask(query="image=a.b-c_1&output=image") == 200
    assert ask(query="output=dicom_seg") == 400
    assert ask(path="/reload") == 403
    assert ask(path="/proxy/dicom/../patients") == 400


def test_token_files(tmp_path):
    path = tmp_path / "token"
    with pytest.raises(ValueError, match="cannot be read"):
        read_token(path)
    path.write_text("short\n")
    with pytest.raises(ValueError, match=r"at least 16 .* got 5 characters"):
        read_token(path)
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN


@pytest.fixture
def monailabel():
    return pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")


def test_server_with_a_token(monailabel, start_server, studies, bundles, tmp_path):
    from monailabel.client.client import MONAILabelClient, MONAILabelClientException

    (tmp_path / "token").write_text(TOKEN)
    conf = ("--conf", "models", "reggan", "--conf", "bundles", str(bundles))
    # On every address, as the program does that is not told otherwise.
    server = start_server(studies, *conf, "--conf", "token_file", str(tmp_path / "token"), host="0.0.0.0")
    for method, path in [("GET", "/info/"), ("GET", "/"), ("POST", "/infer/reggan?image=ras"), ("DELETE", "/train/")]:
        response = server.request(method, path)
        assert response.status_code == 401
        assert "token" in response.json()["detail"]
    server.session.headers["Authorization"] = f"Bearer {TOKEN}"
    assert server.request("GET", "/info/").status_code == 200
    assert server.translate("ras").status_code == 200
    client = MONAILabelClient(server.address, tmpdir=str(tmp_path))
    with pytest.raises(MONAILabelClientException, match="401"):
        client.infer("reggan", "ras", {})
    client.update_auth({"token_type": "Bearer", "access_token": TOKEN})
    assert client.infer("reggan", "ras", {})[0]
    response = server.request("GET", "/info/", headers={"Origin": "https://elsewhere.example.org"})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_server_with_the_authentication_of_monai_label(monailabel, start_server, studies, bundles):
    jwt = pytest.importorskip("jwt")
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization

    private = rsa.generate_private_key(65537, 2048)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    class Realm(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            key = "".join(public.decode().splitlines()[1:-1])
            self.wfile.write(json.dumps({"public_key": key}).encode())

        def log_message(self, *_):
            pass

    realm = HTTPServer(("127.0.0.1", 0), Realm)
    threading.Thread(target=realm.serve_forever, daemon=True).start()

    def token(role, key=private, algorithm="RS256", expires=600):
        claims = {"preferred_username": "ada", "realm_access": {"roles": [role]}, "exp": time.time() + expires}
        return {"Authorization": f"Bearer {jwt.encode(claims, key, algorithm=algorithm)}"}

    environment = {
        "MONAI_LABEL_AUTH_ENABLE": "true",
        "MONAI_LABEL_AUTH_REALM_URI": f"http://127.0.0.1:{realm.server_port}",
    }
    conf = ("--conf", "models", "reggan", "--conf", "bundles", str(bundles))
    server = start_server(studies, *conf, environment=environment)

    def status(headers, method="GET", path="/info/"):
        return server.request(method, path, headers=headers).status_code

    try:
        assert status({}) == 401
        assert status(token("monailabel-user")) == 200
        assert status(token("monailabel-user", expires=-600)) == 401
        assert status(token("monailabel-user", key="k" * 64, algorithm="HS256")) == 401
        assert status(token("monailabel-user", key=rsa.generate_private_key(65537, 2048))) == 401
        assert status(token("monailabel-user"), "POST", "/train/reggan") == 403
    finally:
        realm.shutdown()
