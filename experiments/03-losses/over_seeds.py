"""Measures of a sweep's networks on its validation samples, beyond the metrics that runs log.

python over_seeds.py ATLAS.h5 ALEXNET.pth FOLDER…: a Markdown table with one row for each choice of the sweep. It shows
the mean over seeds, with the smallest and largest value in brackets. FOLDER is the folder of a sweep or a run.
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from atlalign import metrics
from atlalign.arguments import build
from atlalign.data.datamodule import DeviceDataModule
from atlalign.data.dataset import RegistrationBatch
from atlalign.evaluation.measures import Regions
from atlalign.geometry import invert
from atlalign.losses import PerceptualLoss
from atlalign.models import load_model
from atlalign.networks import Registration
from atlalign.training.runs import find_runs

Measures = dict[str, float]


class Nothing(nn.Module):
    """The network that leaves each image unchanged."""

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        """Register `moving` (1, 1, H, W) to itself."""
        return Registration(moving, moving.new_zeros(len(moving), 2, *moving.shape[-2:]))


class Judge:
    """Measures networks on the validation samples of a run's configuration, one by one.

    Args:
        config: The run's config.yaml.
        atlas_path: The atlas, with its annotation.
        backbone_weights: AlexNet's, for the perceptual distance.
    """

    def __init__(self, config: Path, atlas_path: str, backbone_weights: str) -> None:
        tree = OmegaConf.load(config)
        tree.atlas.path, tree.atlas.with_annotation = atlas_path, True
        atlas = build(tree.atlas)
        data: DeviceDataModule = build(tree.data, atlas=atlas, batch_size=1, return_inverse=True)
        data.setup()
        self.perceptual = PerceptualLoss(net="alex", backbone_weights=backbone_weights)
        self.samples = [data.complete(batch) for batch in data.val_dataloader()]
        self.labels = [atlas.labels(int(sample.position_um)) for sample in self.samples]
        self.regions = [
            Regions(labels, sample.dvf, {}, atlas.pixel_um)
            for sample, labels in zip(self.samples, self.labels, strict=True)
        ]

    @torch.no_grad()
    def measure(self, network: nn.Module) -> Measures:
        """Return the means over the samples."""
        network.eval()
        rows = [
            self._row(network, *known) for known in zip(self.samples, self.labels, self.regions, strict=True)
        ]
        return {name: fmean(row[name] for row in rows) for name in rows[0]}

    def _row(
        self, network: nn.Module, sample: RegistrationBatch, labels: Tensor, regions: Regions
    ) -> Measures:
        output = network(sample.reference, sample.moving)
        error = (output.dvf - sample.dvf).norm(dim=1)
        regions_found = metrics.contingency(regions.carried(sample.dvf), regions.carried(output.dvf))
        own = (
            {} if output.inv_dvf is None else {"own inverse (px)": _distance(output.inv_dvf, sample.inv_dvf)}
        )
        return {
            "error (px)": float(error.mean()),
            "over tissue": float(error[labels != 0].mean()),
            "Dice": float(metrics.overlap(regions_found).dice.mean()),
            "perceptual": float(self.perceptual(sample.registered, output.registered)),
            "folds (%)": 100 * float(metrics.folding_fraction(output.dvf)),
            "inverted (px)": _distance(invert(output.dvf), sample.inv_dvf),
            **own,
        }


def _distance(dvf: Tensor, true: Tensor | None) -> float:
    assert true is not None
    return float(metrics.vector_distance(true, dvf))


def main(atlas_path: str, backbone_weights: str, *folders: str) -> None:
    runs = [run.folder for run in find_runs(map(Path, folders)) if run.status == "finished"]
    choices = {folder: OmegaConf.load(folder / ".hydra" / "overrides.yaml") for folder in runs}
    shared = set.intersection(*(set(chosen) for chosen in choices.values()))
    judge = Judge(runs[0] / "config.yaml", atlas_path, backbone_weights)
    found: dict[str, list[Measures]] = defaultdict(list, {"nothing": [judge.measure(Nothing())]})
    for folder, chosen in choices.items():
        own = [choice for choice in chosen if choice not in shared and not choice.startswith("seed=")]
        network = load_model(folder / "checkpoints" / "best.ckpt")
        found[", ".join(own)].append(judge.measure(network))
    names = list(dict.fromkeys(name for group in found.values() for name in group[0]))
    print(f"| {' | '.join(['', 'runs', *names])} |\n|---|{'---:|' * (len(names) + 1)}")
    for own_choices, group in sorted(found.items(), key=lambda item: fmean(m["error (px)"] for m in item[1])):
        cells = [_spread([m[name] for m in group if name in m]) for name in names]
        print(f"| {' | '.join([own_choices, str(len(group)), *cells])} |")


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{fmean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main(*sys.argv[1:])
