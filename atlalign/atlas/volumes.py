"""Volumes in files: arrays of voxels that are read a few planes at a time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError

_AXES = ("AP", "DV", "ML")
PLANES_AT_ONCE = 16  # Planes read at once.


class _Array(Protocol):
    """What numpy arrays, memory maps and h5 datasets have in common."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __getitem__(self, key: Any, /) -> Any: ...


@dataclass(frozen=True)
class Volume:
    """Planes (P, H, W) that may still lie in a file; `source` names them in messages."""

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
            try:
                yield planes, np.ascontiguousarray(self.array[planes])
            except OSError as error:
                raise InputError(f"{self.source}: cannot be read from plane {start} on: {error}") from error


def axes_order(axes: str) -> tuple[int, ...]:
    """Return where AP, DV and ML stand in `axes`."""
    names = [name.strip().upper() for name in axes.split(",")]
    if sorted(names) != sorted(_AXES):
        raise InputError(f"axes: expected AP, DV and ML in the file's order, got '{axes}'")
    return tuple(names.index(axis) for axis in _AXES)


def open_volume(path: Path, dataset: str, order: tuple[int, ...], files: ExitStack) -> Volume:
    """Return the volume in a file as (AP, DV, ML); `files` closes it."""
    array = _read(path, dataset, files)
    source = f"{path}[{dataset}]" if isinstance(array, h5py.Dataset) else str(path)
    if order != (0, 1, 2) and len(array.shape) == 3:
        array = np.transpose(array[...], order)
    return Volume(array, source)


def _read(path: Path, dataset: str, files: ExitStack) -> _Array:
    reader = next((read for suffix, read in _READERS.items() if path.name.lower().endswith(suffix)), None)
    if reader is None:
        raise InputError(f"{path}: expected a file that ends in {', '.join(_READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        return reader(path, dataset, files)
    except InputError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error


def _read_h5(path: Path, dataset: str, files: ExitStack) -> _Array:
    file = files.enter_context(h5py.File(path, "r"))
    found = file.get(dataset)
    if not isinstance(found, h5py.Dataset):
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        raise InputError(f"{path}: expected a dataset '{dataset}', there are: {', '.join(names) or 'none'}")
    return cast(_Array, found)


def has_dataset(path: Path, dataset: str) -> bool:
    """Return whether a file is h5 and holds this dataset."""
    if _READERS.get(path.suffix.lower()) is not _read_h5:
        return False
    with h5py.File(path, "r") as file:
        return dataset in file


def _read_npy(path: Path, dataset: str, files: ExitStack) -> _Array:
    return np.lib.format.open_memmap(path, mode="r")


def _read_pages(path: Path, dataset: str, files: ExitStack) -> NDArray[Any]:
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def _read_itk(path: Path, dataset: str, files: ExitStack) -> NDArray[Any]:
    """Return the array with the header's order of axes, which ITK's own arrays have reversed."""
    return _read_pages(path, dataset, files).T


_READERS: dict[str, Callable[[Path, str, ExitStack], _Array]] = {
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".npy": _read_npy,
    ".nrrd": _read_itk,
    ".nii": _read_itk,
    ".nii.gz": _read_itk,
    ".mha": _read_itk,
    ".tif": _read_pages,
    ".tiff": _read_pages,
}
