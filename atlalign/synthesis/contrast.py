"""Sections in synthetic contrast: an atlas in stains that do not exist.

Each region of the annotation gets its own intensity and texture, mixed with the template in a changed tone. Blur,
uneven light and noise follow, on a dark or a bright background. A network that trains on such images learns shapes, not
a stain: Hoffmann et al., *SynthMorph: learning contrast-invariant registration without acquired images*, IEEE TMI 2022.

A generator on the CPU draws the parameters, which are then moved to the device, so the same seed gives the same
sections on every device. They differ only by rounding, up to about 1e-3, because cuDNN computes the blur in TF32 by
default.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.errors import check_probabilities, check_range

Range = Sequence[float]

LARGEST_N_GROUPS = 256
_BOUNDS = {
    "n_groups": (1, LARGEST_N_GROUPS),
    "spread": (0, 1),
    "template_share": (0, 1),
    "log2_gamma": (-4, 4),
    "texture": (0, 1),
    "bias": (0, 2),
    "blur_px": (0, 2),
    "noise": (0, 1),
}
_BLUR_RADIUS_PX = 6  # Three standard deviations of the strongest blur.
_TEXTURE_PX = 4  # Distance of the texture's knots.
_BIAS_KNOTS = 4
_WORD = 2**32 - 1


class Contrast(NamedTuple):
    """The appearance of a batch of sections; the first axis is the batch.

    Regions fall into groups by their ids. Groups are columns of `intensity` and `texture_std`; the first column is the
    background, label 0.
    """

    n_groups: Tensor  # (B, 1) int64
    seed: Tensor  # (B, 1) int64: decides which regions share a group, and the noise
    intensity: Tensor  # (B, 1 + LARGEST_N_GROUPS)
    texture_std: Tensor  # (B, 1 + LARGEST_N_GROUPS)
    texture: Tensor  # (B, 1, h, w), standard normal on a coarse grid
    template_share: Tensor  # (B, 1, 1, 1), the template's weight in the tissue
    gamma: Tensor  # (B, 1, 1, 1), of the template's tone
    inverted: Tensor  # (B, 1, 1, 1), 1 where the template's tone is inverted, else 0
    bias: Tensor  # (B, 1, 4, 4), logarithm of the light on a coarse grid
    blur_px: Tensor  # (B, 1), standard deviation
    noise_std: Tensor  # (B, 1, 1, 1)


def draw_contrast(
    labels: Tensor,
    *,
    n_groups: Range = (8, 256),
    spread: Range = (0.2, 1.0),
    template_share: Range = (0.0, 1.0),
    p_inverted: float = 0.5,
    log2_gamma: Range = (-1.0, 1.0),
    p_bright: float = 0.5,
    texture: Range = (0.0, 0.15),
    bias: Range = (0.0, 0.3),
    blur_px: Range = (0.0, 1.5),
    noise: Range = (0.0, 0.04),
    generator: torch.Generator | None = None,
) -> Contrast:
    """Return a random contrast for each section; each value is drawn uniformly from its range (lowest, highest).

    Args:
        labels: (B, 1, H, W), the sections to be coloured; only their number, size and device are used.
        n_groups: The number of intensities that the regions share, at most 256; uniform in its logarithm.
        spread: The width of the interval from which the regions' intensities are drawn.
        template_share: The weight of the template against the regions' intensities, in [0, 1].
        p_inverted: The probability that the template is inverted.
        log2_gamma: Base-2 logarithm of the template's gamma, the exponent that changes its tone.
        p_bright: The probability of a bright background (0.75 to 1) instead of a dark one (0 to 0.1).
        texture: The largest standard deviation of the texture among the regions.
        bias: The standard deviation of the light's logarithm.
        blur_px: The blur's standard deviation, at most 2.
        noise: The noise's standard deviation.
        generator: A generator on the CPU; None for the global one.

    Raises:
        InputError: If a range or a probability is invalid.
    """
    ranges = {
        "n_groups": n_groups, "spread": spread, "template_share": template_share, "log2_gamma": log2_gamma,
        "texture": texture, "bias": bias, "blur_px": blur_px, "noise": noise,
    }  # fmt: skip
    for name, values in ranges.items():
        check_range(values, name=f"contrast.{name}", lowest=_BOUNDS[name][0], highest=_BOUNDS[name][1])
    check_probabilities("contrast", p_inverted=p_inverted, p_bright=p_bright)
    batch, height, width = len(labels), labels.shape[-2], labels.shape[-1]

    def uniform(values: Range, *shape: int) -> Tensor:
        return values[0] + (values[1] - values[0]) * torch.rand(batch, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    # Draw the width of the intensities' interval first, then its place.
    wide = uniform(spread, 1)
    intensity = uniform((0, 1), 1) * (1 - wide) + wide * uniform((0, 1), 1 + LARGEST_N_GROUPS)
    bright = uniform((0, 1)) < p_bright
    intensity[:, 0] = torch.where(bright, uniform((0.75, 1)), uniform((0, 0.1)))
    texture_std = uniform(texture, 1) * uniform((0, 1), 1 + LARGEST_N_GROUPS)
    texture_std[:, 0] *= 0.2  # Glass is smoother than tissue.
    drawn = Contrast(
        n_groups=uniform([math.log2(value) for value in n_groups], 1).exp2().round().long(),
        seed=torch.randint(2**31, (batch, 1), generator=generator),
        intensity=intensity,
        texture_std=texture_std,
        texture=normal(1, math.ceil(height / _TEXTURE_PX), math.ceil(width / _TEXTURE_PX)),
        template_share=uniform(template_share, 1, 1, 1),
        gamma=uniform(log2_gamma, 1, 1, 1).exp2(),
        inverted=(uniform((0, 1), 1, 1, 1) < p_inverted).float(),
        bias=uniform(bias, 1, 1, 1) * normal(1, _BIAS_KNOTS, _BIAS_KNOTS),
        blur_px=uniform(blur_px, 1),
        noise_std=uniform(noise, 1, 1, 1),
    )
    return Contrast(*(part.to(labels.device) for part in drawn))


def apply_contrast(template: Tensor, labels: Tensor, contrast: Contrast) -> Tensor:
    """Return the sections in their contrast, float32 (B, 1, H, W) in [0, 1].

    Args:
        template: (B, 1, H, W) in [0, 1].
        labels: Region ids, integers (B, 1, H, W); 0 is the background.
        contrast: The result of `draw_contrast` for B sections.
    """
    group = _groups(labels, contrast)
    regions = _look_up(contrast.intensity, group)
    tone = torch.lerp(template, 1 - template, contrast.inverted).clamp(0, 1) ** contrast.gamma
    image = torch.lerp(regions, tone, contrast.template_share * (group > 0))
    shape = (image.shape[-2], image.shape[-1])
    texture = F.interpolate(contrast.texture, size=shape, mode="bilinear", align_corners=True)
    image = image.addcmul(_look_up(contrast.texture_std, group), texture)
    light = F.interpolate(contrast.bias, size=shape, mode="bicubic", align_corners=True).exp()
    image = _blur(image * light, contrast.blur_px)
    return image.addcmul(_noise(shape, contrast.seed), contrast.noise_std).clamp(0, 1)


def _groups(labels: Tensor, contrast: Contrast) -> Tensor:
    """Return the group of each pixel (B, 1, H, W): 0 for the background, otherwise a hash ≥ 1 of its region's id.

    A hash needs no table of ids, which can be as large as hundreds of millions.
    """
    ids = labels.long()
    seed, n_groups = (part[..., None, None] for part in (contrast.seed, contrast.n_groups))
    return torch.where(ids == 0, 0, 1 + _hash(ids ^ _hash(seed)) % n_groups)


def _look_up(table: Tensor, group: Tensor) -> Tensor:
    """Return the table's (B, K) value for the group of each pixel, (B, 1, H, W)."""
    return table.gather(1, group.flatten(1)).view(group.shape)


def _blur(images: Tensor, sigma_px: Tensor) -> Tensor:
    """Return images (B, 1, H, W) blurred by Gaussians of sigma_px (B, 1), with the border replicated."""
    offset = torch.arange(-_BLUR_RADIUS_PX, _BLUR_RADIUS_PX + 1, device=images.device)
    taps = torch.exp(-0.5 * (offset / sigma_px.clamp(min=1e-3)) ** 2)
    taps = (taps / taps.sum(1, keepdim=True))[:, None]
    padded = F.pad(images, [_BLUR_RADIUS_PX] * 4, mode="replicate").transpose(0, 1)
    along_y = F.conv2d(padded, taps[..., None], groups=len(images))
    return F.conv2d(along_y, taps[:, :, None], groups=len(images)).transpose(0, 1)


def _noise(shape: tuple[int, int], seed: Tensor) -> Tensor:
    """Return nearly normal noise (B, 1, *shape): the sum of four uniform bytes of a hash, the same on every device."""
    pixel = torch.arange(shape[0] * shape[1], device=seed.device)
    word = _hash(pixel ^ _hash(seed))
    total = (word & 255) + (word >> 8 & 255) + (word >> 16 & 255) + (word >> 24)
    return ((total - 510) / math.sqrt((256**2 - 1) / 3)).view(-1, 1, *shape)


def _hash(number: Tensor) -> Tensor:
    """Return 32 well-mixed bits of int64 numbers."""
    # C. Wellons' lowbias32. The products overflow, but their lower halves are correct.
    word = (number ^ number >> 32) & _WORD
    word = ((word ^ word >> 16) * 0x7FEB352D) & _WORD
    word = ((word ^ word >> 15) * 0x846CA68B) & _WORD
    return word ^ word >> 16
