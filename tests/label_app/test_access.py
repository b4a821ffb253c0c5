"""Who is let in: the guard alone, and a server with a token and with MONAI Label's own authentication."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
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
    assert ask(client="testclient") == ask(host="testclient") == 403
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
    for dots in ("..", "%2e%2e", "%252e%252e", ".%25252e", "..\\..", "%5c..%5c"):
        assert ask(path=f"/proxy/dicom/{dots}/patients") == 400
    assert ask(path="/x/%" + "25" * 40 + "2e") == 400
    assert ask(path="/info/\n") == ask(path="/info/\x1b") == ask(path="/info/%00") == 400
    assert ask(path="/" + "x" * 9000) == ask(query="x" * 9000) == 414


def test_no_request_is_larger_than_it_needs_to_be():
    length = {"content-length": str(1 << 21)}
    assert ask(path="/train/reggan", **length) == ask(path="/infer/reggan", method="GET", **length) == 413
    assert ask(path="/infer/reggan", **length) == 200
    assert ask(path="/infer/reggan", guard={"largest_file": 1 << 20}, **length) == 413
    assert ask(path="/info/", **{"content-length": "-5"}) == ask(path="/info/", **{"content-length": "²"}) == 400

    async def server(scope, receive, send):
        while (await receive())["more_body"]:
            pass

    async def receive():
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}  # without saying how long it is

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/train/x", "client": ("127.0.0.1", 1)}
    scope["headers"] = [(b"host", b"localhost")]
    asyncio.run(Guard(server)(scope, receive, send))
    assert sent[0]["status"] == 413


def test_what_fails_is_answered_without_a_trace():
    sent = []

    async def server(scope, receive, send):
        raise RuntimeError("/a/place of ours")

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/info/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(server)(scope, None, send))
    assert sent[0]["status"] == 500
    assert b"place" not in sent[1]["body"]
    sent.clear()
    asyncio.run(Guard(server)({"type": "websocket", "path": "/info/", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


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


def forged_with_the_public_key(jwt, public, claims):
    """A token that whoever verifies it by any algorithm takes for a signed one, since the key is public."""

    def encode(content):
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    signed = encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()) + b"." + encode(json.dumps(claims).encode())
    signature = hmac.new(public, signed, hashlib.sha256).digest()
    return {"Authorization": f"Bearer {(signed + b'.' + encode(signature)).decode()}"}


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

    address = f"http://127.0.0.1:{realm.server_port}"
    good = {
        "preferred_username": "ada",
        "realm_access": {"roles": ["monailabel-user"]},
        "iss": address,
        "aud": "account",
        "azp": "monailabel-app",
    }

    def token(key=private, algorithm="RS256", without=(), **changes):
        claims = {**good, "exp": time.time() + 600, **changes}
        content = json.dumps({name: value for name, value in claims.items() if name not in without}).encode()
        return {"Authorization": f"Bearer {jwt.api_jws.encode(content, key, algorithm=algorithm)}"}

    environment = {
        "MONAI_LABEL_AUTH_ENABLE": "true",
        "MONAI_LABEL_AUTH_REALM_URI": address,
    }
    conf = ("--conf", "models", "reggan", "--conf", "bundles", str(bundles))
    server = start_server(studies, *conf, environment=environment)

    def status(headers, method="GET", path="/info/"):
        return server.request(method, path, headers=headers).status_code

    try:
        assert status({}) == 401
        assert status(token()) == status(token(aud="monailabel-app", azp="another")) == 200
        assert status(token(aud=["another", "monailabel-app"])) == 200
        assert status(token(), "POST", "/train/reggan") == 403
        for headers in (
            token(exp=time.time() - 600),
            token(without=["exp"]),
            token(exp="never"),
            token(exp=None),
            token(nbf=time.time() + 600),
            token(iss=f"{address}/another"),
            token(iss=[address]),
            token(without=["iss"]),
            token(aud="another"),
            token(aud=["another", "account"]),
            token(azp="another"),
            token(without=["aud", "azp"]),
            token(aud={"a": 1}),
            token(without=["preferred_username"]),
            token(preferred_username=["ada"]),
            token(key=None, algorithm="none"),
            token(key="k" * 64, algorithm="HS256"),
            token(key=private, algorithm="RS512"),
            token(key=rsa.generate_private_key(65537, 2048)),
            forged_with_the_public_key(jwt, public, {**good, "exp": int(time.time() + 600)}),
            *({"Authorization": f"Bearer {words}"} for words in ("a.b.c", "x" * 20000, "é", "", ".", "e30.e30.")),
            {"Authorization": "Basic YTpi"},
        ):
            response = server.request("GET", "/info/", headers=headers)
            assert response.status_code == 401, (headers, response.text)
            assert isinstance(response.json()["detail"], str)
        for roles in (
            {"without": ["realm_access"]},
            *({"realm_access": found} for found in (None, [], "x", {"roles": 5})),
        ):
            assert status(token(**roles)) == 403
        assert status(token(realm_access={"roles": ["monailabel-user", 5, None]})) == 200
        assert status({}, "POST", "/auth/token") == 400
        login = server.request("POST", "/auth/token", data={"username": "ada", "password": "wrong"})
        assert login.status_code in (401, 503), login.text
        assert status(token(), "GET", "/auth/token/valid") == 200
    finally:
        realm.shutdown()
