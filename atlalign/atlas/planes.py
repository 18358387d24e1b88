"""The position of a section in the atlas: a plane, or the anchoring of QuickNII and DeepSlice.

Atlas coordinates are µm along (AP, DV, ML). AP counts from the front, DV from the top, and ML along the columns of a
coronal plane. In the Allen atlas ML counts from the left of the brain, by its own convention (PIR) and QuickNII's.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from atlalign import geometry
from atlalign.errors import InputError

Points = NDArray[np.float64]
"""Points, one per row: (N, 2) or (N, 3)."""
Point = NDArray[np.float64]
"""One point or vector: (2,) or (3,)."""
Matrix = NDArray[np.float64]
"""A linear map (2, 2) or an affine one: (2, 3), or (3, 3) with homogeneous coordinates."""

KINDS = ("coronal", "horizontal", "sagittal")
"""The kinds of planes, by the axis that they cut across: AP, DV or ML."""
IN_PLANE = ((2, 1), (2, 0), (0, 1))
"""For each kind, the axes along x (right) and y (down) of an upright section."""

GRID = (528, 320, 456)
"""The grid of QuickNII and DeepSlice: voxels of the Allen atlas along (AP, DV, ML)."""
GRID_UM = 25.0
"""The size of a voxel of `GRID`."""

_LEAST_UM = 50.0  # no section lies closer to the front in µm, and no brain is as long in mm


class _Cut(ABC):
    """A plane through the atlas, which cuts across one of its axes."""

    @property
    @abstractmethod
    def _to_atlas(self) -> Matrix:
        """The matrix (3, 3) that maps (x, y, 1) on the plane to (AP, DV, ML)."""

    @property
    def across(self) -> int:
        """The axis that the plane cuts across: 0 for AP (coronal), 1 for DV (horizontal), 2 for ML (sagittal)."""
        along_x, along_y, _ = self._to_atlas.T
        return int(np.abs(np.cross(along_x, along_y)).argmax())  # closest to the normal

    @property
    def kind(self) -> str:
        """The kind of the plane: one of `KINDS`."""
        return KINDS[self.across]

    @property
    def axes(self) -> list[int]:
        """The axes along x and y of an upright section on the plane."""
        return list(IN_PLANE[self.across])


@dataclass(frozen=True, eq=False)
class Plane(_Cut):
    """A plane of the atlas, possibly oblique, with its own frame in mm.

    In the frame of a coronal plane, x runs along ML and y along DV; `axes` gives the axes for any kind of plane.

    Attributes:
        matrix: (3, 3), maps (x_mm, y_mm, 1) in the frame to (AP, DV, ML) in µm.
    """

    matrix: Matrix

    @classmethod
    def at(
        cls,
        position_um: float,
        origin_um: tuple[float, float],
        *,
        per_x: float = 0.0,
        per_y: float = 0.0,
        across: int = 0,
    ) -> "Plane":
        """Return the plane whose frame has its origin at `origin_um`, along x and y.

        Args:
            position_um: The position of the frame's origin along the axis that the plane cuts across.
            origin_um: The origin's positions along x and y: (ML, DV) for a coronal plane.
            per_x: Change of the position per unit of x.
            per_y: Change of the position per unit of y.
            across: The axis that the plane cuts across: 0 for AP, 1 for DV, 2 for ML.
        """
        x, y = IN_PLANE[across]
        matrix = np.zeros((3, 3))
        matrix[across] = 1000 * per_x, 1000 * per_y, position_um
        matrix[x] = 1000, 0, origin_um[0]
        matrix[y] = 0, 1000, origin_um[1]
        return cls(matrix)

    @property
    def _to_atlas(self) -> Matrix:
        return self.matrix

    def moved(self, distance_um: float) -> "Plane":
        """Return the plane `distance_um` further along the axis that it cuts across, with the same frame."""
        matrix = self.matrix.copy()
        matrix[self.across, 2] += distance_um
        return Plane(matrix)

    def to_atlas(self, points_mm: Points) -> Points:
        """Return the atlas coordinates (AP, DV, ML) in µm (N, 3) of points (N, 2) of the frame, in mm."""
        return apply_affine(self.matrix, points_mm)

    def from_atlas(self, points_um: Points) -> tuple[Points, NDArray[np.float64]]:
        """Return atlas points (N, 3), in µm, projected onto the plane, and their distances behind it.

        Points are projected along the axis that the plane cuts across. The projections are points (N, 2) of the frame
        in mm. The distances (N,) are in µm, negative in front.
        """
        across, in_plane = self.across, self.matrix[self.axes]
        points_mm = (points_um[:, self.axes] - in_plane[:, 2]) @ np.linalg.inv(in_plane[:, :2]).T
        return points_mm, points_um[:, across] - self.to_atlas(points_mm)[:, across]


@dataclass(frozen=True, eq=False)
class Anchoring(_Cut):
    """The position of a whole image in the atlas, in the convention of QuickNII and DeepSlice.

    The point at the fractions (s, t) in [0, 1]² of the image's width and height lies at (x, y, z) = o + s·u + t·v, in
    voxels of `GRID`. It lies in the atlas voxel (527 − ⌊y⌋, 319 − ⌊z⌋, ⌊x⌋).

    Attributes:
        vectors: (3, 3), the rows o, u, v.
        size: (h, w) of the image in pixels, whose centres lie at (k + ½)/w and (k + ½)/h.

    Raises:
        InputError: If u and v span no plane, or the image is narrower than 2 pixels.
    """

    vectors: Matrix
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.size) < 2:
            height, width = self.size
            raise InputError(f"anchoring: expected an image of at least 2×2 px, found {height}×{width}")
        if not np.abs(np.cross(self.vectors[1], self.vectors[2])).max() >= 1:
            raise InputError("anchoring: expected u and v to span a plane, found almost no area")

    @property
    def _to_atlas(self) -> Matrix:
        return self.share_to_um

    @property
    def share_to_um(self) -> Matrix:
        """The matrix (3, 3) that maps (s, t, 1) to (AP, DV, ML) in µm."""
        x, y, z = np.roll(self.vectors, -1, axis=0).T  # (s, t, 1) of each axis
        last = np.array([0.0, 0.0, 1.0])
        return GRID_UM * np.stack([GRID[0] * last - y, GRID[1] * last - z, x])

    @property
    def position_um(self) -> float:
        """Position of the image's centre along the axis that the plane cuts across: AP for a coronal plane."""
        return float(self.share_to_um[self.across] @ (0.5, 0.5, 1))

    @property
    def tilt(self) -> tuple[float, float]:
        """The slope of the position along both axes of the plane: for a coronal plane, of AP along ML and DV."""
        by_share = self.share_to_um[:, :2]
        per_x, per_y = np.linalg.solve(by_share[self.axes].T, by_share[self.across])
        return float(per_x), float(per_y)

    def plane(self, origin_um: tuple[float, float]) -> Plane:
        """Return the plane of the section, with an upright frame whose origin lies at `origin_um`, along x and y."""
        per_x, per_y = self.tilt
        corner = self.share_to_um[:, 2]
        x, y = np.array(origin_um) - corner[self.axes]
        position_um = float(corner[self.across] + per_x * x + per_y * y)
        return Plane.at(position_um, origin_um, per_x=per_x, per_y=per_y, across=self.across)

    def um_to_pixel(self) -> Matrix:
        """Return the map (2, 3) from µm along the plane's axes, (ML, DV) if coronal, to pixels (x, y)."""
        to_share = invert_affine(self.share_to_um[self.axes])
        height, width = self.size
        return np.array([[width, 0, -0.5], [0, height, -0.5]]) @ homogeneous(to_share)

    def on(self, size: tuple[int, int]) -> "Anchoring":
        """Return the anchoring of the same image at another size (h, w), such as a full scan.

        Raises:
            InputError: If its proportions differ by more than rounding to pixels explains.
        """
        (height, width), (own_height, own_width) = size, self.size
        rounding = 1.5 / min(*size, *self.size)
        if abs(height / own_height * own_width / width - 1) > rounding:
            raise InputError(
                f"expected the proportions of the anchored image, {own_height}×{own_width} px, found "
                f"{height}×{width} px"
            )
        return Anchoring(self.vectors, size)

    def to_json(self) -> list[float]:
        """Return o, u, v as nine numbers."""
        return [float(value) for value in self.vectors.ravel()]

    @classmethod
    def of_plane(cls, plane: Plane, pixel_to_mm: Matrix, size: tuple[int, int]) -> "Anchoring":
        """Return the anchoring of an image, where `pixel_to_mm` (2, 3) maps its pixels to the frame of a plane."""
        height, width = size
        share_to_pixel = np.array([[width, 0, -0.5], [0, height, -0.5]])
        share_to_mm = pixel_to_mm @ homogeneous(share_to_pixel)
        return cls.of_points_um(plane.matrix @ homogeneous(share_to_mm), size)

    @classmethod
    def of_points_um(cls, share_to_um: Matrix, size: tuple[int, int]) -> "Anchoring":
        """Return the anchoring of an image with this `share_to_um` (3, 3)."""
        ap, dv, ml = share_to_um / GRID_UM
        last = np.array([0.0, 0.0, 1.0])
        by_share = np.stack([ml, GRID[0] * last - ap, GRID[1] * last - dv], axis=1)
        return cls(np.roll(by_share, 1, axis=0), size)


def homogeneous(matrix: Matrix) -> Matrix:
    """Return an affine map (2, 3) as a matrix (3, 3)."""
    return np.vstack([matrix, [0.0, 0.0, 1.0]])


def invert_affine(matrix: Matrix) -> Matrix:
    """Return the inverse (2, 3) of an affine map (2, 3)."""
    return geometry.invert_affine(torch.tensor(matrix, dtype=torch.float64)[None])[0].numpy()


def apply_affine(matrix: Matrix, points: Points) -> Points:
    """Return the images (N, k) of points (N, 2) under an affine map (k, 3)."""
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], dtype=np.float64)


def check_is_um(position_um: float, where: str) -> None:
    """Check that a position in µm from the front of the atlas was not given in mm by mistake.

    Raises:
        InputError: If it only makes sense in mm; the message begins with `where`.
    """
    if 0 < position_um < _LEAST_UM:
        raise InputError(
            f"{where}: expected a position in µm from the front of the atlas, got {position_um:g}: is that mm?"
        )
