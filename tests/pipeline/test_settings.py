"""Settings: described once, checked before anything is done, and text where they are text."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from pipeline.errors import first_cause
from pipeline.settings import SETTINGS, Setting, _settings, check, command_line, help_text, table, values

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "bundles" / "reggan" / "configs"
CHAINS = {"training": "train.json", "evaluation": "evaluate.json", "inference": "inference.json"}


def parse(**entries):
    parser = ConfigParser({"imports": ["$import pipeline", "$import pipeline.settings"], **entries})
    parser.parse()
    return parser


def refusal(**entries):
    with pytest.raises(RuntimeError) as caught:
        parse(**entries, go="$pipeline.settings.check('training')").get_parsed_content("go")
    return str(first_cause(caught.value))


@pytest.mark.parametrize("chain", CHAINS)
def test_every_setting_stands_in_its_config(chain):
    config = json.loads((CONFIGS / CHAINS[chain]).read_text())
    looked_up = {"cases#patient_pattern", "cases#validation_fraction"}  # arguments with defaults of their own
    if chain == "evaluation":  # read off the model, or the chain of a training in front
        looked_up |= {
            *("output_dir", "run_name", "trusted_modules", "min_foreground", "foreground"),
            *("source_modality", "target_modality", "spatial_dims", "spatial_size", "slice_axis", "orientation", "fit"),
            *("spacing", "foreground", "backbone", "translator"),
        }
    if chain == "inference":
        looked_up |= {"min_foreground"}
    missing = {name for name, setting in SETTINGS.items() if chain in setting.of and name not in config}
    assert missing <= looked_up


def test_no_setting_is_described_twice():
    assert len(_settings()) == len(SETTINGS)


def test_every_plain_entry_of_a_config_is_a_setting():
    for chain, name in CHAINS.items():
        for entry, value in json.loads((CONFIGS / name).read_text()).items():
            if value is None or (isinstance(value, int | float | str) and str(value)[:1] not in "$@%"):
                assert chain in SETTINGS[entry].of, (name, entry)


def test_the_page_shows_the_settings():
    assert table() in (ROOT / "docs" / "settings.md").read_text()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("max_epochs", [0, -1, 1.5, True, None, "3", math.nan]),
        ("seed", [-1, 2**32, 1.5, None]),
        ("learning_rate", [0, -1e-3, math.nan, math.inf, True, None, "x"]),
        ("noise_level", [-0.1, 7, "high", math.nan]),
        ("noise_kind", ["rigid", 3]),
        ("batch_size", [0, 2.5, [2]]),
        ("resume", ["maybe", 2]),
        ("run_name", ["", 5, None]),
        ("slice_axis", [3, -1, 1.0]),
        ("fit", ["crop"]),
    ],
)
def test_what_is_out_of_range_is_named(name, wrong):
    for value in wrong:
        assert re.fullmatch(rf"{name} must (be|lie in) .*, got {re.escape(repr(value))}", SETTINGS[name].fault(value))
        assert SETTINGS[name].fault(value) in refusal(**{name: value})


def test_all_faults_are_said_at_once():
    said = refusal(max_epochs=0, batch_size=4, seed=1.5, learning_rate=-1, weights=3)
    for fault in (
        "max_epochs must be a whole number of at least 1, got 0",
        "seed must be a whole number in [0, 4294967295], got 1.5",
        "learning_rate must be a positive number, got -1",
        "weights must be a dictionary of loss weights such as {'adversarial': 1}",
    ):
        assert fault in said
    assert "batch_size" not in said


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"nosie_level": 5}, "unknown knob 'nosie_level': did you mean 'noise_level'?"),
        ({"frobnicate": 1}, "unknown knob 'frobnicate': nothing in the config refers to it"),
        ({"weights.correction": 10}, "unknown knob 'weights.correction'"),
        ({"weights": {"adversarial": -1}}, "weights#adversarial must be a number of at least 0, got -1"),
    ],
)
def test_what_is_unknown_is_refused(entries, said):
    assert said in refusal(max_epochs=1, **entries)


def test_settings_that_a_part_looks_up_are_known():
    looked_up = parse(mine=32, go="$pipeline.settings.check('training', ['mine'])")
    assert looked_up.get_parsed_content("go") is None


def test_a_setting_is_one_line(monkeypatch):
    """What CONTRIBUTING.md says of adding one: with it, it is checked, explained, and told to MLflow."""
    mine = Setting("my_knob", "number", "0.5", "a share of something", least=0, most=1)
    monkeypatch.setitem(SETTINGS, "my_knob", mine)
    assert "my_knob must lie in [0, 1], got 2" in refusal(my_knob=2)
    assert "--my_knob" in help_text("training")
    assert "--my_knob" not in help_text("inference")
    assert "| `my_knob` | 0.5 | a number in [0, 1] | a share of something |" in table("training")
    assert values(parse(my_knob="$1 / 4")) == {"my_knob": 0.25}


def test_mlflow_is_told_values_only():
    parser = parse(
        max_epochs=8, decay_epochs="$@max_epochs // 2", weights={"a": "$1 + 1", "b": 0}, output_dir="x", other=3
    )
    assert values(parser) == {"max_epochs": 8, "decay_epochs": 4, "weights#a": 2, "weights#b": 0}


def test_words_are_read_as_they_were_typed():
    words = [
        "run",
        "training",
        "--dataset-dir",
        "2024_11_27",
        "--lr=0.1=x",
        "--flag",
        "--shift",
        "-3",
        "--a#b",
        "[1,2]",
    ]
    assert command_line(words) == [
        ("dataset_dir", "2024_11_27"),
        ("lr", "0.1=x"),
        ("flag", None),
        ("shift", "-3"),
        ("a#b", "[1,2]"),
    ]


def test_outside_of_a_config_there_is_nothing_to_check():
    with pytest.raises(ValueError, match="in a config's initialize"):
        check("training")


CONFIG = {
    "imports": ["$import pipeline", "$import pipeline.bundle", "$import pipeline.settings"],
    "dataset_dir": "data",
    "output_dir": "out",
    "experiment_name": "mine",
    "max_epochs": 1,
    "backbone": "cyclegan",
    "cases": {"_target_": "pipeline.data.load_cases", "dataset_dir": "@dataset_dir", "patient_pattern": None},
    "weights": {"adversarial": 1},
    "shown": "$[repr(x) for x in (@dataset_dir, @output_dir, @experiment_name, @max_epochs, @weights, @backbone)]",
    "initialize": ["$pipeline.bundle.explain_errors()", "$pipeline.settings.check('training')"],
    "run": "$print('; '.join(@shown))",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, python):
    """Runs MONAI's own command on a small config."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "train.json").write_text(json.dumps(CONFIG))

    def run(*lines):
        command = ("-m", "monai.bundle", "run", "--config_file", "train.json")
        return [python(*command, *line, cwd=folder) for line in lines]

    return run


def test_texts_stay_texts_on_the_command_line(run):
    texts = [
        "2024_11_27",
        "T1,T2",
        "1e3",
        "007",
        "0x10",
        "[a]",
        "{a}",
        "1.50",
        "True",
        "a=b",
        "~x",
        "(1)",
        "'q'",
        "a#b",
    ]
    lines = [["--dataset_dir", text, f"--output_dir={text}", "--experiment_name", text] for text in texts]
    for text, (code, said) in zip(texts, run(*lines), strict=True):
        assert code == 0, said
        assert f"{text!r}; {text!r}; {text!r}; 1; {{'adversarial': 1}}" in said


def test_what_is_typed_is_never_code(run):
    names = ["$__import__('os').mkdir('made')", "@max_epochs", "%x"]
    results = run(*[["--dataset_dir", name] for name in names], *[["--experiment_name", name] for name in names[:2]])
    for name, (code, said) in zip([*names, *names[:2]], results, strict=True):
        assert "made" not in said.replace(name, "")
        if code == 0:
            assert repr(f"./{name}") in said
        else:
            assert "must not begin with" in said or name == "%x"
    assert results[0][0] == results[1][0] == 0
    assert results[3][0] == results[4][0] == 1


def test_slips_of_the_command_line_are_refused(run):
    cases = {
        ("--max_epochs", "None"): "max_epochs must be a whole number of at least 1, got None",
        ("--experiment_name", "None"): "experiment_name must be a text, got None",
        ("--weights.correction", "10"): "the parts of a path are joined by '#', as in 'weights#correction'",
        ("--weights#correcton", "10"): "there is no 'correcton' in 'weights', which has adversarial",
        ("--cases#patient_patern", "x"): "did you mean 'patient_pattern'?",
        ("--frobnicate", "1"): "unknown knob 'frobnicate'",
        ("--lr=0.1",): "unknown knob 'lr'",
        ("--backbone", "unit"): "backbone is set by overlays",
        ("--method", "pix2pix"): "method is set by overlays",
        ("--max_epochs", "1e3"): "max_epochs must be a whole number of at least 1, got 1000.0",
        ("--max_epochs", "nan"): "max_epochs must be a whole number of at least 1, got 'nan'",
    }
    for (line, says), (code, said) in zip(cases.items(), run(*cases), strict=True):
        assert code == 1, line
        assert says in said, (line, said[-600:])


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_prints_and_ends(run, word):
    [(code, said)] = run([word])
    assert code == 0
    assert "--noise_level" in said
    assert "adversarial" not in said  # nothing was run
