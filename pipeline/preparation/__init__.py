"""Raw studies to a training set: registration, masks, folds by patient, and a report on the quality."""

from pipeline.preparation.cases import Outcome, Settings, Thresholds
from pipeline.preparation.check import check_registration
from pipeline.preparation.preparing import prepare
from pipeline.preparation.studies import Pair, StudiesError, find_pairs, patient_of

__all__ = [
    "Outcome",
    "Pair",
    "Settings",
    "StudiesError",
    "Thresholds",
    "check_registration",
    "find_pairs",
    "patient_of",
    "prepare",
]
