"""The pixels of an image in its own frame: pixel (0, 0) lies at the origin, x along columns, y along rows, in mm."""

from typing import NamedTuple

import numpy as np

from atlalign.atlas.planes import Points
from atlalign.io.pixels import PixelSize


class Grid(NamedTuple):
    """The pixels of an image in its own frame.

    Attributes:
        shape: (H, W).
        pixel_um: The distance between pixels along x and y.
        origin_mm: The centre of pixel (0, 0) in the frame; it differs from 0 for a smaller copy of the frame's own
            image.
    """

    shape: tuple[int, int]
    pixel_um: PixelSize
    origin_mm: tuple[float, float] = (0.0, 0.0)

    def to_mm(self, pixels: Points) -> Points:
        """Convert points (N, 2) from pixels (x, y) to mm."""
        return pixels * (np.array(self.pixel_um) / 1000) + self.origin_mm

    def to_pixels(self, points_mm: Points) -> Points:
        """Convert points (N, 2) from mm to pixels (x, y)."""
        return (points_mm - self.origin_mm) / (np.array(self.pixel_um) / 1000)

    def scaled(self, scale: tuple[float, float], shape: tuple[int, int]) -> "Grid":
        """Return a grid of larger pixels; its left and top outer edges coincide with those of this grid.

        Args:
            scale: The number of this grid's pixels that one of the new pixels covers, along x and y.
            shape: The shape of the new grid.
        """
        x, y = (size * by for size, by in zip(self.pixel_um, scale, strict=True))
        left, top = (
            origin + (new - old) / 2000
            for origin, new, old in zip(self.origin_mm, (x, y), self.pixel_um, strict=True)
        )
        return Grid(shape, (x, y), (left, top))

    def resampled(self, shape: tuple[int, int]) -> "Grid":
        """Return the grid of another shape whose outer edges are the same."""
        return self.scaled((self.shape[1] / shape[1], self.shape[0] / shape[0]), shape)

    def with_shape(self, shape: tuple[int, int]) -> "Grid":
        """Return a grid of another shape with the same outermost pixels."""
        sizes = zip(self.pixel_um, self.shape[::-1], shape[::-1], strict=True)
        x, y = (size * (old - 1) / (new - 1) for size, old, new in sizes)
        return Grid(shape, (x, y), self.origin_mm)

    def finer(self, pixel_um: float) -> "Grid":
        """Return a grid with the same outermost pixels and a distance of about `pixel_um` between pixels."""
        height, width = (
            max(2, round((n - 1) * size / pixel_um) + 1)
            for n, size in zip(self.shape, self.pixel_um[::-1], strict=True)
        )
        return self.with_shape((height, width))
