"""A scene at the resolution that a task needs: read from the smallest sufficient level, in parts if it is large."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from atlalign.io.scenes import Scene, Shape

_IN_MEMORY_PX = 2**26
"""Levels of at most this size are read at once; larger ones are averaged or read band by band."""

_BAND_PX = 2**23
_ROUNDING = 1e-4  # pixel sizes in files have only this many digits


class Pixels(Protocol):
    """An image (h, w) or (h, w, 3) that can be sliced: an array, or one that is read from a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, as of an array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype, as of an array."""

    def __getitem__(self, part: tuple[slice, slice], /) -> NDArray[Any]:
        """Return the pixels of some rows and columns."""


class Overview(NamedTuple):
    """A scene of one channel in memory; see `View`."""

    pixels: NDArray[Any]
    scale: tuple[float, float]


class View(NamedTuple):
    """A scene of one channel at another resolution.

    Attributes:
        pixels: (h, w) or (h, w, 3).
        scale: The number of scene pixels that one of these pixels covers along x and y. The outer edges at the left and
            the top coincide: pixel k lies at `scale·(k + ½) − ½`.
    """

    pixels: Pixels
    scale: tuple[float, float]


class _Averaged:
    """The means of blocks of `factor`² pixels of one level, read on access."""

    def __init__(self, scene: Scene, level: int, factor: int) -> None:
        self._scene, self._level, self._factor = scene, level, factor
        height, width = (size // factor for size in scene.levels[level])
        self.shape: tuple[int, ...] = (height, width, 3) if scene.is_color else (height, width)
        self.dtype = scene.dtype

    def __getitem__(self, part: tuple[slice, slice], /) -> NDArray[Any]:
        (top, bottom, _), (left, right, _) = (
            by.indices(size) for by, size in zip(part, self.shape, strict=False)
        )
        k = self._factor
        pixels = self._scene.read(
            self._level, slice(top * k, max(top, bottom) * k), slice(left * k, max(left, right) * k)
        )
        return _block_means(pixels, k) if k > 1 else pixels

    def loaded(self) -> NDArray[Any]:
        """Return all pixels, read band by band."""
        pixels = np.empty(self.shape, self.dtype)
        step = max(1, _BAND_PX // (self.shape[1] * self._factor**2))
        for top in range(0, self.shape[0], step):
            pixels[top : top + step] = self[top : top + step, :]
        return pixels


def overview(scene: Scene, least: Shape) -> Overview:
    """Return a scene in memory; a large scene is read at little more than the required size.

    Args:
        scene: One channel.
        least: The minimum (h, w) of the result, unless the scene is smaller.
    """
    fitting = [k for k, shape in enumerate(scene.levels) if shape[0] >= least[0] and shape[1] >= least[1]]
    level = max(fitting, default=0)
    height, width = scene.levels[level]
    factor = 1
    if height * width > _IN_MEMORY_PX:
        factor = max(1, min(height // least[0], width // least[1]))
    x, y = scene.scale(level)
    return Overview(_Averaged(scene, level, factor).loaded(), (x * factor, y * factor))


def at_scale(scene: Scene, scale: float) -> View:
    """Return a scene at a resolution at which each pixel covers at most `scale` of its pixels.

    Each covers more than half as many unless the image is small. Large scenes are read on access.
    """
    scale *= 1 + _ROUNDING
    level = scene.level_at(scale)
    x, y = scene.scale(level)
    factor = max(1, int(scale / max(x, y)))
    pixels = _Averaged(scene, level, factor)
    is_small = pixels.shape[0] * pixels.shape[1] <= _IN_MEMORY_PX
    return View(pixels.loaded() if is_small else pixels, (x * factor, y * factor))


def _block_means(pixels: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return the means of blocks of `factor`² pixels, in the same type; integers are rounded."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: height * factor, : width * factor].reshape(
        height, factor, width, factor, *pixels.shape[2:]
    )
    wide = np.float64 if pixels.dtype.itemsize > 2 else np.float32
    means: NDArray[Any] = blocks.mean(axis=(1, 3), dtype=wide)
    return (means.round() if pixels.dtype.kind in "ui" else means).astype(pixels.dtype)
