"""Networks; all of their hyperparameters are plain numbers.

Networks that register have `forward(reference, moving)`, which returns a `Registration`. `PlaneLocatorNet` does not
register: it takes views of sections.
"""

from atlalign.networks.coarse_to_fine import CoarseToFineNet
from atlalign.networks.correlation_pyramid import CorrelationPyramidNet
from atlalign.networks.fine_pass import FinePassNet
from atlalign.networks.global_affine import GlobalAffineNet
from atlalign.networks.layers import Affine2DVF, BilinearInterpolation, DVFComposition, Registration
from atlalign.networks.local_unet import LocalUNet
from atlalign.networks.merged import MergedNet, MergedRegistration
from atlalign.networks.plane_locator import LocatedPlanes, PlaneLocatorNet

__all__ = [
    "Affine2DVF",
    "BilinearInterpolation",
    "CoarseToFineNet",
    "CorrelationPyramidNet",
    "DVFComposition",
    "FinePassNet",
    "GlobalAffineNet",
    "LocalUNet",
    "LocatedPlanes",
    "MergedNet",
    "MergedRegistration",
    "PlaneLocatorNet",
    "Registration",
]
