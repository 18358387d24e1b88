"""The correlation pyramid: a local network that searches nearby for the features of each pixel, from coarse to fine."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlalign.errors import check_numbers
from atlalign.geometry import integrate, limit_steepness, resize, warp
from atlalign.networks.layers import BilinearInterpolation, Registration, check_filters, precisely

_FLAT = 1e-3  # Shorter features count as 0: noise has no direction.


class CorrelationPyramidNet(nn.Module):
    """Predicts a stationary velocity field from correlations of learned features, from the coarsest level down.

    Sun et al., *PWC-Net: CNNs for optical flow using pyramid, warping, and cost volume*, CVPR 2018, with a velocity in
    place of the flow, so that the field does not fold (`atlalign.geometry.limit_steepness`) and the field of the
    negative velocity is its inverse. One encoder serves both images. At each level the moving features are warped by
    the field so far and compared with the reference's at every displacement up to the level's radius. From these
    correlations a decoder corrects the velocity. Before training the network returns the identity.

    Args:
        encoder_filters: Channels of the features at 1/2, 1/4, … of the image size, one entry per level.
        radii: The search radius of each level in its own pixels, the finest first.
        decoder_filters: Channels of the convolutions between the correlations and a level's correction.
        velocity_steps: Number of squarings that integrate the velocity (7 suffice for 60 px).
        compute_inv: Return the inverse field as well.
        mirrored: Register the left-right mirrored images as well, and average both velocities. This takes twice the
            time, but applies features learned on one side of the brain to the other side as well.

    Raises:
        ValueError: If there is no level, a level has no radius ≥ 1, or channels or squarings are not whole numbers ≥ 1
            and ≥ 0.
    """

    def __init__(
        self,
        encoder_filters: Sequence[int] = (16, 32, 32, 32),
        radii: Sequence[int] = (2, 3, 4, 4),
        decoder_filters: Sequence[int] = (48, 32),
        velocity_steps: int = 7,
        compute_inv: bool = False,
        mirrored: bool = False,
    ) -> None:
        super().__init__()
        if not encoder_filters or len(radii) != len(encoder_filters) or min(radii) < 1:
            raise ValueError(
                "radii: expected a radius of at least 1 for each of encoder_filters, got "
                f"{list(radii)} for {list(encoder_filters)}"
            )
        check_filters(encoder_filters=encoder_filters, decoder_filters=decoder_filters)
        check_numbers({"velocity_steps": velocity_steps}, {"velocity_steps": 0})
        self.velocity_steps = velocity_steps
        self.compute_inv = compute_inv
        self.mirrored = mirrored
        self.hyperparameters: dict[str, Any] = {
            "encoder_filters": [int(n) for n in encoder_filters],
            "radii": [int(radius) for radius in radii],
            "decoder_filters": [int(n) for n in decoder_filters],
            "velocity_steps": int(velocity_steps),
            "compute_inv": compute_inv,
            "mirrored": mirrored,
        }
        self.radii = self.hyperparameters["radii"]
        self.encoder = nn.ModuleList()
        self.decoders = nn.ModuleList()
        channels = 1
        for out, radius in zip(encoder_filters, self.radii, strict=True):
            self.encoder.append(nn.Sequential(_conv(channels, out, stride=2), _conv(out, out)))
            self.decoders.append(_decoder((2 * radius + 1) ** 2 + 2 * out + 2, decoder_filters))
            channels = out
        self.warp = BilinearInterpolation()

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        """Register `moving` to `reference`, both (B, 1, H, W) in [0, 1]."""
        velocity = self.velocity(reference, moving)
        dvf = integrate(velocity, self.velocity_steps)
        inverse = integrate(-velocity, self.velocity_steps) if self.compute_inv else None
        return Registration(registered=self.warp(moving, dvf), dvf=dvf, inv_dvf=inverse)

    def velocity(self, reference: Tensor, moving: Tensor) -> Tensor:
        """Return the predicted velocity (B, 2, H, W) in pixels per unit time."""
        if not self.mirrored:
            return limit_steepness(self._velocity(reference, moving))
        both = (torch.cat([image, image.flip(-1)]) for image in (reference, moving))
        velocity, of_mirrored = self._velocity(*both).chunk(2)
        return limit_steepness((velocity + _mirrored(of_mirrored)) / 2)

    def _velocity(self, reference: Tensor, moving: Tensor) -> Tensor:
        levels = list(zip(self._features(reference), self._features(moving), strict=True))
        velocity = moving.new_zeros(moving.shape[0], 2, *levels[-1][0].shape[-2:], dtype=torch.float32)
        for (fixed, other), decoder, radius in reversed(
            list(zip(levels, self.decoders, self.radii, strict=True))
        ):
            velocity = resize(velocity, (fixed.shape[-2], fixed.shape[-1]))
            dvf = integrate(velocity, self.velocity_steps)
            moved = warp(other, dvf.to(other.dtype), padding_mode="border")
            seen = [correlate(fixed, moved, radius), fixed, moved, velocity.to(fixed.dtype)]
            velocity = velocity + precisely(decoder[-1], decoder[:-1](torch.cat(seen, dim=1)))
        return resize(velocity, (moving.shape[-2], moving.shape[-1]))

    def _features(self, image: Tensor) -> list[Tensor]:
        """Return features at each level, the finest first."""
        features = []
        for level in self.encoder:
            image = level(image)
            features.append(image)
        return features


def correlate(fixed: Tensor, other: Tensor, radius: int) -> Tensor:
    """Return the cosines between `fixed` at q and `other` at q + d, for each d up to `radius` px along x and y.

    The features' mean over each image is subtracted first. Beyond the border the cosine is 0.

    Args:
        fixed: Features (B, C, H, W).
        other: Features (B, C, H, W).
        radius: In pixels.

    Returns:
        (B, (2·radius + 1)², H, W) in [−1, 1], ordered by the displacement's y, then x.
    """
    height, width = fixed.shape[-2:]
    # Sums over the last axis of contiguous memory are several times as fast as sums over the channel axis.
    here = _directions(fixed).permute(0, 2, 3, 1).contiguous()
    there = F.pad(_directions(other), (radius,) * 4).permute(0, 2, 3, 1).contiguous()
    displacements = range(2 * radius + 1)
    cosines = [
        (here * there[:, y : y + height, x : x + width]).sum(-1) for y in displacements for x in displacements
    ]
    return torch.stack(cosines, dim=1)


def _directions(features: Tensor) -> Tensor:
    return F.normalize(features - features.mean((2, 3), keepdim=True), dim=1, eps=_FLAT)


def _mirrored(field: Tensor) -> Tensor:
    """Return the field (B, 2, H, W) of the left-right mirrored images: flipped, with the sign of x reversed."""
    return field.flip(-1) * field.new_tensor([-1.0, 1.0]).view(1, 2, 1, 1)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1), nn.LeakyReLU(0.1))


def _decoder(in_channels: int, filters: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for out_channels in filters:
        layers.append(_conv(in_channels, out_channels))
        in_channels = out_channels
    correction = nn.Conv2d(in_channels, 2, 3, padding=1)
    nn.init.zeros_(correction.weight)
    assert correction.bias is not None
    nn.init.zeros_(correction.bias)
    return nn.Sequential(*layers, correction)
