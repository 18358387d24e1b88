"""Step 1: find tissue, which differs from the ground, without lines and haze."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from atlalign.io.ground import Ground, find_ground
from atlalign.io.images import LUMA
from atlalign.io.pixels import Background, Floats, Mask

# Fractions of differences from the ground.
_NOISE = 5.0  # standard deviations
_OF_RANGE, _OF_TYPICAL = 0.03, 0.15
_OF_OWN = (0.3, 0.35)  # one for each repetition of the search for pieces
_SOLID = 0.8  # of the tissue is wider than two lines; otherwise only cells or layers are visible
_SAME_GROUND = (
    0.1  # of the range: the most frequent brightness differs by less from the ground along the border
)
_FIT_WIDTHS = (0.08, 0.04, 0.02, 0.02, 0.02)  # of the range, from step to step
_FIT_STEP = 4  # one of this many pixels is used


def tissue_strength(image: NDArray[np.float32], background: Background, *, is_color: bool) -> Floats:
    """Return each pixel's difference (h, w) from the ground, where 1 is the least that counts as tissue."""
    if is_color:
        ground = find_ground(torch.from_numpy(image @ LUMA), background)
        # At least one channel is dark wherever there is stain, or bright wherever there is dye.
        image = image.min(axis=2, keepdims=True) if ground.is_bright else image.max(axis=2, keepdims=True)
        background = "bright" if ground.is_bright else "dark"
    of_channels = [_channel_strength(channel, background) for channel in np.moveaxis(image, 2, 0)]
    strength: Floats = np.max(of_channels, axis=0)
    return strength


def _channel_strength(channel: NDArray[np.float32], background: Background) -> Floats:
    tensor = torch.from_numpy(channel)
    ground = find_ground(tensor, background)
    shape = (channel.shape[0], channel.shape[1])
    surface = _surface(channel, ground)
    difference = 1 - channel / surface if ground.is_bright else channel - surface
    smooth = ndimage.gaussian_filter(difference, 0.7)
    smooth[ground.in_full(ground.void, shape).numpy()] = 0
    seen = smooth[ground.in_full(ground.seen, shape).numpy()]
    noise = 1.4826 * float(np.median(np.abs(seen - np.median(seen)))) if seen.size else 0.0
    least = max(_NOISE * noise, _OF_RANGE * float(np.percentile(smooth, 99.5)), 1e-9)
    tissue = smooth[smooth > least]
    if tissue.size:
        least = max(least, _OF_TYPICAL * float(np.median(tissue)))
    strength: Floats = smooth / least
    return strength


def _surface(channel: NDArray[np.float32], ground: Ground) -> Floats:
    """Return the brightness (h, w) of the slide at each pixel.

    A label may cover much of the image's border, where `find_ground` looks for the ground. The most frequent brightness
    is therefore taken as that of the slide, and the surface is fitted again to the pixels near it.
    """
    known = ground.surface((channel.shape[0], channel.shape[1])).double().numpy()
    low, high = np.percentile(channel, [0.5, 99.5])
    scale = float(high - low) or 1.0
    counts, edges = np.histogram(
        channel[~ground.in_full(ground.void, channel.shape[:2]).numpy()], 64, (low, low + scale)
    )
    mode = float(edges[counts.argmax()] + (edges[1] - edges[0]) / 2)
    if abs(mode - ground.level) > _SAME_GROUND * scale:
        return known
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in channel.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    few = (slice(None, None, _FIT_STEP),) * 2
    coefficients = np.array([mode, 0, 0, 0, 0, 0])
    for width in _FIT_WIDTHS:
        off = (channel[few] - terms[few] @ coefficients) / (width * scale)
        weights = 1 / (1 + off**2)
        found = np.linalg.lstsq(
            (terms[few] * weights[..., None]).reshape(-1, 6), (channel[few] * weights).ravel()
        )
        coefficients = found[0]
    fitted: Floats = terms @ coefficients
    return fitted


def seems_solid(tissue: Mask, radius: int) -> bool:
    """Return whether most of the tissue is wider than two of the lines that step 1 removes."""
    return bool((_opened(tissue, 2 * radius) > 0).sum() > _SOLID * tissue.sum())


def refined(strength: Floats, tissue: Mask, radius: int) -> NDArray[np.int32]:
    """Return pieces (h, w) of tissue without lines, and without areas that are much fainter than most of the piece."""
    for share in _OF_OWN:
        labels = _opened(tissue, radius)
        inside = labels > 0
        if not inside.any():
            return labels
        of_pieces = ndimage.median(strength[inside], labels[inside], np.arange(1, labels.max() + 1))
        typical = np.array([np.inf, *of_pieces])
        tissue = (labels > 0) & (strength > share * typical[labels])
    return _opened(tissue, radius)


def _opened(mask: Mask, radius: int) -> NDArray[np.int32]:
    disc = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), radius)
    labels, _ = ndimage.label(ndimage.binary_opening(mask, disc))
    return np.asarray(labels, np.int32)
