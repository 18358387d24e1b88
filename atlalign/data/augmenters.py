"""Intensity augmentation: random changes of brightness and texture that move no pixel.

Two pipelines have the same eleven operations: `augmenter_1` for single images on the CPU (albumentations), and
`kornia_1` for batches on the device. Images are float32 in [0, 1].
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlalign.errors import InputError

# On import, albumentations asks PyPI for its newest version; offline, this takes two seconds and logs a warning.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

Taps = NDArray[np.float32]
Image = NDArray[np.float32]
Range = tuple[float, float]

RANGES: dict[str, tuple[Range, ...]] = {
    "multiply": ((0.8, 1.2),),  # factor
    "sharpen": ((0.0, 1.0),),  # share of the sharpened image
    "edge_detect": ((0.0, 0.9),),  # share of the edges
    "gaussian_blur": ((0.0, 3.0),),  # sigma in pixels
    "average_blur": ((2.0, 7.0),),  # width of the window in pixels
    "gaussian_noise": ((0.0, 0.5), (0.0, 0.2)),  # mean, standard deviation
    "add": ((-0.3, 0.3),),  # value
    "invert": (),
    "coarse_dropout": ((0.005, 0.06),),  # cells of the grid per pixel, along each side
    "sigmoid_contrast": ((0.8, 1.2),),  # gain
    "linear_contrast": ((0.8, 1.2),),  # gain
    "emboss": ((0.0, 1.0),),  # share of the embossed image
}
"""The operations and the ranges of their uniformly drawn parameters; the two blurs count as one of the eleven."""

DROPPED = 0.25
"""The probability that `coarse_dropout` blackens a cell."""

_EFFECTS = {
    "sharpen": np.array([[-1, -1, -1], [-1, 9, -1], [-1, -1, -1]], np.float32),
    "edge_detect": np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], np.float32),
    "emboss": np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32),
}
_IDENTITY = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)


# What both pipelines share


def kept_pixels(fraction: float, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the mask (H, W) of the pixels that coarse dropout keeps: each grid cell with probability 1 − `DROPPED`.

    The grid has `fraction` · H by `fraction` · W cells, but at least 3 × 3: a single cell would black out the image.
    """
    rows, columns = (max(3, int(fraction * size)) for size in shape)
    kept = rng.random((rows, columns)) >= DROPPED
    return kept[:, np.arange(shape[1]) * columns // shape[1]][np.arange(shape[0]) * rows // shape[0]]


def blended_kernels(name: str, share: NDArray[np.float32]) -> Taps:
    """Return the kernels (B, 3, 3) that compute `(1 − share) · image + share · effect` for each `share` (B,)."""
    weight = share.reshape(-1, 1, 1)
    return (1 - weight) * _IDENTITY + weight * _EFFECTS[name]


def gaussian_taps(sigma: NDArray[np.float32], radius: int) -> Taps:
    """Return normalised Gaussian weights (B, 2 · radius + 1) for each `sigma` (B,) in pixels, cut at 3.5 sigma."""
    offset = np.arange(-radius, radius + 1, dtype=np.float32)
    sigma = np.maximum(sigma, 1e-3)[:, None]
    taps = np.exp(-0.5 * (offset / sigma) ** 2) * (np.abs(offset) <= np.floor(3.5 * sigma))
    return _normalised(taps)


def box_taps(width: NDArray[np.float32], radius: int) -> Taps:
    """Return the weights (B, 2 · radius + 1) of the mean over a centred window of each `width` (B,) in pixels.

    The outermost pixels are weighted by the part that the window covers. A window of even width made of whole pixels
    would shift the image by half a pixel.
    """
    offset = np.arange(-radius, radius + 1, dtype=np.float32)
    taps = np.clip((width[:, None] + 1) / 2 - np.abs(offset), 0, 1)
    return _normalised(taps)


def _normalised(taps: NDArray[np.floating[Any]]) -> Taps:
    total: NDArray[np.floating[Any]] = taps.sum(axis=1, keepdims=True)
    return (taps / total).astype(np.float32)


def _probability(p: float) -> float:
    if not 0 <= p <= 1:
        raise InputError(f"p: expected a probability in [0, 1], got {p}")
    return p


# One image on the CPU


def augmenter_1(p: float = 0.99) -> Any:
    """Return the `albumentations.Compose` that applies exactly one of the eleven operations of `RANGES`.

    Args:
        p: The probability that an image, float32 (H, W) in [0, 1], is changed at all.

    Raises:
        InputError: If `p` is not a probability.
    """
    import albumentations as A

    return A.Compose([A.OneOf(_image_operations(), p=_probability(p))])


def _image_operations() -> list[Any]:
    import albumentations as A

    (sigma,), (mean, deviation) = RANGES["gaussian_blur"], RANGES["gaussian_noise"]
    value = {"noise_type": "uniform", "noise_params": {"ranges": RANGES["add"]}, "spatial_mode": "constant"}
    return [
        A.MultiplicativeNoise(multiplier=RANGES["multiply"][0], p=1),
        A.Sharpen(alpha=RANGES["sharpen"][0], lightness=(1, 1), p=1),
        _image_operation(_edge_detect, partial(_draw_value, "edge_detect")),
        A.OneOf(
            [
                A.GaussianBlur(blur_limit=0, sigma_limit=sigma, p=1),
                _image_operation(_average_blur, partial(_draw_value, "average_blur")),
            ],
            p=1,
        ),
        A.GaussNoise(mean_range=mean, std_range=deviation, p=1),
        A.AdditiveNoise(**value, p=1),
        A.InvertImg(p=1),
        _image_operation(_coarse_dropout, _draw_kept),
        _image_operation(_sigmoid_contrast, partial(_draw_value, "sigmoid_contrast")),
        _image_operation(_linear_contrast, partial(_draw_value, "linear_contrast")),
        A.Emboss(alpha=RANGES["emboss"][0], strength=(1, 1), p=1),
    ]


def _image_operation(function: Callable[..., Image], draw: Callable[..., Any]) -> Any:
    """Return the albumentations transform from an image to `function(image, draw(rng, shape))`, clipped to [0, 1]."""
    import albumentations as A

    class Operation(A.ImageOnlyTransform):  # type: ignore[misc]
        def get_params_dependent_on_data(
            self, params: dict[str, Any], data: dict[str, Any]
        ) -> dict[str, Any]:
            return {"drawn": draw(self.random_generator, params["shape"])}

        def apply(self, img: Image, drawn: Any, **_: Any) -> Image:
            return np.clip(function(img, drawn), 0, 1)

        # Pickle cannot find this class by name, because it is defined in a function, to import albumentations late.
        def __reduce__(self) -> tuple[Any, ...]:
            return _image_operation, (function, draw), self.__dict__

    return Operation(p=1)


def _draw_value(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> float:
    return rng.uniform(*RANGES[name][0])


def _draw_kept(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.bool_]:
    return kept_pixels(_draw_value("coarse_dropout", rng, shape), shape, rng)


def _edge_detect(image: Image, share: float) -> Image:
    import cv2

    (kernel,) = blended_kernels("edge_detect", np.array([share], np.float32))
    return cv2.filter2D(image, -1, kernel)  # type: ignore[return-value]


def _average_blur(image: Image, width: float) -> Image:
    import cv2

    (taps,) = box_taps(np.array([width], np.float32), radius=3)
    return cv2.sepFilter2D(image, -1, taps, taps)  # type: ignore[return-value]


def _coarse_dropout(image: Image, kept: NDArray[np.bool_]) -> Image:
    return image * kept


def _sigmoid_contrast(image: Image, gain: float) -> Image:
    import cv2

    # OpenCV's exponential is five times as fast as numpy's.
    return 1 / (1 + cv2.exp(gain * (0.5 - image)))  # type: ignore[return-value]


def _linear_contrast(image: Image, gain: float) -> Image:
    return gain * image + (0.5 - 0.5 * gain)


# A batch on the device


class IntensityDraw(NamedTuple):
    """The operation on each image of a batch: three small tensors on the CPU; any device can apply it."""

    operation: Tensor
    """(B,) int64: the position in `RANGES`; −1 for no operation."""
    parameters: Tensor
    """(B, 2) float32: the operation's parameters in the order of `RANGES`; unused ones are 0."""
    seed: Tensor
    """(B,) int64: the seed of the noise and of the dropped cells."""


def draw_intensity(batch_size: int, p: float) -> IntensityDraw:
    """Return a random operation for each image of a batch, drawn by torch's global generator of the CPU.

    With probability `p`, an image gets exactly one of the eleven operations of `RANGES`.
    """
    changed = torch.rand(batch_size) < p
    # The two blurs together are as probable as any other operation.
    chances = torch.tensor([0.5 if "blur" in name else 1.0 for name in RANGES])
    operation = torch.multinomial(chances, batch_size, replacement=True)
    unused = (0.0, 0.0)
    bounds = torch.tensor([(*ranges, unused, unused)[:2] for ranges in RANGES.values()])[operation]
    parameters = torch.lerp(bounds[..., 0], bounds[..., 1], torch.rand(batch_size, 2))
    seed = torch.randint(2**63 - 1, (batch_size,))
    return IntensityDraw(torch.where(changed, operation, -1), parameters, seed)


def apply_intensity(images: Tensor, draw: IntensityDraw) -> Tensor:
    """Return `images` (B, 1, H, W) after the operations of `draw`, clipped to [0, 1].

    Each operation runs once, on all images that it was drawn for.
    """
    augmented = images.clone()
    for index, name in enumerate(RANGES):
        (chosen,) = torch.nonzero(draw.operation == index, as_tuple=True)
        if len(chosen):
            augmented[chosen] = _apply(name, images[chosen], draw.parameters[chosen], draw.seed[chosen])
    return augmented.clamp(0, 1)


def _apply(name: str, images: Tensor, parameters: Tensor, seed: Tensor) -> Tensor:
    """Return `images` (B, 1, H, W) after one operation, with the parameters (B, 2) and the seed (B,) of each."""
    first, second = parameters.to(images)[..., None, None, None].unbind(1)
    match name:
        case "multiply":
            return images * first
        case "add":
            return images + first
        case "invert":
            return 1 - images
        case "linear_contrast":
            return first * images + (0.5 - 0.5 * first)
        case "sigmoid_contrast":
            return torch.sigmoid(first * (images - 0.5))
        case "gaussian_noise":
            return images + first + second * _noise(images, seed)
        case "coarse_dropout":
            return images * _kept(images, parameters[:, 0], seed)
        case "gaussian_blur":
            return _blur(images, gaussian_taps(parameters[:, 0].numpy(), _radius(images, 10)))
        case "average_blur":
            return _blur(images, box_taps(parameters[:, 0].numpy(), _radius(images, 3)))
        case _:
            return _filter(images, blended_kernels(name, parameters[:, 0].numpy()))


def _noise(images: Tensor, seed: Tensor) -> Tensor:
    """Return normal noise like `images`, drawn on the CPU so that a seed gives the same noise on every device."""
    generators = [torch.Generator().manual_seed(one) for one in seed.tolist()]
    return torch.stack([torch.randn(images.shape[1:], generator=g) for g in generators]).to(images)


def _kept(images: Tensor, fractions: Tensor, seed: Tensor) -> Tensor:
    shape = (images.shape[-2], images.shape[-1])
    generators = [np.random.default_rng(one) for one in seed.tolist()]
    kept = [kept_pixels(f, shape, g) for f, g in zip(fractions.tolist(), generators, strict=True)]
    return torch.from_numpy(np.stack(kept))[:, None].to(images.device)


def _radius(images: Tensor, wanted: int) -> int:
    """Return the largest radius up to `wanted` that mirroring at the border allows."""
    return min(wanted, images.shape[-2] - 1, images.shape[-1] - 1)


def _blur(images: Tensor, taps: Taps) -> Tensor:
    from kornia.filters import filter2d_separable

    kernels = torch.from_numpy(taps)
    return filter2d_separable(images, kernels, kernels)


def _filter(images: Tensor, kernels: Taps) -> Tensor:
    from kornia.filters import filter2d

    return filter2d(images, torch.from_numpy(kernels))


class RandomIntensity(nn.Module):
    """`draw_intensity` and `apply_intensity` as a module on (B, 1, H, W) in [0, 1]."""

    def __init__(self, p: float = 0.99) -> None:
        super().__init__()
        self.p = _probability(p)

    def forward(self, images: Tensor) -> Tensor:
        """Return `images` (B, 1, H, W), each changed with probability `p`."""
        return apply_intensity(images, draw_intensity(len(images), self.p))


def kornia_1(p: float = 0.99) -> RandomIntensity:
    """Return the module that applies exactly one of the eleven operations of `RANGES` to each image of a batch.

    Args:
        p: The probability that an image is changed at all.

    Raises:
        InputError: If `p` is not a probability.
    """
    return RandomIntensity(p)
