"""Files of one displacement field, in pixels: .npy, and vector images as ITK writes them."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.files import itk_name, written_whole

_ITK_SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")


def read_field(path: Path) -> NDArray[np.float32]:
    """Return the displacements (H, W, 2), x first, in pixels, from an .npy file or an ITK displacement field.

    Raises:
        InputError: If the file is missing, damaged, of another type, not a 2D field, or not finite everywhere.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a file with a displacement field, found no such file")
    array = _read_npy(path) if _suffix(path) == ".npy" else _read_itk(path)
    if array.ndim != 3 or array.shape[2] != 2 or array.dtype.kind not in "fiu":
        raise InputError(
            f"{path}: expected a field (H, W, 2) of numbers, found {array.shape} of {array.dtype}"
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(
            f"{path}: expected finite displacements, found {int((~np.isfinite(array)).sum())} that are not"
        )
    return array


def write_field(path: Path, array: NDArray[np.float32]) -> None:
    """Write displacements (H, W, 2), x first, in pixels; an ITK image gets spacing 1.

    Raises:
        InputError: If the file type is unknown, the folder does not exist, or the file cannot be written.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: expected an existing folder to write to")
    write = _write_npy if _suffix(path) == ".npy" else _write_itk
    with written_whole(path) as unfinished:
        write(unfinished, array)


def _suffix(path: Path) -> str:
    """Return the known ending of a file's name."""
    for suffix in (".npy", *_ITK_SUFFIXES):
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(f"{path}: expected a name that ends in .npy, {', '.join(_ITK_SUFFIXES)}")


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            # Unlike `np.load`, this never falls back to a zip archive or a pickle, which can run code.
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, MemoryError) as error:
        raise InputError(f"{path}: expected an .npy array of numbers, cannot read it ({error})") from error


def _write_npy(path: Path, array: NDArray[np.float32]) -> None:
    np.save(path, array)


def _write_itk(path: Path, array: NDArray[np.float32]) -> None:
    import SimpleITK

    try:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), itk_name(path))
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[-1]) from error


def _read_itk(path: Path) -> NDArray[Any]:
    """Return the displacements (H, W, 2) in pixels of an ITK vector image."""
    import SimpleITK

    try:
        # SimpleITK does not recognise .MHA in capitals.
        image: Any = SimpleITK.ReadImage(
            itk_name(path), imageIO="MetaImageIO" if _suffix(path) == ".mha" else ""
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise InputError(f"{path}: expected an ITK image, cannot read it ({reason})") from error
    if image.GetDimension() != 2 or image.GetNumberOfComponentsPerPixel() != 2:
        raise InputError(
            f"{path}: expected a 2D image with 2 components, found {image.GetDimension()}D"
            f" with {image.GetNumberOfComponentsPerPixel()}"
        )
    to_length = np.reshape(image.GetDirection(), (2, 2)) * np.asarray(image.GetSpacing())
    return SimpleITK.GetArrayFromImage(image) @ np.linalg.inv(to_length).T
