"""The sections of one brain, each on its own of parallel planes, in the order of their numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from atlalign.localization.located import APART_MM, Located, in_degrees, judged, on_plane
from atlalign.localization.locator import Looked
from atlalign.localization.search import Curve
from atlalign.localization.series import Series, common, in_order, on_a_line

_SLOPE_DOUBT = 0.04  # of a section's own slopes, beyond their standard deviation


def in_series(
    starts: Sequence[Located],
    looked: Sequence[Looked],
    numbers: Sequence[float] | None,
    section_spacing_um: float | None,
) -> list[Located]:
    """Return where the sections of a series lie: on planes of one angle, in the order of their numbers."""
    own = np.array([one.found.lie.plane[1:] for one in looked])
    errors = np.array([np.hypot(one.found.slopes_error, _SLOPE_DOUBT) for one in looked])
    slopes = np.array([common(own[:, axis], errors[:, axis]) for axis in (0, 1)])
    slope_errors = 1.25 * 1.48 * np.median(np.abs(own - slopes), axis=0) / math.sqrt(len(own))
    curves, arms = [], []
    for one in looked:
        tilted = one.found.lie.on(_tilted(one, slopes))
        _, near = one.search.along(tilted, np.arange(-4.0, 5.0))
        curves.append(one.found.curve.merged(near))
        arms.append(float(one.search.arms(one.found.pivot) @ slopes))
    # Positions at the middle of the atlas, where parallel planes are equally far apart.
    middle = [
        Curve(curve.position_mm - arm, curve.odds, curve.likeness)
        for curve, arm in zip(curves, arms, strict=True)
    ]
    spacing_mm = None if section_spacing_um is None else section_spacing_um / 1000
    series = in_order(middle) if numbers is None else on_a_line(middle, numbers, spacing_mm)
    return [
        _member(start, one, curve, arm, series, place, slopes, slope_errors)
        for place, (start, one, curve, arm) in enumerate(zip(starts, looked, curves, arms, strict=True))
    ]


def _tilted(looked: Looked, slopes: np.ndarray) -> np.ndarray:
    """Return the plane of a section with other slopes about the centre of its tissue."""
    search, lie = looked.search, looked.found.lie
    height = search.height(lie.plane, looked.found.pivot)
    return np.array([height - search.arms(looked.found.pivot) @ slopes, *slopes])


def _member(
    start: Located,
    looked: Looked,
    curve: Curve,
    arm: float,
    series: Series,
    place: int,
    slopes: np.ndarray,
    slope_errors: np.ndarray,
) -> Located:
    """Return a section at its place in the series."""
    middle_mm = float(series.position_mm[place])
    placed_um, alone_um = 1000 * (middle_mm + arm), 1000 * curve.best_mm
    lie = looked.found.lie.on(np.array([middle_mm, *slopes]))
    lie = looked.search.finer.straightened(lie)
    located = replace(
        on_plane(start, looked, lie),
        side=looked.found.side,
        likeness=float(np.interp(placed_um / 1000, curve.position_mm, curve.likeness)),
        error_um=1000 * float(series.error_mm[place]),
        error_deg=in_degrees(slope_errors[::-1]),
        curve=curve,
        alone_um=alone_um,
        placed_um=placed_um,
    )
    if not series.fits[place] and abs(alone_um - placed_um) > 1000 * APART_MM:
        apart = f"by itself it fits at {alone_um:.0f} µm, not at its place in the series, {placed_um:.0f} µm"
        located = replace(located, reason="; ".join(filter(None, [located.reason, apart])))
    return judged(located)
