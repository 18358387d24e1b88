"""How much two images of different contrast show the same."""

from torch import Tensor

from atlalign.metrics import mutual_information
from atlalign.registration.refine import local_correlation

_BINS = 32


def likeness(first: Tensor, second: Tensor) -> float:
    """Return the mutual information in nats plus the mean squared local correlation of images (1, 1, H, W).

    Neither asks which of the images is brighter. The first sees the whole, the second the borders in it.
    """
    information = mutual_information(first, second, bins=_BINS)
    return float(information + local_correlation(first, second).mean())
