"""The sections of one brain as a series: one cutting angle, and positions in the order of their numbers."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.pixels import Floats
from atlalign.localization.search import Curve

_FLOOR = -6.0  # logarithm of the odds that a section lies elsewhere than its series predicts
_OUTSIDE = -3.0  # sections with lower odds do not fit the series
_LEAST_ERROR_MM = 0.15  # an error common to neighbours does not average out: 85 µm on planes of a real stain
_MOST_PAIRS = 2000
_STEPS = 400  # positions along the axis, for sections of which only the order is known
_NUMBER = re.compile(r"_s(\d+)(?!.*_s\d)|(\d+)\D*$", re.IGNORECASE)


def section_number(path: Path) -> int | None:
    """Return the number in a file's name: the one after the last `_s`, otherwise the last number; None without any."""
    name = path.name.removesuffix(path.suffix).removesuffix(".ome")
    found = _NUMBER.search(name)
    return None if found is None else int(found.group(1) or found.group(2))


def numbers_of(paths: Sequence[Path], listed: Sequence[int | None] = ()) -> list[int] | None:
    """Return the numbers of sections, from their list or else from the files' names; None if any section has none.

    Raises:
        InputError: If two sections have the same number.
    """
    is_listed = bool(listed) and None not in listed
    numbers = listed if is_listed else [section_number(path) for path in paths]
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return None
    repeated = [number for number, times in Counter(known).items() if times > 1]
    if repeated:
        names = [path.name for path, number in zip(paths, known, strict=True) if number == repeated[0]]
        raise InputError(
            f"expected a different number for each section of a series, found {repeated[0]} in {' and '.join(names)}: "
            "rename them, put each brain into its own subfolder, or locate each section alone (--independent)"
        )
    return known


@dataclass(frozen=True, eq=False)
class Series:
    """The positions of the sections of a series.

    Attributes:
        position_mm: Positions along the axis, (N,).
        error_mm: Standard errors, (N,).
        fits: Whether each section's own position agrees with the series, (N,).
        spacing_mm: Distance between sections whose numbers differ by 1, negative for a series from back to front; None
            if only the order is used.
    """

    position_mm: Floats
    error_mm: Floats
    fits: NDArray[np.bool_]
    spacing_mm: float | None


def on_a_line(curves: Sequence[Curve], numbers: Sequence[float], spacing_mm: float | None = None) -> Series:
    """Return the positions on a line over section numbers that fit all sections best.

    Sections far from all lines count little: each has at least the odds of an outlier.

    Args:
        curves: Each section's fit along the axis.
        numbers: Section numbers, all different.
        spacing_mm: The distance between sections whose numbers differ by 1, if known; a series may run in either
            direction.
    """
    number = np.asarray(numbers, np.float64)
    centred = number - number.mean()
    best = np.array([curve.best_mm for curve in curves])
    lines = _lines(centred, best, spacing_mm)
    start = max(lines, key=lambda line: _agreement(curves, line[0] + line[1] * centred))
    offset, slope = _improved(curves, centred, start, is_free=spacing_mm is None)
    position = offset + slope * centred
    return Series(position, _line_errors(centred, best, position), _fitting(curves, position), float(slope))


def in_order(curves: Sequence[Curve]) -> Series:
    """Return the ascending or descending positions that fit all sections best."""
    low = min(float(curve.position_mm[0]) for curve in curves)
    high = max(float(curve.position_mm[-1]) for curve in curves)
    grid = np.linspace(low, high, _STEPS)
    table = np.stack([np.maximum(curve.at(grid), _FLOOR) for curve in curves])
    ways = [_ascending(table), _ascending(table[:, ::-1])]
    total, places = max(ways, key=lambda way: way[0])
    position = (grid if total == ways[0][0] else grid[::-1])[places]
    errors = np.maximum([curve.error_mm for curve in curves], _LEAST_ERROR_MM)
    return Series(position, errors, _fitting(curves, position), None)


def common(values: Floats, errors: Floats) -> float:
    """Return the median of values, each weighted by its precision."""
    order = np.argsort(values)
    weight = np.cumsum(1 / np.square(errors[order]))
    return float(values[order][np.searchsorted(weight, weight[-1] / 2)])


def _lines(number: Floats, best: Floats, spacing_mm: float | None) -> list[tuple[float, float]]:
    """Return lines (offset, slope) through the best positions of pairs of sections, or of known slope."""
    if spacing_mm is not None:
        return [
            (float(x - slope * n), slope)
            for slope in (spacing_mm, -spacing_mm)
            for n, x in zip(number, best, strict=True)
        ]
    pairs = list(combinations(range(len(number)), 2))
    chosen = np.random.default_rng(0).permutation(len(pairs))[:_MOST_PAIRS]
    found = []
    for first, second in (pairs[place] for place in chosen):
        slope = (best[second] - best[first]) / (number[second] - number[first])
        found.append((float(best[first] - slope * number[first]), float(slope)))
    return found


def _agreement(curves: Sequence[Curve], position: Floats) -> float:
    return float(sum(max(float(curve.at(x)), _FLOOR) for curve, x in zip(curves, position, strict=True)))


def _improved(
    curves: Sequence[Curve], number: Floats, start: tuple[float, float], *, is_free: bool
) -> tuple[float, float]:
    """Return the best-fitting line near `start`."""
    from scipy.optimize import minimize

    reach = max(float(np.abs(number).max()), 1e-9)

    def loss(change: Floats) -> float:
        slope = start[1] + (change[1] / reach if is_free else 0.0)
        return -_agreement(curves, start[0] + change[0] + slope * number)

    steps = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.1]])
    found = minimize(
        loss, np.zeros(2), method="Nelder-Mead", options={"initial_simplex": steps, "xatol": 1e-3}
    )
    return start[0] + float(found.x[0]), start[1] + (float(found.x[1]) / reach if is_free else 0.0)


def _line_errors(number: Floats, best: Floats, position: Floats) -> Floats:
    """Return the standard errors of positions on a line, from the distances of the sections' own positions to it."""
    freedom = max(len(number) - 2, 1)  # two sections determine a line
    spread = 1.48 * float(np.median(np.abs(best - position))) * np.sqrt(len(number) / freedom)
    leverage = 1 / len(number) + np.square(number) / max(float(np.square(number).sum()), 1e-9)
    errors: Floats = np.maximum(spread * np.sqrt(leverage), _LEAST_ERROR_MM)
    return errors


def _fitting(curves: Sequence[Curve], position: Floats) -> NDArray[np.bool_]:
    return np.array([bool(curve.at(x) > _OUTSIDE) for curve, x in zip(curves, position, strict=True)])


def _ascending(table: Floats) -> tuple[float, NDArray[np.intp]]:
    """Return the largest sum of one value per row of a table (N, P) in ascending columns, and these columns."""
    totals = np.zeros(table.shape[1])
    chosen = np.zeros(table.shape, np.intp)
    for row, values in enumerate(table):
        so_far = np.maximum.accumulate(totals)
        chosen[row] = np.maximum.accumulate(np.where(totals >= so_far, np.arange(len(totals)), 0))
        totals = so_far + values
    places = np.zeros(len(table), np.intp)
    place = int(totals.argmax())
    for row in range(len(table) - 1, -1, -1):
        places[row] = place
        place = int(chosen[row, place])
    return float(totals.max()), places
