"""Tissue that the user has marked to be ignored."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Points
from atlalign.errors import InputError
from atlalign.io.files import fingerprint_of

IGNORED = "ignored.tif"
"""The results' mask of ignored tissue, which the labels and areas leave out."""


class Ignored(NamedTuple):
    """Tissue to ignore: it affects neither the registration nor the measures.

    Attributes:
        mask: (h, w), an image of the whole section at any resolution, or None.
        areas: Polygons, each an outline and its holes, (N, 2) as (x, y) in pixels of the section's image, from the
            corner of the first pixel.
    """

    mask: NDArray[np.bool_] | None = None
    areas: tuple[tuple[Points, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.areas) or (self.mask is not None and bool(self.mask.any()))

    def on(self, shape: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return a mask of the ignored tissue, of `shape` (h, w), for the whole section.

        Args:
            shape: (h, w) of the mask.
            size: (H, W) of the section's image.

        Raises:
            InputError: If the mask and the section's image differ in proportions.
        """
        _check_proportions(self.mask, size)
        from PIL import Image, ImageDraw

        found = np.zeros(shape, np.bool_) if self.mask is None else _nearest(self.mask, shape)
        scale = np.array(shape[::-1]) / size[::-1]
        for area in self.areas:
            picture = Image.new("1", shape[::-1])
            draw = ImageDraw.Draw(picture)
            for ring, value in zip(area, (1, *[0] * len(area)), strict=False):
                draw.polygon([(x, y) for x, y in (ring * scale - 0.5).tolist()], fill=value)
            found = found | np.asarray(picture)
        return found

    def fingerprint(self) -> str:
        """Return the SHA-256 of the mask and the areas."""
        return fingerprint_of(self.mask, *(ring for area in self.areas for ring in area))


def _check_proportions(mask: NDArray[np.bool_] | None, size: tuple[int, int]) -> None:
    if mask is None:
        return
    (height, width), (own_height, own_width) = size, mask.shape
    rounding = 1.5 / min(mask.shape)
    if abs(height / own_height * own_width / width - 1) > rounding:
        raise InputError(
            f"ignored: expected a mask with the proportions of the section's image, {height}×{width} px, found "
            f"{own_height}×{own_width} px"
        )


def _nearest(mask: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask of the whole section at another resolution."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(shape, mask.shape, strict=True)
    )
    return np.asarray(mask[np.ix_(rows, columns)])


NOTHING = Ignored()
"""No ignored tissue."""
