"""Writes TIFF files band by band: small ones in strips, which every program reads, large ones as tiled pyramids."""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.io.files import scratch_folder
from atlalign.io.pixel_sizes import SOFTWARE
from atlalign.io.pixels import PixelSize
from atlalign.io.scenes import Channel

LARGEST_FLAT_PX = 2048
"""The longest side of an image that is written without smaller copies; viewers open such an image at once."""

TILE_PX = 256
NOT_OME = ("int64", "uint64", "float16")
"""Data types that OME-TIFF does not support."""

_ENCODERS = 4  # this many tiles are compressed at a time

_Bands = Iterable[NDArray[Any]]


def write_tiff(
    path: Path,
    bands: _Bands,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    pixel_um: PixelSize,
    channels: Sequence[Channel] = (Channel(),),
    labels: bool = False,
) -> None:
    """Write an image band by band, with lossless compression and its pixel size.

    An image with several channels or a named one is written as OME-TIFF. An image with a side of more than
    `LARGEST_FLAT_PX` becomes a tiled OME-TIFF pyramid, in which each level has half the size of the previous one.

    Args:
        path: The file; a BigTIFF if it may exceed 4 GB. While a pyramid is written, its levels are stored beside it.
        bands: Consecutive rows, one channel after the other. All bands have the same height, except the last, which may
            be shorter.
        shape: (h, w) or (h, w, 3).
        dtype: The data type of the bands.
        pixel_um: The pixel size.
        channels: The meaning of each image (h, w); a colour image is one channel.
        labels: The pixels are labels: smaller copies take every second pixel instead of means.
    """
    import tifffile

    is_large = max(shape[:2]) > LARGEST_FLAT_PX
    is_described = len(channels) > 1 or any(channel.name or channel.color for channel in channels)
    is_ome = (is_large or is_described) and dtype.name not in NOT_OME
    options: dict[str, Any] = {
        "dtype": dtype,
        "compression": "zlib",
        "photometric": "rgb" if len(shape) == 3 else "minisblack",
        "resolutionunit": "CENTIMETER",
        "software": SOFTWARE,
    }
    first = {"metadata": _ome_metadata(shape, pixel_um, channels) if is_ome else None}
    size = len(channels) * math.prod(shape) * dtype.itemsize
    with tifffile.TiffWriter(path, bigtiff=size > 2**31, ome=is_ome or None) as file:
        if is_large:
            _write_pyramid(
                file, path, bands, (len(channels), *shape), pixel_um, options, first, labels=labels
            )
        else:
            _write_strips(file, bands, (len(channels), *shape), pixel_um, {**options, **first})


def _write_strips(
    file: Any, bands: _Bands, shape: tuple[int, ...], pixel_um: PixelSize, options: dict[str, Any]
) -> None:
    """Write an image (channels, h, w, …) in strips, because ITK reads tiles as four channels."""
    remaining = iter(bands)
    first = next(remaining)
    file.write(
        (_encoded(band) for band in chain([first], remaining)),
        shape=shape if shape[0] > 1 else shape[1:],
        rowsperstrip=len(first),
        resolution=_per_cm(pixel_um),
        **options,
    )


def _write_pyramid(
    file: Any,
    path: Path,
    bands: _Bands,
    shape: tuple[int, ...],
    pixel_um: PixelSize,
    options: dict[str, Any],
    first: dict[str, Any],
    *,
    labels: bool,
) -> None:
    """Write an image (channels, h, w, …) and its smaller copies, whose pixels are kept in temporary files."""
    shapes = _level_shapes(shape)
    x, y = pixel_um
    with scratch_folder(path) as folder:
        files = [folder / str(level) for level in range(len(shapes))]
        for level, own in enumerate(shapes):
            given = bands if level == 0 else _stored(files[level], own, options["dtype"])
            smaller = files[level + 1] if level + 1 < len(shapes) else None
            own_options = (
                {"subifds": len(shapes) - 1, **first} if level == 0 else {"subfiletype": 1, "metadata": None}
            )
            file.write(
                _tiles(_halved_into(smaller, _rows(given, own[1]), labels=labels)),
                shape=own if own[0] > 1 else own[1:],
                tile=(TILE_PX, TILE_PX),
                resolution=_per_cm((x * 2**level, y * 2**level)),
                **options,
                **own_options,
            )


def _stored(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """Yield the bands of a file of pixels (channels, h, w, …), and delete the file."""
    count, height, *row = shape
    with path.open("rb") as file:
        for _ in range(count):
            for top in range(0, height, TILE_PX):
                rows = min(TILE_PX, height - top)
                yield np.fromfile(file, dtype, rows * math.prod(row)).reshape(rows, *row)
    path.unlink()


def _level_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes (channels, h, w, …) of a pyramid; each level is half of the previous one, rounded up."""
    shapes = [shape]
    while max(shapes[-1][1:3]) > LARGEST_FLAT_PX // 4:
        count, height, width, *rest = shapes[-1]
        shapes.append((count, -(-height // 2), -(-width // 2), *rest))
    return shapes


def _rows(bands: _Bands, height: int) -> Iterator[NDArray[Any]]:
    """Yield bands of a tile's height, made from bands of any height; the last of each image may be shorter."""
    waiting: list[NDArray[Any]] = []
    top = held = 0
    for band in bands:
        while len(band):
            wanted = min(TILE_PX, height - top)
            waiting.append(band[: wanted - held])
            band, held = band[wanted - held :], held + len(waiting[-1])
            if held == wanted:
                yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                top, held, waiting = (top + wanted) % height, 0, []


def _halved_into(
    smaller: Path | None, bands: Iterable[NDArray[Any]], *, labels: bool
) -> Iterator[NDArray[Any]]:
    """Yield bands, and append each at half its size to a file, if one is given."""
    if smaller is None:
        yield from bands
        return
    with smaller.open("wb", buffering=0) as file:  # TiffWriter may not read to the end
        for band in bands:
            file.write((band[::2, ::2] if labels else _half(band)).tobytes())
            yield band


def _half(band: NDArray[Any]) -> NDArray[Any]:
    """Return the means of 2×2 pixels; a last row or column without a partner counts twice."""
    odd = [(0, size % 2) for size in band.shape[:2]] + [(0, 0)] * (band.ndim - 2)
    whole = np.pad(band, odd, mode="edge") if any(size % 2 for size in band.shape[:2]) else band
    wide = np.float64 if whole.dtype.itemsize > 2 else np.float32
    total: Any = whole[::2, ::2].astype(wide)
    for rows, columns in ((0, 1), (1, 0), (1, 1)):
        total += whole[rows::2, columns::2]
    total /= 4
    return np.asarray((total.round() if band.dtype.kind in "ui" else total).astype(band.dtype))


def _tiles(bands: Iterable[NDArray[Any]]) -> Iterator[bytes]:
    """Yield the compressed tiles of bands, row by row; tiles at the lower and right edges are padded with 0."""
    with ThreadPoolExecutor(_ENCODERS) as pool:
        for band in bands:
            lefts = range(0, band.shape[1], TILE_PX)
            yield from pool.map(_encoded, [_tile(band[:, left : left + TILE_PX]) for left in lefts])


def _tile(part: NDArray[Any]) -> NDArray[Any]:
    if part.shape[:2] == (TILE_PX, TILE_PX):
        return part
    tile = np.zeros((TILE_PX, TILE_PX, *part.shape[2:]), part.dtype)
    tile[: part.shape[0], : part.shape[1]] = part
    return tile


def _encoded(pixels: NDArray[Any]) -> bytes:
    from imagecodecs import deflate_encode  # takes half the time of zlib

    return bytes(deflate_encode(pixels.tobytes()))


def _per_cm(pixel_um: PixelSize) -> tuple[float, float]:
    return 1e4 / pixel_um[0], 1e4 / pixel_um[1]


def _ome_metadata(shape: tuple[int, ...], pixel_um: PixelSize, channels: Sequence[Channel]) -> dict[str, Any]:
    x, y = pixel_um
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    axes = ("C" if len(channels) > 1 else "") + "YXS"[: len(shape)]
    described = _channel_metadata(channels)
    return {"axes": axes, "PhysicalSizeX": x, "PhysicalSizeY": y, **units, **described}


def _channel_metadata(channels: Sequence[Channel]) -> dict[str, Any]:
    """Return names and colours in OME's form; empty if no channel has either."""
    said: dict[str, Any] = {}
    if any(channel.name for channel in channels):
        said["Name"] = [channel.name for channel in channels]
    if all(channel.color is not None for channel in channels):
        said["Color"] = [_ome_color(channel.color) for channel in channels if channel.color is not None]
    return {"Channel": said} if said else {}


def _ome_color(color: tuple[int, int, int]) -> int:
    """Return red, green, blue and full opacity as one signed 32-bit number."""
    return int(struct.unpack(">i", bytes((*color, 255)))[0])
