"""Networks: `forward(reference, moving)` returns a `Registration`; all hyperparameters are plain numbers."""

from atlalign.networks.coarse_to_fine import CoarseToFineNet
from atlalign.networks.correlation_pyramid import CorrelationPyramidNet
from atlalign.networks.global_affine import GlobalAffineNet
from atlalign.networks.layers import Affine2DVF, BilinearInterpolation, DVFComposition, Registration
from atlalign.networks.local_unet import LocalUNet
from atlalign.networks.merged import MergedNet, MergedRegistration

__all__ = [
    "Affine2DVF",
    "BilinearInterpolation",
    "CoarseToFineNet",
    "CorrelationPyramidNet",
    "DVFComposition",
    "GlobalAffineNet",
    "LocalUNet",
    "MergedNet",
    "MergedRegistration",
    "Registration",
]
