"""Images warped in bands of rows, so that memory holds only the original and one band."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.geometry import sample
from atlalign.io.views import Pixels
from atlalign.registration.displacement import Displacement
from atlalign.registration.grid import Grid

_TILE_PX = 256


def warp_in_bands(
    image: Pixels,
    source: Grid,
    displacement: Displacement,
    target: Grid,
    *,
    nearest: bool = False,
    fill: Any = 0,
) -> Iterator[NDArray[Any]]:
    """Yield a warped image in bands of rows, so that memory holds only the original and one band.

    Up to half a pixel outside the image, its border is repeated, as in ITK; further out, pixels are `fill`.

    Args:
        image: (h, w) or (h, w, c), of any data type; must be an array if `nearest` is true.
        source: The grid of the image.
        displacement: The map from the target's frame to the image's frame.
        target: The grid of the warped image.
        nearest: Use nearest-neighbour instead of linear interpolation.
        fill: The value outside the image, or one value per channel.
    """
    take: Callable[[Any, Tensor, Any], NDArray[Any]] = take_nearest if nearest else _interpolate
    for tiles in tiles_in_bands(source, displacement, target):
        yield np.concatenate([take(image, tile, fill) for tile in tiles], axis=1)


def tiles_in_bands(source: Grid, displacement: Displacement, target: Grid) -> Iterator[Iterator[Tensor]]:
    """Yield bands of tiles; each tile (2, h, w) holds the positions of its pixels in the source image, in pixels."""
    height, width = target.shape
    source_mm = torch.tensor(source.pixel_um, dtype=torch.float64).view(2, 1, 1) / 1000
    shift = displacement.mm.double() / source_mm  # once, not for every tile
    for top in range(0, height, _TILE_PX):
        rows = torch.arange(top, min(top + _TILE_PX, height))
        # A tile needs only a small part of the image, however the section is turned.
        tiles = (torch.arange(left, min(left + _TILE_PX, width)) for left in range(0, width, _TILE_PX))
        yield (
            _sources(
                _axes(target, displacement.grid, rows, columns), shift, _axes(target, source, rows, columns)
            )
            for columns in tiles
        )


def _axes(target: Grid, grid: Grid, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (1, w) and y (h, 1) of a tile of the target, in pixels of another grid."""
    x, y = (own / other for own, other in zip(target.pixel_um, grid.pixel_um, strict=True))
    left, top = (
        1000 * (own - other) / size
        for own, other, size in zip(target.origin_mm, grid.origin_mm, grid.pixel_um, strict=True)
    )
    return columns.double()[None] * x + left, rows.double()[:, None] * y + top


def _sources(in_shift: tuple[Tensor, Tensor], shift: Tensor, in_source: tuple[Tensor, Tensor]) -> Tensor:
    """Return the positions of a tile's pixels in the source image, (2, h, w), in pixels, x first.

    x and y are separate planes, because arithmetic along a last axis of length two takes twice as long.

    Args:
        in_shift: x and y of the tile in pixels of the shift.
        shift: (2, H, W), in pixels of the source.
        in_source: x and y of the tile in pixels of the source.
    """
    x, y = in_shift
    moved = _sampled(shift, torch.stack([x.expand(len(y), -1), y.expand(-1, x.shape[1])]))
    for plane, axis in zip(moved, in_source, strict=True):
        plane += axis
    return moved


def _sampled(planes: Tensor, points: Tensor) -> Tensor:
    """Return the values (c, h, w) of planes (c, H, W) at points (2, h, w); the border is repeated outside."""
    return sample(planes[None], points.permute(1, 2, 0)[None], padding_mode="border")[0]


def _interpolate(image: Pixels, points: Tensor, fill: Any) -> NDArray[Any]:
    crop, origin = _crop(image, points)
    channels = crop.reshape(*crop.shape[:2], -1)
    values = torch.from_numpy(channels.astype(np.float32)).permute(2, 0, 1)
    sampled = _sampled(values, (points - origin).float()).permute(1, 2, 0).numpy()
    if image.dtype.kind in "ui":
        sampled = sampled.round()
    tile = sampled.astype(image.dtype).reshape(*points.shape[1:], *image.shape[2:])
    tile[~_inside(image, points)] = fill
    return tile


def take_nearest(image: NDArray[Any], points: Tensor, fill: Any) -> NDArray[Any]:
    """Return the values (h, w) of the pixels nearest to points (2, h, w); `fill` outside the image."""
    height, width = image.shape[:2]
    x, y = (points + 0.5).floor().long().numpy()
    tile: NDArray[Any] = image[y.clip(0, height - 1), x.clip(0, width - 1)]
    tile[~_inside(image, points)] = fill
    return tile


def _inside(image: Pixels, points: Tensor) -> NDArray[np.bool_]:
    height, width = image.shape[:2]
    x, y = points.numpy()
    inside: NDArray[np.bool_] = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    return inside


def _crop(image: Pixels, points: Tensor) -> tuple[NDArray[Any], Tensor]:
    """Return the part of the image around points (2, h, w), and the position (2, 1, 1) of its first pixel."""
    limit = torch.tensor([image.shape[1], image.shape[0]])
    first = torch.minimum(points.amin(dim=(1, 2)).floor().long().clamp(min=0), limit - 2)
    last = torch.maximum(points.amax(dim=(1, 2)).ceil().long(), first + 1)
    (left, top), (right, bottom) = first.tolist(), last.tolist()
    return image[top : bottom + 1, left : right + 1], first.view(2, 1, 1)
