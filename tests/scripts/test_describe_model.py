"""The command that says what a model is, and the page that explains it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from pipeline.models import SCHEMA

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("describe_model", ROOT / "scripts" / "describe_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_schema(script):
    assert script.schema_table() in (ROOT / "docs" / "recipe.md").read_text()


def test_every_entry_of_the_schema_is_described():
    def check(schema, place):
        for name, entry in schema.get("properties", {}).items():
            assert entry.get("description"), f"{place}.{name}"
            for option in entry.get("anyOf", [entry]):
                check(option, f"{place}.{name}")

    check(SCHEMA, "recipe")


def test_a_model_is_described(script, make_recipe, make_translator, tmp_path, capsys):
    network = make_translator()
    network.recipe = make_recipe(network, target={"modality": "T2"}, training={"epoch": 7})
    torch.save(network.inference_state_dict(), tmp_path / "model.pt")
    script.main([str(tmp_path / "model.pt")])
    said = capsys.readouterr().out
    for text in (
        "reggan",
        "T1 into T2",
        "predictions from 0 to 1000",
        "RAS, slices of 32x32",
        "ResNetGenerator(",
        "epoch 7",
    ):
        assert text in said
    script.main([str(tmp_path / "model.pt"), "--json"])
    assert json.loads(capsys.readouterr().out) == network.recipe


def test_what_is_no_model_is_refused(script, tmp_path):
    (tmp_path / "model.pt").write_text("nothing")
    with pytest.raises(SystemExit, match=r"describe_model.py: error: checkpoint .*model.pt cannot be read"):
        script.main([str(tmp_path / "model.pt")])
