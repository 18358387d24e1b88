"""Random affine maps."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from atlalign.errors import InputError
from atlalign.geometry.dvf import affine_to_dvf, grid_shape
from atlalign.geometry.maps import AffineSimple, affine_simple_matrix, invert_affine
from atlalign.geometry.random_fields.kinds import FieldPair, InvertibleField
from atlalign.geometry.random_fields.sizes import Size, check_at_least, check_sizes, draw_sizes, share_reached


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
            check_at_least(0.0, **{name: getattr(self, name)})
        check_sizes(self.mean_fraction, self.largest_fraction)

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> AffineDraw:
        """Return random maps."""
        shape = grid_shape(images)
        sizes = draw_sizes(self.mean_fraction, self.largest_fraction, len(images), generator)
        simple = {name: getattr(self, name) for name in _SIMPLE}
        matrix = affine_simple_matrix(
            draw_affine_simple(len(images), shape, **simple, generator=generator), shape
        )
        unsized = self.mean_fraction is None and self.largest_fraction is None
        return AffineDraw(matrix if unsized else scaled_affine(matrix, shape, *sizes))

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


def scaled_affine(
    matrix: Tensor, shape: tuple[int, int], mean_fraction: Tensor, largest_fraction: Tensor
) -> Tensor:
    """Return I + s (matrix − I) with the smallest s whose field of `shape` reaches both sizes (B, 1, 1, 1)."""
    reached = share_reached(affine_to_dvf(matrix, shape), shape[1], mean_fraction, largest_fraction)[:, 0]
    identity = torch.eye(2, 3, dtype=matrix.dtype, device=matrix.device)
    scaled = identity + (matrix - identity) / reached
    if not bool((torch.linalg.det(scaled[:, :, :2]) > 0).all()):
        raise InputError(
            "affine map: expected a mean and a largest displacement that some map reaches without folding,"
            f" got {mean_fraction.max():g} and {largest_fraction.max():g} of the width"
        )
    return scaled
