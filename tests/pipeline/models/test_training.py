"""The recipe of a training is read off what trains, and what it has no word for is refused."""

from __future__ import annotations

import hashlib
from functools import partial

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Lambdad, LoadImaged, Orientationd, RandFlipd, Spacingd

from pipeline.data import SliceDataset
from pipeline.models import ContradictionError, ModelError, StartingPoint, training_recipe
from pipeline.models.training import describe_data, describe_preprocessing, spatial_dims_of
from pipeline.networks import PatchDiscriminator, RegistrationNet, ResNetGenerator
from pipeline.translators import CycleGANTranslator
from transforms import DescribeVolumed, ResampleInPlaned, ScaleCTIntensityd, ScaleMRIntensityd

KEYS = ["image", "label"]
WEIGHTS = {"adversarial": 1, "cycle": 0, "correction": 20, "smoothness": 10}


def steps(describe=True, size=(32, 32), orientation="RAS", window=(0, 1000)):
    described = [DescribeVolumed(KEYS)] if describe else []
    return [
        LoadImaged(KEYS, ensure_channel_first=True),
        *described,
        ScaleMRIntensityd("image", upper_percentile=98),
        ScaleCTIntensityd("label", window),
        Orientationd(KEYS, axcodes=orientation, labels=None),
        ResampleInPlaned(KEYS, size, 2),
    ]


@pytest.fixture
def data(tmp_path):
    """Three pairs of two patients; voxels of 1 and 2 mm, of values from 0 to 100 and to 300."""
    items = []
    for name, case, voxel, top in (("a", "p", 1, 100), ("b", "p", 2, 300), ("c", "q", 1, 100)):
        voxels = np.zeros((32, 32, 4), np.float32)
        voxels[4:-4, 4:-4] = np.linspace(top / 2, top, 24)[:, None, None]
        item = {"case": case}
        for key in KEYS:
            item[key] = str(tmp_path / f"{name}_{key}.nii.gz")
            nib.save(nib.Nifti1Image(voxels, np.diag([-voxel, voxel, 3, 1])), item[key])
        items.append(item)
    return items


def recipe_of(network, data, chain=None, **settings):
    preprocessing = Compose(steps() if chain is None else chain)
    dataset = SliceDataset(data, preprocessing, min_foreground=0.2)
    return training_recipe(network, preprocessing, dataset, WEIGHTS, "cyclegan", **settings)


def test_it_says_all_that_was_used(make_translator, data):
    recipe = recipe_of(
        make_translator(),
        data,
        method="reggan",
        modalities={"source": "T1"},
        data_digest="e" * 64,
        training={"noise_level": 3, "noise_kind": "affine", "seed": 5, "batch_size": 2},
    )
    assert recipe["weights"] == {"adversarial": 1, "correction": 20, "smoothness": 10}  # those of 0 are none
    assert recipe["networks"]["registration"]["arguments"]["channels"] == [4, 4]
    assert recipe["source"] == {
        "modality": "T1",
        "channels": 1,
        "scaling": {
            "class": "transforms.ScaleMRIntensityd",
            "arguments": {"upper_percentile": 98.0, "background": 0.0, "foreground": "above-background"},
        },
    }
    assert recipe["target"]["scaling"]["arguments"] == {"window": [0.0, 1000.0], "foreground": "above-background"}
    assert recipe.target_window == (0, 1000)
    assert recipe["target"]["modality"] is None
    assert recipe["grid"] == {
        "spatial_dims": 2,
        "orientation": "RAS",
        "spacing": None,
        "slice_axis": 2,
        "spatial_size": [32, 32],
        "fit": "resize",
    }
    assert recipe["foreground"] == {"rule": "above-background", "min_foreground": 0.2, "masks": 0}
    training = recipe["training"]
    assert (training["noise_level"], training["noise_kind"], training["seed"]) == (3, "affine", 5)
    assert training["settings"] == {"batch_size": 2}
    assert (training["epoch"], training["iteration"], training["started_from"]) == (0, 0, None)
    assert (training["origin"], training["data_digest"]) == ("trained", "e" * 64)


def test_it_says_what_the_data_looked_like(make_translator, data):
    said = recipe_of(make_translator(), data)["data"]
    assert (said["patients"], said["volumes"], said["slices"]) == (2, 3, 12)
    assert said["orientations"] == ["LAS"]
    assert said["tilt"] == [0, 0]
    assert said["spacing"] == [[1, 2], [1, 2], [3, 3]]
    assert said["field_of_view"] == [[32, 64], [32, 64], [12, 12]]
    assert said["source"] == said["target"]
    assert said["source"]["low"] == [0, 0]
    np.testing.assert_allclose(said["source"]["high"], [100, 300], rtol=0.01)


def test_it_says_nothing_of_data_that_were_not_described(data):
    assert describe_data(SliceDataset(data, Compose(steps(describe=False)))) is None
    half = SliceDataset(data, Compose(steps()))
    half.descriptions[1] = None
    assert describe_data(half) is None


@pytest.mark.parametrize(
    "step", [Lambdad("image", lambda image: image), RandFlipd(KEYS, prob=1.0)], ids=["Lambdad", "RandFlipd"]
)
def test_custom_preprocessing_is_refused_by_name(step):
    for chain in ([*steps(), step], [steps()[0], Compose([step]), *steps()[1:]]):
        with pytest.raises(ModelError, match=rf"train#preprocessing holds {type(step).__name__}, which a model's rec"):
            describe_preprocessing(Compose(chain))


@pytest.mark.parametrize(
    ("left_out", "missing"),
    [
        (Orientationd, "orientation"),
        (ResampleInPlaned, "spatial_size"),
        (ScaleCTIntensityd, "scaling of the target"),
        ((ScaleMRIntensityd, Orientationd), "orientation, scaling of the source, scaling of the target"),
    ],
)
def test_preprocessing_that_lacks_something_is_refused(left_out, missing):
    chain = [step for step in steps() if not isinstance(step, left_out)]
    with pytest.raises(ModelError, match=f"train#preprocessing says nothing of: {missing}$"):
        describe_preprocessing(Compose(chain))


def test_preprocessing_is_read_through_nested_chains():
    spacing = Spacingd(KEYS, pixdim=(1, 1, -1))
    chain = Compose([steps()[0], Compose([Compose(steps()[1:-1]), spacing]), steps()[-1]])
    grid, scalings = describe_preprocessing(chain)
    assert grid["spacing"] == [1.0, 1.0, -1.0]
    assert scalings["source"]["arguments"]["upper_percentile"] == 98.0
    both = [step for step in steps() if not hasattr(step, "scaler")]
    both.insert(1, ScaleMRIntensityd(KEYS))
    assert describe_preprocessing(Compose(both))[1].keys() == {"source", "target"}


def test_another_order_is_refused():
    """Where percentiles were taken of resampled voxels, say, since whoever translates would take them of the file's."""
    *first, orientation, resampling = steps()
    spacing = Spacingd(KEYS, pixdim=(1, 1, -1))
    for chain, says in (
        ([first[0], orientation, *first[1:], resampling], "ScaleMRIntensityd behind Orientationd"),
        ([*first, resampling, orientation], "Orientationd behind ResampleInPlaned"),
        ([*first, orientation, resampling, spacing], "Spacingd behind ResampleInPlaned"),
        ([*first, orientation, orientation, resampling], "Orientationd behind Orientationd"),
    ):
        with pytest.raises(ModelError, match=rf"train#preprocessing holds {says}; a model's recipe has the scalings"):
            describe_preprocessing(Compose(chain))


def test_networks_without_a_class_are_refused(data):
    network = CycleGANTranslator({}, generator=lambda: ResNetGenerator(filters=4, residual_blocks=1))
    with pytest.raises(ModelError, match=r'a network must be given by its class \(in a config with "_mode_": "call'):
        recipe_of(network, data)


def test_axes_are_those_that_the_networks_say(make_recipe):
    networks = make_recipe()["networks"]
    assert spatial_dims_of(networks) == 2
    networks["generator"]["arguments"]["spatial_dims"] = 3
    assert spatial_dims_of({"generator": networks["generator"]}) == 3
    assert spatial_dims_of({}) == 2


def save(recipe, folder, network):
    recipe.travel_with(network)
    torch.save(network.inference_state_dict(), folder / "model.pt")
    return folder / "model.pt"


def test_where_it_started_is_told_and_has_to_agree(make_translator, data, tmp_path):
    path = save(recipe_of(make_translator(), data), tmp_path, make_translator())
    start = StartingPoint(path)
    recipe = recipe_of(make_translator(), data[:2], start=start)
    assert recipe["training"]["started_from"] == hashlib.sha256(path.read_bytes()).hexdigest() == start.digest
    with pytest.raises(ContradictionError) as caught:
        recipe_of(make_translator(), data, steps(size=(40, 32), orientation="LAS", window=(0, 500)), start=start)
    assert [name for name, _, _ in caught.value.found] == ["spatial_size", "orientation", "target_intensity"]


def test_volumes_are_described_as_well(data):
    network = CycleGANTranslator(
        {},
        generator=partial(ResNetGenerator, spatial_dims=3, filters=2, residual_blocks=1),
        discriminator=partial(PatchDiscriminator, spatial_dims=3, filters=2),
        registration=partial(RegistrationNet, spatial_dims=3, channels=(2, 2)),
    )
    assert recipe_of(network, data)["grid"]["spatial_dims"] == 3
