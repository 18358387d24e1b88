"""Random smooth fields within random affine maps."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from atlalign.geometry.dvf import affine_to_dvf, compose, grid_shape, stays_inside
from atlalign.geometry.inverse import invert
from atlalign.geometry.maps import affine_simple_matrix
from atlalign.geometry.random_fields.affine import Affine, AffineDraw, draw_affine_simple, scaled_affine
from atlalign.geometry.random_fields.kinds import FieldPair
from atlalign.geometry.random_fields.smooth import Smooth, SmoothDraw


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
        return AffineSmoothDraw(scaled_affine(matrix, shape, *smooth[1:]), *smooth)

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
