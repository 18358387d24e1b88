"""The coarse-to-fine network: a local network applied in several passes, each to the result of the previous ones."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlalign.geometry import compose, resize, warp
from atlalign.networks.contract import as_registration
from atlalign.networks.layers import Registration


class CoarseToFineNet(nn.Module):
    """Registers in passes at increasing resolution, and interpolates the moving image once with the overall field.

    Each pass sees both images, shrunk by its reduction, and predicts the remaining displacement. It sees the moving
    image warped by the field so far. The field becomes `compose(outer=so far, inner=pass)`, its inverse
    `compose(outer=inverse of the pass, inner=inverse so far)`.

    Args:
        net: Maps (reference, moving) of any size to a `Registration`; each pass starts from its weights.
        reductions: The factor by which each pass shrinks the images, such as (4, 2, 1).
        shared_weights: All passes share one set of weights; otherwise each pass trains its own.

    Raises:
        ValueError: If there is no pass, or a reduction is below 1.
    """

    def __init__(
        self, net: nn.Module, reductions: Sequence[int] = (4, 2), *, shared_weights: bool = False
    ) -> None:
        super().__init__()
        if not reductions or min(reductions) < 1:
            raise ValueError(f"reductions: expected factors of at least 1, got {list(reductions)}")
        self.reductions = tuple(int(reduction) for reduction in reductions)
        self.shared_weights = shared_weights
        copies = 0 if shared_weights else len(self.reductions) - 1
        self.nets = nn.ModuleList([net, *(deepcopy(net) for _ in range(copies))])

    @property
    def compute_inv(self) -> bool:
        """Whether the passes, and so the whole network, return the inverse field."""
        return bool(getattr(self.nets[0], "compute_inv", False))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "net": self.nets[0],
            "reductions": list(self.reductions),
            "shared_weights": self.shared_weights,
        }

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        """Register `moving` to `reference`, both (B, 1, H, W) in [0, 1]."""
        shape = (moving.shape[-2], moving.shape[-1])
        dvf = torch.zeros_like(moving).expand(-1, 2, -1, -1)
        inverse: Tensor | None = dvf if self.compute_inv else None
        for index, reduction in enumerate(self.reductions):
            net = self.nets[0 if self.shared_weights else index]
            so_far = warp(moving, dvf, padding_mode="border")
            output = net(shrink(reference, reduction), shrink(so_far, reduction))
            found = as_registration(net, output)
            dvf = compose(outer=dvf, inner=resize(found.dvf, shape))
            if inverse is not None and found.inv_dvf is not None:
                inverse = compose(outer=resize(found.inv_dvf, shape), inner=inverse)
        return Registration(registered=warp(moving, dvf), dvf=dvf, inv_dvf=inverse)


def shrink(image: Tensor, reduction: int) -> Tensor:
    """Return images (B, 1, H, W) at (H // reduction, W // reduction): averaged, then sampled with aligned corners."""
    if reduction == 1:
        return image
    radius = reduction // 2
    smooth = F.avg_pool2d(image, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    shape = (image.shape[-2] // reduction, image.shape[-1] // reduction)
    return F.interpolate(smooth, size=shape, mode="bilinear", align_corners=True)
