"""Weights saved by the RegGAN authors' public code (github.com/Kid-Liet/Reg-GAN), turned into models of this project.

The authors save plain state dicts, one file for each network. `import_state_dict` recognises what a file holds and
builds the same network of ours with its weights; `combine` puts the files of one model together, under the names that
they have in a translator, with the recipe that says how they are used. One module for each family of backbones knows
how theirs and ours correspond.
"""

from pipeline.compat.common import ImportedFile, WeightsError
from pipeline.compat.files import read_state_dict, write_state_dict
from pipeline.compat.model import ImportedModel, combine
from pipeline.compat.recipe import Known
from pipeline.compat.recognition import import_state_dict

__all__ = [
    "ImportedFile",
    "ImportedModel",
    "Known",
    "WeightsError",
    "combine",
    "import_state_dict",
    "read_state_dict",
    "write_state_dict",
]
