"""TIFF files, written band by band."""

import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.io.pixel_sizes import SOFTWARE
from atlalign.io.pixels import PixelSize


def write_tiff(
    path: Path,
    bands: Iterable[NDArray[Any]],
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    pixel_um: PixelSize,
    channels: int = 1,
) -> None:
    """Write an image band by band, compressed without loss, with its pixel size.

    Args:
        path: The file; BigTIFF where it may exceed 4 GB.
        bands: Of consecutive rows, all of one height but the last, which may be lower; one channel after the other.
        shape: (h, w) or (h, w, 3).
        dtype: Of the bands.
        pixel_um: The size of a pixel.
        channels: So many images (h, w) make an OME-TIFF of as many channels.
    """
    import tifffile
    from imagecodecs import deflate_encode  # in half of zlib's time

    remaining = iter(bands)
    first = next(remaining)
    # In strips and not in tiles, of which ITK makes four channels.
    strips = (bytes(deflate_encode(band.tobytes())) for band in chain([first], remaining))
    size = channels * math.prod(shape) * dtype.itemsize
    is_ome = channels > 1
    with tifffile.TiffWriter(path, bigtiff=size > 2**31, ome=is_ome or None) as file:
        file.write(
            strips,
            shape=(channels, *shape) if is_ome else shape,
            dtype=dtype,
            rowsperstrip=len(first),
            compression="zlib",
            photometric="rgb" if len(shape) == 3 else "minisblack",
            resolution=(1e4 / pixel_um[0], 1e4 / pixel_um[1]),
            resolutionunit="CENTIMETER",
            software=SOFTWARE,
            metadata=_ome_metadata(pixel_um) if is_ome else None,
        )


def _ome_metadata(pixel_um: PixelSize) -> dict[str, Any]:
    x, y = pixel_um
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    return {"axes": "CYX", "PhysicalSizeX": x, "PhysicalSizeY": y, **units}
