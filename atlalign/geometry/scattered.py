"""Fields interpolated from a few known displacements: radial basis functions, scipy's griddata, and anchoring."""

from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from atlalign.errors import InputError, check_numbers, unknown_name
from atlalign.geometry.dvf import warp_points

RbfFunction = Literal["linear", "thin_plate"]
GriddataMethod = Literal["nearest", "linear", "cubic"]

# A cached anchor map with more numbers would take more than half a gigabyte.
_LARGEST_MAP = 2**27


def interpolate_rbf(
    points: Tensor,
    displacements: Tensor,
    shape: tuple[int, int],
    *,
    function: RbfFunction = "linear",
    smooth: float = 0.0,
) -> Tensor:
    """Return the fields (B, 2, H, W) Σ w_i φ(|q − points_i|), with φ(r) = r (linear) or r² log r (thin_plate).

    The weights solve (φ(|points_i − points_j|) − smooth · I) w = displacements, as in scipy's `Rbf`.

    Args:
        points: (B, N, 2) as (x, y) in pixels, no two the same.
        displacements: (B, N, 2) as (x, y) in pixels.
        shape: (H, W).
        function: φ; linear is the least prone to overshoot.
        smooth: 0 meets the displacements exactly; larger values smooth the field.

    Raises:
        InputError: If points coincide, the two tensors differ in shape, or the function is unknown.
    """
    if function not in get_args(RbfFunction):
        raise unknown_name("function", function, get_args(RbfFunction))
    _check_points(points, displacements)
    weights = torch.linalg.solve(_rbf_system(points, function, smooth), displacements.double())
    # Large terms of a thin plate cancel: in float32 the field would miss its points by a hundredth of a pixel.
    weights = weights if function == "thin_plate" else weights.to(displacements.dtype)
    fields = [
        _evaluate_rbf(nodes, weight, shape, function) for nodes, weight in zip(points, weights, strict=True)
    ]
    return torch.stack(fields).to(displacements.dtype)


def interpolate_griddata(
    points: Tensor, displacements: Tensor, shape: tuple[int, int], *, method: GriddataMethod = "linear"
) -> Tensor:
    """Return the fields (B, 2, H, W) of `scipy.interpolate.griddata`, computed on the CPU; 0 outside the convex hull.

    Args:
        points: (B, N, 2) as (x, y) in pixels.
        displacements: (B, N, 2) as (x, y) in pixels.
        shape: (H, W).
        method: Nearest neighbour, or linear or cubic on the triangles between the points.

    Raises:
        InputError: If the two tensors differ in shape, or the method is unknown.
    """
    if method not in get_args(GriddataMethod):
        raise unknown_name("method", method, get_args(GriddataMethod))
    from scipy.interpolate import griddata

    _check_points(points, displacements)
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    fields = [
        torch.from_numpy(
            griddata(nodes.numpy(), values.numpy(), (x.numpy(), y.numpy()), method=method, fill_value=0.0)
        )
        for nodes, values in zip(points.cpu().double(), displacements.cpu().double(), strict=True)
    ]
    return torch.stack(fields).permute(0, 3, 1, 2).to(displacements)


def corners(shape: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Return the image's corners (4, 2) as (x, y) in pixels: top left, top right, bottom left, bottom right."""
    right, bottom = shape[1] - 1.0, shape[0] - 1.0
    return torch.tensor([[0.0, 0.0], [right, 0.0], [0.0, bottom], [right, bottom]], device=device)


def anchor(
    dvf: Tensor, *, h_kept: float = 0.9, w_kept: float = 0.9, ds_f: int = 50, smooth: float = 0.0
) -> Tensor:
    """Return fields that equal dvf at a regular grid of points and 0 at the image's corners; linear rbf between them.

    Fields of one size share their points, and so the linear map from displacements to the field. The map is computed
    once for each size.

    Args:
        dvf: (B, 2, H, W) in pixels.
        h_kept: Height of the centred rectangle that holds the points, as a share of the image's, in ]0, 1].
        w_kept: The same for the width.
        ds_f: The distance between points in pixels.
        smooth: 0 meets the field exactly at the points; larger values smooth it.

    Raises:
        InputError: If a share is outside ]0, 1], ds_f is not a whole number ≥ 1, or smooth is below 0.
    """
    check_anchor(h_kept=h_kept, w_kept=w_kept, ds_f=ds_f, smooth=smooth)
    shape = (int(dvf.shape[-2]), int(dvf.shape[-1]))
    points = anchor_points(shape, h_kept, w_kept, ds_f, dvf.device)
    batch = points[None].expand(len(dvf), -1, -1)
    displacements = warp_points(batch, dvf) - batch
    if points.shape[0] * shape[0] * shape[1] > _LARGEST_MAP:
        return interpolate_rbf(
            *with_zeros(batch, displacements, corners(shape, dvf.device)), shape, smooth=smooth
        )
    field = displacements.mT.flatten(0, 1) @ _anchor_map(shape, h_kept, w_kept, ds_f, smooth, dvf.device)
    return field.view(len(dvf), 2, *shape)


def check_anchor(*, h_kept: float, w_kept: float, ds_f: int, smooth: float, where: str = "") -> None:
    """Raise an InputError unless these are valid arguments of `anchor`; the message puts `where` before their names."""
    given = {"h_kept": h_kept, "w_kept": w_kept, "ds_f": ds_f, "smooth": smooth}
    least = {"h_kept": 0.0, "w_kept": 0.0, "ds_f": 1, "smooth": 0.0}
    check_numbers(
        {where + name: value for name, value in given.items()}, {where + n: v for n, v in least.items()}
    )
    for name in ("h_kept", "w_kept"):
        if not 0 < given[name] <= 1:
            raise InputError(f"{where}{name}: expected a share above 0 and at most 1, got {given[name]}")


def with_zeros(points: Tensor, displacements: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Append the points `fixed` (M, 2) with zero displacement; return points and displacements (B, N + M, 2)."""
    fixed = fixed.to(points).expand(len(points), -1, -1)
    return torch.cat([points, fixed], dim=1), torch.cat([displacements, torch.zeros_like(fixed)], dim=1)


def anchor_points(
    shape: tuple[int, int], h_kept: float, w_kept: float, ds_f: int, device: torch.device
) -> Tensor:
    """Return points (N, 2) as (x, y), ds_f apart and symmetric about the centre of the rectangle.

    Points on the image's corners are left out, because the corners are fixed anyway.
    """
    along_y, along_x = (
        _centred(size, kept, ds_f) for size, kept in zip(shape, (h_kept, w_kept), strict=True)
    )
    y, x = torch.meshgrid(along_y, along_x, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    at_corner = (points[:, None] == corners(shape)).all(dim=2).any(dim=1)
    return points[~at_corner].to(device)


def _centred(size: int, kept: float, step: int) -> Tensor:
    length = kept * (size - 1)
    steps = int(length // step)
    return (size - 1) / 2 + step * (torch.arange(steps + 1) - steps / 2)


@lru_cache(maxsize=4)
def _anchor_map(
    shape: tuple[int, int], h_kept: float, w_kept: float, ds_f: int, smooth: float, device: torch.device
) -> Tensor:
    """Return the matrix (N, H · W) that maps the displacements of the anchor's N points to those of all pixels."""
    with torch.inference_mode(False), torch.no_grad():
        points = anchor_points(shape, h_kept, w_kept, ds_f, torch.device("cpu"))
        nodes = torch.cat([points, corners(shape)])
        to_weights = torch.linalg.inv(_rbf_system(nodes[None], "linear", smooth))[0, :, : len(points)]
        return _evaluate_rbf(nodes, to_weights, shape, "linear").flatten(1).float().to(device)


def _rbf_system(points: Tensor, function: RbfFunction, smooth: float) -> Tensor:
    """Return φ(|points_i − points_j|) − smooth · I as (B, N, N) in float64."""
    difference = points.double()[:, :, None] - points.double()[:, None]
    squared = difference.square().sum(dim=-1)
    identity = torch.eye(points.shape[1], dtype=squared.dtype, device=squared.device)
    if bool(((squared == 0) & (identity == 0)).any()):
        raise InputError(
            "points: expected distinct control points (corners count), found two at the same place"
        )
    return _phi(squared, function) - smooth * identity


def _evaluate_rbf(nodes: Tensor, weights: Tensor, shape: tuple[int, int], function: RbfFunction) -> Tensor:
    """Return Σ weights_i φ(|q − nodes_i|) as (C, H, W); nodes (N, 2), weights (N, C)."""
    nodes = nodes.to(weights)
    squared_x = (torch.arange(shape[1]).to(nodes) - nodes[:, :1]).square()
    squared_y = (torch.arange(shape[0]).to(nodes) - nodes[:, 1:]).square()
    # Strips of rows bound the memory that many nodes need.
    rows = max(1, 2**24 // squared_x.numel())
    strips = [
        weights.mT @ _phi(part[:, :, None] + squared_x[:, None], function).flatten(1)
        for part in torch.split(squared_y, rows, dim=1)
    ]
    return torch.cat(strips, dim=1).view(-1, *shape)


def _phi(squared_distance: Tensor, function: RbfFunction) -> Tensor:
    if function == "linear":
        return squared_distance.sqrt()
    # r² log r, which tends to 0 with r. (`xlogy` takes three times as long.)
    return squared_distance * squared_distance.clamp(min=1e-30).log() / 2


def _check_points(points: Tensor, displacements: Tensor) -> None:
    if points.ndim != 3 or points.shape[-1] != 2 or points.shape != displacements.shape:
        raise InputError(
            "control points: expected points and displacements (B, N, 2) as (x, y),"
            f" got {tuple(points.shape)} and {tuple(displacements.shape)}"
        )
