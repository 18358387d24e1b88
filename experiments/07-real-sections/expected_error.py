"""The error to expect of a registration, place by place: fitted on sections with even numbers, tested on odd ones.

Each section is registered under a known warp. `atlalign.registration.expected_error` predicts the error of each pixel,
which is the disagreement with the unwarped registration (a, d) or the distance to the true field (c, d). The fit
minimises the sum of absolute differences of logarithms, so half of the errors lie below the prediction.
"""

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlalign.atlas.atlas import Atlas, file_atlas
from atlalign.atlas.section_lists import read_list
from atlalign.data.demo import tissue_planes
from atlalign.geometry import compose
from atlalign.io.files import fingerprint
from atlalign.models import SHIPPED_MODEL
from atlalign.registration.attempt import network_field
from atlalign.registration.expected_error import Calibration, disagreements_um
from atlalign.registration.network import TrainedNetwork
from atlalign.registration.registered import lengths_um
from pairs import STATES, Pair, known_warp, read_stain, real_pair, stained_pair, synthetic_pair, warped_pair

PARTS = {
    "a": "(a) real sections, known warps",
    "c": "(c) synthetic contrasts, exact truth",
    "d": "(d) Nissl, against the unwarped registration",
    "D": "(d) Nissl, nominal truth",
}
FITTED = "acd"
_LARGE_UM = 200.0
_FLOOR_UM = 5.0
_STRIDE = 3
_GROUPS = 5

Array = NDArray[np.float64]


class Sample(NamedTuple):
    """Pixels of one registration: the part, the section's number, its disagreements and its errors in µm."""

    part: str
    number: int
    views_um: Array
    return_um: Array
    error_um: Array


class Networks(NamedTuple):
    """The network without its last pass, and the same without mirrored images."""

    full: nn.Module
    light: nn.Module

    def field(self, pair: Pair) -> Tensor:
        """Return the field that registers a pair."""
        with torch.inference_mode():
            return network_field(self.full, pair.reference.image, pair.moving)


# --- samples ----------------------------------------------------------------------------------------------------------


def every_third(mask: Tensor) -> NDArray[np.bool_]:
    """Return the pixels of a mask (H, W) that count: neighbours say the same."""
    chosen = torch.zeros_like(mask)
    chosen[1::_STRIDE, 1::_STRIDE] = mask[1::_STRIDE, 1::_STRIDE]
    return chosen.numpy()


def error_um(pair: Pair, dvf: Tensor, true: Tensor, mask: Tensor) -> Array:
    """Return the distances of two fields at the pixels that count."""
    return lengths_um(dvf - true, pair.reference.grid).numpy()[every_third(mask)].astype(np.float64)


def sampled(
    part: str, number: int, networks: Networks, pair: Pair, dvf: Tensor, true: Tensor, mask: Tensor
) -> Sample:
    """Return a sample of a registration `dvf` whose field should be `true`."""
    with torch.inference_mode():
        back = network_field(networks.full, pair.moving, pair.reference.image)
        return_um = lengths_um(compose(back, dvf), pair.reference.grid)
        found = disagreements_um(networks.light, pair.reference, pair.moving, dvf, return_um)
    views_um, return_px = (image[every_third(mask)].astype(np.float64) for image in found)
    return Sample(part, number, views_um, return_px, error_um(pair, dvf, true, mask))


def real_samples(
    atlas: Atlas, path: Path, size: tuple[int, int], networks: Networks, n_warps: int
) -> Iterator[Sample]:
    """Yield samples of part (a)."""
    for number, listed in enumerate(read_list(path)):
        pair = real_pair(atlas, listed, size)
        plain = networks.field(pair)
        for warp_number in range(n_warps):
            known = known_warp(size, listed.identity.image_id + 10_000 * warp_number)
            bent = warped_pair(pair, known)
            found = networks.field(bent)
            # compose(known, found) should be the plain field: the difference is the error of both together.
            true = found - compose(known, found) + plain
            yield sampled("a", number, networks, bent, found, true, pair.reference.tissue)


def atlas_samples(
    atlas: Atlas, stain: Tensor, size: tuple[int, int], networks: Networks, n_planes: int
) -> Iterator[Sample]:
    """Yield samples of parts (c) and (d)."""
    planes = tissue_planes(atlas)
    places = np.linspace(0, len(planes) - 1, n_planes + 2).round().astype(int)[1:-1]
    for number, plane in enumerate(planes[places].tolist()):
        true = known_warp(size, 1000 + number)
        pair = synthetic_pair(atlas, plane, true, 1000 + number)
        yield sampled("c", number, networks, pair, networks.field(pair), true, pair.reference.tissue)
        true = known_warp(size, 2000 + number)
        for state in STATES:
            still, _ = stained_pair(atlas, stain, plane, state, torch.zeros_like(true), 2000 + number)
            pair, shown = stained_pair(atlas, stain, plane, state, true, 2000 + number)
            found, mask = networks.field(pair), pair.reference.tissue & (shown[0, 0] > 0)
            again = compose(true, networks.field(still))
            sample = sampled("d", number, networks, pair, found, again, mask)
            yield sample
            yield sample._replace(part="D", error_um=error_um(pair, found, true, mask))


# --- the fit ----------------------------------------------------------------------------------------------------------


def logs(um: Array) -> Array:
    return np.log(um + _FLOOR_UM)


def fitted(samples: list[Sample]) -> Calibration:
    """Return the calibration with the least sum of absolute differences of logarithms; each part counts the same."""
    parts = [sample.part for sample in samples]
    rows = np.concatenate(
        [np.stack([np.ones_like(s.views_um), logs(s.views_um), logs(s.return_um)], 1) for s in samples]
    )
    values = np.concatenate([logs(sample.error_um) for sample in samples])
    weights = np.concatenate(
        [np.full(len(s.error_um), 1 / parts.count(s.part) / len(s.error_um)) for s in samples]
    )
    solution, now = np.zeros(3), weights
    for _ in range(60):  # iteratively reweighted least squares
        root = np.sqrt(now)[:, None]
        solution = np.linalg.lstsq(rows * root, values * root[:, 0], rcond=None)[0]
        now = weights / np.maximum(np.abs(values - rows @ solution), 0.02)
    return Calibration(*(round(float(number), 3) for number in solution))


def roc_area(score: Array, is_bad: NDArray[np.bool_]) -> float:
    """Return the probability that a bad pixel has a larger score than a good one."""
    ranks = np.argsort(np.argsort(score))
    bad, good = int(is_bad.sum()), int((~is_bad).sum())
    return float((ranks[is_bad].sum() - bad * (bad - 1) / 2) / (bad * good)) if bad and good else float("nan")


_COLUMNS = (
    "odd sections",
    "median error, µm",
    "share below the prediction",
    "error / prediction, by fifths",
    "larger than 200 µm",
    "area under the ROC curve",
)


def table(samples: list[Sample], calibration: Calibration) -> str:
    """Return, a row a part, how the predictions agree with the errors."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---|---:|---:|---|---:|---:|"]
    for part, title in PARTS.items():
        rows = [sample for sample in samples if sample.part == part]
        error = np.concatenate([sample.error_um for sample in rows])
        said = np.concatenate([calibration.error_um(row.views_um, row.return_um) for row in rows])
        is_large = error > _LARGE_UM
        cells = (title, f"{np.median(error):.0f}", f"{(error < said).mean():.2f}", by_fifths(error, said))
        lines.append(f"| {' | '.join(cells)} | {is_large.mean():.1%} | {roc_area(said, is_large):.2f} |")
    return "\n".join(lines)


def by_fifths(error: Array, said: NDArray[Any]) -> str:
    """Return the median error as a share of the median prediction, from the lowest fifth of predictions up."""
    edges = np.quantile(said, np.linspace(0, 1, _GROUPS + 1))
    groups = [(said >= low) & (said <= high) for low, high in pairwise(edges)]
    medians = [(float(np.median(error[group])), float(np.median(said[group]))) for group in groups]
    return ", ".join(f"{true / predicted:.2f} at {predicted:.0f}" for true, predicted in medians)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--atlas", type=Path, required=True, help="an h5 file with template and annotation")
    add("--sections", type=Path, required=True, help="the list of sections (.json of QuickNII or DeepSlice)")
    add(
        "--stain",
        default="nissl_100um",
        metavar="DATASET",
        help="a stained volume in the atlas's file, of the same box",
    )
    add("--model", type=Path, default=SHIPPED_MODEL, help="a model file (default: the one that ships)")
    add("--warps", type=int, default=3, help="known warps of each real section (default: %(default)s)")
    add("--planes", type=int, default=16, help="of the atlas, in parts (c) and (d) (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    atlas = file_atlas(options.atlas)
    trained = TrainedNetwork.load(options.model, device="cpu")
    assert trained.module is not None
    assert trained.one_sided is not None
    size = trained.image_shape
    networks = Networks(trained.module, trained.one_sided)
    samples = [
        *real_samples(atlas, options.sections, size, networks, options.warps),
        *atlas_samples(atlas, read_stain(options.atlas, options.stain), size, networks, options.planes),
    ]
    even = [sample for sample in samples if sample.number % 2 == 0 and sample.part in FITTED]
    calibration = fitted(even)
    print(f'"{fingerprint(options.model)}": {calibration}')
    print(table([sample for sample in samples if sample.number % 2], calibration))


if __name__ == "__main__":
    main()
