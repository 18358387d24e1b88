"""Pictures made of pixels, without matplotlib."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_SECTION_OVERLAY_PX = 640  # its height
_OUTLINE = np.array([255, 200, 0], np.uint8)
_ERRORS_UM = (0.0, 50.0, 100.0, 200.0)
_ERROR_COLORS = ((40, 60, 160), (60, 180, 90), (250, 220, 60), (220, 40, 30))


def overlay(reference: Tensor, other: Tensor) -> NDArray[np.float32]:
    """Return an RGB image (H, W, 3) of two images (H, W) in [0, 1]: the reference in magenta, the other in green."""
    reference, other = (image.detach().cpu().float().clamp(0, 1) for image in (reference, other))
    return torch.stack([reference, other, reference], dim=-1).numpy()


def section_overlay(
    pixels: NDArray[Any],
    reference: Tensor,
    placed: Tensor,
    registered: Tensor,
    labels_of: Callable[[tuple[int, int]], NDArray[Any] | None],
) -> NDArray[np.uint8]:
    """Return a picture (h, w, 3) by which a user can check a registered section.

    On the left is the section with the outlines of its regions. On the right are two overlays of the reference and the
    section: as placed at the top, as registered at the bottom.

    Args:
        pixels: The section's image, grey or in colour.
        reference: (H, W) in [0, 1].
        placed: The section (H, W) before the network.
        registered: The section (H, W) after it.
        labels_of: Returns the section's labels for a thumbnail (h, w) of its image, or None.
    """
    pairs = [overlay(reference, image) for image in (placed, registered)]
    right = np.concatenate([_scaled(_in_8_bits(pair), _SECTION_OVERLAY_PX // 2) for pair in pairs])
    left = thumbnail(pixels, len(right))
    labels = labels_of((left.shape[0], left.shape[1]))
    if labels is not None:
        left[_outlines(labels)] = _OUTLINE
    return np.ascontiguousarray(np.concatenate([left, right], axis=1))


def error_map(error_um: NDArray[np.float32], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return errors (H, W) in µm as colours over an image (H, W): blue, green at 50, yellow at 100, red from 200 on.

    Where the error is NaN, the image is shown as it is.
    """
    known = np.isfinite(error_um)
    colors = [
        np.interp(np.nan_to_num(error_um), _ERRORS_UM, channel) for channel in np.transpose(_ERROR_COLORS)
    ]
    brightness = (1 + image[..., None] / 255) / 2
    return (
        np.where(known[..., None], np.stack(colors, axis=-1) * brightness, image[..., None])
        .round()
        .astype(np.uint8)
    )


def png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture (h, w, 3) as a PNG file."""
    from imagecodecs import PNG, png_encode

    # Files are as small as with the default settings, and are written in half the time.
    return bytes(png_encode(picture, filter=PNG.FILTER.PAETH, strategy=PNG.STRATEGY.RLE))


def thumbnail(pixels: NDArray[Any], height: int) -> NDArray[np.uint8]:
    """Return an image in colour, (height, w, 3), scaled to the brightness of its brightest pixels."""
    # Averaging a whole large image would need several times its memory.
    step = max(1, pixels.shape[0] // (2 * height))
    small = brightened(pixels[::step, ::step])
    colored = small if small.ndim == 3 else np.stack([small] * 3, axis=-1)
    return _scaled(colored, height)


def brightened(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image in 8 bits; a dark image, or one with more bits, is scaled to its brightest pixels."""
    white = float(np.percentile(pixels, 99.9))
    if pixels.dtype == np.uint8 and white >= 128:
        return pixels
    return _in_8_bits(pixels / np.float32(max(white, 1e-6)))


def _in_8_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image in [0, 1] in 8 bits; values outside are clipped."""
    return np.asarray(image.clip(0, 1) * 255).round().astype(np.uint8)


def _scaled(image: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """Return an image (h, w, 3) with another height, corners aligned."""
    width = round(image.shape[1] * height / image.shape[0])
    planar = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    # `resize_images` is not used: its wide Gaussian takes ten times as long and is unnecessary for viewing.
    scaled = F.interpolate(planar, (height, width), mode="bilinear", align_corners=True, antialias=True)
    return np.asarray(scaled[0].permute(1, 2, 0))


def _outlines(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the mask (h, w) of pixels whose label differs from the one to the right or below."""
    lines = np.zeros(labels.shape, np.bool_)
    lines[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines[:-1] |= labels[:-1] != labels[1:]
    return lines
