"""What is said of bad checkpoints, weights and source volumes: on resuming, evaluating and translating."""

from __future__ import annotations

import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

TRAIN, EVALUATE, INFER = ("train.json",), ("train.json", "evaluate.json"), ("inference.json",)


def edit(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def edit_recipe(path, change):
    """As whoever tampers with a file may."""
    state = torch.load(path, weights_only=True)
    recipe = json.loads(bytes(state["_extra_state"].tolist()))
    change(recipe)
    state["_extra_state"] = torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)
    torch.save(state, path)


class RunsCode:
    """An object whose loading would run code of the file's author."""

    def __reduce__(self):
        return (sys.exit, ("code of the checkpoint was run",))


def bad(what, spoil=None, *, says, chain=TRAIN, **settings):
    """One kind: what is wrong, what makes it so, and what has to be in the message."""
    return pytest.param(chain, spoil, settings, [says] if isinstance(says, str) else says, id=what)


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
        noise_level=0,
        **{"network_def#generator#filters": 8},
        says="{last} is of another training: network_def#generator#filters was 4, now 8. Give what it was",
    ),
    bad(
        "resumed with other widths all the same",
        resume=True,
        resume_changed=True,
        max_epochs=16,
        **{"network_def#generator#filters": 8},
        says=["{last} was not made by this", "stem.0.weight: file has (4, 1, 7, 7), network expects (8, 1, 7, 7)"],
    ),
    bad(
        "resumed with other weights",
        resume=True,
        max_epochs=16,
        weights={"adversarial": 1},
        resume_changed=True,
        says=[
            "{last} was trained as CycleGANTranslator(adversarial, correction, smoothness)",
            "this config builds CycleGANTranslator(adversarial)",
        ],
    ),
    bad(
        "resumed with another batch size",
        resume=True,
        max_epochs=16,
        batch_size=1,
        noise_level=0,
        says="{last} is of another training: batch_size was 2, now 1. ",
    ),
    *(
        bad(f"resumed with another {name}", resume=True, max_epochs=16, **{"noise_level": 0, name: value}, says=says)
        for name, value, says in (
            ("noise_level", 2, "another training: noise_level was 0, now 2."),
            ("seed", 1, "another training: seed was 0, now 1."),
            ("weights#correction", 10, "another training: weights#correction was 20, now 10."),
            (
                "source_intensity#upper_percentile",
                90,
                "another training: source_intensity#upper_percentile was 99.5, now 90.",
            ),
            ("spacing", 4, "spacing was ["),
            ("min_foreground", 0.2, "another training: min_foreground was 0.1, now 0.2."),
            (
                "generator_optimizer#betas",
                [0.9, 0.999],
                "generator_optimizer#betas was (0.5, 0.999), now (0.9, 0.999).",
            ),
            (
                "train#dataset#slice_transform",
                {"_target_": "monai.transforms.RandFlipd", "keys": ["image", "label"]},
                "augmentation was nothing of the kind, now RandFlipd(",
            ),
        )
    ),
    bad(
        "resumed with one voxel that is another",
        lambda place: place.set_voxel("labels/a.nii.gz", 901),
        resume=True,
        noise_level=0,
        max_epochs=16,
        says=["another training: data (SHA-256) was ", "now ", "--resume_changed true"],
    ),
    bad(
        "resumed with source and target swapped in the list",
        lambda place: place.datalist(
            training=[{"image": f"labels/{name}.nii.gz", "label": f"images/{name}.nii.gz"} for name in "ab"]
        ),
        resume=True,
        noise_level=0,
        max_epochs=16,
        says="which patients train, validate and test (SHA-256) was ",
    ),
    bad(
        "resumed with fewer epochs than are done",
        resume=True,
        noise_level=0,
        max_epochs=5,
        says="{last} is of epoch 15, and max_epochs is 5: nothing is left to train; expected max_epochs of at least 15",
    ),
    bad(
        "checkpoint is cut short",
        lambda place: place.cut_short(place.last),
        resume=True,
        says=[
            "checkpoint {last} cannot be read, it may be cut short",
            "{run}/checkpoints/best.pt is whole, and of epoch 15: to go on behind that, copy it to last.pt",
        ],
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
        lambda place: edit(place.last, lambda saved: saved["generator_optimizer"]["param_groups"][0]["params"].pop()),
        resume=True,
        noise_level=0,
        max_epochs=16,
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
        says="{data}/typo holds no finished training: {data}/typo/checkpoints/best.pt is missing; train first",
    ),
    bad("misspelt knob of evaluation", chain=EVALUATE, chekpoint="x", says="'chekpoint': did you mean 'checkpoint'?"),
    bad("misspelt setting", chain=("evaluate.json",), backbon="unit", says="'backbon': did you mean 'backbone'?"),
    bad("misspelt folder", chain=("evaluate.json",), ouput_dir="x", says="'ouput_dir': did you mean 'output_dir'?"),
    bad(
        "evaluated with other widths",
        chain=EVALUATE,
        **{"network_def#generator#filters": 8},
        says=[
            "1 setting contradicts the recipe of {run}/checkpoints/best.pt; leave out what the model knows by itself:",
            "- network_def#generator#filters: given 8, the model has 4",
        ],
    ),
]

INFERENCE = [
    bad("no model", chain=INFER, checkpoint="{run}/typo.pt", says="checkpoint {run}/typo.pt does not exist"),
    bad(
        "model of other widths",
        chain=INFER,
        **{"network_def#generator#filters": 8},
        says=["recipe of {model};", "- network_def#generator#filters: given 8, the model has 4"],
    ),
    bad(
        "model is cut short",
        lambda place: place.cut_short(place.model),
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
        says="{model} holds no recipe, so nobody can tell how its images have to be scaled and cut: expected a model",
    ),
    bad(
        "model without its size",
        lambda place: edit_recipe(place.model, lambda recipe: recipe["grid"].update(spatial_size=None)),
        chain=INFER,  # as scripts/import_weights.py may write it
        says="{model} does not say at which image size it was trained; pass spatial_size",
    ),
    bad(
        "recipe of another version",
        lambda place: edit_recipe(place.model, lambda recipe: recipe.update(version=2)),
        chain=INFER,
        says="the recipe of {model} is of version 2, this project reads version 1; use the version of the project that",
    ),
    bad(
        "recipe that lacks something",
        lambda place: edit_recipe(place.model, lambda recipe: recipe["grid"].pop("orientation")),
        chain=INFER,
        says="the recipe of {model} is not valid: grid: 'orientation' is a required property",
    ),
    bad(
        "recipe that would run code",
        lambda place: edit_recipe(place.model, lambda recipe: recipe["translator"].update({"class": "os.system"})),
        chain=INFER,
        says=["the model names os.system, which is not of this project", "--trusted_modules \"['os']\""],
    ),
    bad(
        "recipe of other networks",
        lambda place: edit_recipe(
            place.model, lambda recipe: recipe["networks"]["generator"]["arguments"].update(filters=8)
        ),
        chain=INFER,
        says=["{model} was not made by this CycleGANTranslator", "file has (4, 1, 7, 7), network expects (8, 1, 7, 7)"],
    ),
    bad(
        "style of a model that has none",
        chain=INFER,
        style=[0.5] * 8,
        says="style is no setting of CycleGANTranslator, the translator of {model}",
    ),
    bad("no source", chain=INFER, image="{data}/typo.nii.gz", says="image: {data}/typo.nii.gz does not exist"),
    bad(
        "folder without images",
        lambda place: (place.root / "empty").mkdir(),
        chain=INFER,
        image="{root}/empty",
        says="image: no file ending in .nii.gz, .nii, .npy, .nrrd, .mha, .mhd, .mgz, .mgh in {root}/empty",
    ),
    bad(
        "source is no image",
        lambda place: (place.root / "notes.txt").write_text("no image"),
        chain=INFER,
        image="{root}/notes.txt",
        says="{root}/notes.txt: is of no known format",
    ),
    bad(
        "source is cut short",
        lambda place: place.cut_short(place.source),
        chain=INFER,
        says="{source}: cannot be read (EOFError",
    ),
    bad(
        "source is constant",
        lambda place: place.revoxel(place.source, lambda voxels: np.full_like(voxels, 4)),
        chain=INFER,
        says="{source}: is constant, every value is 4",
    ),
    bad(
        "source has a constant foreground",
        lambda place: place.revoxel(place.source, lambda voxels: np.where(voxels > 0, 4.0, 0.0)),
        chain=INFER,
        says="{source} has a constant foreground (all 3157 voxels above the background value 0 are 4)",
    ),
    bad(
        "source holds NaN",
        lambda place: place.set_voxel(place.source, np.nan),
        chain=INFER,
        says="{source}: holds 1 NaN and 0 infinite values among 8160",
    ),
    bad(
        "source is 4D",
        lambda place: place.revoxel(place.source, lambda voxels: np.stack([voxels] * 3, -1)),
        chain=INFER,
        says="{source}: has shape (40, 34, 6, 3), expected a 2D or 3D image of one channel",
    ),
    bad(
        "source has two channels",
        lambda place: place.revoxel(place.source, lambda voxels: np.stack([voxels[:, :, None]] * 2, -1)),
        chain=INFER,
        says="{source}: has shape (40, 34, 1, 6, 2), expected a 2D or 3D image of one channel",
    ),
    bad(
        "second of several sources is bad",
        lambda place: place.revoxel("images/b.nii.gz", np.zeros_like),
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
        lambda place: edit_recipe(place.model, lambda recipe: recipe["grid"].update(spatial_size=None)),
        chain=INFER,
        spatial_size=4,
        says="spatial_size must be at least 5 along every axis for ResNetGenerator, got (4, 4)",
    ),
    bad("no slices at once", chain=INFER, slices_at_once=0, says="slices_at_once must be a whole number of at least 1"),
    bad("picture as output", chain=INFER, output_ext=".png", says="output_ext must be one of .nii.gz, .nii, .nrrd"),
    bad("misspelt knob of inference", chain=INFER, chekpoint="x", says="'chekpoint': did you mean 'checkpoint'?"),
]


@pytest.mark.parametrize(("chain", "spoil", "settings", "says"), CHECKPOINTS + EVALUATION + INFERENCE)
def test_bad_file_is_named_and_nothing_is_lost(assert_refused, chain, spoil, settings, says):
    assert_refused(chain, spoil, settings, says)
