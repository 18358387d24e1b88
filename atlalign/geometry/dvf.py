"""Dense displacement vector fields (dvf): apply, compose, invert, resize, measure.

A dvf is a float tensor (B, 2, H, W) in pixels, channel 0 = x (column), channel 1 = y (row). It maps backward:
`registered(q) = moving(q + dvf(q))` for each pixel q of the reference grid. Corners are aligned everywhere: pixel
centres lie at 0 … W−1, and the outermost centres are the image's corners.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.errors import check_numbers

PaddingMode = Literal["zeros", "border", "reflection"]
SamplingMode = Literal["bilinear", "nearest", "bicubic"]
Constant = Callable[[tuple[int, int], torch.dtype, torch.device], Tensor]


def _cached(make: Constant) -> Constant:
    """Return `make` with a cache, which is disabled during export: the program's tensors must not outlive it."""

    @lru_cache(maxsize=16)
    def remembered(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        # A tensor made under inference_mode could not be used in training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            return make(shape, dtype, device)

    @wraps(make)
    def constant(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return (make if torch.compiler.is_compiling() else remembered)(shape, dtype, device)

    return constant


@_cached
def identity_grid(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the pixel coordinates (1, 2, H, W) of a grid of `shape` (H, W): x first, then y.

    The tensor is cached: do not change it in place.
    """
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
        image: (B, C, H, W). Integer images (labels) need `mode="nearest"` and keep their dtype.
        dvf: (B, 2, H, W) in pixels.
        mode: Interpolation.
        padding_mode: The values beyond the border. With zeros the image fades to 0 within one pixel.

    Raises:
        ValueError: If the sizes differ, or an integer image would be interpolated.

    Example:
        >>> image, one_to_the_right = torch.arange(5.0).expand(1, 1, 3, 5), torch.tensor([1.0, 0.0])
        >>> warp(image, one_to_the_right.view(1, 2, 1, 1).expand(1, 2, 3, 5))[0, 0, 0]
        tensor([1., 2., 3., 4., 0.])
    """
    check_dvf(dvf)
    check_same_grid(image, dvf)
    if not image.is_floating_point():
        return _warp_labels(image, dvf, mode, padding_mode)
    return _sample(image, dvf, mode, padding_mode)


def sample(
    image: Tensor,
    points: Tensor,
    *,
    mode: SamplingMode = "bilinear",
    padding_mode: PaddingMode = "zeros",
) -> Tensor:
    """Return the values (B, C, H', W') of an image at arbitrary points.

    Args:
        image: (B, C, H, W), float.
        points: (B, H', W', 2) as (x, y) in pixels of the image.
        mode: Interpolation.
        padding_mode: The values beyond the border.
    """
    unit = _unit(grid_shape(image), points.dtype, points.device).flatten()
    grid = torch.addcmul(-torch.ones_like(unit), points, unit)
    return F.grid_sample(
        image.to(points.dtype), grid, mode=mode, padding_mode=padding_mode, align_corners=True
    )


def warp_points(points: Tensor, dvf: Tensor) -> Tensor:
    """Return `q + dvf(q)`: the positions of reference points in the moving image.

    `warp_points(points, invert(dvf))` goes the other way, from the moving image to the reference.

    Args:
        points: (B, N, 2) as (x, y) in pixels of the reference grid.
        dvf: (B, 2, H, W); beyond the border its displacement is that of the border.

    Raises:
        ValueError: If `points` is not (B, N, 2) with the field's B.

    Example:
        >>> dvf = torch.full((1, 2, 4, 5), 1.5)
        >>> there = warp_points(torch.tensor([[[1.0, 2.0]]]), dvf)
        >>> there, warp_points(there, -dvf)  # the inverse of a shift is its negative
        (tensor([[[2.5000, 3.5000]]]), tensor([[[1., 2.]]]))
    """
    check_dvf(dvf)
    if points.ndim != 3 or points.shape[-1] != 2 or points.shape[0] != dvf.shape[0]:
        raise ValueError(f"points: expected ({dvf.shape[0]}, N, 2) as (x, y), got {tuple(points.shape)}")
    field = precise(dvf)
    displacement = sample(field, points[:, None].to(field.dtype), padding_mode="border")
    return points + displacement[:, :, 0].transpose(1, 2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the composition of two fields: points pass `inner` first, and an image is warped by `outer` first.

    Fields map backward, hence the two orders: `compose(outer, inner)(q) = inner(q) + outer(q + inner(q))`, both
    (B, 2, H, W) in pixels, and `warp(I, compose(outer, inner)) ≈ warp(warp(I, outer), inner)`. A registration that is
    global, then local, is therefore `compose(outer=global, inner=local)`. Beyond the border the outer displacement is
    that of the border.

    Raises:
        ValueError: If the fields differ in shape.

    Example:
        >>> double = affine_to_dvf(torch.tensor([[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]), (8, 8))
        >>> to_the_right = affine_to_dvf(torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]]), (8, 8))
        >>> both = compose(outer=double, inner=to_the_right)
        >>> both[0, :, 2, 3].round()  # the point passes to_the_right first: (3, 2) -> (4, 2) -> (8, 4)
        tensor([5., 2.])
        >>> image = torch.arange(64.0).view(1, 1, 8, 8)
        >>> twice = warp(warp(image, double), to_the_right)  # the image is warped by double first
        >>> torch.allclose(warp(image, both)[..., :3, :3], twice[..., :3, :3])
        True
    """
    check_dvf(outer)
    check_dvf(inner)
    check_same_grid(outer, inner)
    return precise(inner) + _sample(precise(outer), inner, "bilinear", "border")


def affine_to_dvf(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the field of affine maps: `dvf(x, y) = a · (x, y, 1) − (x, y)`.

    Args:
        matrix: (B, 2, 3) on absolute pixel coordinates around (0, 0), the centre of the first pixel.
        shape: (H, W) of the field.

    Raises:
        ValueError: If `matrix` is not (B, 2, 3).

    Example:
        >>> stretch = torch.tensor([[[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])  # x becomes 2x + 1
        >>> affine_to_dvf(stretch, (3, 4))[0, :, 0, 3]
        tensor([4., 0.])
    """
    if matrix.ndim != 3 or tuple(matrix.shape[1:]) != (2, 3):
        raise ValueError(f"matrix: expected (B, 2, 3), got {tuple(matrix.shape)}")
    matrix = precise(matrix)
    x, y = identity_grid(shape, matrix.dtype, matrix.device)[0].unbind()
    # The identity is subtracted from the matrix, not from the mapped points: nothing cancels at large coordinates.
    # Autocast would compute a matrix product in reduced precision.
    linear = matrix - torch.eye(2, 3, dtype=matrix.dtype, device=matrix.device)
    along_x, along_y, translation = linear[..., None, None].unbind(dim=2)
    return along_x * x + along_y * y + translation


def resize(dvf: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the same map on a grid of `shape` (H', W').

    Components scale by (W'−1)/(W−1) and (H'−1)/(H−1), because corners stay corners.

    Raises:
        ValueError: If either grid is narrower than 2 pixels.

    Example:
        >>> resize(torch.ones(1, 2, 11, 21), (21, 61))[0, :, 0, 0]
        tensor([3., 2.])
    """
    check_dvf(dvf)
    if min(*dvf.shape[-2:], *shape) < 2:
        raise ValueError(
            f"resize: expected grids of at least 2×2, got {tuple(dvf.shape[-2:])} to {tuple(shape)}"
        )
    if tuple(dvf.shape[-2:]) == tuple(shape):
        return dvf
    field = precise(dvf)
    resized = F.interpolate(field, size=shape, mode="bilinear", align_corners=True)
    pixel, new_pixel = (_unit(grid_shape(grid), grid.dtype, grid.device) for grid in (field, resized))
    return resized * (pixel / new_pixel)


def jacobian(dvf: Tensor) -> Tensor:
    """Return ∇dvf as (B, 2, 2, H, W), entry [i, j] = ∂dvf_i/∂j with i, j in (x, y).

    Central differences inside, one-sided at the edges.
    """
    return torch.stack(derivatives(dvf), dim=2)


def jacobian_determinant(dvf: Tensor) -> Tensor:
    """Return det(I + ∇dvf) as (B, H, W): the local change of area; the field folds where it is ≤ 0.

    Central differences inside, one-sided at the edges.

    Raises:
        ValueError: If `dvf` is not (B, 2, H, W).

    Example:
        >>> stretch = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]]])
        >>> jacobian_determinant(affine_to_dvf(stretch, (4, 5)))[0, 1, 2]
        tensor(6.)
    """
    along_x, along_y = derivatives(dvf)
    return (1 + along_x[:, 0]) * (1 + along_y[:, 1]) - along_y[:, 0] * along_x[:, 1]


def derivatives(dvf: Tensor) -> tuple[Tensor, Tensor]:
    """Return ∂dvf/∂x and ∂dvf/∂y, both (B, 2, H, W)."""
    check_dvf(dvf)
    along_y, along_x = cast(list[Tensor], torch.gradient(precise(dvf), dim=(-2, -1)))
    return along_x, along_y


def stays_inside(dvf: Tensor) -> Tensor:
    """Return the mask (B, H, W) of pixels q whose point q + dvf(q) lies on the image; dvf is (B, 2, H, W) in pixels."""
    check_dvf(dvf)
    height, width = grid_shape(dvf)
    field = precise(dvf)
    x, y = (identity_grid((height, width), field.dtype, field.device) + field).unbind(1)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def integrate(velocity: Tensor, steps: int = 7) -> Tensor:
    """Return the field at time 1 of the stationary velocity field, by scaling and squaring.

    Arsigny et al., *A Log-Euclidean framework for statistics on diffeomorphisms*, MICCAI 2006. The field of
    `−velocity` is the inverse, up to interpolation.

    Args:
        velocity: (B, 2, H, W) in pixels per unit time.
        steps: The number of squarings. The first step, velocity / 2**steps, should stay below half a pixel.

    Raises:
        ValueError: If `steps` is not a whole number ≥ 0.

    Example:
        >>> integrate(torch.full((1, 2, 4, 5), 3.0))[0, :, 0, 0]
        tensor([3., 3.])
    """
    check_dvf(velocity)
    check_numbers({"steps": steps}, {"steps": 0})
    dvf = velocity * 0.5**steps
    for _ in range(steps):
        dvf = compose(dvf, dvf)
    return dvf


def limit_steepness(velocity: Tensor, steepest: float = 2.0) -> Tensor:
    """Return velocities (B, 2, H, W) whose components change by at most `steepest` px from one pixel to the next.

    A steeper sample is scaled down as a whole. At the default limit, the fields that `integrate` returns do not fold.
    This was measured at 320×456 with white noise of 5 to 100 px on grids of every 1st to 8th pixel. All determinants
    stay above 0.07; the field of the negative velocity is the inverse to 0.11 px on average and 1.2 px at most. At
    4 px per px, up to one pixel in 10,000 folds.

    Args:
        velocity: (B, 2, H, W) in pixels per unit time.
        steepest: The largest change in px per px.
    """
    check_dvf(velocity)
    changes = [torch.diff(velocity, dim=dim).abs().flatten(1).amax(1) for dim in (-2, -1)]
    largest = torch.maximum(*changes).clamp(min=steepest)
    return velocity * (steepest / largest).view(-1, 1, 1, 1)


def _sample(image: Tensor, dvf: Tensor, mode: str, padding_mode: str) -> Tensor:
    field = precise(dvf)
    grid = _in_units(field).permute(0, 2, 3, 1)
    sampled = F.grid_sample(
        image.to(grid.dtype), grid, mode=mode, padding_mode=padding_mode, align_corners=True
    )
    return sampled.to(image.dtype)


def _warp_labels(image: Tensor, dvf: Tensor, mode: str, padding_mode: str) -> Tensor:
    """Gather labels at the rounded coordinates: no float holds every 32-bit id exactly."""
    if mode != "nearest":
        raise ValueError(f"warp: an integer image needs mode='nearest', got '{mode}'")
    if padding_mode not in ("zeros", "border"):
        raise ValueError(f"warp: labels are padded with 'zeros' or 'border', got '{padding_mode}'")
    height, width = image.shape[-2:]
    field = precise(dvf)
    x, y = (identity_grid((height, width), field.dtype, field.device) + field).round().unbind(1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat_index = (_index(y, height) * width + _index(x, width)).flatten(1)
    gathered = image.flatten(2).gather(2, flat_index[:, None].expand(-1, image.shape[1], -1))
    warped = gathered.view(image.shape)
    if padding_mode == "border":
        return warped
    return torch.where(inside[:, None], warped, torch.zeros((), dtype=image.dtype, device=image.device))


def _index(coordinates: Tensor, size: int) -> Tensor:
    """Return the nearest of the whole coordinates 0 … size−1; NaN becomes 0."""
    # Clamp before the conversion: an integer cannot hold the largest floats.
    return coordinates.nan_to_num().clamp(0, size - 1).long()


@_cached
def _unit_grid(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the pixel coordinates (1, 2, H, W) in units of grid_sample: 0 … W−1 is −1 … 1."""
    exact = torch.float64, torch.device("cpu")
    return (identity_grid(shape, *exact) * _unit(shape, *exact) - 1).to(device, dtype)


@_cached
def _unit(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the length (1, 2, 1, 1) of a pixel along x and y in units of grid_sample."""
    lengths = [2 / max(size - 1, 1) for size in reversed(shape)]
    return torch.tensor(lengths, dtype=dtype, device=device).view(1, 2, 1, 1)


def _in_units(dvf: Tensor) -> Tensor:
    """Return the positions (B, 2, H, W) of the displaced pixels in units of grid_sample."""
    if torch.compiler.is_compiling() or not dvf.requires_grad:  # a Function costs more than its product
        return _InUnits.forward(dvf)
    return cast(Tensor, _InUnits.apply(dvf))


class _InUnits(torch.autograd.Function):
    """Scales fields, whose components are contiguous planes, and gradients, whose components are interleaved."""

    @staticmethod
    def forward(dvf: Tensor) -> Tensor:
        of_field = (grid_shape(dvf), dvf.dtype, dvf.device)
        return torch.addcmul(_unit_grid(*of_field), dvf, _unit(*of_field))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        (gradient,) = gradients
        return gradient * _unit_row(grid_shape(gradient), gradient.dtype, gradient.device)


@_cached
def _unit_row(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `_unit` at each column, (1, 2, 1, W), with x and y interleaved in memory.

    The gradient of grid_sample has the same memory layout. Scaling it by this row takes 0.4 times as long as by
    `_unit`; fields, which have the other layout, would take 2.5 times as long.
    """
    row = _unit(shape, dtype, device).permute(0, 2, 3, 1).expand(1, 1, shape[1], 2)
    return row.contiguous().permute(0, 3, 1, 2)


def precise(field: Tensor) -> Tensor:
    """Return float64 unchanged and every other type as float32: half precision cannot separate neighbouring pixels."""
    return field if field.dtype == torch.float64 else field.float()


def grid_shape(tensor: Tensor) -> tuple[int, int]:
    """Return (H, W), the last two sizes."""
    return int(tensor.shape[-2]), int(tensor.shape[-1])


def check_dvf(dvf: Tensor) -> None:
    """Raise a ValueError unless `dvf` is a tensor (B, 2, H, W)."""
    _check_is_tensor(dvf, "dvf")
    if dvf.ndim != 4 or dvf.shape[1] != 2:
        raise ValueError(f"dvf: expected (B, 2, H, W), got {tuple(dvf.shape)}")


def _check_is_tensor(given: object, name: str) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(
            f"{name}: expected a torch tensor, got a {type(given).__name__}; for NumPy arrays use "
            "atlalign.DisplacementField"
        )


def check_same_grid(image: Tensor, dvf: Tensor) -> None:
    """Raise a ValueError unless `image` is a tensor (B, C, H, W) with the batch and grid of `dvf`."""
    _check_is_tensor(image, "image")
    if image.ndim != 4 or image.shape[0] != dvf.shape[0] or image.shape[-2:] != dvf.shape[-2:]:
        expected = f"({dvf.shape[0]}, C, {dvf.shape[-2]}, {dvf.shape[-1]})"
        raise ValueError(f"expected an image or field {expected}, got {tuple(image.shape)}")
