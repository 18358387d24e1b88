"""Intensities of a section: the slide is removed, so that bright tissue lies on a background of 0."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from atlalign.errors import InputError
from atlalign.io.ground import RIM_PX, WHITE_PERCENTILE, Ground, find_ground, thumbnail_factor
from atlalign.io.images import LUMA, shrink_to_grey
from atlalign.io.pixels import Background, Mask

_DARKEST_COLOR = 0.1  # of the brightest channel of a slide: a channel without light would be pure noise
_NOISE = 4.0  # standard deviations of the ground's noise: smaller differences are not tissue
_CLEAR = 0.5  # sections at two borders reached at least 0.7, those that fill the image at most 0.33


class Tissue(NamedTuple):
    """A section as bright tissue on a background of 0.

    Attributes:
        image: (h, w) in [0, 1].
        background: The original background: bright or dark.
    """

    image: Tensor
    background: Background


def tissue_of(
    pixels: NDArray[Any], *, factor: int = 1, background: Background = "auto", name: str = "section"
) -> Tissue:
    """Return the section in an image of any bit depth, exposure and colour.

    Args:
        pixels: (h, w) or (h, w, 3).
        factor: As in `shrink_to_grey`.
        background: Brightness of the slide; auto detects it.
        name: The name of the image in messages.

    Raises:
        InputError: If the image shows only background, or too little background to detect its brightness.
    """
    grey = shrink_to_grey(pixels, factor, _white_balance(pixels, background))
    if float(grey.max() - grey.min()) == 0:
        raise InputError(f"{name}: expected a section, but every pixel is {float(grey[0, 0]):g}")
    ground = find_ground(grey, background)
    tissue = _without(grey, ground)
    if not tissue.image.any():
        raise InputError(f"{name}: expected a section, found nothing but background")
    if background == "auto" and ground.clarity < _CLEAR:
        raise InputError(
            f"{name}: expected background along the image's border, found tissue along most of it: crop the image "
            "less, or set --background to bright or dark"
        )
    return tissue


def on_dark_ground(grey: Tensor, background: Background = "auto") -> Tissue:
    """Return the section in a grey image (h, w), in any units; 0 everywhere if there is none.

    The 99.9th percentile of its tissue becomes 1.
    """
    return _without(grey, find_ground(grey, background))


def _without(grey: Tensor, ground: Ground) -> Tissue:
    image = without_ground(grey, ground) * ground.has_tissue
    return Tissue(to_unit_range(image) if image.any() else image, "bright" if ground.is_bright else "dark")


def _white_balance(pixels: NDArray[Any], background: Background) -> NDArray[np.float32]:
    """Return the channel weights that make a bright slide colourless in grey; for a dark slide, those of `LUMA`."""
    if pixels.ndim == 2:
        return LUMA
    small, ground = _small_with_ground(pixels, background)
    if not ground.is_bright:
        return LUMA
    color = _color(small, ground).astype(np.float32)
    gains = float(color @ LUMA) / color.clip(max(float(color.max()) * _DARKEST_COLOR, 1e-6))
    return (LUMA * gains).astype(np.float32)


def slide_color(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the brightness or colour of the slide of an image (h, w) or (h, w, 3): the median of its ground."""
    small, ground = _small_with_ground(pixels, "auto")
    return _color(small, ground).astype(pixels.dtype)


def hide(pixels: NDArray[Any], mask: Mask, background: Background = "auto") -> NDArray[Any]:
    """Return an image with masked pixels replaced by the slide's colour.

    Args:
        pixels: (h, w) or (h, w, 3).
        mask: (h, w).
        background: Brightness of the slide; auto detects it.
    """
    hidden = pixels.copy()
    width = RIM_PX * thumbnail_factor(pixels.shape)
    rim = np.ones(mask.shape, np.bool_)
    rim[width:-width, width:-width] = False
    shown = rim & ~mask if (rim & ~mask).any() else ~mask
    if not shown.any():
        return np.zeros_like(pixels)
    hidden[mask] = np.median(pixels[shown], axis=0).astype(pixels.dtype)
    small, ground = _small_with_ground(hidden, background)
    hidden[mask] = _color(small, ground).astype(pixels.dtype)
    return hidden


def _small_with_ground(pixels: NDArray[Any], background: Background) -> tuple[NDArray[Any], Ground]:
    """Return an image at the size of a thumbnail, and its ground."""
    step = thumbnail_factor(pixels.shape)
    small = pixels[::step, ::step]
    return small, find_ground(shrink_to_grey(small), background)


def _color(small: NDArray[Any], ground: Ground) -> NDArray[Any]:
    rows, columns = ground.seen.shape
    return np.asarray(np.median(small[:rows, :columns][ground.seen], axis=0))


def without_ground(image: Tensor, ground: Ground) -> Tensor:
    """Return an image (h, w) as bright tissue on a background of 0, in no particular unit.

    On a bright ground, the value is the fraction of missing light; on a dark one, the added light. The ground's noise,
    whose mean would look like haze, is subtracted as well.
    """
    shape = (int(image.shape[0]), int(image.shape[1]))
    surface = ground.surface(shape)
    tissue = 1 - image / surface if ground.is_bright else image - surface
    seen = ground.in_full(ground.seen, shape)
    noise = 1.4826 * float(tissue[seen].abs().median()) if ground.clarity and seen.any() else 0.0
    nothing = (seen & (tissue < _NOISE * noise)) | ground.in_full(ground.void | ground.foreign, shape)
    return tissue.clamp_min(0).masked_fill(nothing, 0)


def to_unit_range(image: Tensor, name: str = "image") -> Tensor:
    """Return an image (h, w) in [0, 1]: the 99.9th percentile of the values above 0 becomes 1.

    Raises:
        InputError: If no intensity is above 0.
    """
    positive = image[image > 0]
    if not len(positive):
        raise InputError(f"{name}: expected finite intensities, some above 0")
    return (image / float(np.percentile(positive.numpy(), WHITE_PERCENTILE))).clamp(0, 1)
