"""Divisions of tissue by straight lines where there is little of it, as between two sections."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
"""(h, w), the pixels of tissue."""

_STEP_DEG = 5
_LEAST_SHARE = 0.08  # of the tissue, on either side of a line
_NARROW = 0.5  # of the widest place on either side
_BIN_PX = 3  # lines are this wide
_SAME = 0.05  # of the tissue: two lines that divide it alike
_LEAST_PIECE = 0.03  # of the largest piece: smaller ones are dirt


class Division(NamedTuple):
    """Two parts of the tissue on both sides of a line.

    Attributes:
        one: The tissue on one side.
        other: The tissue on the other side.
        neck: The length of tissue along the line, as a fraction of its length along the longest parallel line through
            the narrower part.
    """

    one: Mask
    other: Mask
    neck: float


def divisions(tissue: Mask, most: int = 2) -> list[Division]:
    """Return the clearest divisions of the tissue, with the narrowest necks first.

    Example:
        >>> y, x = np.mgrid[:60, :120]
        >>> [found] = divisions(np.hypot(y - 30, x % 60 - 30) < 25)
        >>> found.neck, int(found.one.sum()) == int(found.other.sum())
        (0.0, True)
    """
    y, x = np.nonzero(tissue)
    found: list[tuple[Mask, float]] = []
    for neck, along, at in sorted(_lines(x, y)):
        side = np.cos(along) * x + np.sin(along) * y < at
        if all(_SAME < (side == other).mean() < 1 - _SAME for other, _ in found):
            found.append((side, neck))
        if len(found) == most:
            break
    return [Division(_part(tissue, x, y, side), _part(tissue, x, y, ~side), neck) for side, neck in found]


def _lines(x: NDArray[np.intp], y: NDArray[np.intp]) -> Iterator[tuple[float, float, float]]:
    """Yield for each direction its narrowest neck, the direction in radians, and the line's place along it."""
    for degrees in range(0, 180, _STEP_DEG):
        along = np.deg2rad(degrees)
        places = np.cos(along) * x + np.sin(along) * y
        first = np.floor(places.min())
        counts = np.bincount((places - first).astype(int))
        shares = np.cumsum(counts) / counts.sum()
        lengths = ndimage.uniform_filter1d(counts.astype(float), _BIN_PX, mode="constant")
        before, after = np.maximum.accumulate(lengths), np.maximum.accumulate(lengths[::-1])[::-1]
        necks = lengths / np.maximum(np.minimum(before, after), 1e-9)
        necks[(shares < _LEAST_SHARE) | (shares > 1 - _LEAST_SHARE)] = np.inf
        if necks.min() <= _NARROW:
            yield float(necks.min()), along, first + _middle_of_longest(necks <= necks.min() + 1e-9) + 0.5


def _middle_of_longest(mask: NDArray[np.bool_]) -> float:
    """Return the middle of the longest run of true values."""
    runs, _ = ndimage.label(mask)
    longest = int(np.bincount(runs)[1:].argmax()) + 1
    return float(np.flatnonzero(runs == longest).mean())


def _part(tissue: Mask, x: NDArray[np.intp], y: NDArray[np.intp], side: NDArray[np.bool_]) -> Mask:
    part = np.zeros_like(tissue)
    part[y[side], x[side]] = True
    return without_dirt(part)


def without_dirt(tissue: Mask) -> Mask:
    """Return the tissue without pieces that are much smaller than its largest piece."""
    pieces, _ = ndimage.label(tissue)
    areas = np.bincount(pieces.ravel())
    areas[0] = 0
    kept: Mask = (areas >= max(1, _LEAST_PIECE * areas.max()))[pieces]
    return kept
