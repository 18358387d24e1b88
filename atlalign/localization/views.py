"""The tissue in an image: its centre, its extent and its pieces."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from atlalign.atlas.planes import Matrix, Point, apply_affine, homogeneous, invert_affine
from atlalign.errors import InputError
from atlalign.geometry import sample
from atlalign.registration.section import Section

_MASK_PX = 256  # the longer side of the image on which tissue is found
_BLUR_PX = 2.0  # cells join to form tissue
_LEAST_PIECE = 0.03  # of the largest piece of tissue: smaller pieces are dirt
_LEAST_PX = 30  # of tissue on this image


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
