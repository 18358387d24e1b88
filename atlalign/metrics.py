"""Measures of a registration.

Measures of fields and images return one value per sample, (B,); those of regions one per region, and those of points
one per point.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor
from torch.linalg import vector_norm

from atlalign.geometry import compose, jacobian_determinant, stays_inside, warp_points

# --- fields -----------------------------------------------------------------------------------------------------------


def vector_distance(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the mean Euclidean distance in pixels between two fields (B, 2, H, W)."""
    # A norm over dim 1 would be a hundred times as slow on a CPU.
    return (true - predicted).square().sum(dim=1).sqrt().mean(dim=(1, 2))


def angular_error(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the mean angle in degrees, 0 to 180, between the vectors (x, y, 1) of two fields (B, 2, H, W).

    The third component, one pixel, defines the angle where a displacement is 0 and keeps it small where both
    displacements are small. Barron et al., *Performance of optical flow techniques*, IJCV 1994.
    """
    (a, b), (c, d) = true.unbind(1), predicted.unbind(1)
    # The arc cosine of the scalar product would round small angles to 0.
    sine = torch.stack([b - d, c - a, a * d - b * c]).square().sum(0).sqrt()
    return torch.atan2(sine, a * c + b * d + 1).rad2deg().mean(dim=(1, 2))


def field_correlation(true: Tensor, predicted: Tensor) -> Tensor:
    """Return Pearson's r of two fields (B, 2, H, W), averaged over both components; 0 for a constant component."""
    components = [correlation(true[:, [i]], predicted[:, [i]]) for i in (0, 1)]
    return torch.stack(components).mean(0)


def r2(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the coefficient of determination of two fields (B, 2, H, W), over all pixels of both components.

    r² = 1 − Σ|true − predicted|² / Σ|true − mean(true)|². 1 is perfect, 0 is no better than the mean of
    the true field everywhere, negative values are worse; NaN if the true field is constant. Components are weighted by
    their variance, like `variance_weighted` in scikit-learn's `r2_score`. Averaged over fields with `field_variance` as
    weights, it is the r² of all their pixels, with each field's own mean as the reference.
    """
    variance = field_variance(true).to(true)
    error = (true - predicted).square().sum(1).mean((1, 2))
    return 1 - error / variance.masked_fill(variance == 0, torch.nan)


def field_variance(dvf: Tensor) -> Tensor:
    """Return the variance of the displacements of a field (B, 2, H, W) in px², summed over both components."""
    return dvf.double().var(dim=(2, 3), correction=0).sum(1)


def folding_fraction(dvf: Tensor) -> Tensor:
    """Return the share of pixels where the field (B, 2, H, W) folds: determinant ≤ 0."""
    return (jacobian_determinant(dvf) <= 0).float().mean(dim=(1, 2))


def log_jacobian_std(dvf: Tensor) -> Tensor:
    """Return the standard deviation of the log determinant of a field (B, 2, H, W).

    Folded pixels have no logarithm and are left out; NaN if all pixels fold.
    """
    logarithms = [sample[sample > 0].log() for sample in jacobian_determinant(dvf)]
    # torch warns at the standard deviation of an empty tensor.
    return torch.stack(
        [log.std(correction=0) if len(log) else log.new_tensor(torch.nan) for log in logarithms]
    )


def inverse_consistency(dvf: Tensor, inv_dvf: Tensor) -> Tensor:
    """Return the mean distance in pixels between a reference point and its image under dvf, then inv_dvf.

    It is the mean of |dvf(q) + inv_dvf(q + dvf(q))|, both (B, 2, H, W), over all q with q + dvf(q) on the image; NaN if
    there are none.
    """
    residual = compose(outer=inv_dvf, inner=dvf).square().sum(1).sqrt()
    inside = stays_inside(dvf)
    return (residual * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2))


# --- images -----------------------------------------------------------------------------------------------------------


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's r of two images (B, 1, H, W); 0 if either is constant."""
    first, second = (image.flatten(1) - image.flatten(1).mean(1, keepdim=True) for image in (first, second))
    norm: Tensor = vector_norm(first, dim=1) * vector_norm(second, dim=1)
    return (first * second).sum(1) / norm.clamp_min(1e-6)


def mutual_information(first: Tensor, second: Tensor, *, bins: int = 64) -> Tensor:
    """Return the mutual information in nats of two images (B, 1, H, W) in [0, 1], from a histogram of bins × bins.

    It is 0 for independent images. Viola & Wells, *Alignment by maximization of mutual information*, IJCV 1997.
    """
    first, second = ((image.flatten(1) * bins).long().clamp(0, bins - 1) for image in (first, second))
    pairs = first * bins + second
    counts = torch.stack([sample.bincount(minlength=bins**2) for sample in pairs]).double()
    of_both = counts / counts.sum(1, keepdim=True)
    joint = of_both.view(-1, bins, bins)
    of_first, of_second = joint.sum(2), joint.sum(1)
    return (_entropy(of_first) + _entropy(of_second) - _entropy(of_both)).float()


def _entropy(shares: Tensor) -> Tensor:
    """Return the entropy in nats of the shares (B, N)."""
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy


# --- points -----------------------------------------------------------------------------------------------------------


def target_registration_error(
    reference_points: Tensor, moving_points: Tensor, dvf: Tensor, *, pixel: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Return the distances (B, N) between predicted and true positions of landmarks in the moving image.

    Args:
        reference_points: The landmarks in the reference, (B, N, 2) as (x, y) in pixels.
        moving_points: The same landmarks in the moving image, (B, N, 2).
        dvf: (B, 2, H, W) in pixels; it predicts where a reference point lies in the moving image.
        pixel: The size of a pixel along x and y in the unit of the result.
    """
    difference = warp_points(reference_points, dvf) - moving_points
    distance: Tensor = vector_norm(difference * difference.new_tensor(pixel), dim=-1)
    return distance


# --- regions ----------------------------------------------------------------------------------------------------------


class Contingency(NamedTuple):
    """The number of pixels with each pair of labels in two label images.

    Attributes:
        region: The ids that occur in either image, (R,), including the background 0.
        pixels: (R, R) counts: the row is the label in the first image, the column the label in the second.
    """

    region: NDArray[Any]
    pixels: NDArray[np.int64]

    def relabelled(self, region: NDArray[Any]) -> "Contingency":
        """Return the table with the new ids `region` (R,); regions that get the same id are merged."""
        found, place = np.unique(region, return_inverse=True)
        pixels = np.zeros((len(found), len(found)), np.int64)
        np.add.at(pixels, (place[:, None], place), self.pixels)
        return Contingency(found, pixels)


class Overlap(NamedTuple):
    """The agreement of two label images for each region that occurs in either, (R,), without the background 0.

    Attributes:
        region: The ids.
        dice: Twice the shared area over the sum of both areas.
        iou: The shared area over the area of the union.
        in_both: Whether the region occurs in both images; otherwise `dice` and `iou` are 0.
    """

    region: NDArray[Any]
    dice: NDArray[np.float64]
    iou: NDArray[np.float64]
    in_both: NDArray[np.bool_]


def contingency(true: NDArray[Any], predicted: NDArray[Any]) -> Contingency:
    """Return the table of two label images of one shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if true.shape != predicted.shape:
        raise ValueError(f"labels: expected one shape, got {true.shape} and {predicted.shape}")
    found, place = np.unique(np.stack([true, predicted]), return_inverse=True)
    n = len(found)
    row, column = place.reshape(2, -1)
    return Contingency(found, np.bincount(row * n + column, minlength=n * n).reshape(n, n))


def overlap(table: Contingency) -> Overlap:
    """Return the overlap of each region."""
    chosen = table.region != 0
    shared = table.pixels.diagonal()[chosen]
    first, second = table.pixels.sum(1)[chosen], table.pixels.sum(0)[chosen]
    return Overlap(
        region=table.region[chosen],
        dice=2 * shared / (first + second),
        iou=shared / (first + second - shared),
        in_both=(first > 0) & (second > 0),
    )


def hausdorff_95(
    true: NDArray[Any], predicted: NDArray[Any], *, pixel: tuple[float, float] = (1.0, 1.0)
) -> dict[int, float]:
    """Return the 95 % Hausdorff distance of each region that occurs in both label images (H, W), without background 0.

    It is the 95th percentile of the distances from each pixel of one outline to the other outline, and the larger of
    both directions.

    Args:
        true: Label image.
        predicted: Label image of the same shape.
        pixel: The size of a pixel along x and y in the unit of the result.
    """
    first, second = _outlines(true, pixel), _outlines(predicted, pixel)
    return {
        region: _hausdorff_95(first[region], second[region]) for region in first.keys() & second.keys() - {0}
    }


def _outlines(labels: NDArray[Any], pixel: tuple[float, float]) -> dict[int, NDArray[np.float64]]:
    """Return, for each label, the pixels (N, 2) that border on another label or on the edge of the image."""
    centre = labels.astype(np.int64)
    padded = np.pad(centre, 1, constant_values=centre.min() - 1)
    beside = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    y, x = np.nonzero(np.any([centre != neighbour for neighbour in beside], axis=0))
    order = np.argsort(centre[y, x], kind="stable")
    found, starts = np.unique(centre[y, x][order], return_index=True)
    points = (np.stack([x, y], axis=1) * np.asarray(pixel))[order]
    return dict(zip(found.tolist(), np.split(points, starts[1:]), strict=True))


def _hausdorff_95(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    there, back = KDTree(second).query(first)[0], KDTree(first).query(second)[0]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))
