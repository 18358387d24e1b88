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
LITTLE_LIKE = (
    0.5  # only solid sections at the ends of the brain have a smaller likeness to their correct planes
)
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
        neighbours: The number of other sections of its brain that it was located with.
        side: whole, left or right.
        anchoring: The image's anchoring; None if no plane fits.
        position_um: The position along the axis at the centre of the image.
        tilt_deg: The plane's tilts about the two other axes of the atlas: for coronal planes the slope along ML and DV.
        error_um: The standard deviation of the position.
        error_deg: The standard deviations of the tilts.
        likeness: The likeness to the plane after registration.
        strain: The bending that makes the section look like the plane; see `Fitter.strain`.
        proposed_error_um: The error of its proposal that the network expected.
        flag: pass, look or fail.
        reason: The reasons for a look or fail.
        other_um: Another position that fits about as well, if there is one.
        elsewhere_um: The best position for this section alone, if it differs from its place in the series.
        curve: The fit along the axis, for this section alone.
        alone_um: The position at the tissue's centre, for this section alone.
        placed_um: The final position at the tissue's centre.
        pictures: The plane of the atlas, and the section placed on it, each (H, W) in 8 bits.
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
        """Return the job with the plane of its section, or with the reason why it has none."""
        if self.anchoring is None:
            return self.job._replace(problem=self.reason)
        half = {} if self.side == "whole" else {"hemisphere": self.side}
        return self.job._replace(
            position_um=self.anchoring.position_um,
            anchoring=self.anchoring,
            options={**half, **self.job.options},
            doubt=f"located, but {self.reason}" if self.flag == "look" else "",
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
        reason=problem or start.reason,
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
            f"alone it fits at {located.elsewhere_um:.0f} µm, not at its place in the series, "
            f"{located.placed_um:.0f} µm"
        )
    if not math.isnan(located.other_um):
        reasons.append(f"it fits about as well at {located.other_um:.0f} µm")
    if located.error_um > 1000 * _UNSURE_MM:
        reasons.append(f"its position is uncertain by ±{located.error_um:.0f} µm")
    if located.likeness < LITTLE_LIKE:
        if not _is_backed(located):
            reasons.append(f"it has little likeness to its plane ({located.likeness:.2f})")
    elif located.strain > _STRAINED:
        reasons.append(
            f"it must be bent a lot to resemble its plane (strain {located.strain:.0f}), like a section of another "
            "species, a damaged one or one with another tilt"
        )
    flag = "fail" if located.flag == "fail" else "look" if reasons else "pass"
    return replace(located, flag=flag, reason="; ".join(reasons))


def _is_backed(located: Located) -> bool:
    """Return whether a section, located alone, lies where its neighbours place it."""
    agrees = abs(located.alone_um - located.placed_um) < 1000 * _AGREES_MM
    return located.neighbours >= _MANY and agrees


def in_degrees(slopes: np.ndarray) -> tuple[float, float]:
    """Return two slopes as angles in degrees."""
    first, second = np.rad2deg(np.arctan(slopes))
    return float(first), float(second)
