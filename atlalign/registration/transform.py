"""The result of a registration: the map between a reference plane and a section, for images and points.

Both sides have their own frame in mm. The forward map takes reference points to the section and is used to warp the
section's image; the inverse map takes section points to the reference and is used to warp the reference's labels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Plane, Points
from atlalign.errors import InputError
from atlalign.io.cells import cut
from atlalign.io.views import Pixels
from atlalign.registration.bands import take_nearest, tiles_in_bands, warp_in_bands
from atlalign.registration.displacement import Displacement
from atlalign.registration.grid import Grid
from atlalign.registration.record import (
    FORWARD,
    INVERSE,
    RECORD,
    RECORD_FORMAT,
    REGISTER_AGAIN,
    check_file,
    file_state,
    read_record,
    write_record,
)


@dataclass(frozen=True, eq=False)
class SectionTransform:
    """The map between a reference plane and a section, in both directions.

    Attributes:
        forward: From the reference's frame to the section's.
        inverse: From the section's frame to the reference's.
        section: The pixels of the section's image.
        plane: The position of the reference in the atlas; None if the reference is an image.
        output_um: The pixel size of images that are written; None means the smaller of the pixel sizes of the section's
            image and of the reference.

    Example:
        >>> import torch
        >>> grid = Grid(shape=(40, 56), pixel_um=(25.0, 25.0))
        >>> half_a_mm = Displacement(grid, torch.full((2, 40, 56), 0.5))  # along x and y
        >>> SectionTransform(half_a_mm, half_a_mm, grid, plane=None).to_section(np.array([[0.25, 0.0]]))
        array([[30., 20.]])
    """

    forward: Displacement
    inverse: Displacement
    section: Grid
    plane: Plane | None
    output_um: float | None = None

    @property
    def reference(self) -> Grid:
        """The grid of images written in the reference's frame, such as the registered image."""
        finest = min(*self.section.pixel_um, *self.forward.grid.pixel_um)
        return self.forward.grid.finer(self.output_um or finest)

    @property
    def in_section(self) -> Grid:
        """The grid of images written in the section's frame: the section's own, or one with larger pixels."""
        if self.output_um is None:
            return self.section
        height, width = (
            max(1, min(size, round(size * um / self.output_um)))
            for size, um in zip(self.section.shape, self.section.pixel_um[::-1], strict=True)
        )
        return self.section.resampled((height, width))

    @property
    def has_sides(self) -> bool:
        """Whether the reference shows the left side of the brain and the right one; a sagittal plane does not."""
        return self.plane is not None and self.plane.kind != "sagittal"

    @property
    def midline_mm(self) -> float:
        """The x of the midline in the reference's frame: its middle, because a plane shows the atlas's whole width."""
        grid = self.forward.grid
        return (grid.shape[1] - 1) / 2 * grid.pixel_um[0] / 1000

    def to_reference(self, pixels: Points) -> Points:
        """Map section points (N, 2) in pixels (x, y) to the reference's frame in mm."""
        return self.inverse(self.section.to_mm(pixels))

    def to_atlas(self, pixels: Points) -> Points:
        """Map section points (N, 2) in pixels (x, y) to the atlas: (AP, DV, ML) in µm, (N, 3).

        Raises:
            InputError: If the reference is not a plane of an atlas.
        """
        if self.plane is None:
            raise InputError("expected a registration to an atlas, found a registration to a reference image")
        return self.plane.to_atlas(self.to_reference(pixels))

    def to_section(self, points_mm: Points) -> Points:
        """Map points (N, 2) of the reference's frame in mm to pixels (x, y) of the section."""
        return self.section.to_pixels(self.forward(points_mm))

    def register(
        self, image: Pixels, *, scale: tuple[float, float] = (1.0, 1.0), fill: Any = 0
    ) -> Iterator[NDArray[Any]]:
        """Yield the registered image, of `reference.shape`, in bands of rows, which `np.concatenate(list(…))` joins.

        Args:
            image: The section (h, w) or (h, w, 3); interpolation is linear; integers are rounded.
            scale: The number of section pixels that one pixel of `image` covers, along x and y.
            fill: The value outside the section, or one value per channel.
        """
        source = self.section.scaled(scale, (image.shape[0], image.shape[1]))
        return warp_in_bands(image, source, self.forward, self.reference, fill=fill)

    def label(self, labels: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield the labels in section space, of shape `in_section.shape`, in bands of rows.

        Args:
            labels: The labels of the reference, at any resolution. Interpolation is nearest-neighbour; 0 outside.
        """
        grid = self.forward.grid.with_shape((labels.shape[0], labels.shape[1]))
        return warp_in_bands(labels, grid, self.inverse, self.in_section, nearest=True)

    def label_by_side(self, labels: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        """Yield the same bands as `label`, each with a mask of its pixels left of the midline."""
        grid = self.forward.grid.with_shape((labels.shape[0], labels.shape[1]))
        middle = (labels.shape[1] - 1) / 2
        for tiles in tiles_in_bands(grid, self.inverse, self.in_section):
            taken = [(take_nearest(labels, tile, 0), tile[0].numpy() < middle) for tile in tiles]
            yield (
                np.concatenate([ids for ids, _ in taken], axis=1),
                np.concatenate([is_left for _, is_left in taken], axis=1),
            )

    def save(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the transform into a folder, with `record`, plain data on how it was made.

        The saved record also holds the sizes and checksums of all files in the folder.
        """
        self.forward.write(folder / FORWARD)
        self.inverse.write(folder / INVERSE)
        frames = {
            "section": {"shape": self.section.shape, "pixel_um": self.section.pixel_um},
            "plane": None if self.plane is None else self.plane.matrix.tolist(),
            "output_um": self.output_um,
        }
        files = {path.name: file_state(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
        write_record(folder, {"format": RECORD_FORMAT, **frames, **record, "files": files})

    @classmethod
    def load(cls, folder: str | Path) -> "SectionTransform":
        """Read a transform written by `save`.

        Raises:
            InputError: If the folder holds no transform, or the transform is damaged.
        """
        folder = Path(folder)
        record = read_record(folder)
        section = _recorded_grid(record.get("section"), folder / RECORD)
        plane = _recorded_plane(record.get("plane", ""), folder / RECORD)
        output_um = _recorded_size(record.get("output_um"), folder / RECORD)
        for name in (FORWARD, INVERSE):
            check_file(folder, record, name)
        forward, inverse = (Displacement.read(folder / name) for name in (FORWARD, INVERSE))
        return cls(forward, inverse, section, plane, output_um)


def _recorded_grid(found: Any, path: Path) -> Grid:
    """Return the section's pixels as `SectionTransform.save` wrote them."""
    try:
        height, width = found["shape"]
        x, y = (float(size) for size in found["pixel_um"])
        is_valid = (
            all(isinstance(n, int) and n > 1 for n in (height, width)) and 0 < min(x, y) <= max(x, y) < np.inf
        )
    except (KeyError, TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise InputError(
            f"{path}, section: expected the shape (H, W) and pixel_um (x, y) of an image, found {cut(str(found), 80)}: "
            f"{REGISTER_AGAIN}"
        )
    return Grid((height, width), (x, y))


def _recorded_size(found: Any, path: Path) -> float | None:
    """Return the size of written pixels, as `SectionTransform.save` wrote it."""
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if found is not None and not (is_number and 0 < found < np.inf):
        raise InputError(
            f"{path}, output_um: expected null or a size in µm, found {cut(str(found), 80)}: {REGISTER_AGAIN}"
        )
    return None if found is None else float(found)


def _recorded_plane(found: Any, path: Path) -> Plane | None:
    """Return the reference's position in the atlas as `SectionTransform.save` wrote it."""
    if found is None:
        return None
    try:
        matrix = np.array(found, np.float64).reshape(3, 3)
        # x and y of the frame must point in different directions in the atlas.
        is_valid = bool(np.isfinite(matrix).all() and np.linalg.matrix_rank(matrix[:, :2]) == 2)
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise InputError(
            f"{path}, plane: expected null or an invertible 3×3 matrix of finite numbers, found {cut(str(found), 80)}: "
            f"{REGISTER_AGAIN}"
        )
    return Plane(matrix)
