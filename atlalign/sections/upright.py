"""The turn of a section on its slide.

A brain section is nearly the mirror image of itself at its midline, inside and in outline. Symmetry does not show which
end of the midline is dorsal; only a judge that knows the brain, such as a network, can.
"""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


class Judge(Protocol):
    """Judges a section (h, w), bright tissue on a dark background, given the mask of its pixels."""

    def turn(self, image: NDArray[Any], mask: NDArray[np.bool_]) -> float | None:
        """Return the counter-clockwise turn in degrees that makes the section upright; None if it is unknown."""

    def strangeness(self, image: NDArray[Any], mask: NDArray[np.bool_]) -> float:
        """Return how little the tissue looks like one section of a brain, as a number from 0 upwards."""


_UP_OR_DOWN = "upright or upside down: check"
_NOT_TURNED = "not turned: no clear midline"

_ANGLES = 720  # around the circle
_RADII = 48
_CLEAR = 0.08  # a clear axis is better than any other by this much
_APART = 15.0  # degrees: axes closer than this count as one
_SYMMETRIC = 0.5  # of 1: a smaller value is not symmetry


def find_turn(
    strength: NDArray[Any], mask: NDArray[np.bool_], judge: Judge | None = None
) -> tuple[float, str]:
    """Return the turn of a section in whole degrees, −180 up to 180, and a remark if it is doubtful.

    Args:
        strength: (h, w), the section as bright tissue on a dark background.
        mask: (h, w), the section's pixels.
        judge: Finds the upright direction; if it cannot, the smaller of the two possible turns makes the midline
            vertical.
    """
    turn = None if judge is None else judge.turn(strength, mask)
    if turn is not None:
        return float(round((turn + 180) % 360 - 180)), ""
    midline = find_midline(strength, mask)
    if not midline.is_clear:
        return 0.0, _NOT_TURNED
    return float(round(midline.turn)), _UP_OR_DOWN


def without_turn(note: str) -> str:
    """Return a section's remarks except those about its turn."""
    return "; ".join(part for part in note.split("; ") if part not in (_UP_OR_DOWN, _NOT_TURNED))


class Midline(NamedTuple):
    """A section's plane of symmetry.

    Attributes:
        turn: The counter-clockwise turn in degrees, −90 to 90, that makes the midline vertical.
        symmetry: The likeness of the two halves beside it: 1 for mirror images.
        is_clear: Whether no other axis is nearly as good.
    """

    turn: float
    symmetry: float
    is_clear: bool


def find_midline(strength: NDArray[Any], mask: NDArray[np.bool_]) -> Midline:
    """Return the midline of a section.

    Args:
        strength: (h, w), the section as bright tissue on a dark background.
        mask: (h, w), the section's pixels.
    """
    around = _polar(_contrast(strength, mask), mask)
    likeness = _mirror_likeness(around)
    best = int(likeness.argmax())
    axes = np.arange(_ANGLES) * 180 / _ANGLES  # of the midline, clockwise from the x axis, as y points down
    apart = np.abs((axes - axes[best] + 90) % 180 - 90)
    second = float(likeness[apart > _APART].max())
    symmetry = float(likeness[best])
    is_clear = symmetry >= _SYMMETRIC and symmetry - second >= _CLEAR
    # A vertical midline lies at 90°; a counter-clockwise turn lowers the angle of an axis.
    turn = float((axes[best] - 90 + 90) % 180 - 90)
    return Midline(turn, symmetry, is_clear)


def _contrast(strength: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the section with its inside and its outline weighted equally."""
    inside = strength[mask].astype(float)
    low, high = np.percentile(inside, [2, 98])
    scaled = np.clip((strength - low) / max(high - low, 1e-9), 0, 1)
    return np.asarray(np.where(mask, 0.5 + scaled, 0.0))


def _polar(image: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the image (radii, angles) around the centre of the mask, angles clockwise from the x axis."""
    points = np.argwhere(mask)
    centre = points.mean(axis=0)
    radius = float(np.sqrt(((points - centre) ** 2).sum(axis=1)).max())
    smooth = ndimage.gaussian_filter(image, radius / _RADII)
    radii = (np.arange(_RADII) + 0.5) * radius / _RADII
    angles = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    rows = centre[0] + radii[:, None] * np.sin(angles)
    columns = centre[1] + radii[:, None] * np.cos(angles)
    return np.asarray(ndimage.map_coordinates(smooth, [rows, columns], order=1))


def _mirror_likeness(around: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of an image with its mirror image at each axis, in steps of half an angle.

    At an axis θ, the pixel at the angle φ has its counterpart at 2θ − φ, so a single convolution computes all these
    sums.
    """
    weights = np.sqrt(np.arange(len(around)) + 0.5)[:, None]  # of the area at each radius
    centred = (around - around.mean(axis=1, keepdims=True)) * weights
    spectrum = np.fft.fft(centred, axis=1)
    sums = np.fft.ifft(spectrum**2, axis=1).real.sum(axis=0)
    return np.asarray(sums / max(float((centred**2).sum()), 1e-9))
