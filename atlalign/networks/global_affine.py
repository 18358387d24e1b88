"""The global network: a spatial transformer that predicts one affine map."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atlalign.errors import InputError
from atlalign.networks.layers import (
    Affine2DVF,
    BilinearInterpolation,
    Registration,
    check_filters,
    precisely,
)

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


class GlobalAffineNet(nn.Module):
    """Predicts an affine map from a pair of images; before training it returns the identity.

    Jaderberg et al., *Spatial Transformer Networks*, NIPS 2015. Each entry of `filters` adds one block of two 3×3
    convolutions with ReLU and a 2×2 max-pooling. The features are flattened in (row, column, channel) order. Dense
    layers without activation map them to the six numbers of the matrix.

    Args:
        filters: Channels of each block.
        dense_layers: Widths of the dense layers before the last one.
        image_shape: (H, W) of the images; each side is at least 2**len(filters).

    Raises:
        ValueError: If the images are too small for the number of blocks, or channels or widths are not whole numbers
            ≥ 1.

    Example:
        >>> net = GlobalAffineNet(filters=(8, 8), dense_layers=(20,), image_shape=(32, 48))
        >>> registration = net(reference=torch.rand(1, 1, 32, 48), moving=torch.rand(1, 1, 32, 48))
        >>> registration.registered.shape, registration.dvf.shape
        (torch.Size([1, 1, 32, 48]), torch.Size([1, 2, 32, 48]))
    """

    def __init__(
        self,
        filters: Sequence[int] = (16, 16, 32, 32, 32),
        dense_layers: Sequence[int] = (40,),
        image_shape: tuple[int, int] = (320, 456),
    ) -> None:
        super().__init__()
        check_filters(filters=filters, dense_layers=dense_layers)
        height, width = (int(side) for side in image_shape)
        reduction = 2 ** len(filters)
        if min(height, width) < reduction:
            raise ValueError(
                f"image_shape: {len(filters)} blocks need at least {reduction} px per side, got {height}×{width}"
            )
        self.image_shape = (height, width)
        self.hyperparameters: dict[str, Any] = {
            "filters": [int(n) for n in filters],
            "dense_layers": [int(n) for n in dense_layers],
            "image_shape": [height, width],
        }
        self.features = nn.Sequential(
            *(_block(in_, out) for in_, out in zip((2, *filters), filters, strict=False))
        )
        n_features = (height // reduction) * (width // reduction) * (filters[-1] if filters else 2)
        widths = (n_features, *dense_layers)
        self.dense = nn.Sequential(
            *(nn.Linear(in_, out) for in_, out in zip(widths, dense_layers, strict=False))
        )
        self.to_affine = nn.Linear(widths[-1], 6)
        self.to_dvf = Affine2DVF(self.image_shape)
        self.warp = BilinearInterpolation()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw Glorot uniform weights, zero the biases and set the last layer to the identity map."""
        self.apply(init_glorot)
        nn.init.zeros_(self.to_affine.weight)
        with torch.no_grad():
            self.to_affine.bias.copy_(torch.tensor(_IDENTITY))

    def affine(self, reference: Tensor, moving: Tensor) -> Tensor:
        """Return the predicted matrices (B, 2, 3), on absolute pixel coordinates around (0, 0).

        Raises:
            InputError: If the images are not of `image_shape`.
        """
        if tuple(moving.shape[-2:]) != self.image_shape:
            expected, found = ("×".join(map(str, shape)) for shape in (self.image_shape, moving.shape[-2:]))
            raise InputError(f"the global network takes images of {expected} px, got {found}")
        features = self.features(torch.cat([reference, moving], dim=1))
        flat = features.permute(0, 2, 3, 1).flatten(1)
        return precisely(self.to_affine, self.dense(flat)).view(-1, 2, 3)

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        """Register `moving` to `reference`, both (B, 1, H, W) in [0, 1]."""
        dvf = self.to_dvf(self.affine(reference, moving))
        return Registration(registered=self.warp(moving, dvf), dvf=dvf)


def init_glorot(module: nn.Module) -> None:
    """Initialise a layer as Keras does: Glorot uniform weights, zero biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        assert module.bias is not None
        nn.init.zeros_(module.bias)


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding="same"),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )
