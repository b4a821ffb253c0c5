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
    assert total({"adversarial": torch.tensor(1.0), "smoothness": torch.tensor(1.0)}) == 11
    assert total({"adversarial": torch.tensor(1.0)}) == 1  # a discriminator's step has only some of the terms


def test_gradients_carry_the_weights():
    first, second = torch.ones((), requires_grad=True), torch.ones((), requires_grad=True)
    WeightedSum({"a": 3, "b": 0.5})({"a": first, "b": second}).backward()
    assert (first.grad, second.grad) == (3, 0.5)


def test_never_waits_for_the_device():
    assert WeightedSum({"a": 3})({"a": torch.zeros((), device="meta")}).shape == ()


def test_term_without_a_weight_is_refused():
    total = WeightedSum({"adversarial": 1, "corection": 1, "cycle": 0})
    for name in ("correction", "cycle"):
        with pytest.raises(
            ValueError, match=f"expected loss terms among adversarial, corection, got adversarial, {name}"
        ):
            total({"adversarial": torch.tensor(1.0), name: torch.tensor(1.0)})


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
    with pytest.raises(ValueError, match="expected loss terms among none, got cycle"):
        total({"cycle": torch.tensor(1.0)})


def test_no_terms_at_all():
    with pytest.raises(ValueError, match="expected loss terms among cycle, got none"):
        WeightedSum({"cycle": 1})({})
