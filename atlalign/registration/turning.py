"""The rotation of a section on its slide: the angles at which it looks most like its reference."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.io.images import resize_images
from atlalign.registration.likeness import likeness
from atlalign.registration.placed_image import antialiased, sampled_image
from atlalign.registration.placement import Placement, turned
from atlalign.registration.references import Reference
from atlalign.registration.section import Section

_ROWS = 80  # of the compared images: 100 µm per pixel are enough to tell angles apart
_STEP = 5.0  # degrees: a turn by half of it costs little likeness, so no peak is missed


class Turn(NamedTuple):
    """A counter-clockwise turn of a placed section.

    Attributes:
        degrees: From −180 up to 180.
        likeness: The likeness of the turned section to its reference.
    """

    degrees: float
    likeness: float


def likely_turns(section: Section, reference: Reference, placement: Placement) -> list[Turn]:
    """Return the turns of a placed section at which its likeness to the reference peaks, the best one first.

    The section turns about the centre of its reference's tissue, by any angle.
    """
    coarse, placement = _coarse(reference, placement)
    section = antialiased(section, placement)
    angles = np.arange(0, 360, _STEP)
    placed = sampled_image(section, *turned(placement, coarse, *angles), shape=coarse.grid.shape)
    like = likeness(coarse.image.expand_as(placed), placed).double().numpy()
    return sorted(_peaks(angles, like), key=lambda turn: -turn.likeness)


def _coarse(reference: Reference, placement: Placement) -> tuple[Reference, Placement]:
    """Return a smaller copy of the reference, and the placement on its grid."""
    height, width = reference.grid.shape
    factor = max(1.0, height / _ROWS)
    shape = (round(height / factor), round(width / factor))
    grid = reference.grid.with_shape(shape)
    to_fine = np.diag([*np.array(grid.pixel_um) / reference.grid.pixel_um, 1.0])
    image = resize_images(reference.image[0], shape)[None]
    return reference._replace(image=image, grid=grid), placement._replace(matrix=placement.matrix @ to_fine)


def _peaks(angles: NDArray[np.float64], values: NDArray[np.float64]) -> list[Turn]:
    """Return the local maxima of a function around the circle; a parabola interpolates between the angles."""
    before, after = np.roll(values, 1), np.roll(values, -1)
    found = np.flatnonzero((values >= before) & (values > after))
    curvature = before + after - 2 * values
    offset = _STEP / 2 * (before - after)[found] / curvature[found]
    degrees = (angles[found] + offset + 180) % 360 - 180
    return [Turn(float(angle), float(value)) for angle, value in zip(degrees, values[found], strict=True)]
