"""Damaged sections: holes, tears, lost borders and lost halves, which show only the background.

A generator on the CPU draws the parameters, which are then moved to the device, so the same seed gives the same damage
on every device. Damage comes before contrast, so that holes show the background with its texture, light and noise.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.errors import check_probabilities, check_range
from atlalign.geometry import identity_grid
from atlalign.synthesis.contrast import Range

_KNOTS = (6, 8)  # Knots of the smooth noise along y and x: holes are about a tenth of the image wide.
_TORN_BELOW = -0.5  # Tears run where smooth noise is below this, in about a third of the image.
_RAGGED = 0.01  # The standard deviation of a cut's edge, as a fraction of the width.


class Damage(NamedTuple):
    """The damage to a batch of sections; the first axis is the batch. 0 means no damage."""

    noise: (
        Tensor  # (B, 4, 6, 8), standard normal on a coarse grid: holes, tears, where it is torn, ragged edges
    )
    hole_share: Tensor  # (B, 1, 1), of the image's area
    tear_px: Tensor  # (B, 1, 1), the tears' width
    cut_share: Tensor  # (B, 1, 1), of the image's extent across the cut
    cut_angle: Tensor  # (B, 1, 1), in radians: the direction of the lost part, from x to y
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
    """Return random damage for a batch; each kind has its own probability, independent of the others.

    Args:
        sections: (B, 1, H, W); only their number and device are used.
        p_holes: Probability of holes: blobs, some of them on the tissue's border.
        hole_share: Approximate share of the image that holes take: a range (lowest, highest) to draw from uniformly.
        p_tears: Probability of tears: thin curves.
        tear_px: Range of the tears' width in pixels.
        p_cut: Probability that the section ends at a ragged line.
        cut_share: Range of the share of the image, across the line, that is lost.
        p_half: Probability that one half of the section is missing.
        generator: A generator on the CPU; None for the global one.

    Raises:
        InputError: If a range or a probability is invalid.
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
    """Return the mask (B, 1, H, W) of the lost parts of sections of `shape` (H, W)."""
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
    """Return the mask (B, 1, H, W) of the missing half, up to the midline."""
    x, _ = _centred(shape, damage.half)
    return (damage.half * x > 0).expand(-1, *shape)[:, None]


def _centred(shape: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the offsets x and y (1, H, W) from the centre, in pixels."""
    x, y = identity_grid(shape, like.dtype, like.device).unbind(1)
    return x - (shape[1] - 1) / 2, y - (shape[0] - 1) / 2


def _is_hole(noise: Tensor, share: Tensor) -> Tensor:
    mean, deviation = noise.mean((1, 2), keepdim=True), noise.std((1, 2), keepdim=True)
    level: Tensor = -torch.special.ndtri(share)
    return (noise - mean) / deviation > level


def _is_torn(noise: Tensor, torn: Tensor, width_px: Tensor) -> Tensor:
    """Return the pixels within half a width of a zero of the noise f: |f| < w/2 · |∇f|."""
    along_y, along_x = torch.gradient(noise, dim=(1, 2))
    slope = (along_x.square() + along_y.square()).sqrt()
    return (noise.abs() < width_px / 2 * slope) & (torn < _TORN_BELOW)


def _is_cut_off(x: Tensor, y: Tensor, damage: Damage, edge_px: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    cos, sin = damage.cut_angle.cos(), damage.cut_angle.sin()
    extent_px = (width - 1) * cos.abs() + (height - 1) * sin.abs()
    return cos * x + sin * y > (0.5 - damage.cut_share) * extent_px + edge_px
