"""The image of a section in grey, with bright tissue on a dark background, ready for placement."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atlalign.atlas.planes import Matrix
from atlalign.io.images import ImageFile, shrink_to_grey
from atlalign.io.intensity import hide, tissue_of
from atlalign.io.pixels import Background, PixelSize
from atlalign.io.scenes import Scene
from atlalign.io.views import Overview, overview
from atlalign.registration.ignored import NOTHING, Ignored

# The section is shrunk to at least this many times the network's resolution before it is sampled.
_OVERSAMPLING = 2
# Standard deviations of Gaussians in pixels, and the share of a Gaussian that must lie on visible pixels.
_SIGMAS, _ENOUGH = (2, 4, 8, 16, 32, 64, 128), 0.15


class Section(NamedTuple):
    """A section's image, ready for placement.

    Attributes:
        grey: (h', w') in [0, 1], bright tissue on a background of 0.
        scale: The number of image pixels that one pixel of `grey` covers, along x and y: pixel k lies at `scale·(k + ½)
            − ½`.
        shape: The image's (h, w).
        pixel_um: The pixel size of the image, if known.
        background: The brightness of the slide in the image.
        ignored: (h', w'), 1 where tissue is ignored and 0 elsewhere; None if no tissue is ignored.
    """

    grey: Tensor
    scale: tuple[float, float]
    shape: tuple[int, int]
    pixel_um: PixelSize | None
    background: Background
    ignored: Tensor | None = None

    @property
    def to_grey(self) -> Matrix:
        """The map (2, 3) from pixels of the image to pixels of `grey`."""
        x, y = self.scale
        return np.array([[1 / x, 0, (1 / x - 1) / 2], [0, 1 / y, (1 / y - 1) / 2]])


def read_section(
    image: Scene | ImageFile,
    image_shape: tuple[int, int],
    *,
    background: Background = "auto",
    name: str = "section",
    ignored: Ignored = NOTHING,
) -> Section:
    """Return an image in grey, with bright tissue on a background of 0.

    Args:
        image: In grey or colour; from a pyramid, the smallest sufficient level is read.
        image_shape: The network's (H, W), which limits the resolution that is kept.
        background: Brightness of the slide; auto detects it.
        name: The name of the image in error messages.
        ignored: Tissue to replace by its surroundings.

    Raises:
        InputError: If the image shows nothing.
    """
    scene = image.scene if isinstance(image, ImageFile) else image
    view, factor = _view(scene, image_shape)
    if not ignored:
        grey, found = tissue_of(view.pixels, factor=factor, background=background, name=name)
        return _section(grey, view, factor, scene, found)
    mask = ignored.on((view.pixels.shape[0], view.pixels.shape[1]), scene.shape)
    visible = hide(view.pixels, mask, background)
    grey, found = tissue_of(visible, factor=factor, background=background, name=name)
    hidden = (shrink_to_grey(mask.astype(np.uint8), factor) > 0).float()
    return _section(_from_around(grey, hidden), view, factor, scene, found)._replace(ignored=hidden)


def _from_around(grey: Tensor, hidden: Tensor) -> Tensor:
    """Return an image (h, w) with hidden parts filled from their surroundings; a hole would pull in its rim.

    Each hidden pixel takes the mean of the visible ones under the narrowest Gaussian that reaches enough of them.
    """
    from scipy.ndimage import gaussian_filter

    visible = 1 - hidden.numpy()
    filled = grey.numpy() * visible
    missing = visible == 0
    for sigma in _SIGMAS:
        weight = gaussian_filter(visible, sigma)
        near = missing & (weight > _ENOUGH)
        filled[near] = (gaussian_filter(grey.numpy() * visible, sigma)[near] / weight[near]).astype(
            np.float32
        )
        missing &= ~near
    return torch.from_numpy(filled)


def unread_section(image: Scene, image_shape: tuple[int, int]) -> Section:
    """Return an image in grey, scaled from its darkest to its brightest pixel, without looking for tissue."""
    view, factor = _view(image, image_shape)
    grey = shrink_to_grey(view.pixels, factor)
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-6)
    return _section(grey, view, factor, image, "auto")


def _view(scene: Scene, image_shape: tuple[int, int]) -> tuple[Overview, int]:
    """Return the image at a sufficient level for the network's (H, W), and the factor by which to shrink that level."""
    view = overview(scene, (_OVERSAMPLING * image_shape[0], _OVERSAMPLING * image_shape[1]))
    height, width = view.pixels.shape[:2]
    return view, max(1, min(height // image_shape[0], width // image_shape[1]) // _OVERSAMPLING)


def _section(grey: Tensor, view: Overview, factor: int, scene: Scene, background: Background) -> Section:
    scale = (view.scale[0] * factor, view.scale[1] * factor)
    return Section(grey, scale, scene.shape, scene.pixel_um, background)
