"""Localization of the sections of one brain: parallel planes in the order of the section numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from atlalign.io.pixels import Floats
from atlalign.localization.fit import Frame, Lie
from atlalign.localization.located import APART_MM, Located, in_degrees, judged, matrix_of, on_plane
from atlalign.localization.locator import Looked
from atlalign.localization.search import Curve
from atlalign.localization.series import Series, common, in_order, on_a_line

_SLOPE_DOUBT = 0.04  # as a fraction of a section's own slopes, in addition to their standard deviation
_LEAST_SLOPE_ERROR = 1e-3
_LEAST_ANGLE_ERROR = math.tan(math.radians(1.0))  # an error common to all sections does not average out
_FIRM_MM = 0.05  # the standard deviation of a kept position; it is small, so that new sections follow it
_REACH_MM = 1.0
_NEAR = np.arange(-4.0, 5.0)
_LEAST_FITTING = 0.5  # of the sections of a series beyond two, which a line fits in any case


class Angle(NamedTuple):
    """The cutting angle of a brain.

    Attributes:
        slopes: The slopes of all planes, along rows and columns.
        errors: Their standard errors.
    """

    slopes: Floats
    errors: Floats


@dataclass(frozen=True, eq=False)
class KeptSection:
    """A section of the brain that was located earlier, and keeps its plane.

    Attributes:
        located: The section.
        plane: The plane, in the form that `Frame.templates` takes.
    """

    located: Located
    plane: Floats

    @classmethod
    def of(cls, located: Located, frame: Frame) -> "KeptSection":
        """Return a section that was located earlier, with its plane in the given frame."""
        assert located.anchoring is not None
        return cls(located, Lie.of(matrix_of(located.anchoring), frame).plane)

    @property
    def slopes(self) -> Floats:
        """The slopes of its plane."""
        return self.plane[1:]

    @property
    def slopes_error(self) -> Floats:
        """Their standard deviations."""
        found = np.tan(np.deg2rad(self.located.error_deg[::-1]))
        error: Floats = np.maximum(np.nan_to_num(found, nan=_SLOPE_DOUBT), _LEAST_SLOPE_ERROR)
        return error

    def curve(self, angle: Angle) -> Curve:
        """Return the fit in the middle of the atlas, which is sharp at the section's own plane."""
        away = np.linspace(-_REACH_MM, _REACH_MM, 81)
        odds = -0.5 * np.square(away / _FIRM_MM)
        return Curve(self.plane[0] + away, odds, np.full(len(away), self.located.likeness))

    def placed(self, curve: Curve, series: Series, place: int, angle: Angle) -> Located:
        """Return the section on its earlier plane."""
        return self.located


@dataclass(frozen=True, eq=False)
class NewSection:
    """A section of the brain after the first pass, which looks at it alone.

    Attributes:
        start: The section, not yet located.
        looked: The result of the first pass.
    """

    start: Located
    looked: Looked

    @property
    def slopes(self) -> Floats:
        """The slopes of the best plane for this section alone."""
        return self.looked.found.lie.plane[1:]

    @property
    def slopes_error(self) -> Floats:
        """Their standard deviations."""
        return np.asarray(np.hypot(self.looked.found.slopes_error, _SLOPE_DOUBT))

    def arm(self, angle: Angle) -> float:
        """Return how much further back the plane is at the tissue's centre than in the middle of the atlas."""
        return float(self.looked.search.arms(self.looked.found.pivot) @ angle.slopes)

    def curve(self, angle: Angle) -> Curve:
        """Return the fit in the middle of the atlas, where the distance between parallel planes is measured."""
        search, found = self.looked.search, self.looked.found
        middle_mm = float(search.height(found.lie.plane, found.pivot)) - self.arm(angle)
        _, near = search.along(found.lie.on(np.array([middle_mm, *angle.slopes])), _NEAR)
        return found.curve.merged(near).moved(-self.arm(angle))

    def placed(self, curve: Curve, series: Series, place: int, angle: Angle) -> Located:
        """Return the section at its place in the series."""
        middle_mm, arm = float(series.position_mm[place]), self.arm(angle)
        placed_um, alone_um = 1000 * (middle_mm + arm), 1000 * (curve.best_mm + arm)
        lie = self.looked.found.lie.on(np.array([middle_mm, *angle.slopes]))
        lie = self.looked.search.finer.straightened(lie)
        is_apart = not series.fits[place] and abs(alone_um - placed_um) > 1000 * APART_MM
        return judged(
            replace(
                on_plane(self.start, self.looked, lie),
                neighbours=len(series.position_mm) - 1,
                side=self.looked.found.side,
                likeness=float(np.interp(middle_mm, curve.position_mm, curve.likeness)),
                error_um=1000 * float(series.error_mm[place]),
                error_deg=in_degrees(angle.errors[::-1]),
                elsewhere_um=alone_um if is_apart else math.nan,
                curve=curve.moved(arm),
                alone_um=alone_um,
                placed_um=placed_um,
            )
        )


def in_series(
    sections: Sequence[NewSection | KeptSection],
    numbers: Sequence[float] | None,
    section_spacing_um: float | None,
) -> list[Located] | None:
    """Return the located sections of a brain, on planes with one angle, in the order of their numbers.

    Sections that were located earlier keep their planes, and the new ones follow them. Returns None if most sections
    do not fit such a series.
    """
    angle = shared_angle(sections)
    curves = [section.curve(angle) for section in sections]
    spacing_mm = None if section_spacing_um is None else section_spacing_um / 1000
    series = in_order(curves) if numbers is None else on_a_line(curves, numbers, spacing_mm)
    if series.fits.sum() - 2 < _LEAST_FITTING * (len(sections) - 2):
        return None
    kept_mm = [one.located.error_um / 1000 for one in sections if isinstance(one, KeptSection)]
    kept_mm = [error_mm for error_mm in kept_mm if not math.isnan(error_mm)]
    if kept_mm:  # a line through kept planes is no more certain than they are
        series = replace(series, error_mm=np.maximum(series.error_mm, np.median(kept_mm)))
    return [
        section.placed(curve, series, place, angle)
        for place, (section, curve) in enumerate(zip(sections, curves, strict=True))
    ]


def shared_angle(sections: Sequence[NewSection | KeptSection]) -> Angle:
    """Return the cutting angle that sections share, the weighted median of their slopes."""
    own = np.array([section.slopes for section in sections])
    errors = np.array([section.slopes_error for section in sections])
    slopes = np.array([common(own[:, axis], errors[:, axis]) for axis in (0, 1)])
    spread = 1.25 * 1.48 * np.median(np.abs(own - slopes), axis=0) / math.sqrt(len(own))
    kept = [one.slopes_error for one in sections if isinstance(one, KeptSection)]
    errors = np.maximum(spread, _LEAST_ANGLE_ERROR)
    return Angle(slopes, np.maximum(errors, np.median(kept, axis=0)) if kept else errors)
