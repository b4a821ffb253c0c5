"""Networks, two- and three-dimensional through `spatial_dims`."""

from pipeline.networks.patch_discriminator import PatchDiscriminator
from pipeline.networks.registration import RegistrationNet
from pipeline.networks.resnet_generator import ResNetGenerator

__all__ = ["PatchDiscriminator", "RegistrationNet", "ResNetGenerator"]
