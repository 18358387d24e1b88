"""What happens to an image of a section between the microscope and the file: none of it moves the section."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]
Situation = Callable[[Image], Image]


def _places(shape: tuple[int, ...]) -> list[Image]:
    return np.meshgrid(*(np.linspace(-1, 1, size) for size in shape[:2]), indexing="ij")


def _per_channel(factor: Image, image: Image) -> Image:
    return factor[..., None] if image.ndim == 3 else factor


def vignetted(image: Image, amount: float = 0.3) -> Image:
    """Darken an image by `amount` in the corner that is farthest from the light's centre."""
    y, x = _places(image.shape)
    squared = (x - 0.1) ** 2 + (y + 0.15) ** 2
    return image * _per_channel(1 - amount * squared / squared.max(), image)


def unevenly_lit(image: Image, least: float = 0.75) -> Image:
    """Darken an image from its right to its left side."""
    _, x = _places(image.shape)
    return image * _per_channel(least + (1 - least) * (x + 1) / 2, image)


def vignetted_steeply(image: Image, amount: float = 0.4) -> Image:
    """Darken an image by `amount` in its corners, with the fourth power of the distance from its middle."""
    y, x = _places(image.shape)
    return image * _per_channel(1 - amount * ((x**2 + y**2) / 2) ** 2, image)


def dusty(image: Image, value: float = 1.0, count: int = 12) -> Image:
    """Return an image with round spots of one value, wherever they fall."""
    random, (height, width) = np.random.default_rng(1), image.shape[:2]
    y, x = np.ogrid[:height, :width]
    result = image.copy()
    for at_y, at_x in random.uniform(0, (height, width), (count, 2)):
        result[(y - at_y) ** 2 + (x - at_x) ** 2 < (0.008 * width) ** 2] = value
    return result


def labelled(image: Image, value: float = 1.0) -> Image:
    """Return an image with a paper label near a corner."""
    height, width = image.shape[:2]
    result = image.copy()
    result[round(0.03 * height) : round(0.12 * height), round(0.02 * width) : round(0.15 * width)] = value
    return result


def with_bubbles(image: Image, value: float = 0.15) -> Image:
    """Return an image with the thin dark outlines of air bubbles."""
    height, width = image.shape[:2]
    y, x = np.ogrid[:height, :width]
    result = image.copy()
    for at_y, at_x, radius in ((0.12, 0.08, 0.04), (0.88, 0.93, 0.04), (0.92, 0.15, 0.02)):
        distance = np.hypot(y - at_y * height, x - at_x * width)
        result[np.abs(distance - radius * width) < 0.004 * width] = value
    return result


def framed(image: Image, share: float = 0.03, value: float = 0.0) -> Image:
    """Return an image whose outermost pixels show a frame, `share` of the width wide."""
    width = max(1, round(share * image.shape[1]))
    result = np.full_like(image, value)
    inside = (slice(width, -width), slice(width, -width))
    result[inside] = image[inside]
    return result


def with_corners(image: Image, degrees: float = 8.0, value: float = 0.0) -> Image:
    """Return an image without what lies outside of a frame of its own size that is turned by some degrees."""
    height, width = image.shape[:2]
    y, x = _places(image.shape)
    y, x = y * height / 2, x * width / 2
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    outside = (np.abs(cosine * x + sine * y) > width / 2) | (np.abs(cosine * y - sine * x) > height / 2)
    return np.where(_per_channel(outside, image), value, image)


def with_missing_tiles(image: Image, value: float = 0.0) -> Image:
    """Return an image without some tiles at its corners, which the microscope has not scanned."""
    height, width = image.shape[0] // 6, image.shape[1] // 8
    result = image.copy()
    for rows, columns in (
        (slice(0, height), slice(0, 2 * width)),
        (slice(height, 2 * height), slice(0, width)),
        (slice(-height, None), slice(-2 * width, None)),
        (slice(0, height), slice(-width, None)),
    ):
        result[rows, columns] = value
    return result


def noisy(image: Image, deviation: float = 0.01) -> Image:
    """Add white noise."""
    return (image + np.random.default_rng(0).normal(0, deviation, image.shape)).clip(0, 1)


BRIGHT: dict[str, Situation] = {
    "grey 0.4": lambda image: image * 0.4,
    "grey 0.6": lambda image: image * 0.6,
    "grey 0.7": lambda image: image * 0.7,
    "tinted": lambda image: image * np.array([0.9, 0.8, 0.6]),
    "tinted blue": lambda image: image * np.array([0.6, 0.8, 0.95]),
    "vignetting": vignetted,
    "steep vignetting": vignetted_steeply,
    "uneven light": unevenly_lit,
    "bubbles": lambda image: with_bubbles(image * 0.9),
    "black frame": framed,
    "black frame, grey slide": lambda image: framed(image * 0.7),
    "white frame, grey slide": lambda image: framed(image * 0.7, value=1.0),
    "black frame, vignetting": lambda image: framed(vignetted(image)),
    "black corners, 8°": with_corners,
    "black corners, 20°": lambda image: with_corners(image, 20),
    "missing tiles": lambda image: with_missing_tiles(image * 0.8),
    "missing tiles in white": lambda image: with_missing_tiles(image * 0.7, 1.0),
    "offset": lambda image: 0.3 + 0.7 * image,
    "dim with offset": lambda image: 0.2 + 0.4 * image,
    "gamma": lambda image: image**1.3,
    "noise": lambda image: noisy(image * 0.8),
}
"""Images (h, w, 3) in [0, 1] of a dark section on a white slide, and what they become."""

DARK: dict[str, Situation] = {
    "haze 0.1": lambda image: 0.1 + 0.9 * image,
    "haze 0.3": lambda image: 0.3 + 0.7 * image,
    "haze 0.45": lambda image: 0.45 + 0.35 * image,
    "dim": lambda image: 0.3 * image,
    "uneven haze": lambda image: 0.7 * image + vignetted(np.full_like(image, 0.3)),
    "dust": lambda image: dusty(0.35 * image),
    "haze and a label": lambda image: labelled(0.1 + 0.3 * image),
    "haze, black corners": lambda image: with_corners(0.2 + 0.8 * image),
    "haze, black frame": lambda image: framed(0.3 + 0.6 * image),
    "haze, white frame": lambda image: framed(0.3 + 0.6 * image, value=1.0),
}
"""Images (h, w) in [0, 1] of a bright section on a ground of 0, and what they become."""
