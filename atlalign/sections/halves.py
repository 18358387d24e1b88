"""Joins two separate pieces, such as hemispheres or bulbs, that together look like one section."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlalign.io.pieces import Found
from atlalign.sections.upright import Judge

_APART_MM = 1.3
_ALIKE = 0.5  # of the larger area
_FAMILIAR = 0.8  # whole sections have a strangeness of at most 0.77, two neighbours together of at least 0.84


def with_halves_joined(found: Found, judge: Judge) -> Found:
    """Return the sections of a slide after joining each pair of pieces that the judge takes for one section.

    Two pieces are joined if they have about the same size and are near each other, and if the strangeness of both
    together is at most the larger of their own.
    """
    numbers = np.arange(found.number + 1)
    for one, other in _near_pairs(found):
        if _are_one(found, one, other, judge) and (numbers == numbers[one]).sum() == 1:
            numbers[other] = numbers[one]
    _, places = np.unique(numbers, return_inverse=True)
    return found._replace(labels=places.astype(np.int32)[found.labels])


def _near_pairs(found: Found) -> Iterator[tuple[int, int]]:
    """Yield pairs of indexes of nearby sections of similar size, the nearest pair first."""
    areas = np.bincount(found.labels.ravel())
    pairs = []
    for one in range(1, found.number + 1):
        far = np.asarray(ndimage.distance_transform_edt(found.labels != one))
        gaps = ndimage.minimum(far, found.labels, np.arange(one + 1, found.number + 1))
        for other, gap in enumerate(gaps, start=one + 1):
            small, large = sorted((areas[one], areas[other]))
            if gap * found.unit_mm <= _APART_MM and small >= _ALIKE * large:
                pairs.append((float(gap), one, other))
    yield from ((one, other) for _, one, other in sorted(pairs))


def _are_one(found: Found, one: int, other: int, judge: Judge) -> bool:
    together = _strangeness(found, np.isin(found.labels, (one, other)), judge)
    if together > _FAMILIAR:
        return False
    return together <= max(_strangeness(found, found.labels == number, judge) for number in (one, other))


def _strangeness(found: Found, mask: NDArray[np.bool_], judge: Judge) -> float:
    rows, columns = (slice(where.min(), where.max() + 1) for where in np.nonzero(mask))
    return judge.strangeness(found.strength[rows, columns], mask[rows, columns])
