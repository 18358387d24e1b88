"""Reads one image of a TIFF file of any program: slides, stacks, palettes and all colour spaces."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError, check_size
from atlalign.io.jpeg import check_jpeg_tiles
from atlalign.io.pixel_sizes import tiff_pixel_size
from atlalign.io.pixels import Choice, Pixels, check_index, converted, is_turned, log, one_channel, upright

# tifffile's warnings about damaged files are silent by default, because this module checks the files itself.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFF files; the last two are BigTIFF."""

_SIDE_IMAGES = ("label", "macro", "thumbnail", "map", "label image", "macro image", "overview")
"""Names of a slide's secondary images, which are skipped without a warning."""

_NO_COLOURS = (
    "CFA",
    "CIELAB",
    "ICCLAB",
    "ITULAB",
    "LOGL",
    "LOGLUV",
)  # colour spaces that are not converted
_DECODED_TO_RGB = (
    6,
    7,
    22610,
    33007,
    34892,
    34933,
    34934,
    48124,
    50001,
    52546,
)  # JPEG and related compressions, whose decoders return RGB
_JPEG = 7
_APERIO_YCBCR = 33003
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class _Planes(NamedTuple):
    """The part of a file that is read.

    Attributes:
        pages: The pages to read, one for each channel.
        image: The number of the image in the file; None for a chosen page that is not of an image's full size.
        are_channels: Whether the file stores each channel on its own page; the pages are then those chosen.
        has_samples_as_channels: Whether the samples of a pixel are channels, even if the page calls them colours.
    """

    pages: Sequence[Any]
    image: int | None
    are_channels: bool = False
    has_samples_as_channels: bool = False


def read_tiff(path: Path, choice: Choice) -> Pixels:
    """Return one image of a TIFF file, the largest if there are several.

    Raises:
        InputError: If the chosen part does not exist, or the file ends early or is too large.
    """
    import tifffile

    with tifffile.TiffFile(path, is_ndpi=_may_be_ndpi(path) or None) as file:
        _check_chain(file)
        planes = _selected(file, choice, path.name)
        for plane in planes.pages:
            _check_page(plane)
        page = planes.pages[0].keyframe
        check_size(path.name, (len(planes.pages), *page.shape), page.dtype.itemsize)
        array, is_color = _decoded(planes, choice)
        orientation = int(page.tags.valueof(274, 1))
        size = tiff_pixel_size(file, page, path, planes.image)
    if size is not None and is_turned(orientation):
        size = size[::-1]
    return Pixels(upright(array, orientation), is_color, size)


def _may_be_ndpi(path: Path) -> bool:
    """Return whether a file named .ndpi can be one of Hamamatsu's, whose offsets have 64 bits."""
    with path.open("rb") as file:
        first_page = int.from_bytes(file.read(12)[4:], "little")
    return path.suffix.lower() == ".ndpi" and first_page < path.stat().st_size


# --- which pages ------------------------------------------------------------------------------------------------------


def _selected(file: Any, choice: Choice, name: str) -> _Planes:
    series = _largest(file, name, warns=choice.page is None)
    if choice.page is not None:
        return _page(file, series, choice.page)
    axes, shape, samples = _stack_axes(series)
    taken = np.arange(math.prod(shape)).reshape(shape)
    for axis, count in reversed(list(zip(axes, shape, strict=True))):
        index = _index(axis, count, choice)
        if index is not None:
            taken = np.asarray(taken.take(index, axis=axes.index(axis)))
    if choice.z is not None and "Z" not in axes:
        check_index("plane (--z)", choice.z, 1)
    pages = [_series_page(series, int(k)) for k in taken.ravel()]
    return _Planes(pages, file.series.index(series), "C" in axes, samples == "C")


def _index(axis: str, count: int, choice: Choice) -> int | None:
    """Return the chosen index along an axis; None for all of it.

    Raises:
        InputError: If a choice is missing, or the index does not exist.
    """
    if axis == "C":
        if choice.channel is not None:
            check_index("channel", choice.channel, count)
        return choice.channel
    if axis == "Z":
        if choice.z is None:
            raise InputError(f"expected one image, found a z-stack of {count} planes: {_choose('--z')}")
        check_index("plane (--z)", choice.z, count)
        return choice.z
    raise InputError(f"expected one image, found {count} pages: {_choose('--page')}")


def _choose(flag: str) -> str:
    return f"choose one ({flag}, for sections), or save it as a file of its own (for a reference)"


def _largest(file: Any, name: str, *, warns: bool) -> Any:
    """Return the series of the largest image; a warning is logged if other images, not levels of it, are skipped."""
    found = [s for s in file.series if {"Y", "X"} <= set(s.axes) and 0 not in s.shape]
    own = [s for s in found if not (s.keyframe.is_reduced or s.keyframe.is_mask)] or found
    if not own:
        raise InputError("expected an image, found none in the file")
    largest = max(own, key=_area)
    others = [s for s in own if s is not largest and s.name.lower() not in _SIDE_IMAGES]
    if others and warns:
        log.warning(
            "%s: holds %d images; only the largest is read, %s (--page chooses another page, from 0)",
            name,
            len(others) + 1,
            _described(largest),
        )
    if file.is_imagej and largest.kind != "imagej":
        raise InputError("the stack described by its ImageJ metadata is incomplete")
    return largest


def _area(series: Any) -> int:
    return int(series.keyframe.imagewidth * series.keyframe.imagelength)


def _described(series: Any) -> str:
    size = f"{series.keyframe.imagelength}×{series.keyframe.imagewidth} px"
    return f"'{series.name}' of {size}" if series.name else size


def _stack_axes(series: Any) -> tuple[str, tuple[int, ...], str]:
    """Return the axes along which the pages of a series lie, their lengths, and the series' name of the sample axis."""
    axes, shape = series.get_axes(squeeze=True), series.get_shape(squeeze=True)
    of_page = series.keyframe.axes
    count = len(axes) - len(of_page)
    pairs = list(zip(axes[count:], of_page, strict=False))
    if count < 0 or set(of_page) - set("YXS") or any(a != b for a, b in pairs if b != "S"):
        raise InputError(f"expected one image, found axes {axes} of sizes {shape}")
    return axes[:count], shape[:count], next((a for a, b in pairs if b == "S"), "")


def _series_page(series: Any, index: int) -> Any:
    if series.is_truncated and index:  # one page describes all planes, which are stored one after the other
        return _Contiguous(series, index)
    return series[index]


class _Contiguous:
    """A plane without a page of its own."""

    def __init__(self, series: Any, index: int) -> None:
        self.parent, self.keyframe = series.parent, series.keyframe
        self.databytecounts = (series.keyframe.nbytes,)
        self.dataoffsets = (series.dataoffset + index * series.keyframe.nbytes,)

    def asarray(self) -> NDArray[Any]:
        """Return its pixels."""
        file, page = self.parent, self.keyframe
        file.filehandle.seek(self.dataoffsets[0])
        kind = file.byteorder + page.dtype.char
        return np.asarray(file.filehandle.read_array(kind, math.prod(page.shape))).reshape(page.shape)


def _page(file: Any, series: Any, index: int) -> _Planes:
    """Return one page of the file; a page of the largest image's size counts as a plane of that image."""
    _, shape, samples = _stack_axes(series)
    if series.is_truncated and len(file.pages) == 1:
        check_index("page (--page)", index, math.prod(shape))
        return _Planes([_series_page(series, index)], file.series.index(series))
    check_index("page (--page)", index, len(file.pages))
    page = file.pages[index].aspage()
    is_full = page.shape == series.keyframe.shape
    # Only OME gives a pixel size for each image; in other formats it is that of the largest.
    image = _image_of(file, page) if is_full or file.is_ome else None
    return _Planes([page], image, has_samples_as_channels=samples == "C")


def _image_of(file: Any, page: Any) -> int | None:
    """Return the number of the image of which a page is a full-size plane; None for levels of pyramids."""
    for image, series in enumerate(file.series):
        if any(p is not None and p.parent is file and p.offset == page.offset for p in series):
            return image
    return None


# --- completeness -----------------------------------------------------------------------------------------------------


def _check_chain(file: Any) -> None:
    """Raise an error if the file announces more pages than it contains."""
    if not len(file.pages):
        raise InputError("the file ends early: it has no page")
    if file.is_ndpi or file.is_lsm:  # their offsets may exceed 32 bits
        return
    file.filehandle.seek(file.pages.next_page_offset)
    following = file.filehandle.read(file.tiff.offsetsize)
    offset = int.from_bytes(following, "little" if file.byteorder == "<" else "big")
    is_cut = len(following) < file.tiff.offsetsize
    if is_cut or (offset and all(page.offset != offset for page in file.pages)):
        raise InputError("the file ends early: a page is missing")


def _check_page(page: Any) -> None:
    """Raise an error if a page is incomplete, or declares tiles of an absurd size."""
    if page is None:
        raise InputError("a plane is missing: it may be in another file that is not beside this one")
    end = page.parent.filehandle.size
    if any(
        offset + count > end for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)
    ):
        raise InputError("the file ends early: pixels are missing")
    check_size("a tile", page.keyframe.chunks, page.keyframe.dtype.itemsize)


# --- pixels -----------------------------------------------------------------------------------------------------------


def _decoded(planes: _Planes, choice: Choice) -> tuple[NDArray[Any], bool]:
    """Return the pixels (h, w) or (h, w, c), and whether they are in colour."""
    pages = planes.pages
    if len(pages) > 1 and "S" in pages[0].keyframe.axes:
        raise InputError(f"expected one image, found {len(pages)} channels of colour: {_choose('--channel')}")
    # The palette of one channel among several only stores how the channel was last displayed.
    are_numbers = choice.labels or (planes.are_channels and _kind(pages[0].keyframe) == "PALETTE")
    if len(pages) > 1:
        return np.moveaxis(np.stack([_samples(page, are_numbers)[0] for page in pages]), 0, -1), False
    array, is_color = _samples(pages[0], are_numbers)
    is_color = is_color and not planes.has_samples_as_channels
    if choice.channel is None or planes.are_channels:
        return array, is_color
    return one_channel(array, choice.channel), False


def _kind(page: Any) -> str:
    return str(page.photometric.name) if page.photometric is not None else ""


def _samples(plane: Any, labels: bool) -> tuple[NDArray[Any], bool]:
    """Return the pixels of one page without opacity, as intensities or colours, or as labels."""
    page = plane.keyframe
    with _open(plane):
        if (
            page.compression == _JPEG and page.jpegheader is None
        ):  # a header means that no tile is a whole JPEG
            check_jpeg_tiles(_encoded(plane), page.jpegtables)
        array = _unpacked(plane) if _is_packed(page) else plane.asarray()
    if "S" in page.axes:
        array = np.moveaxis(array, page.axes.index("S"), 2)
        opacities = sum(sample in (1, 2) for sample in page.extrasamples)  # ASSOCALPHA, UNASSALPHA
        array = array[..., : array.shape[2] - opacities]
        array = array[..., 0] if array.shape[2] == 1 else array
    kind = _kind(page)
    if labels:
        return (array.astype(np.uint8) if array.dtype == bool else array), False
    if kind in _NO_COLOURS:
        raise InputError(f"expected grey or RGB, found {kind}, which is not read: convert the image to RGB")
    if kind == "PALETTE" and array.ndim == 2 and page.colormap is not None:
        return _coloured(array, page.colormap), True
    if array.ndim == 3:
        return _to_rgb(array, page, kind)
    return _grey(array, page, is_inverted=kind == "MINISWHITE"), False


def _encoded(plane: Any) -> Iterator[bytes]:
    """Yield the encoded strips or tiles of one page; a sparse page lacks some of them."""
    file = plane.parent.filehandle
    for offset, count in zip(plane.dataoffsets, plane.databytecounts, strict=True):
        if count:
            file.seek(offset)
            yield file.read(count)


@contextmanager
def _open(plane: Any) -> Iterator[None]:
    """Open the file of a plane that is stored in another file."""
    file = plane.parent.filehandle
    was_closed = file.closed
    if was_closed:
        file.open()
    try:
        yield
    finally:
        if was_closed:
            file.close()


def _to_rgb(array: NDArray[Any], page: Any, kind: str) -> tuple[NDArray[Any], bool]:
    channels = array.shape[2]
    is_ycbcr = kind == "YCBCR" and page.compression not in _DECODED_TO_RGB
    if (is_ycbcr or page.compression == _APERIO_YCBCR) and channels == 3:
        return converted(array, lambda rows: _from_ycbcr(rows, page), 3), True
    if kind == "SEPARATED" and channels >= 4:
        return converted(array, _from_cmyk, 3), True
    return array, kind in ("RGB", "YCBCR") and channels in (3, 4)


def _coloured(array: NDArray[Any], colormap: NDArray[Any]) -> NDArray[Any]:
    """Return the 8-bit colours of palette indices; some programs store the palette itself in 8 bits."""
    colours = colormap if colormap.max() < 256 else colormap >> 8
    if array.max() >= colours.shape[1]:
        raise InputError(f"expected indices of {colours.shape[1]} colours, found {array.max()}")
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
    # These data types do not define white, so the range is kept. Integer overflow wraps back into it.
    return np.asarray(array.max(keepdims=True) - array + array.min(keepdims=True))


def _from_cmyk(rows: NDArray[Any]) -> NDArray[Any]:
    largest = float(np.iinfo(rows.dtype).max)
    ink = rows[..., :4].astype(np.float32) / largest
    return np.asarray(((1 - ink[..., :3]) * (1 - ink[..., 3:]) * largest).round().astype(rows.dtype))


def _from_ycbcr(rows: NDArray[Any], page: Any) -> NDArray[Any]:
    """Return RGB by the coefficients and the range in the file, or those of BT.601 at full range."""
    largest = float(np.iinfo(rows.dtype).max)
    red, green, blue = _fractions(page.tags.valueof(529)) or _LUMA
    middle = (largest + 1) / 2
    black = _fractions(page.tags.valueof(532)) or [0, largest, middle, largest, middle, largest]
    y, cb, cr = np.moveaxis(rows.astype(np.float32), 2, 0)
    y = (y - black[0]) * largest / (black[1] - black[0])
    cb = (cb - black[2]) * (largest - middle) / (black[3] - black[2])
    cr = (cr - black[4]) * (largest - middle) / (black[5] - black[4])
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    g = (y - red * r - blue * b) / green
    return np.asarray(np.stack([r, g, b], axis=2).round().clip(0, largest).astype(rows.dtype))


def _fractions(value: Any) -> list[float] | None:
    """Return the values of a tag of fractions, which tifffile returns as pairs."""
    if value is None:
        return None
    pairs = np.reshape(value, (-1, 2))
    return [float(a) / float(b) for a, b in pairs] if len(pairs) in (3, 6) else None


def _is_packed(page: Any) -> bool:
    """Return whether several YCbCr pixels share their chroma, which tifffile decodes only within JPEG."""
    return bool(page.is_subsampled) and page.compression not in (*_DECODED_TO_RGB, _APERIO_YCBCR)


def _unpacked(plane: Any) -> NDArray[Any]:
    """Return YCbCr (h, w, 3) from strips of blocks; each block stores its Y values, then one Cb and one Cr."""
    from tifffile import TIFF

    page, file = plane.keyframe, plane.parent.filehandle
    if page.is_tiled or page.dtype != np.uint8 or page.predictor != 1:
        raise InputError("YCbCr in tiles with shared chroma is not read: convert the image to RGB")
    across, down = page.subsampling or (2, 2)
    rows = []
    for offset, count in zip(plane.dataoffsets, plane.databytecounts, strict=True):
        file.seek(offset)
        content = file.read(count)
        strip = content if page.compression == 1 else TIFF.DECOMPRESSORS[page.compression](content)
        rows.append(_unpacked_strip(np.frombuffer(strip, np.uint8), page.imagewidth, across, down))
    return np.concatenate(rows)[: page.imagelength]


def _unpacked_strip(strip: NDArray[np.uint8], width: int, across: int, down: int) -> NDArray[np.uint8]:
    columns = -(-width // across)
    blocks = strip.reshape(-1, columns, across * down + 2)
    shape = (len(blocks) * down, columns * across)
    luma = blocks[..., :-2].reshape(-1, columns, down, across).swapaxes(1, 2).reshape(shape)
    chroma = blocks[..., -2:].repeat(down, axis=0).repeat(across, axis=1)
    return np.dstack([luma, chroma])[:, :width]
