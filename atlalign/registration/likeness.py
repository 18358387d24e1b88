"""The likeness of two images that may differ in contrast."""

from torch import Tensor

from atlalign.metrics import mutual_information
from atlalign.registration.refine import local_correlation

_BINS = 32


def likeness(first: Tensor, second: Tensor) -> Tensor:
    """Return the mutual information in nats plus the mean squared local correlation (B,) of images (B, 1, H, W).

    Neither term depends on which image is brighter. Mutual information compares the whole images, and local correlation
    the borders in them.
    """
    information = mutual_information(first, second, bins=_BINS)
    return information + local_correlation(first, second).mean((1, 2, 3))
