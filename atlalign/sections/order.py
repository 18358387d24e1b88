"""The order of sections on a slide."""

from collections.abc import Sequence

import numpy as np

from atlalign.io.pixels import Floats
from atlalign.sections.options import Order
from atlalign.sections.outlines import Outline, bounds

_TILTS = np.tan(np.deg2rad(np.arange(-8, 9)))
_PER_ROW, _PER_TILT = 0.15, 0.5  # more rows, or more tilted rows, need a better fit
_SAME_ROW = 0.6  # of the usual height: centres that differ by less are in one row


def in_order(outlines: Sequence[Outline], order: Order = "rows") -> list[int]:
    """Return the indexes of sections, first to last."""
    if not outlines:
        return []
    boxes = np.array([bounds(outline) for outline in outlines])
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    by_columns = order in ("columns", "serpentine-columns")
    along, across = (1, 0) if by_columns else (0, 1)
    rows = _tilted_rows(centres[:, along], centres[:, across], float(np.median(sizes[:, across])))
    found = []
    for number, row in enumerate(rows):
        backwards = order.startswith("serpentine") and number % 2 == 1
        found += sorted(row, key=lambda place: float(centres[place, along]), reverse=backwards)
    return found


def _tilted_rows(along: Floats, across: Floats, size: float) -> list[list[int]]:
    """Return the indexes of sections row by row; the rows may be slightly tilted, like the slide."""

    def cost(rows: list[list[int]], tilted: Floats, tilt: float) -> float:
        spread = sum(float(np.square(tilted[row] - tilted[row].mean()).sum()) for row in rows)
        return float(np.sqrt(spread / len(across))) / size + _PER_ROW * len(rows) + _PER_TILT * abs(tilt)

    found = []
    for tilt in _TILTS:
        tilted = across - tilt * (along - along.mean())
        rows = _rows(tilted, _SAME_ROW * size)
        found.append((cost(rows, tilted, tilt), rows))
    return min(found, key=lambda pair: pair[0])[1]


def _rows(across: Floats, reach: float) -> list[list[int]]:
    """Return the indexes of values, grouped into rows of nearby values, in ascending order."""
    rows: list[list[int]] = []
    for place in np.argsort(across).tolist():
        if rows and across[place] - float(np.mean([across[other] for other in rows[-1]])) <= reach:
            rows[-1].append(place)
        else:
            rows.append([place])
    return rows
