"""The order of sections on a slide."""

from collections.abc import Sequence

import numpy as np

from atlalign.sections.options import Order
from atlalign.sections.outlines import Outline, bounds

_SAME_ROW = 0.5  # of the usual height: centres that differ by less lie in one row


def in_order(outlines: Sequence[Outline], order: Order = "rows") -> list[int]:
    """Return the places of sections, first to last."""
    if not outlines:
        return []
    boxes = np.array([bounds(outline) for outline in outlines])
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    by_columns = order in ("columns", "serpentine-columns")
    along, across = (1, 0) if by_columns else (0, 1)
    rows = _rows(centres[:, across], _SAME_ROW * float(np.median(sizes[:, across])))
    found = []
    for number, row in enumerate(rows):
        backwards = order.startswith("serpentine") and number % 2 == 1
        found += sorted(row, key=lambda place: float(centres[place, along]), reverse=backwards)
    return found


def _rows(across: Sequence[float], reach: float) -> list[list[int]]:
    """Return the places of values, those near each other in one row, in ascending order."""
    rows: list[list[int]] = []
    for place in np.argsort(across).tolist():
        if rows and across[place] - float(np.mean([across[other] for other in rows[-1]])) <= reach:
            rows[-1].append(place)
        else:
            rows.append([place])
    return rows
