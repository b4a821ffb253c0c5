"""Fixtures that several test files share."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

# PyTorch and MONAI are imported by the fixtures that need them: the process that hands tests out to others does not.
if TYPE_CHECKING:
    import torch

    from pipeline.translators import CycleGANTranslator, Translator

REGGAN = {"adversarial": 1.0, "correction": 20.0, "smoothness": 10.0}


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--sample N --sample-seed WORD``: some of the tests, other ones for each word."""
    parser.addoption("--sample", type=int, metavar="N", help="run N of the tests, without those of many minutes")
    parser.addoption("--sample-seed", default="", metavar="WORD", help="decides which, such as a commit")


@pytest.hookimpl(trylast=True)  # behind what leaves out by -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Draw the sample; those that are marked ``slow(minutes=N)`` take too long for one."""
    count = config.getoption("--sample")
    if count is None:
        return
    if count < 1:
        raise pytest.UsageError(f"--sample must be at least 1, got {count}")
    short = [item for item in items if not any("minutes" in mark.kwargs for mark in item.iter_markers("slow"))]
    chosen = set(random.Random(config.getoption("--sample-seed")).sample(range(len(short)), min(count, len(short))))
    drawn = [item for index, item in enumerate(short) if index in chosen]
    config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
    items[:] = drawn


class WarmProcess:
    """A process that has imported everything, and runs commands in forks of it.

    Args:
        root: of the checkout whose code is to run.
        env: its environment.
        log: file for what it says itself.
    """

    def __init__(self, root: Path, env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, str(root / "tests" / "warm.py")],
                cwd=root,
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        ready = self._answer()
        assert ready[0] == "ready"
        assert ready[1].startswith(str(root)), "the checkout's own code has to run"

    def _answer(self) -> list[Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, self._log.read_text()[-3000:]
        return json.loads(line)

    def __call__(self, *argv: str | Path, cwd: Path) -> tuple[int, str]:
        """Run what follows ``python``; returns its exit status and what it printed, errors included."""
        assert self._process.stdin
        request = {"argv": [str(word) for word in argv], "cwd": str(cwd)}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code, text = self._answer()
        return code, text

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="session")
def warm_process() -> type[WarmProcess]:
    """For commands of another checkout than this one."""
    return WarmProcess


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmProcess]:
    """Runs what follows ``python``, as a process of its own would that has done its imports."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = WarmProcess(root, environment, tmp_path_factory.mktemp("warm") / "log")
    yield process
    process.close()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and sums then do not depend on the machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every figure that is saved."""
    from matplotlib.figure import Figure  # slow to import: most tests draw nothing

    saved: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs))
    )
    return saved


@pytest.fixture
def reggan_weights() -> dict[str, float]:
    """The paper's weights of mode NC+R."""
    return dict(REGGAN)


@pytest.fixture
def make_translator() -> Callable[..., CycleGANTranslator]:
    """Builds a translator of tiny networks for 32x32 images."""
    import torch

    from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
    from pipeline.translators import CycleGANTranslator

    def build(weights: Mapping[str, float] = REGGAN, seed: int = 0) -> CycleGANTranslator:
        torch.manual_seed(seed)
        return CycleGANTranslator(
            weights,
            generator=partial(ResNetGenerator, filters=4, residual_blocks=1),
            discriminator=partial(PatchDiscriminator, filters=4),
            registration=partial(RegistrationNet, channels=(4, 4)),
        )

    return build


RECIPE: dict[str, Any] = {
    "format": "reggan-recipe",
    "version": 1,
    "method": "reggan",
    "backbone": "cyclegan",
    "network_size": "small",
    "weights": dict(REGGAN),
    "source": {
        "modality": "T1",
        "channels": 1,
        "scaling": {
            "class": "transforms.ScaleMRIntensityd",
            "arguments": {"upper_percentile": 99.5, "background": 0.0},
        },
    },
    "target": {
        "modality": None,
        "channels": 1,
        "scaling": {"class": "transforms.ScaleCTIntensityd", "arguments": {"window": [0.0, 1000.0]}},
        "window": [0.0, 1000.0],
    },
    "grid": {
        "spatial_dims": 2,
        "orientation": "RAS",
        "spacing": None,
        "slice_axis": 2,
        "spatial_size": [32, 32],
        "fit": "resize",
    },
    "foreground": {"rule": "above-background", "min_foreground": 0.1, "masks": 0},
    "data": None,
    "training": {
        "origin": "trained",
        "data_digest": "d" * 64,
        "noise_level": 3,
        "noise_kind": "affine",
        "seed": 0,
        "commit": None,
        "epoch": 0,
        "iteration": 0,
        "settings": {"batch_size": 2},
        "started_from": None,
    },
}


@pytest.fixture
def make_recipe(make_translator: Callable[..., CycleGANTranslator]) -> Callable[..., dict[str, Any]]:
    """Builds the content of a valid recipe, changed: ``make_recipe(grid={"slice_axis": 0}, method="mine")``."""
    from pipeline.models.describing import describe_translator

    def build(of: Translator | None = None, /, **changes: Any) -> dict[str, Any]:
        described, networks = describe_translator(make_translator() if of is None else of)
        content = copy.deepcopy(RECIPE) | {"translator": described, "networks": networks}
        for name, value in changes.items():
            both = isinstance(value, Mapping) and isinstance(content.get(name), Mapping)
            content[name] = {**content[name], **value} if both else value
        return content

    return build


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two pairs of 32x32 images in [-1, 1]."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(2, 1, 32, 32, generator=generator) * 2 - 1 for name in ("image", "label")}


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Any, Any], None]:
    """Asserts that two states are equal to the bit, through dictionaries and lists."""
    import torch

    def compare(first: Any, second: Any) -> None:
        if isinstance(first, dict):
            assert first.keys() == second.keys()
            for key in first:
                compare(first[key], second[key])
        elif isinstance(first, (list, tuple)):
            assert len(first) == len(second)
            for one, other in zip(first, second, strict=True):
                compare(one, other)
        else:
            assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second

    return compare


PERSON = {
    "PatientName": "Musterfrau^Erika",
    "PatientID": "PID-4711-0815",
    "PatientBirthDate": "19640812",
    "AccessionNumber": "ACC-998877",
    "ReferringPhysicianName": "Sommer^Anton",
    "InstitutionName": "Klinikum Musterstadt",
    "StationName": "SCANNER-77",
    "DeviceSerialNumber": "SN-123-456",
    "OperatorsName": "Winter^Berta",
    "PatientComments": "phone 555-0199",
}
"""Nobody: what must not be found where it does not belong."""


def write_dicom(
    folder: Path,
    stored: Any,
    *,
    spacing: Sequence[float] = (1.5, 1.2, 3.0),
    origin: Sequence[float] = (-20.0, -15.0, 30.0),
    directions: Sequence[float] = (1, 0, 0, 0, 1, 0),
    modality: str = "MR",
    suffix: str = ".dcm",
    series: str | None = None,
    study: str | None = None,
    description: str = "T1W tra",
    change: Callable[[int, Any], Any] | None = None,
    **attributes: Any,
) -> list[Path]:
    """Write a series of made-up slices, as a scanner would.

    Args:
        folder: is made.
        stored: (columns, rows, slices) of whole numbers, signed ones for signed values.
        spacing: between columns, rows and slices in mm.
        origin: of the first voxel, in DICOM's axes (L, P, S).
        directions: along a row and along a column.
        modality: ``MR`` or ``CT``; of CT, intercept -1024.
        suffix: of the files' names.
        series: UID; new if None.
        study: likewise.
        description: of the series.
        change: is given each slice's number and data set before it is written; what it returns False for is not.
        attributes: others, of all slices.

    Returns:
        The files, from the first slice to the last.
    """
    import pydicom  # slow to import: most tests read no DICOM
    from pydicom.dataset import Dataset, FileMetaDataset

    array = np.asarray(stored)
    signed = np.issubdtype(array.dtype, np.signedinteger)
    ct = modality == "CT"
    kind = pydicom.uid.CTImageStorage if ct else pydicom.uid.MRImageStorage
    new = pydicom.uid.generate_uid
    series, study, frame = series or new(), study or new(), new()
    along = np.array(directions, dtype=float).reshape(2, 3)
    normal = np.cross(*along)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(array.shape[2]):
        data = Dataset()
        data.SpecificCharacterSet = "ISO_IR 192"
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if ct else "M"]
        data.SOPClassUID, data.SOPInstanceUID = kind, new()
        for name, value in {**PERSON, "PatientSex": "F", "PatientAge": "055Y", "PatientWeight": "61"}.items():
            setattr(data, name, value)
        data.StudyDate, data.StudyTime, data.StudyID = "20240229", "101500", "7"
        data.SeriesDate, data.SeriesTime, data.ContentDate, data.ContentTime = (
            "20240229",
            "102000",
            "20240229",
            "102100",
        )
        data.AcquisitionDate, data.AcquisitionTime = "20240229", "102030"
        data.Modality, data.Manufacturer, data.SeriesDescription = modality, "Makers", description
        data.StudyDescription, data.BodyPartExamined, data.PatientPosition = "Head", "HEAD", "HFS"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.PositionReferenceIndicator = ""
        data.SeriesNumber, data.AcquisitionNumber, data.InstanceNumber = 3, 1, index + 1
        if ct:
            data.KVP, data.RescaleSlope, data.RescaleIntercept, data.RescaleType = "120", "1", "-1024", "HU"
        else:
            data.ScanningSequence, data.SequenceVariant, data.ScanOptions = "SE", "NONE", ""
            data.MRAcquisitionType, data.RepetitionTime, data.EchoTime = "2D", "500", "12"
            data.EchoTrainLength = "1"
        data.ImagePositionPatient = [f"{v:.9g}"[:16] for v in np.array(origin) + normal * spacing[2] * index]
        data.ImageOrientationPatient = [f"{v:.9g}"[:16] for v in along.ravel()]
        data.PixelSpacing, data.SliceThickness = [f"{spacing[1]:.9g}", f"{spacing[0]:.9g}"], f"{spacing[2]:.9g}"
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.PixelRepresentation, data.BitsAllocated = int(signed), 8 * array.itemsize
        data.BitsStored, data.HighBit = 8 * array.itemsize, 8 * array.itemsize - 1
        data.Rows, data.Columns = array.shape[1], array.shape[0]
        data.PixelData = np.ascontiguousarray(array[:, :, index].T).tobytes()
        data["PixelData"].VR = "OW" if array.itemsize > 1 else "OB"
        for name, value in attributes.items():
            setattr(data, name, value)
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        if change is not None and change(index, data) is False:
            continue
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
        paths.append(folder / f"IM{index:04d}{suffix}")
        save_dicom(paths[-1], data)
    return paths


def save_dicom(path: Path, data: Any) -> None:
    """Write one data set, with either version of pydicom."""
    import pydicom

    if int(pydicom.__version__.split(".")[0]) >= 3:
        data.save_as(path, enforce_file_format=True)
    else:
        syntax = data.file_meta.TransferSyntaxUID
        data.is_little_endian, data.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
        data.save_as(path, write_like_original=False)


@pytest.fixture(scope="session")
def make_dicom() -> Callable[..., list[Path]]:
    """Writes series of slices, see `write_dicom`."""
    return write_dicom


@pytest.fixture(scope="session")
def write_slice() -> Callable[[Path, Any], None]:
    """Writes one data set, see `save_dicom`."""
    return save_dicom


@pytest.fixture(scope="session")
def person() -> dict[str, str]:
    """The made-up person of `make_dicom`'s series."""
    return dict(PERSON)
