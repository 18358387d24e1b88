"""Square views of a section for the network, centred on its tissue and scaled by the tissue's extent."""

import math
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from atlalign.atlas.planes import Matrix, Point, homogeneous
from atlalign.geometry import sample

HALF_VIEW = 1.9
"""Half the side of a view, in root mean square distances of the tissue from its centre."""

_BRIGHT_SHARE = 0.995
_MEAN_TISSUE = 0.4
_EMPTY = 0.02  # darker pixels are background
_GAMMA = (0.25, 1.5)


class Grey(Protocol):
    """An image in grey, bright tissue on a background of 0."""

    @property
    def grey(self) -> Tensor:
        """The image (h', w') in [0, 1]."""

    @property
    def to_grey(self) -> Matrix:
        """The map (2, 3) from pixels of the file's image to pixels of `grey`."""


def even_tone(views: Tensor) -> Tensor:
    """Return views (B, 1, H, W) of bright tissue on a background of 0, stretched to [0, 1] with a tissue mean near 0.4.

    After this, faint cells on black look much like a dark stain.
    """
    flat = views.flatten(1)
    white = torch.quantile(flat[:, ::3], _BRIGHT_SHARE, dim=1, keepdim=True).clamp(min=1e-3)
    flat = (flat / white).clamp(0, 1)
    tissue = flat > _EMPTY
    mean = (flat * tissue).sum(1, keepdim=True) / tissue.sum(1, keepdim=True).clamp(min=1)
    gamma = (math.log(_MEAN_TISSUE) / mean.clamp(1e-3, 0.99).log()).clamp(*_GAMMA)
    return (flat**gamma).view(views.shape)


def view_matrix(centre: Point, rms: float, degrees: float) -> Matrix:
    """Return the map (2, 3) from a view's (x, y) in [-1, 1]² to pixels of the image.

    The view is turned by `degrees`: its rows run that much clockwise from those of the image.
    """
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.column_stack([turn * HALF_VIEW * rms, centre])


def cut_views(section: Grey, matrices: list[Matrix], view_px: int) -> Tensor:
    """Return views (N, 1, view_px, view_px) of a section in an even tone; beyond its image there is background.

    Args:
        section: The section.
        matrices: The maps from each view's (x, y) in [-1, 1]² to pixels of the image.
        view_px: Height and width of the views.
    """
    ticks = torch.linspace(-1, 1, view_px)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    unit = torch.stack([x, y], -1)
    to_grey = [section.to_grey @ homogeneous(matrix) for matrix in matrices]
    step = np.mean([abs(np.linalg.det(matrix[:, :2])) ** 0.5 for matrix in to_grey]) * 2 / (view_px - 1)
    grey = antialiased(section.grey, float(step))
    views = []
    for matrix in to_grey:
        affine = torch.from_numpy(matrix).float()
        views.append(sample(grey[None, None], (unit @ affine[:, :2].T + affine[:, 2])[None]))
    return even_tone(torch.cat(views))


def antialiased(image: Tensor, step: float) -> Tensor:
    """Return an image (h, w) without the detail that is lost when only each `step`-th pixel is sampled."""
    if step <= 1:
        return image
    return torch.from_numpy(ndimage.gaussian_filter(image.numpy(), (step - 1) / 2, mode="nearest"))
