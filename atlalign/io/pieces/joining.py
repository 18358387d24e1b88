"""Step 4: join the pieces that are parts of one section."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from atlalign.io.pieces.piece import Piece
from atlalign.io.pieces.rejects import LeftOut
from atlalign.io.pixels import Floats, Mask

# Lengths are relative to the square root of the smaller area, gaps to the geometric mean of both square roots.
_NEAR = 0.2  # points this much farther away than the gap still face each other
_REACH = 0.3
_FRONT, _FRONT_PER_GAP = 0.6, 1.5  # two parts of a section that is no larger than others
_LARGER = 1.25  # times the median area of large pieces
_FRONT_IF_LARGER, _FRONT_IF_LARGER_PER_GAP = 1.0, 1.0
_LARGE = 0.4  # of the largest piece


def front_length(one: Piece, other: Piece) -> float:
    """Return the length along which two pieces face each other, at any distance, over the root of the smaller area."""
    small, large = sorted((one, other), key=lambda piece: piece.area)
    distances = np.asarray(KDTree(large.rim).query(small.rim)[0])
    root = float(np.sqrt(small.area))
    return float((distances <= distances.min() + _NEAR * root).sum()) / root


def joined(pieces: list[Piece]) -> list[list[Piece]]:
    """Return the pieces in groups, one group per section."""
    groups = [[place] for place in range(len(pieces))]
    rims = [piece.rim for piece in pieces]
    trees = [KDTree(rim) for rim in rims]
    far = [[np.full(len(rim), np.inf) for _ in pieces] for rim in rims]
    for one, rim in enumerate(rims):
        for other, tree in enumerate(trees):
            reach = 2 * _reach(pieces[one].area, pieces[other].area)
            if one != other:
                far[one][other] = np.asarray(tree.query(rim, distance_upper_bound=reach)[0])
    areas = [piece.area for piece in pieces]
    while (best := _best_pair(groups, areas, far)) is not None:
        one, other = best
        groups[one] += groups.pop(other)
    return [[pieces[place] for place in group] for group in groups]


def _reach(area: float, other: float) -> float:
    return float(_REACH * (area * other) ** 0.25)


def _best_pair(
    groups: list[list[int]], areas: list[float], far: list[list[Floats]]
) -> tuple[int, int] | None:
    """Return the indexes of the two groups, in ascending order, that most clearly belong to one section."""
    usual = float(np.median([area for area in areas if area >= _LARGE * max(areas)])) if areas else 0.0
    scores = {
        (one, other): _belonging(groups[one], groups[other], areas, far, usual)
        for one in range(len(groups))
        for other in range(one + 1, len(groups))
    }
    best = max(scores, key=lambda pair: scores[pair], default=None)
    return best if best is not None and scores[best] >= 0 else None


def _belonging(
    one: list[int], other: list[int], areas: list[float], far: list[list[Floats]], usual: float
) -> float:
    """Return how much longer the front between two groups is than expected between two separate sections."""
    small, large = sorted((one, other), key=lambda group: sum(areas[place] for place in group))
    sizes = [sum(areas[place] for place in group) for group in (small, large)]
    distances = np.concatenate([np.min([far[place][to] for to in large], axis=0) for place in small])
    gap = float(distances.min())
    if gap > _reach(*sizes):
        return -np.inf
    root = float(np.sqrt(sizes[0]))
    front = float((distances <= gap + _NEAR * root).sum()) / root
    share = gap / float(np.sqrt(np.sqrt(sizes[0] * sizes[1])))
    is_larger = sum(sizes) > _LARGER * usual
    least = (
        _FRONT_IF_LARGER + _FRONT_IF_LARGER_PER_GAP * share if is_larger else _FRONT + _FRONT_PER_GAP * share
    )
    return front - least


def attached(numbered: NDArray[np.int32], pieces: list[Piece], reach: float) -> list[LeftOut]:
    """Assign small pieces to a section nearby, and return the remaining ones."""
    if not pieces:
        return []
    far, nearest = ndimage.distance_transform_edt(numbered == 0, return_indices=True)
    numbers = numbered[tuple(nearest)]
    left_out = []
    for piece in pieces:
        distances = np.where(piece.mask, far[piece.box], np.inf)
        closest = np.unravel_index(distances.argmin(), distances.shape)
        if distances[closest] <= reach and numbered.any():
            numbered[piece.box][piece.mask] = numbers[piece.box][closest]
        else:
            left_out.append(LeftOut("small", piece.mask, piece.box))
    return left_out


def grow(numbered: NDArray[np.int32], tissue: Mask, by_px: int) -> None:
    """Give each section back the tissue that an opening has removed from it."""
    far, nearest = ndimage.distance_transform_edt(numbered == 0, return_indices=True)
    near = (far <= by_px) & tissue
    numbered[near] = numbered[tuple(nearest)][near]
