"""Cuts a section out of a slide at full resolution, tile by tile, and writes it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from atlalign.geometry import sample
from atlalign.io.files import written_whole
from atlalign.io.pixels import PixelSize
from atlalign.io.scenes import Scene, Shape
from atlalign.io.tiff_writer import write_tiff
from atlalign.sections.outlines import Outline, filled
from atlalign.sections.section import Frame

_BAND_PX, _TILE_PX = 512, 1024  # of the image: rows and columns that are computed at once


def write_section(
    path: Path,
    scene: Scene,
    frame: Frame,
    others: Sequence[Outline],
    ground: NDArray[Any],
    pixel_um: PixelSize,
) -> None:
    """Write the image of a section with all channels, atomically.

    Args:
        path: The file.
        scene: The scene of the slide; of a z-stack, one plane.
        frame: The pixels of the image.
        others: The outlines of other sections, which are painted over.
        ground: The value or colour of the slide in each channel, used for painting over and beyond the slide's border.
        pixel_um: The slide's pixel size.
    """
    outlines = [tuple(frame.to_image(ring) for ring in outline) for outline in others]
    bands = (
        band
        for channel in range(len(scene.channels))
        for band in _bands(scene, channel, frame, outlines, ground[channel])
    )
    shape = (*frame.shape, 3) if scene.is_color else frame.shape
    x, y = pixel_um
    across = np.hypot(*(frame.matrix[:, :2] * np.array([[x], [y]])))  # a turn by 90° exchanges them
    with written_whole(path) as unfinished:
        write_tiff(
            unfinished,
            bands,
            shape=shape,
            dtype=scene.dtype,
            pixel_um=(float(across[0]), float(across[1])),
            channels=scene.channels,
        )


def _bands(
    scene: Scene, channel: int, frame: Frame, others: Sequence[Outline], ground: Any
) -> Iterator[NDArray[Any]]:
    height, width = frame.shape
    for top in range(0, height, _BAND_PX):
        rows = range(top, min(top + _BAND_PX, height))
        tiles = [range(left, min(left + _TILE_PX, width)) for left in range(0, width, _TILE_PX)]
        yield np.concatenate(
            [_tile(scene, channel, frame, rows, tile, others, ground) for tile in tiles], axis=1
        )


def _tile(
    scene: Scene,
    channel: int,
    frame: Frame,
    rows: range,
    columns: range,
    others: Sequence[Outline],
    ground: Any,
) -> NDArray[Any]:
    """Return a part (h, w) or (h, w, 3) of the image."""
    size = np.array(scene.shape[::-1])
    shape = (len(rows), len(columns))
    start = frame.matrix @ (columns.start, rows.start, 1.0)  # on the slide
    far = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * (shape[1] - 1, shape[0] - 1)
    corners = start + far @ frame.matrix[:, :2].T
    left, top = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)) + 1, size).astype(int)
    tile = np.empty((*shape, *((3,) if scene.is_color else ())), scene.dtype)
    tile[:] = ground
    if right - left >= 2 and bottom - top >= 2:
        pixels = scene.read(0, slice(top, bottom), slice(left, right), channel=channel)
        points = _points(shape, frame.matrix[:, :2], start - (left, top))
        found = _exact(pixels, points) if frame.is_exact else _interpolated(pixels, points)
        if ((corners >= 0) & (corners <= size - 1)).all():
            tile = found
        else:
            inside = ((points > -0.5 - np.array([left, top])) & (points < size - 0.5 - (left, top))).all(
                axis=-1
            )
            tile[inside] = found[inside]
    corner = (columns.start, rows.start)
    for outline in others:
        covered = filled([ring - corner for ring in outline], shape)
        if covered.any():
            tile[covered] = ground
    return tile


def _points(shape: Shape, linear: NDArray[np.float64], start: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the points (h, w, 2) as (x, y) to which a linear map and a shift move the pixels of a tile."""
    y, x = np.arange(shape[0])[:, None], np.arange(shape[1])[None, :]
    points = np.empty((*shape, 2), np.float32)
    for axis in range(2):
        points[..., axis] = linear[axis, 0] * x + linear[axis, 1] * y + start[axis]
    return points


def _exact(pixels: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    columns, rows = np.moveaxis(np.round(points).astype(int), -1, 0)
    exact: NDArray[Any] = pixels[rows.clip(0, len(pixels) - 1), columns.clip(0, pixels.shape[1] - 1)]
    return exact


def _interpolated(pixels: NDArray[Any], points: NDArray[Any]) -> NDArray[Any]:
    """Return the values (h, w, …) at points (h, w, 2) as (x, y), in the data type of the pixels."""
    planes = np.moveaxis(pixels[..., None] if pixels.ndim == 2 else pixels, -1, 0)
    tensor = torch.from_numpy(np.ascontiguousarray(planes, np.float32))[None]
    values = sample(tensor, torch.from_numpy(points[None]), padding_mode="border")[0]
    result = values.permute(1, 2, 0).numpy()
    result = result if pixels.dtype.kind == "f" else np.round(result)
    result = result.astype(pixels.dtype)
    return result[..., 0] if pixels.ndim == 2 else result
