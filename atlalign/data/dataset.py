"""Samples of an h5 data set and an atlas: workers read them one by one, and the device completes the batch."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from atlalign.atlas.atlas import Atlas
from atlalign.data.augmenter_kinds import BatchAugmenter, ImageAugmenter
from atlalign.geometry import resize, warp
from atlalign.io.ground import find_ground
from atlalign.io.images import resize_images
from atlalign.io.intensity import on_dark_ground

_READ = ("img", "deltas_xy", "inv_deltas_xy")


class RegistrationBatch(NamedTuple):
    """A batch for a network: images (B, 1, H, W) in [0, 1], fields (B, 2, H, W) in pixels, ids (B,).

    Attributes:
        reference: The reference images.
        moving: The images to register, after augmentation.
        registered: The moving images, warped by the true fields.
        dvf: The true fields, from the reference to the moving image.
        inv_dvf: The true fields from the moving image to the reference; None if they were not requested.
        position_um: The positions of the sections along AP.
        image_id: The ids of the images.
        dataset_id: The ids of the data sets that the images come from.
    """

    reference: Tensor
    moving: Tensor
    registered: Tensor
    dvf: Tensor
    inv_dvf: Tensor | None
    position_um: Tensor
    image_id: Tensor
    dataset_id: Tensor


class RawSample(TypedDict, total=False):
    """One sample as read: images (1, H, W), uint8 or float32; fields (h, w, 2), float16, at the size in the file."""

    reference: Tensor
    moving: Tensor
    dvf: Tensor
    inv_dvf: Tensor
    position_um: Tensor
    image_id: Tensor
    dataset_id: Tensor


class SampleKey(NamedTuple):
    """The number of a sample, and the seed of its augmentation, which does not depend on the worker that reads it."""

    sample: int
    seed: int


class SeededSampler(Sampler[SampleKey]):
    """Yields the keys of samples in an order that depends only on seed and epoch.

    The processes take samples in turn. Together, their batches of B samples are the batch of `world_size` · B samples
    that a single process would get.

    Args:
        indexes: The samples of the split.
        seed: The run's seed.
        shuffle: Draw a new order in each epoch.
        rank: The number of this process, which gets one of every `world_size` samples.
        world_size: The number of processes.
        even: Drop the last samples, so that each process gets the same number.
        epoch: The first epoch.
        start: The number of samples in that epoch that this process had already used when the run was stopped.
    """

    def __init__(
        self,
        indexes: Sequence[int],
        *,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        even: bool = False,
        epoch: int = 0,
        start: int = 0,
    ) -> None:
        self.indexes = torch.as_tensor(indexes, dtype=torch.int64)
        self.seed = seed
        self.shuffle = shuffle
        self.places = range(rank, len(indexes) - (len(indexes) % world_size if even else 0), world_size)
        self.epoch = epoch
        self.starts = {epoch: start}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; Lightning calls this before each pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of samples in a whole epoch, which Lightning also expects for a resumed one."""
        return len(self.places)

    def __iter__(self) -> Iterator[SampleKey]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.indexes)) if self.shuffle else np.arange(len(self.indexes))
        seeds = random.integers(2**31, size=len(self.indexes))
        for place in self.places[self.starts.get(self.epoch, 0) :]:
            yield SampleKey(int(self.indexes[order[place]]), int(seeds[place]))


class RegistrationDataset(Dataset[RawSample]):
    """The samples of an h5 data set (see `atlalign.data.schema`) with their atlas sections.

    Each process opens the file on first use, so the data set can be pickled and forked.

    Args:
        path: The h5 file, already checked.
        atlas: The atlas at the working size; it provides the reference section at each sample's position.
        return_inverse: Read the inverse fields too.
        dark_ground: Convert moving images to bright tissue on a background of 0, as `atlalign register` does. An image
            that already has a background of 0 is not changed.
        moving_augmenter: Applied to the moving image at the working size.
        reference_augmenter: Applied to the reference image.
    """

    def __init__(
        self,
        path: str | Path,
        atlas: Atlas,
        *,
        return_inverse: bool = False,
        dark_ground: bool = False,
        moving_augmenter: ImageAugmenter | None = None,
        reference_augmenter: ImageAugmenter | None = None,
    ) -> None:
        self.path = Path(path)
        self.atlas = atlas
        self.return_inverse = return_inverse
        self.dark_ground = dark_ground
        self.moving_augmenter = moving_augmenter
        self.reference_augmenter = reference_augmenter
        self._arrays: dict[str, h5py.Dataset] = {}
        self._process: int | None = None
        with h5py.File(self.path, "r") as file:
            self.positions_um = torch.from_numpy(file["p"][:].astype(np.int64))
            self.image_ids = torch.from_numpy(file["image_id"][:].astype(np.int64))
            self.dataset_ids = torch.from_numpy(file["dataset_id"][:].astype(np.int64))

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}, "_process": None}

    def __getitem__(self, key: SampleKey | int) -> RawSample:
        index, seed = key if isinstance(key, tuple) else (key, key)
        arrays = self._open()
        position = self.positions_um[index]
        moving = resize_images(torch.from_numpy(arrays["img"][index])[None], self.atlas.image_shape)
        if self.dark_ground:
            moving = _on_dark_ground(moving)
        reference = self.atlas.template[self.atlas.plane_index(position)][None]
        sample = RawSample(
            reference=_augment(reference, self.reference_augmenter, seed + 1),
            moving=_augment(moving, self.moving_augmenter, seed),
            dvf=torch.from_numpy(arrays["deltas_xy"][index]),
            position_um=position,
            image_id=self.image_ids[index],
            dataset_id=self.dataset_ids[index],
        )
        if self.return_inverse:
            sample["inv_dvf"] = torch.from_numpy(arrays["inv_deltas_xy"][index])
        return sample

    def _open(self) -> dict[str, h5py.Dataset]:
        # A handle inherited through a fork shares its file position with the parent, so each process opens its own.
        if self._process != os.getpid():
            file = h5py.File(self.path, "r")
            self._arrays, self._process = {name: file[name] for name in _READ}, os.getpid()
        return self._arrays


def complete(
    raw: RawSample,
    *,
    moving_augmenter: BatchAugmenter | None = None,
    reference_augmenter: BatchAugmenter | None = None,
) -> RegistrationBatch:
    """Return the complete batch of collated raw samples: floats, fields at the images' size, and registered images.

    This runs on the device of the samples. Warping a batch there is much cheaper than warping samples in workers.
    """
    reference = _to_unit_range(raw["reference"], reference_augmenter)
    moving = _to_unit_range(raw["moving"], moving_augmenter)
    shape = (int(moving.shape[-2]), int(moving.shape[-1]))
    dvf = _to_field(raw["dvf"], shape)
    inv_dvf = _to_field(raw["inv_dvf"], shape) if "inv_dvf" in raw else None
    ids = raw["position_um"], raw["image_id"], raw["dataset_id"]
    return RegistrationBatch(reference, moving, warp(moving, dvf), dvf, inv_dvf, *ids)


def _on_dark_ground(moving: Tensor) -> Tensor:
    """Return an image (1, H, W) as bright tissue on a background of 0, in uint8, because a batch has one dtype."""
    grey = moving[0].float()
    if find_ground(grey).is_nothing:
        return moving
    return (on_dark_ground(grey).image[None] * 255).round().to(torch.uint8)


def _augment(image: Tensor, augmenter: ImageAugmenter | None, seed: int) -> Tensor:
    if augmenter is None:
        return image
    array = image[0].numpy()
    unit = np.multiply(array, np.float32(1 / 255)) if array.dtype == np.uint8 else array
    return torch.from_numpy(augmenter(unit, seed=seed))[None]


def _to_unit_range(images: Tensor, augmenter: BatchAugmenter | None) -> Tensor:
    floats = images.float() / 255 if images.dtype == torch.uint8 else images
    return floats if augmenter is None else augmenter(floats)


def _to_field(deltas_xy: Tensor, shape: tuple[int, int]) -> Tensor:
    return resize(deltas_xy.permute(0, 3, 1, 2).float(), shape)
