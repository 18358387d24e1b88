"""Writes TIFF files band by band."""

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
    """Write an image band by band, with lossless compression and its pixel size.

    Args:
        path: The file; a BigTIFF if it may exceed 4 GB.
        bands: Consecutive rows, one channel after the other. All bands have the same height; the last may be lower.
        shape: (h, w) or (h, w, 3).
        dtype: The data type of the bands.
        pixel_um: The size of a pixel.
        channels: The number of images (h, w); more than one are written as the channels of an OME-TIFF.
    """
    import tifffile
    from imagecodecs import deflate_encode  # takes half the time of zlib

    remaining = iter(bands)
    first = next(remaining)
    # Strips, because ITK reads tiles as four channels.
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
