"""Measures of a registration by group: regions, images, displacements, landmarks, regularity."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from atlalign import losses, metrics
from atlalign.atlas.ontology import Ontology
from atlalign.geometry import compose, invert, stays_inside, warp

Measures = dict[str, float]
"""Values by name, those of regions also by depth; NaN if a measure is not defined."""

Relabelling = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps region ids (N,) to the ids (N,) that they are counted as."""


def levels_of(ontology: Ontology | None) -> dict[str, Relabelling]:
    """Return the levels at which regions are measured: the regions themselves, and their ancestors at each depth."""
    levels: dict[str, Relabelling] = {"": lambda ids: ids}
    if ontology is not None:
        for depth in range(1, ontology.depth + 1):
            levels[f"/depth_{depth}"] = partial(ontology.at_depth, depth=depth)
    return levels


class Regions:
    """The regions of one section according to the true field.

    A field is judged by the labels that the section's true regions have after registration. The reference's labels are
    mapped to the section by the inverse of the true field, and back by the judged field. Both maps are composed first,
    so that labels are interpolated only once. The result is compared with the labels that the true field itself maps
    back. The truth therefore has Dice 1, even if parts of the reference lie outside the section. The judged field need
    not have an inverse.

    Args:
        labels: The reference's region ids (1, H, W).
        true_dvf: The true field (1, 2, H, W).
        levels: Functions that map labels to a level of regions, by the suffix of the measures' names at this level.
        pixel_um: The size of a pixel along x and y.
    """

    def __init__(
        self,
        labels: Tensor,
        true_dvf: Tensor,
        levels: Mapping[str, Relabelling],
        pixel_um: tuple[float, float],
    ) -> None:
        self._labels = labels[None]
        self._levels = levels
        self._pixel_um = pixel_um
        self._true_inverse = invert(true_dvf)
        self._true = self.carried(true_dvf)

    def carried(self, dvf: Tensor) -> NDArray[Any]:
        """Return the labels (H, W) that a field maps back; 0 where it points outside the section."""
        there_and_back = compose(outer=self._true_inverse, inner=dvf)
        labels = warp(self._labels, there_and_back, mode="nearest", padding_mode="border")
        return (labels[0, 0] * stays_inside(dvf)[0]).numpy()

    def measures(self, dvf: Tensor) -> Measures:
        """Return the means over regions, including the overlaps at each level; NaN if there is no region."""
        labels = self.carried(dvf)
        table = metrics.contingency(self._true, labels)
        values = {"hd95_um": _mean(metrics.hausdorff_95(self._true, labels, pixel=self._pixel_um).values())}
        for suffix, level in self._levels.items():
            found = metrics.overlap(table.relabelled(level(table.region)))
            values[f"dice{suffix}"] = _mean(found.dice)
            values[f"iou{suffix}"] = _mean(found.iou)
            values[f"lost{suffix}"] = _mean(~found.in_both)
        return values


def image_measures(true: Tensor, image: Tensor, perceptual: nn.Module | None = None) -> Measures:
    """Return the similarity of two images (1, 1, H, W) in [0, 1].

    `ncc` is the mean squared correlation in windows of 9×9, as in the loss `ncc_9`.
    """
    values = {
        "mse": losses.mse(true, image),
        "mae": losses.mae(true, image),
        "psnr": -losses.psnr(true, image),
        "ssim": -losses.ssim(true, image),
        "ncc": -losses.ncc(true, image, window=9),
        "mutual_information": metrics.mutual_information(true, image),
    }
    if perceptual is not None:
        values["perceptual"] = perceptual(true, image)
    return {name: float(value) for name, value in values.items()}


def displacement_measures(true: Tensor, dvf: Tensor, pixel_um: tuple[float, float]) -> Measures:
    """Return the errors of a field (1, 2, H, W) relative to the true one, and the weight of r²."""
    size = true.new_tensor(pixel_um).view(1, 2, 1, 1)
    values = {
        "distance_px": metrics.vector_distance(true, dvf),
        "distance_um": metrics.vector_distance(true * size, dvf * size),
        "angular_error_deg": metrics.angular_error(true, dvf),
        "correlation": metrics.field_correlation(true, dvf),
        "r2": metrics.r2(true, dvf),
        "variance_px2": metrics.field_variance(true),
    }
    return {name: float(value) for name, value in values.items()}


def regularity_measures(dvf: Tensor) -> Measures:
    """Return the fraction of a field (1, 2, H, W) that folds, and the spread of its local stretching."""
    return {
        "folding": float(metrics.folding_fraction(dvf)),
        "log_jacobian_std": float(metrics.log_jacobian_std(dvf)),
    }


def landmark_measures(points: tuple[Tensor, Tensor], dvf: Tensor, pixel_um: tuple[float, float]) -> Measures:
    """Return the mean target registration errors; `rtre` is relative to the image's diagonal.

    Borovec et al., *ANHIR: Automatic non-rigid histological image registration challenge*, IEEE TMI 2020.
    """
    in_pixels = float(metrics.target_registration_error(*points, dvf).mean())
    in_um = float(metrics.target_registration_error(*points, dvf, pixel=pixel_um).mean())
    return {"tre_px": in_pixels, "tre_um": in_um, "rtre": in_pixels / math.hypot(*dvf.shape[-2:])}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return float(np.mean(listed)) if listed else math.nan
