"""The intensity map baseline."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pipeline.metrics import IntensityMap, foreground_mask


def make_pairs(count=6, seed=0, noise=0.2):
    """Pairs whose target is a bent function of the source plus noise, with a background corner."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(count):
        source = torch.rand(1, 48, 48, generator=generator) * 1.9 - 0.95
        target = torch.sin(4 * source) * 0.5 - 0.3 * source.abs()
        target = (target + noise * torch.randn(source.shape, generator=generator)).clamp(-0.99, 1)
        source[:, :10, :10] = -1
        target[:, :10, :10] = -1
        pairs.append({"image": source, "label": target})
    return pairs


def squared_error(predictions, pairs):
    error = [
        (prediction - pair["label"])[foreground_mask(pair["image"])]
        for prediction, pair in zip(predictions, pairs, strict=True)
    ]
    return torch.cat(error).square().mean().item()


@pytest.mark.parametrize("degree", [1, 3, 6, 12])
def test_beats_any_polynomial_on_its_own_pairs(degree):
    pairs = make_pairs()
    fitted = IntensityMap().fit(pairs)
    source = torch.cat([pair["image"][foreground_mask(pair["image"])] for pair in pairs]).numpy()
    target = torch.cat([pair["label"][foreground_mask(pair["image"])] for pair in pairs]).numpy()
    polynomial = np.polynomial.Chebyshev.fit(source, target, degree)
    rival = [torch.from_numpy(polynomial(pair["image"].numpy())) for pair in pairs]
    assert squared_error([fitted(pair["image"]) for pair in pairs], pairs) < squared_error(rival, pairs)


def test_no_change_of_a_bin_improves_it():
    pairs = make_pairs(2)
    fitted = IntensityMap(bins=16).fit(pairs)
    best = squared_error([fitted(pair["image"]) for pair in pairs], pairs)
    for index in range(16):
        for step in (-0.02, 0.02):
            other = copy.deepcopy(fitted)
            other.values[index] += step
            assert squared_error([other(pair["image"]) for pair in pairs], pairs) > best


def test_bins_hold_conditional_means():
    source = torch.tensor([-0.9, -0.8, -0.2, 0.9]).view(1, 2, 2)
    target = torch.tensor([0.0, 0.5, -0.5, 1.0]).view(1, 2, 2)
    fitted = IntensityMap(bins=4).fit([{"image": source, "label": target}])
    # the third bin, [0, 0.5), is empty and lies half way between its neighbours
    assert fitted.values.tolist() == pytest.approx([0.25, -0.5, 0.25, 1.0])
    assert fitted(torch.tensor([-0.99, 0.3, 1.0, 1.7])).tolist() == pytest.approx([0.25, 0.25, 1.0, 1.0])


def test_empty_bins_at_the_ends_take_the_nearest():
    pair = {"image": torch.full((1, 4, 4), 0.1), "label": torch.full((1, 4, 4), 0.6)}
    assert IntensityMap(bins=8).fit([pair]).values.tolist() == pytest.approx([0.6] * 8)


def test_background_stays_background_and_does_not_count():
    pairs = make_pairs()
    prediction = IntensityMap().fit(pairs)(pairs[0]["image"])
    assert (prediction[:, :10, :10] == -1).all()
    padded = [{key: torch.nn.functional.pad(value, (9, 9), value=-1) for key, value in pair.items()} for pair in pairs]
    assert torch.equal(IntensityMap().fit(padded).values, IntensityMap().fit(pairs).values)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 1, 8, 8), (2, 1, 4, 5, 6)])
def test_any_shape(shape):
    source = torch.rand(shape) * 2 - 1
    prediction = IntensityMap().fit(make_pairs(1))(source)
    assert prediction.shape == shape
    assert prediction.dtype == torch.float32


def test_batches_and_single_images_fit_alike():
    pairs = make_pairs(4)
    batch = {key: torch.stack([pair[key] for pair in pairs]) for key in ("image", "label")}
    torch.testing.assert_close(IntensityMap().fit([batch]).values, IntensityMap().fit(pairs).values)


def test_state_is_one_buffer_and_restores():
    fitted = IntensityMap().fit(make_pairs(2))
    state = fitted.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {"values": (256,)}
    restored = IntensityMap()
    restored.load_state_dict(state)
    source = torch.rand(1, 8, 8)
    assert torch.equal(restored(source), fitted(source))
    holder = torch.nn.ModuleDict({"map": IntensityMap()})  # also as a part of something else
    holder.load_state_dict({"map.values": state["values"]})
    assert torch.equal(holder["map"](source), fitted(source))


def test_fitting_again_forgets_the_first_fit():
    first, second = make_pairs(2, seed=1), make_pairs(2, seed=2)
    assert torch.equal(IntensityMap().fit(first).fit(second).values, IntensityMap().fit(second).values)


def test_refusals():
    with pytest.raises(RuntimeError, match="not fitted"):
        IntensityMap()(torch.zeros(1, 8, 8))
    unfitted = IntensityMap()
    unfitted.load_state_dict(IntensityMap().state_dict())
    with pytest.raises(RuntimeError, match="not fitted"):
        unfitted(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="no pair has a voxel that is foreground"):
        IntensityMap().fit([{"image": torch.full((1, 4, 4), -1.0), "label": torch.zeros(1, 4, 4)}])
    with pytest.raises(ValueError, match="no pair"):
        IntensityMap().fit([])
    with pytest.raises(ValueError, match=r"image and label must have one shape, got \(1, 4, 4\) and \(1, 4, 5\)"):
        IntensityMap().fit([{"image": torch.zeros(1, 4, 4), "label": torch.zeros(1, 4, 5)}])
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        IntensityMap(bins=1)
