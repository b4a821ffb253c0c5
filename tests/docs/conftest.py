"""A copy of the project, with the files that the pages speak of, in which commands are run as they stand."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OF_RUNS = ("outputs", "data")  # in the checkout itself; pipeline/data is code
LEFT_OUT = (".git", ".venv*", "*.png", "__pycache__", ".*_cache", "*.egg-info", "node_modules")
# Studies of an hour and of days keep their names and overlays.
SMALL_STUDY = {"noise": {"affine": [0]}, "steps": 2, "seeds": [0]}
NAMED = {"science": ["pix2pix", "reggan-affine"]}  # methods that commands of a study name
SMALL_NETWORKS = {
    "spatial_size": [48, 48],
    "batch_size": 2,
    "network_def#generator#filters": 4,
    "network_def#generator#residual_blocks": 1,
    "network_def#discriminator#filters": 4,
    "network_def#registration#channels": [4, 8],
}


class Checkout:
    """A copy of the project that commands may write into, and a process that runs them."""

    def __init__(self, folder: Path, warm_process: Callable[..., Any]) -> None:
        self.folder = folder
        leave_out = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(
            ROOT, folder, ignore=lambda at, names: {*leave_out(at, names), *(OF_RUNS if Path(at) == ROOT else ())}
        )
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PATH": self._programs()}
        self.environment.pop("MLFLOW_TRACKING_URI", None)
        self.warm = warm_process(folder, self.environment, folder / "warm.log")
        self.had_everything = False

    def _programs(self) -> str:
        """Names of programs that commands begin with, before those of the machine."""
        programs = self.folder / "programs"
        programs.mkdir()
        for name in ("python", "pip"):
            module = "-m pip " if name == "pip" else ""
            (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
            (programs / name).chmod(0o755)
        return f"{programs}{os.pathsep}{os.environ['PATH']}"

    def python(self, *words: str) -> tuple[int, str]:
        """Run what follows ``python``; returns its exit status and what it printed."""
        return self.warm(*words, cwd=self.folder)

    def shell(self, line: str, **environment: str) -> tuple[int, str]:
        """Run a line of a shell."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        return done.returncode, done.stdout + done.stderr

    def serve(self, words: list[str]) -> tuple[int, str]:
        """Start a server on a free port, wait until it answers, and stop it."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", *words, "--port", str(port)]
        log = self.folder / "served.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                        return (0 if answer.status == 200 else 1), log.read_text()
                except OSError:
                    time.sleep(0.5)
            return 1, log.read_text()
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)

    def small(self) -> None:
        """What a new reader has: a volume to translate, a data set, and a finished run with its model."""
        sys.path.insert(0, str(ROOT / "tests"))
        try:
            from faults.trial import FITTED, TINY, Trial, words
        finally:
            sys.path.remove(str(ROOT / "tests"))
        trial = Trial(self.folder, self.folder, self.folder)
        data = trial.dataset("mydata", training="abc", validation="v", test="t")
        for name in ("T1.nii.gz", "new_T1.nii.gz"):
            shutil.copy(data / "imagesTs/t.nii.gz", self.folder / name)
        settings = {**TINY, **FITTED, "max_epochs": 1, "val_interval": 1, "dataset_dir": "mydata"}
        settings |= {"output_dir": "outputs/reggan", "tracking_uri": None}
        train = ("-m", "monai.bundle", "run", "training", "--config_file", "bundles/reggan/configs/train.json")
        code, text = self.python(*train, *words(settings))
        assert code == 0, text[-3000:]
        for place in ("model.pt", "bundles/reggan/models/model.pt"):
            shutil.copy(self.folder / "outputs/reggan/model.pt", self.folder / place)

    def everything(self, rules: ModuleType) -> None:
        """All else that the pages name."""
        if self.had_everything:
            return
        self.had_everything = True
        for name in ("DATA", "A", "B"):
            shutil.copytree(self.folder / "mydata", self.folder / name)
        shutil.copytree(self.folder / "mydata" / "imagesTr", self.folder / "FOLDER")
        shutil.copytree(self.folder / "outputs/reggan", self.folder / "OUT")
        for kind in ("imagesTr", "labelsTr", "imagesTs"):
            shutil.copytree(self.folder / "mydata" / kind, self.folder / "data/phantom" / kind)
        (self.folder / "data/studies").mkdir(parents=True)
        for path in sorted((self.folder / "scripts/studies").glob("*.yaml")):
            if path.stem == "quick":
                continue  # as short as it is
            study = yaml.safe_load(path.read_text())
            assert set(NAMED.get(path.stem, [])) <= set(study["methods"])
            study = {**study, **SMALL_STUDY, "settings": {**study["settings"], **SMALL_NETWORKS}}
            study["methods"] = NAMED.get(path.stem, ["reggan"])
            for of_others in ("method_noise", "method_start"):
                study.pop(of_others, None)
            path.write_text(yaml.safe_dump(study))
        configs = self.folder / "bundles/reggan/configs"
        train = ("-m", "monai.bundle", "run", "training", "--config_file")
        for chain, more in (
            ("['train.json','munit.json','cycle.json']", (*rules.TRAINING, *rules.OTHERS)),
            ("train.json", (*rules.TRAINING, *rules.CYCLEGAN, "--run_name", "tuned")),
            ("train.json", (*rules.TRAINING, *rules.CYCLEGAN, "--output_dir", "outputs/map")),
        ):
            words = chain.replace("['", f"['{configs}/").replace(",'", f",'{configs}/")
            words = words if "[" in words else f"{configs}/{words}"
            code, text = self.python(*train, words, *more, *rules.DATA)
            assert code == 0, text[-3000:]
        code, text = self.python("scripts/export.py", "model.pt", "model.onnx", "--image", "T1.nii.gz")
        assert code == 0, text[-3000:]

    def make(self, words: list[str]) -> tuple[int, str]:
        """Run make with programs that take the place of the environment's, and say what they were asked."""
        environment = self.folder / "stand-in"
        (environment / "bin").mkdir(parents=True, exist_ok=True)
        for name in ("python", "ruff", "mypy"):
            path = environment / "bin" / name
            path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{self.folder}/asked"\n')
            path.chmod(0o755)
        for ready in (".ready", ".ready-dev"):
            (environment / ready).touch()
        (self.folder / "asked").write_text("")
        code, text = self.shell(" ".join([*words, f"VENV={environment}", f"LABEL_VENV={environment}"]))
        return code, text + (self.folder / "asked").read_text()


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, warm_process: Callable[..., Any]):
    """A copy with what a new reader has."""
    made = Checkout(tmp_path_factory.mktemp("checkout") / "project", warm_process)
    made.small()
    yield made
    made.warm.close()
