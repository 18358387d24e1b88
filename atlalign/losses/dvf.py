"""Losses between fields: `loss(y_true, y_pred)` of two (B, 2, H, W) fields in pixels is a scalar, lower is better."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from atlalign.errors import InputError, unknown_name
from atlalign.geometry import jacobian_determinant
from atlalign.losses.image import as_pair

Penalty = Literal["l1", "l2"]
_PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square}


def as_fields(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Return both fields in their common precision, at least float32.

    Raises:
        ValueError: If they are not two tensors (B, 2, H, W) of one shape.
    """
    y_true, y_pred = as_pair(y_true, y_pred)
    if y_pred.shape[1] != 2:
        raise ValueError(f"loss: expected fields (B, 2, H, W), got {tuple(y_pred.shape)}")
    return y_true, y_pred


def mse_po(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return mean(dx² + dy²) of the difference in px²: the mean squared length, twice the `mse`."""
    y_true, y_pred = as_fields(y_true, y_pred)
    return (y_true - y_pred).square().sum(dim=1).mean()


def vector_distance(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return mean √(dx² + dy² + 0.001) of the difference in px; the constant keeps the root smooth at 0.

    Example:
        >>> truth, shifted = torch.zeros(1, 2, 4, 5), torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5)
        >>> round(vector_distance(truth, shifted).item(), 3)
        5.0
    """
    y_true, y_pred = as_fields(y_true, y_pred)
    return ((y_true - y_pred).square().sum(dim=1) + 0.001).sqrt().mean()


def vdclip(y_true: Tensor, y_pred: Tensor, *, threshold: float = 20, power: float = 2) -> Tensor:
    """Return (`vector_distance` / threshold)^power: 1 at `threshold` pixels, small below it, steep above."""
    return (vector_distance(y_true, y_pred) / threshold) ** power


class VDClipper(nn.Module):
    """The loss `vdclip`: it weakens a `vector_distance` below `threshold` pixels and amplifies one above.

    Example:
        >>> truth, shifted = torch.zeros(1, 2, 4, 5), torch.tensor([0.0, 10.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5)
        >>> round(VDClipper(threshold=20, power=2)(truth, shifted).item(), 3)  # (10 / 20)²
        0.25
    """

    def __init__(self, threshold: float = 20, power: float = 2) -> None:
        super().__init__()
        if not (threshold > 0 and power > 0):
            raise InputError(f"VDClipper: expected threshold and power above 0, got {threshold} and {power}")
        self.threshold = threshold
        self.power = power

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss of two fields (B, 2, H, W)."""
        return vdclip(y_true, y_pred, threshold=self.threshold, power=self.power)

    def extra_repr(self) -> str:
        """Return the hyperparameters for `repr`."""
        return f"threshold={self.threshold}, power={self.power}"


def grad(y_true: Tensor, y_pred: Tensor, *, penalty: Penalty = "l1") -> Tensor:
    """Return ½ (mean|∂/∂y| + mean|∂/∂x|) of the prediction by forward differences; "l2" squares them instead.

    Raises:
        ValueError: If a side is shorter than 2 pixels.
    """
    _, y_pred = as_fields(y_true, y_pred)
    _check_size("grad", y_pred, 2)
    along_y, along_x = (_PENALTIES[penalty](torch.diff(y_pred, dim=dim)).mean() for dim in (-2, -1))
    return (along_y + along_x) / 2


class Grad(nn.Module):
    """The roughness of the prediction, `grad`, with penalty "l1" or "l2"; the truth is ignored."""

    def __init__(self, penalty: Penalty = "l1") -> None:
        super().__init__()
        if penalty not in _PENALTIES:
            raise unknown_name("penalty of Grad", penalty, _PENALTIES)
        self.penalty: Penalty = penalty

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss of two fields (B, 2, H, W)."""
        return grad(y_true, y_pred, penalty=self.penalty)

    def extra_repr(self) -> str:
        """Return the hyperparameters for `repr`."""
        return f"penalty='{self.penalty}'"


def jacobian(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return mean(max(0, −det)) over the prediction's interior pixels, 0 unless it folds; the truth is ignored.

    Raises:
        ValueError: If a side is shorter than 3 pixels.
    """
    _, y_pred = as_fields(y_true, y_pred)
    return (-_interior_determinants("jacobian", y_pred)).clamp_min(0).mean()


def jacobian_distance(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return the mean squared difference between the determinants of truth and prediction over interior pixels.

    Raises:
        ValueError: If a side is shorter than 3 pixels.
    """
    fields = as_fields(y_true, y_pred)
    truth, prediction = (_interior_determinants("jacobian_distance", field) for field in fields)
    return (truth - prediction).square().mean()


def _interior_determinants(loss: str, dvf: Tensor) -> Tensor:
    """Return det(I + ∇dvf) as (B, H−2, W−2), without the edges, where differences are one-sided."""
    _check_size(loss, dvf, 3)
    return jacobian_determinant(dvf)[:, 1:-1, 1:-1]


def _check_size(loss: str, dvf: Tensor, smallest: int) -> None:
    if min(dvf.shape[-2:]) < smallest:
        size = "×".join(str(side) for side in dvf.shape[-2:])
        raise ValueError(f"{loss}: expected fields of at least {smallest}×{smallest}, got {size}")
