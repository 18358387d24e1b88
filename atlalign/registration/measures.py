"""Measures that distinguish right registrations from wrong ones; all are taken over the reference's tissue."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from atlalign.registration.references import Reference

_TISSUE = 0.03  # of the brightest; darker pixels are background
_INSIDE_UM = 300.0  # closer to the outline, a section may end early without a tear
_ALL_NEIGHBOURS = np.ones((3, 3))


class AffinePart(NamedTuple):
    """The affine map closest to a field, and the field's distance from it.

    Attributes:
        bending_um: The mean distance between map and field.
        rescaling: The change of lengths by the map, as a fraction, whether they grow or shrink.
        rotation_deg: The rotation by the map in degrees, in either direction.
    """

    bending_um: float
    rescaling: float
    rotation_deg: float


def affine_part(dvf: Tensor, reference: Reference) -> AffinePart:
    """Return the affine part of a field (1, 2, H, W) in pixels, in µm of the reference."""
    y, x = torch.nonzero(reference.tissue, as_tuple=True)
    pixel_um = torch.tensor(reference.grid.pixel_um, dtype=torch.float64)
    points = torch.cat([torch.stack([x, y], dim=1) * pixel_um, torch.ones(len(x), 1)], dim=1)
    um = dvf[0][:, y, x].double().T * pixel_um
    affine = torch.linalg.lstsq(points, um).solution
    bending_um = float((um - points @ affine).square().sum(dim=1).sqrt().mean())
    linear = torch.eye(2, dtype=torch.float64) + affine[:2].T
    scale = max(float(linear.det().abs().sqrt()), 1e-3)
    turn = torch.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])
    return AffinePart(bending_um, max(scale, 1 / scale) - 1, abs(float(turn.rad2deg())))


class Cover(NamedTuple):
    """The overlap of a registered section's tissue with the reference's.

    Attributes:
        uncovered: The share of the reference's tissue on which the section shows no tissue.
        gap: The area of the largest connected part of this uncovered tissue that lies more than 0.3 mm inside the
            reference's outline, as a share of the reference's tissue.
        beyond: The area of the section's tissue outside the reference's tissue, as a share of the latter.
    """

    uncovered: float
    gap: float
    beyond: float


def cover(registered: Tensor, reference: Reference) -> Cover:
    """Return how a registered section (1, 1, H, W), bright on a background of 0, covers the reference."""
    shown, expected = registered[0, 0] > _TISSUE, reference.tissue
    area = expected.sum()
    uncovered = expected & ~shown
    gap = _largest_part((uncovered & _inside(reference)).numpy())
    return Cover(float(uncovered.sum() / area), float(gap / area), float((shown & ~expected).sum() / area))


def _inside(reference: Reference) -> Tensor:
    """Return the reference's tissue far from its outline."""
    x_um, y_um = reference.grid.pixel_um
    return torch.from_numpy(
        distance_transform_edt(reference.tissue.numpy(), sampling=(y_um, x_um)) > _INSIDE_UM
    )


def _largest_part(mask: NDArray[np.bool_]) -> int:
    """Return the number of pixels in the largest connected part."""
    parts, _ = label(mask, _ALL_NEIGHBOURS)
    return int(np.bincount(parts[mask], minlength=1).max())
