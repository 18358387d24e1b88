"""Definitions shared by the readers of image files."""

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError

log = logging.getLogger("atlalign.io.images")

PixelSize = tuple[float, float]
"""The size of one pixel along x and y, in µm."""
Background = Literal["auto", "bright", "dark"]
"""The brightness of the empty slide; auto detects it."""
Mask = NDArray[np.bool_]
"""Which pixels (h, w) of an image."""
Floats = NDArray[np.float64]
"""Numbers of any shape."""

_BAND_PX = 2**22  # this many pixels are converted at once


def check_index(what: str, index: int, count: int) -> None:
    """Check that an image has a channel, page or plane of this number.

    Raises:
        InputError: If it does not.
    """
    if not 0 <= index < count:
        raise InputError(f"expected a {what} in 0 … {count - 1}, got {index}")


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return an image (h, w, …) as viewers show it, by its EXIF or TIFF orientation; only 1 to 8 have an effect."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def is_turned(orientation: int) -> bool:
    """Return whether this orientation exchanges x and y."""
    return orientation in (5, 6, 7, 8)


def converted(
    array: NDArray[Any], convert: Callable[[NDArray[Any]], NDArray[Any]], channels: int
) -> NDArray[Any]:
    """Return an image (h, w, channels) of the same type, converted a few rows at a time."""
    result = np.empty((*array.shape[:2], channels), array.dtype)
    step = max(1, _BAND_PX // array.shape[1])
    for start in range(0, len(array), step):
        result[start : start + step] = convert(array[start : start + step])
    return result
