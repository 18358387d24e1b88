"""What a generated section is deformed by: one callable object for each option of `conf/deformation`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from atlalign.errors import InputError, check_finite_numbers
from atlalign.geometry import (
    ControlPoints,
    affine_simple,
    anchor,
    compose,
    control_points,
    draw_affine_simple,
    draw_control_points,
    draw_edge_stretching,
    draw_velocity,
    edges,
    integrate,
)
from atlalign.geometry.scattered import RbfFunction, check_anchor


class RejectedError(Exception):
    """A draw that is not kept; the message is the reason under which it is counted."""


class Deformation(Protocol):
    """Draws the field of a new sample."""

    def __call__(self, image: Tensor, before: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random field m after `before`: `compose(outer=before, inner=m)`, (1, 2, H, W) in pixels.

        Args:
            image: (1, 1, H, W) in [0, 1], what m is drawn for.
            before: (1, 2, H, W) in pixels.
            generator: On the CPU; decides everything.

        Raises:
            RejectedError: If nothing can be drawn for this image.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The arguments of `atlalign.geometry.anchor`: a field through a grid of its own values, zero at the corners."""

    h_kept: float = 0.9
    w_kept: float = 0.9
    ds_f: int = 50
    smooth: float = 0.0

    def __post_init__(self) -> None:
        check_anchor(**asdict(self), where="deformation.anchor.")

    def __call__(self, dvf: Tensor) -> Tensor:
        """Return the anchored fields (B, 2, H, W)."""
        return anchor(dvf, **asdict(self))


@dataclass(frozen=True, kw_only=True)
class Stretching(ABC):
    """Random points move by random displacements, radial basis functions in between.

    These have kinks at their centres, which no inverse on the same grid can follow: the overall field is blurred by a
    Gaussian of 3 px.

    Args:
        n_points: The number of points, the image's corners not counted, which stay.
        radius_max: The largest displacement of a point in pixels, before `factor`.
        function: The radial basis function: linear or thin_plate.
        factor_mean: Each field is multiplied by a normal random number of this mean …
        factor_std: … and this standard deviation.
        anchor: Smooths the overall field and pins its corners; none where null.
    """

    n_points: int = 6
    radius_max: float = 60.0
    function: RbfFunction = "linear"
    factor_mean: float = 0.7
    factor_std: float = 0.3
    anchor: Anchor | None = field(default_factory=Anchor)

    def __post_init__(self) -> None:
        _check_at_least(1, n_points=self.n_points)
        _check_at_least(0.0, radius_max=self.radius_max, factor_std=self.factor_std)
        _check_at_least(-math.inf, factor_mean=self.factor_mean)
        if self.function not in ("linear", "thin_plate"):
            raise InputError(f"deformation.function: expected linear or thin_plate, got '{self.function}'")

    def __call__(self, image: Tensor, before: Tensor, generator: torch.Generator) -> Tensor:
        """Return the field as `Deformation` says."""
        shape = (int(image.shape[-2]), int(image.shape[-1]))
        drawn = control_points(self._draw_points(image, generator), shape, function=self.function)
        factor = self.factor_mean + self.factor_std * torch.randn((), generator=generator)
        overall = compose(before, factor * drawn)
        return _without_kinks(overall if self.anchor is None else self.anchor(overall))

    @abstractmethod
    def _draw_points(self, image: Tensor, generator: torch.Generator) -> ControlPoints:
        """Return what moves, and by how much."""


@lru_cache(maxsize=2)
def _edges(image: Tensor) -> Tensor:
    # One image is drawn for several times, and tensors are told apart by identity.
    return edges(image)


def _without_kinks(dvf: Tensor, sigma_px: float = 3.0) -> Tensor:
    from kornia.filters import gaussian_blur2d  # slow to import

    size = 2 * round(2 * sigma_px) + 1
    blurred: Tensor = gaussian_blur2d(dvf, (size, size), (sigma_px, sigma_px), border_type="replicate")
    return blurred


class EdgeStretching(Stretching):
    """The points lie on the image's edges: what moves is tissue, not background."""

    def _draw_points(self, image: Tensor, generator: torch.Generator) -> ControlPoints:
        mask = _edges(image)
        if int(mask.sum()) < self.n_points + 4:  # the corners do not count
            raise RejectedError("too few edges in the image")
        return draw_edge_stretching(
            mask, n_points=self.n_points, radius_max=self.radius_max, generator=generator
        )


class RandomControlPoints(Stretching):
    """The points lie anywhere."""

    def _draw_points(self, image: Tensor, generator: torch.Generator) -> ControlPoints:
        shape = (int(image.shape[-2]), int(image.shape[-1]))
        return draw_control_points(
            1, shape, n_points=self.n_points, radius_max=self.radius_max, generator=generator
        )


@dataclass(frozen=True, kw_only=True)
class Affine:
    """A uniform random affine map about the image's centre; the arguments of `draw_affine_simple`."""

    scale: float = 0.1
    rotation: float = 0.15
    translation_fraction: float = 0.05
    shear: float = 0.1

    def __post_init__(self) -> None:
        _check_at_least(0.0, **asdict(self))

    def __call__(self, image: Tensor, before: Tensor, generator: torch.Generator) -> Tensor:
        """Return the field as `Deformation` says."""
        shape = (int(image.shape[-2]), int(image.shape[-1]))
        parameters = draw_affine_simple(1, shape, **asdict(self), generator=generator)
        return compose(before, affine_simple(parameters, shape))


@dataclass(frozen=True, kw_only=True)
class SmoothVelocity:
    """The field of a random stationary velocity: without folds, and the identity at the border.

    Args:
        spacing: The distance of the velocity's knots as a fraction of the width; smaller is rougher.
        largest_fraction: The largest speed, a fraction of the width in unit time, is uniform in [0, this]. The largest
            displacement comes to a little less.
    """

    spacing: float = 0.15
    largest_fraction: float = 0.08

    def __post_init__(self) -> None:
        _check_at_least(0.01, spacing=self.spacing)  # less than a few pixels would be no smooth field
        _check_at_least(0.0, largest_fraction=self.largest_fraction)

    def __call__(self, image: Tensor, before: Tensor, generator: torch.Generator) -> Tensor:
        """Return the field as `Deformation` says."""
        shape = (int(image.shape[-2]), int(image.shape[-1]))
        velocity = draw_velocity(1, shape, spacing=self.spacing, generator=generator)
        speed_px = self.largest_fraction * shape[1] * torch.rand((), generator=generator)
        return compose(before, integrate(velocity * (speed_px / velocity.norm(dim=1).amax())))


class Mix:
    """For each draw one of several deformations.

    Args:
        parts: The deformations by name.
        weights: How often each is chosen, by the same names; what they sum to does not matter.
    """

    def __init__(self, *, parts: Mapping[str, Deformation], weights: Mapping[str, float]) -> None:
        if set(parts) != set(weights):
            raise InputError(
                f"deformation.weights: expected the names of deformation.parts ({', '.join(parts)}), "
                f"got {', '.join(weights)}"
            )
        named = {f"deformation.weights.{name}": weights[name] for name in parts}
        check_finite_numbers(named, dict.fromkeys(named, 0.0))
        values = [float(weight) for weight in named.values()]
        if not sum(values):
            raise InputError(f"deformation.weights: expected one above 0, got {values}")
        self._parts = list(parts.values())
        self._weights = torch.tensor(values)

    def __call__(self, image: Tensor, before: Tensor, generator: torch.Generator) -> Tensor:
        """Return the field as `Deformation` says."""
        chosen = int(torch.multinomial(self._weights, 1, generator=generator))
        return self._parts[chosen](image, before, generator)


def _check_at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        check_finite_numbers({f"deformation.{name}": value}, {f"deformation.{name}": least})
