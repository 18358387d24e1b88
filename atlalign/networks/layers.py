"""Layers for displacement fields: functions of `atlalign.geometry` as modules without parameters."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atlalign.errors import check_numbers
from atlalign.geometry import affine_to_dvf, compose, warp


class Registration(NamedTuple):
    """The result of a network: every network that registers returns one.

    Attributes:
        registered: (B, 1, H, W) in [0, 1], the moving image warped by `dvf`.
        dvf: (B, 2, H, W) in pixels, x first: from each point of the reference to its place in the moving image.
        inv_dvf: (B, 2, H, W), the field from the moving image to the reference; None if the network predicts none.

    Example:
        >>> from atlalign.geometry import warp
        >>> moving, dvf = torch.rand(1, 1, 4, 5), torch.zeros(1, 2, 4, 5)
        >>> Registration(registered=warp(moving, dvf), dvf=dvf).inv_dvf is None
        True
    """

    registered: Tensor
    dvf: Tensor
    inv_dvf: Tensor | None = None


class Affine2DVF(nn.Module):
    """Turns matrices (B, 2, 3) on absolute pixel coordinates into fields (B, 2, H, W) of a fixed shape."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (int(shape[0]), int(shape[1]))

    def forward(self, matrix: Tensor) -> Tensor:
        """Return `matrix · (x, y, 1) − (x, y)` for each pixel."""
        return affine_to_dvf(matrix, self.shape)


class BilinearInterpolation(nn.Module):
    """Warps images (B, C, H, W) by fields (B, 2, H, W): bilinear, 0 beyond the border."""

    def forward(self, image: Tensor, dvf: Tensor) -> Tensor:
        """Return `image(q + dvf(q))`."""
        return warp(image, dvf)


class DVFComposition(nn.Module):
    """Composes two fields (B, 2, H, W): points pass `inner` first, and an image is warped by `outer` first."""

    def forward(self, outer: Tensor, inner: Tensor) -> Tensor:
        """Return `inner(q) + outer(q + inner(q))`."""
        return compose(outer, inner)


def check_filters(**filters: Sequence[int]) -> None:
    """Check that each entry of the named lists of channels or widths is a whole number ≥ 1.

    Raises:
        InputError: If an entry is not such a number.
    """
    for name, numbers in filters.items():
        for index, number in enumerate(numbers):
            check_numbers({f"{name}[{index}]": number}, {f"{name}[{index}]": 1})


def precisely(layer: nn.Module, features: Tensor) -> Tensor:
    """Return the layer's output for `features` in float32, even where autocast would reduce the precision.

    Layers that return pixels or matrices need it: bfloat16 rounds 20.06 px to 20 px, and a scale of 1.003 to 1.
    """
    device = features.device.type
    if not torch.is_autocast_enabled(device):
        return layer(features)  # type: ignore[no-any-return]
    with torch.autocast(device, enabled=False):
        return layer(features.float())  # type: ignore[no-any-return]
