"""A saved registration as `atlalign transform` uses it: its options, the section's results, and image frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from atlalign.atlas.planes import Points
from atlalign.errors import InputError
from atlalign.io.images import read_channels, read_labels
from atlalign.io.tables import Table
from atlalign.registration.regions import RegionName, read_regions
from atlalign.registration.transform import (
    LABELS,
    REGIONS,
    Displacement,
    Grid,
    SectionTransform,
    check_file,
    read_record,
)

Destination = Literal["reference", "section"]
Unit = Literal["px", "um"]

_FAR = 0.25
"""A point that lies outside by more than this fraction of the image size belongs to an image of another size."""
_ROUNDING_PX = 1e-3  # files hold three decimals
_SCALE_HINT = "if they belong to an image N times as large, give --scale N or --scale IMAGE"


class TransformOptions(NamedTuple):
    """The options of `atlalign transform`.

    Attributes:
        to: Map to the reference or to the section.
        labels: The image holds region ids; use nearest-neighbour interpolation.
        channel: Channel of an image, counted from 0; None maps all.
        page: Page of a TIFF file, counted from 0.
        z: Plane of a z-stack, counted from 0.
        unit: Unit of x and y in a table; None means px.
        off_plane_um: Largest distance of atlas points from the section's plane; None means `OFF_PLANE_UM`.
        scale: Section coordinates of points and shapes are pixels of an image this many times as wide and high as the
            registered one; or such an image. None means the registered image.
    """

    to: Destination
    labels: bool = False
    channel: int | None = None
    page: int | None = None
    z: int | None = None
    unit: Unit | None = None
    off_plane_um: float | None = None
    scale: float | Path | None = None


@dataclass(frozen=True, eq=False)
class Results:
    """What `atlalign register` wrote for a section, and the image that coordinates refer to.

    Attributes:
        folder: The section's folder.
        transform: The map that is saved there.
        scale: How many times as wide and as high as the registered image the one is that coordinates refer to. The
            outer edges of both are the same, so pixel x of it lies at (x + ½)/scale − ½ of the registered one.
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
        """Return points (N, 2) of the scaled image in pixels of the registered one."""
        return (pixels + 0.5) / self.scale - 0.5

    def from_section(self, pixels: Points) -> Points:
        """Return points (N, 2) of the registered image in pixels of the scaled one."""
        return (pixels + 0.5) * self.scale - 0.5

    @property
    def longest_edge(self) -> float:
        """In pixels of the scaled image, the distance of the inverse field's pixels, between which it is linear."""
        return longest_edge(self.transform.inverse, self.transform.section) * min(self.scale)

    def check_near(
        self, pixels: Points, given: Points, source: Table | Path, *, hint: str = _SCALE_HINT
    ) -> None:
        """Check that no point lies far outside of the section: it would belong to a larger image.

        Args:
            pixels: In pixels of the registered image.
            given: As they stand in the file.
            source: Their file, or their part of a table.
            hint: Advice for the error message.

        Raises:
            InputError: If one does.
        """
        for place in np.flatnonzero(is_far_outside(pixels, self.transform.section))[:1]:
            height, width = self.transform.section.shape
            x, y = given[place]
            where = f"{source.path}, line {source.lines[place]}: " if isinstance(source, Table) else ""
            raise InputError(
                f"{where}expected points of {self.folder.name}, whose registered image has {height}×{width} px, found "
                f"({x:g}, {y:g}), far outside: {hint}"
            )

    @cached_property
    def labels(self) -> NDArray[Any] | None:
        """The reference's labels; None where the registration wrote none.

        Raises:
            InputError: If their file is missing, changed, or of other proportions than the reference.
        """
        if not self._has(LABELS):
            return None
        labels = read_labels(self.folder / LABELS)
        reference_frame(self.transform, labels.shape, str(self.folder / LABELS))
        return labels

    @cached_property
    def regions(self) -> Mapping[int, RegionName]:
        """The names of the reference's labels, by id; none where the registration wrote none.

        Raises:
            InputError: If their file is missing, changed or invalid.
        """
        return read_regions(self.folder / REGIONS) if self._has(REGIONS) or self._has(LABELS) else {}

    def _has(self, name: str) -> bool:
        """Return whether there is a file, which must be there and unchanged if the record lists it."""
        check_file(self.folder, read_record(self.folder), name)
        return (self.folder / name).exists()


# --- frames -----------------------------------------------------------------------------------------------------------


def section_frame(transform: SectionTransform, shape: Sequence[int], name: str) -> tuple[Grid, Displacement]:
    """Return the pixels of an image (h, w) that shows the same as the section's, and the map to it from the reference.

    Its outer edges are those of the section's image, whatever its size: another channel, a smaller or larger scan.

    Raises:
        InputError: If the image has other proportions than the section.
    """
    height, width = transform.section.shape
    size = np.array(transform.section.pixel_um) * (width / shape[1], height / shape[0])
    _check_proportions(size, shape, transform.section, name, "section's image")
    # Where the centre of the image's first pixel lies in the frame of the section.
    first_mm = (size - transform.section.pixel_um) / 2 / 1000
    moved = transform.forward.mm - torch.from_numpy(first_mm).float().view(2, 1, 1)
    grid = Grid((shape[0], shape[1]), (float(size[0]), float(size[1])))
    return grid, Displacement(transform.forward.grid, moved)


def reference_frame(transform: SectionTransform, shape: Sequence[int], name: str) -> Grid:
    """Return the pixels of an image (h, w) that shows the reference plane; its outermost pixels are the reference's.

    Raises:
        InputError: If the image has other proportions than the reference.
    """
    grid = transform.forward.grid.with_shape((shape[0], shape[1]))
    _check_proportions(np.array(grid.pixel_um), shape, transform.forward.grid, name, "reference")
    return grid


def _scale(given: float | Path | None, transform: SectionTransform) -> tuple[float, float]:
    """Return how many times as wide and as high as the section's image another one is.

    Raises:
        InputError: If it is not a number above 0, or an image of other proportions.
    """
    if isinstance(given, Path):
        if not given.is_file():
            raise InputError(f"--scale: expected a number or an image, found no file {given}")
        shape = read_channels(given)[0].shape[:2]
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
    """Raise an error unless pixels are square, or of the grid's own proportions, but for a size rounded to pixels."""
    own = grid.pixel_um[0] / grid.pixel_um[1]
    rounding = 1.5 / min(*shape, *grid.shape)
    if min(abs(size[0] / size[1] / ratio - 1) for ratio in (1.0, own)) > rounding:
        height, width = grid.shape
        raise InputError(
            f"{name}: expected the proportions of the {what}, {height}×{width} px, found {shape[0]}×{shape[1]}"
        )


def is_inside(pixels: Points, grid: Grid) -> NDArray[np.bool_]:
    """Return which points (N, 2) lie on a pixel of the grid, outer edges included; NaN does not."""
    last = np.array(grid.shape[::-1]) - 0.5 + _ROUNDING_PX
    return np.asarray(((pixels >= -0.5 - _ROUNDING_PX) & (pixels <= last)).all(axis=1))


def is_far_outside(pixels: Points, grid: Grid) -> NDArray[np.bool_]:
    """Return which points (N, 2) lie further outside of the grid than `_FAR` of its size; NaN does not."""
    size = np.array(grid.shape[::-1])
    return np.asarray((np.abs(pixels - (size - 1) / 2) > (0.5 + _FAR) * size).any(axis=1))


def longest_edge(field: Displacement, grid: Grid) -> float:
    """Return, in pixels of `grid`, the distance of a field's pixels, between which it is linear."""
    return min(field.grid.pixel_um) / max(grid.pixel_um)
