"""Export of a trained network as TorchScript, ONNX or a torch.export program, each compared with the network itself."""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.data import save_net_with_metadata
from monai.transforms import Compose
from monai.utils import optional_import
from torch import Tensor, nn

from pipeline.files import folder_beside, not_written, put_in_place, remove_leftovers
from pipeline.inference.onnx import OnnxError, OnnxNetwork
from pipeline.inference.seal import PLACEHOLDER, SEAL, seal
from pipeline.io import read_image
from pipeline.models import encode_recipe
from pipeline.networks.blocks import EPSILON, InstanceNorm
from pipeline.tensors import verify_zip
from pipeline.translators import Translator
from transforms.scale import BACKGROUND

FORMATS = {".ts": "TorchScript", ".onnx": "ONNX", ".pt2": "torch.export"}
"""What a file's suffix asks for."""
TOLERANCE = 1e-4
"""Most that an export may differ from the network, of intensities in [-1, 1]."""
METADATA_FILE = "metadata.json"
AXES = ("height", "width", "depth")


class ExportError(ValueError):
    """A network that cannot be exported, or an export that does not do what the network does."""


class Exporter:
    """A trained network, and all that its exports are made of and compared with.

    Args:
        workflow: a `pipeline.workflow.ConfigWorkflow` of ``inference.json``, and what it is stacked with, on the CPU.

    Attributes:
        network: the trained network, in evaluation mode on the CPU.
        recipe: how it was made.
        metadata: what goes into each file beside the network: name and version of the bundle, the recipe, and the
            smallest size of an image.

    Raises:
        RuntimeError: caused by a ModelError if the model cannot be read or contradicts a setting.
    """

    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow
        self.network: Translator = workflow.part("network").eval()
        model = workflow.part("model")
        if not isinstance(self.network, Translator):
            raise OnnxError(f"{model.path} is an export already; give the model.pt that it was made of")
        self.recipe = model.recipe
        meta = workflow.parser.config[workflow.parser.meta_key]
        self.metadata: dict[str, Any] = {
            "name": meta["name"],
            "version": meta["version"],
            "recipe": self.recipe.content,
            "minimum_size": max(getattr(part, "minimum_size", 1) for part in self.network.modules()),
        }

    def slices(self, count: int = 8) -> Tensor:
        """Real images as the network sees them: slices of the config's first source volume that show something.

        Args:
            count: most that are taken, spread evenly.

        Returns:
            (B, C, *spatial) in [-1, 1].
        """
        [first, *_] = self._workflow.part("volumes")
        steps = [self.recipe.scaling("source", "image"), *self.recipe.spatial_preprocessing("image").transforms]
        image = read_image(first["image"])
        volume = Compose(steps)({"image": image})["image"].as_tensor()
        slices = volume.moveaxis(1 + self.recipe.slice_axis, 0)
        slices = slices[(slices > BACKGROUND).flatten(1).any(1)]
        return slices[torch.linspace(0, len(slices) - 1, min(count, len(slices))).round().long()]

    def random_images(self, least: int) -> list[Tensor]:
        """Noise in [-1, 1]: at the size of the training, at an odd size, and at the smallest, ``least`` pixels.

        At one size alone, where the network takes no other.
        """
        example = self.network.example_input()
        size = self.network.only_size or self.recipe["grid"]["spatial_size"] or example.shape[2:]
        odd, smallest = [max(least, length + 3 - 2 * axis) for axis, length in enumerate(size)], [least] * len(size)
        shapes = [(2, size), (3, odd), (1, smallest)] if self.network.only_size is None else [(2, size), (3, size)]
        generator = torch.Generator().manual_seed(0)
        return [torch.rand(batch, example.shape[1], *size, generator=generator) * 2 - 1 for batch, size in shapes]

    def export(self, path: str | Path, slices: Tensor, overwrite: bool = False) -> dict[str, float]:
        """Write one file, after comparing what is in it with the network.

        Args:
            path: the file; its suffix, one of `FORMATS`, says which kind.
            slices: real images for the comparison, see `slices`.
            overwrite: replace the file if it exists.

        Returns:
            Greatest absolute difference in [-1, 1] on ``random`` and on ``real`` images.

        Raises:
            FileExistsError: the file exists and may not be overwritten.
            ExportError: the suffix is unknown, a package is missing, the network cannot be exported in this way, or the
                difference is above `TOLERANCE`. Nothing is left at ``path`` then, or what was there before.
        """
        path = Path(path)
        if path.suffix not in FORMATS:
            raise ExportError(f"the name of an export must end in {', '.join(FORMATS)}, got {path.name!r}")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already")
        kinds: dict[str, tuple[Callable[[Path], int], Callable[[str], Any]]] = {
            ".ts": (self._write_torchscript, _verified(torch.jit.load)),
            ".onnx": (self._write_onnx, OnnxNetwork),
            ".pt2": (self._write_program, _verified(lambda file: torch.export.load(file).module())),
        }
        write, read = kinds[path.suffix]
        remove_leftovers(path.parent)
        # Beside its place under its own name, since some writers look at the suffix.
        with folder_beside(path) as folder:
            beside = folder / path.name
            try:
                with torch.no_grad(), _quiet():
                    least = write(beside)
                    exported = read(str(beside))
                    differences = {
                        "random": self._difference(exported, self.random_images(least)),
                        "real": self._difference(exported, [slices]),
                    }
            except ExportError:
                raise
            except Exception as error:  # each of the exporters and runtimes has exceptions of its own
                told = not_written(path, error)
                if told is not None:
                    raise told from error
                raise ExportError(
                    f"this {type(self.network).__name__} cannot be exported as {FORMATS[path.suffix]}, {path} was not "
                    f"written: {type(error).__name__}: {str(error).strip()[:500]}"
                ) from error
            faults = [f"{kind} {value:.2g}" for kind, value in differences.items() if not value <= TOLERANCE]
            if faults:
                raise ExportError(
                    f"{FORMATS[path.suffix]} differs from the network by more than {TOLERANCE:g}: {', '.join(faults)}; "
                    f"{path} was not written"
                )
            put_in_place(beside, path)
        return differences

    def _difference(self, exported: Callable[[Tensor], Tensor], batches: list[Tensor]) -> float:
        return max(float((exported(images) - self.network(images)).abs().max()) for images in batches)

    # What these return is the smallest size of an image that the file takes.

    def _write_torchscript(self, path: Path) -> int:
        save_net_with_metadata(
            torch.jit.script(self.network), str(path), append_timestamp=False, meta_values=self.metadata
        )
        return self.metadata["minimum_size"]

    def _write_onnx(self, path: Path) -> int:
        for name in ("onnx", "onnxscript"):
            if not optional_import(name)[1]:
                raise ExportError(f"exporting to ONNX needs the package {name}: pip install -e '.[export]'")
        program = torch.onnx.export(
            _with_steady_norms(self.network),
            (self.network.example_input(),),
            input_names=["image"],
            output_names=["pred"],
            dynamic_shapes=self._dynamic_shapes(self.metadata["minimum_size"]),
            dynamo=True,
            verbose=False,
        )
        if program is None:  # what the signature allows for the exporter of before
            raise ExportError("PyTorch's ONNX exporter returned nothing")
        entries = {name: json.dumps(value) for name, value in self.metadata.items()}
        program.model.metadata_props.update({**entries, "recipe": encode_recipe(self.recipe.content)})
        program.model.metadata_props[SEAL] = PLACEHOLDER
        program.save(str(path))
        seal(path)
        return self.metadata["minimum_size"]

    def _write_program(self, path: Path) -> int:
        example, least = self.network.example_input(), self.metadata["minimum_size"]
        try:
            program = torch.export.export(self.network, (example,), dynamic_shapes=self._dynamic_shapes(least))
        except torch._dynamo.exc.UserError:
            # Where sizes are filled up to a multiple, it cannot tell that the smallest become large enough.
            least = 2 ** math.ceil(math.log2(least))
            program = torch.export.export(self.network, (example,), dynamic_shapes=self._dynamic_shapes(least))
        metadata = {**self.metadata, "minimum_size": least}
        torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})
        return least

    def _dynamic_shapes(self, least: int) -> tuple[dict[int, Any]]:
        axes = AXES[: self.network.example_input().ndim - 2]
        free = self.network.only_size is None
        sizes = {2 + n: torch.export.Dim(axis, min=least) for n, axis in enumerate(axes) if free}
        return ({0: torch.export.Dim("batch"), **sizes},)


def _verified(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Look at the checksums of a file before it is loaded: neither of these loaders does."""

    def read(path: str) -> Any:
        verify_zip(path)
        return load(path)

    return read


class _SteadyInstanceNorm(nn.Module):
    """Instance norm that ONNX Runtime computes as well as PyTorch does.

    ONNX Runtime's means are too coarse where a channel hardly varies, as in the slices at the ends of a head, which are
    nearly all background: a trained network's output was off by up to 7e-4 there. The mean of what is left after the
    first is small, so taking it off as well mends that.
    """

    def forward(self, x: Tensor) -> Tensor:
        axes = list(range(2, x.ndim))
        for _ in range(2):
            x = x - x.mean(axes, keepdim=True)
        return x / torch.sqrt(x.square().mean(axes, keepdim=True) + EPSILON)


def _with_steady_norms(network: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode with other instance norms in it."""
    network = copy.deepcopy(network)
    for part in list(network.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, InstanceNorm):
                setattr(part, name, _SteadyInstanceNorm())
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters tell of packages that they could have used, and of their own parts that are going out of use."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "monai.bundle.scripts")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
