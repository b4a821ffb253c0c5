"""Running configs from Python."""

from __future__ import annotations

import json

import pytest

from pipeline.networks import ResNetGenerator
from pipeline.workflow import ConfigWorkflow, run_chain


def test_a_part_of_the_bundles_configs_can_be_built_alone():
    workflow = ConfigWorkflow(["train.json", "pix2pix.json"], network_size="small")
    assert isinstance(workflow.part("network_def").generator, ResNetGenerator)
    assert workflow.part("network_def") is workflow.part("network_def")


def test_a_chain_is_initialized_run_and_finalized_once(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps({"told": [], "initialize": "$@told.append('initialize')", "run": "$@told.append(@what)", "what": 1})
    )
    (tmp_path / "b.json").write_text(json.dumps({"finalize": "$@told.append('finalize')"}))
    workflow = ConfigWorkflow([tmp_path / "a.json", tmp_path / "b.json"], what="run")
    workflow.initialize()
    told = workflow.part("told")
    workflow.run()
    assert told == ["initialize", "run", "finalize"]
    run_chain([tmp_path / "a.json"], run="$open(@what, 'x').close()", what=str(tmp_path / "ran"))
    assert (tmp_path / "ran").is_file()


def test_a_config_that_is_missing_is_named():
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        ConfigWorkflow(["nothing.json"])
