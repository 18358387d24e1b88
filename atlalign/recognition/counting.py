"""Counts the sections in an image, with a network that knows the brain.

A straight line with little tissue along it may lie between two sections, or inside one: between its hemispheres, below
its cerebellum, along a tear. The outlines look alike in all these cases. So tissue is divided at such lines until the
network recognises the parts. Two recognised parts are two sections, unless they are the two hemispheres of one.

If the network recognises nothing, as in other species, only clear outlines of solid tissue are used: the outlines of
two sections are convex and come near each other around one point, while the parts of one section face each other along
a long front.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from atlalign.io.pieces import front_length, piece_of
from atlalign.recognition.divisions import Division, Mask, divisions, without_dirt
from atlalign.recognition.judge import BrainJudge, Judgement

_IMAGE_PX = 512  # about the longer side of the image that is judged; tissue is divided at half its resolution
_BLUR_PX = 2.0  # cells join to form tissue
_OF_TYPICAL, _LEAST = (
    0.2,
    0.01,
)  # of the typical brightness of tissue, and of the range: darker pixels are background
_SOLID = 0.2  # of the brightest tissue; stained sections had at least 0.36, gene expression at most 0.07
_DEPTH = 3  # of divisions within divisions: up to eight sections
# Single sections, whole or damaged, had no two parts with an agreement above 0.97 and errors below 0.9 mm.
_AGREE, _SURE_MM = 0.99, 0.75
_GAP, _AS_LARGE = (
    0.02,
    0.3,
)  # a neck this narrow is a gap; a smaller part, by area, is no section beside the other
_SHORT_FRONT = 0.6  # of parts of one section, the shortest was 0.85


class Recognised(NamedTuple):
    """Tissue that the network recognises as a section or a half of one.

    Attributes:
        tissue: (h, w), at the resolution of `Seen.tissue`.
        side: The part of the brain: one of `SIDES`.
    """

    tissue: Mask
    side: str


class Seen(NamedTuple):
    """An image with its tissue.

    Attributes:
        image: (2 h, 2 w), bright tissue on a background of 0.
        tissue: (h, w).
        factor: Each pixel of the tissue covers `factor`² pixels of the original image.
    """

    image: NDArray[np.float32]
    tissue: Mask
    factor: int

    @classmethod
    def of(cls, grey: Tensor) -> "Seen":
        """Return an image (h, w) in [0, 1] at the resolution at which sections are counted."""
        factor = max(1, round(max(grey.shape) / _IMAGE_PX))
        small = torch.nn.functional.avg_pool2d(grey[None].float(), factor)[0].numpy()
        height, width = (size // 2 for size in small.shape)
        image = np.asarray(small[: 2 * height, : 2 * width])
        smooth = ndimage.gaussian_filter(image.reshape(height, 2, width, 2).mean((1, 3)), _BLUR_PX)
        typical = float(np.median(smooth[smooth > _LEAST])) if (smooth > _LEAST).any() else 0.0
        return cls(image, without_dirt(smooth > max(_LEAST, _OF_TYPICAL * typical)), 2 * factor)

    @property
    def is_solid(self) -> bool:
        """Whether most of the tissue is visible, not only scattered cells or layers of them."""
        height, width = self.tissue.shape
        inside = self.image.reshape(height, 2, width, 2).mean((1, 3))[self.tissue]
        return bool(np.median(inside) > _SOLID * np.percentile(inside, 99))

    def judged(self, tissue: Mask) -> Judgement:
        """Return the network's opinion of a part of the tissue."""
        return _judge().judge(self.image, np.kron(tissue, np.ones((2, 2), np.bool_)))


@cache
def _judge() -> BrainJudge:
    return BrainJudge()


def count_sections(seen: Seen) -> int:
    """Return the number of sections that an image shows beyond doubt, at least 1.

    An image of one section rarely needs the network: its tissue has no line that may separate sections.
    """
    found = divisions(seen.tissue)
    if not found:
        return 1
    recognised = recognised_sections(seen)
    if recognised or not seen.is_solid:
        return max(1, len(recognised))
    return 2 if any(map(_has_clear_outlines, found)) else 1


def recognised_sections(seen: Seen) -> list[Recognised]:
    """Return the sections that the network recognises in an image; empty if it recognises none."""
    return _recognised(seen, seen.tissue, _DEPTH)


def _has_clear_outlines(division: Division) -> bool:
    """Return whether the outlines of both parts show that they are two sections."""
    one, other = (piece_of(part, np.s_[:, :]) for part in (division.one, division.other))
    alike = min(one.area, other.area) >= _AS_LARGE * max(one.area, other.area)
    return division.neck <= _GAP and alike and front_length(one, other) < _SHORT_FRONT


def _recognised(seen: Seen, tissue: Mask, depth: int) -> list[Recognised]:
    """Return the sections in a part of the tissue, divided by the first line that has sections on both sides."""
    whole = seen.judged(tissue)
    if whole.agreement >= _AGREE and whole.error_mm <= _SURE_MM:
        return [Recognised(tissue, whole.side)]
    if not depth:
        return []
    for division in divisions(tissue):
        one = _recognised(seen, division.one, depth - 1)
        other = _recognised(seen, division.other, depth - 1) if one else []
        if other and not _are_hemispheres(one, other):
            return one + other
    return []


def _are_hemispheres(one: list[Recognised], other: list[Recognised]) -> bool:
    sides = {found.side for found in (*one, *other)}
    return len(one) == len(other) == 1 and sides == {"left", "right"}
