"""The tissue in an image: its centre and its extent."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from atlalign.atlas.planes import Matrix, Point, apply_affine, homogeneous, invert_affine
from atlalign.errors import InputError
from atlalign.recognition.divisions import without_dirt
from atlalign.registration.section import Section

_MASK_PX = 256  # the longer side of the image on which tissue is found
_BLUR_PX = 2.0  # cells join to form tissue
_LEAST_PX = 30  # of tissue on this image


@dataclass(frozen=True, eq=False)
class SeenTissue:
    """The tissue of an image.

    Attributes:
        centre: (x, y) in pixels of the section's image.
        rms: The root mean square distance from the centre.
    """

    centre: Point
    rms: float


def seen_tissue(section: Section, name: str = "section") -> SeenTissue:
    """Return the tissue of a section's image.

    Raises:
        InputError: If it shows no tissue.
    """
    factor = max(1, round(max(section.grey.shape) / _MASK_PX))
    small = torch.nn.functional.avg_pool2d(section.grey[None], factor)[0].numpy()
    to_grey = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2]])
    to_pixel = invert_affine(section.to_grey) @ homogeneous(to_grey)
    tissue = without_dirt(_bright(ndimage.gaussian_filter(small, _BLUR_PX)))
    if np.count_nonzero(tissue) < _LEAST_PX:
        raise InputError(f"{name}: expected a section, found almost no tissue")
    return _moments(tissue, to_pixel)


def _moments(mask: NDArray[np.bool_], to_pixel: Matrix) -> SeenTissue:
    y, x = np.nonzero(mask)
    points = apply_affine(to_pixel, np.stack([x, y], axis=1).astype(np.float64))
    centre = points.mean(axis=0)
    return SeenTissue(centre, float(np.sqrt(np.square(points - centre).sum(axis=1).mean())))


def _bright(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the mask of bright pixels, by Otsu's threshold."""
    import SimpleITK

    otsu: Any = SimpleITK.OtsuThreshold
    found = SimpleITK.GetArrayFromImage(otsu(SimpleITK.GetImageFromArray(image), 0, 1)) > 0
    return np.asarray(found)
