"""Measures of a registration, each per sample: (B,)."""

from torch import Tensor
from torch.linalg import vector_norm

from atlalign.geometry import jacobian_determinant


def vector_distance(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the mean Euclidean distance in pixels between two fields (B, 2, H, W)."""
    # Not a norm over dim 1, which takes a hundred times as long on a CPU.
    return (true - predicted).square().sum(dim=1).sqrt().mean(dim=(1, 2))


def folding_fraction(dvf: Tensor) -> Tensor:
    """Return the share of pixels where the field (B, 2, H, W) folds: determinant ≤ 0."""
    return (jacobian_determinant(dvf) <= 0).float().mean(dim=(1, 2))


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's r of two images (B, 1, H, W); 0 where one of them is constant."""
    first, second = (image.flatten(1) - image.flatten(1).mean(1, keepdim=True) for image in (first, second))
    norm: Tensor = vector_norm(first, dim=1) * vector_norm(second, dim=1)
    return (first * second).sum(1) / norm.clamp_min(1e-6)
