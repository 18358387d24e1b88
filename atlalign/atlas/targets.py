"""The voxels in which a file expresses its anchorings: those of the atlas to which its images are anchored."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import GRID, GRID_UM, Anchoring, Matrix
from atlalign.errors import InputError
from atlalign.io.cells import shown

ALLEN = "ABA_Mouse_CCFv3_2017_25um.cutlas"
"""QuickNII's name for the Allen Mouse Brain CCFv3, whose voxels are those of `GRID`."""

VOXELS = "voxels"
"""The key that describes the voxels of another atlas in files of this package."""

_ALLEN_ROOT = 997  # the id of the whole brain in the Allen ontology
_SAME_UM = 1.0


@dataclass(frozen=True)
class Target:
    """The voxels of an atlas in QuickNII's order: x from the left, y from the back, z from the bottom.

    Attributes:
        name: The atlas.
        shape: The number of voxels along (AP, DV, ML).
        voxel_um: The size of a voxel.
        corner_um: The outer corner of the first voxel: front, top, left.
    """

    name: str = ALLEN
    shape: tuple[int, int, int] = GRID
    voxel_um: tuple[float, float, float] = (GRID_UM, GRID_UM, GRID_UM)
    corner_um: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, atlas: Atlas) -> "Target":
        """Return the voxels of an atlas; for an Allen CCFv3 of any resolution, these are QuickNII's voxels."""
        if _is_allen(atlas):
            return cls()
        across_um, down_um = atlas.pixel_um
        corner_um = (0.0, atlas.origin_um[1] - down_um / 2, atlas.origin_um[0] - across_um / 2)
        shape = (len(atlas.template), *atlas.image_shape)
        return cls(_name(atlas), shape, (atlas.spacing_um, down_um, across_um), corner_um)

    @classmethod
    def of_json(cls, name: str, voxels: Any, where: str) -> "Target":
        """Return the voxels that a file describes.

        Raises:
            InputError: If the description lacks three positive sizes, three counts or a corner.
        """
        described = voxels if isinstance(voxels, Mapping) else {}
        keys = ("shape", "size_um", "corner_um")
        shape, size_um, corner_um = (_three(described.get(key), f"{where}.{key}") for key in keys)
        if min(*shape, *size_um) <= 0:
            raise InputError(f"{where}: expected a shape and a size_um above 0, found {shown(voxels)}")
        return cls(name, (int(shape[0]), int(shape[1]), int(shape[2])), size_um, corner_um)

    @classmethod
    def of_head(cls, head: Mapping[str, Any], where: str) -> "Target":
        """Return the voxels that the head of a file of this package describes, see `to_json`.

        Files without a description are anchored to the Allen atlas.

        Raises:
            InputError: If the description is invalid.
        """
        if VOXELS not in head:
            return cls()
        return cls.of_json(str(head.get("target")), head[VOXELS], f"{where}: {VOXELS}")

    def to_json(self) -> dict[str, Any]:
        """Return the head of a file whose anchorings are in these voxels: a description of the voxels."""
        if self.name == ALLEN:
            return {"target": ALLEN}
        voxels = {
            "shape": list(self.shape),
            "size_um": list(self.voxel_um),
            "corner_um": list(self.corner_um),
        }
        return {"target": self.name, VOXELS: voxels}

    def vectors(self, anchoring: Anchoring) -> Matrix:
        """Return o, u, v of an anchoring in these voxels."""
        if self == Target():
            return anchoring.vectors
        to_voxel = (anchoring.share_to_um - self._corner()) / np.array(self.voxel_um)[:, None]
        ap, dv, ml = to_voxel
        last = np.array([0.0, 0.0, 1.0])
        by_share = np.stack([ml, self.shape[0] * last - ap, self.shape[1] * last - dv], axis=1)
        return np.roll(by_share, 1, axis=0)

    def in_grid(self, vectors: Matrix) -> Matrix:
        """Return vectors o, u, v in these voxels converted to those of `GRID`."""
        x, y, z = np.roll(vectors, -1, axis=0).T
        last = np.array([0.0, 0.0, 1.0])
        by_voxel = np.stack([self.shape[0] * last - y, self.shape[1] * last - z, x])
        share_to_um = by_voxel * np.array(self.voxel_um)[:, None] + self._corner()
        return Anchoring.of_points_um(share_to_um, (2, 2)).vectors

    def _corner(self) -> Matrix:
        """Return a matrix (3, 3) with the corner in its last column, which does not depend on (s, t)."""
        return np.outer(self.corner_um, (0.0, 0.0, 1.0))


def _is_allen(atlas: Atlas) -> bool:
    """Return whether an atlas has the frame of the Allen CCFv3 and the ids of its ontology."""
    down_um, across_um = (
        pixel_um * size for pixel_um, size in zip(atlas.pixel_um[::-1], atlas.image_shape, strict=True)
    )
    own_um = (atlas.extent_um, down_um, across_um)
    known_um = tuple(GRID_UM * size for size in GRID)
    same_frame = all(abs(own - known) < _SAME_UM for own, known in zip(own_um, known_um, strict=True))
    return same_frame and atlas.annotation is not None and bool((atlas.annotation == _ALLEN_ROOT).any())


def _name(atlas: Atlas) -> str:
    """Return the name of an atlas with its resolution, in the form used by QuickNII and BrainGlobe."""
    resolution = f"{atlas.spacing_um:g}um"
    return atlas.name if atlas.name.endswith(resolution) else f"{atlas.name}_{resolution}"


def _three(found: Any, where: str) -> tuple[float, float, float]:
    numbers = found if isinstance(found, list) else []
    if len(numbers) != 3 or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        raise InputError(f"{where}: expected three numbers (AP, DV, ML), found {shown(found)}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])
