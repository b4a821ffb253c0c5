"""The files of one model, put together under the names that they have in a translator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.compat import nicegan
from pipeline.compat.common import Backbone, ImportedFile, WeightsError
from pipeline.compat.recipe import Known, imported_recipe
from pipeline.models import EXTRA_STATE, ModelError, Recipe, load_strictly
from pipeline.networks import MUNITGenerator, NICEEncoder, NICEGenerator, ResNetGenerator, UNITGenerator

_NETWORKS: dict[tuple[Backbone, str], type[nn.Module]] = {
    ("cyclegan", "generator"): ResNetGenerator,
    ("unit", "generator"): UNITGenerator,
    ("munit", "generator"): MUNITGenerator,
    ("nicegan", "encoder"): NICEEncoder,
    ("nicegan", "generator"): NICEGenerator,
}
_EXPECTED = (
    "expected one generator, discriminator or registration network; for UNIT or MUNIT the autoencoder of the source, "
    "then that of the target; for NICE-GAN's modes with a cycle the generator and the discriminator of source images"
)


@dataclass(frozen=True)
class ImportedModel:
    """Networks of one translator.

    Attributes:
        backbone: whose they are.
        translates: whether they are all that is needed to translate; a discriminator or a registration network is not.
        parts: the networks by the attribute of the translator that holds them.
        settings: constructor arguments by the name of the translator's argument that builds the network.
        note: what differs from the authors' networks and matters, or "".
    """

    backbone: Backbone
    translates: bool
    parts: dict[str, nn.Module]
    settings: dict[str, dict[str, Any]]
    note: str = ""

    @property
    def spatial_dims(self) -> int:
        """Number of spatial axes of the images."""
        return next(iter(self.settings.values())).get("spatial_dims", 2)

    @property
    def image_size(self) -> tuple[int, ...]:
        """Size of the only images that the networks take; () if they take any."""
        return self.settings.get("generator", {}).get("image_size") or ()

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the source and of the target."""
        first = {"nicegan": "encoder"}.get(self.backbone, "generator")
        names = (
            ("in_channels", "out_channels") if self.backbone in ("cyclegan", "nicegan") else ("channels", "channels")
        )
        return self.settings[first][names[0]], self.settings["generator"][names[1]]

    def recipe(self, known: Known | None = None) -> Recipe:
        """How the model was made and is to be used.

        Args:
            known: what the files do not tell; the defaults where it is left out.

        Raises:
            WeightsError: the networks do not translate, or take another size only, or something in ``known`` is out of
                its range.
        """
        known = known or Known()
        if not self.translates:
            raise WeightsError(f"a {next(iter(self.parts))} network alone does not translate, so it has no recipe")
        if self.image_size and known.image_size and tuple(known.image_size) != self.image_size:
            raise WeightsError(
                f"the shapes of these weights say that they take images of size {self.image_size} only, "
                f"got {tuple(known.image_size)}"
            )
        networks = {part: (_NETWORKS[self.backbone, part], settings) for part, settings in self.settings.items()}
        known = replace(known, image_size=tuple(known.image_size) or self.image_size)
        return imported_recipe(self.backbone, networks, self.channels, self.spatial_dims, known)

    def state_dict(self, recipe: Recipe | None = None) -> dict[str, Tensor]:
        """Return the weights under the names that they have in a translator.

        Args:
            recipe: goes with the weights; see `recipe`.

        Returns:
            Tensors named `<attribute of the translator>.<name in the network>`; with a recipe also `_extra_state`,
            which holds it, so that the whole is what ``model.pt`` of a training is.

        Raises:
            WeightsError: the tensors are not those of the translator that the recipe builds.
        """
        tensors = {
            f"{part}.{name}": tensor
            for part, network in self.parts.items()
            for name, tensor in network.state_dict().items()
        }
        if recipe is None:
            return tensors
        with torch.device("meta"):
            translator = recipe.translator({})
        state = {**tensors, EXTRA_STATE: translator.get_extra_state()}
        try:
            load_strictly(translator, state, "the imported model", assign=True)
        except ModelError as error:
            raise WeightsError(f"the weights are not those of their recipe: {error}") from error
        return translator.inference_state_dict()


def combine(files: Sequence[ImportedFile]) -> ImportedModel:
    """Put the files of one model together.

    Args:
        files: one generator, discriminator or registration network; or the autoencoders of UNIT or MUNIT, the source's
            and then the target's; or a generator of NICE-GAN and the encoder of source images, in any order.

    Raises:
        WeightsError: they are not the files of one model.
    """
    kinds = [(file.backbone, file.role) for file in files]
    if len(files) == 1 and kinds[0][1] in ("generator", "discriminator", "registration"):
        [file] = files
        own_encoder = file.backbone == "nicegan" and "encoder" in file.networks
        if file.backbone != "nicegan" or own_encoder:
            note = nicegan.OWN_ENCODER_NOTE if own_encoder else ""
            return ImportedModel(file.backbone, file.role == "generator", file.networks, file.settings, note)
    if len(files) == 2 and kinds[0] == kinds[1] and kinds[0] in (("unit", "autoencoder"), ("munit", "autoencoder")):
        return _translation(*files)
    if sorted(kinds) == [("nicegan", "encoder"), ("nicegan", "generator")]:
        generator, encoder = sorted(files, key=lambda file: file.role, reverse=True)
        if "encoder" not in generator.networks:
            return _generation(generator, encoder)
        raise WeightsError("this NICE-GAN generator has its own encoder; give its file without a discriminator's")
    raise WeightsError(f"no model is made of {' and '.join(map(str, files)) or 'no files'}: {_EXPECTED}")


def _translation(source: ImportedFile, target: ImportedFile) -> ImportedModel:
    ours, theirs = source.settings["generator"], target.settings["generator"]
    differences = [f"{name} {ours[name]} and {theirs[name]}" for name in ours if ours[name] != theirs[name]]
    if differences:
        raise WeightsError(f"the autoencoders of source and target are not of the same form: {', '.join(differences)}")
    encodes, decodes = cast(Any, source.networks["generator"]), cast(Any, target.networks["generator"])
    first, second = encodes.state_dict(), decodes.state_dict()
    if all(torch.equal(first[name], second[name]) for name in first):
        raise WeightsError("both files hold the same weights; give the source's autoencoder, then the target's")
    if source.backbone == "unit":
        parts = {"encoder": encodes.encoder, "decoder": decodes.decoder}
    else:
        styles = decodes.style_encoder
        parts = {"encoder": encodes.content_encoder, "decoder": decodes.decoder, "style_encoder": styles}
    return ImportedModel(source.backbone, True, parts, source.settings)


def _generation(generator: ImportedFile, encoder: ImportedFile) -> ImportedModel:
    reads, makes = generator.settings["generator"]["filters"], encoder.settings["encoder"]["filters"]
    if reads != makes:
        raise WeightsError(f"the generator was trained on features of {reads} filters, the encoder has {makes}")
    networks = {**encoder.networks, **generator.networks}
    return ImportedModel("nicegan", True, networks, {**encoder.settings, **generator.settings})
