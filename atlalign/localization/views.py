"""Square views of a section for the network, centred on its tissue and scaled by the tissue's extent."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from atlalign.atlas.planes import Matrix, Point, apply_affine, homogeneous, invert_affine
from atlalign.errors import InputError
from atlalign.geometry import sample
from atlalign.registration.section import Section

HALF_VIEW = 1.9
"""Half the side of a view, in root mean square distances of the tissue from its centre."""

_BRIGHT_SHARE = 0.995
_MEAN_TISSUE = 0.4
_EMPTY = 0.02  # darker pixels are background
_GAMMA = (0.25, 1.5)
_MASK_PX = 256  # the longer side of the image on which tissue is found
_BLUR_PX = 2.0  # cells join to form tissue
_LEAST_PIECE = 0.03  # of the largest piece of tissue: smaller pieces are dirt
_LEAST_PX = 30  # of tissue on this image


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


@dataclass(frozen=True, eq=False)
class SeenTissue:
    """The tissue of an image.

    Attributes:
        centre: (x, y) in pixels of the section's image.
        rms: The root mean square distance from the centre.
        area: The area in pixels of a thumbnail.
        pieces: Its pieces, largest first.
    """

    centre: Point
    rms: float
    area: int
    pieces: tuple["SeenTissue", ...] = ()


def seen_tissue(section: Section, name: str = "section") -> SeenTissue:
    """Return the tissue of a section's image.

    Raises:
        InputError: If it shows no tissue.
    """
    factor = max(1, round(max(section.grey.shape) / _MASK_PX))
    small = torch.nn.functional.avg_pool2d(section.grey[None], factor)[0].numpy()
    to_grey = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2]])
    to_pixel = invert_affine(section.to_grey) @ homogeneous(to_grey)
    pieces = _pieces(_bright(ndimage.gaussian_filter(small, _BLUR_PX)))
    if sum(map(np.count_nonzero, pieces)) < _LEAST_PX:
        raise InputError(f"{name}: expected a section, found almost no tissue")
    each = tuple(_moments(piece, to_pixel) for piece in pieces)
    return replace(_moments(np.any(pieces, axis=0), to_pixel), pieces=each)


def _moments(mask: NDArray[np.bool_], to_pixel: Matrix) -> SeenTissue:
    y, x = np.nonzero(mask)
    points = apply_affine(to_pixel, np.stack([x, y], axis=1).astype(np.float64))
    centre = points.mean(axis=0)
    return SeenTissue(centre, float(np.sqrt(np.square(points - centre).sum(axis=1).mean())), len(x))


def _bright(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the mask of bright pixels, by Otsu's threshold."""
    import SimpleITK

    otsu: Any = SimpleITK.OtsuThreshold
    found = SimpleITK.GetArrayFromImage(otsu(SimpleITK.GetImageFromArray(image), 0, 1)) > 0
    return np.asarray(found)


def _pieces(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return the pieces of a mask without dirt, largest first."""
    pieces, _ = ndimage.label(mask)
    areas = np.bincount(pieces.ravel())[1:]
    order = np.argsort(-areas)
    return [pieces == place + 1 for place in order if areas[place] >= _LEAST_PIECE * areas.max()]


def view_matrix(centre: Point, rms: float, degrees: float) -> Matrix:
    """Return the map (2, 3) from a view's (x, y) in [-1, 1]² to pixels of the image.

    The view is turned by `degrees`: its rows run that much clockwise from those of the image.
    """
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.column_stack([turn * HALF_VIEW * rms, centre])


def cut_views(section: Section, matrices: list[Matrix], view_px: int) -> Tensor:
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
