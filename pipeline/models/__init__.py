"""Models: weights that carry their recipe, which says how they were made and are to be used."""

from pipeline.files import file_digest
from pipeline.models.describing import described
from pipeline.models.errors import ContradictionError, ModelError
from pipeline.models.reading import (
    BEST,
    EXTRA_STATE,
    LAST,
    MODEL,
    CheckpointError,
    Model,
    check_signature,
    load_checkpoint,
    load_strictly,
    refuse_unsound,
)
from pipeline.models.recipe import SCHEMA, Recipe, check_recipe, decode_recipe, encode_recipe
from pipeline.models.resuming import ResumeError, recipe_changes
from pipeline.models.starting import StartingPoint
from pipeline.models.training import training_recipe

__all__ = [
    "BEST",
    "EXTRA_STATE",
    "LAST",
    "MODEL",
    "SCHEMA",
    "CheckpointError",
    "ContradictionError",
    "Model",
    "ModelError",
    "Recipe",
    "ResumeError",
    "StartingPoint",
    "check_recipe",
    "check_signature",
    "decode_recipe",
    "described",
    "encode_recipe",
    "file_digest",
    "load_checkpoint",
    "load_strictly",
    "recipe_changes",
    "refuse_unsound",
    "training_recipe",
]
