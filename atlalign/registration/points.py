"""Pairs of points set by the user, and the transform that passes through them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from atlalign.atlas.planes import Anchoring, Matrix, Plane, Point, Points, apply_affine, invert_affine
from atlalign.geometry import jacobian_determinant
from atlalign.geometry.landmarks import TriangleMap, check_targets, move_points
from atlalign.registration.displacement import Displacement
from atlalign.registration.placed_field import affine_of, field_of, pixels_of, transform_by, transform_of
from atlalign.registration.transform import SectionTransform

REACH = 0.25
"""The distance at which a point's effect ends, as a fraction of the reference's width."""

WITHOUT_POINTS = "without_points.nii.gz"
"""The forward field before it was adjusted to points, in the folder of a section with points."""

_CORNERS = np.array([[-0.1, -0.1], [1.1, -0.1], [-0.1, 1.1], [1.1, 1.1]])


@dataclass(frozen=True, eq=False)
class PointPairs:
    """Points in the reference, and the corresponding points in the section.

    Attributes:
        reference_um: (N, 2), (ML, DV) in µm in the atlas; for a reference image, (x, y) in µm from its first pixel.
        section: (N, 2) as (x, y) in pixels of the section's image, from the centre of the first pixel.
        size: (h, w) of the image that has these pixels, such as a thumbnail; None for the section's own image.
    """

    reference_um: Points
    section: Points
    size: tuple[int, int] | None = None

    @classmethod
    def none(cls) -> "PointPairs":
        """Return an empty set of pairs."""
        return cls(np.zeros((0, 2)), np.zeros((0, 2)))

    def __len__(self) -> int:
        return len(self.section)

    def reference_mm(self, plane: Plane | None) -> Points:
        """Return the reference points in the reference's frame, in mm."""
        return (self.reference_um - _origin_um(plane)) / 1000

    @classmethod
    def of_markers(cls, markers: Sequence[Sequence[float]], anchoring: Anchoring) -> "PointPairs":
        """Return VisuAlign's markers as pairs of points, with section points in pixels of the anchored image.

        Args:
            markers: (x, y) on the overlay of the atlas, then (x, y) in the image, in pixels from the corner of the
                first pixel.
            anchoring: The anchoring of the image, whose size also applies to the markers.
        """
        numbers = np.array(markers, np.float64).reshape(-1, 4) - 0.5
        return cls(
            apply_affine(invert_affine(anchoring.um_to_pixel()), numbers[:, :2]),
            numbers[:, 2:],
            anchoring.size,
        )

    def as_markers(self, anchoring: Anchoring) -> list[list[float]]:
        """Return the pairs as VisuAlign's markers; the inverse of `of_markers`."""
        overlay = apply_affine(anchoring.um_to_pixel(), self.reference_um)
        markers: list[list[float]] = (
            (np.hstack([overlay, self.on(anchoring.size).section]) + 0.5).round(4).tolist()
        )
        return markers

    def on(self, size: tuple[int, int]) -> "PointPairs":
        """Return the pairs in pixels of another scan (H, W) of the whole image."""
        if self.size in (None, size):
            return self
        factor = np.array(size[::-1]) / np.array(self.size)[::-1]
        return PointPairs(self.reference_um, (self.section + 0.5) * factor - 0.5, size)


def _origin_um(plane: Plane | None) -> Point:
    return np.zeros(2) if plane is None else plane.matrix[plane.axes, 2]


def load_without_points(folder: Path) -> SectionTransform:
    """Return a section's transform without its points, so that other points can be applied.

    The transform keeps the inverse of the result; `honoured` computes a new inverse if there are points.

    Raises:
        InputError: If the folder holds no transform, or a damaged one.
    """
    transform = SectionTransform.load(folder)
    path = folder / WITHOUT_POINTS
    return replace(transform, forward=Displacement.read(path)) if path.exists() else transform


def honoured(base: SectionTransform, pairs: PointPairs, *, by_network: bool) -> SectionTransform:
    """Return a transform through pairs of points: added smoothly to a network's field, or as in VisuAlign."""
    if not len(pairs):
        return base
    pairs = pairs.on(base.section.shape)
    return with_points(base, pairs) if by_network else with_markers(base, pairs)


def with_points(base: SectionTransform, pairs: PointPairs) -> SectionTransform:
    """Return a transform that maps each pair's reference point to its section point.

    Args:
        base: A transform, such as the network's. It stays unchanged farther than `REACH` from all points.
        pairs: The pairs; those whose reference point lies outside the reference have no effect.

    Raises:
        InputError: If one reference point has two section points.
    """
    grid, matrix = base.forward.grid, affine_of(base)
    points = grid.to_pixels(pairs.reference_mm(base.plane))
    inside = ((points >= -0.5) & (points <= np.array(grid.shape[::-1]) - 0.5)).all(axis=1)
    targets = apply_affine(invert_affine(matrix), pairs.section)
    moved = move_points(
        field_of(base, matrix),
        torch.from_numpy(points[inside]),
        torch.from_numpy(targets[inside]),
        reach_px=REACH * grid.shape[1],
    )
    return transform_of(moved, matrix, grid, base.section, base.plane)


def with_markers(base: SectionTransform, pairs: PointPairs) -> SectionTransform:
    """Return a transform that passes through the pairs, interpolated as in VisuAlign.

    VisuAlign interpolates linearly on the Delaunay triangles of the section's points and of four fixed corners, 10 %
    outside the image. Where triangles are turned over, the section shows a place of the reference twice.

    Args:
        base: The transform of an anchoring alone, which is affine.
        pairs: The markers.

    Raises:
        InputError: If one section point has two reference points.
    """
    grid, matrix = base.forward.grid, affine_of(base)
    height, width = base.section.shape
    overlay = apply_affine(matrix, grid.to_pixels(pairs.reference_mm(base.plane)))
    check_targets(torch.from_numpy(pairs.section), torch.from_numpy(overlay), of="section", to="reference")
    corners = _CORNERS * (width, height) - 0.5
    to_overlay = TriangleMap.delaunay(np.vstack([corners, pairs.section]), np.vstack([corners, overlay]))
    from_overlay = to_overlay.inverse()

    def to_section(points_mm: Points) -> Points:
        return base.section.to_mm(from_overlay(apply_affine(matrix, grid.to_pixels(points_mm))))

    def to_reference(points_mm: Points) -> Points:
        return grid.to_mm(apply_affine(invert_affine(matrix), to_overlay(base.section.to_pixels(points_mm))))

    return transform_by(to_section, to_reference, grid, base.inverse.grid, base.section, base.plane)


def folded_share(transform: SectionTransform, matrix: Matrix) -> float:
    """Return the fraction of the section that shows the reference turned over.

    Args:
        transform: The transform; only its inverse is used, because `with_markers` stores folded triangles only there.
        matrix: (2, 3), the affine part of the transform, from pixels of the reference's grid to the section's.
    """
    grid = transform.inverse.grid
    points_mm = grid.to_mm(pixels_of(grid))
    reference = transform.forward.grid.to_pixels(transform.inverse(points_mm))
    shift = grid.to_pixels(transform.section.to_mm(apply_affine(matrix, reference)) - points_mm)
    dvf = torch.from_numpy(np.ascontiguousarray(shift.T)).view(1, 2, *grid.shape)
    return float((jacobian_determinant(dvf) <= 0).double().mean())
