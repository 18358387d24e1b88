"""Opens TIFF files written by any program: pyramidal slides, stacks, palette images, and all colour spaces."""

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.channel_names import tiff_channels
from atlalign.io.pixel_sizes import tiff_pixel_size
from atlalign.io.pixels import check_index, is_turned, log, upright
from atlalign.io.scenes import Block, Scene, Shape
from atlalign.io.tiff_colors import Samples, kind_of, samples_of
from atlalign.io.tiff_tiles import Plane, TileReader, check_plane

# tifffile's warnings about damaged files are silent by default, because this module checks the files itself.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of TIFF files; the last two are BigTIFF."""

_SIDE_IMAGE = re.compile(r"(slide )?(label|macro|thumbnail|map|overview)( image)?", re.IGNORECASE)
"""The name of a scanner's picture of the whole slide or its label."""

_Planes = NDArray[Any]
"""(channels, z): a `Plane` each, or None if the file lacks it."""


def tiff_scenes(path: Path, *, page: int | None = None, labels: bool = False) -> list[Scene]:
    """Return the images of a TIFF file; a scanner's pictures of label and slide only if there is nothing else.

    Args:
        path: The file.
        page: Only this page, from 0.
        labels: Return the numbers in the file instead of the colours or intensities that they stand for.

    Raises:
        InputError: If there is no image or page, or the file ends early.
    """
    import tifffile

    with tifffile.TiffFile(path, is_ndpi=_may_be_ndpi(path) or None) as file:
        _check_chain(file)
        if file.is_bif:
            log.warning(
                "%s: overlapping tiles are not stitched: steps may be visible at their edges", path.name
            )
        images = _images(file) if page is None else [_page(file, page)]
        return [_scene(file, path, image, labels=labels) for image in images]


def _may_be_ndpi(path: Path) -> bool:
    """Return whether a file named .ndpi can be a Hamamatsu file, whose offsets have 64 bits."""
    with path.open("rb") as file:
        first_page = int.from_bytes(file.read(12)[4:], "little")
    return path.suffix.lower() == ".ndpi" and first_page < path.stat().st_size


def _check_chain(file: Any) -> None:
    """Raise an error if the file declares more pages than it contains."""
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


# --- choice of pages --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Image:
    """The planes of one image.

    Attributes:
        levels: Its planes and those of its smaller copies.
        name: The name in the file.
        number: The index of the image in the file; None for a page that does not show an image at full size.
        has_channel_pages: Whether each channel has pages of its own.
        has_samples_as_channels: Whether the samples of a pixel are channels, even if the page calls them colours.
        t_count: The number of points in time.
    """

    levels: tuple[_Planes, ...]
    name: str = ""
    number: int | None = None
    has_channel_pages: bool = False
    has_samples_as_channels: bool = False
    t_count: int = 1

    @cached_property
    def keyframe(self) -> Any:
        """The page that describes all planes."""
        return next(plane for plane in self.levels[0].flat if plane is not None).keyframe


def _images(file: Any) -> list[_Image]:
    found = [series for series in file.series if {"Y", "X"} <= set(series.axes) and 0 not in series.shape]
    own = [series for series in found if not (series.keyframe.is_reduced or series.keyframe.is_mask)] or found
    if not own:
        raise InputError("expected an image, found none in the file")
    if file.is_imagej and max(own, key=_area).kind != "imagej":
        raise InputError("the stack described by its ImageJ metadata is incomplete")
    main = [series for series in own if not _SIDE_IMAGE.fullmatch(series.name)] or own
    return [_image(file, series) for series in main]


def _area(series: Any) -> int:
    return int(series.keyframe.imagewidth * series.keyframe.imagelength)


def _image(file: Any, series: Any) -> _Image:
    axes, shape, samples = _stack_axes(series)
    for axis, count in zip(axes, shape, strict=True):
        if axis not in "CZT":
            raise InputError(
                f"expected one image, found {count} pages: for a section, choose one with "
                "--page; for a reference, save one page as its own file"
            )
    return _Image(
        tuple(_planes(level, axes) for level in _levels(series)),
        series.name,
        file.series.index(series),
        "C" in axes,
        samples == "C",
        dict(zip(axes, shape, strict=True)).get("T", 1),
    )


def _levels(series: Any) -> Iterator[Any]:
    """Yield an image, and its smaller copies that have all of its planes."""
    axes, shape, _ = _stack_axes(series)
    for number, level in enumerate(series.levels):
        # tifffile counts any image of half the size as a copy, even if the file does not call it one.
        is_copy = (
            number == 0 or series.kind != "generic" or level.keyframe.is_reduced or level.keyframe.is_subifd
        )
        if (
            is_copy
            and _stack_axes(level)[:2] == (axes, shape)
            and level.keyframe.dtype == series.keyframe.dtype
        ):
            yield level


def _planes(series: Any, axes: str) -> _Planes:
    """Return the planes of a series, one per channel and z, at the first point in time."""
    shape = _stack_axes(series)[1]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    for axis in "TZC":
        if axis in axes:
            numbers = np.moveaxis(numbers, axes.index(axis), 0)
            axes = axis + axes.replace(axis, "")
        else:
            numbers, axes = numbers[None], axis + axes
    numbers = numbers[:, :, 0]  # (channels, z, time)
    planes = np.empty(numbers.shape, object)
    for place, number in np.ndenumerate(numbers):
        planes[place] = _plane(series, int(number))
    return planes


def _plane(series: Any, number: int) -> Plane | None:
    if series.is_truncated and number:  # one page describes all planes, which are stored one after the other
        return Plane(series[0], number)
    page = series[number]
    return None if page is None else Plane(page)


def _stack_axes(series: Any) -> tuple[str, tuple[int, ...], str]:
    """Return the axes along which the pages of a series are stacked, their lengths, and the name of its sample axis."""
    axes, shape = series.get_axes(squeeze=True), series.get_shape(squeeze=True)
    of_page = series.keyframe.axes
    count = len(axes) - len(of_page)
    pairs = list(zip(axes[count:], of_page, strict=False))
    if count < 0 or set(of_page) - set("YXS") or any(a != b for a, b in pairs if b != "S"):
        raise InputError(f"expected one image, found axes {axes} of sizes {shape}")
    return axes[:count], shape[:count], next((a for a, b in pairs if b == "S"), "")


def _page(file: Any, number: int) -> _Image:
    """Return one page of the file, with its smaller copies if it is a plane of an image."""
    largest = max(file.series, key=_area)
    _, shape, samples = _stack_axes(largest)
    if largest.is_truncated and len(file.pages) == 1:
        check_index("page (--page)", number, math.prod(shape))
        return _Image((_one(_plane(largest, number)),), number=file.series.index(largest))
    check_index("page (--page)", number, len(file.pages))
    page = file.pages[number].aspage()
    # Only OME gives a pixel size for each image; in other formats the pixel size belongs to the largest image.
    is_measured = file.is_ome or page.shape == largest.keyframe.shape
    for image, series in enumerate(file.series):
        for place, other in enumerate(series):
            if other is not None and other.parent is file and other.offset == page.offset:
                levels = tuple(_one(_plane(level, place)) for level in series.levels)
                number_of_image = image if is_measured else None
                return _Image(levels, series.name, number_of_image, has_samples_as_channels=samples == "C")
    return _Image((_one(Plane(page)),), has_samples_as_channels=samples == "C")


def _one(plane: Plane | None) -> _Planes:
    planes = np.empty((1, 1), object)
    planes[0, 0] = plane
    return planes


# --- pixels -----------------------------------------------------------------------------------------------------------


def _check_compression(page: Any) -> None:
    """Raise an error if a page's compression cannot be decoded."""
    from tifffile import TIFF

    try:
        TIFF.DECOMPRESSORS[page.compression]
    except KeyError as error:
        raise InputError(
            f"expected a supported compression, such as JPEG, LZW or Deflate, found number {int(page.compression)}: "
            "save the image with another compression"
        ) from error


def _scene(file: Any, path: Path, image: _Image, *, labels: bool) -> Scene:
    page = image.keyframe
    _check_compression(page)
    # The palette of one channel among several only stores how the channel was last displayed.
    are_numbers = labels or (image.has_channel_pages and kind_of(page) == "PALETTE")
    samples = samples_of(page, labels=are_numbers)
    is_color = samples.is_color and not image.has_samples_as_channels
    orientation = int(page.tags.valueof(274, 1))
    size = tiff_pixel_size(file, page, path, image.number)
    reader = _Reader(image, samples, is_color, orientation)
    count = len(image.levels[0]) if image.has_channel_pages or is_color else samples.channels
    return Scene(
        name=image.name,
        levels=reader.shapes,
        channels=tiff_channels(file, page, path, image.number, count),
        is_color=is_color,
        dtype=samples.dtype,
        pixel_um=size[::-1] if size is not None and is_turned(orientation) else size,
        block=reader.block,
        check=reader.check,
        z_count=image.levels[0].shape[1],
        t_count=image.t_count,
    )


class _Reader:
    """Reads parts of an image, turned upright."""

    def __init__(self, image: _Image, samples: Samples, is_color: bool, orientation: int) -> None:
        self._image, self._samples = image, samples
        self._is_color, self._orientation = is_color, orientation
        self._tiles = TileReader()
        self._checked: set[tuple[int, int, int]] = set()

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The upright (h, w) of all levels."""
        pages = [
            next(plane for plane in level.flat if plane is not None).keyframe for level in self._image.levels
        ]
        shapes = [(int(page.imagelength), int(page.imagewidth)) for page in pages]
        return tuple(shape[::-1] if is_turned(self._orientation) else shape for shape in shapes)

    def check(self) -> None:
        """Raise an error if a plane of any level is missing or incomplete."""
        for level, planes in enumerate(self._image.levels):
            for channel, z in np.ndindex(planes.shape):
                self._plane(level, channel, z)

    def block(self, block: Block) -> NDArray[Any]:
        """Return the pixels of a block, as in `Scene.read`."""
        channel = block.channel if self._image.has_channel_pages else 0
        plane = self._plane(block.level, channel, block.z)
        shape = self.shapes[block.level]
        stored = _stored(block, shape, self._orientation)
        pixels = upright(self._converted(plane, stored), self._orientation)
        if pixels.ndim == 2:
            return pixels
        if self._is_color:
            return pixels[..., :3]
        return pixels[..., 0 if self._image.has_channel_pages else block.channel]

    def _converted(self, plane: Plane, stored: tuple[int, int, int, int]) -> NDArray[Any]:
        if self._samples.is_local:
            return self._samples.convert(self._tiles.read(plane, *stored))
        top, bottom, left, right = stored
        page = plane.keyframe
        whole = self._tiles.read(plane, 0, int(page.imagelength), 0, int(page.imagewidth))
        return self._samples.convert(whole)[top:bottom, left:right]

    def _plane(self, level: int, channel: int, z: int) -> Plane:
        plane: Plane = self._image.levels[level][channel, z]
        if (level, channel, z) not in self._checked:
            check_plane(plane)
            self._checked.add((level, channel, z))
        return plane


def _stored(block: Block, shape: Shape, orientation: int) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a block in the file's own orientation, given the upright (h, w)."""
    (height, width), (_, top, bottom, left, right, *_) = shape, block
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    return (left, right, top, bottom) if is_turned(orientation) else (top, bottom, left, right)
