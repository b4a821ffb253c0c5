"""Which changes make another training of one that is resumed."""

from __future__ import annotations

from pipeline.models import recipe_changes


def test_networks_that_are_in_both_are_compared(make_recipe):
    then, now = make_recipe(), make_recipe()
    assert recipe_changes(then, now) == ([], [])
    now["networks"]["registration"]["arguments"]["channels"] = [8, 8]
    assert recipe_changes(then, now) == ([("network_def#registration#channels", [4, 4], [8, 8])], [])


def test_which_networks_there_are_follows_from_the_weights(make_recipe, make_translator):
    without = make_recipe(make_translator({"adversarial": 1}), weights={"correction": 0, "smoothness": 0})
    of_before = {**without, "networks": make_recipe()["networks"]}  # named a network that was never built
    assert recipe_changes(of_before, without) == ([], [])
    changed, _ = recipe_changes(without, make_recipe())
    assert {name for name, _, _ in changed} == {"weights#correction", "weights#smoothness"}
