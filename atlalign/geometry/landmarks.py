"""Fields that pass through pairs of points: smoothly on top of another field, or linearly on triangles."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.errors import InputError
from atlalign.geometry.dvf import identity_grid, sample, warp_points

_TOLERANCE_PX = 0.01
_STEEPEST = (
    0.4  # px per px of one step: such a step does not fold, and neither does a composition of such steps
)
_STEPS_AT_MOST = 30
_SPACING_PX = 2.0  # between the nodes at which a step is computed
_RIDGE = 1e-9
_SAME_PX = 0.5
_EDGE = 1e-9  # points on the edge of two triangles are in both


def move_points(dvf: Tensor, points: Tensor, targets: Tensor, *, reach_px: float) -> Tensor:
    """Return the field that maps each point to its target; farther than the reach from all points it equals `dvf`.

    Small steps, each too flat to fold, are composed with the field. A step interpolates the remaining displacements
    with the product over both axes of Wendland's kernel (1 − r)³ (3r + 1), r in units of the reach (Wendland,
    *Piecewise polynomial, positive definite and compactly supported radial functions*, 1995). Points that cross each
    other cannot reach their targets in such steps; they get there in a last step that folds.

    Args:
        dvf: (1, 2, H, W) in pixels.
        points: (N, 2) as (x, y) in pixels of the reference grid, on the grid.
        targets: (N, 2) as (x, y), their positions in the moving image.
        reach_px: The distance from a point along x and y at which its effect ends.

    Raises:
        InputError: If one point has two targets.

    Example:
        >>> still = torch.zeros(1, 2, 40, 50)
        >>> moved = move_points(still, torch.tensor([[20.0, 10.0]]), torch.tensor([[23.0, 9.0]]), reach_px=12)
        >>> moved[0, :, 10, 20].round(decimals=1), moved[0, :, 10, 40]
        (tensor([ 3., -1.]), tensor([0., 0.]))
    """
    check_targets(points, targets, of="reference", to="section")
    start = identity_grid((dvf.shape[-2], dvf.shape[-1]), torch.float64, dvf.device)
    field, points, targets = dvf.double(), points.double(), targets.double()
    for _ in range(_STEPS_AT_MOST):
        at = warp_points(points[None], field)[0]
        if not len(points) or float((targets - at).norm(dim=1).max()) <= _TOLERANCE_PX:
            return field.to(dvf.dtype)
        field = field + _step(at, targets - at, start + field, reach_px)
    at = warp_points(points[None], field)[0]
    return (field + _interpolated(points, targets - at, start, reach_px)).to(dvf.dtype)


def _step(at: Tensor, displacements: Tensor, where: Tensor, reach_px: float) -> Tensor:
    """Return the displacements (1, 2, H, W) of a step at the places `where`, scaled down until the step is flat enough.

    Args:
        at: (N, 2), the points at which the displacements are known.
        displacements: (N, 2).
        where: (1, 2, H, W), places in the same pixels.
        reach_px: The support of the kernel.
    """
    first = torch.minimum(where.amin((0, 2, 3)), at.amin(0))
    last = torch.maximum(where.amax((0, 2, 3)), at.amax(0))
    width, height = (int(size) for size in ((last - first) / _SPACING_PX).ceil() + 2)
    nodes = identity_grid((height, width), at.dtype, at.device) * _SPACING_PX + first.view(1, 2, 1, 1)
    step = _interpolated(at, displacements, nodes, reach_px)
    steepness = max(float(torch.diff(step, dim=dim).abs().max()) for dim in (-2, -1)) / _SPACING_PX
    places = ((where - first.view(1, 2, 1, 1)) / _SPACING_PX).permute(0, 2, 3, 1)
    return sample(step, places, padding_mode="border") * min(1.0, _STEEPEST / max(steepness, _TOLERANCE_PX))


def _interpolated(points: Tensor, displacements: Tensor, nodes: Tensor, reach_px: float) -> Tensor:
    """Return displacements (1, 2, h, w) at nodes whose x depends only on the column and whose y only on the row."""
    ridge = _RIDGE * torch.eye(len(points), dtype=points.dtype, device=points.device)
    along_x, along_y = (_kernel((own[:, None] - own) / reach_px) for own in points.T)
    weights = torch.linalg.solve(along_x * along_y + ridge, displacements)
    of_columns = _kernel((points[:, :1] - nodes[0, 0, 0]) / reach_px)
    of_rows = _kernel((nodes[0, 1, :, :1] - points[:, 1]) / reach_px)
    return torch.stack([(of_rows * weight) @ of_columns for weight in weights.T])[None]


def _kernel(distance: Tensor) -> Tensor:
    r = distance.abs()
    return (1 - r).clamp(min=0).pow(3) * (3 * r + 1)


def check_targets(points: Tensor, targets: Tensor, *, of: str, to: str) -> None:
    """Raise an InputError if one point (N, 2) has two targets (N, 2), in pixels of images called `of` and `to`."""
    apart, targets_apart = (torch.cdist(both.double(), both.double()) for both in (points, targets))
    for first, second in torch.nonzero((apart < _SAME_PX) & (targets_apart > apart + _SAME_PX)).tolist():
        raise InputError(
            f"points {first + 1} and {second + 1}: expected one place in the {to} for one in the {of}, found two, "
            f"{float(targets_apart[first, second]):.3g} px apart: remove one of the points"
        )


@dataclass(frozen=True, eq=False)
class TriangleMap:
    """A map that is linear on triangles, and the identity outside of them.

    Attributes:
        corners: (T, 3, 2), the corners of the triangles.
        mapped: (T, 3, 2), the mapped corners.
    """

    corners: NDArray[np.float64]
    mapped: NDArray[np.float64]

    @classmethod
    def delaunay(cls, points: NDArray[np.float64], mapped: NDArray[np.float64]) -> "TriangleMap":
        """Return the map on the Delaunay triangles of points (N, 2)."""
        from scipy.spatial import Delaunay

        triangles = Delaunay(points).simplices
        return cls(points[triangles], mapped[triangles])

    @property
    def is_folded(self) -> NDArray[np.bool_]:
        """Mask (T,) of the triangles that the map turns over or flattens to a line."""
        return _double_area(self.corners) * _double_area(self.mapped) <= 0

    def inverse(self) -> "TriangleMap":
        """Return the inverse; where the map folds, the inverse of the triangles that are not turned over."""
        kept = ~self.is_folded
        return TriangleMap(self.mapped[kept], self.corners[kept])

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mapped points (N, 2)."""
        order = np.argsort(points[:, 1])
        sorted_points = points[order].T.copy()  # (2, N): sums along a short last axis take four times as long
        result = sorted_points.copy()
        is_free = np.ones(len(points), np.bool_)
        for corners, mapped in zip(self.corners, self.mapped, strict=True):
            rows = slice(
                *np.searchsorted(sorted_points[1], (corners[:, 1].min(), corners[:, 1].max() + _EDGE))
            )
            shares = _shares(corners, sorted_points[:, rows])
            inside = is_free[rows] & (shares >= -_EDGE).all(axis=0)
            result[:, rows][:, inside] = mapped.T @ shares[:, inside]
            is_free[rows][inside] = False
        mapped_points = np.empty_like(points)
        mapped_points[order] = result.T
        return mapped_points


def _shares(corners: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the barycentric coordinates (3, N) of points (2, N) in a triangle (3, 2)."""
    sides = (corners[1:] - corners[0]).T
    if np.linalg.det(sides) == 0:
        return np.full((3, points.shape[1]), -1.0)
    second, third = np.linalg.inv(sides) @ (points - corners[0][:, None])
    return np.stack([1 - second - third, second, third])


def _double_area(triangles: NDArray[np.float64]) -> NDArray[np.float64]:
    (a_x, a_y), (b_x, b_y) = (triangles[:, 1:] - triangles[:, :1]).transpose(1, 2, 0)
    return np.asarray(a_x * b_y - a_y * b_x)
