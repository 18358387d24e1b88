"""How the areas of a section's regions change with the map from the section to the reference."""

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Points

_REACH = 3  # standard deviations beyond which a smoothed border has no effect


def region_growth(labels: NDArray[np.integer], at: Points, spacing_px: float, least: int) -> list[Points]:
    """Return for each region an array (N, 2): its relative growth per pixel that each point moves along x and y.

    The area of a region in the section is the number of evenly spaced points of the section that the map takes into it.
    A point is weighted by the region's mask, smoothed over the distance between points, so that the mask's gradient
    gives the change of the weight with a movement.

    Args:
        labels: Region ids (h, w) of the reference, 0 outside.
        at: (N, 2) as (x, y), the positions of the points in pixels of the labels.
        spacing_px: The distance between neighbouring points there.
        least: Regions with fewer points are left out.
    """
    from scipy.ndimage import find_objects, gaussian_filter

    height, width = labels.shape
    column, row = np.rint(at).astype(int).T
    inside = np.flatnonzero((column >= 0) & (row >= 0) & (column < width) & (row < height))
    ids, numbers = np.unique(labels, return_inverse=True)
    numbers = numbers.reshape(labels.shape) + 1
    counts = np.bincount(numbers[row[inside], column[inside]], minlength=len(ids) + 1)[1:]
    boxes, margin = find_objects(numbers), int(np.ceil(_REACH * spacing_px)) + 1
    growth = []
    for number in np.flatnonzero((counts >= least) & (ids != 0)):
        rows, columns = (slice(max(0, side.start - margin), side.stop + margin) for side in boxes[number])
        soft = gaussian_filter((numbers[rows, columns] == number + 1).astype(np.float64), spacing_px)
        per_row, per_column = np.gradient(soft)
        near = inside[_is_in(rows, row[inside]) & _is_in(columns, column[inside])]
        place = row[near] - rows.start, column[near] - columns.start
        found = np.zeros((len(at), 2))
        found[near] = np.stack([per_column[place], per_row[place]], axis=1) / counts[number]
        growth.append(found)
    return growth


def _is_in(side: slice, numbers: NDArray[np.integer]) -> NDArray[np.bool_]:
    return np.asarray((numbers >= side.start) & (numbers < side.stop))
