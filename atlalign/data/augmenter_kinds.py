"""The two kinds of augmenters, for single images and for batches; augmenters that move pixels are refused."""

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atlalign.data.augmenters import Image
from atlalign.errors import InputError


class ImageAugmenter:
    """Augments one image at a time on the CPU, where it is loaded; a seed gives the same result in every process."""

    def __init__(self, augment: Callable[[Image, int], Any], *, name: str) -> None:
        """Keep the function `augment(image, seed)` and the configuration's key for messages."""
        self.augment = augment
        self.name = name

    def __call__(self, image: Image, *, seed: int) -> Image:
        """Return `image`, float32 (H, W) in [0, 1], augmented, as a new array of the same kind.

        Args:
            image: The image, which is not changed in place.
            seed: A number ≥ 0 that determines all randomness. The two augmenters of a pair need different seeds.

        Raises:
            InputError: If the augmenter returns another shape, another type than floats, or non-finite values.
        """
        augmented = self.augment(image, seed)
        if not isinstance(augmented, np.ndarray) or augmented.dtype.kind != "f":
            raise InputError(f"{self.name}: expected an array of floats in [0, 1], got {_kind(augmented)}")
        _check_shape(augmented.shape, image.shape, self.name)
        _check_finite(bool(np.isfinite(augmented).all()), self.name)
        return np.ascontiguousarray(np.clip(augmented, 0, 1), dtype=np.float32)


class BatchAugmenter(nn.Module):
    """Augments a batch on the device with `module`, in float32 and without gradient, then checks and clips it."""

    def __init__(self, module: nn.Module, *, name: str) -> None:
        super().__init__()
        self.module = module
        self.name = name

    def forward(self, images: Tensor) -> Tensor:
        """Return `images` (B, 1, H, W) in [0, 1] augmented, as float32.

        Raises:
            InputError: If the module returns another shape, another type than floats, or non-finite values.
        """
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            augmented = self.module(images.float())
        if not isinstance(augmented, Tensor) or not augmented.is_floating_point():
            raise InputError(f"{self.name}: expected a tensor of floats in [0, 1], got {_kind(augmented)}")
        _check_shape(augmented.shape, images.shape, self.name)
        _check_finite(bool(augmented.isfinite().all()), self.name)
        return augmented.float().clamp(0, 1)


def as_augmenter(augmenter: object, *, name: str = "augment") -> ImageAugmenter | BatchAugmenter | None:
    """Return a configured object as one of the two kinds of augmenter; None stays None.

    An `nn.Module`, such as kornia's augmentations and containers, works on batches (B, 1, H, W) on the device. An
    albumentations transform, or any other callable, works on single float32 arrays (H, W). Both receive and return
    intensities in [0, 1].

    Args:
        augmenter: None, a module, an albumentations transform or pipeline, or a callable.
        name: The key in the configuration, for messages.

    Raises:
        InputError: If it is none of these, or contains a transform that moves pixels.
    """
    if augmenter is None:
        return None
    _refuse_geometry(augmenter, name)
    if isinstance(augmenter, nn.Module):
        return BatchAugmenter(augmenter, name=name)
    if _is_albumentations(augmenter):
        return ImageAugmenter(_Albumentations(augmenter), name=name)
    if callable(augmenter):
        return ImageAugmenter(_Function(augmenter), name=name)
    raise InputError(f"{name}: expected null or a callable on images, got {type(augmenter).__name__}")


@dataclass(frozen=True)
class _Albumentations:
    """An albumentations transform, called with an image and a seed."""

    transform: Any

    def __call__(self, image: Image, seed: int) -> Any:
        # set_random_seed would give every transform the same stream, so the draw that picks an operation would also
        # decide its parameter. One stream for all avoids this and is ten times as fast.
        self.transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self.transform(image=image)["image"]


@dataclass(frozen=True)
class _Function:
    """A plain function of an image, called with an image and a seed."""

    function: Callable[[Image], Any]

    def __call__(self, image: Image, seed: int) -> Any:
        with _seeded(seed):
            return self.function(image.copy())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch (CPU) within the context."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed % 2**63)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def _kind(value: object) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else f"{type(value).__name__} of {dtype}"


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    if shape != expected:
        raise InputError(
            f"{name}: expected an image of the same shape {tuple(expected)}, got {tuple(shape)}: do not crop or "
            "resize, which moves pixels"
        )


def _check_finite(finite: bool, name: str) -> None:
    if not finite:
        raise InputError(f"{name}: expected finite values, got NaN or infinity from the augmenter")


# --- transforms that move pixels --------------------------------------------------------------------------------------


def _refuse_geometry(augmenter: object, name: str) -> None:
    for part in _parts(augmenter):
        if _moves_pixels(part):
            raise InputError(
                f"{name}: expected changes of intensity only, but {type(part).__name__} moves pixels, so the "
                "displacement field would no longer be true: deform the data set instead"
            )


def _parts(augmenter: object) -> Iterator[object]:
    """Yield `augmenter` and all its parts: the children of modules and the `transforms` of pipelines."""
    yield augmenter
    children = augmenter.children() if isinstance(augmenter, nn.Module) else ()
    transforms = getattr(augmenter, "transforms", ())
    for part in (*children, *(transforms if isinstance(transforms, Iterable) else ())):
        yield from _parts(part)


def _moves_pixels(part: object) -> bool:
    return _moves_albumentations(part) or _moves_kornia(part) or _moves_torchvision(part)


def _moves_albumentations(part: object) -> bool:
    if not _is_albumentations(part):
        return False
    import albumentations as A
    from albumentations.augmentations.dropout.transforms import BaseDropout

    # Dual transforms change images and masks together; the ones listed here only drop pixels or do nothing.
    stays = (BaseDropout, A.PixelDropout, A.MaskDropout, A.NoOp)
    return isinstance(part, A.DualTransform) and not isinstance(part, stays)


def _is_albumentations(part: object) -> bool:
    # If albumentations has not been imported, the object is not one of its transforms.
    if "albumentations" not in sys.modules:
        return False
    import albumentations as A

    return isinstance(part, A.BasicTransform | A.BaseCompose)


def _moves_kornia(part: object) -> bool:
    if "kornia" not in sys.modules:
        return False
    import kornia.augmentation as K

    # Some transforms that move pixels lack the geometric base (elastic, fisheye, mixes); harmless ones have the
    # intensity base.
    if isinstance(part, K.AugmentationBase2D | K.AugmentationBase3D | K.MixAugmentationBaseV2):
        return not isinstance(part, K.IntensityAugmentationBase2D)
    return any(base.__module__.startswith("kornia.geometry.transform") for base in type(part).__mro__)


def _moves_torchvision(part: object) -> bool:
    return any(
        base.__name__ in _TORCHVISION and base.__module__.startswith("torchvision.transforms")
        for base in type(part).__mro__
    )


_TORCHVISION = {
    "AugMix",
    "AutoAugment",
    "CenterCrop",
    "CutMix",
    "ElasticTransform",
    "FiveCrop",
    "MixUp",
    "Pad",
    "RandAugment",
    "RandomAffine",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomIoUCrop",
    "RandomPerspective",
    "RandomResize",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomShortestSize",
    "RandomVerticalFlip",
    "RandomZoomOut",
    "Resize",
    "ScaleJitter",
    "TenCrop",
    "TrivialAugmentWide",
}
"""The transforms that move pixels or mix images; both of torchvision's versions have the same names."""
