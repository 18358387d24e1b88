"""Damaged sections: holes, tears, lost borders and lost halves, where only the ground is seen.

Draws come from a generator on the CPU and are moved then, as contrasts are: the same seed damages alike on every
device. What is missing is decided before the section gets its contrast, so that holes show the ground with its texture,
light and noise.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.geometry import identity_grid
from atlalign.synthesis.contrast import Range, check_probabilities, check_range

_KNOTS = (6, 8)  # Of the smooth noise along y and x: holes are about a tenth of the image wide.
_TORN_BELOW = -0.5  # Tears run through the part of the image where smooth noise is below this: about a third.
_RAGGED = 0.01  # The standard deviation of a cut's edge, as a fraction of the width.


class Damage(NamedTuple):
    """What is missing in the sections of a batch; the first axis is the batch's. 0 stands for no damage."""

    noise: (
        Tensor  # (B, 4, 6, 8), standard normal on a coarse grid: holes, tears, where it is torn, ragged edges
    )
    hole_share: Tensor  # (B, 1, 1), of the image's area
    tear_px: Tensor  # (B, 1, 1), the tears' width
    cut_share: Tensor  # (B, 1, 1), of the image's extent across the cut
    cut_angle: Tensor  # (B, 1, 1), in radians: the direction of what is cut off, from x to y
    half: Tensor  # (B, 1, 1): the left half is missing (−1) or the right one (1)


def draw_damage(
    sections: Tensor,
    *,
    p_holes: float = 0.0,
    hole_share: Range = (0.01, 0.1),
    p_tears: float = 0.0,
    tear_px: Range = (1.0, 4.0),
    p_cut: float = 0.0,
    cut_share: Range = (0.05, 0.3),
    p_half: float = 0.0,
    generator: torch.Generator | None = None,
) -> Damage:
    """Return the random damage of a batch; each kind comes with its probability, whether or not the others do.

    Args:
        sections: (B, 1, H, W); their number and device count.
        p_holes: The probability of holes: blobs, some on the tissue's border.
        hole_share: The share of the image that they take, about; a range (lowest, highest), drawn from uniformly.
        p_tears: The probability of tears: thin curves.
        tear_px: Their width.
        p_cut: The probability that the section ends at a ragged line.
        cut_share: The share of the image, across the line, that is lost.
        p_half: The probability that one half of the section is missing.
        generator: A generator on the CPU; the global one otherwise.

    Raises:
        InputError: If a range is not ascending, or outside of what makes sense, or a probability is none.
    """
    for name, values, highest in (
        ("hole_share", hole_share, 0.5), ("tear_px", tear_px, 20), ("cut_share", cut_share, 0.5)
    ):  # fmt: skip
        check_range(values, name=f"damage.{name}", lowest=0, highest=highest)
    check_probabilities("damage", p_holes=p_holes, p_tears=p_tears, p_cut=p_cut, p_half=p_half)
    n_sections = len(sections)
    noise = torch.randn(n_sections, 4, *_KNOTS, generator=generator)
    chance, size = torch.rand(2, 4, n_sections, 1, 1, generator=generator)

    def with_probability(p: float, values: Range, kind: int) -> Tensor:
        wanted = values[0] + (values[1] - values[0]) * size[kind]
        return torch.where(chance[kind] < p, wanted, 0.0)

    drawn = Damage(
        noise=noise,
        hole_share=with_probability(p_holes, hole_share, 0),
        tear_px=with_probability(p_tears, tear_px, 1),
        cut_share=with_probability(p_cut, cut_share, 2),
        cut_angle=2 * torch.pi * torch.rand(n_sections, 1, 1, generator=generator),
        half=(chance[3] < p_half) * (size[3] - 0.5).sign(),
    )
    return Damage(*(part.to(sections.device) for part in drawn))


def missing(damage: Damage, shape: tuple[int, int]) -> Tensor:
    """Return where (B, 1, H, W) nothing is left of sections of `shape` (H, W)."""
    holes, tears, torn, ragged = F.interpolate(
        damage.noise, size=shape, mode="bicubic", align_corners=True
    ).unbind(1)
    x, y = _centred(shape, holes)
    edge_px = _RAGGED * shape[1] * ragged
    lost = _is_hole(holes, damage.hole_share) | _is_torn(tears, torn, damage.tear_px)
    lost |= (damage.cut_share > 0) & _is_cut_off(x, y, damage, edge_px)
    lost |= (damage.half != 0) & (damage.half * x > edge_px)
    return lost[:, None]


def missing_half(damage: Damage, shape: tuple[int, int]) -> Tensor:
    """Return where (B, 1, H, W) the half lies that is missing, ended by the midline."""
    x, _ = _centred(shape, damage.half)
    return (damage.half * x > 0).expand(-1, *shape)[:, None]


def _centred(shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return x and y (1, H, W) in pixels from the centre."""
    x, y = identity_grid(shape, like.dtype, like.device).unbind(1)
    return x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2


def _is_hole(noise: Tensor, share: Tensor) -> Tensor:
    mean, deviation = noise.mean((1, 2), keepdim=True), noise.std((1, 2), keepdim=True)
    level: Tensor = -torch.special.ndtri(share)
    return (noise - mean) / deviation > level


def _is_torn(noise: Tensor, torn: Tensor, width_px: Tensor) -> Tensor:
    """Return where it is nearer than half a width to a zero of the noise, at which it has a slope: |f| < w/2 · |∇f|."""
    along_y, along_x = torch.gradient(noise, dim=(1, 2))
    slope = (along_x.square() + along_y.square()).sqrt()
    return (noise.abs() < width_px / 2 * slope) & (torn < _TORN_BELOW)


def _is_cut_off(x: Tensor, y: Tensor, damage: Damage, edge_px: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    cos, sin = damage.cut_angle.cos(), damage.cut_angle.sin()
    extent_px = (width - 1) * cos.abs() + (height - 1) * sin.abs()
    return cos * x + sin * y > (0.5 - damage.cut_share) * extent_px + edge_px
