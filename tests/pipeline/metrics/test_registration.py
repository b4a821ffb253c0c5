"""Registration metrics, by hand."""

from __future__ import annotations

import pytest
import torch

from pipeline.metrics import endpoint_error, folded_fraction, jacobian_determinant, points_inside

SHAPES = [(8, 9), (5, 6, 7)]


def linear_field(matrix, shape):
    """The displacement of x -> matrix x, (1, d, *shape)."""
    positions = torch.stack(torch.meshgrid(*[torch.arange(float(size)) for size in shape], indexing="ij"))
    change = torch.tensor(matrix) - torch.eye(len(shape))
    return torch.einsum("ij,j...->i...", change, positions)[None]


@pytest.mark.parametrize("shape", SHAPES)
def test_endpoint_error_of_a_known_offset(shape):
    true_ddf = torch.randn(2, len(shape), *shape)
    ddf = true_ddf.clone()
    ddf[1, 0] += 3
    ddf[1, 1] -= 4
    torch.testing.assert_close(endpoint_error(ddf, true_ddf), torch.tensor([0.0, 5.0]))


def test_endpoint_error_within_a_mask():
    true_ddf, ddf = torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4)
    ddf[:, 0, 0] = 2
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[0, :, :2] = True
    value = endpoint_error(ddf, true_ddf, mask)
    assert value[0] == 1
    assert value[1].isnan()


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_keeps_volume(shape):
    determinant = jacobian_determinant(torch.zeros(2, len(shape), *shape))
    assert determinant.shape == (2, 1, *shape)
    assert (determinant == 1).all()
    assert (folded_fraction(torch.zeros(2, len(shape), *shape)) == 0).all()


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.1, 0.3], [-0.2, 0.9]],
        [[1.0, 0.4], [0.1, -0.5]],
        [[1.1, 0.3, 0.2], [-0.2, 0.9, 0.1], [0.05, -0.3, 1.2]],
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]],
    ],
)
def test_linear_maps_have_their_determinant_everywhere(matrix):
    ddf = linear_field(matrix, SHAPES[len(matrix) - 2])
    expected = torch.linalg.det(torch.tensor(matrix))
    determinant = jacobian_determinant(ddf)
    torch.testing.assert_close(determinant, expected.expand_as(determinant), atol=1e-4, rtol=0)
    assert folded_fraction(ddf).item() == (0 if expected > 0 else 1)


def test_fold_is_found_where_it_is():
    ddf = torch.zeros(1, 2, 10, 10)
    ddf[0, 0, 4], ddf[0, 0, 6] = 2, -2  # rows 4 and 6 change places
    determinant = jacobian_determinant(ddf)[0, 0]
    assert ((determinant <= 0).any(1).nonzero()[:, 0] == 5).all()
    assert folded_fraction(ddf).item() == pytest.approx(0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_points_inside(shape):
    ddf = torch.zeros(2, len(shape), *shape)
    assert points_inside(ddf).shape == (2, 1, *shape)
    assert points_inside(ddf).all()
    ddf[0, 0] = 2.5  # beyond the last row from the third last on
    ddf[1, -1] = -1
    inside = points_inside(ddf)[:, 0]
    assert inside[0].nonzero()[:, 0].unique().tolist() == list(range(shape[0] - 3))
    assert inside[1].nonzero()[:, -1].unique().tolist() == list(range(1, shape[-1]))


def test_refusals():
    with pytest.raises(ValueError, match="ddf must have the shape"):
        jacobian_determinant(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 2 voxels"):
        folded_fraction(torch.zeros(1, 3, 8, 8, 1))
    with pytest.raises(ValueError, match="ddf and true_ddf must have one shape"):
        endpoint_error(torch.zeros(1, 2, 8, 8), torch.zeros(2, 2, 8, 8))
    with pytest.raises(ValueError, match="mask must be boolean"):
        endpoint_error(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8), torch.ones(1, 1, 8, 8))
