"""The borders between labels as smooth lines that can be deformed."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Points

_HALF_WINDOW = 2  # corners on either side that a point is averaged with: steps of the pixel grid are shorter
_STEP = 2  # of all points, this many lie between those that are kept


class Lines(NamedTuple):
    """Lines of several points each.

    Attributes:
        counts: (n,), the number of points of each line.
        points: (N, 2) as (x, y), the points of all lines in turn.
    """

    counts: NDArray[np.int32]
    points: Points


def borders(labels: NDArray[np.integer]) -> Lines:
    """Return the borders between labels (H, W), in pixels, each from one junction to the next."""
    lines = [_smooth(np.array(line, np.float64) - 0.5) for line in _traced(labels)]
    if not lines:
        return Lines(np.zeros(0, np.int32), np.zeros((0, 2)))
    return Lines(np.array([len(line) for line in lines], np.int32), np.concatenate(lines))


def _traced(labels: NDArray[np.integer]) -> list[list[tuple[int, int]]]:
    """Return the pixel corners (x, y) along each border; a closed border ends where it starts."""
    neighbours = _graph(labels)
    lines: list[list[tuple[int, int]]] = []

    def walk(corner: tuple[int, int], following: tuple[int, int]) -> None:
        line = [corner]
        while True:
            neighbours[corner].discard(following)
            neighbours[following].discard(corner)
            line.append(following)
            if following in junctions or not neighbours[following]:
                break
            corner, following = following, next(iter(neighbours[following]))
        lines.append(line)

    junctions = {corner for corner, others in neighbours.items() if len(others) != 2}
    for corner in (*junctions, *neighbours):
        while neighbours[corner]:
            walk(corner, next(iter(neighbours[corner])))
    return lines


def _graph(labels: NDArray[np.integer]) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """Return the graph of pixel corners that are joined by an edge between two labels."""
    y, x = np.nonzero(labels[1:] != labels[:-1])
    rows = [((a, b), (a + 1, b)) for a, b in zip(x.tolist(), (y + 1).tolist(), strict=True)]
    y, x = np.nonzero(labels[:, 1:] != labels[:, :-1])
    columns = [((a, b), (a, b + 1)) for a, b in zip((x + 1).tolist(), y.tolist(), strict=True)]
    graph: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for one, other in rows + columns:
        graph.setdefault(one, set()).add(other)
        graph.setdefault(other, set()).add(one)
    return graph


def _smooth(line: Points) -> Points:
    """Return a line without the steps of the pixel grid; the ends of an open line stay, so that lines still meet."""
    is_closed = len(line) > 2 and bool((line[0] == line[-1]).all())
    n = len(line)
    if is_closed:
        padded = np.concatenate([line[-1 - _HALF_WINDOW : -1], line, line[1 : 1 + _HALF_WINDOW]])
    else:
        padded = np.pad(line, ((_HALF_WINDOW, _HALF_WINDOW), (0, 0)), mode="reflect", reflect_type="odd")
    if len(padded) < n + 2 * _HALF_WINDOW:
        return line
    smooth = np.mean([padded[k : k + n] for k in range(2 * _HALF_WINDOW + 1)], axis=0)
    kept = np.unique([*range(0, n, _STEP), n - 1])
    return np.asarray(smooth[kept], np.float64)
