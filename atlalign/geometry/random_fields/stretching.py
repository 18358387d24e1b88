"""Random points that move, and everything between them."""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from atlalign.errors import InputError, check_numbers, unknown_name
from atlalign.geometry.dvf import compose, grid_shape
from atlalign.geometry.random_fields.kinds import RandomField
from atlalign.geometry.random_fields.sizes import check_at_least
from atlalign.geometry.scattered import (
    RbfFunction,
    anchor,
    check_anchor,
    corners,
    interpolate_rbf,
    with_zeros,
)


class TooFewEdgesError(InputError):
    """An image has fewer edge pixels than points to draw."""


class ControlPoints(NamedTuple):
    """Points of the image and their displacements.

    Attributes:
        points: (B, N, 2) as (x, y) in pixels.
        displacements: (B, N, 2) as (x, y) in pixels.
    """

    points: Tensor
    displacements: Tensor


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """Draws a field again through a grid of its own values, zero at the image's corners; see `geometry.anchor`.

    Args:
        h_kept: Height of the centred rectangle that holds the grid, as a share of the image's, in ]0, 1].
        w_kept: The same for the width.
        spacing: The distance between grid points, rounded to whole pixels.
        smooth: 0 meets the field exactly at the grid points; larger values smooth it.
    """

    h_kept: float = 0.9
    w_kept: float = 0.9
    spacing: float = 50 / 456
    smooth: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0.0, spacing=self.spacing)
        check_anchor(h_kept=self.h_kept, w_kept=self.w_kept, ds_f=1, smooth=self.smooth)

    def __call__(self, dvf: Tensor) -> Tensor:
        """Return the anchored fields (B, 2, H, W)."""
        step_px = max(1, round(self.spacing * dvf.shape[-1]))
        return anchor(dvf, h_kept=self.h_kept, w_kept=self.w_kept, ds_f=step_px, smooth=self.smooth)


@dataclass(frozen=True, kw_only=True)
class Stretching(RandomField):
    """Random points anywhere in the image move by random displacements, with radial basis functions in between.

    These functions have kinks at the points, which no inverse on the same grid can follow. A Gaussian of 3 px therefore
    blurs the field.

    Args:
        n_points: The number of points, not counting the image's corners, which stay.
        radius_fraction: The largest displacement of a point, before the factor.
        function: The radial basis function: linear or thin_plate.
        factor_mean: Each field is multiplied by a normal random number of this mean.
        factor_std: The standard deviation of that number.
        anchor: Smooths the field and pins its corners; None leaves it as it is.
    """

    n_points: int = 6
    radius_fraction: float = 60 / 456
    function: RbfFunction = "linear"
    factor_mean: float = 0.7
    factor_std: float = 0.3
    anchor: Anchor | None = field(default_factory=Anchor)

    def __post_init__(self) -> None:
        check_at_least(1, n_points=self.n_points)
        check_at_least(0.0, radius_fraction=self.radius_fraction, factor_std=self.factor_std)
        check_at_least(-math.inf, factor_mean=self.factor_mean)
        if self.function not in get_args(RbfFunction):
            raise unknown_name("function", str(self.function), get_args(RbfFunction))

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> ControlPoints:
        """Return random points and displacements, which the factor has multiplied already."""
        points, displacements = draw_edge_stretching(
            self._allowed(images),
            n_points=self.n_points,
            radius_max=self.radius_fraction * images.shape[-1],
            generator=generator,
        )
        factor = self.factor_mean + self.factor_std * torch.randn(len(images), 1, 1, generator=generator)
        return ControlPoints(points, factor * displacements)

    def after(self, before: Tensor, drawn: ControlPoints) -> Tensor:
        """Return the composition with `before`, anchored and blurred as a whole."""
        overall = compose(before, control_points(drawn, grid_shape(before), function=self.function))
        return _without_kinks(overall if self.anchor is None else self.anchor(overall))

    def _allowed(self, images: Tensor) -> Tensor:
        """Return the mask (B, H, W) of the pixels that may be drawn."""
        return torch.ones_like(images[:, 0], dtype=torch.bool)


class EdgeStretching(Stretching):
    """Stretching of points on the image's edges: tissue moves, and the background does not."""

    def _allowed(self, images: Tensor) -> Tensor:
        return _edges(images)


def draw_control_points(
    batch_size: int,
    shape: tuple[int, int],
    *,
    n_points: int = 6,
    radius_max: float = 60.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> ControlPoints:
    """Return random pixels other than the corners, with the random displacements of `draw_edge_stretching`."""
    everywhere = torch.ones(batch_size, *shape, dtype=torch.bool)
    return draw_edge_stretching(
        everywhere, n_points=n_points, radius_max=radius_max, generator=generator, device=device
    )


def draw_edge_stretching(
    edge_mask: Tensor,
    *,
    n_points: int = 6,
    radius_max: float = 60.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> ControlPoints:
    """Return `n_points` different edge pixels of each image, each displaced at a uniform angle by a uniform radius.

    Args:
        edge_mask: (B, H, W), true on the edges, as `edges` returns it. The image's corners are never drawn.
        n_points: The number of points.
        radius_max: The largest radius in pixels.
        generator: A generator on the CPU; None for the global one.
        device: The device of the result; None for the mask's.

    Raises:
        TooFewEdgesError: If an image has fewer than `n_points` edge pixels.
        InputError: If `n_points` is below 1, or the radius below 0.
    """
    check_numbers({"n_points": n_points, "radius_max": radius_max}, {"n_points": 1, "radius_max": 0.0})
    points = torch.stack([_draw_pixels(mask, n_points, generator) for mask in edge_mask.cpu()])
    uniform = torch.rand(2, *points.shape[:2], generator=generator)
    radius, angle = radius_max * uniform[0], 2 * math.pi * uniform[1]
    displacements = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    device = edge_mask.device if device is None else device
    return ControlPoints(points.to(device), displacements.to(device))


def control_points(
    parameters: ControlPoints,
    shape: tuple[int, int],
    *,
    function: RbfFunction = "linear",
    smooth: float = 0.0,
) -> Tensor:
    """Return the fields (B, 2, H, W) of `interpolate_rbf` with these displacements and fixed image corners."""
    points, displacements = with_zeros(*parameters, corners(shape))
    return interpolate_rbf(points, displacements, shape, function=function, smooth=smooth)


def edges(images: Tensor) -> Tensor:
    """Return the edges (B, H, W) of images (B, 1, H, W) in [0, 1]: ridges of the gradient above 0.1.

    Canny's detector (IEEE PAMI 1986), sigma 1, without the last stage, which drops uniformly weak ridges.
    """
    # Kornia is slow to import and needed only here; its last stage takes ten times as long as all others.
    from kornia.filters import canny

    return canny(images, hysteresis=False)[1][:, 0] > 0


# Several samples are drawn for one image, and the cache recognises a tensor by its identity.
_edges = lru_cache(maxsize=2)(edges)


def _draw_pixels(mask: Tensor, n_points: int, generator: torch.Generator | None) -> Tensor:
    """Return `n_points` different pixels (N, 2) as (x, y) of the mask (H, W), never its corners."""
    allowed = mask.clone()
    allowed[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    rows_columns = allowed.nonzero()
    if len(rows_columns) < n_points:
        raise TooFewEdgesError(
            f"edge mask: expected at least {n_points} edge pixels, found {len(rows_columns)}"
        )
    chosen = torch.randperm(len(rows_columns), generator=generator)[:n_points]
    return rows_columns[chosen].flip(1).float()


def _without_kinks(dvf: Tensor, sigma_px: float = 3.0) -> Tensor:
    from kornia.filters import gaussian_blur2d  # slow to import

    size = 2 * round(2 * sigma_px) + 1
    blurred: Tensor = gaussian_blur2d(dvf, (size, size), (sigma_px, sigma_px), border_type="replicate")
    return blurred
