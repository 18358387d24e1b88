"""Parts of a TIFF page: only the tiles or strips that show them are read, and decoded tiles are cached."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError, check_size
from atlalign.io.jpeg import check_jpeg_tiles
from atlalign.io.tiff_colors import DECODED_TO_RGB

_KEPT_BYTES = 2**27  # of decoded tiles: a row of 512 px tiles across the widest scans
_WHOLE_PX = 2**24  # pages of at most this size are read at once
_APERIO_YCBCR = 33003
_JPEG_OF_TILES = 7  # with a header of the whole page, a tile is not a complete JPEG
_JPEG = (6, 7, 34892, 33007)

_Pixels = NDArray[Any]


class Plane(NamedTuple):
    """A page of a TIFF file, or a plane that the file stores behind its only page.

    Attributes:
        page: tifffile's page or frame.
        behind: The number of planes between the page and this plane; 0 is the page itself.
    """

    page: Any
    behind: int = 0

    @property
    def keyframe(self) -> Any:
        """The page that describes the plane."""
        return self.page.keyframe

    @property
    def key(self) -> tuple[int, int]:
        """A key that distinguishes the plane from all others: its file, and its offset in the file."""
        return id(self.page.parent), int(self.offsets[0])

    @property
    def offsets(self) -> Sequence[int]:
        """The offsets of its tiles or strips."""
        stored: Sequence[int] = self.page.dataoffsets
        return stored if not self.behind else (self.page.dataoffsets[0] + self.behind * self.keyframe.nbytes,)

    @property
    def byte_counts(self) -> Sequence[int]:
        """The lengths of its tiles or strips."""
        stored: Sequence[int] = self.page.databytecounts
        return (self.keyframe.nbytes,) if self.behind else stored


def check_plane(plane: Plane | None) -> None:
    """Raise an error if a plane is incomplete, or declares tiles of an absurd size.

    Raises:
        InputError: If it is.
    """
    if plane is None:
        raise InputError(
            "expected every plane of the image, found one missing: if the image spans several files, put them all in "
            "one folder"
        )
    if not plane.offsets:
        raise InputError("the file ends early: a page has no pixels")
    end = plane.page.parent.filehandle.size
    ends = (offset + count for offset, count in zip(plane.offsets, plane.byte_counts, strict=False))
    if any(last > end for last in ends):
        raise InputError("the file ends early: pixels are missing")
    check_size("a tile", plane.keyframe.chunks, plane.keyframe.dtype.itemsize)


class TileReader:
    """Reads parts of planes; the most recently used tiles are cached."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, ...], _Pixels] = OrderedDict()
        self._bytes = 0
        self._lock, self._reading = Lock(), Lock()

    def read(self, plane: Plane, top: int, bottom: int, left: int, right: int) -> _Pixels:
        """Return pixels as stored, (h, w) or (h, w, samples)."""
        page = plane.keyframe
        shape = (bottom - top, right - left)
        if not all(shape):
            return np.zeros((*shape, page.samplesperpixel) if "S" in page.axes else shape, page.dtype)
        rows, columns = slice(top, bottom), slice(left, right)
        if plane.behind or (page.is_memmappable and not _is_packed(page)):
            return np.array(_mapped(plane)[rows, columns], page.dtype)
        is_whole = shape == (page.imagelength, page.imagewidth)
        if _is_packed(page) or (page.imagelength * page.imagewidth <= _WHOLE_PX):
            if is_whole:
                return _whole(plane)
            return self._remembered((*plane.key, -1), lambda: _whole(plane))[rows, columns]
        return self._from_tiles(plane, top, bottom, left, right)

    def _from_tiles(self, plane: Plane, top: int, bottom: int, left: int, right: int) -> _Pixels:
        page = plane.keyframe
        height, width = _tile_shape(page)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        across, down = -(-page.imagewidth // width), -(-page.imagelength // height)
        numbers = [
            (sample * down + row) * across + column
            for sample in range(planes)
            for row in range(top // height, -(-bottom // height))
            for column in range(left // width, -(-right // width))
        ]
        samples = planes if planes > 1 else page.samplesperpixel
        block = np.zeros((bottom - top, right - left, samples), page.dtype)
        for number, tile in zip(numbers, self._tiles(plane, numbers), strict=True):
            sample, rest = divmod(number, down * across)
            y, x = (rest // across) * height, (rest % across) * width
            channels = slice(sample, sample + 1) if planes > 1 else slice(None)
            _paste(block[..., channels], tile, y - top, x - left)
        return block if "S" in page.axes else block[..., 0]

    def _tiles(self, plane: Plane, numbers: list[int]) -> Iterator[_Pixels]:
        """Yield decoded tiles (h, w, samples), several in parallel if there are many."""
        page = plane.keyframe
        with _open(plane):
            page.init_decode()
            at_once = max(1, min(int(page.maxworkers), len(numbers)))
            if at_once == 1:
                yield from (self._tile(plane, number) for number in numbers)
                return
            with ThreadPoolExecutor(at_once) as pool:
                for start in range(
                    0, len(numbers), 8 * at_once
                ):  # keeps no more tiles in memory than needed soon
                    yield from pool.map(
                        lambda number: self._tile(plane, number), numbers[start : start + 8 * at_once]
                    )

    def _tile(self, plane: Plane, number: int) -> _Pixels:
        return self._remembered((*plane.key, number), lambda: _decoded(plane, number, self._reading))

    def _remembered(self, key: tuple[int, ...], make: Callable[[], _Pixels]) -> _Pixels:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += made.nbytes
            while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return made


def _paste(block: _Pixels, tile: _Pixels, top: int, left: int) -> None:
    """Copy the part of a tile that lies within a block, given the tile's position relative to the block."""
    y, x = max(0, top), max(0, left)
    bottom, right = min(len(block), top + len(tile)), min(block.shape[1], left + tile.shape[1])
    block[y:bottom, x:right] = tile[y - top : bottom - top, x - left : right - left]


def _tile_shape(page: Any) -> tuple[int, int]:
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _decoded(plane: Plane, number: int, reading: Lock) -> _Pixels:
    """Return one tile or strip (h, w, samples); a tile that the file leaves out is empty."""
    page, file = plane.keyframe, plane.page.parent.filehandle
    count, content = plane.byte_counts[number], None
    if count:
        with reading:
            file.seek(plane.offsets[number])
            content = file.read(count)
    options = {"jpegtables": plane.page.jpegtables, "jpegheader": page.jpegheader}
    if page.compression == _JPEG_OF_TILES and page.jpegheader is None and content:
        check_jpeg_tiles([content], plane.page.jpegtables)
    tile: _Pixels | None
    tile, _, shape = page.decode(content, number, **(options if page.compression in _JPEG else {}))
    if tile is None:
        return np.full(shape[1:], page.nodata, page.dtype)
    return np.asarray(tile[0])


def _whole(plane: Plane) -> _Pixels:
    """Return all pixels of a plane."""
    page = plane.keyframe
    with _open(plane):
        if _is_packed(page):
            return _unpacked(plane)
        if page.compression == _JPEG_OF_TILES and page.jpegheader is None:
            check_jpeg_tiles(_contents(plane), plane.page.jpegtables)
        array = np.asarray(plane.page.asarray())
    return np.moveaxis(array, page.axes.index("S"), 2) if "S" in page.axes else array


def _contents(plane: Plane) -> Iterator[bytes]:
    """Yield the encoded strips or tiles of a plane; a sparse plane lacks some of them."""
    file = plane.page.parent.filehandle
    for offset, count in zip(plane.offsets, plane.byte_counts, strict=True):
        if count:
            file.seek(offset)
            yield file.read(count)


def _mapped(plane: Plane) -> _Pixels:
    """Return a memory map of an uncompressed plane, of which only the accessed parts are read."""
    page, file = plane.keyframe, plane.page.parent.filehandle
    with _open(plane):
        kind = plane.page.parent.byteorder + page.dtype.char
        array: _Pixels = file.memmap_array(kind, page.shape, offset=plane.offsets[0])
    return np.moveaxis(array, page.axes.index("S"), 2) if "S" in page.axes else array


@contextmanager
def _open(plane: Plane) -> Iterator[None]:
    """Keep the files of a plane, and of the page that describes it, open while the plane is read."""
    with ExitStack() as opened:
        for page in (plane.page, plane.keyframe):
            file = page.parent.filehandle
            if file.closed:
                file.open()
                opened.callback(file.close)
        yield


def _is_packed(page: Any) -> bool:
    """Return whether several YCbCr pixels share their chroma, which tifffile decodes only within JPEG."""
    return bool(page.is_subsampled) and page.compression not in (*DECODED_TO_RGB, _APERIO_YCBCR)


def _unpacked(plane: Plane) -> _Pixels:
    """Return YCbCr (h, w, 3) from strips of blocks; each block stores its Y values, then one Cb and one Cr."""
    from tifffile import TIFF

    page, file = plane.keyframe, plane.page.parent.filehandle
    if page.is_tiled or page.dtype != np.uint8 or page.predictor != 1:
        raise InputError("YCbCr in tiles with shared chroma is not supported: convert the image to RGB")
    across, down = page.subsampling or (2, 2)
    rows = []
    for offset, count in zip(plane.offsets, plane.byte_counts, strict=True):
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
