"""Dense displacement vector fields (dvf): apply, compose, invert, resize, measure.

A dvf is a float tensor (B, 2, H, W) in pixels, channel 0 = x (column), channel 1 = y (row). It maps backward:
`registered(q) = moving(q + dvf(q))` for each pixel q of the reference grid. Corners are aligned everywhere: pixel
centres lie at 0 … W−1, and the outermost centres are the image's corners.
"""

from functools import lru_cache
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

PaddingMode = Literal["zeros", "border", "reflection"]
SamplingMode = Literal["bilinear", "nearest", "bicubic"]


@lru_cache(maxsize=16)
def identity_grid(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the pixel coordinates (1, 2, H, W) of a grid of `shape` (H, W): x first, then y.

    The tensor is cached: do not change it in place.
    """
    # A tensor made under inference_mode could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        rows = torch.arange(shape[0], dtype=dtype, device=device)
        columns = torch.arange(shape[1], dtype=dtype, device=device)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([x, y])[None]


def warp(
    image: Tensor,
    dvf: Tensor,
    *,
    mode: SamplingMode = "bilinear",
    padding_mode: PaddingMode = "zeros",
) -> Tensor:
    """Return `image(q + dvf(q))`, the backward-warped image.

    Args:
        image: (B, C, H, W). Integer images (labels) need `mode="nearest"` and come through unchanged in dtype.
        dvf: (B, 2, H, W) in pixels.
        mode: Interpolation.
        padding_mode: What lies beyond the border. With zeros the outermost pixel fades to 0 over one pixel.

    Raises:
        ValueError: If the sizes differ, or an integer image would be interpolated.
    """
    _check_dvf(dvf)
    _check_same_grid(image, dvf)
    if not image.is_floating_point():
        return _warp_labels(image, dvf, mode, padding_mode)
    return _sample(image, dvf, mode, padding_mode)


def warp_points(points: Tensor, dvf: Tensor) -> Tensor:
    """Return `q + dvf(q)`: where reference points lie in the moving image.

    Args:
        points: (B, N, 2) as (x, y) in pixels of the reference grid.
        dvf: (B, 2, H, W); beyond the border its displacement is that of the border.

    Raises:
        ValueError: If `points` is not (B, N, 2) with the field's B.
    """
    _check_dvf(dvf)
    if points.ndim != 3 or points.shape[-1] != 2 or points.shape[0] != dvf.shape[0]:
        raise ValueError(f"points: expected ({dvf.shape[0]}, N, 2) as (x, y), got {tuple(points.shape)}")
    displacement = F.grid_sample(
        dvf,
        points[:, None] * _to_unit(dvf) - 1,
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return points + displacement[:, :, 0].mT


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the field that applies `inner` first and `outer` second.

    `compose(outer, inner)(q) = inner(q) + outer(q + inner(q))`, both (B, 2, H, W) in pixels, so that
    `warp(warp(I, outer), inner) ≈ warp(I, compose(outer, inner))`. Beyond the border the outer displacement is that
    of the border.

    Raises:
        ValueError: If the fields differ in shape.
    """
    _check_dvf(outer)
    _check_dvf(inner)
    _check_same_grid(outer, inner)
    return inner + _sample(outer, inner, "bilinear", "border")


def affine_to_dvf(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the field of affine maps: `dvf(x, y) = a · (x, y, 1) − (x, y)`.

    Args:
        matrix: (B, 2, 3) on absolute pixel coordinates around (0, 0), the centre of the first pixel.
        shape: (H, W) of the field.

    Raises:
        ValueError: If `matrix` is not (B, 2, 3).
    """
    if matrix.ndim != 3 or matrix.shape[1:] != (2, 3):
        raise ValueError(f"matrix: expected (B, 2, 3), got {tuple(matrix.shape)}")
    grid = identity_grid(shape, matrix.dtype, matrix.device)
    # The identity is taken off the matrix, not off the mapped points: no cancellation at large coordinates.
    linear = matrix[:, :, :2] - torch.eye(2, dtype=matrix.dtype, device=matrix.device)
    displacement = torch.einsum("bij,jhw->bihw", linear, grid[0])
    return displacement + matrix[:, :, 2, None, None]


def resize(dvf: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the same map on a grid of `shape` (H', W').

    Components scale by (W'−1)/(W−1) and (H'−1)/(H−1), since corners stay corners.

    Raises:
        ValueError: If either grid is narrower than 2 pixels.
    """
    _check_dvf(dvf)
    if min(*dvf.shape[-2:], *shape) < 2:
        raise ValueError(f"resize: grids of at least 2×2, got {tuple(dvf.shape[-2:])} to {tuple(shape)}")
    if tuple(dvf.shape[-2:]) == tuple(shape):
        return dvf
    scale = torch.tensor(
        [(shape[1] - 1) / (dvf.shape[-1] - 1), (shape[0] - 1) / (dvf.shape[-2] - 1)],
        dtype=dvf.dtype,
        device=dvf.device,
    )
    resized = F.interpolate(dvf, size=shape, mode="bilinear", align_corners=True)
    return resized * scale.view(1, 2, 1, 1)


def jacobian(dvf: Tensor) -> Tensor:
    """Return ∇dvf as (B, 2, 2, H, W), entry [i, j] = ∂dvf_i/∂j with i, j in (x, y).

    Central differences inside, one-sided at the edges.
    """
    _check_dvf(dvf)
    along_y, along_x = cast(list[Tensor], torch.gradient(dvf, dim=(-2, -1)))
    return torch.stack([along_x, along_y], dim=2)


def jacobian_determinant(dvf: Tensor) -> Tensor:
    """Return det(I + ∇dvf) as (B, H, W): the local change of area; the field folds where it is ≤ 0.

    Central differences inside, one-sided at the edges.

    Raises:
        ValueError: If `dvf` is not (B, 2, H, W).
    """
    gradient = jacobian(dvf)
    return (1 + gradient[:, 0, 0]) * (1 + gradient[:, 1, 1]) - gradient[:, 0, 1] * gradient[:, 1, 0]


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Return the field at time 1 of the stationary velocity field, by scaling and squaring.

    Arsigny et al., *A Log-Euclidean framework for statistics on diffeomorphisms*, MICCAI 2006. The field of
    `−velocity` is the inverse, up to interpolation.

    Args:
        velocity: (B, 2, H, W) in pixels per unit time.
        steps: The number of squarings; the first step is velocity / 2**steps, which should stay below half a pixel.
    """
    _check_dvf(velocity)
    dvf = velocity * 0.5**steps
    for _ in range(steps):
        dvf = compose(dvf, dvf)
    return dvf


def invert(
    dvf: Tensor, *, start: Tensor | None = None, tolerance_px: float = 1e-3, max_iterations: int = 50
) -> Tensor:
    """Return v with `compose(dvf, v) = 0`, that is v(q) = −dvf(q + v(q)), pixel by pixel.

    Newton's method on the bilinear interpolant falls back to the fixed point
    v ← −dvf(q + v) where a Newton step does not lower the residual. Where the field folds there is no inverse, and the
    best iterate is returned. Not differentiable.

    Args:
        dvf: (B, 2, H, W) in pixels.
        start: A guess (B, 2, H, W) of the inverse; −dvf otherwise.
        tolerance_px: Stop when no pixel's residual is above it.
        max_iterations: At most this many updates.
    """
    _check_dvf(dvf)
    with torch.no_grad():
        return _newton_inverse(dvf.detach(), -dvf if start is None else start, tolerance_px, max_iterations)


def _newton_inverse(dvf: Tensor, inverse: Tensor, tolerance_px: float, max_iterations: int) -> Tensor:
    gradient = jacobian(dvf).flatten(1, 2)
    residual = compose(dvf, inverse)
    error = residual.norm(dim=1, keepdim=True)
    best, best_error = inverse, error
    for _ in range(max_iterations):
        if bool((best_error <= tolerance_px).all()):
            break
        newton = inverse - _solve(_sample(gradient, inverse, "bilinear", "border"), residual)
        fixed_point = inverse - residual
        inverse = torch.where(error <= 2 * best_error, newton, fixed_point)
        residual = compose(dvf, inverse)
        error = residual.norm(dim=1, keepdim=True)
        better = error < best_error
        best, best_error = (
            torch.where(better, inverse, best),
            torch.where(better, error, best_error),
        )
    return best


def _solve(gradient: Tensor, residual: Tensor) -> Tensor:
    """Return (I + gradient)⁻¹ · residual, damped where the matrix is near singular; gradient is (B, 4, H, W)."""
    a, b, c, d = gradient.unbind(1)
    a, d = a + 1, d + 1
    determinant = a * d - b * c
    determinant = torch.where(determinant.abs() < 0.05, determinant.sign() * 0.05 + 1e-6, determinant)
    x, y = residual.unbind(1)
    return torch.stack([d * x - b * y, a * y - c * x], dim=1) / determinant[:, None]


def _sample(image: Tensor, dvf: Tensor, mode: str, padding_mode: str) -> Tensor:
    # A field in reduced precision cannot tell neighbouring pixels apart: coordinates stay in float32.
    field = dvf if dvf.dtype == torch.float64 else dvf.float()
    grid = (identity_grid(_grid_shape(field), field.dtype, field.device) + field).permute(0, 2, 3, 1)
    grid = grid * _to_unit(field) - 1
    with torch.autocast(dvf.device.type, enabled=False):
        sampled = F.grid_sample(
            image.to(grid.dtype), grid, mode=mode, padding_mode=padding_mode, align_corners=True
        )
    return sampled.to(image.dtype)


def _warp_labels(image: Tensor, dvf: Tensor, mode: str, padding_mode: str) -> Tensor:
    """Gather labels at the rounded coordinates: no float could hold every 32-bit id."""
    if mode != "nearest":
        raise ValueError(f"warp: an integer image needs mode='nearest', got '{mode}'")
    if padding_mode not in ("zeros", "border"):
        raise ValueError(f"warp: labels are padded with 'zeros' or 'border', got '{padding_mode}'")
    height, width = image.shape[-2:]
    target = (identity_grid((height, width), dvf.dtype, dvf.device) + dvf).round().long()
    x, y = target[:, 0], target[:, 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat_index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)
    gathered = image.flatten(2).gather(2, flat_index[:, None].expand(-1, image.shape[1], -1))
    warped = gathered.view(image.shape)
    if padding_mode == "border":
        return warped
    return torch.where(inside[:, None], warped, torch.zeros((), dtype=image.dtype, device=image.device))


@lru_cache(maxsize=16)
def _unit_scale(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        height, width = shape
        return torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)], dtype=dtype, device=device)


def _to_unit(dvf: Tensor) -> Tensor:
    """Return the factors (2,) that take pixels to grid_sample's unit: 0 … W−1 becomes 0 … 2."""
    return _unit_scale(_grid_shape(dvf), dvf.dtype, dvf.device)


def _grid_shape(tensor: Tensor) -> tuple[int, int]:
    return int(tensor.shape[-2]), int(tensor.shape[-1])


def _check_dvf(dvf: Tensor) -> None:
    if dvf.ndim != 4 or dvf.shape[1] != 2:
        raise ValueError(f"dvf: expected (B, 2, H, W), got {tuple(dvf.shape)}")


def _check_same_grid(image: Tensor, dvf: Tensor) -> None:
    if image.ndim != 4 or image.shape[0] != dvf.shape[0] or image.shape[-2:] != dvf.shape[-2:]:
        expected = f"({dvf.shape[0]}, C, {dvf.shape[-2]}, {dvf.shape[-1]})"
        raise ValueError(f"expected an image or field {expected}, got {tuple(image.shape)}")
