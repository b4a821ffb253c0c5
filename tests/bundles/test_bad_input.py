"""What is said of bad input, through the bundle's own entry; and that an earlier run is then left as it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from pipeline.bundle import first_cause

ROOT = Path(__file__).resolve().parents[2]
TRAIN, EVALUATE, INFER = ("train.json",), ("train.json", "evaluate.json"), ("inference.json",)


@dataclass
class Place:
    """Copies of good input, to be spoilt.

    Attributes:
        data: a data set: images/ and labels/ of the cases a to d, and datalist.json.
        run: folder of a finished training.
        source: a volume to translate.
        model: weights for that.
    """

    root: Path

    def __post_init__(self) -> None:
        self.data, self.run = self.root / "data", self.root / "run"
        self.source, self.model = self.data / "images" / "d.nii.gz", self.run / "model.pt"
        self.last = self.run / "checkpoints" / "last.pt"

    def fill(self, text: Any) -> Any:
        """Put the paths into a text with {data}, {run}, {source}, {model}, {last} in it."""
        return text.format(**vars(self)) if isinstance(text, str) else text

    def datalist(self, **lists: Any) -> None:
        """Change lists of the datalist."""
        path = self.data / "datalist.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | lists))


def case(letter: str, **more: str) -> dict[str, str]:
    return {"image": f"images/{letter}.nii.gz", "label": f"labels/{letter}.nii.gz", **more}


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def revoxel(path: Path, change: Callable[[np.ndarray], Any], affine: np.ndarray | None = None) -> None:
    """Write a volume anew with other voxels, and with another affine where one is given."""
    volume = nib.load(path)
    voxels = np.asarray(volume.dataobj).copy()
    changed = change(voxels)
    nib.save(nib.Nifti1Image(voxels if changed is None else changed, volume.affine if affine is None else affine), path)


def set_voxel(value: float) -> Callable[[np.ndarray], None]:
    def change(voxels: np.ndarray) -> None:
        voxels[3, 4, 2] = value

    return change


def to_folders(place: Place) -> None:
    """From a datalist to the folders of the Medical Decathlon, one label short."""
    (place.data / "datalist.json").unlink()
    (place.data / "images").rename(place.data / "imagesTr")
    (place.data / "labels").rename(place.data / "labelsTr")
    (place.data / "labelsTr" / "b.nii.gz").unlink()


def spoil_three(place: Place) -> None:
    (place.data / "images" / "a.nii.gz").unlink()
    revoxel(place.data / "images" / "b.nii.gz", set_voxel(np.inf))
    revoxel(place.data / "labels" / "c.nii.gz", np.zeros_like)


def edit_last(change: Callable[[dict[str, Any]], Any]) -> Callable[[Place], None]:
    def edit(place: Place) -> None:
        content = torch.load(place.last, weights_only=True)
        change(content)
        torch.save(content, place.last)

    return edit


def forget_size(place: Place) -> None:
    """As import_weights.py leaves it unless it is told the size."""
    content = torch.load(place.model, weights_only=True)
    content["trained_size"].zero_()
    torch.save(content, place.model)


class RunsCode:
    """An object whose loading would run code of the file's author."""

    def __reduce__(self) -> Any:
        return (sys.exit, ("code of the checkpoint was run",))


def bad(what, spoil=None, *, says, chain=TRAIN, **settings):
    """One kind: what is wrong, what makes it so, and what has to be in the message."""
    return pytest.param(chain, spoil, settings, [says] if isinstance(says, str) else says, id=what)


DATA = [
    bad(
        "file of the datalist is missing",
        lambda place: (place.data / "images/a.nii.gz").unlink(),
        says=["1 fault in the data:", "{data}/images/a.nii.gz: no such file"],
    ),
    bad(
        "volume is cut short",
        lambda place: cut_short(place.data / "labels/a.nii.gz"),
        says=["{data}/labels/a.nii.gz: cannot be read (EOFError: Compressed file ended before"],
    ),
    bad(
        "volume is no image",
        lambda place: (place.data / "labels/a.nii.gz").write_text("no image"),
        says="{data}/labels/a.nii.gz: cannot be read (ImageFileError",
    ),
    bad(
        "folders of unequal counts",
        to_folders,
        says=[
            "2 faults in the data:",
            "{data}/imagesTr holds 4 images and {data}/labelsTr 3, expected as many",
            "no partner in {data}/labelsTr for b.nii.gz",
        ],
    ),
    bad(
        "shapes disagree",
        lambda place: revoxel(place.data / "images/a.nii.gz", lambda voxels: voxels[:30]),
        says="{data}/images/a.nii.gz and {data}/labels/a.nii.gz: shapes disagree, (30, 34, 6) and (40, 34, 6)",
    ),
    bad(
        "affines disagree",
        lambda place: revoxel(place.data / "images/a.nii.gz", lambda voxels: None, np.diag([2.0, 2.0, 5.0, 1.0])),
        says=["affines disagree by up to 5 mm", "0.1 mm", "[0, 0, 5, 0]] and [[2, 0, 0, 0]"],
    ),
    bad(
        "constant image",
        lambda place: revoxel(place.data / "images/a.nii.gz", lambda voxels: np.full_like(voxels, 3)),
        says="{data}/images/a.nii.gz: is constant, every value is 3",
    ),
    bad(
        "NaN",
        lambda place: revoxel(place.data / "images/a.nii.gz", set_voxel(np.nan)),
        says="{data}/images/a.nii.gz: holds 1 NaN and 0 infinite values among 8160",
    ),
    bad(
        "several channels",
        lambda place: revoxel(place.data / "images/a.nii.gz", lambda voxels: np.stack([voxels] * 2, -1)),
        says="{data}/images/a.nii.gz: has shape (40, 34, 6, 2), expected a 2D or 3D image of one channel",
    ),
    bad(
        "nothing above the background",
        lambda place: revoxel(place.data / "images/a.nii.gz", lambda voxels: -1 - voxels),
        says=["{data}/images/a.nii.gz has no voxel above the background value 0", "greatest value -1"],
    ),
    bad(
        "patient in two lists",
        lambda place: place.datalist(training=[case("a", patient="p1")], validation=[case("c", patient="p1")]),
        says='patient "p1" is in training and validation, expected in one list only',
    ),
    bad(
        "file in two lists under two names",
        lambda place: shutil.copy(place.data / "images/a.nii.gz", place.data / "images/c.nii.gz"),
        says=["byte for byte the same file is in training and validation", "images/a.nii.gz (training)"],
    ),
    bad(
        "one patient only",
        lambda place: place.datalist(training=[case("a")], validation=[], test=[]),
        says=["there is no validation list", '"images/a" is the only training patient', 'add a list "validation"'],
    ),
    bad(
        "datalist is no JSON",
        lambda place: (place.data / "datalist.json").write_text("{not json"),
        says="{data}/datalist.json: line 1, column 2: Expecting property name",
    ),
    bad(
        "datalist without training",
        lambda place: (place.data / "datalist.json").write_text('{"train": []}'),
        says='{data}/datalist.json: expected a list "training", found "train"',
    ),
    bad(
        "case without a label",
        lambda place: place.datalist(training=[{"image": "images/a.nii.gz"}]),
        says='{data}/datalist.json: training[0] has no "label"; it has image',
    ),
    bad("no such datalist", datalist="lists.json", says="datalist lists.json: no such file, neither as given nor in"),
    bad("no such data set", dataset_dir="{data}/typo", says="dataset_dir {data}/typo is no folder"),
    bad("data set by a number", dataset_dir=7, says="dataset_dir 7 is no folder"),
    bad(
        "empty data set",
        lambda place: (shutil.rmtree(place.data), place.data.mkdir()),
        says="{data} holds no data set: expected datalist.json or dataset.json, folders imagesTr and labelsTr",
    ),
    bad(
        "several faults at once",
        spoil_three,
        says=[
            "3 faults in the data:",
            "{data}/images/a.nii.gz: no such file",
            "{data}/images/b.nii.gz: holds 0 NaN and 1 infinite values",
            "{data}/labels/c.nii.gz: is constant, every value is 0",
        ],
    ),
    bad("almost empty slices", min_foreground=0.99, says=["no slice has at least 99% of its pixels", "min_foreground"]),
]

KNOBS = [
    bad("noise level too high", noise_level=7, says="noise_level must lie in [0, 5], got 7"),
    bad("noise level negative", noise_level=-1, says="noise_level must lie in [0, 5], got -1"),
    bad("noise level in words", noise_level="high", says="noise_level must lie in [0, 5], got 'high'"),
    bad("noise kind", noise_kind="elastic", says="noise_kind must be one of affine, nonaffine, got 'elastic'"),
    bad(
        "weight of an unknown term",
        weights={"adversarial": 1, "corection": 20},
        says=["weights names ['corection']", "expected among ['adversarial', 'correction', 'smoothness']"],
    ),
    bad(
        "negative weight",
        weights={"adversarial": -1},
        says="weight of 'adversarial' must be a finite number of at least 0, got -1",
    ),
    bad("weights are no dictionary", weights=20, says=["weights must be a dictionary of loss weights", "got 20"]),
    bad("no weight at all", weights={}, says=["weights must be a dictionary", "at least one of them above 0", "{{}}"]),
    bad("no epochs", max_epochs=0, says="max_epochs must be a whole number of at least 1, got 0"),
    bad("half an epoch", max_epochs=1.5, says="max_epochs must be a whole number of at least 1, got 1.5"),
    bad("empty batches", batch_size=0, says="batch_size must be a whole number of at least 1, got 0"),
    bad("negative rate", learning_rate=-1, says="learning_rate must be a positive number, got -1"),
    bad("rate in words", learning_rate="fast", says="learning_rate must be a positive number, got 'fast'"),
    bad("negative seed", seed=-1, says="seed must be a whole number of at least 0, got -1"),
    bad("negative workers", num_workers=-1, says="num_workers must be a whole number of at least 0, got -1"),
    bad(
        "several knobs at once",
        max_epochs=0,
        batch_size="many",
        learning_rate=0,
        says=["max_epochs must", "got 0; batch_size must", "got 'many'; learning_rate must"],
    ),
    bad("more decay than epochs", decay_epochs=5, says="decay_epochs must lie in [0, max_epochs = 1], got 5"),
    bad("decay in words", decay_epochs="all", says="decay_epochs must be a whole number of at least 0, got 'all'"),
    bad("no validation", val_interval=0, says="val_interval must be a whole number of at least 1, got 0"),
    bad("no pictures", picture_interval=0, says="picture_interval must be a whole number of at least 1, got 0"),
    bad(
        "images too small",
        spatial_size=16,
        says="spatial_size must be at least 24 along every axis for PatchDiscriminator, got (16, 16)",
    ),
    bad(
        "size in words", spatial_size="big", says="spatial_size must be a positive whole number or 2 of them, got 'big'"
    ),
    bad("size of three", spatial_size=[32, 32, 32], says="whole number or 2 of them, got [32, 32, 32]"),
    bad("slice axis", slice_axis=3, says="slice_axis must be 0, 1 or 2, got 3"),
    bad(
        "no such device", device="gpu", says=["device must be 'auto', 'cpu', or a device of this machine", "got 'gpu'"]
    ),
    bad("device without values", device="meta", says="device of this machine such as 'cuda:0', got 'meta'"),
    bad("misspelt knob", nosie_level=3, says="unknown knob 'nosie_level': did you mean 'noise_level'?"),
    bad(
        "misspelt argument of a network",
        **{"network_def#generator#filtres": 4},
        says="ResNetGenerator.__init__() got an unexpected keyword argument 'filtres'",
    ),
    bad("mixed precision in words", amp="maybe", says="amp must be true or false, got 'maybe'"),
    bad("resume in words", resume="maybe", says="resume must be true or false, got 'maybe'"),
    bad(
        "folder as MLflow store",
        tracking_uri="./mlruns",
        says=["tracking_uri must be a database or a server, such as sqlite:///", "got './mlruns'"],
    ),
]

CHECKPOINTS = [
    bad(
        "nothing to resume",
        output_dir="{data}/typo",
        resume=True,
        says="resume: {data}/typo holds no run (no config.json); leave resume out to start one",
    ),
    bad(
        "resumed with other widths",
        resume=True,
        max_epochs=16,
        **{"network_def#generator#filters": 8},
        says=["{last} was not made by this", "stem.0.weight: file has (4, 1, 7, 7), network expects (8, 1, 7, 7)"],
    ),
    bad(
        "resumed with other weights",
        resume=True,
        max_epochs=16,
        weights={"adversarial": 1},
        says=["{last} was not made by this CycleGANTranslator", "unexpected: registration."],
    ),
    bad(
        "resumed with another batch size",
        resume=True,
        max_epochs=16,
        batch_size=1,
        says=["{last} was made with 6 iterations per epoch, now there are 12", "batch size changed"],
    ),
    bad(
        "checkpoint is cut short",
        lambda place: cut_short(place.last),
        resume=True,
        says="checkpoint {last} cannot be read, it may be cut short",
    ),
    bad(
        "checkpoint is empty",
        lambda place: place.last.write_bytes(b""),
        resume=True,
        says="checkpoint {last} cannot be read, it may be cut short",
    ),
    bad(
        "checkpoint would run code",
        lambda place: torch.save({"network": RunsCode()}, place.last),
        resume=True,
        says="checkpoint {last} holds objects other than tensors and plain values",
    ),
    bad(
        "checkpoint is a tensor",
        lambda place: torch.save(torch.zeros(3), place.last),
        resume=True,
        says="checkpoint {last} holds a Tensor, expected a dictionary",
    ),
    bad(
        "model.pt as checkpoint",
        lambda place: shutil.copy(place.model, place.last),
        resume=True,
        says=["checkpoint {last} lacks ['network', 'generator_optimizer'", "made by another configuration"],
    ),
    bad(
        "optimiser of something else",
        edit_last(lambda content: content["generator_optimizer"]["param_groups"][0]["params"].pop()),
        resume=True,
        says="checkpoint {last}: the state of generator_optimizer does not fit",
    ),
]

EVALUATION = [
    bad(
        "no test list",
        lambda place: place.datalist(test=[]),
        chain=EVALUATE,
        says=['the data set has no test pairs: add a list "test" to its datalist, or folders imagesTs and labelsTs'],
    ),
    bad(
        "unknown list", chain=EVALUATE, split="tset", says="split must be one of training, validation, test, got 'tset'"
    ),
    bad(
        "nothing was trained",
        chain=EVALUATE,
        output_dir="{data}/typo",
        says="checkpoint {data}/typo/checkpoints/best.pt does not exist",
    ),
    bad("misspelt knob of evaluation", chain=EVALUATE, chekpoint="x", says="'chekpoint': did you mean 'checkpoint'?"),
    bad(
        "evaluated with other widths",
        chain=EVALUATE,
        **{"network_def#generator#filters": 8},
        says="{run}/checkpoints/best.pt was not made by this CycleGANTranslator (other widths, backbone or mode)",
    ),
]

INFERENCE = [
    bad("no model", chain=INFER, checkpoint="{run}/typo.pt", says="checkpoint {run}/typo.pt does not exist"),
    bad(
        "model of other widths",
        chain=INFER,
        **{"network_def#generator#filters": 8},
        says=["{model} was not made by this CycleGANTranslator", "file has (4, 1, 7, 7), network expects (8, 1, 7, 7)"],
    ),
    bad(
        "model is cut short",
        lambda place: cut_short(place.model),
        chain=INFER,
        says="checkpoint {model} cannot be read, it may be cut short",
    ),
    bad(
        "model is a pickled module",
        lambda place: torch.save(torch.nn.Linear(2, 2), place.model),
        chain=INFER,
        says="checkpoint {model} holds objects other than tensors and plain values",
    ),
    bad(
        "model of something else",
        lambda place: torch.save(torch.nn.Linear(2, 2).state_dict(), place.model),
        chain=INFER,
        spatial_size=32,
        says=["{model} was not made by this CycleGANTranslator", "missing: generator.stem.0.weight"],
    ),
    bad(
        "model without its size",
        forget_size,
        chain=INFER,
        says="checkpoint {model} does not say at which image size it was trained; pass spatial_size",
    ),
    bad("no source", chain=INFER, image="{data}/typo.nii.gz", says="image: {data}/typo.nii.gz does not exist"),
    bad(
        "folder without images",
        lambda place: (place.root / "empty").mkdir(),
        chain=INFER,
        image="{root}/empty",
        says="image: no file ending in .nii.gz, .nii, .npy, .nrrd, .mha, .mhd in {root}/empty",
    ),
    bad(
        "source is no image",
        lambda place: (place.root / "notes.txt").write_text("no image"),
        chain=INFER,
        image="{root}/notes.txt",
        says="{root}/notes.txt: cannot be read",
    ),
    bad(
        "source is cut short",
        lambda place: cut_short(place.source),
        chain=INFER,
        says="{source}: cannot be read (EOFError",
    ),
    bad(
        "source is constant",
        lambda place: revoxel(place.source, lambda voxels: np.full_like(voxels, 4)),
        chain=INFER,
        says="{source}: is constant, every value is 4",
    ),
    bad(
        "source has a constant foreground",
        lambda place: revoxel(place.source, lambda voxels: np.where(voxels > 0, 4.0, 0.0)),
        chain=INFER,
        says="{source} has a constant foreground (all 3157 voxels above the background value 0 are 4)",
    ),
    bad(
        "source holds NaN",
        lambda place: revoxel(place.source, set_voxel(np.nan)),
        chain=INFER,
        says="{source}: holds 1 NaN and 0 infinite values among 8160",
    ),
    bad(
        "source is 4D",
        lambda place: revoxel(place.source, lambda voxels: np.stack([voxels] * 3, -1)),
        chain=INFER,
        says="{source}: has shape (40, 34, 6, 3), expected a 2D or 3D image of one channel",
    ),
    bad(
        "source has two channels",
        lambda place: revoxel(place.source, lambda voxels: np.stack([voxels[:, :, None]] * 2, -1)),
        chain=INFER,
        says="{source}: has shape (40, 34, 1, 6, 2), expected a 2D or 3D image of one channel",
    ),
    bad(
        "second of several sources is bad",
        lambda place: revoxel(place.data / "images/b.nii.gz", np.zeros_like),
        chain=INFER,
        image="{data}/images",
        says="{data}/images/b.nii.gz: is constant, every value is 0",
    ),
    bad(
        "two sources for one result",
        lambda place: nib.save(nib.load(place.source), place.data / "images/d.nii"),
        chain=INFER,
        image="{data}/images",
        says="{data}/images: d.nii and d.nii.gz differ in the suffix only",
    ),
    bad(
        "slices too small for the network",
        chain=INFER,
        spatial_size=4,
        says="spatial_size must be at least 5 along every axis for ResNetGenerator, got (4, 4)",
    ),
    bad("no slices at once", chain=INFER, slices_at_once=0, says="slices_at_once must be a whole number of at least 1"),
    bad("picture as output", chain=INFER, output_ext=".png", says="output_ext must be one of .nii.gz, .nii, .nrrd"),
    bad("misspelt knob of inference", chain=INFER, chekpoint="x", says="'chekpoint': did you mean 'checkpoint'?"),
]


@pytest.fixture
def place(dataset_dir, trained_run, tmp_path):
    shutil.copytree(dataset_dir, tmp_path / "data")
    shutil.copytree(trained_run, tmp_path / "run")
    return Place(tmp_path)


@pytest.mark.parametrize(("chain", "spoil", "settings", "says"), DATA + KNOBS + CHECKPOINTS + EVALUATION + INFERENCE)
def test_bad_input_is_named_and_nothing_is_lost(run_config, snapshot, place, chain, spoil, settings, says):
    if spoil is not None:
        spoil(place)
    defaults = {"dataset_dir": str(place.data), "output_dir": str(place.run)}
    if chain is INFER:
        defaults |= {"image": str(place.source), "checkpoint": str(place.model), "output_dir": str(place.root / "out")}
    before = snapshot(place.root)
    with pytest.raises((ValueError, TypeError, OSError, RuntimeError)) as caught:
        run_config(*chain, **{name: place.fill(value) for name, value in (defaults | settings).items()})
    cause = first_cause(caught.value)
    missing = [text for text in map(place.fill, says) if text not in str(cause)]
    assert not missing, f"{type(cause).__name__}: {cause}"
    assert snapshot(place.root) == before


def test_command_line_ends_with_what_is_wrong(dataset_dir, tmp_path):
    """As the shell hands values over: words and numbers apart, dictionaries in quotes."""
    command = [sys.executable, "-m", "monai.bundle", "run", "training"]
    command += ["--config_file", "bundles/reggan/configs/train.json", "--dataset_dir", str(dataset_dir)]
    command += ["--output_dir", str(tmp_path / "run"), "--max_epochs", "0", "--learning_rate", "fast"]
    command += ["--weights", "{'adversarial': 0}", "--seed", "1.5"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == (
        "error: max_epochs must be a whole number of at least 1, got 0; seed must be a whole number of at least 0, "
        "got 1.5; learning_rate must be a positive number, got 'fast'; weights must be a dictionary of loss weights "
        "such as {'adversarial': 1}, at least one of them above 0, got {'adversarial': 0}"
    )
    assert not (tmp_path / "run").exists()
