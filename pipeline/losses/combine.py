"""The one place where loss terms meet their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


class WeightedSum:
    """Sum of named loss terms, each times its weight.

    Args:
        weights: weight of each term, finite and at least 0, for instance
            `{"adversarial": 1, "correction": 20, "smoothness": 10}`. A term of weight 0 is not asked for. May be empty,
            where only `terms` is of interest.

    Attributes:
        weights: the weights, as floats.
        terms: names of the terms with a weight above 0, in the order of `weights`.

    Raises:
        TypeError: when `weights` is no mapping.
        ValueError: when a weight is not a finite number of at least 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must map names of loss terms to numbers, got {weights!r}")
        for name, weight in weights.items():
            number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight < 0:
                raise ValueError(f"weight of {name!r} must be a finite number of at least 0, got {weight!r}")
        self.weights = {name: float(weight) for name, weight in weights.items()}
        self.terms = tuple(name for name, weight in self.weights.items() if weight > 0)

    def __call__(self, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Add up the weighted terms.

        Args:
            terms: named scalars, each with a weight.

        Returns:
            Scalar on the device of the terms, with their graph.

        Raises:
            ValueError: when there is no term, or one without a weight: it would have been computed for nothing.
        """
        idle = [name for name in terms if name not in self.terms]
        if idle or not terms:
            raise ValueError(
                f"expected loss terms among {', '.join(self.terms) or 'none'}, got {', '.join(terms) or 'none'}"
            )
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
