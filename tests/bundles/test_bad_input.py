"""What is said of bad data and bad settings, before training starts and without losing an earlier run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import first_cause

ROOT = Path(__file__).resolve().parents[2]


def case(letter, **more):
    return {"image": f"images/{letter}.nii.gz", "label": f"labels/{letter}.nii.gz", **more}


def to_folders(place):
    """From a datalist to the folders of the Medical Decathlon, one label short."""
    (place.data / "datalist.json").unlink()
    (place.data / "images").rename(place.data / "imagesTr")
    (place.data / "labels").rename(place.data / "labelsTr")
    (place.data / "labelsTr" / "b.nii.gz").unlink()


def spoil_three(place):
    (place.data / "images" / "a.nii.gz").unlink()
    place.set_voxel("images/b.nii.gz", np.inf)
    place.revoxel("labels/c.nii.gz", np.zeros_like)


def bad(what, spoil=None, *, says, chain=("train.json",), **settings):
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
        lambda place: place.cut_short("labels/a.nii.gz"),
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
        lambda place: place.revoxel("images/a.nii.gz", lambda voxels: voxels[:30]),
        says="{data}/images/a.nii.gz and {data}/labels/a.nii.gz: shapes disagree, (30, 34, 6) and (40, 34, 6)",
    ),
    bad(
        "affines disagree",
        lambda place: place.revoxel("images/a.nii.gz", np.copy, np.diag([2.0, 2.0, 5.0, 1.0])),
        says=["affines disagree by up to 5 mm", "0.1 mm", "[0, 0, 5, 0]] and [[2, 0, 0, 0]"],
    ),
    bad(
        "constant image",
        lambda place: place.revoxel("images/a.nii.gz", lambda voxels: np.full_like(voxels, 3)),
        says="{data}/images/a.nii.gz: is constant, every value is 3",
    ),
    bad(
        "NaN",
        lambda place: place.set_voxel("images/a.nii.gz", np.nan),
        says="{data}/images/a.nii.gz: holds 1 NaN and 0 infinite values among 8160",
    ),
    bad(
        "several channels",
        lambda place: place.revoxel("images/a.nii.gz", lambda voxels: np.stack([voxels] * 2, -1)),
        says="{data}/images/a.nii.gz: has shape (40, 34, 6, 2), expected a 2D or 3D image of one channel",
    ),
    bad(
        "nothing above the background",
        lambda place: place.revoxel("images/a.nii.gz", lambda voxels: -1 - voxels),
        foreground="above-background",
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
    bad("data set by a number", dataset_dir=7, says="dataset_dir must be a path, got 7"),
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
        "local noise",
        noise_kind="nonaffine",
        noise_level=3,
        noise_amplitude=0.2,
        says="amplitude * level must stay below 0.25 in 2D, or images may fold: got 0.2 * 3 = 0.6",
    ),
    bad(
        "local noise of fixed pairs",
        noise_kind="nonaffine",
        noise_level=3,
        noise_amplitude=0.2,
        pairs="fixed",
        says="amplitude * level must stay below 0.25 in 2D, or images may fold: got 0.2 * 3 = 0.6",
    ),
    bad(
        "weight of an unknown term",
        weights={"adversarial": 1, "corection": 20},
        says=["weights names ['corection']", "expected among ['adversarial', ", "'correction', "],
    ),
    bad(
        "negative weight",
        weights={"adversarial": -1},
        says="weights#adversarial must be a number of at least 0, got -1",
    ),
    bad("weights are no dictionary", weights=20, says=["weights must be a dictionary of loss weights", "got 20"]),
    bad("no weight at all", weights={}, says=["weights must be a dictionary", "at least one of them above 0", "{{}}"]),
    bad("no epochs", max_epochs=0, says="max_epochs must be a whole number of at least 1, got 0"),
    bad("half an epoch", max_epochs=1.5, says="max_epochs must be a whole number of at least 1, got 1.5"),
    bad("empty batches", batch_size=0, says="batch_size must be a whole number of at least 1, got 0"),
    bad("negative rate", learning_rate=-1, says="learning_rate must be a positive number, got -1"),
    bad("rate in words", learning_rate="fast", says="learning_rate must be a positive number, got 'fast'"),
    bad("negative seed", seed=-1, says="seed must be a whole number in [0, 4294967295], got -1"),
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
    bad("slice axis", slice_axis=3, says="slice_axis must be a whole number in [0, 2], got 3"),
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


@pytest.mark.parametrize(("chain", "spoil", "settings", "says"), DATA + KNOBS)
def test_bad_input_is_named_and_nothing_is_lost(assert_refused, chain, spoil, settings, says):
    assert_refused(chain, spoil, settings, says)


def test_diverged_training_says_so(run_config):
    """Rather than crash: what PyTorch samples at NaN on the CPU ends the process."""
    with pytest.raises(RuntimeError) as caught:
        run_config("train.json", learning_rate=1000, max_epochs=4)
    assert "a finite number was expected. Often a lower learning_rate" in str(first_cause(caught.value))


def test_command_line_ends_with_what_is_wrong(dataset_dir, tmp_path, python):
    """As the shell hands values over: words and numbers apart, dictionaries in quotes."""
    command = ["-m", "monai.bundle", "run", "training"]
    command += ["--config_file", "bundles/reggan/configs/train.json", "--dataset_dir", str(dataset_dir)]
    command += ["--output_dir", str(tmp_path / "run"), "--max_epochs", "0", "--learning_rate", "fast"]
    command += ["--weights", "{'adversarial': 0}", "--seed", "1.5"]
    code, said = python(*command, cwd=ROOT)
    assert code == 1
    assert said.strip().splitlines()[-1] == (
        "error: seed must be a whole number in [0, 4294967295], got 1.5; max_epochs must be a whole number of at least "
        "1, got 0; learning_rate must be a positive number, got 'fast'; weights must be a dictionary of loss weights "
        "such as {'adversarial': 1}, at least one of them above 0, got {'adversarial': 0}"
    )
    assert not (tmp_path / "run").exists()
