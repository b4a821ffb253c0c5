"""What a file holds, by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pipeline.compat import autoencoders, cyclegan, nicegan
from pipeline.compat.common import ImportedFile, kernel_width


def import_state_dict(tensors: Mapping[str, Tensor]) -> ImportedFile:
    """Recognise what the authors' code has saved, and take over its weights.

    Widths, depth, channels and the number of spatial axes are read from the shapes, too. Names do not matter, but for
    those of NICE-GAN.

    Args:
        tensors: state dict of one network, in definition order.

    Returns:
        Networks with these weights.

    Raises:
        WeightsError: the shapes belong to no known network (the message names the first tensor that does not fit the
            nearest one), or a tensor is not of floating point or not finite.
    """
    if nicegan.is_known(tensors):
        return nicegan.import_file(tensors)
    learned = autoencoders.without_buffers(tensors)
    widths = [width for width in map(kernel_width, learned.values()) if width]
    starts_with_convolution = bool(widths) and kernel_width(next(iter(learned.values()))) > 0
    if starts_with_convolution and widths[:2] == [7, 4]:
        return autoencoders.import_autoencoder(learned)
    if starts_with_convolution and widths[0] == 4 and 1 in widths:
        return autoencoders.import_discriminator(tensors)
    return cyclegan.import_in_order(tensors)
