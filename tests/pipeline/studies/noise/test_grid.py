"""Studies: what a YAML file asks for, and which runs that makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.bundle import bundle_dir
from pipeline.studies.noise.grid import Cell, Study

PRESETS = Path(__file__).parents[4] / "scripts" / "studies"
LEAST = {"name": "a", "methods": ["pix2pix", "reggan"], "noise": {"affine": [0, 5]}}


@pytest.mark.parametrize("preset", ["quick", "cpu", "science", "paper", "registered", "local"])
def test_presets_are_complete(preset):
    study = Study.load(PRESETS / f"{preset}.yaml")
    cells = list(study.cells())
    assert len(cells) == len({cell.name for cell in cells})
    assert Study.from_mapping(study.describe()) == study
    for cell in cells:
        assert all((bundle_dir() / "configs" / name).is_file() for name in study.chain(cell))
    if preset == "registered":  # stands beside "cpu", whose methods and levels it does not run again
        assert study.settings == Study.load(PRESETS / "cpu.yaml").settings
        return
    if preset == "local":
        assert study.settings == {**Study.load(PRESETS / "cpu.yaml").settings, "noise_amplitude": 0.08}
        return
    assert {"pix2pix", "reggan"} <= set(study.methods)
    assert {0, 5} <= set(study.noise["affine"])


def test_the_grid_is_every_combination():
    study = Study.from_mapping({**LEAST, "noise": {"affine": [0, 5], "nonaffine": [5]}, "seeds": [0, 1]})
    assert len(list(study.cells())) == 2 * 3 * 2
    assert Cell("reggan", 5, "nonaffine", 1, "phantom") in list(study.cells())
    assert {cell.seed for cell in list(study.cells())[:6]} == {0}  # a first answer is there early


def test_a_method_may_have_levels_of_its_own():
    methods = ["pix2pix", "cyclegan"]
    study = Study.from_mapping({**LEAST, "methods": methods, "method_noise": {"cyclegan": {"affine": [5]}}})
    assert [(cell.method, cell.noise_level) for cell in study.cells()] == [
        ("pix2pix", 0),
        ("pix2pix", 5),
        ("cyclegan", 5),
    ]


def test_a_cell_says_what_it_sets(tmp_path):
    study = Study.from_mapping(
        {
            **LEAST,
            "datasets": {"mine": str(tmp_path)},
            "steps": 100,
            "overlays": ["augmentation.json"],
            "settings": {"batch_size": 4},
            "method_settings": {"reggan": {"batch_size": 2}},
        }
    )
    pix2pix, reggan = list(study.cells())[-2:]
    assert study.chain(pix2pix) == ["train.json", "pix2pix.json", "augmentation.json"]
    settings = study.run_settings(pix2pix)
    assert settings["noise_level"] == 5
    assert isinstance(settings["noise_level"], int)  # MLflow's search compares text: "5", not "5.0"
    assert (settings["dataset_dir"], settings["batch_size"]) == (str(tmp_path), 4)
    assert study.run_settings(reggan)["batch_size"] == 2
    assert pix2pix.name == "mine-pix2pix-affine5-seed0"


def test_a_method_may_start_from_another():
    study = Study.from_mapping({**LEAST, "method_start": {"reggan": "pix2pix"}, "seeds": [3]})
    starts = {cell.name: study.start(cell) for cell in study.cells()}
    assert starts["phantom-pix2pix-affine5-seed3"] is None
    assert starts["phantom-reggan-affine5-seed3"] == Cell("pix2pix", 5, "affine", 3, "phantom")


def test_a_part_of_a_study_has_what_its_methods_start_from_and_nothing_else():
    whole = Study.load(PRESETS / "science.yaml")
    part = whole.narrowed(["reggan-affine-unet", "pix2pix"], [7])
    assert part.methods == ("pix2pix", "pix2pix-unet-registered", "reggan-affine-unet")
    assert part.method_start == {"reggan-affine-unet": "pix2pix-unet-registered"}
    assert set(part.method_noise) == set(part.methods)
    names = {cell.name for cell in part.cells()}
    assert names == {cell.name for cell in replace(whole, seeds=(7,)).cells() if cell.method in part.methods}
    assert whole.narrowed() == whole
    with pytest.raises(ValueError, match=r"methods must be among pix2pix, .*, got 'reggan-afine'; did you mean"):
        whole.narrowed(["reggan-afine"])
    with pytest.raises(ValueError, match="seeds must be whole numbers of at least 0, got -1"):
        whole.narrowed(seeds=[-1])


def test_half_levels_stay_what_they_are():
    study = Study.from_mapping({**LEAST, "noise": {"affine": [2.5]}})
    assert study.run_settings(next(study.cells()))["noise_level"] == 2.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["regan"]}, "methods must be among .*, got 'regan'; did you mean 'reggan'"),
        ({"methods": []}, "methods must hold at least one entry"),
        ({"methods": "reggan"}, "methods must be a list, got 'reggan'"),
        ({"methods": ["reggan", "reggan"]}, "methods must be different from each other, got reggan twice"),
        ({"noise": {"affine": [0, 7]}}, r"noise levels must lie in \[0, 5\], got 7"),
        ({"noise": {"elastic": [1]}}, "noise must be among affine, nonaffine, got 'elastic'"),
        ({"noise": {"affine": []}}, "at least one level"),
        ({"noise": [0, 5]}, "noise must be a mapping of levels by kind"),
        ({"noise": None}, "the entry 'noise' is missing"),
        ({"method_noise": {"cyclegan": {"affine": [1]}}}, "method_noise must be among pix2pix, reggan, got 'cyclegan'"),
        ({"seeds": [-1]}, "seeds must be whole numbers of at least 0, got -1"),
        ({"seeds": [True]}, "seeds must be whole numbers"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 5, "settings": {"max_epochs": 3}}, "both say how long to train"),
        ({"settings": {"seed": 3}}, r"settings must not hold \['seed'\]"),
        ({"method_settings": {"reggan": {"output_dir": "x"}}}, r"settings must not hold \['output_dir'\]"),
        ({"method_start": {"cyclegan": "pix2pix"}}, "method_start must be among pix2pix, reggan, got 'cyclegan'"),
        ({"method_start": {"reggan": "cyclegan"}}, "method_start#reggan must be among pix2pix, reggan, got 'cyclegan'"),
        ({"method_start": {"pix2pix": "reggan"}}, "pix2pix starts from reggan, which must stand before it"),
        ({"method_start": {"reggan": "reggan"}}, "reggan starts from reggan, which must stand before it"),
        (
            {"method_start": {"reggan": "pix2pix"}, "method_noise": {"pix2pix": {"affine": [0]}}},
            "reggan starts from pix2pix, which is not run at affine 5",
        ),
        ({"method_start": ["reggan"]}, "method_start must be a mapping"),
        ({"datasets": {}}, "datasets must name at least one"),
        ({"datasets": {"../up": None}}, "names must be made of letters"),
        ({"split": "training"}, "split must be test or validation, got 'training'"),
        ({"epochs": 3}, "entries must be among .*, got 'epochs'"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Study.from_mapping({**LEAST, **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("methods: [", "is no YAML"),
        ("- reggan", "must hold a mapping of settings, got list"),
        ("methods: [reggan]", "the entry 'noise' is missing"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml.*{message}"):
        Study.load(path)


def test_a_file_is_named_like_itself(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("methods: [reggan]\nnoise: {affine: [1]}\n")
    assert Study.load(path).name == "mine"


def test_a_phantom_of_its_own_is_named_and_checked():
    content = {"name": "s", "methods": ["reggan"], "noise": {"affine": [0]}}
    assert Study.from_mapping({**content, "phantom": {"resolution": 8.0}}).phantom == {"resolution": 8.0}
    assert Study.from_mapping({**content, "phantom": None}).phantom is None
    with pytest.raises(ValueError, match="'sise'"):
        Study.from_mapping({**content, "phantom": {"sise": 3}})
    with pytest.raises(ValueError, match="phantom must be a mapping, got 8"):
        Study.from_mapping({**content, "phantom": 8})
