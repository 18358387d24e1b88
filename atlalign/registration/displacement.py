"""A map from one frame to another, and its file: a displacement field as ITK defines it, in mm."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atlalign.atlas.planes import Points
from atlalign.errors import InputError
from atlalign.geometry import warp_points
from atlalign.io.files import itk_name
from atlalign.registration.grid import Grid
from atlalign.registration.record import REGISTER_AGAIN

_ITK_FILES = Lock()  # ITK may read or write only one file at a time
_READ_BYTES = 2**20


@dataclass(frozen=True, eq=False)
class Displacement:
    """A map from one frame to another.

    Attributes:
        grid: The points at which the displacement is known, in the frame that is mapped.
        mm: (2, H, W), float32, x first: the grid point p is mapped to p + mm in the other frame.
    """

    grid: Grid
    mm: Tensor

    def __call__(self, points_mm: Points) -> Points:
        """Map points (N, 2) in mm; outside the grid, the displacement of its border is used."""
        pixels = torch.from_numpy(self.grid.to_pixels(points_mm))[None]
        in_pixels = self.mm.double() / torch.tensor(self.grid.pixel_um).view(2, 1, 1) * 1000
        return self.grid.to_mm(warp_points(pixels, in_pixels[None])[0].numpy())

    def write(self, path: Path) -> None:
        """Write an ITK displacement field in mm, which SimpleITK and ANTs apply as a transform."""
        import SimpleITK
        from imagecodecs import gzip_encode

        vectors = np.ascontiguousarray(np.moveaxis(self.mm.numpy(), 0, -1))
        image: Any = SimpleITK.GetImageFromArray(vectors, isVector=True)
        image.SetSpacing([size / 1000 for size in self.grid.pixel_um])
        plain = path.with_suffix("")
        with _ITK_FILES:
            SimpleITK.WriteImage(image, itk_name(plain))
        path.write_bytes(gzip_encode(plain.read_bytes()))  # SimpleITK's own compression takes twice as long
        plain.unlink()

    @classmethod
    def read(cls, path: Path) -> "Displacement":
        """Read a displacement written by `write`.

        Raises:
            InputError: If the file is missing or damaged, or is not a displacement field with its origin at 0.
        """
        import SimpleITK

        if not path.is_file():
            raise InputError(f"{path}: expected a displacement field, found no file: {REGISTER_AGAIN}")
        try:
            _check_gzip(path)
            with _ITK_FILES:
                image: Any = SimpleITK.ReadImage(itk_name(path))
        except (RuntimeError, OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{path}: expected a displacement field, found an unreadable file: {REGISTER_AGAIN}"
            ) from error
        if image.GetDimension() != 2 or image.GetNumberOfComponentsPerPixel() != 2:
            raise InputError(f"{path}: expected a 2D displacement field, found another kind of image")
        if (
            np.abs(image.GetOrigin()).max() > 0
            or np.abs(np.subtract(image.GetDirection(), (1, 0, 0, 1))).max() > 0
        ):
            raise InputError(
                f"{path}: expected a field written by atlalign, with its origin at 0 and no rotation"
            )
        mm = torch.from_numpy(
            np.moveaxis(SimpleITK.GetArrayFromImage(image).astype(np.float32), -1, 0).copy()
        )
        if not bool(mm.isfinite().all()):
            raise InputError(
                f"{path}: expected finite displacements, found infinite values or NaN: {REGISTER_AGAIN}"
            )
        x, y = (1000 * size for size in image.GetSpacing())
        return cls(Grid((mm.shape[1], mm.shape[2]), (x, y)), mm)


def prepare_itk() -> None:
    """Let ITK register its readers and writers.

    It registers them when it first reads or writes a file, and crashes if another thread uses ITK meanwhile.
    """
    import SimpleITK

    with TemporaryDirectory() as folder, _ITK_FILES:
        name = str(Path(folder, "image.nii"))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((2, 2), np.float32)), name)
        SimpleITK.ReadImage(name)


def _check_gzip(path: Path) -> None:
    """Read a file up to its checksum: ITK fills the missing part of a truncated file with zeros."""
    with gzip.open(path) as file:
        while file.read(_READ_BYTES):
            pass
