"""The colours and intensities that the samples of a TIFF page stand for."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.pixels import converted

_UNREAD = ("CFA", "CIELAB", "ICCLAB", "ITULAB", "LOGL", "LOGLUV")  # colour spaces that are not converted
_OPACITIES = (1, 2)  # ASSOCALPHA, UNASSALPHA among the extra samples
_APERIO_YCBCR = 33003
DECODED_TO_RGB = (6, 7, 22610, 33007, 34892, 34933, 34934, 48124, 50001, 52546)
"""JPEG and related compressions, whose decoders return RGB."""

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

_Convert = Callable[[NDArray[Any]], NDArray[Any]]


class Samples(NamedTuple):
    """The conversion of a page's samples.

    Attributes:
        channels: The number of values per pixel after conversion.
        is_color: Whether the first three of them are red, green and blue.
        dtype: Their type.
        convert: Converts any part of the page, (h, w) or (h, w, samples), to (h, w) or (h, w, channels).
        is_local: Whether a part can be converted without the rest of the page.
    """

    channels: int
    is_color: bool
    dtype: np.dtype[Any]
    convert: _Convert
    is_local: bool = True


def kind_of(page: Any) -> str:
    """Return the name of a page's colour space."""
    return str(page.photometric.name) if page.photometric is not None else ""


def samples_of(page: Any, *, labels: bool) -> Samples:
    """Return the conversion of a page's samples to intensities or colours, or with `labels` to the numbers in the file.

    Raises:
        InputError: If its colour space is not supported.
    """
    kind, dtype = kind_of(page), page.dtype
    opacities = sum(sample in _OPACITIES for sample in page.extrasamples)
    count = max(1, (page.samplesperpixel if "S" in page.axes else 1) - opacities)
    opaque = partial(_without_opacity, count=count)
    if labels:
        stored = _stored_type(dtype)
        return Samples(count, False, stored, lambda array: opaque(array).astype(stored, copy=False))
    if kind in _UNREAD:
        raise InputError(
            f"expected grey or RGB, found {kind}, which is not supported: convert the image to RGB"
        )
    if kind == "PALETTE" and count == 1 and page.colormap is not None:
        return Samples(3, True, np.dtype(np.uint8), lambda array: _coloured(opaque(array), page.colormap))
    if count > 1:
        return _several(page, kind, count, opaque)
    grey = _stored_type(dtype)
    is_inverted = kind == "MINISWHITE"
    return Samples(
        1,
        False,
        grey,
        lambda array: _grey(opaque(array), page, is_inverted=is_inverted),
        is_local=not is_inverted or grey.kind == "u",
    )


def _several(page: Any, kind: str, count: int, opaque: _Convert) -> Samples:
    """Return the conversion of several samples, to RGB if they are colours in another space."""
    is_ycbcr = kind == "YCBCR" and page.compression not in DECODED_TO_RGB
    if (is_ycbcr or page.compression == _APERIO_YCBCR) and count == 3:
        from_ycbcr = _from_ycbcr(page)
        return Samples(3, True, page.dtype, lambda array: converted(opaque(array), from_ycbcr, 3))
    if kind == "SEPARATED" and count >= 4:
        return Samples(3, True, page.dtype, lambda array: converted(opaque(array), _from_cmyk, 3))
    return Samples(count, kind in ("RGB", "YCBCR") and count in (3, 4), page.dtype, opaque)


def _stored_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that holds the values of a page; single bits become bytes."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype


def _without_opacity(array: NDArray[Any], count: int) -> NDArray[Any]:
    if array.ndim == 2:
        return array
    return array[..., 0] if count == 1 else array[..., :count]


def _coloured(array: NDArray[Any], colormap: NDArray[Any]) -> NDArray[Any]:
    """Return the 8-bit colours of palette indices; some programs store the palette itself in 8 bits."""
    colours = colormap if colormap.max() < 256 else colormap >> 8
    if array.max() >= colours.shape[1]:
        raise InputError(f"expected palette indices below {colours.shape[1]}, found {array.max()}")
    palette = np.ascontiguousarray(colours.T.astype(np.uint8))
    return converted(array, lambda rows: palette[rows], 3).astype(np.uint8)


def _grey(array: NDArray[Any], page: Any, *, is_inverted: bool) -> NDArray[Any]:
    """Return intensities that increase with brightness; those of less than 8 bits are scaled to 8 bits."""
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint8 and page.bitspersample < 8:
        array = array * np.uint8(255 // (2**page.bitspersample - 1))
    if not is_inverted:
        return array
    if array.dtype.kind == "u":
        depth = page.bitspersample if page.bitspersample > 8 else 8
        return np.asarray(array.dtype.type(2**depth - 1) - array)
    # These data types do not define white, so the image keeps its range. A sum that overflows wraps back into it.
    return np.asarray(array.max(keepdims=True) - array + array.min(keepdims=True))


def _from_cmyk(rows: NDArray[Any]) -> NDArray[Any]:
    largest = float(np.iinfo(rows.dtype).max)
    ink = rows[..., :4].astype(np.float32) / largest
    return np.asarray(((1 - ink[..., :3]) * (1 - ink[..., 3:]) * largest).round().astype(rows.dtype))


def _from_ycbcr(page: Any) -> _Convert:
    """Return the conversion to RGB by the coefficients and the range in the file, or those of BT.601 at full range."""
    largest = float(np.iinfo(page.dtype).max)
    red, green, blue = _fractions(page.tags.valueof(529)) or _LUMA
    middle = (largest + 1) / 2
    black = _fractions(page.tags.valueof(532)) or [0, largest, middle, largest, middle, largest]

    def convert(rows: NDArray[Any]) -> NDArray[Any]:
        y, cb, cr = np.moveaxis(rows.astype(np.float32), 2, 0)
        y = (y - black[0]) * largest / (black[1] - black[0])
        cb = (cb - black[2]) * (largest - middle) / (black[3] - black[2])
        cr = (cr - black[4]) * (largest - middle) / (black[5] - black[4])
        r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
        g = (y - red * r - blue * b) / green
        return np.asarray(np.stack([r, g, b], axis=2).round().clip(0, largest).astype(rows.dtype))

    return convert


def _fractions(value: Any) -> list[float] | None:
    """Return the values of a tag of fractions, which tifffile returns as pairs."""
    if value is None:
        return None
    pairs = np.reshape(value, (-1, 2))
    return [float(a) / float(b) for a, b in pairs] if len(pairs) in (3, 6) else None
