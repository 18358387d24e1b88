"""The measured samples, the truth that they are compared with, and each method's measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, open_dict
from torch import nn
from torch.utils.data import default_collate

from atlalign import losses, metrics, pages
from atlalign.arguments import build
from atlalign.atlas.atlas import Atlas
from atlalign.console import say, track
from atlalign.data.datamodule import RegistrationDataModule, split_samples
from atlalign.data.dataset import RegistrationBatch, RegistrationDataset, complete
from atlalign.errors import InputError
from atlalign.evaluation import report
from atlalign.evaluation.landmarks import Landmarks, landmarks_of
from atlalign.evaluation.measures import (
    Measures,
    Regions,
    Relabelling,
    displacement_measures,
    image_measures,
    landmark_measures,
    levels_of,
    regularity_measures,
)
from atlalign.evaluation.methods import Estimate, Method
from atlalign.evaluation.summary import NETWORK, Row
from atlalign.geometry import warp


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The measured samples and the truth that they are compared with.

    Attributes:
        dataset: All samples of the file.
        samples: The indexes of the measured samples.
        levels: The levels at which regions are measured, as for `Regions`; None measures no regions.
        landmarks: Points known in both images, or None.
        perceptual: Returns the perceptual distance of two images; None skips this measure.
    """

    dataset: RegistrationDataset
    samples: NDArray[np.int64]
    levels: Mapping[str, Relabelling] | None
    landmarks: Landmarks | None
    perceptual: nn.Module | None

    @property
    def atlas(self) -> Atlas:
        """The atlas that the samples are registered to."""
        return self.dataset.atlas

    @classmethod
    def of(cls, config: DictConfig) -> "Trial":
        """Build the objects that the configuration describes, which also finds errors in the files that it names."""
        perceptual = None
        if config.perceptual_weights is not None:
            perceptual = losses.PerceptualLoss(net="alex", backbone_weights=config.perceptual_weights)
        atlas: Atlas = build(config.atlas)
        if config.segmentation and atlas.annotation is None:
            raise atlas.lacks_annotation("set segmentation=false")
        say(atlas.description())
        dataset, samples = _read_data(config, atlas)
        landmarks = None
        if config.landmarks is not None:
            landmarks = landmarks_of(config.landmarks, dataset, samples, split=config.split)
        return cls(
            dataset=dataset,
            samples=samples,
            levels=levels_of(atlas.ontology) if config.segmentation else None,
            landmarks=landmarks,
            perceptual=perceptual,
        )

    def run(self, methods: Mapping[str, Method]) -> list[Row]:
        """Return the measures of each method on each sample."""
        methods[NETWORK](self.batch(int(self.samples[0])))  # the first call of a network takes longer
        rows = []
        for sample in track(self.samples.tolist(), description="evaluating"):
            batch = self.batch(sample)
            regions = self._regions(batch)
            for name, register in methods.items():
                estimate = register(batch)
                _check_finite(estimate, name, sample)
                ids = (int(batch.image_id), int(batch.dataset_id), int(batch.position_um))
                rows.append(Row(sample, *ids, name, self._measure(batch, sample, estimate, regions)))
        return rows

    def batch(self, sample: int) -> RegistrationBatch:
        """Return one sample as a batch."""
        return complete(default_collate([self.dataset[sample]]))

    def views(self, register: Method, rows: Sequence[Row], n: int) -> list[pages.View]:
        """Return `n` samples (all, if there are fewer), registered by the network, from the worst to the best."""
        errors = {r.sample: r.measures["displacement/distance_px"] for r in rows if r.method == NETWORK}
        ranked = sorted(errors, key=lambda sample: -errors[sample])
        chosen = np.unique(np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(int))
        return [self._view(register, ranked[i], errors[ranked[i]]) for i in chosen]

    def _measure(
        self, batch: RegistrationBatch, sample: int, estimate: Estimate, regions: Regions | None
    ) -> Measures:
        dvf, pixel_um = estimate.dvf, self.atlas.pixel_um
        registered = warp(batch.moving, dvf)
        points = self.landmarks and self.landmarks.of(sample, int(batch.image_id))
        groups = {
            "displacement": displacement_measures(batch.dvf, dvf, pixel_um),
            "landmarks": landmark_measures(points, dvf, pixel_um) if points else {},
            "regions": regions.measures(dvf) if regions else {},
            "reference": image_measures(batch.reference, registered, self.perceptual),
            "truth": image_measures(batch.registered, registered, self.perceptual),
            "regularity": regularity_measures(dvf),
            "inverse": {"consistency_px": float(metrics.inverse_consistency(dvf, estimate.inv_dvf))},
            "time": {} if estimate.seconds is None else {"seconds": estimate.seconds},
        }
        return {
            f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()
        }

    def _regions(self, batch: RegistrationBatch) -> Regions | None:
        if self.levels is None:
            return None
        labels = self.atlas.labels(int(batch.position_um))
        return Regions(labels, batch.dvf, self.levels, self.atlas.pixel_um)

    def _view(self, register: Method, sample: int, error_px: float) -> pages.View:
        batch = self.batch(sample)
        registered = warp(batch.moving, register(batch).dvf)
        images = {
            "reference": batch.reference,
            "moving": batch.moving,
            "registered": registered,
            "true image": batch.registered,
        }
        before = float(metrics.vector_distance(batch.dvf, torch.zeros_like(batch.dvf)))
        return report.section_view(
            title=f"sample {sample}: image {int(batch.image_id)}, {int(batch.position_um)} µm",
            caption=f"mean distance to the true field {before:.2f} → {error_px:.2f} px",
            images={name: image[0, 0] for name, image in images.items()},
            labels=None if self.levels is None else self.atlas.labels(int(batch.position_um))[0],
            values={"position (µm)": float(batch.position_um), "distance to the true field (px)": error_px},
        )


def _read_data(config: DictConfig, atlas: Atlas) -> tuple[RegistrationDataset, NDArray[np.int64]]:
    """Return the checked data set, and the indexes of the samples in the split."""
    with open_dict(config.data):
        config.data.return_inverse = bool(config.data.get("return_inverse"))  # null: no measure needs it
    datamodule = build(config.data, atlas=atlas)
    if not isinstance(datamodule, RegistrationDataModule):
        raise InputError(
            "data: expected annotated samples in a file: set data=h5 data.path=FILE, or data=demo"
        )
    datamodule.prepare_data()
    dataset = RegistrationDataset(datamodule.path, atlas, dark_ground=datamodule.dark_ground)
    if config.split == "all":
        return dataset, np.arange(len(dataset))
    train, val = split_samples(
        dataset.image_ids.numpy(),
        train_indexes=datamodule.train_indexes,
        val_indexes=datamodule.val_indexes,
        val_fraction=datamodule.val_fraction,
        seed=datamodule.split_seed,
    )
    return dataset, train if config.split == "train" else val


def _check_finite(estimate: Estimate, method: str, sample: int) -> None:
    for name in ("dvf", "inv_dvf"):
        if not getattr(estimate, name).isfinite().all():
            raise InputError(
                f"sample {sample}: expected finite fields, but {name} of '{method}' holds NaN or infinity"
            )
