"""Saved registrations for `atlalign transform`: a section's results, and the frames of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Points
from atlalign.errors import InputError
from atlalign.io.images import open_channels, read_labels
from atlalign.io.tables import Table
from atlalign.registration.displacement import Displacement
from atlalign.registration.grid import Grid
from atlalign.registration.ignored import IGNORED
from atlalign.registration.record import LABELS, REGIONS, check_file, read_record
from atlalign.registration.regions import RegionName, read_regions
from atlalign.registration.transform import SectionTransform

_FAR = 0.25
"""A point outside the image by more than this fraction of its size must belong to an image of another size."""
_ROUNDING_PX = 1e-3  # files hold three decimals
_SCALE_HINT = "if they belong to an image N times as large, give --scale N or --scale IMAGE"


@dataclass(frozen=True, eq=False)
class Results:
    """The results that `atlalign register` wrote for a section, and the image that coordinates refer to.

    Attributes:
        folder: The section's folder.
        transform: The map that is saved in the folder.
        scale: (x, y), the size of the image that coordinates refer to, relative to the registered image. Both have the
            same outer edges, so its pixel x lies at (x + ½)/scale − ½ in the registered image.
    """

    folder: Path
    transform: SectionTransform
    scale: tuple[float, float]

    @classmethod
    def load(cls, folder: Path, scale: float | Path | None = None) -> "Results":
        """Read the results in a section's folder; for `scale` see `TransformOptions`.

        Raises:
            InputError: If the folder holds no results, or the scale does not fit the section.
        """
        transform = SectionTransform.load(folder)
        return cls(folder, transform, _scale(scale, transform))

    def to_section(self, pixels: Points) -> Points:
        """Convert points (N, 2) from pixels of the scaled image to pixels of the registered image."""
        return (pixels + 0.5) / self.scale - 0.5

    def from_section(self, pixels: Points) -> Points:
        """Convert points (N, 2) from pixels of the registered image to pixels of the scaled image."""
        return (pixels + 0.5) * self.scale - 0.5

    @property
    def longest_edge(self) -> float:
        """The distance between the grid points of the inverse field, in pixels of the scaled image."""
        return longest_edge(self.transform.inverse, self.transform.section) * min(self.scale)

    def check_near(
        self, pixels: Points, given: Points, source: Table | Path, *, hint: str = _SCALE_HINT
    ) -> None:
        """Check that no point lies far outside the section; such points refer to a larger image.

        Args:
            pixels: The points in pixels of the registered image.
            given: The points as the file gives them.
            source: The file, or the part of a table, that holds the points.
            hint: Advice for the error message.

        Raises:
            InputError: If a point lies far outside.
        """
        for place in np.flatnonzero(is_far_outside(pixels, self.transform.section))[:1]:
            height, width = self.transform.section.shape
            x, y = given[place]
            where = f"{source.path}, line {source.lines[place]}: " if isinstance(source, Table) else ""
            raise InputError(
                f"{where}expected points of {self.folder.name}, whose registered image has {height}×{width} px, found "
                f"({x:g}, {y:g}) far outside: {hint}"
            )

    @cached_property
    def labels(self) -> NDArray[Any] | None:
        """The reference's labels; None if the registration wrote none.

        Raises:
            InputError: If the file is missing, changed, or differs in proportions from the reference.
        """
        if not self._has(LABELS):
            return None
        labels = read_labels(self.folder / LABELS)
        reference_frame(self.transform, labels.shape, str(self.folder / LABELS))
        return labels

    @cached_property
    def ignored(self) -> NDArray[np.bool_] | None:
        """The mask of section pixels that the user has marked to be ignored, or None.

        Raises:
            InputError: If their file is missing, or changed.
        """
        return read_labels(self.folder / IGNORED) != 0 if self._has(IGNORED) else None

    def is_ignored(self, pixels: Points) -> NDArray[np.bool_]:
        """Return a mask of the points (N, 2), in pixels of the section, that lie on ignored tissue."""
        found = np.zeros(len(pixels), np.bool_)
        if self.ignored is not None:
            inside = is_inside(pixels, self.transform.section)
            (height, width), (rows, columns) = self.transform.section.shape, self.ignored.shape
            # The mask is as large as the written labels.
            x, y = np.floor((pixels[inside] + 0.5) * (columns / width, rows / height)).astype(int).T
            found[inside] = self.ignored[y.clip(0, rows - 1), x.clip(0, columns - 1)]
        return found

    @cached_property
    def regions(self) -> Mapping[int, RegionName]:
        """The names of the reference's labels, by id; empty if the registration wrote none.

        Raises:
            InputError: If the file is missing, changed or invalid.
        """
        return read_regions(self.folder / REGIONS) if self._has(REGIONS) or self._has(LABELS) else {}

    def _has(self, name: str) -> bool:
        """Return whether a file exists; if the record lists it, it must exist and be unchanged."""
        check_file(self.folder, read_record(self.folder), name)
        return (self.folder / name).exists()


# --- frames -----------------------------------------------------------------------------------------------------------


def section_frame(transform: SectionTransform, shape: Sequence[int], name: str) -> Grid:
    """Return the pixels of another image (h, w) of the section.

    The image may be another channel, or a smaller or larger scan; its outer edges are those of the section's image.

    Raises:
        InputError: If the image and the section differ in proportions.
    """
    grid = transform.section.resampled((shape[0], shape[1]))
    _check_proportions(np.array(grid.pixel_um), shape, transform.section, name, "section's image")
    return grid


def reference_frame(transform: SectionTransform, shape: Sequence[int], name: str) -> Grid:
    """Return the pixels of an image (h, w) of the reference plane; its outermost pixels are the reference's.

    Raises:
        InputError: If the image and the reference differ in proportions.
    """
    grid = transform.forward.grid.with_shape((shape[0], shape[1]))
    _check_proportions(np.array(grid.pixel_um), shape, transform.forward.grid, name, "reference")
    return grid


def _scale(given: float | Path | None, transform: SectionTransform) -> tuple[float, float]:
    """Return the width and height of another image of the section, relative to the section's image.

    Raises:
        InputError: If the given scale is neither a positive number nor an image of the same proportions.
    """
    if isinstance(given, Path):
        if not given.is_file():
            raise InputError(f"--scale: expected a number or an image, found no file {given}")
        shape = open_channels(given).shape
        section_frame(transform, shape, given.name)
        height, width = transform.section.shape
        return shape[1] / width, shape[0] / height
    factor = 1.0 if given is None else float(given)
    if not 1e-6 < factor < 1e6:
        raise InputError(f"--scale: expected a number from 1e-6 to 1e6, got {factor:g}")
    return factor, factor


def _check_proportions(
    size: NDArray[np.float64], shape: Sequence[int], grid: Grid, name: str, what: str
) -> None:
    """Raise an error unless pixels are square or proportioned as in the grid, up to rounding of the image size."""
    own = grid.pixel_um[0] / grid.pixel_um[1]
    rounding = 1.5 / min(*shape, *grid.shape)
    if min(abs(size[0] / size[1] / ratio - 1) for ratio in (1.0, own)) > rounding:
        height, width = grid.shape
        raise InputError(
            f"{name}: expected the proportions of the {what}, {height}×{width} px, found {shape[0]}×{shape[1]}"
        )


def is_inside(pixels: Points, grid: Grid) -> NDArray[np.bool_]:
    """Return a mask of the points (N, 2) inside the grid's pixels, outer edges included; False for NaN."""
    last = np.array(grid.shape[::-1]) - 0.5 + _ROUNDING_PX
    return np.asarray(((pixels >= -0.5 - _ROUNDING_PX) & (pixels <= last)).all(axis=1))


def is_far_outside(pixels: Points, grid: Grid) -> NDArray[np.bool_]:
    """Return a mask of the points (N, 2) outside the grid by more than `_FAR` of its size; False for NaN."""
    size = np.array(grid.shape[::-1])
    return np.asarray((np.abs(pixels - (size - 1) / 2) > (0.5 + _FAR) * size).any(axis=1))


def longest_edge(field: Displacement, grid: Grid) -> float:
    """Return the distance between the grid points of a field, in pixels of `grid`; the field is linear between them."""
    return min(field.grid.pixel_um) / max(grid.pixel_um)
