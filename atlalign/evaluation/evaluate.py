"""Evaluation: a trained network beside baselines on annotated sections, as tables, JSON and a report.

Each sample is measured by itself. Means are over sections: samples that show one section (one `image_id`) are averaged
first. Confidence intervals come from a bootstrap over sections, since samples of one section are not independent.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import default_collate

from atlalign import losses, metrics, pages
from atlalign.arguments import build, check_kind, check_kinds_of
from atlalign.atlas.atlas import Atlas, allen_atlas, file_atlas, phantom_atlas
from atlalign.data.datamodule import RegistrationDataModule, split_samples
from atlalign.data.dataset import RegistrationBatch, RegistrationDataset, complete
from atlalign.errors import InputError, check_numbers, check_size, unknown_name
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
from atlalign.evaluation.methods import Estimate, Method, baseline, network_method
from atlalign.evaluation.report import NETWORK, Row
from atlalign.geometry import warp
from atlalign.io.files import folder_written_whole
from atlalign.models import ModelOrigin, load_model, read_origin
from atlalign.networks.device import chosen_device
from atlalign.training.run import as_list
from atlalign.versions import versions

_KINDS: Mapping[str, Any] = {
    "out": str,
    "split": str,
    "baselines": str | list[str],
    "segmentation": bool,
    "landmarks": str | None,
    "perceptual_weights": str | None,
    "n_viewers": int,
    "n_resamples": int,
    "device": str,
    "allow": str | list[str],
    "seed": int,
}
_SPLITS = ("val", "train", "all")
_LEAST = {"n_viewers": 0, "n_resamples": 1, "seed": 0}
_BYTES_A_RESAMPLE = 2**13  # of the bootstrap draws over some hundred sections
_SPLIT_KEYS = ("val_fraction", "train_indexes", "val_indexes", "split_seed")
# Atlas functions that a checkpoint may call, with plain arguments; its file is not trusted to name anything else.
_ATLASES = {
    f"atlalign.atlas.atlas.{make.__name__}": make for make in (phantom_atlas, file_atlas, allen_atlas)
}
_ATLAS_FILES = ("path", "annotation_path", "ontology_path")
_GIVE_ATLAS = (
    "name the atlas that the sections are registered to with atlas=file atlas.path=FILE or atlas=allen"
)


def evaluate(config: DictConfig) -> Path:
    """Evaluate as `conf/evaluate.yaml` describes and return the folder with tables and report.

    Raises:
        InputError: If the configuration, the model or the data are invalid; then nothing is written.
    """
    # Missing values are reported here by their key; later, a constructor would only report a missing argument.
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_kinds_of(config, _KINDS)
    check_kind("model.path", config.model.path, str)
    origin = read_origin(config.model.path)
    config = _on_an_atlas(_as_trained(config, origin), origin)
    out = Path(config.out).expanduser()
    if out.exists():
        raise InputError(f"out: {out} already exists: choose another folder")
    _check_values(config)
    _check_like_training(config, origin)
    baselines = {name: baseline(name) for name in as_list(config.baselines)}
    network = load_model(config.model.path, allow=as_list(config.allow))
    methods = {NETWORK: network_method(network, chosen_device(config.device)), **baselines}
    trial = _Trial.of(config)
    rows = trial.run(methods)
    views = trial.views(methods[NETWORK], rows, config.n_viewers)
    summaries = report.summarize(rows, n_resamples=config.n_resamples, seed=config.seed)
    with folder_written_whole(out) as folder:
        report.write(folder, _describe(config, trial), rows, summaries, views)
    report.print_table(summaries)
    Console().print(f"tables and report.html are in [bold]{out}[/bold]")
    return out


def _check_values(config: DictConfig) -> None:
    """Check the settings that are not passed to any object, which would check them itself."""
    if config.split not in _SPLITS:
        raise unknown_name("split", config.split, _SPLITS)
    check_numbers(config, _LEAST)
    check_size("n_resamples", [config.n_resamples], _BYTES_A_RESAMPLE)


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """The measured samples and the truth that they are compared with.

    Attributes:
        dataset: All samples of the file.
        samples: The indexes of the measured samples.
        levels: The levels at which regions are measured, as for `Regions`; None measures no regions.
        landmarks: Points known in both images; None if there are none.
        perceptual: The perceptual distance of two images; None to skip it.
    """

    dataset: RegistrationDataset
    samples: NDArray[np.int64]
    levels: Mapping[str, Relabelling] | None
    landmarks: Landmarks | None
    perceptual: nn.Module | None

    @property
    def atlas(self) -> Atlas:
        return self.dataset.atlas

    @classmethod
    def of(cls, config: DictConfig) -> "_Trial":
        """Build the objects that the configuration describes; errors in its files are found here."""
        perceptual = None
        if config.perceptual_weights is not None:
            perceptual = losses.PerceptualLoss(net="alex", backbone_weights=config.perceptual_weights)
        atlas: Atlas = build(config.atlas)
        if config.segmentation and atlas.annotation is None:
            raise InputError(
                f"atlas '{atlas.name}' holds no annotation: name a file of region ids, or set segmentation=false"
            )
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
        """Return `n` samples (or all, if there are fewer) from the network's worst to its best, registered by it."""
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


# --- inputs -----------------------------------------------------------------------------------------------------------


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


def _as_trained(config: DictConfig, origin: ModelOrigin) -> DictConfig:
    """Return the configuration with missing data settings as the network was trained, and print these settings."""
    data = config.data
    found: dict[str, Any] = {}
    if data.image_shape is None:
        if origin.image_shape is None:
            raise InputError(
                f"{config.model.path} does not record the size of its images: set data.image_shape=[HEIGHT,WIDTH]"
            )
        found["image_shape"] = list(origin.image_shape)
    if "dark_ground" in data and data.dark_ground is None:
        trained = origin.config.get("data")
        known = trained if isinstance(trained, Mapping) else {}
        found["dark_ground"] = bool(known.get("dark_ground", True))
    for name, value in found.items():
        print(f"data.{name}={str(value).lower().replace(' ', '')}, as recorded in {config.model.path}")
    return cast(DictConfig, OmegaConf.merge(config, {"data": found}))


def _on_an_atlas(config: DictConfig, origin: ModelOrigin) -> DictConfig:
    """Return the configuration with the network's training atlas if none is configured, and print the choice.

    If the model does not record its atlas, the phantom is used, which only fits sections of the phantom.

    Raises:
        InputError: If the atlas file is missing, or the atlas does not come from this package.
    """
    if "_target_" in config.atlas:
        return config
    trained = origin.config.get("atlas")
    if isinstance(trained, Mapping):
        target, of_whom = str(trained.get("_target_")), f"as recorded in {config.model.path}"
    else:
        trained, target = {}, "atlalign.atlas.atlas.phantom_atlas"
        of_whom = f"since {config.model.path} does not record its atlas"
    if target not in _ATLASES:
        raise InputError(f"atlas: {config.model.path} was trained with {target}: {_GIVE_ATLAS}")
    known = _plain_arguments(trained, _ATLASES[target], str(config.model.path))
    gone = [key for key in _ATLAS_FILES if known.get(key) and not Path(known[key]).expanduser().exists()]
    if gone:
        raise InputError(
            f"atlas: {config.model.path} was trained with {known[gone[0]]}, which is missing: {_GIVE_ATLAS}"
        )
    name = target.rpartition(".")[2].removesuffix("_atlas")
    path = f" atlas.path={known['path']}" if "path" in known else ""
    print(f"atlas={name}{path}, {of_whom}")
    given = {key: value for key, value in config.atlas.items() if key != "with_annotation"}
    of_evaluation = {"image_shape": list(config.data.image_shape), "with_annotation": config.segmentation}
    with open_dict(config):
        config.atlas = {"_target_": target, **known, **of_evaluation, **given}
    return config


def _plain_arguments(
    trained: Mapping[str, Any], make: Callable[..., Atlas], checkpoint: str
) -> dict[str, Any]:
    """Return a configuration's values for the arguments of `make`; only numbers and plain strings are allowed."""
    of_evaluation = ("image_shape", "with_annotation")
    taken = [key for key in inspect.signature(make).parameters if key not in of_evaluation]
    known = {key: trained[key] for key in taken if key in trained}
    for key, value in known.items():
        if not isinstance(value, str | int | float | None) or "${" in str(value):
            raise InputError(f"atlas: {checkpoint} has no plain value for {key}: {_GIVE_ATLAS}")
    return known


def _check_like_training(config: DictConfig, origin: ModelOrigin) -> None:
    """Raise an InputError if the checkpoint was trained at another size, or on another split of the same data.

    Otherwise, training samples would be mistaken for samples that the network has never seen.
    """
    shape = tuple(config.data.image_shape)
    if origin.image_shape not in (None, shape):
        height, width = origin.image_shape
        raise InputError(
            f"data.image_shape is {shape}, but {config.model.path} was trained at {origin.image_shape}: "
            f"set data.image_shape=[{height},{width}]"
        )
    trained = origin.config.get("data")
    data = cast(dict[str, Any], OmegaConf.to_container(config.data, resolve=True))
    if not isinstance(trained, Mapping) or not _same_file(trained, data):
        return
    if config.split == "all":
        print(f"split=all: the measured samples include the training samples of {config.model.path}")
        return
    for key in _SPLIT_KEYS:
        if key in trained and trained[key] != data[key]:
            raise InputError(
                f"data.{key} is {data[key]}, but {config.model.path} was trained on these data with {trained[key]}: "
                f"set data.{key}={trained[key]}, or split=all"
            )


def _same_file(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two data configurations read the same file, or draw the same demo data."""
    paths = [Path(data.get("path") or "").expanduser().resolve() for data in (one, other)]
    return one.get("_target_") == other.get("_target_") and paths[0] == paths[1]


def _check_finite(estimate: Estimate, method: str, sample: int) -> None:
    for name in ("dvf", "inv_dvf"):
        if not getattr(estimate, name).isfinite().all():
            raise InputError(
                f"sample {sample}: expected finite fields, but {name} of '{method}' holds NaN or infinity"
            )


# --- outputs ----------------------------------------------------------------------------------------------------------


def _describe(config: DictConfig, trial: _Trial) -> dict[str, Any]:
    """Return a description from which the evaluation can be repeated."""
    return {
        "model": str(config.model.path),
        "data": str(trial.dataset.path),
        "split": config.split,
        "atlas": trial.atlas.name,
        "image_shape": list(trial.atlas.image_shape),
        "pixel_um": list(trial.atlas.pixel_um),
        "n_samples": len(trial.samples),
        "n_sections": len(np.unique(trial.dataset.image_ids.numpy()[trial.samples])),
        "versions": versions(),
        "config": OmegaConf.to_container(config, resolve=True),
    }
