"""The methods by name."""

from __future__ import annotations

import json

import pytest

from pipeline.bundle import project_dir
from pipeline.methods import BACKBONES, METHODS, MODES, method_name

CONFIGS = project_dir() / "bundles" / "reggan" / "configs"
ADVERSARIAL, CORRECTION = {"adversarial": 1}, {"correction": 20, "smoothness": 10}


def test_there_are_seventeen_in_the_order_of_the_paper_and_then_ours():
    names = ["pix2pix", "cyclegan-nc", "reggan", "cyclegan", "cyclegan-c+r"]
    names += [f"{backbone}-{mode}" for backbone in ("unit", "munit", "nicegan") for mode in ("nc", "nc+r", "c", "c+r")]
    names += ["reggan-affine", "reggan-true", "pix2pix-unet", "reggan-affine-unet"]
    names += ["pix2pix-fixed", "reggan-fixed", "pix2pix-registered", "reggan-registered", "pix2pix-unet-registered"]
    assert list(METHODS) == names
    assert [method.name for method in METHODS.values()] == names


def test_no_two_are_the_same_chain():
    assert len({method.overlays for method in METHODS.values()}) == len(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_config_of_a_chain_is_there(name):
    for overlay in METHODS[name].overlays:
        assert (CONFIGS / overlay).is_file()


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_an_overlay_says_the_name_of_its_backbone(backbone):
    assert json.loads((CONFIGS / f"{backbone}.json").read_text())["backbone"] == backbone


def test_a_mode_is_nothing_but_weights():
    for overlay in {overlay for overlays in MODES.values() for overlay in overlays}:
        assert {key.lstrip("+").split("#")[0] for key in json.loads((CONFIGS / overlay).read_text())} == {"weights"}


@pytest.mark.parametrize(
    ("backbone", "weights", "name"),
    [
        ("cyclegan", ADVERSARIAL, "cyclegan-nc"),
        ("cyclegan", ADVERSARIAL | CORRECTION, "reggan"),
        ("cyclegan", ADVERSARIAL | {"cycle": 10}, "cyclegan"),
        ("cyclegan", ADVERSARIAL | CORRECTION | {"cycle": 10}, "cyclegan-c+r"),
        ("cyclegan", {"conditional_adversarial": 1, "pixel": 100}, "pix2pix"),
        ("munit", ADVERSARIAL | {"content": 1, "style": 1}, "munit-nc"),
        ("unit", ADVERSARIAL | CORRECTION | {"kl": 0.01}, "unit-nc+r"),
        ("nicegan", ADVERSARIAL | {"cycle": 10, "identity": 10}, "nicegan-c"),
        # A weight of 0 is the same as none.
        ("cyclegan", ADVERSARIAL | {"cycle": 0, "correction": 0, "smoothness": 0}, "cyclegan-nc"),
        # No mode of the paper's, named like the nearest one.
        ("cyclegan", CORRECTION, "reggan"),
        ("unit", {"adversarial": 1, "correction": 20}, "unit-nc+r"),
        ("toy", {"pixel": 100}, "toy-pix2pix"),
        ("toy", ADVERSARIAL, "toy-nc"),
    ],
)
def test_a_name_is_backbone_and_mode(backbone, weights, name):
    assert method_name(backbone, weights) == name


def test_another_registration_ends_a_name_where_there_is_one():
    assert method_name("cyclegan", ADVERSARIAL | CORRECTION, ["affine"]) == "reggan-affine"
    assert method_name("unit", ADVERSARIAL | CORRECTION | {"cycle": 10}, ["affine"]) == "unit-c+r-affine"
    assert method_name("cyclegan", ADVERSARIAL, ["affine"]) == "cyclegan-nc"
    assert method_name("cyclegan", {"pixel": 100}, ["affine"]) == "pix2pix"
    assert method_name("cyclegan", {"pixel": 100}, ["unet", "affine"]) == "pix2pix-unet"
    assert method_name("cyclegan", ADVERSARIAL | CORRECTION, ["unet", "affine"]) == "reggan-affine-unet"


def test_a_registration_that_has_no_effect_is_said(caplog):
    """As where a training with affine.json starts from Pix2Pix, whose weights it takes over."""
    method_name("cyclegan", {"pixel": 100, "correction": 0}, ["affine"])
    assert "this trains pix2pix: what was asked for by 'affine' has no effect" in caplog.text
    caplog.clear()
    method_name("cyclegan", ADVERSARIAL | CORRECTION, ["affine"])
    method_name("cyclegan", {"pixel": 100}, ["unet", "registered"])
    assert not caplog.text


def test_what_is_done_to_pairs_ends_a_name():
    assert method_name("cyclegan", {"pixel": 100}, ["registered"]) == "pix2pix-registered"
    assert method_name("cyclegan", {"pixel": 100}, ["registered", "unet"]) == "pix2pix-unet-registered"
    assert method_name("cyclegan", ADVERSARIAL | CORRECTION, ["fixed", "affine"]) == "reggan-affine-fixed"
    assert method_name("cyclegan", ADVERSARIAL | CORRECTION, ["anew"]) == "reggan"
