"""Random deformations: one function draws the parameters and another applies them, so draws can be replayed.

`RANDOM_FIELDS` has every kind under its name. Lengths are fractions of the image's width W in pixels, and angles are in
radians. Only names that end in `px`, and the points that `ControlPoints` holds, are in pixels.

A generator on the CPU draws the parameters, which are then moved to the device. The same seed gives the same parameters
on every device, and fields that agree up to rounding.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from atlalign.errors import InputError, check_finite_numbers, check_numbers, check_range, unknown_name
from atlalign.geometry.dvf import (
    affine_to_dvf,
    compose,
    grid_shape,
    integrate,
    limit_steepness,
    resize,
    stays_inside,
)
from atlalign.geometry.inverse import invert
from atlalign.geometry.maps import AffineSimple, affine_simple_matrix, invert_affine
from atlalign.geometry.scattered import (
    RbfFunction,
    anchor,
    check_anchor,
    corners,
    interpolate_rbf,
    with_zeros,
)

# A number, or a range (lowest, highest) from which each field's value is drawn uniformly.
Size = float | Sequence[float]


class TooFewEdgesError(InputError):
    """An image has fewer edge pixels than points to draw."""


class FieldPair(NamedTuple):
    """A batch of fields and their inverses, both (B, 2, H, W) in pixels."""

    dvf: Tensor
    inverse: Tensor


class RandomField(ABC):
    """A kind of random field.

    The parameters are a NamedTuple of tensors, each with the batch as its first axis. A field's parameters do not
    depend on how they are applied, and a field does not depend on the rest of its batch.
    """

    @abstractmethod
    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """Return random parameters for images (B, 1, H, W) in [0, 1], drawn by a generator on the CPU.

        Raises:
            TooFewEdgesError: If an image has too few edges for the points to be drawn.
        """

    @abstractmethod
    def after(self, before: Tensor, drawn: Any) -> Tensor:
        """Return `compose(outer=before, inner=m)` with the drawn fields m, (B, 2, H, W) in pixels."""


class InvertibleField(RandomField):
    """A kind of random field whose inverse is known too."""

    def after(self, before: Tensor, drawn: Any) -> Tensor:
        """Return the composition."""
        return compose(before, self.apply(drawn, grid_shape(before)))

    @abstractmethod
    def apply(self, drawn: Any, shape: tuple[int, int]) -> Tensor:
        """Return the fields (B, 2, H, W) in pixels of the drawn parameters."""

    @abstractmethod
    def pair(self, drawn: Any, shape: tuple[int, int]) -> FieldPair:
        """Return the fields of the drawn parameters and their inverses."""


# --- affine maps ------------------------------------------------------------------------------------------------------


class AffineDraw(NamedTuple):
    """Affine maps, (B, 2, 3) on absolute pixel coordinates."""

    matrix: Tensor


@dataclass(frozen=True, kw_only=True)
class Affine(InvertibleField):
    """Affine maps about the image's centre; the first four parameters are those of `draw_affine_simple`.

    Args:
        scale: Largest |log| of a scale.
        rotation: Largest rotation in radians.
        translation_fraction: Largest translation.
        shear: Largest shear in radians.
        mean_fraction: Scales each map along the line from the identity, until the mean displacement is at least this.
            None leaves the map as drawn.
        largest_fraction: The same for the largest displacement.
    """

    scale: float = 0.1
    rotation: float = 0.15
    translation_fraction: float = 0.05
    shear: float = 0.1
    mean_fraction: Size | None = None
    largest_fraction: Size | None = None

    def __post_init__(self) -> None:
        for name in _SIMPLE:
            _check_at_least(0.0, **{name: getattr(self, name)})
        _check_sizes(self.mean_fraction, self.largest_fraction)

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> AffineDraw:
        """Return random maps."""
        shape = grid_shape(images)
        sizes = _draw_sizes(self.mean_fraction, self.largest_fraction, len(images), generator)
        simple = {name: getattr(self, name) for name in _SIMPLE}
        matrix = affine_simple_matrix(
            draw_affine_simple(len(images), shape, **simple, generator=generator), shape
        )
        unsized = self.mean_fraction is None and self.largest_fraction is None
        return AffineDraw(matrix if unsized else _scaled_affine(matrix, shape, *sizes))

    def apply(self, drawn: AffineDraw, shape: tuple[int, int]) -> Tensor:
        """Return the fields of the maps."""
        return affine_to_dvf(drawn.matrix, shape)

    def pair(self, drawn: AffineDraw, shape: tuple[int, int]) -> FieldPair:
        """Return the fields of the maps and of their inverses in closed form."""
        inverse = invert_affine(drawn.matrix.double()).to(drawn.matrix.dtype)
        return FieldPair(affine_to_dvf(drawn.matrix, shape), affine_to_dvf(inverse, shape))


_SIMPLE = ("scale", "rotation", "translation_fraction", "shear")


def draw_affine_simple(
    batch_size: int,
    shape: tuple[int, int],
    *,
    scale: float = 0.1,
    rotation: float = 0.15,
    translation_fraction: float = 0.05,
    shear: float = 0.1,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> AffineSimple:
    """Return uniform random parameters (B,), each between − and + its argument.

    Args:
        batch_size: B.
        shape: (H, W).
        scale: Largest |log| of a scale: growing is as likely as shrinking.
        rotation: Largest rotation in radians.
        translation_fraction: Largest translation as a fraction of the width.
        shear: Largest shear in radians.
        generator: A generator on the CPU; None for the global one.
        device: The device of the result.
    """
    uniform = 2 * torch.rand(6, batch_size, generator=generator).to(device) - 1
    translation_px = translation_fraction * shape[1]
    return AffineSimple(
        scale_x=(scale * uniform[0]).exp(),
        scale_y=(scale * uniform[1]).exp(),
        rotation=rotation * uniform[2],
        translation_x=translation_px * uniform[3],
        translation_y=translation_px * uniform[4],
        shear=shear * uniform[5],
    )


def _scaled_affine(
    matrix: Tensor, shape: tuple[int, int], mean_fraction: Tensor, largest_fraction: Tensor
) -> Tensor:
    """Return I + s (matrix − I) with the smallest s whose field of `shape` reaches both sizes (B, 1, 1, 1)."""
    reached = _reached(affine_to_dvf(matrix, shape), shape[1], mean_fraction, largest_fraction)[:, 0]
    identity = torch.eye(2, 3, dtype=matrix.dtype, device=matrix.device)
    scaled = identity + (matrix - identity) / reached
    if not bool((torch.linalg.det(scaled[:, :, :2]) > 0).all()):
        raise InputError(
            "affine map: expected a mean and a largest displacement that some map reaches without folding,"
            f" got {mean_fraction.max():g} and {largest_fraction.max():g} of the width"
        )
    return scaled


# --- smooth fields, diffeomorphic by construction ---------------------------------------------------------------------


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
        _check_at_least(0.01, spacing=self.spacing)  # less than a few pixels would not be smooth
        _check_at_least(1, grid_px=self.grid_px)
        _check_at_least(0.0, tolerance_px=self.tolerance_px)
        _check_sizes(self.mean_fraction, self.largest_fraction)

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> SmoothDraw:
        """Return random velocities and sizes."""
        sizes = _draw_sizes(self.mean_fraction, self.largest_fraction, len(images), generator)
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
    if not bool((_reached(pair.dvf, shape[1], *drawn[1:]) > 0.99).all()):
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
    """Return the velocities times the smallest factor at which their fields of `shape` reach the drawn sizes."""
    velocity, *sizes = drawn
    # The image's width in pixels of the velocity's grid; corners are aligned.
    width = shape[1] * (velocity.shape[-1] - 1) / (shape[1] - 1)
    velocity = velocity / _reached(velocity, width, *sizes)
    for _ in range(20):
        limited = limit_steepness(velocity)
        reached = _reached(integrate(limited), width, *sizes)
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


# --- both -------------------------------------------------------------------------------------------------------------


class AffineSmoothDraw(NamedTuple):
    """The parts of an `AffineDraw` and of a `SmoothDraw`."""

    matrix: Tensor
    velocity: Tensor
    mean_fraction: Tensor
    largest_fraction: Tensor


class AffineSmooth(Smooth):
    """Smooth fields in affine maps, as a global and then a local registration undo them; both reach the drawn sizes."""

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """Return random maps, velocities and sizes."""
        smooth, shape = super().draw(images, generator=generator), grid_shape(images)
        matrix = affine_simple_matrix(draw_affine_simple(len(images), shape, generator=generator), shape)
        return AffineSmoothDraw(_scaled_affine(matrix, shape, *smooth[1:]), *smooth)

    def apply(self, drawn: Any, shape: tuple[int, int]) -> Tensor:
        """Return the compositions: affine outside, smooth inside."""
        return compose(affine_to_dvf(drawn.matrix, shape), super().apply(SmoothDraw(*drawn[1:]), shape))

    def pair(self, drawn: Any, shape: tuple[int, int]) -> FieldPair:
        """Return the compositions and their inverses."""
        affine = Affine().pair(AffineDraw(drawn.matrix), shape)
        smooth = super().pair(SmoothDraw(*drawn[1:]), shape)
        dvf, inverse = compose(affine.dvf, smooth.dvf), compose(smooth.inverse, affine.inverse)
        # Between pixels a steep inverse is not exact. Beyond the border only the composition knows the affine map.
        exact = invert(dvf, start=inverse, tolerance_px=self.tolerance_px)
        return FieldPair(dvf, torch.where(stays_inside(inverse)[:, None], exact, inverse))


# --- control points ---------------------------------------------------------------------------------------------------


class ControlPoints(NamedTuple):
    """Points of the image and their displacements, both (B, N, 2) as (x, y) in pixels."""

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
        _check_at_least(0.0, spacing=self.spacing)
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
        _check_at_least(1, n_points=self.n_points)
        _check_at_least(0.0, radius_fraction=self.radius_fraction, factor_std=self.factor_std)
        _check_at_least(-math.inf, factor_mean=self.factor_mean)
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


# --- one of several ---------------------------------------------------------------------------------------------------


class Mix(RandomField):
    """One of several kinds, drawn anew for each batch.

    Args:
        parts: The kinds by name.
        weights: The relative frequency of each kind, by the same names.
    """

    def __init__(self, *, parts: Mapping[str, RandomField], weights: Mapping[str, float]) -> None:
        if set(parts) != set(weights):
            raise InputError(f"weights: expected the names {', '.join(parts)}, got {', '.join(weights)}")
        named = {f"weights.{name}": weights[name] for name in parts}
        check_finite_numbers(named, dict.fromkeys(named, 0.0))
        values = [float(weights[name]) for name in parts]
        if sum(values) == 0:
            raise InputError(f"weights: expected one above 0, got {values}")
        self._parts = list(parts.values())
        self._weights = torch.tensor(values)

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[RandomField, Any]:
        """Return the chosen kind with its parameters."""
        chosen = self._parts[int(torch.multinomial(self._weights, 1, generator=generator))]
        return chosen, chosen.draw(images, generator=generator)

    def after(self, before: Tensor, drawn: tuple[RandomField, Any]) -> Tensor:
        """Return the composition of the chosen kind."""
        chosen, parameters = drawn
        return chosen.after(before, parameters)


# --- the table --------------------------------------------------------------------------------------------------------

RANDOM_FIELDS: dict[str, type[RandomField]] = {
    "affine": Affine,
    "smooth": Smooth,
    "affine_smooth": AffineSmooth,
    "control_points": Stretching,
    "edge_stretching": EdgeStretching,
    "mix": Mix,
}
INVERTIBLE_FIELDS: dict[str, type[Affine | Smooth]] = {
    name: kind for name, kind in RANDOM_FIELDS.items() if issubclass(kind, Affine | Smooth)
}


def invertible_field(name: str, **options: Any) -> InvertibleField:
    """Return the kind of that name with those of the options that it has.

    Raises:
        InputError: If there is no such kind, or it has no exact inverse.
    """
    if name not in INVERTIBLE_FIELDS:
        raise unknown_name("deformation", name, INVERTIBLE_FIELDS)
    kind = INVERTIBLE_FIELDS[name]
    return kind(**{key: options[key] for key in options.keys() & {item.name for item in fields(kind)}})


# --- sizes ------------------------------------------------------------------------------------------------------------


def _draw_sizes(
    mean_fraction: Size | None,
    largest_fraction: Size | None,
    batch_size: int,
    generator: torch.Generator | None,
) -> list[Tensor]:
    """Return both sizes (B, 1, 1, 1); a number needs no draw."""
    sizes = []
    for size in (mean_fraction or 0.0, largest_fraction or 0.0):
        low, high = size if isinstance(size, Sequence) else (size, size)
        share = torch.rand(batch_size, 1, 1, 1, generator=generator) if low < high else torch.zeros(())
        sizes.append(torch.lerp(torch.full((batch_size, 1, 1, 1), low), torch.tensor(float(high)), share))
    return sizes


def _reached(dvf: Tensor, width: float, mean_fraction: Tensor, largest_fraction: Tensor) -> Tensor:
    """Return (B, 1, 1, 1): actual over requested displacement, the smaller ratio of mean and largest."""
    displacement = dvf.square().sum(1).sqrt().flatten(1) / width
    mean, largest = (size.view(-1, 1, 1, 1) for size in (displacement.mean(1), displacement.amax(1)))
    # A size of 0 asks for nothing; a field without any size shrinks to a millionth of the width.
    return torch.minimum(mean / mean_fraction.clamp(min=1e-6), largest / largest_fraction.clamp(min=1e-6))


def _check_sizes(mean_fraction: Size | None, largest_fraction: Size | None) -> None:
    for name, size in (("mean_fraction", mean_fraction), ("largest_fraction", largest_fraction)):
        if isinstance(size, Sequence):
            check_range(size, name=name, lowest=0, highest=1)
        elif size is not None:
            _check_at_least(0.0, **{name: size})


def _check_at_least(least: float, **values: float) -> None:
    check_finite_numbers(values, dict.fromkeys(values, least))
