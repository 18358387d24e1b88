"""Finds the sections in an image of a slide, in four steps."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from atlalign.io.pieces.joining import attached, grow, joined
from atlalign.io.pieces.piece import cut_at_necks, pieces_of
from atlalign.io.pieces.rejects import LeftOut, is_main, sorted_out
from atlalign.io.pieces.tissue import refined, seems_solid, tissue_strength
from atlalign.io.pixels import Background

WORKING_UM = 40.0
"""The pixel size at which pieces are found."""
_ASSUMED_MM = 40.0  # the longer side of an image without a pixel size
_LARGEST_MM = 400.0  # the longer side of an image; if it exceeds this, the pixel size is wrong
_LEAST_PX = 32  # the shorter side of an image; a smaller copy shows nothing
_LARGEST_PX = 3000
_LINE_UM = 75.0  # half the width of a line that is not tissue
_ATTACHED_MM = 0.4  # from a section to small pieces of it


class Found(NamedTuple):
    """Sections on a slide.

    Attributes:
        labels: (h, w), the number of the section from 1, and 0 outside of sections.
        left_out: Rejected pieces, largest first.
        strength: (h, w), each pixel's difference from the slide; 1 is the least that counts as tissue.
        unit_mm: The pixel size of the labels; assumed if the image's is unknown.
        is_solid: Most of the tissue is visible, not only scattered cells or thin layers of it.
    """

    labels: NDArray[np.int32]
    left_out: list[LeftOut]
    strength: NDArray[np.float64]
    unit_mm: float
    is_solid: bool

    @property
    def number(self) -> int:
        """The number of sections."""
        return int(self.labels.max(initial=0))


def find_sections(
    image: NDArray[Any],
    *,
    is_color: bool,
    pixel_um: float | None = None,
    background: Background = "auto",
) -> Found:
    """Return the sections in an image of a slide.

    Args:
        image: (h, w), or (h, w, c).
        is_color: The channels are red, green and blue.
        pixel_um: The pixel size; None if it is unknown.
        background: Brightness of the slide; auto detects it.

    Example:
        >>> y, x = np.mgrid[:300, :600]
        >>> two_discs = np.where(np.hypot(y - 150, x % 300 - 150) < 90, 90, 240)
        >>> find_sections(two_discs, is_color=False, pixel_um=40).number
        2
    """
    unit_mm, factor = _scale(image.shape, pixel_um)
    small = _shrunk(image, factor)
    strength = tissue_strength(small, background, is_color=is_color)
    tissue = strength > 1
    radius = max(1, round(_LINE_UM / 1000 / unit_mm))
    is_solid = seems_solid(tissue, radius)
    labels = refined(strength, tissue, radius)
    pieces = [part for piece in pieces_of(labels) for part in cut_at_necks(piece)]
    kept, left_out = sorted_out(pieces, unit_mm)
    groups = joined([piece for piece in kept if is_main(piece, kept, unit_mm)])
    numbered = np.zeros(tissue.shape, np.int32)
    for number, group in enumerate(groups, 1):
        for piece in group:
            numbered[piece.box][piece.mask] = number
    mains = {id(piece) for group in groups for piece in group}
    small_ones = [piece for piece in kept if id(piece) not in mains]
    left_out += attached(numbered, small_ones, _ATTACHED_MM / unit_mm)
    grow(numbered, tissue, 2 * radius)
    left_out.sort(key=lambda piece: -int(piece.mask.sum()))
    return Found(numbered, left_out, strength, unit_mm, is_solid)


def _scale(shape: tuple[int, ...], pixel_um: float | None) -> tuple[float, float]:
    """Return the working pixel size in mm, and the number of image pixels along the side of such a pixel."""
    longer = max(shape[:2])
    if pixel_um is None or longer * pixel_um / 1000 > _LARGEST_MM:
        pixel_um = 1000 * _ASSUMED_MM / longer
    factor = max(1.0, min(WORKING_UM / pixel_um, min(shape[:2]) / _LEAST_PX), longer / _LARGEST_PX)
    return factor * pixel_um / 1000, factor


def _shrunk(image: NDArray[Any], factor: float) -> NDArray[np.float32]:
    """Return means of the image (h, w, c) over blocks of about `factor` pixels."""
    channels = image if image.ndim == 3 else image[..., None]
    tensor = torch.from_numpy(np.ascontiguousarray(channels, np.float32)).permute(2, 0, 1)[None]
    shape = [max(2, round(size / factor)) for size in image.shape[:2]]
    shrunk = torch.nn.functional.interpolate(tensor, size=shape, mode="area")
    return shrunk[0].permute(1, 2, 0).numpy()
