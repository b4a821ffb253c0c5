"""A real MONAI Label server on a free port of this machine, and studies and bundles for it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from monai.bundle import ConfigParser
from monai.bundle.scripts import run as run_bundle
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pipeline.data.phantom import make_phantom
from pipeline.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundles" / "reggan"
APP = ROOT / "pipeline" / "label_app"
SIZE = [64, 64]
# What makes the networks small enough for a test, as in tests/bundles.
TINY = {
    "device": "cpu",
    "tracking_uri": "none",
    "spatial_size": 32,
    "max_epochs": 1,
    "decay_epochs": 0,
    "batch_size": 8,
    "picture_interval": 2,
    "network_def#generator#filters": 4,
    "network_def#generator#residual_blocks": 1,
    "network_def#discriminator#filters": 4,
    "network_def#registration#channels": [4, 4],
}
TINY_DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "cyclegan": {},
    "unit": {"network_def#discriminator#layers": 2},
    "munit": {"network_def#discriminator#layers": 2},
    "nicegan": {"network_def#discriminator#global_downsamplings": 0},
}
ROTATION = np.array([[0.98, 0.15, 0.1, 3.0], [-0.16, 0.98, 0.08, -7.0], [-0.09, -0.1, 0.99, 11.0], [0, 0, 0, 1.0]])
SECONDS_TO_START = 180


class Server:
    """A running server, and what a client does with it."""

    def __init__(self, process: subprocess.Popen, port: int, log: Path, headers: dict[str, str]) -> None:
        self.process, self.port, self.log = process, port, log
        self.address = f"http://127.0.0.1:{port}"
        self.session = requests.Session()
        self.session.headers.update(headers)

    def request(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return self.session.request(method, f"{self.address}{path}", timeout=300, **arguments)

    def translate(self, image: str, /, model: str = "reggan", **params: Any) -> requests.Response:
        """Ask for a translated volume, without multipart wrapping."""
        return self.request(
            "POST", f"/infer/{model}", params={"image": image, "output": "image"}, data={"params": json.dumps(params)}
        )

    def wait_for(self, task: str, seconds: float = 400.0) -> dict[str, Any]:
        """Wait until a background task has ended and return its last status."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.request("GET", task).json()
            if status["status"] not in ("SUBMITTED", "RUNNING"):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(1)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds a port of this machine that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


def write_weights(bundle: Path, dataset_dir: Path, seed: int = 0) -> Path:
    """Give a bundle random weights of its own networks, with the recipe of a training that has yet to begin."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    parser.update({"dataset_dir": str(dataset_dir), "spatial_size": SIZE, "device": "cpu", "tracking_uri": "none"})
    torch.manual_seed(seed)
    network = parser.get_parsed_content("network")
    parser.get_parsed_content("recipe").travel_with(network)
    path = bundle / "models" / "model.pt"
    torch.save(network.inference_state_dict(), path)
    return path


@pytest.fixture(scope="session")
def start_server(
    free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Server]]:
    """Starts servers as a user does, and stops them in the end."""
    running = []

    def start(
        studies: str | Path,
        *options: str,
        app: Path = APP,
        host: str = "127.0.0.1",
        headers: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> Server:
        folder = tmp_path_factory.mktemp("server")
        port, log = free_port(), folder / "log.txt"
        own = ["pipeline.label_app.serve", "--log-file", folder / "app.log"]
        program = own if app == APP else ["monailabel.main", "start_server", "--app", app]
        command = [sys.executable, "-m", *program, "--studies", studies, "--host", host, "--port", port, *options]
        variables = {
            **os.environ,
            # The checkout that these tests are of, wherever the environment was made for.
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "HOME": str(folder),  # MONAI Label keeps sessions and fetched images there
            "OMP_NUM_THREADS": "1",
            "http_proxy": "http://127.0.0.1:9",  # whoever asks the internet shall fail at once
            "https_proxy": "http://127.0.0.1:9",
            "no_proxy": "127.0.0.1,localhost",
            **(environment or {}),
        }
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [str(part) for part in (*prefix, *command)],
                cwd=folder,
                env=variables,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        server = Server(process, port, log, headers or {})
        running.append(server)
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                server.request("GET", "/favicon.ico")
                return server
            except requests.ConnectionError:
                time.sleep(0.5)

    yield start
    for server in running:
        server.process.terminate()
        try:
            server.process.wait(20)
        except subprocess.TimeoutExpired:
            server.process.kill()


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects at 4 mm."""
    folder = tmp_path_factory.mktemp("phantom") / "phantom"
    make_phantom(folder, subjects=(1, 1, 1), resolution=4.0)
    return folder


@pytest.fixture(scope="session")
def studies(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs, and one subject without a target in several orientations; and a broken file."""
    folder = tmp_path_factory.mktemp("studies")
    final = folder / "labels" / "final"
    final.mkdir(parents=True)
    for number, split in ((1, "Tr"), (2, "Val")):
        name = f"phantom_{number:03d}.nii.gz"
        shutil.copy(phantom / f"images{split}" / name, folder / name)
        shutil.copy(phantom / f"labels{split}" / name, final / name)
    source = nib.load(phantom / "imagesTs" / "phantom_003.nii.gz")
    nib.save(source, folder / "ras.nii.gz")
    change = ornt_transform(io_orientation(source.affine), axcodes2ornt(("L", "P", "S")))
    nib.save(source.as_reoriented(change), folder / "lps.nii.gz")
    turned, _ = np.linalg.qr(ROTATION[:3, :3])
    affine = np.eye(4)
    affine[:3, :3] = turned * np.sign(np.diag(turned)) @ source.affine[:3, :3]
    affine[:3, 3] = source.affine[:3, 3] + ROTATION[:3, 3]
    nib.save(nib.Nifti1Image(source.get_fdata(dtype=np.float32), affine), folder / "oblique.nii.gz")
    (folder / "broken.nii.gz").write_bytes((folder / "ras.nii.gz").read_bytes()[:2000])
    return folder


@pytest.fixture(scope="session")
def copy_bundle() -> Callable[[Path], Path]:
    """Makes a copy of the bundle, without weights."""

    def copy(target: Path) -> Path:
        shutil.copytree(BUNDLE, target, ignore=shutil.ignore_patterns("*.pt", "*.ts", "*.onnx"))
        (target / "models").mkdir(exist_ok=True)
        return target

    return copy


@pytest.fixture(scope="session")
def bundles(copy_bundle: Callable[[Path], Path], phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles ``reggan`` (with weights), ``bare`` (without) and ``foreign`` (with tensors of another network)."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in ("reggan", "bare", "foreign"):
        copy_bundle(folder / name)
    weights = torch.load(write_weights(folder / "reggan", phantom))
    renamed = {f"other.{name}" if "generator" in name else name: value for name, value in weights.items()}
    torch.save(renamed, folder / "foreign" / "models" / "model.pt")
    return folder


class Ward(NamedTuple):
    """A server that is attacked, and all that it could reach.

    Attributes:
        server: that runs.
        folder: with its ``studies``, ``bundles``, ``outputs`` and temporary files (``tmp``), and files of others.
    """

    server: Server
    folder: Path

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    @property
    def weights(self) -> Path:
        return self.folder / "bundles" / "reggan" / "models" / "model.pt"

    def outside(self) -> dict[str, str]:
        """Every file that is not in the studies, with the digest of its content."""
        home = self.server.log.parent
        found = {}
        for root in (self.folder, home):
            for path in sorted(root.rglob("*")):
                log = path in (self.server.log, self.server.log.with_name("app.log"))
                own = path.is_relative_to(self.studies) or log or "sessions" in path.parts
                if path.is_file() and not own:
                    found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def wait_until_tidy(self, before: dict[str, str]) -> None:
        """Wait until all is as it was: the server cleans up once an answer is on its way."""
        deadline = time.monotonic() + 10
        while (now := self._outside_or_none()) != before and time.monotonic() < deadline:
            time.sleep(0.1)
        assert now == before

    def _outside_or_none(self) -> dict[str, str] | None:
        try:
            return self.outside()
        except FileNotFoundError:  # one that is being removed
            return None


@pytest.fixture(scope="session")
def ward(
    start_server: Callable[..., Server], studies: Path, bundles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Ward:
    """A server with studies, bundles and temporary files of its own."""
    folder = tmp_path_factory.mktemp("ward")
    (folder / "tmp").mkdir()
    (folder / "secret").write_bytes(b"r" * 64)
    (folder / "studies" / "labels" / "final").mkdir(parents=True)
    for name in ("ras.nii.gz", "phantom_001.nii.gz", "labels/final/phantom_001.nii.gz"):
        shutil.copy(studies / name, folder / "studies" / name)
    for name in ("reggan", "bare"):
        shutil.copytree(bundles / name, folder / "bundles" / name)
    conf = {"models": "reggan,bare", "bundles": folder / "bundles", "output_dir": folder / "outputs"}
    options = [part for name, value in conf.items() for part in ("--conf", name, str(value))]
    options += ["--conf", "max_volume_mb", "16"]
    server = start_server(folder / "studies", *options, environment={"TMPDIR": str(folder / "tmp")})
    return Ward(server, folder)


@pytest.fixture(scope="session")
def train_model(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a tiny model for one epoch, in this process, and returns its ``model.pt``."""

    def train(*overlays: str, **settings: Any) -> Path:
        torch.set_num_threads(1)
        folder = tmp_path_factory.mktemp("run") / "run"
        chain = [str(BUNDLE / "configs" / name) for name in ("train.json", *overlays)]
        defaults = {**TINY, "dataset_dir": str(phantom), "output_dir": str(folder)}
        if "unet.json" in overlays:
            del defaults["network_def#generator#residual_blocks"]  # it has none
        run_bundle(config_file=chain, logging_file=False, **(defaults | settings))
        return folder / "model.pt"

    return train


@pytest.fixture(scope="session")
def methods() -> Callable[[str], tuple[tuple[str, ...], dict[str, Any]]]:
    """The overlays of a method, and the settings that its networks need to be tiny."""

    def find(name: str) -> tuple[tuple[str, ...], dict[str, Any]]:
        return METHODS[name].overlays, TINY_DISCRIMINATORS[METHODS[name].backbone]

    return find


@pytest.fixture
def offline(tmp_path: Path) -> Callable[[Path, Path], nib.Nifti1Image]:
    """Translates one file with the bundle's own inference, in a process of its own, naming only the model file."""

    def run(model: Path, image: Path) -> nib.Nifti1Image:
        output = Path(tempfile.mkdtemp(dir=tmp_path))
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", BUNDLE / "configs" / "inference.json"]
        command += ["--checkpoint", model, "--image", image, "--output_dir", output, "--device", "cpu"]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        (result,) = output.iterdir()
        return nib.load(result)

    return run
