"""The measures of an evaluation, and their means over sections.

Samples that show one section (one `image_id`) are averaged before the mean over sections. Confidence intervals come
from a bootstrap over sections, since samples of one section are not independent. r² is pooled: its mean is weighted by
the variance of each true field. Otherwise, sections with tiny displacements would count as much as others.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from atlalign.evaluation.measures import Measures

NETWORK = "network"
"""The name of the evaluated network among the methods."""

METRICS = {
    "displacement/distance_px": "vector distance (px)",
    "displacement/distance_um": "vector distance (µm)",
    "displacement/angular_error_deg": "angular error (°)",
    "displacement/correlation": "correlation with the true field",
    "displacement/r2": "r² of the true field",
    "landmarks/tre_px": "landmark error TRE (px)",
    "landmarks/tre_um": "landmark error TRE (µm)",
    "landmarks/rtre": "relative landmark error rTRE",
    "regions/dice": "Dice of regions",
    "regions/iou": "IoU of regions",
    "regions/hd95_um": "HD95 of regions (µm)",
    "regions/lost": "share of regions lost or added",
    "reference/mse": "MSE to the reference",
    "reference/mae": "MAE to the reference",
    "reference/psnr": "PSNR to the reference (dB)",
    "reference/ssim": "SSIM with the reference",
    "reference/ncc": "NCC with the reference",
    "reference/mutual_information": "mutual information with the reference",
    "reference/perceptual": "perceptual distance to the reference",
    "truth/mse": "MSE to the true image",
    "truth/mae": "MAE to the true image",
    "truth/psnr": "PSNR to the true image (dB)",
    "truth/ssim": "SSIM with the true image",
    "truth/ncc": "NCC with the true image",
    "truth/mutual_information": "mutual information with the true image",
    "truth/perceptual": "perceptual distance to the true image",
    "regularity/folding": "share of pixels that fold",
    "regularity/log_jacobian_std": "spread of the log-Jacobian",
    "inverse/consistency_px": "inverse consistency (px)",
    "time/seconds": "time per section (s)",
}
"""The measures in the order of the tables. The true image is the moving image warped by the true field."""

ALL = "all"
"""The name of all data sets together in a summary."""

_WEIGHTED_BY = {"displacement/r2": "displacement/variance_px2"}
"""Measures with weighted means, and the measure of the same sample that is their weight."""


class Row(NamedTuple):
    """The measures of one method on one sample."""

    sample: int
    image_id: int
    dataset_id: int
    position_um: int
    method: str
    measures: Measures


class Summary(NamedTuple):
    """The mean of a measure over sections; `low` and `high` bound it with 95 % confidence, NaN for a single section."""

    dataset: str
    method: str
    metric: str
    mean: float
    low: float
    high: float
    n_sections: int


def summarize(rows: Sequence[Row], *, n_resamples: int = 2000, seed: int = 0) -> list[Summary]:
    """Return the mean over sections of each measure and method, for all rows and for each of several data sets.

    A measure that is undefined for all sections has no summary.
    """
    by_dataset: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_dataset[str(row.dataset_id)].append(row)
    by_dataset = {ALL: list(rows), **(by_dataset if len(by_dataset) > 1 else {})}
    return [
        Summary(dataset, method, metric, *_interval(means, n_resamples, seed), len(means))
        for dataset, of_dataset in by_dataset.items()
        for (method, metric), means in _section_means(of_dataset).items()
    ]


def _section_means(rows: Iterable[Row]) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Return the section means by method and measure, without undefined values.

    Each array is (sections, 2): the weighted value, and the weight.
    """
    pairs: dict[tuple[str, str], dict[int, list[tuple[float, float]]]]
    pairs = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for metric, value in row.measures.items():
            if not math.isnan(value):
                weight = row.measures[_WEIGHTED_BY[metric]] if metric in _WEIGHTED_BY else 1.0
                pairs[row.method, metric][row.image_id].append((weight * value, weight))
    return {key: np.array([np.mean(v, axis=0) for v in sections.values()]) for key, sections in pairs.items()}


def _interval(means: NDArray[np.float64], n_resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the weighted mean, and its 95 % bounds by the percentile bootstrap."""
    values, weights = means.T
    mean = float(_weighted_mean(values, weights))
    if len(values) < 2:
        return mean, math.nan, math.nan
    found = bootstrap(
        (values, weights), _weighted_mean, n_resamples=n_resamples, method="percentile", paired=True, rng=seed
    )
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def _weighted_mean(values: NDArray[Any], weights: NDArray[Any], axis: int = -1) -> Any:
    return values.sum(axis) / weights.sum(axis)
