"""Step 3: reject pieces that are not sections."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from atlalign.io.pieces.piece import Piece
from atlalign.io.pixels import Mask

Reason = Literal["small", "thin", "rectangular"]
# A main piece makes a section; other pieces only belong to one.
_LEAST_MM2, _LEAST_WIDTH_MM = 0.8, 0.6
_LEAST_SHARE = 0.02  # of the largest piece's area
_LEAST_THICKNESS = 0.3  # width over the root of the area; a disc has 1.13
_LEAST_THICKNESS_IF_SMALL, _SMALL = 0.45, 0.25  # small: as a fraction of the largest piece's area
_RECTANGULAR = 0.93  # of the smallest rectangle around it
_SPECK_MM2 = 0.02


class LeftOut(NamedTuple):
    """A rejected piece.

    Attributes:
        reason: Why it is not a section.
        mask: (h, w) of its box.
        box: The position of the box in the labels.
    """

    reason: Reason
    mask: Mask
    box: tuple[slice, slice]


_IN_WORDS: dict[str, tuple[str, str, str]] = {
    "rectangular": ("rectangular piece", "a label", "labels"),
    "thin": ("thin piece", "the edge of a coverslip", "edges of coverslips or bubbles"),
    "small": ("small piece", "dust", "dust"),
}


def rejected_in_words(reasons: Sequence[str]) -> str:
    """Return, in words, how many pieces were rejected for each reason.

    Example:
        >>> rejected_in_words(["small", "rectangular", "small"])
        'only 1 rectangular piece, such as a label, and 2 small pieces, such as dust'
    """
    counts = {reason: list(reasons).count(reason) for reason in _IN_WORDS if reason in reasons}
    each = [_counted(count, *_IN_WORDS[reason]) for reason, count in counts.items()]
    return f"only {', and '.join(each)}" if each else "no tissue"


def _counted(count: int, piece: str, one: str, many: str) -> str:
    return f"1 {piece}, such as {one}" if count == 1 else f"{count} {piece}s, such as {many}"


def sorted_out(pieces: list[Piece], unit_mm: float) -> tuple[list[Piece], list[LeftOut]]:
    """Return the pieces that may be tissue, and the rejected ones; specks are in neither list."""
    kept, left_out = [], []
    for piece in pieces:
        reason = _reason(piece, unit_mm)
        if reason is not None:
            left_out.append(LeftOut(reason, piece.mask, piece.box))
        elif piece.area * unit_mm**2 >= _SPECK_MM2:
            kept.append(piece)
    return kept, left_out


def _reason(piece: Piece, unit_mm: float) -> Reason | None:
    """Return why a piece of sufficient size cannot be tissue."""
    if piece.area * unit_mm**2 < _LEAST_MM2:
        return None
    if piece.width < _LEAST_THICKNESS * piece.area**0.5:
        return "thin"
    return "rectangular" if _rectangularity(piece.mask) > _RECTANGULAR else None


def _rectangularity(mask: Mask) -> float:
    """Return the fraction of the smallest rectangle around a mask that the mask covers."""
    points = np.argwhere(mask ^ ndimage.binary_erosion(mask)).astype(float)
    hull = points[ConvexHull(points).vertices]
    angles = np.deg2rad(np.arange(0, 90, 2))
    axes = np.stack([np.cos(angles), np.sin(angles)]), np.stack([-np.sin(angles), np.cos(angles)])
    sides = [np.ptp(hull @ axis, axis=0) + 1 for axis in axes]
    return float(mask.sum() / (sides[0] * sides[1]).min())


def is_main(piece: Piece, pieces: list[Piece], unit_mm: float) -> bool:
    """Return whether a piece may be a section; handwriting is thinner than a small section."""
    largest = max(other.area for other in pieces)
    if piece.area < max(_LEAST_MM2 / unit_mm**2, _LEAST_SHARE * largest):
        return False
    is_thick = piece.width >= _LEAST_THICKNESS_IF_SMALL * piece.area**0.5
    return piece.width * unit_mm >= _LEAST_WIDTH_MM and (is_thick or piece.area >= _SMALL * largest)
