"""Random smooth fields, which are diffeomorphic by construction."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from atlalign.errors import InputError
from atlalign.geometry.dvf import grid_shape, integrate, limit_steepness, resize
from atlalign.geometry.inverse import invert
from atlalign.geometry.random_fields.kinds import FieldPair, InvertibleField
from atlalign.geometry.random_fields.sizes import Size, check_at_least, check_sizes, draw_sizes, share_reached


class SmoothDraw(NamedTuple):
    """Stationary velocities (B, 2, h, w) of any size, and the sizes (B, 1, 1, 1) that their fields reach."""

    velocity: Tensor
    mean_fraction: Tensor
    largest_fraction: Tensor


@dataclass(frozen=True, kw_only=True)
class Smooth(InvertibleField):
    """The fields of stationary velocities: without folds, and the identity at the border.

    Each field is scaled until it reaches both sizes on the velocity's grid, within 1 %. A field that would need a
    velocity steeper than 2 px per px stays smaller.

    Args:
        mean_fraction: The mean displacement is at least this.
        largest_fraction: The largest displacement is at least this.
        spacing: The distance between the velocity's knots; smaller is rougher.
        grid_px: The distance between the grid points on which the velocity is integrated, in pixels.
        tolerance_px: The largest residual of `compose(dvf, inverse)`.
    """

    mean_fraction: Size = 0.0
    largest_fraction: Size = (0.0, 0.08)
    spacing: float = 0.15
    grid_px: int = 1
    tolerance_px: float = 5e-3

    def __post_init__(self) -> None:
        check_at_least(0.01, spacing=self.spacing)  # less than a few pixels would not be smooth
        check_at_least(1, grid_px=self.grid_px)
        check_at_least(0.0, tolerance_px=self.tolerance_px)
        check_sizes(self.mean_fraction, self.largest_fraction)

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> SmoothDraw:
        """Return random velocities and sizes."""
        sizes = draw_sizes(self.mean_fraction, self.largest_fraction, len(images), generator)
        height, width = ((size - 1) // self.grid_px + 1 for size in grid_shape(images))
        velocity = draw_velocity(len(images), (height, width), spacing=self.spacing, generator=generator)
        return SmoothDraw(velocity, *sizes)

    def apply(self, drawn: SmoothDraw, shape: tuple[int, int]) -> Tensor:
        """Return the fields: integrated on the velocities' grid, and resized."""
        return resize(integrate(_scaled_velocity(drawn, shape)), shape)

    def pair(self, drawn: SmoothDraw, shape: tuple[int, int]) -> FieldPair:
        """Return the fields and their inverses, which start from the fields of the negative velocities."""
        velocity = _scaled_velocity(drawn, shape)
        dvf, start = (resize(integrate(sign * velocity), shape) for sign in (1, -1))
        return FieldPair(dvf, invert(dvf, start=start, tolerance_px=self.tolerance_px))


def smooth_field(
    batch_size: int,
    shape: tuple[int, int],
    *,
    mean_fraction: float = 0.02,
    largest_fraction: float = 0.06,
    spacing: float = 0.15,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> FieldPair:
    """Return random fields without folds that are the identity at the border, with their inverses.

    Each field's mean displacement is at least `mean_fraction` of the width, and its largest at least
    `largest_fraction`. The residual of `compose(dvf, inverse)` is below 0.01 px.

    Raises:
        InputError: If such large displacements fold between knots as close as `spacing`.
    """
    smooth = Smooth(mean_fraction=mean_fraction, largest_fraction=largest_fraction, spacing=spacing)
    drawn = smooth.draw(torch.empty(batch_size, 1, *shape), generator=generator)
    drawn = SmoothDraw(*(part.to(device) for part in drawn))
    pair = smooth.pair(drawn, shape)
    if not bool((share_reached(pair.dvf, shape[1], *drawn[1:]) > 0.99).all()):
        raise InputError(
            f"smooth field: expected displacements that knots {spacing} of the width apart reach without folding, got"
            f" mean_fraction={mean_fraction} and largest_fraction={largest_fraction}; use smaller ones or a larger"
            " spacing"
        )
    return pair


def draw_velocity(
    batch_size: int,
    shape: tuple[int, int],
    *,
    spacing: float = 0.15,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return random smooth velocities (B, 2, H, W): cubic B-splines with standard normal coefficients.

    They are zero along the border, so the field maps the image's rectangle onto itself and no content is lost.

    Args:
        batch_size: B.
        shape: (H, W).
        spacing: The distance between the splines' knots as a fraction of the width; smaller is rougher.
        generator: A generator on the CPU; None for the global one.
        device: The device of the result.

    Raises:
        InputError: If the spacing is not above 0.
    """
    if not spacing > 0:
        raise InputError(f"spacing: expected a fraction of the width above 0, got {spacing}")
    along_y, along_x = (_spline_basis(size, spacing * shape[1], device) for size in shape)
    knots = (batch_size, 2, along_y.shape[1], along_x.shape[1])
    coefficients = torch.randn(knots, generator=generator).to(device)
    return along_y @ coefficients @ along_x.T


def _scaled_velocity(drawn: SmoothDraw, shape: tuple[int, int]) -> Tensor:
    """Return velocities scaled by the smallest factor at which fields on a grid of `shape` reach the drawn sizes."""
    velocity, *sizes = drawn
    # The image's width in pixels of the velocity's grid; corners are aligned.
    width = shape[1] * (velocity.shape[-1] - 1) / (shape[1] - 1)
    velocity = velocity / share_reached(velocity, width, *sizes)
    for _ in range(20):
        limited = limit_steepness(velocity)
        reached = share_reached(integrate(limited), width, *sizes)
        steepest = (limited != velocity).flatten(1).any(1).view(-1, 1, 1, 1)
        velocity, done = limited, steepest | (reached >= 1) & (reached <= 1.01)
        if bool(done.all()):
            break
        # A finished sample stays unchanged, so that its result does not depend on its batch.
        velocity = velocity * torch.where(done, 1, 1.005 / reached)
    return velocity


def _spline_basis(size: int, spacing_px: float, device: torch.device | str) -> Tensor:
    """Return the values (size, knots) of the cubic B-splines inside 0 … size−1, odd about both ends."""
    intervals = max(2, round((size - 1) / spacing_px))
    x = torch.linspace(0, intervals, size, device=device)[:, None]
    knots = torch.arange(1, intervals, device=device)
    return _cubic_spline(x - knots) - _cubic_spline(x + knots) - _cubic_spline(x - (2 * intervals - knots))


def _cubic_spline(x: Tensor) -> Tensor:
    """Return the cubic B-spline with knots at the integers: 2/3 at 0, 1/6 at ±1, 0 beyond ±2."""
    x = x.abs()
    return ((2 - x).clamp(min=0) ** 3 - 4 * (1 - x).clamp(min=0) ** 3) / 6
