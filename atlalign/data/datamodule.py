"""The data modules, which split samples into training and validation, and load them as batches."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import suggested_max_num_workers
from torch.utils.data import DataLoader, Dataset, default_collate

from atlalign.atlas.atlas import PHANTOM, Atlas
from atlalign.data import schema
from atlalign.data.augmenter_kinds import BatchAugmenter, ImageAugmenter, as_augmenter
from atlalign.data.dataset import RawSample, RegistrationBatch, RegistrationDataset, SeededSampler, complete
from atlalign.errors import (
    OF_NETWORK,
    InputError,
    check_numbers,
    check_processes,
    checked_shape,
    unknown_name,
)
from atlalign.io.files import fingerprint

Indexes = Sequence[int] | str | Path

_MOST_WORKERS = 8  # per process: enough to keep the fastest GPU busy


class DeviceDataModule(pl.LightningDataModule, ABC):
    """The common base of the data modules: samples that become batches on the device.

    A subclass defines `setup`, which sets `train_dataset`, `val_dataset` and the indexes of the samples in use,
    `train_split` and `val_split`. It also defines `complete`, which makes the batch.

    Args:
        atlas: The atlas at the working size.
        image_shape: (H, W) of the batches.
        batch_size: Samples per step. Training drops the last partial batch of an epoch.
        shuffle: Draw a new order in each epoch.
        num_workers: Number of loader processes; 0 loads in the training process. None means 0 on a CPU, where training
            itself needs the cores. On a GPU it means the number of free cores, at most 8.
        multiprocessing_context: How workers start: "fork", "spawn", "forkserver", or None for the system's default.
        return_inverse: Load the inverse fields too, for networks that predict them.
        augment: Augmenters for training batches under the keys "moving" and "reference", in any form that
            `atlalign.data.augmenter_kinds.as_augmenter` accepts.
        split_seed: Seed of the validation split. It is separate from `seed`, so that the runs of a sweep over `seed`
            are comparable.
        seed: Seed of the order of samples and of augmentation.
    """

    train_dataset: Dataset[Any]
    val_dataset: Dataset[Any]
    train_split: np.ndarray
    val_split: np.ndarray

    def __init__(
        self,
        *,
        atlas: Atlas,
        image_shape: Sequence[int] = (320, 456),
        batch_size: int = 4,
        shuffle: bool = True,
        num_workers: int | None = None,
        multiprocessing_context: str | None = None,
        return_inverse: bool = False,
        augment: Mapping[str, Any] | None = None,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # All machines of a run see the same files, so one process prepares them.
        self.prepare_data_per_node = False
        shape = checked_shape("data.image_shape", image_shape, bytes_a_pixel=OF_NETWORK)
        if shape != atlas.image_shape:
            raise InputError(
                f"data.image_shape: expected {atlas.image_shape}, the size of the atlas, got {shape}"
            )
        workers = 0 if num_workers is None else num_workers
        given = {"batch_size": batch_size, "num_workers": workers, "split_seed": split_seed, "seed": seed}
        least = {"data.batch_size": 1, "data.num_workers": 0, "data.split_seed": 0, "data.seed": 0}
        check_numbers({f"data.{name}": value for name, value in given.items()}, least)
        check_processes("data.num_workers", workers)
        if multiprocessing_context and multiprocessing_context not in get_all_start_methods():
            raise unknown_name(
                "data.multiprocessing_context", multiprocessing_context, get_all_start_methods()
            )
        self.atlas = atlas
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.multiprocessing_context = multiprocessing_context
        self.return_inverse = return_inverse
        self.split_seed = split_seed
        self.seed = seed
        self.augmenters = {
            name: as_augmenter(augmenter, name=f"augment.{name}")
            for name, augmenter in (augment or {}).items()
        }

    @abstractmethod
    def complete(
        self,
        batch: Any,
        *,
        moving_augmenter: BatchAugmenter | None = None,
        reference_augmenter: BatchAugmenter | None = None,
    ) -> RegistrationBatch:
        """Return the complete batch of collated samples, on the same device."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training batches, which the device completes later; a resumed run continues where it stopped."""
        epoch, n_batches = self._place()
        sampler = self._sampler(
            self.train_split, shuffle=self.shuffle, even=True, epoch=epoch, start=n_batches * self.batch_size
        )
        return self._loader(self.train_dataset, sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches, which are never augmented or shuffled."""
        return self._loader(self.val_dataset, self._sampler(self.val_split, shuffle=False), drop_last=False)

    def examples(self, n: int) -> RegistrationBatch:
        """Return a batch of `n` validation samples, or of all if there are fewer, spread evenly over the split."""
        chosen = np.unique(np.linspace(0, len(self.val_split) - 1, n).round().astype(int))
        samples = [self.val_dataset[int(self.val_split[i])] for i in chosen]
        return self.complete(default_collate(samples))

    def fingerprints(self) -> dict[str, str]:
        """Return the SHA-256 of each source of the samples, by name; call `prepare_data` first."""
        volumes = (self.atlas.template, self.atlas.annotation)
        atlas = hashlib.sha256(f"{self.atlas.spacing_um:g}".encode())
        for volume in volumes:
            atlas.update(b"" if volume is None else np.ascontiguousarray(volume.numpy()).data)
        return {"atlas": atlas.hexdigest()}

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> RegistrationBatch:
        """Complete the batch on the device; Lightning calls this for every batch."""
        trainer = self.trainer
        augmenters = {name: self._batched(name) for name in ("moving", "reference")}
        if trainer is None or not trainer.training or not any(augmenters.values()):
            return self.complete(batch)
        # The draw depends only on seed, step and process, so a resumed run continues with the same numbers.
        step = trainer.fit_loop.total_batch_idx + 1
        draw_seed = np.random.SeedSequence((self.seed, step, trainer.global_rank)).generate_state(1)[0]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(draw_seed))
            return self.complete(
                batch, moving_augmenter=augmenters["moving"], reference_augmenter=augmenters["reference"]
            )

    def _per_image(self, name: str) -> ImageAugmenter | None:
        augmenter = self.augmenters.get(name)
        return augmenter if isinstance(augmenter, ImageAugmenter) else None

    def _batched(self, name: str) -> BatchAugmenter | None:
        augmenter = self.augmenters.get(name)
        return augmenter if isinstance(augmenter, BatchAugmenter) else None

    def _sampler(self, indexes: np.ndarray, **options: Any) -> SeededSampler:
        rank, world_size = self._processes()
        return SeededSampler(indexes.tolist(), seed=self.seed, rank=rank, world_size=world_size, **options)

    def _loader(self, dataset: Dataset[Any], sampler: SeededSampler, *, drop_last: bool) -> DataLoader[Any]:
        num_workers = self._workers()
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=num_workers,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=num_workers > 0,
            multiprocessing_context=self.multiprocessing_context if num_workers else None,
        )

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if self.trainer is None or self.trainer.strategy.root_device.type == "cpu":
            return 0
        return min(_MOST_WORKERS, suggested_max_num_workers(self.trainer.num_devices))

    def _check_enough_to_train(self, origin: str) -> None:
        """Raise an InputError unless each process can fill a batch and has a sample to validate."""
        n_processes = self._processes()[1]
        if len(self.train_split) < self.batch_size * n_processes:
            raise InputError(
                f"data.batch_size: expected at least {self.batch_size * n_processes} training samples, "
                f"{self.batch_size} for each of {n_processes} process(es), found {origin}"
            )
        if len(self.val_split) < n_processes:
            raise InputError(
                f"expected a validation sample for each of {n_processes} processes, found {len(self.val_split)}"
            )

    def _place(self) -> tuple[int, int]:
        """Return the epoch to train next, and the number of its batches that a stopped run has already used."""
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        within_epoch = loop.epoch_progress.current.ready > self.trainer.current_epoch
        return self.trainer.current_epoch, loop.epoch_loop.batch_progress.current.ready if within_epoch else 0

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


class RegistrationDataModule(DeviceDataModule):
    """Batches of an h5 data set, split so that no image is used for both training and validation.

    Images and fields are resized to the size of the atlas.

    Args:
        path: The h5 file (`atlalign validate FILE` checks it).
        val_fraction: Fraction of the image_ids that are used for validation, if no indexes are given.
        train_indexes: Indexes of the training samples, a list or an .npy file; None for all that share no image with
            the validation samples.
        val_indexes: Indexes of the validation samples, likewise.
        dark_ground: Convert dark tissue on a bright slide to bright on dark, as `atlalign register` does; None means
            False.
        others: The arguments of `DeviceDataModule`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        val_fraction: float = 0.2,
        train_indexes: Indexes | None = None,
        val_indexes: Indexes | None = None,
        dark_ground: bool | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        if not 0 < val_fraction < 1:
            raise InputError(f"data.val_fraction: expected a share between 0 and 1, got {val_fraction}")
        self.path = Path(path).expanduser()
        self.val_fraction = val_fraction
        self.train_indexes = train_indexes
        self.val_indexes = val_indexes
        self.dark_ground = bool(dark_ground)

    def prepare_data(self) -> None:
        """Check the file; Lightning calls this in one process.

        Raises:
            InputError: If the file is invalid, or pairs real sections with the phantom atlas.
        """
        schema.check_once(self.path, self.atlas.extent_um)
        if self.atlas.name == PHANTOM != schema.atlas_of(self.path):
            raise InputError(
                f"{self.path}: expected sections of the phantom, a synthetic brain: name the atlas that your sections "
                "are registered to, with atlas=allen or atlas=file atlas.path=FILE"
            )

    def setup(self, stage: str | None = None) -> None:
        """Split the samples; Lightning calls this in each process."""
        if hasattr(self, "train_dataset"):
            return
        self.train_dataset = self._dataset(
            moving_augmenter=self._per_image("moving"), reference_augmenter=self._per_image("reference")
        )
        self.val_dataset = dataset = self._dataset()
        self.train_split, self.val_split = split_samples(
            dataset.image_ids.numpy(),
            train_indexes=self.train_indexes,
            val_indexes=self.val_indexes,
            val_fraction=self.val_fraction,
            seed=self.split_seed,
        )
        self._check_enough_to_train(
            f"{len(self.train_split)} of {len(dataset)} samples of {self.path} for training"
        )

    def fingerprints(self) -> dict[str, str]:
        """Return the SHA-256 of the atlas at the working size and of the file."""
        return {**super().fingerprints(), "file": fingerprint(self.path)}

    def complete(
        self,
        batch: RawSample,
        *,
        moving_augmenter: BatchAugmenter | None = None,
        reference_augmenter: BatchAugmenter | None = None,
    ) -> RegistrationBatch:
        """Return `atlalign.data.dataset.complete` of the batch."""
        return complete(batch, moving_augmenter=moving_augmenter, reference_augmenter=reference_augmenter)

    def _dataset(self, **augmenters: ImageAugmenter | None) -> RegistrationDataset:
        return RegistrationDataset(
            self.path,
            self.atlas,
            return_inverse=self.return_inverse,
            dark_ground=self.dark_ground,
            **augmenters,
        )


def split_samples(
    image_ids: np.ndarray,
    *,
    train_indexes: Indexes | None = None,
    val_indexes: Indexes | None = None,
    val_fraction: float = 0.2,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indexes of the training and validation samples, which never share an image_id.

    If neither split is given, a fraction `val_fraction` of the image_ids, drawn by `seed`, is used for validation. If
    only one is given, the other consists of all samples of other images.

    Raises:
        InputError: If there is no sample with a given index, the given splits share images, or a split is empty.
    """
    train = None if train_indexes is None else _read_indexes(train_indexes, len(image_ids), "train_indexes")
    val = None if val_indexes is None else _read_indexes(val_indexes, len(image_ids), "val_indexes")
    if train is None and val is None:
        val = np.flatnonzero(np.isin(image_ids, _draw_images(image_ids, val_fraction, seed)))
    if train is None:
        train = np.flatnonzero(~np.isin(image_ids, image_ids[val]))
    elif val is None:
        val = np.flatnonzero(~np.isin(image_ids, image_ids[train]))
    assert val is not None
    shared = np.intersect1d(image_ids[train], image_ids[val])
    if shared.size:
        shown = ", ".join(map(str, shared[:5]))
        raise InputError(
            f"train_indexes and val_indexes: expected no common image, found {shared.size} common image_id(s) ({shown})"
        )
    for name, split in (("training", train), ("validation", val)):
        if not split.size:
            raise InputError(
                f"expected samples for {name}, found none among {len(image_ids)} samples of "
                f"{len(np.unique(image_ids))} image(s)"
            )
    return train, val


def _draw_images(image_ids: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    images = np.unique(image_ids)
    n_drawn = min(max(1, round(fraction * len(images))), len(images) - 1)
    return np.random.default_rng(seed).permutation(images)[:n_drawn]


def _read_indexes(indexes: Indexes, n_samples: int, name: str) -> np.ndarray:
    array = np.asarray(_load_npy(indexes, name) if isinstance(indexes, str | Path) else list(indexes))
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{name}: expected a list of whole numbers, got {array.dtype} of shape {array.shape}"
        )
    outside = array[(array < 0) | (array >= n_samples)]
    if outside.size:
        raise InputError(f"{name}: expected 0 to {n_samples - 1}, found {outside[:5].tolist()}")
    if len(np.unique(array)) != len(array):
        raise InputError(f"{name}: expected each sample once, found repeated ones")
    return array.astype(np.int64)


def _load_npy(path: str | Path, name: str) -> np.ndarray:
    try:
        return cast(np.ndarray, np.load(Path(path).expanduser(), allow_pickle=False))
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: expected an .npy file, cannot read {path} ({error})") from error
