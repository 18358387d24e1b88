"""The transform that a placement and a field form together, and the field of a transform."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from atlalign.atlas.planes import Matrix, Plane, Points, apply_affine, invert_affine
from atlalign.geometry import identity_grid, invert, warp_points
from atlalign.registration.displacement import Displacement
from atlalign.registration.grid import Grid
from atlalign.registration.transform import SectionTransform


def transform_of(
    dvf: Tensor, matrix: Matrix, reference: Grid, section: Grid, plane: Plane | None
) -> SectionTransform:
    """Return the transform that applies a field and then an affine map.

    Args:
        dvf: (1, 2, H, W), in pixels of the reference's grid.
        matrix: (2, 3), maps these pixels to pixels of the section.
        reference: The field's grid.
        section: The pixels of the section's image.
        plane: The reference's plane in the atlas.
    """
    field = dvf.double()
    inverse = invert(field)

    def to_section(points_mm: Points) -> Points:
        return section.to_mm(apply_affine(matrix, _warped(reference.to_pixels(points_mm), field)))

    def to_reference(points_mm: Points) -> Points:
        placed = apply_affine(invert_affine(matrix), section.to_pixels(points_mm))
        return reference.to_mm(_warped(placed, inverse))

    # At the field's resolution: a finer grid would only repeat its interpolation.
    coarse = section.finer(max(min(reference.pixel_um), *section.pixel_um))
    return transform_by(to_section, to_reference, reference, coarse, section, plane)


def transform_by(
    to_section: Callable[[Points], Points],
    to_reference: Callable[[Points], Points],
    reference: Grid,
    coarse: Grid,
    section: Grid,
    plane: Plane | None,
) -> SectionTransform:
    """Return the transform given by functions that map points in mm from one frame to the other.

    Args:
        to_section: The forward map.
        to_reference: The inverse map.
        reference: The grid on which the forward map is stored.
        coarse: The grid on which the inverse map is stored, in the section's frame.
        section: The pixels of the section's image.
        plane: The reference's plane in the atlas.
    """
    forward, inverse = _displacement(reference, to_section), _displacement(coarse, to_reference)
    return SectionTransform(forward, inverse, section, plane)


def field_of(transform: SectionTransform, matrix: Matrix) -> Tensor:
    """Return the field (1, 2, H, W), float64 in pixels, that equals the transform when the affine map follows it."""
    grid = transform.forward.grid
    pixels = pixels_of(grid)
    placed = apply_affine(invert_affine(matrix), transform.to_section(grid.to_mm(pixels)))
    return torch.from_numpy(np.ascontiguousarray((placed - pixels).T)).view(1, 2, *grid.shape)


def affine_of(transform: SectionTransform) -> Matrix:
    """Return the affine map (2, 3) closest to a transform, from pixels of the reference's grid to the section's."""
    grid = transform.forward.grid
    pixels = pixels_of(grid)
    design = np.column_stack([pixels, np.ones(len(pixels))])
    section = transform.to_section(grid.to_mm(pixels))
    return np.asarray(np.linalg.solve(design.T @ design, design.T @ section).T, np.float64)


def pixels_of(grid: Grid) -> Points:
    """Return the pixels (H · W, 2) of a grid as (x, y)."""
    return identity_grid(grid.shape, torch.float64, torch.device("cpu"))[0].flatten(1).T.numpy()


def _warped(points: Points, dvf: Tensor) -> Points:
    return warp_points(torch.from_numpy(points)[None], dvf)[0].numpy()


def _displacement(grid: Grid, to_mm: Callable[[Points], Points]) -> Displacement:
    points_mm = grid.to_mm(pixels_of(grid))
    mm = np.ascontiguousarray((to_mm(points_mm) - points_mm).T, np.float32)
    return Displacement(grid, torch.from_numpy(mm).view(2, *grid.shape))
