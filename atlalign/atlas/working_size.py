"""A template and region ids at the working size, read in blocks of planes."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.ids import checked_ids
from atlalign.atlas.volumes import PLANES_AT_ONCE, Volume
from atlalign.errors import InputError
from atlalign.io.images import resize_images

_BRIGHT = 0.001  # The share of tissue above white.


def load_template(volume: Volume, shape: tuple[int, int]) -> tuple[Tensor, float]:
    """Return the template as uint8 (P, *shape) and its intensity scale, reading each plane once."""
    brightness = _Brightness(int(np.prod(volume.array.shape)))
    is_own_shape = volume.array.shape[1:] == shape
    # Keep the file's own type until the scale is known: as floats, a large atlas would need four times the memory.
    resized = np.empty((volume.array.shape[0], *shape), volume.array.dtype if is_own_shape else np.float32)
    for planes, block in volume.blocks():
        _check_intensities(block, planes.start, volume.source)
        brightness.add(block)
        resized[planes] = block if is_own_shape else resize_images(_floats(block), shape)
    if brightness.lowest == brightness.highest:
        raise InputError(f"{volume.source}: expected an image, but every voxel is {brightness.lowest:g}")
    scale = 255.0 if volume.array.dtype == np.uint8 else brightness.white
    grey = torch.empty(resized.shape, dtype=torch.uint8)
    for start in range(0, len(grey), PLANES_AT_ONCE):
        planes = slice(start, start + PLANES_AT_ONCE)
        grey[planes] = _floats(resized[planes]).mul_(255 / scale).clamp_(max=255).round_()
    return grey, scale


def _floats(block: NDArray[Any]) -> Tensor:
    return torch.from_numpy(block.astype(np.float32))


class _Brightness:
    """The extremes of a volume and the 99.9th percentile of its voxels above 0, in one pass over blocks.

    It keeps only the brightest voxels that can determine the percentile, which is exact for any data type.
    """

    def __init__(self, voxels: int) -> None:
        self.lowest, self.highest = math.inf, -math.inf
        self._tissue = 0
        self._keep = int(_BRIGHT * voxels) + 2
        self._top: NDArray[Any] = np.empty(0, np.uint8)

    def add(self, block: NDArray[Any]) -> None:
        self.lowest = min(self.lowest, float(block.min()))
        self.highest = max(self.highest, float(block.max()))
        self._tissue += int(np.count_nonzero(block))
        floor = self._top[0] if len(self._top) == self._keep else 0
        top = np.sort(np.concatenate([self._top, block[block > floor]]))
        self._top = top[-self._keep :]

    @property
    def white(self) -> float:
        """The percentile, interpolated linearly between ranks, as in numpy."""
        rank_from_top = _BRIGHT * (self._tissue - 1)
        return float(np.interp(rank_from_top, np.arange(len(self._top)), self._top[::-1]))


def _check_intensities(block: NDArray[Any], first_plane: int, source: str) -> None:
    # Comparisons with NaN are false.
    if block.min() >= 0 and block.max() < np.inf:
        return
    bad = ~((block >= 0) & (block < np.inf))
    plane = first_plane + int(bad.any(axis=(1, 2)).argmax())
    raise InputError(
        f"{source}: expected finite intensities of at least 0, found {block[bad][0]} "
        f"and {bad.sum() - 1} more from plane {plane} on"
    )


def load_annotation(volume: Volume, shape: tuple[int, int]) -> Tensor:
    """Return the ids (P, *shape) of the nearest voxels, with aligned corners."""
    planes, height, width = volume.array.shape
    rows, columns = _nearest(height, shape[0]), _nearest(width, shape[1])
    ids = np.empty((planes, *shape), volume.array.dtype if volume.array.dtype.kind in "ui" else np.int64)
    for part, block in volume.blocks():
        checked = checked_ids(block, f"{volume.source}, planes from {part.start} on")
        ids[part] = checked if (height, width) == shape else checked.take(rows, axis=1).take(columns, axis=2)
    return torch.from_numpy(_signed(ids))


def _nearest(size: int, new_size: int) -> NDArray[np.intp]:
    return np.rint(np.arange(new_size) * (size - 1) / (new_size - 1)).astype(np.intp)


def _signed(ids: NDArray[Any]) -> NDArray[Any]:
    """Return ids ≥ 0 as int32 if all fit, else as int64; uint32 is reinterpreted, not copied."""
    fits = ids.max() < 2**31
    if fits and ids.dtype == np.uint32:
        return ids.view(np.int32)
    return ids.astype(np.int32 if fits else np.int64, copy=False)
