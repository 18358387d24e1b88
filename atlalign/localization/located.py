"""A located section, with reasons to check it."""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Anchoring, Matrix
from atlalign.errors import InputError
from atlalign.localization.fit import Lie
from atlalign.localization.locator import Looked
from atlalign.localization.search import Curve
from atlalign.registration.jobs import Job

_UNSURE_MM = 0.3
_LITTLE_LIKE = 0.5  # solid sections at the ends of the brain are the only ones less like their correct planes
_STRAINED = 90.0  # most sections of the atlas's species have less
_MANY = 4
_AGREES_MM = 0.2
APART_MM = 0.4


@dataclass(frozen=True, eq=False)
class Located:
    """A located section.

    Attributes:
        job: The image.
        brain: The brain, from the list or the name of the folder.
        number: Its number in the series.
        neighbours: How many other sections of its brain it was located with.
        side: whole, left or right.
        anchoring: Of the image; None where it fits nowhere.
        position_um: Along the axis, at the centre of the image.
        tilt_deg: Of the plane, about the two other axes of the atlas: of coronal ones the slope along ML and along DV.
        error_um: The position's standard deviation.
        error_deg: Those of the tilts.
        likeness: To the plane, once registered.
        strain: How much the section must be bent for its likeness to the plane, see `Fitter.strain`.
        proposed_error_um: The error that the network expected of its proposal.
        flag: pass, look or fail.
        reason: Why the flag is not pass.
        other_um: Another position that fits about as well, if there is one.
        elsewhere_um: Where it fits by itself, if that is not its place in the series.
        curve: How well it fits along the axis, by itself.
        alone_um: The position at its tissue's centre by itself.
        placed_um: The position at its tissue's centre as it is located.
        pictures: The plane of the atlas, and the section as it lies there, each (H, W) in 8 bits.
    """

    job: Job
    brain: str
    number: int
    neighbours: int = 0
    side: str = ""
    anchoring: Anchoring | None = None
    position_um: float = math.nan
    tilt_deg: tuple[float, float] = (math.nan, math.nan)
    error_um: float = math.nan
    error_deg: tuple[float, float] = (math.nan, math.nan)
    likeness: float = math.nan
    strain: float = math.nan
    proposed_error_um: float = math.nan
    flag: str = "pass"
    reason: str = ""
    other_um: float = math.nan
    elsewhere_um: float = math.nan
    curve: Curve | None = None
    alone_um: float = math.nan
    placed_um: float = math.nan
    pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None

    def placed_job(self) -> Job:
        """Return the image with its plane, or with the reason why it has none."""
        if self.anchoring is None:
            return self.job._replace(problem=self.reason)
        half = {} if self.side == "whole" else {"hemisphere": self.side}
        return self.job._replace(
            position_um=self.anchoring.position_um,
            anchoring=self.anchoring,
            options={**half, **self.job.options},
        )


def on_plane(start: Located, looked: Looked, lie: Lie) -> Located:
    """Return a section with its plane."""
    frame = looked.search.frame
    matrix = lie.matrix(frame)
    height, width = looked.section.shape
    middle = matrix @ ((width - 1) / 2, (height - 1) / 2, 1.0)
    problem = ""
    anchoring = None
    try:
        anchoring = anchoring_of(matrix, looked.section.shape)
    except InputError as error:
        problem = str(error)
    finer = looked.search.finer
    return replace(
        start,
        anchoring=anchoring,
        pictures=finer.pictures(lie),
        position_um=1000 * float(middle[frame.across]),
        tilt_deg=in_degrees(lie.plane[[2, 1]]),
        strain=finer.strain(lie),
        proposed_error_um=1000 * looked.found.proposal.error_mm,
        flag="fail" if problem else "pass",
        reason=problem,
    )


def anchoring_of(matrix: Matrix, shape: tuple[int, int]) -> Anchoring:
    """Return the anchoring of an image (h, w), given the map (3, 3) from its pixels to (AP, DV, ML) in mm."""
    height, width = shape
    share_to_pixel = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1.0]])
    return Anchoring.of_points_um(1000 * matrix @ share_to_pixel, shape)


def matrix_of(anchoring: Anchoring) -> Matrix:
    """Return the matrix (3, 3) from pixels of an image to (AP, DV, ML) in mm; the inverse of `anchoring_of`."""
    height, width = anchoring.size
    pixel_to_share = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1.0]])
    return np.asarray(anchoring.share_to_um @ pixel_to_share / 1000)


def judged(located: Located) -> Located:
    """Return a section with its flag and the reasons to check it."""
    reasons = [located.reason] if located.reason else []
    if not math.isnan(located.elsewhere_um):
        reasons.append(
            f"by itself it fits at {located.elsewhere_um:.0f} µm, not at its place in the series, "
            f"{located.placed_um:.0f} µm"
        )
    if not math.isnan(located.other_um):
        reasons.append(f"it fits about as well at {located.other_um:.0f} µm")
    if located.error_um > 1000 * _UNSURE_MM:
        reasons.append(f"its position is uncertain by ±{located.error_um:.0f} µm")
    if located.likeness < _LITTLE_LIKE:
        if not _is_backed(located):
            reasons.append(f"it is little like its plane ({located.likeness:.2f})")
    elif located.strain > _STRAINED:
        reasons.append(
            f"it must be bent much to resemble its plane (strain {located.strain:.0f}): is it of another species, "
            "damaged, or tilted otherwise?"
        )
    flag = "fail" if located.flag == "fail" else "look" if reasons else "pass"
    return replace(located, flag=flag, reason="; ".join(reasons))


def _is_backed(located: Located) -> bool:
    """Return whether a section by itself lies where its neighbours put it."""
    agrees = abs(located.alone_um - located.placed_um) < 1000 * _AGREES_MM
    return located.neighbours >= _MANY and agrees


def in_degrees(slopes: np.ndarray) -> tuple[float, float]:
    """Return two slopes as angles in degrees."""
    first, second = np.rad2deg(np.arctan(slopes))
    return float(first), float(second)
