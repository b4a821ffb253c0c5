"""Loss terms: modules whose forward returns one unweighted scalar."""

from pipeline.losses.adversarial import LeastSquaresAdversarialLoss
from pipeline.losses.combine import WeightedSum
from pipeline.losses.correction import CorrectionLoss
from pipeline.losses.smoothness import SmoothnessLoss
from pipeline.losses.structure import StructureLoss

__all__ = ["CorrectionLoss", "LeastSquaresAdversarialLoss", "SmoothnessLoss", "StructureLoss", "WeightedSum"]
