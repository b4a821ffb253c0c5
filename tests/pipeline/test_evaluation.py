"""What an evaluation takes for given: plain values, of whatever stands in the config."""

from __future__ import annotations

import pytest

from pipeline.evaluation import given_settings


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ({}, {}),
        ({"backbone": "unit", "max_epochs": 3}, {"backbone": "unit"}),
        ({"backbone": "$@start.inherit('backbone', 'cyclegan')", "translator": "@backbone", "spacing": None}, {}),
        ({"spatial_size": [32, 32], "slice_axis": 0}, {"spatial_size": [32, 32], "slice_axis": 0}),
        (
            {"source_intensity": {"_target_": "$@start.scaling('source')", "keys": "image", "background": 5}},
            {"source_intensity": {"keys": "image", "background": 5}},
        ),
        (
            {"target_intensity": {"_target_": "transforms.ScaleCTIntensityd", "_mode_": "x", "window": "@window"}},
            {"target_intensity": {"_target_": "transforms.ScaleCTIntensityd"}},
        ),
        (
            {
                "network_def": {
                    "_target_": "pipeline.inference.build_network",
                    "model": "@model",
                    "generator": {"_target_": "a.Net", "_mode_": "callable", "filters": 4, "width": "$1 + 1"},
                    "discriminator": {},
                    "registration": None,
                }
            },
            {"network_def": {"generator": {"filters": 4}}},
        ),
    ],
)
def test_given_are_plain_values_of_what_a_model_knows(config, given):
    assert given_settings(config) == given
