"""Networks, two- and three-dimensional through `spatial_dims`."""

from pipeline.networks.affine import AffineRegistrationNet, affine_field, random_symmetries, register_affine
from pipeline.networks.multiscale_discriminator import MultiScaleDiscriminator
from pipeline.networks.munit import MUNITGenerator
from pipeline.networks.nicegan import NICEDiscriminator, NICEEncoder, NICEGenerator
from pipeline.networks.patch_discriminator import PatchDiscriminator
from pipeline.networks.registration import RegistrationNet
from pipeline.networks.resnet_generator import ResNetGenerator
from pipeline.networks.unet_generator import UNetGenerator
from pipeline.networks.unit import UNITGenerator
from pipeline.networks.warp import overlap, warp

__all__ = [
    "AffineRegistrationNet",
    "MUNITGenerator",
    "MultiScaleDiscriminator",
    "NICEDiscriminator",
    "NICEEncoder",
    "NICEGenerator",
    "PatchDiscriminator",
    "RegistrationNet",
    "ResNetGenerator",
    "UNITGenerator",
    "UNetGenerator",
    "affine_field",
    "overlap",
    "random_symmetries",
    "register_affine",
    "warp",
]
