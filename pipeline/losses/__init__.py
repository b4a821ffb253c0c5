"""Loss terms: modules whose forward returns one unweighted scalar."""

from pipeline.losses.adversarial import LeastSquaresAdversarialLoss
from pipeline.losses.combine import WeightedSum
from pipeline.losses.correction import CorrectionLoss
from pipeline.losses.smoothness import SmoothnessLoss

__all__ = ["CorrectionLoss", "LeastSquaresAdversarialLoss", "SmoothnessLoss", "WeightedSum"]
