"""The local network: a UNet that predicts a dense displacement field."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlalign.errors import check_numbers
from atlalign.geometry import integrate, limit_steepness, resize
from atlalign.networks.global_affine import init_glorot
from atlalign.networks.layers import BilinearInterpolation, Registration, check_filters, precisely

_LARGEST_CROP_PX = 4


class LocalUNet(nn.Module):
    """Predicts the displacement of each pixel from a pair of images of any size ≥ 32 px.

    Ronneberger et al., *U-Net*, MICCAI 2015. If `size_multiple` does not divide a side, the side is cropped by at most
    4 px at each end where that suffices (456 → 448), and padded with zeros otherwise. In the cropped margin a
    displacement is 0, and a velocity is that at the edge of the crop.

    With `velocity_steps` the network predicts a stationary velocity field, which is integrated to the displacement
    (Dalca et al., *Unsupervised learning of probabilistic diffeomorphic registration*, MedIA 2019). The velocity is
    limited to 2 px per px (`atlalign.geometry.limit_steepness`), so that the field does not fold. The negative velocity
    gives the inverse field without a second pass, accurate to 0.04 px for smooth fields of up to 15 px at 320×456.

    Args:
        start_filters: Channels of the convolutions at full resolution before the first pooling.
        downsample_filters: Channels of the convolution after each pooling.
        middle_filters: Channels of the convolutions at the lowest resolution.
        upsample_filters: Channels of the two convolutions after each upsampling, one before and one after the skip.
            Each upsampling that is left out halves the grid of the prediction, which is then resized to the images. At
            half or a quarter of the resolution, the network takes a fraction of the time.
        end_filters: Channels of the convolutions at full resolution before the output.
        compute_inv: Return the inverse field as well: the same weights on the swapped images, or the negative velocity.
        size_multiple: A multiple of 2**len(downsample_filters), the default. Networks imported from Keras were cropped
            to multiples of 16 even with fewer poolings.
        velocity_steps: Predict a velocity, integrated by this number of squarings (7 suffice for 60 px); None predicts
            the displacement itself.

    Raises:
        ValueError: If there are more upsamplings than poolings, the poolings do not divide `size_multiple`, or channels
            or squarings are not whole numbers ≥ 1 and ≥ 0.

    Example:
        >>> net = LocalUNet((4,), (8, 8), (8,), (8, 8), (4,), compute_inv=True)
        >>> registration = net(reference=torch.rand(1, 1, 32, 48), moving=torch.rand(1, 1, 32, 48))
        >>> registration.dvf.shape, registration.inv_dvf.shape
        (torch.Size([1, 2, 32, 48]), torch.Size([1, 2, 32, 48]))
    """

    def __init__(
        self,
        start_filters: Sequence[int] = (16,),
        downsample_filters: Sequence[int] = (16, 32, 32, 32),
        middle_filters: Sequence[int] = (32,),
        upsample_filters: Sequence[int] = (32, 32, 32, 32),
        end_filters: Sequence[int] = (64, 64),
        compute_inv: bool = False,
        size_multiple: int | None = None,
        velocity_steps: int | None = None,
    ) -> None:
        super().__init__()
        if len(upsample_filters) > len(downsample_filters):
            raise ValueError(
                "upsample_filters: expected at most as many levels as downsample_filters, got "
                f"{len(upsample_filters)} and {len(downsample_filters)}"
            )
        check_filters(
            start_filters=start_filters,
            downsample_filters=downsample_filters,
            middle_filters=middle_filters,
            upsample_filters=upsample_filters,
            end_filters=end_filters,
        )
        if velocity_steps is not None:
            check_numbers({"velocity_steps": velocity_steps}, {"velocity_steps": 0})
        self.compute_inv = compute_inv
        self.velocity_steps = velocity_steps
        reduction = 2 ** len(downsample_filters)
        self.size_multiple = reduction if size_multiple is None else size_multiple
        if self.size_multiple < reduction or self.size_multiple % reduction:
            raise ValueError(f"size_multiple: expected a multiple of {reduction}, got {size_multiple}")
        self.hyperparameters: dict[str, Any] = {
            "start_filters": [int(n) for n in start_filters],
            "downsample_filters": [int(n) for n in downsample_filters],
            "middle_filters": [int(n) for n in middle_filters],
            "upsample_filters": [int(n) for n in upsample_filters],
            "end_filters": [int(n) for n in end_filters],
            "compute_inv": compute_inv,
            "size_multiple": self.size_multiple,
            "velocity_steps": velocity_steps,
        }
        self.start = _convs(2, start_filters)
        skips = [start_filters[-1] if start_filters else 2, *downsample_filters]
        self.down = nn.ModuleList(
            _convs(in_, [out]) for in_, out in zip(skips[:-1], downsample_filters, strict=True)
        )
        self.middle = _convs(skips[-1], middle_filters)
        channels = middle_filters[-1] if middle_filters else skips[-1]
        self.up = nn.ModuleList()
        for out, skip in zip(upsample_filters, reversed(skips[:-1]), strict=False):
            self.up.append(_Up(channels, skip, out))
            channels = out
        self.end = _convs(channels, end_filters)
        self.to_dvf = nn.Conv2d(end_filters[-1] if end_filters else channels, 2, 2, padding=1)
        self.warp = BilinearInterpolation()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Glorot uniform weights and zero the biases."""
        self.apply(init_glorot)

    def displacement(self, reference: Tensor, moving: Tensor) -> Tensor:
        """Return the predicted field (B, 2, H, W) in pixels."""
        if self.velocity_steps is None:
            return self._predict(reference, moving, beyond_crop="constant")
        return integrate(self.velocity(reference, moving), self.velocity_steps)

    def velocity(self, reference: Tensor, moving: Tensor) -> Tensor:
        """Return the predicted velocity (B, 2, H, W) in pixels per unit time; only with `velocity_steps`."""
        # A velocity that drops to 0 at the edge of the crop would be too steep.
        return limit_steepness(self._predict(reference, moving, beyond_crop="replicate"))

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        """Register `moving` to `reference`, both (B, 1, H, W) in [0, 1]."""
        dvf, inv_dvf = self._fields(reference, moving)
        return Registration(registered=self.warp(moving, dvf), dvf=dvf, inv_dvf=inv_dvf)

    def _fields(self, reference: Tensor, moving: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.velocity_steps is None:
            dvf = self.displacement(reference, moving)
            return dvf, self.displacement(moving, reference) if self.compute_inv else None
        velocity = self.velocity(reference, moving)
        dvf = integrate(velocity, self.velocity_steps)
        return dvf, integrate(-velocity, self.velocity_steps) if self.compute_inv else None

    def _predict(self, reference: Tensor, moving: Tensor, beyond_crop: str) -> Tensor:
        """Return the network's output at the size of the images; `beyond_crop` is F.pad's mode for the margin."""
        pair = torch.cat([reference, moving], dim=1)
        margins = _margins(pair.shape[-2], pair.shape[-1], self.size_multiple)
        padded = F.pad(pair, margins)
        predicted = resize(self._unet(padded), (padded.shape[-2], padded.shape[-1]))
        return F.pad(predicted, [-margin for margin in margins], mode=beyond_crop)

    def _unet(self, pair: Tensor) -> Tensor:
        skips = [self.start(pair)]
        for down in self.down:
            skips.append(down(F.max_pool2d(skips[-1], 2)))
        features = self.middle(skips.pop())
        for up in self.up:
            features = up(features, skips.pop())
        # A 2×2 kernel has no centre. As in Keras' 'same', only the zeros after the last row and column count;
        # padding only there would copy the largest feature maps of the network.
        return precisely(self.to_dvf, self.end(features))[..., 1:, 1:]


class _Up(nn.Module):
    """Doubles the resolution, convolves, joins the skip connection, convolves."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.before = nn.Sequential(_DoublingConv2d(in_channels, out_channels, 3), _activation())
        self.after = _convs(out_channels + skip_channels, [out_channels])

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.after(torch.cat([self.before(features), skip], dim=1))
        return joined


class _DoublingConv2d(nn.Conv2d):
    """Doubles the resolution and convolves in one step, with weights for a convolution after the doubling."""

    def forward(self, features: Tensor) -> Tensor:
        return convolve_doubled(features, self.weight, self.bias)


def convolve_doubled(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the zero-padded convolution of the features after each pixel was repeated 2×2.

    A transposed convolution of the features themselves needs 4/9 of the multiply-adds and no enlarged copy.

    Args:
        features: (B, C, H, W), at half of the resolution.
        weight: (C', C, 3, 3).
        bias: (C',).

    Returns:
        (B, C', 2·H, 2·W).
    """
    # A pixel contributes to 4×4 outputs; its weight at each is the sum of the taps that overlap its 2×2 copies.
    taps = F.pad(weight.flip(-2, -1), (1, 1, 1, 1))
    reached = 4 * F.avg_pool2d(taps, 2, stride=1)
    return F.conv_transpose2d(features, reached.transpose(0, 1), bias, stride=2, padding=1)


def _convs(in_channels: int, filters: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out_channels in filters:
        layers += [nn.Conv2d(in_channels, out_channels, 3, padding="same"), _activation()]
        in_channels = out_channels
    return nn.Sequential(*layers)


def _activation() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)


def _margins(height: int, width: int, multiple: int) -> list[int]:
    """Return F.pad's (left, right, top, bottom) to multiples: negative to crop, positive to pad."""
    return [*_margin(width, multiple), *_margin(height, multiple)]


def _margin(size: int, multiple: int) -> tuple[int, int]:
    excess = size % multiple
    total = -excess if excess <= 2 * _LARGEST_CROP_PX and size > excess else (multiple - excess) % multiple
    before = -(-total // 2) if total < 0 else total // 2
    return before, total - before
