"""Inverses of displacement fields, found pixel by pixel."""

import torch
from torch import Tensor

from atlalign.geometry.dvf import (
    check_dvf,
    check_same_grid,
    compose,
    derivatives,
    grid_shape,
    jacobian_determinant,
    precise,
    resize,
)


def invert(
    dvf: Tensor, *, start: Tensor | None = None, tolerance_px: float = 1e-3, max_iterations: int = 50
) -> Tensor:
    """Return v with `compose(dvf, v) = 0`, that is v(q) = −dvf(q + v(q)), pixel by pixel.

    The other order, `compose(v, dvf)`, is near 0 only inside the image: there it contains the error of interpolating
    v, and points that `dvf` moves beyond the border do not return.

    The inverse is solved on a coarse grid, then corrected on finer ones. The few pixels that still miss the tolerance
    take Newton steps on the bilinear interpolant. Beyond the border the displacement is that of the border, so v is no
    larger than the field (within the tolerance). Where the field folds there is no inverse, and the best iterate is
    returned; `inverse_mask` finds these pixels. Not differentiable. A sample's result does not depend on its batch.

    Args:
        dvf: (B, 2, H, W) in pixels.
        start: A guess (B, 2, H, W) of the inverse, which skips the coarse grids.
        tolerance_px: The largest residual of a pixel that has an inverse.
        max_iterations: The largest number of Newton steps.

    Raises:
        ValueError: If `dvf` is not (B, 2, H, W) or `start` has another shape.

    Example:
        >>> invert(torch.full((1, 2, 4, 5), 3.0))[0, :, 0, 0]
        tensor([-3., -3.])
    """
    check_dvf(dvf)
    if start is not None:
        check_same_grid(start, dvf)
    with torch.no_grad():
        field = precise(dvf)
        inverse = _coarse_to_fine_inverse(field) if start is None else start.detach().to(field.dtype)
        return _newton_where_needed(field, inverse, tolerance_px, max_iterations)


def inverse_mask(dvf: Tensor, inverse: Tensor, *, tolerance_px: float = 0.01) -> Tensor:
    """Return the mask (B, H, W) where `inverse` inverts `dvf`: small residual, and no folded part of dvf lands there.

    Where a folded part lands, dvf maps at least three points to the same one. An inverse field can return only one.

    Args:
        dvf: (B, 2, H, W) in pixels.
        inverse: (B, 2, H, W) in pixels, as `invert` returns it.
        tolerance_px: The largest residual that still counts as inverse.
    """
    residual = _squared_norm(compose(dvf, inverse))
    return (residual <= tolerance_px**2) & ~_landing(dvf, jacobian_determinant(dvf) <= 0)


def _landing(dvf: Tensor, selected: Tensor) -> Tensor:
    """Return the mask (B, H, W) of the four pixels around each point q + dvf(q) with q in the mask `selected`."""
    batch, row, column = selected.nonzero(as_tuple=True)
    offset = precise(dvf)[batch, :, row, column]
    x, y = (column + offset[:, 0]).floor().long(), (row + offset[:, 1]).floor().long()
    height, width = grid_shape(dvf)
    landing = torch.zeros_like(selected)
    for near_x, near_y in ((x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1)):
        inside = (near_x >= 0) & (near_x < width) & (near_y >= 0) & (near_y < height)
        landing[batch[inside], near_y[inside], near_x[inside]] = True
    return landing


def _coarse_to_fine_inverse(dvf: Tensor) -> Tensor:
    """Return the inverse, accurate to about a hundredth of a pixel where the field is smooth."""
    height, width = grid_shape(dvf)
    factors = [factor for factor in (16, 8, 4, 2) if min(height, width) >= 4 * factor]
    levels = [resize(dvf, (height // factor, width // factor)) for factor in factors] + [dvf]
    inverse = -levels[0]
    for index, level in enumerate(levels):
        inverse = resize(inverse, grid_shape(level))
        for _ in range(3 if index < 2 else 1):
            inverse = _corrected(level, inverse)
        # Corrections diverge where the field is steep, and finer levels would inherit the error.
        if index == 1:
            inverse = _newton_where_needed(level, inverse, tolerance_px=0.02, max_iterations=20)
    return inverse


def _corrected(dvf: Tensor, inverse: Tensor) -> Tensor:
    """Return the inverse after one Newton step, v − (I + ∇dvf(q + v))⁻¹ · residual.

    At the solution the inverse matrix is I + ∇v, which needs neither sampling nor inversion.
    """
    residual = compose(dvf, inverse)
    along_x, along_y = derivatives(inverse)
    corrected = inverse - residual
    corrected.addcmul_(along_x, residual[:, :1], value=-1)
    return corrected.addcmul_(along_y, residual[:, 1:], value=-1)


def _newton_where_needed(dvf: Tensor, inverse: Tensor, tolerance_px: float, max_iterations: int) -> Tensor:
    # The negation also selects pixels that a correction drove to NaN.
    left = ~(_squared_norm(compose(dvf, inverse)) <= tolerance_px**2)
    if not bool(left.any()):
        return inverse
    return _newton_inverse(dvf, inverse, left, tolerance_px, max_iterations)


def _newton_inverse(
    dvf: Tensor, inverse: Tensor, selected: Tensor, tolerance_px: float, max_iterations: int
) -> Tensor:
    """Return `inverse` after damped Newton steps at the pixels of the mask `selected` (B, H, W) only."""
    batch, row, column = selected.nonzero(as_tuple=True)
    target = torch.stack([column, row], dim=1).to(dvf.dtype)
    # No inverse is larger than the field, so a longer step cannot lead to the solution.
    bound = dvf.abs().amax(dim=(2, 3))[batch]

    def evaluate(pixels: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Return the squared residual (N,) of the offset (N, 2) and the Newton step (N, 2) from it."""
        value, gradient = _sample_cell(dvf, batch[pixels], target[pixels] + offset)
        residual = offset + value
        return _squared_norm(residual), -_solve(gradient, residual)

    start = inverse[batch, :, row, column]
    best = torch.where(start.isfinite(), start, -dvf[batch, :, row, column]).clamp(-bound, bound)
    error, step = evaluate(torch.arange(len(batch), device=dvf.device), best)
    damping = torch.ones_like(error)
    for _ in range(max_iterations):
        pixels = ((error > tolerance_px**2) & (damping > 1e-3)).nonzero()[:, 0]
        if len(pixels) == 0:
            break
        trial = best[pixels] + damping[pixels, None] * step[pixels]
        trial = trial.clamp(-bound[pixels], bound[pixels])
        trial_error, trial_step = evaluate(pixels, trial)
        better = trial_error < error[pixels]
        damping[pixels] = torch.where(better, (2 * damping[pixels]).clamp(max=1), damping[pixels] / 2)
        improved = pixels[better]
        best[improved], error[improved], step[improved] = (
            trial[better],
            trial_error[better],
            trial_step[better],
        )
    solved = inverse.clone()
    solved[batch, :, row, column] = best
    return solved


def _sample_cell(dvf: Tensor, batch: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bilinear interpolant (N, 2) and its derivatives (N, 4) at points (N, 2) of the samples `batch` (N,).

    The derivatives are ordered ∂x/∂x, ∂y/∂x, ∂x/∂y, ∂y/∂y. Beyond the border the value is constant.
    """
    limit = torch.tensor(grid_shape(dvf)[::-1], device=dvf.device) - 1
    clamped = points.clamp(torch.zeros_like(limit), limit)
    # The order matters: NaN becomes an arbitrary integer, which the clamp then moves into the image.
    cell = clamped.long().clamp(torch.zeros_like(limit), limit - 1)
    x, y = cell.unbind(1)
    to_x, to_y = (clamped - cell).hsplit(2)
    top_left, top_right = dvf[batch, :, y, x], dvf[batch, :, y, x + 1]
    bottom_left, bottom_right = dvf[batch, :, y + 1, x], dvf[batch, :, y + 1, x + 1]
    top, bottom = torch.lerp(top_left, top_right, to_x), torch.lerp(bottom_left, bottom_right, to_x)
    along_x = torch.lerp(top_right - top_left, bottom_right - bottom_left, to_y)
    inside = points == clamped
    gradient = torch.cat([along_x * inside[:, :1], (bottom - top) * inside[:, 1:]], dim=1)
    return torch.lerp(top, bottom, to_y), gradient


def _solve(gradient: Tensor, residual: Tensor) -> Tensor:
    """Return (I + gradient)⁻¹ · residual, damped where the matrix is near singular; (N, 4) and (N, 2)."""
    a, c, b, d = gradient.unbind(1)
    a, d = a + 1, d + 1
    determinant = a * d - b * c
    determinant = determinant.abs().clamp(min=0.05).copysign(determinant)
    x, y = residual.unbind(1)
    return torch.stack([d * x - b * y, a * y - c * x], dim=1) / determinant[:, None]


def _squared_norm(vectors: Tensor) -> Tensor:
    # On the CPU this is twenty times faster than `Tensor.norm` over the channels.
    return vectors.square().sum(dim=1)
