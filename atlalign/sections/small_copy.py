"""A small copy of a scene with all of its channels, on which its sections are found."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlalign.io.pieces import WORKING_UM
from atlalign.io.scenes import Scene
from atlalign.io.views import at_scale
from atlalign.sections.outlines import Outline, bounds, filled

_LEAST_PX = 64  # a copy of a small scene has at least as many pixels along the shorter side
_AROUND_PX = 12  # of the copy: the margin around the box of a section
_BESIDE_PX = 3  # pixels closer to an outline are not used as background


class SmallCopy(NamedTuple):
    """A small copy of a scene.

    Attributes:
        pixels: (h, w, c), or (h, w, 3) in colour.
        is_color: Whether the channels are red, green and blue.
        scale: The number of scene pixels per pixel of the copy along x and y.
    """

    pixels: NDArray[np.float32]
    is_color: bool
    scale: NDArray[np.float64]

    def from_scene(self, outline: Outline) -> Outline:
        """Convert an outline from pixels of the scene to pixels of the copy."""
        return tuple((ring + 0.5) / self.scale - 0.5 for ring in outline)


def small_copy(scene: Scene, pixel_um: float) -> SmallCopy:
    """Return a scene at about `WORKING_UM`."""
    scale = max(1.0, min(WORKING_UM / pixel_um, min(scene.shape) / _LEAST_PX))
    views = [at_scale(channel, scale) for channel in scene.each_channel()]
    planes = [np.asarray(view.pixels[:, :], np.float32) for view in views]
    pixels = planes[0] if scene.is_color else np.stack(planes, axis=-1)
    return SmallCopy(pixels, scene.is_color, np.array(views[0].scale))


def ground_color(copy: SmallCopy, outlines: Iterable[Outline], around: Outline) -> NDArray[Any]:
    """Return the typical value of the slide around a section: (channels,), or (1, 3) in colour.

    Slides are seldom lit evenly, so the value elsewhere may look like tissue.

    Args:
        copy: The slide.
        outlines: The outlines of all sections on it.
        around: The outline of the section.
    """
    shape = (copy.pixels.shape[0], copy.pixels.shape[1])
    taken = np.zeros(shape, bool)
    for outline in outlines:
        taken |= filled(copy.from_scene(outline), shape)
    beside = ~ndimage.binary_dilation(taken, iterations=_BESIDE_PX)
    near = np.zeros(shape, bool)
    left, top, right, bottom = (round(side) for side in bounds(copy.from_scene(around)))
    near[max(0, top - _AROUND_PX) : bottom + _AROUND_PX, max(0, left - _AROUND_PX) : right + _AROUND_PX] = (
        True
    )
    places = (beside & near, beside, ~taken)
    values = np.median(copy.pixels[next(place for place in places if place.any())], axis=0)
    return np.asarray(values[None] if copy.is_color else values)
