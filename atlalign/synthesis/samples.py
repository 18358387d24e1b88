"""Generated samples: an original under a random deformation, drawn again until it passes the checks."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlalign.geometry import compose, invert, jacobian_determinant, stays_inside, warp
from atlalign.geometry.random_fields import RandomField, TooFewEdgesError
from atlalign.synthesis.sources import Source, Start, warp_on_slide

_LARGEST_RESIDUAL_PX = 0.1


class RejectedError(Exception):
    """A draw is rejected; the message is the reason by which rejected draws are counted."""


@dataclass(frozen=True, kw_only=True)
class SampleRecipe:
    """The settings that determine the samples; each process has a copy.

    Attributes:
        source: The originals.
        deformation: The kind of random field.
        per_original: Number of samples per original.
        max_trials: Skip a sample after this many rejected draws.
        max_corrupted_pixels: Reject a draw if either field folds at this many pixels.
        max_difference: Reject a draw if its image, warped back, differs by more than this from the registered image on
            average. Small and rough images need a larger value, because the two interpolations blur them more.
        seed: Seed of all randomness.
    """

    source: Source
    deformation: RandomField
    per_original: int
    max_trials: int
    max_corrupted_pixels: int
    max_difference: float
    seed: int


class Sample(NamedTuple):
    """One sample as stored: an image, uint8 (H, W), and two fields, float16 (H, W, 2)."""

    img: NDArray[np.uint8]
    deltas_xy: NDArray[np.float16]
    inv_deltas_xy: NDArray[np.float16]


def sample_generator(seed: int, number: int) -> torch.Generator:
    """Return the generator of one sample, independent of all others."""
    state = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def make_sample(recipe: SampleRecipe, original: int, number: int) -> tuple[Sample | None, Counter[str]]:
    """Return the first accepted draw, or None, and the number of rejected draws by reason."""
    generator = sample_generator(recipe.seed, number)
    start = recipe.source.start(original, generator)
    rejected: Counter[str] = Counter()
    for _ in range(recipe.max_trials):
        try:
            drawn = recipe.deformation.draw(start.drawn_on, generator=generator)
            inverse = recipe.deformation.after(start.before, drawn)
            limits = recipe.max_corrupted_pixels, recipe.max_difference
            return deform(start, inverse, *limits), rejected
        except TooFewEdgesError:
            rejected["too few edges in the image"] += 1
        except RejectedError as reason:
            rejected[str(reason)] += 1
    return None, rejected


def deform(
    start: Start, inverse: Tensor, max_corrupted_pixels: int = 500, max_difference: float = 0.01
) -> Sample:
    """Return the registered image R seen through `inverse`, `img(q) = R(q + inverse(q))`, with both fields.

    R is `start.moving` warped by `start.dvf`. Only one interpolation takes place: `img` is the moving image warped by
    `compose(start.dvf, inverse)`. Image and `deltas_xy` both come from the inverse field as stored.

    Raises:
        RejectedError: If a field is not finite or folds in `max_corrupted_pixels` pixels; if a composition of both
            fields is more than 0.1 px off the identity at points inside the image and away from folds; or if `img`
            warped by `deltas_xy` differs from R by more than `max_difference` on average.
    """
    inverse = inverse.half().float()
    inverse_folds = _folds(inverse, max_corrupted_pixels)
    dvf = invert(inverse, tolerance_px=0.01).half().float()
    dvf_folds = _folds(dvf, max_corrupted_pixels)
    if (
        _largest_residual(dvf, inverse, dvf_folds, inverse_folds) > _LARGEST_RESIDUAL_PX
        or _largest_residual(inverse, dvf, inverse_folds, dvf_folds) > _LARGEST_RESIDUAL_PX
    ):
        raise RejectedError("the fields do not invert each other")
    image = (warp_on_slide(start.moving, compose(start.dvf, inverse)) * 255).round()
    if _difference(warp(image / 255, dvf), start, dvf) > max_difference:
        raise RejectedError("warping the image back does not restore the registered image")
    return Sample(image[0, 0].byte().numpy(), _channels_last(dvf), _channels_last(inverse))


@lru_cache(maxsize=2)
def registered_image(start: Start) -> Tensor:
    """Return the registered image (1, 1, H, W) of a start; it is cached, so do not change it in place."""
    # Samples of an annotated original share its starts, and the cache recognises tensors by identity.
    return warp_on_slide(start.moving, start.dvf)


def _folds(dvf: Tensor, max_corrupted_pixels: int) -> Tensor:
    """Return the mask (B, H, W) of folds, unless there are too many."""
    # NaN is its own minimum and maximum; checking each pixel takes eight times as long.
    if not bool(torch.stack(dvf.aminmax()).isfinite().all()):
        raise RejectedError("a field is not finite")
    folds = jacobian_determinant(dvf) <= 0
    if int(folds.sum()) >= max_corrupted_pixels:
        raise RejectedError("a field folds")
    return folds


def _largest_residual(outer: Tensor, inner: Tensor, outer_folds: Tensor, inner_folds: Tensor) -> float:
    """Return the largest |compose(outer, inner)| in pixels over the points inside the image and away from folds."""
    counted = stays_inside(inner)
    if bool(outer_folds.any()) or bool(inner_folds.any()):
        counted &= ~(_near(inner_folds) | _landing_near(outer_folds, inner))
    squared = compose(outer, inner).square().sum(dim=1) * counted
    return float(squared.amax().sqrt())


def _near(mask: Tensor, radius_px: int = 2) -> Tensor:
    return F.max_pool2d(mask[:, None].float(), 2 * radius_px + 1, stride=1, padding=radius_px)[:, 0] > 0


def _landing_near(mask: Tensor, dvf: Tensor) -> Tensor:
    """Return the mask (B, H, W) of the pixels q whose point q + dvf(q) lies near the mask (B, H, W)."""
    return warp(_near(mask)[:, None].byte(), dvf, mode="nearest")[:, 0] > 0


def _difference(image: Tensor, start: Start, dvf: Tensor) -> float:
    """Return the mean |image − registered image| over the pixels that show both."""
    seen = stays_inside(dvf) & stays_inside(start.dvf)
    difference = (image - registered_image(start)).abs()[:, 0]
    return float((difference * seen).sum() / seen.sum().clamp(min=1))


def _channels_last(dvf: Tensor) -> NDArray[np.float16]:
    array: NDArray[np.float16] = dvf[0].permute(1, 2, 0).half().numpy()
    return array
