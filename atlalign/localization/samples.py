"""Simulated views of sections: oblique planes of the atlas in synthetic contrast, deformed and damaged.

A view is a square image, centred on the tissue and scaled by its extent, so that neither the pixel size nor the place
of the section in its image is needed. A section may have any angle. Views are made in batches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.errors import InputError, check_finite_numbers, check_probabilities, unknown_name
from atlalign.localization.volume import AtlasVolume
from atlalign.recognition.views import HALF_VIEW, even_tone
from atlalign.synthesis.contrast import apply_contrast, draw_contrast
from atlalign.synthesis.damage import draw_damage, missing

# The direction across a cut, down the image and along its rows, for the upright section.
_FRAMES = {"AP": (0, 1, 2), "DV": (1, 0, 2), "ML": (2, 1, 0)}
_ML = 2
_SCAN_PX = 64  # of the grid on which the tissue of a plane is found
_LEAST_PX = 60  # of tissue on this grid
_MARGIN_MM = 0.3  # nearer to the ends, planes show almost no tissue
_SMALL_TILT = 5.0


class Views(NamedTuple):
    """A batch of views with the planes that they show, in the form that `PlaneLocatorNet` uses."""

    images: Tensor  # (B, 1, view_px, view_px) in [0, 1], on a background of 0
    planes: Tensor  # (B, 3, 3) in mm
    sides: Tensor  # (B,) int64, the index in `SIDES`


@dataclass(frozen=True, kw_only=True)
class ViewSampler:
    """Draws views of an atlas with their planes.

    Args:
        volume: The atlas.
        view_px: Height and width of a view.
        cut_along: The axes across which sections are cut: AP (coronal), DV (horizontal), ML (sagittal).
        largest_tilt: Largest tilt in degrees about each of the two other axes; half of the sections stay below 5.
        p_turned: The probability of any angle in the plane; other sections are upright within 25°.
        p_half: The probability of a left or right half.
        p_expression: The probability of cells alone, bright on black.
        distortion: The standard deviation of stretch and shear.
    """

    volume: AtlasVolume
    view_px: int = 128
    cut_along: Sequence[str] = ("AP",)
    largest_tilt: float = 15.0
    p_turned: float = 0.5
    p_half: float = 0.15
    p_expression: float = 0.2
    distortion: float = 0.06

    def __post_init__(self) -> None:
        check_probabilities(
            "data", p_turned=self.p_turned, p_half=self.p_half, p_expression=self.p_expression
        )
        check_finite_numbers(
            {"data.largest_tilt": self.largest_tilt, "data.distortion": self.distortion},
            {"data.largest_tilt": 0.0, "data.distortion": 0.0},
        )
        for name in self.cut_along:
            if name not in _FRAMES:
                raise unknown_name("axis in data.cut_along:", name, list(_FRAMES))
        if not self.cut_along:
            raise InputError("data.cut_along: expected at least one axis, got none")

    def __call__(self, n_views: int, generator: torch.Generator | None = None) -> Views:
        """Return up to `n_views` views; planes without tissue are skipped."""
        random = _Random(n_views, generator)
        flat, across_ml = self._draw_planes(random)
        halved = (random.uniform() < self.p_half) & across_ml
        sides = torch.where(halved, 1 + (random.uniform() < 0.5).long(), 0)
        expression = random.uniform() < self.p_expression
        within, has_tissue = self._draw_view(flat, sides, expression, random)
        planes = flat @ within
        planes = torch.stack([planes[..., 2], planes[..., 0], planes[..., 1]], 1)
        template, labels = self._cut(planes, sides, random)
        images = self.coloured(template, labels, expression, generator)
        return Views(images[has_tissue], planes[has_tissue], sides[has_tissue])

    def coloured(
        self, template: Tensor, labels: Tensor, expression: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Return images of sections, stained or as cells alone, in the tone that all views share."""
        contrast = draw_contrast(
            labels, p_bright=0.0, n_groups=(4, 256), bias=(0.0, 0.5), generator=generator
        )
        images = apply_contrast(template, labels, contrast)
        # As in real images, the background becomes 0.
        images = (images - contrast.intensity[:, :1, None, None]).clamp(min=0)
        if expression.any():
            images[expression] = _cells(labels[expression], generator)
        return even_tone(images)

    def _draw_planes(self, random: "_Random") -> tuple[Tensor, Tensor]:
        """Return the affine maps (B, 3, 3) from (x, y, 1) in mm to the atlas, and which of them cross the midline."""
        kinds = torch.tensor([_FRAMES[name] for name in self.cut_along])
        frame = torch.eye(3)[kinds[(random.uniform() * len(kinds)).long()]]
        normal, down, right = frame.unbind(1)
        largest = torch.where(random.uniform() < 0.5, min(_SMALL_TILT, self.largest_tilt), self.largest_tilt)
        yaw, pitch = ((2 * random.uniform() - 1)[:, None] * largest[:, None].deg2rad() for _ in range(2))
        turned_normal = yaw.cos() * normal - yaw.sin() * right
        right = yaw.cos() * right + yaw.sin() * normal
        down = pitch.cos() * down + pitch.sin() * turned_normal
        extent = self.volume.voxel_mm * torch.tensor(self.volume.labels.shape)
        room = ((extent - 2 * _MARGIN_MM).clamp(min=0) * (random.uniform() - 0.5)[:, None]) * normal
        # A plane of the right half looks like its mirror image in the left half, where sagittal sections are placed.
        room[:, _ML] = -room[:, _ML].abs()
        return torch.stack([right, down, self.volume.centre_mm + room], -1), normal[:, _ML] == 0

    def _draw_view(
        self, flat: Tensor, sides: Tensor, expression: Tensor, random: "_Random"
    ) -> tuple[Tensor, Tensor]:
        """Return the affine maps (B, 3, 3) from views to planes, and a mask of those with tissue."""
        reach = float((self.volume.voxel_mm * torch.tensor(self.volume.labels.shape)).amax()) / 2
        grid = _grid(_SCAN_PX) * reach
        points = torch.einsum("bij,hwj->bhwi", flat, _homogeneous(grid))
        index, inside = self.volume.indices(points)
        tissue = (self.volume.labels.view(-1)[index] > 0) & inside & self._on_side(points, sides)
        count = tissue.sum((1, 2))
        weight = tissue / count.clamp(min=1).view(-1, 1, 1)
        centre = torch.einsum("bhw,hwk->bk", weight, grid)
        rms = (weight * (grid - centre[:, None, None]).square().sum(-1)).sum((1, 2)).sqrt()[:, None]
        turned = random.uniform() < self.p_turned
        angle = torch.where(turned, math.pi, 25 * math.pi / 180) * (2 * random.uniform() - 1)
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
        stretch = torch.eye(2) + self.distortion * random.normal(2, 2).clamp(-2, 2)
        # The moments of a section's tissue are uncertain, especially if little of it is visible.
        doubt = torch.where(expression, 2.0, 1.0)[:, None]
        size = HALF_VIEW * rms * (0.12 * doubt * random.normal(1).clamp(-2, 2)).exp()
        within = torch.zeros(len(flat), 3, 3)
        within[:, :2, :2] = stretch @ turn * size[..., None]
        within[:, :2, 2] = centre + 0.08 * doubt * rms * random.normal(2)
        within[:, 2, 2] = 1
        return within, count >= _LEAST_PX

    def _cut(self, planes: Tensor, sides: Tensor, random: "_Random") -> tuple[Tensor, Tensor]:
        """Return template and labels (B, 1, view_px, view_px) on the planes, smoothly deformed and damaged."""
        shape = (self.view_px, self.view_px)
        smooth = F.interpolate(random.normal(2, 5, 5), size=shape, mode="bicubic", align_corners=True)
        amount = 0.05 * random.uniform().view(-1, 1, 1, 1)
        seen = _grid(self.view_px) + amount * smooth.permute(0, 2, 3, 1)
        points = planes[:, None, None, 0] + torch.einsum("bhwk,bki->bhwi", seen, planes[:, 1:])
        template, labels = self.volume.at(points)
        kept = self._on_side(points, sides)
        template, labels = (template * kept)[:, None], (labels * kept)[:, None]
        damage = draw_damage(labels, p_holes=0.2, p_tears=0.15, p_cut=0.15, generator=random.generator)
        lost = missing(damage, shape)
        return template.masked_fill(lost, 0), labels.masked_fill(lost, 0)

    def _on_side(self, points: Tensor, sides: Tensor) -> Tensor:
        right = points[..., _ML] > self.volume.centre_mm[_ML]
        wanted = sides.view(-1, 1, 1)
        return (wanted == 0) | (right == (wanted == 2))


class _Random:
    """Random numbers for each view of a batch."""

    def __init__(self, n_views: int, generator: torch.Generator | None) -> None:
        self.n_views = n_views
        self.generator = generator

    def uniform(self) -> Tensor:
        return torch.rand(self.n_views, generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.n_views, *shape, generator=self.generator)


def _cells(labels: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return cells (B, 1, H, W) on black, whose density varies between regions by orders of magnitude.

    Borders of regions and of the brain may be lined with cells, like many cell layers that atlases do not contain.
    """
    n_views = len(labels)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n_views, 1, 1, 1, generator=generator)

    flat = draw_contrast(
        labels, n_groups=(3, 128), spread=(0.5, 1.0), template_share=(0.0, 0.0), p_bright=0.0, texture=(0.0, 0.1),
        bias=(0.0, 0.5), blur_px=(0.0, 0.0), noise=(0.0, 0.0), generator=generator,
    )  # fmt: skip
    level = apply_contrast(torch.zeros_like(labels, dtype=torch.float32), labels, flat)
    density = (10 ** (uniform(1.0, 3.5) * (level - 1))) * uniform(0.1, 1.0) * (labels > 0)
    lined = uniform(0, 1) < 0.4
    density = torch.where(lined & _borders(labels, 0), density.clamp(min=0) + uniform(0, 0.5), density)
    shell = (uniform(0, 1) < 0.4) & _borders((labels > 0).int(), 1)
    density = torch.where(shell, density + uniform(0, 0.5), density)
    shape = labels.shape
    cells = (torch.rand(shape, generator=generator) < density) * (
        0.3 + 0.7 * torch.rand(shape, generator=generator)
    )
    near = F.avg_pool2d(cells, 3, 1, 1) * 4
    cells = torch.lerp(cells, near, uniform(0.2, 1.0))
    faint = torch.where(uniform(0, 1) < 0.4, uniform(0.0, 0.1), 0.0) * (labels > 0)
    return cells + faint


def _borders(labels: Tensor, widen: int) -> Tensor:
    """Return the mask of pixels whose neighbour on the right or below has another label."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    found[..., :-1] |= labels[..., :-1] != labels[..., 1:]
    found[..., :-1, :] |= labels[..., :-1, :] != labels[..., 1:, :]
    if widen:
        found = F.max_pool2d(found.float(), 2 * widen + 1, 1, widen) > 0
    return found & (labels > 0)


def _grid(side_px: int) -> Tensor:
    """Return the points (side_px, side_px, 2) of a view as (x, y) in [-1, 1]²."""
    ticks = torch.linspace(-1, 1, side_px)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x, y], -1)


def _homogeneous(points: Tensor) -> Tensor:
    return torch.cat([points, torch.ones_like(points[..., :1])], -1)
