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
            terms: named scalars. Terms without a weight are left out of the sum.

        Returns:
            Scalar on the device of the terms, with their graph.

        Raises:
            ValueError: when a term with a weight is missing, or when no weight is above 0.
        """
        if not self.terms:
            raise ValueError(f"a sum of losses needs a weight above 0, got the weights {self.weights}")
        missing = [name for name in self.terms if name not in terms]
        if missing:
            raise ValueError(f"no loss term is called {', '.join(missing)}; known terms are {', '.join(sorted(terms))}")
        return torch.stack([self.weights[name] * terms[name] for name in self.terms]).sum()
