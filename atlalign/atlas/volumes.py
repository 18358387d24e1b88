"""Volumes in files: arrays of voxels that are read a few planes at a time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from gzip import GzipFile
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError, check_size, reason_of
from atlalign.io.files import itk_name
from atlalign.io.h5 import find_dataset
from atlalign.io.headers import Header, brainglobe_header, h5_header, itk_header, tiff_header

PLANES_AT_ONCE = 16  # Planes read at once.
_THUMBNAIL = 64


class _Array(Protocol):
    """The interface that numpy arrays, memory maps and h5 datasets share."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class Volume:
    """Planes (P, H, W) that may not have been read from their file yet; `source` names them in messages."""

    array: _Array
    source: str

    def __post_init__(self) -> None:
        shape = self.array.shape
        if len(shape) != 3 or shape[0] < 1 or min(shape[1:]) < 2:
            raise InputError(
                f"{self.source}: expected 3 axes, planes of at least 2×2, got shape {tuple(shape)}"
            )

    def blocks(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield consecutive planes, a few at a time, so that memory stays bounded."""
        # A chunk that spans two blocks would be decompressed twice.
        chunk = getattr(self.array, "chunks", None) or (1,)
        step = max(PLANES_AT_ONCE, chunk[0])
        for start in range(0, self.array.shape[0], step):
            planes = slice(start, start + step)
            yield planes, self._read(planes)

    def thumbnail(self) -> NDArray[np.float32]:
        """Return every n-th voxel, about 64 along each axis; non-finite values become 0."""
        along, *steps = (max(1, size // _THUMBNAIL) for size in self.array.shape)
        planes = [
            self._read(slice(plane, plane + 1))[:, :: steps[0], :: steps[1]]
            for plane in range(0, self.array.shape[0], along)
        ]
        small = np.concatenate(planes).astype(np.float32)
        return np.nan_to_num(small, posinf=0, neginf=0)

    def _read(self, planes: slice) -> NDArray[Any]:
        try:
            return np.ascontiguousarray(self.array[planes])
        except OSError as error:
            raise InputError(
                f"{self.source}: cannot be read from plane {planes.start} on: {reason_of(error)}"
            ) from error


class VolumeFile(NamedTuple):
    """A volume as stored in its file.

    Attributes:
        array: In the file's own order of axes.
        source: The name of the volume in messages.
        header: The file's information on its voxels.
    """

    array: _Array
    source: str
    header: Header


def open_volume(path: Path, dataset: str, files: ExitStack) -> VolumeFile:
    """Return the volume in a file; `files` closes it.

    The axes of .nrrd, .nii and .mha have the order of the header, which ITK's arrays reverse. Those of .tif are pages,
    rows and columns; those of .h5 and .npy have the array's order. For a file without a header of its own, BrainGlobe's
    metadata.json beside it is used.

    Raises:
        InputError: If the file cannot be read, is too large, or holds no volume.
    """
    read = next((read for suffix, read in _READERS.items() if path.name.lower().endswith(suffix)), None)
    if read is None:
        raise InputError(f"{path}: expected a file that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        array, header = read(path, dataset, files)
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{path}: cannot be read: {reason_of(error)[-200:]}") from error
    source = f"{path}[{dataset}]" if isinstance(array, h5py.Dataset) else str(path)
    if header.spacing_um is None and header.direction is None:
        header = brainglobe_header(path) or header
    return VolumeFile(array, source, header)


def _read_h5(path: Path, dataset: str, files: ExitStack) -> tuple[_Array, Header]:
    file = files.enter_context(h5py.File(path, "r"))
    found = find_dataset(file, dataset)
    if found is None:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        raise InputError(f"{path}: expected a dataset '{dataset}', there are: {', '.join(names) or 'none'}")
    check_size(f"{path}[{dataset}]", found.shape or (), found.dtype.itemsize)
    return cast(_Array, found), h5_header(path, found)


def has_dataset(path: Path, dataset: str) -> bool:
    """Return whether a file is an h5 file with a dataset of this name, even if its values are in another file."""
    if _READERS.get(path.suffix.lower()) is not _read_h5:
        return False
    with h5py.File(path, "r") as file:
        return file.get(dataset, getlink=True) is not None


def _read_npy(path: Path, dataset: str, files: ExitStack) -> tuple[_Array, Header]:
    array = np.lib.format.open_memmap(path, mode="r")
    check_size(str(path), array.shape, array.dtype.itemsize)
    return array, Header()


def _read_tiff(path: Path, dataset: str, files: ExitStack) -> tuple[_Array, Header]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        series = max(file.series, key=lambda one: one.size)  # a label or thumbnail may come first
        check_size(str(path), series.shape, series.dtype.itemsize)
        if "S" in series.axes:
            raise InputError(f"{path}: expected one grey value per voxel, found colours (axes {series.axes})")
        return series.asarray().squeeze(), tiff_header(path, file, series)


def _read_itk(path: Path, dataset: str, files: ExitStack, *, format_: str) -> tuple[_Array, Header]:
    import SimpleITK

    sitk: Any = SimpleITK
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    reader.SetImageIO(format_)  # other formats are not tried
    reader.ReadImageInformation()
    size, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(size) != 3 or components != 1:
        raise InputError(
            f"{path}: expected 3 axes and one value per voxel, got sizes {size} and {components} values per voxel"
        )
    bytes_each = sitk.Image([1, 1, 1], reader.GetPixelIDValue()).GetSizeOfPixelComponent()
    check_size(str(path), size, bytes_each)
    if format_ == "NiftiImageIO":
        _check_length(path, int(np.prod(size)) * bytes_each)
    return sitk.GetArrayFromImage(reader.Execute()).T, itk_header(path, reader)


def _check_length(path: Path, least: int) -> None:
    """Check that a NIfTI file is complete, because ITK reads the missing part of a truncated file as zeros."""
    length = path.stat().st_size
    if path.suffix.lower() == ".gz":
        with GzipFile(path) as file:
            length = sum(len(part) for part in iter(partial(file.read, 2**24), b""))
    if length < least:
        raise InputError(f"{path}: cannot be read: expected at least {least} bytes, found {length}")


_READERS: dict[str, Callable[[Path, str, ExitStack], tuple[_Array, Header]]] = {
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".npy": _read_npy,
    ".nrrd": partial(_read_itk, format_="NrrdImageIO"),
    ".nii": partial(_read_itk, format_="NiftiImageIO"),
    ".nii.gz": partial(_read_itk, format_="NiftiImageIO"),
    ".mha": partial(_read_itk, format_="MetaImageIO"),
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
}
