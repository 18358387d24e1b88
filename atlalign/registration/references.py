"""The references of a registration: planes of an atlas, or one image of the user's."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.ontology import Ontology
from atlalign.atlas.planes import Plane
from atlalign.atlas.slicing import sliced_across
from atlalign.atlas.targets import Target
from atlalign.errors import InputError
from atlalign.io.files import fingerprint_of
from atlalign.io.images import ImageFile, resize_images
from atlalign.io.intensity import tissue_of
from atlalign.io.pixels import PixelSize
from atlalign.registration.grid import Grid
from atlalign.registration.jobs import Job
from atlalign.registration.options import Side

_ML = 2


@dataclass(frozen=True, eq=False)
class AtlasReferences:
    """The planes of an atlas, one for each section.

    Attributes:
        atlas: The atlas at its own resolution.
        image_shape: The network's (H, W).
    """

    atlas: Atlas
    image_shape: tuple[int, int]

    @property
    def ontology(self) -> Ontology | None:
        """The names of the atlas's regions."""
        return self.atlas.ontology

    @cached_property
    def origin(self) -> Mapping[str, Any]:
        """Plain data that identifies the atlas."""
        return {"reference": self.atlas.name, "reference_sha256": self.atlas.fingerprint()}

    @cached_property
    def target(self) -> Target:
        """The voxel grid in which anchorings to the atlas are written."""
        return Target.of(self.atlas)

    def of(self, job: Job, hemisphere: Side | None) -> "Reference":
        """Return the plane of a section, or one half of it.

        Raises:
            InputError: If the section has no position or is anchored to another atlas, or the atlas has no tissue
                there.
        """
        if job.position_um is None:
            raise InputError(
                f"{job.path.name}: expected the position of the section in the atlas, found none"
            )
        if job.target and job.target != self.target.name:
            raise InputError(
                f"{job.path.name}: expected an anchoring to the atlas '{self.target.name}', found one to '{job.target}'"
            )
        across = 0 if job.anchoring is None else job.anchoring.across
        sliced_across(self.atlas, across).plane_index(job.position_um)  # raises outside
        if hemisphere is not None and across == _ML:
            raise InputError(
                f"{job.path.name}: --hemisphere expects a coronal or horizontal section, got a sagittal one, whose "
                "position gives its side"
            )
        return self._at(job, hemisphere, 0.0)

    def nearby(
        self, job: Job, hemisphere: Side | None, distances_um: Iterable[float]
    ) -> dict[float, "Reference"]:
        """Return the planes at these distances from the section's plane, without planes that show no tissue."""
        found = {}
        for distance_um in distances_um:
            with suppress(InputError):
                found[distance_um] = self._at(job, hemisphere, distance_um)
        return found

    def _at(self, job: Job, hemisphere: Side | None, distance_um: float) -> "Reference":
        assert job.position_um is not None
        if job.anchoring is None:
            plane = Plane.at(job.position_um, self.atlas.origin_um)
        else:
            plane = job.anchoring.plane(sliced_across(self.atlas, job.anchoring.across).origin_um)
        return atlas_reference(self.atlas, plane.moved(distance_um), self.image_shape).half(hemisphere)


@dataclass(frozen=True, eq=False)
class ImageReference:
    """One image to which all sections are registered.

    Attributes:
        reference: The image.
        ontology: The names of its regions, if known.
        name: The name of its file.
    """

    reference: "Reference"
    ontology: Ontology | None
    name: str

    @property
    def target(self) -> None:
        """None, because an image has no voxels."""
        return None

    @cached_property
    def origin(self) -> Mapping[str, Any]:
        """Plain data that identifies the image."""
        names = None if self.ontology is None else list(self.ontology)
        return {
            "reference": self.name,
            "reference_sha256": fingerprint_of(self.reference.fingerprint(), names),
        }

    def of(self, job: Job, hemisphere: Side | None) -> "Reference":
        """Return the image, or one half of it."""
        return self.reference.half(hemisphere)

    def nearby(
        self, job: Job, hemisphere: Side | None, distances_um: Iterable[float]
    ) -> dict[float, "Reference"]:
        """Return nothing: an image has no neighbouring planes."""
        return {}


References = AtlasReferences | ImageReference

# --- one reference ----------------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """The image that a section is registered to, with its labels and its position.

    Attributes:
        image: (1, 1, H, W) in [0, 1], at the network's size.
        labels: Region ids on any grid with the same outermost pixels, or None.
        grid: The pixels of the image.
        plane: Its position in the atlas; None if it is not a plane of an atlas.
        full: (1, h, w), the image at its original resolution, with the same outer edges.
    """

    image: Tensor
    labels: NDArray[Any] | None
    grid: Grid
    plane: Plane | None
    full: Tensor

    def image_at(self, shape: tuple[int, int]) -> Tensor:
        """Return the image at another size (1, 1, H', W')."""
        return resize_images(self.full, shape)[None]

    @property
    def tissue(self) -> Tensor:
        """A mask (H, W) of the tissue: the labelled pixels or, without labels, the bright ones."""
        if self.labels is None:
            return bright_tissue(self.image[0, 0])
        height, width = self.grid.shape
        rows, columns = (
            torch.linspace(0, size - 1, new_size).round().long()
            for size, new_size in zip(self.labels.shape, (height, width), strict=True)
        )
        return torch.from_numpy(self.labels[rows[:, None].numpy(), columns.numpy()] != 0)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the whole reference."""
        plane = None if self.plane is None else self.plane.matrix
        return fingerprint_of(self.image.numpy(), self.labels, (self.grid.shape, self.grid.pixel_um), plane)

    def without(self, hidden: Tensor) -> "Reference":
        """Return the reference set to 0 where a mask (H, W) on the image's grid hides it."""
        if self.labels is None:
            return self._replace(image=self.image * ~hidden)
        rows, columns = (
            np.linspace(0, size - 1, new_size).round().astype(int)
            for size, new_size in zip(hidden.shape, self.labels.shape, strict=True)
        )
        labels = np.where(hidden.numpy()[np.ix_(rows, columns)], 0, self.labels)
        return self._replace(image=self.image * ~hidden, labels=labels)

    def half(self, side: Side | None) -> "Reference":
        """Return the reference with only this `side`, and the other half set to 0; None keeps both."""
        if side is None:
            return self
        image = self.image * torch.from_numpy(columns_of(side, self.grid.shape[1]))
        full = self.full * torch.from_numpy(columns_of(side, self.full.shape[-1]))
        labels = None if self.labels is None else self.labels * columns_of(side, self.labels.shape[1])
        return self._replace(image=image, labels=labels, full=full)


def columns_of(side: Side, width: int) -> NDArray[np.bool_]:
    """Return the mask of a reference's columns that belong to one half of it; the middle column belongs to both."""
    place = np.arange(width) - (width - 1) / 2
    return place <= 0 if side == "left" else place >= 0


def atlas_reference(atlas: Atlas, plane: Plane, image_shape: tuple[int, int]) -> Reference:
    """Cut a plane out of an atlas.

    Args:
        atlas: The atlas at its own resolution, which the labels keep.
        plane: The plane; its frame starts at the centre of the atlas's first pixel.
        image_shape: The network's (H, W).

    Raises:
        InputError: If the plane contains no tissue.
    """
    atlas = sliced_across(atlas, plane.across)
    grid = Grid(atlas.image_shape, atlas.pixel_um)
    per_x, per_y, at_origin = plane.matrix[plane.across] * (*grid.pixel_um, 1000.0) / 1000
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in grid.shape)
    position_um = (at_origin + per_y * rows)[:, None] + per_x * columns
    image, labels = atlas.cut(position_um)
    resized = resize_images(image, image_shape)[None]
    regions = None if labels is None else labels[0].numpy()
    reference = Reference(resized, regions, grid.with_shape(image_shape), plane, image)
    if not image.any() or not reference.tissue.any():
        middle = float(position_um[grid.shape[0] // 2, grid.shape[1] // 2])
        raise InputError(
            f"position: expected a plane with tissue, found none in atlas '{atlas.name}' at {middle:.0f} µm"
        )
    return reference


def image_reference(
    image: ImageFile,
    labels: NDArray[Any] | None,
    image_shape: tuple[int, int],
    *,
    pixel_um: float | None,
    name: str,
) -> Reference:
    """Make a reference from an image; its background becomes dark.

    Args:
        image: The image in grey or colour.
        labels: Region ids (h, w) on any grid with the same outermost pixels.
        image_shape: The network's (H, W).
        pixel_um: The pixel size of the image; None means the value in the file.
        name: The name of the image in error messages.

    Raises:
        InputError: If the pixel size is unknown or not positive.
    """
    size = image.pixel_um if pixel_um is None else (pixel_um, pixel_um)
    if size is None:
        raise InputError(f"{name}: expected a pixel size, found none in the file: give --reference-pixel-um")
    if not all(0 < length < np.inf for length in size):
        raise InputError(
            f"{name}: expected a pixel size above 0 µm, got {in_words(size)}: give --reference-pixel-um"
        )
    grey = tissue_of(image.pixels, name=name).image
    height, width = image.pixels.shape[:2]
    grid = Grid((height, width), size).with_shape(image_shape)
    full = grey[None]
    return Reference(resize_images(full, image_shape)[None], labels, grid, None, full)


def bright_tissue(image: Tensor) -> Tensor:
    """Return a mask of the bright pixels of an image (h, w) with a dark background, by Otsu's threshold."""
    import SimpleITK

    otsu: Any = SimpleITK.OtsuThreshold
    return (
        torch.from_numpy(SimpleITK.GetArrayFromImage(otsu(SimpleITK.GetImageFromArray(image.numpy()), 0, 1)))
        > 0
    )


def in_words(pixel_um: PixelSize) -> str:
    """Return a pixel size as text."""
    return f"{pixel_um[0]:g} × {pixel_um[1]:g} µm"
