"""The weighted sum of loss terms."""

from __future__ import annotations

import pytest
import torch

from pipeline.losses import WeightedSum


def test_adds_up():
    total = WeightedSum({"adversarial": 1, "correction": 20})
    assert total({"adversarial": torch.tensor(0.5), "correction": torch.tensor(0.1)}).item() == pytest.approx(2.5)


def test_terms_are_those_with_a_weight():
    total = WeightedSum({"adversarial": 1, "cycle": 0, "smoothness": 10.0})
    assert total.terms == ("adversarial", "smoothness")
    assert total.weights == {"adversarial": 1.0, "cycle": 0.0, "smoothness": 10.0}
    terms = {"adversarial": torch.tensor(1.0), "smoothness": torch.tensor(1.0)}
    assert total(terms) == 11
    assert total({**terms, "cycle": torch.tensor(float("nan")), "logged": torch.tensor(5.0)}) == 11


def test_gradients_carry_the_weights():
    first, second = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    WeightedSum({"a": 3, "b": 0.5})({"a": first, "b": second}).backward()
    assert (first.grad, second.grad) == (3, 0.5)


def test_never_waits_for_the_device():
    assert WeightedSum({"a": 3})({"a": torch.zeros((), device="meta")}).shape == ()


def test_missing_term_names_the_known_ones():
    with pytest.raises(ValueError, match="no loss term is called corection; known terms are adversarial, correction"):
        WeightedSum({"corection": 1})({"correction": torch.tensor(1.0), "adversarial": torch.tensor(1.0)})


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "1", None, True])
def test_bad_weight(weight):
    with pytest.raises(ValueError, match="weight of 'cycle' must be a finite number of at least 0, got"):
        WeightedSum({"cycle": weight})


def test_weights_must_be_a_mapping():
    with pytest.raises(TypeError, match="weights must map names of loss terms to numbers"):
        WeightedSum([1, 2])


@pytest.mark.parametrize("weights", [{}, {"cycle": 0}])
def test_nothing_to_add_up(weights):
    total = WeightedSum(weights)
    assert total.terms == ()
    with pytest.raises(ValueError, match="needs a weight above 0"):
        total({"cycle": torch.tensor(1.0)})
