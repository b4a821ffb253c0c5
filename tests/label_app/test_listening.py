"""Nobody is let in by mistake: where the server listens, and what it says of that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.label_app.listening import (
    auth_is_off,
    check_listening,
    describe_listening,
    host_of_command,
    is_loopback,
)
from pipeline.label_app.serve import build_parser, check, find_log_file, main, monai_command

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-of-enough-characters"


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.0.2.7", False),
        ("label.example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_what_is_this_machine(host, here):
    assert is_loopback(host) is here


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", None])
def test_beyond_this_machine_somebody_has_to_say_who_may_come_in(host):
    with pytest.raises(ValueError, match=r"--host 127\.0\.0\.1.*--conf token_file.*--conf auth off"):
        check_listening(host, token=False, login=False, auth_off=False)
    check_listening(host, token=True, login=False, auth_off=False)
    check_listening(host, token=False, login=True, auth_off=False)
    check_listening(host, token=False, login=False, auth_off=True)
    check_listening("127.0.0.1", token=False, login=False, auth_off=False)


def test_a_token_and_no_authentication_contradict_each_other():
    with pytest.raises(ValueError, match="say one of them"):
        check_listening("127.0.0.1", token=True, login=False, auth_off=True)
    with pytest.raises(ValueError, match="auth must be 'on' or 'off', got 'none'"):
        auth_is_off("none")


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        ("start_server --app a --studies s", "0.0.0.0"),
        ("start_server --host 127.0.0.1", "127.0.0.1"),
        ("start_server --host=127.0.0.1", "127.0.0.1"),
        ("start_server -i 127.0.0.1", "127.0.0.1"),
        ("start_server -i127.0.0.1", "127.0.0.1"),
        ("start_server --ho 127.0.0.1", "127.0.0.1"),
        ("start_server --host 127.0.0.1 --host 0.0.0.0", "0.0.0.0"),
        ("--workers 2 monailabel.app:app", None),
        ("", None),
    ],
)
def test_the_host_out_of_the_command(arguments, host):
    assert host_of_command(["monailabel", *arguments.split()]) == host


def test_says_where_it_is_who_reaches_it_and_how_to_log_in():
    assert describe_listening("127.0.0.1", 8000).splitlines() == [
        "address:     http://127.0.0.1:8000",
        "who reaches: this machine only",
        "logging in:  nobody has to",
    ]
    told = describe_listening("0.0.0.0", 8443, tls=True, token_file="token")
    assert "https://THIS-MACHINE:8443" in told
    assert "every machine that reaches" in told
    assert "Bearer TOKEN', the token being what token holds" in told
    assert "without TLS" not in told
    assert "without TLS" in describe_listening("0.0.0.0", 8000, token_file="token")
    assert "WHOEVER REACHES IT CAN READ" in describe_listening("0.0.0.0", 8000, auth_off=True)


def test_the_command_becomes_that_of_monai_label(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    options = ["--studies", "my studies", "--host", "0.0.0.0", "--token-file", str(tmp_path / "token")]
    parsed = build_parser().parse_args([*options, "--conf", "min_free_gb", "5"])
    command = monai_command(parsed)
    assert host_of_command(["monailabel", *command]) == "0.0.0.0"
    pairs = {command[place + 1]: command[place + 2] for place, word in enumerate(command) if word == "--conf"}
    assert pairs == {"models": "all", "token_file": str(tmp_path / "token"), "auth": "on", "min_free_gb": "5"}
    assert "every machine" in check(parsed, {})


def test_each_server_has_a_log_of_its_own(tmp_path):
    def place(*options):
        return find_log_file(build_parser().parse_args(["--studies", "s", *options]))

    assert place() == ROOT / "outputs" / "label" / "server-8000.log"
    assert place("--port", "8001") == ROOT / "outputs" / "label" / "server-8001.log"
    assert place("--conf", "output_dir", str(tmp_path)) == tmp_path / "server-8000.log"
    assert place("--log-file", str(tmp_path / "mine")) == tmp_path / "mine"


def test_a_log_that_cannot_be_written_stops_the_start(tmp_path, capsys):
    pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["--studies", "studies", "--log-file", str(tmp_path / "file" / "server.log")])
    assert "server.log" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (["--host", "0.0.0.0"], {}, "whoever reaches it could read"),
        (["--host", "0.0.0.0"], {"MONAI_LABEL_AUTH_ENABLE": "false"}, "whoever reaches it could read"),
        (["--token-file", "nowhere"], {}, "cannot be read"),
        (["--ssl-keyfile", "key.pem"], {}, "got one of them"),
        (["--conf", "auth", "perhaps"], {}, "auth must be"),
    ],
)
def test_is_refused_before_anything_is_started(options, environment, words, monkeypatch, capsys):
    monkeypatch.delenv("MONAI_LABEL_AUTH_ENABLE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        main(["--studies", "studies", *options])
    assert words in capsys.readouterr().err


def test_monai_labels_own_command_is_refused_too(studies, bundles, free_port, tmp_path):
    """It listens everywhere unless it is told otherwise."""
    pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", ROOT / "pipeline" / "label_app"]
    command += ["--studies", studies, "--conf", "models", "reggan", "--conf", "bundles", bundles, "--port", free_port()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180
    )
    assert ended.returncode != 0
    assert "the server would listen on 0.0.0.0, and whoever reaches it could read" in ended.stdout + ended.stderr
