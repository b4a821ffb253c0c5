"""The commands of docs/monai-label.md that talk to a server, as they stand on the page, against one on another port."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="needs the extra 'label': make label-test")

DOCS = Path(__file__).resolve().parents[1] / "docs"
PORT = "http://127.0.0.1:8000"


def load(name):
    """A module beside the tests of the pages; tests are no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def commands():
    """What the table leaves to these tests, each once."""
    rules = load("rules")
    texts = dict.fromkeys(command.text for command in load("pages").all_commands())
    return [text for text in texts if rules.rule_of(text).how == "label"]


@pytest.fixture
def server(start_server, studies, bundles, tmp_path):
    """One with two pairs and a bundle that it may train."""
    shutil.copytree(studies, tmp_path / "studies", ignore=shutil.ignore_patterns("broken*", "oblique*", "lps*"))
    shutil.copytree(bundles / "reggan", tmp_path / "bundles" / "reggan")
    conf = {"models": "reggan", "bundles": tmp_path / "bundles", "output_dir": tmp_path / "outputs"}
    return start_server(tmp_path / "studies", *(part for item in conf.items() for part in ("--conf", *map(str, item))))


def test_each_is_answered(commands, server, tmp_path):
    """The page's subject and model are the ones of these tests; its eleven epochs are one."""
    calls = [text for text in commands if text.startswith("curl")]
    assert len(calls) >= 10
    assert any("pipeline.label_app.serve" in text for text in commands), "it is what started this server"
    for text in calls:
        line = text.replace(PORT, server.address).replace("phantom_009", "ras")
        for epochs in ("11", "5"):
            line = line.replace(f'"max_epochs": {epochs}', '"max_epochs": 1')
        if "/train/reggan" in line:
            line = line.replace('"max_epochs": 1', '"max_epochs": 1, "batch_size": 16')
        done = subprocess.run(
            ["bash", "-c", f"{line} --silent --show-error --write-out '\\n%{{http_code}}'"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        answer, _, code = done.stdout.rpartition("\n")
        assert done.returncode == 0, f"{text}: {done.stderr}"
        # A request of the queue is gone once it is answered.
        expected = ("200", "404") if "/queue/" in text else ("200",)
        assert code in expected, f"{text}: {code} {answer[:500]}"
        if "-o translated.nii.gz" in text:
            assert (tmp_path / "translated.nii.gz").stat().st_size > 1000
        elif "output=json" in text:
            assert '"model"' in answer
        elif code == "200":
            json.loads(answer)
        if "-X POST" in text and "/train/" in text:
            deadline = time.monotonic() + 300
            while server.request("GET", "/train/").json()["status"] in ("SUBMITTED", "RUNNING"):
                assert time.monotonic() < deadline
                time.sleep(0.5)
