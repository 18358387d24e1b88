"""Losses of a prediction alone: `loss(dvf, inv_dvf)` of a network's fields (B, 2, H, W) in pixels is a scalar.

They need no truth; `inv_dvf` is None if the network predicts no inverse.
"""

import torch
from torch import Tensor, nn

from atlalign.errors import InputError
from atlalign.geometry import compose, stays_inside
from atlalign.losses.dvf import as_fields


def inverse_consistency(dvf: Tensor, inv_dvf: Tensor | None) -> Tensor:
    """Return mean |compose(dvf, inv_dvf)|² in px², averaged over both orders and all points that stay in the image.

    Greer et al., *ICON: learning regular maps through inverse consistency*, ICCV 2021.

    Raises:
        InputError: If there is no inverse.
    """
    orders = _both_orders("inverse_consistency", dvf, inv_dvf)
    return torch.stack([_mean(field.square(), inside) for field, inside in orders]).mean()


def gradicon(dvf: Tensor, inv_dvf: Tensor | None) -> Tensor:
    """Return mean |∇ compose(dvf, inv_dvf)|², averaged over both orders, by forward differences that stay in the image.

    It is the squared Frobenius norm of the difference between the Jacobian of the composed maps and the identity.
    Unlike `inverse_consistency`, it allows the composition to be a translation. Tian et al., *GradICON: approximate
    diffeomorphisms via gradient inverse consistency*, CVPR 2023.

    Raises:
        InputError: If there is no inverse.
    """
    orders = _both_orders("gradicon", dvf, inv_dvf)
    changes = [
        _mean(torch.diff(field, dim=dim).square(), _both_ends(inside, dim))
        for field, inside in orders
        for dim in (-2, -1)
    ]
    return torch.stack(changes).sum() / len(orders)


class OfEachField(nn.Module):
    """Averages a loss that ignores the truth over the field and, if there is one, the inverse field."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, dvf: Tensor, inv_dvf: Tensor | None) -> Tensor:
        """Return the mean over the fields (B, 2, H, W) that are not None."""
        fields = [dvf] if inv_dvf is None else [dvf, inv_dvf]
        return torch.stack([self.loss(field, field) for field in fields]).mean()


def _both_orders(name: str, dvf: Tensor, inv_dvf: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Return, for both orders, the composition (B, 2, H, W) and the mask (B, 1, H, W) of points within the image."""
    if inv_dvf is None:
        raise InputError(
            f"loss.regularity: {name} needs a network with an inverse, got one without; set model.compute_inv=true, or "
            "where the model has no such key another loss.regularity"
        )
    dvf, inv_dvf = as_fields(dvf, inv_dvf)
    orders = [(dvf, inv_dvf), (inv_dvf, dvf)]
    return [(compose(outer, inner), stays_inside(inner)[:, None]) for outer, inner in orders]


def _both_ends(mask: Tensor, dim: int) -> Tensor:
    n = mask.shape[dim] - 1
    return mask.narrow(dim, 0, n) & mask.narrow(dim, 1, n)


def _mean(squares: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the mask (B, 1, h, w) of the sums over x and y of (B, 2, h, w); 0 if the mask is empty."""
    return (squares * mask).sum() / mask.sum().clamp(min=1)
