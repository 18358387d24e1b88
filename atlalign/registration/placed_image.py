"""The image of a section, sampled on the grid of its reference as a placement defines."""

import numpy as np
import torch
from torch import Tensor

from atlalign.atlas.planes import Matrix, homogeneous
from atlalign.geometry import identity_grid, sample
from atlalign.registration.placement import Placement
from atlalign.registration.section import Section


def antialiased(section: Section, placement: Placement) -> Section:
    """Return a section without the detail that its placement loses; the result serves all placements at this scale."""
    return section._replace(grey=_antialiased(section.grey, _pixels_per_pixel(section, placement)))


def placed_image(section: Section, placement: Placement, shape: tuple[int, int]) -> Tensor:
    """Return the section (1, 1, H, W) placed on the reference; beyond its border there is background."""
    return sampled_image(antialiased(section, placement), placement, shape=shape)


def sampled_image(section: Section, *placements: Placement, shape: tuple[int, int]) -> Tensor:
    """Return the images (N, 1, H, W) of an already antialiased section, one for each placement."""
    matrices = torch.from_numpy(np.stack([_to_grey(section, placement) for placement in placements]))
    target = identity_grid(shape, torch.float64, section.grey.device)[0].permute(1, 2, 0)
    points = torch.einsum("nij,hwj->nhwi", matrices[:, :, :2], target) + matrices[:, None, None, :, 2]
    return sample(section.grey.expand(len(placements), 1, -1, -1), points.float())


def placed_ignored(section: Section, placement: Placement, shape: tuple[int, int]) -> Tensor | None:
    """Return the ignored tissue (1, 1, H, W) on the reference, above 0 where there is any, or None."""
    if section.ignored is None:
        return None
    return sampled_image(section._replace(grey=section.ignored), placement, shape=shape)


def _to_grey(section: Section, placement: Placement) -> Matrix:
    """Return the map (2, 3) from pixels of the reference to those of `section.grey`."""
    return section.to_grey @ homogeneous(placement.matrix)


def _pixels_per_pixel(section: Section, placement: Placement) -> float:
    return float(np.sqrt(abs(np.linalg.det(_to_grey(section, placement)[:, :2]))))


def _antialiased(image: Tensor, factor: float) -> Tensor:
    """Return an image (h, w) without the detail that is lost when only each `factor`-th pixel is sampled."""
    if factor <= 1:
        return image
    from scipy.ndimage import gaussian_filter

    sigma = max((factor - 1) / 2, 0.001)
    radius = max(1, int(np.ceil(3 * sigma)))
    return torch.from_numpy(gaussian_filter(image.numpy(), sigma, mode="nearest", radius=radius))
