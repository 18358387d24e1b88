"""Rows for data loading: from the h5 file to the batch, and whether training ever waits for data."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import h5py
import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device

from atlalign.atlas.atlas import phantom_atlas
from atlalign.data.augmenters import augmenter_1
from atlalign.data.datamodule import DeviceDataModule, RegistrationDataModule
from atlalign.data.demo import write_demo
from atlalign.losses import RegistrationLoss
from atlalign.networks import LocalUNet
from atlalign.training.module import RegistrationModule
from benchmarks.measure import (
    Measured,
    Size,
    Turns,
    finish_device,
    in_turns,
    scratch,
    seconds,
    turn_numbers,
)

_BATCH = 4
Augment = Callable[[np.ndarray], np.ndarray]


def data_module(folder: Path, size: Size, **options: Any) -> RegistrationDataModule:
    """Return a data module on a new file of `size.samples` training samples and 4 validation samples."""
    atlas = phantom_atlas(image_shape=size.shape, spacing_um=1100.0, with_annotation=False)
    path = folder / "data.h5"
    if not path.exists():
        write_demo(path, atlas, n_sections=size.samples // 4 + 1, fields_per_section=4)
    last = list(range(size.samples, size.samples + 4))
    options = {"batch_size": _BATCH, "val_indexes": last, **options}
    module = RegistrationDataModule(path, atlas=atlas, image_shape=size.shape, **options)
    module.prepare_data()
    module.setup()
    return module


def reading(size: Size) -> Measured:
    """Compare an epoch of batches, as float32, with h5py's reading of the same samples as float32.

    Work on whole batches on the training device, above all warping to the registered image, is part of neither. The
    remark gives its time on this CPU.
    """
    with scratch() as folder:
        module = data_module(folder, size)
        return _against_h5py(module, partial(_read, module), size)


def augmenting(size: Size) -> Measured:
    """Compare the same with augmented moving images; albumentations also augments h5py's images."""
    augment = augmenter_1()
    with scratch() as folder:
        module = data_module(folder, size, augment={"moving": augmenter_1()})
        return _against_h5py(
            module, partial(_read, module, lambda image: augment(image=image)["image"]), size
        )


def _against_h5py(module: RegistrationDataModule, other: Callable[[], None], size: Size) -> Measured:
    def ours() -> None:
        for raw in module.train_dataloader():
            _floats(raw["moving"], raw["dvf"])

    turns = in_turns(ours, other, size)
    raw = next(iter(module.train_dataloader()))
    completing_s = min(seconds(lambda: module.complete(raw)) for _ in range(size.repeats)) / _BATCH
    per_sample = [1e3 * time for time in (*(min(times) / size.samples for times in turns), completing_s)]
    note = "{:.2f} and {:.2f} ms a sample; completing one in a batch {:.2f} ms".format(*per_sample)
    return Measured(turns.times_as_fast(), turns, note)


def _floats(moving: torch.Tensor, dvf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and fields as floats."""
    return (moving.float() / 255 if moving.dtype == torch.uint8 else moving), dvf.float()


def _read(module: RegistrationDataModule, augment: Augment | None = None) -> None:
    """Read the training samples in random order as float32: images in [0, 1] and fields in pixels."""
    with h5py.File(module.path, "r") as file:
        images, fields = file["img"], file["deltas_xy"]
        for sample in np.random.default_rng(0).permutation(module.train_split):
            image = images[sample] * np.float32(1 / 255)
            if augment is not None:
                augment(image)
            fields[sample].astype(np.float32)


# --- training ---------------------------------------------------------------------------------------------------------


class _OneBatch(pl.LightningDataModule):
    """Yields one batch, ready on the device, again and again."""

    def __init__(self, batch: Any, n: int) -> None:
        super().__init__()
        self.batches = [batch] * n

    def train_dataloader(self) -> Any:
        """Return the batches of an epoch."""
        return torch.utils.data.DataLoader(self.batches, batch_size=None, collate_fn=lambda batch: batch)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        """Return the same batches."""
        return self.train_dataloader()


class _Clock(pl.Callback):
    """Times the steps after the first one, which warms up; the device is synchronised only before and after."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Record the time."""
        if trainer.global_step in (1, trainer.max_steps):
            finish_device()
            self.ends.append(perf_counter())

    def seconds_per_step(self, steps: int) -> float:
        """Return the mean time of this many steps."""
        first, last = self.ends
        return (last - first) / steps


def training_loop(size: Size) -> Measured:
    """Compare steps of a run that reads its batches in its own process with steps on one batch."""
    network = LocalUNet().to(memory_format=torch.channels_last)
    with scratch() as folder:
        return compare_loops(network, data_module(folder, size), size, accelerator="cpu")


def compare_loops(network: LocalUNet, data: DeviceDataModule, size: Size, **trainer: Any) -> Measured:
    """Compare Lightning's steps on the batches of the data module with those on its first batch alone."""
    device = next(network.parameters()).device
    raw = move_data_to_device(next(iter(data.train_dataloader())), device)
    one = _OneBatch(data.complete(raw), size.steps + 1)
    turns = Turns([], [])
    for turn in turn_numbers(size):
        for times, batches in _alternately([(turns.ours, data), (turns.other, one)], turn):
            times.append(_seconds_per_step(network, batches, size.steps, **trainer))
    note = f"{min(turns.ours):.3g} and {min(turns.other):.3g} s a step"
    return Measured(turns.times_as_fast(), turns, note)


def _alternately(pairs: list[Any], turn: int) -> Iterator[Any]:
    return reversed(pairs) if turn % 2 else iter(pairs)


def _seconds_per_step(network: LocalUNet, data: pl.LightningDataModule, steps: int, **trainer: Any) -> float:
    clock = _Clock()
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    fit = pl.Trainer(
        max_steps=steps + 1,
        limit_val_batches=0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **trainer,
    )
    loss = RegistrationLoss(image="mse", dvf="vector_distance", weights={"image": 1, "dvf": 0.1})
    fit.fit(RegistrationModule(network, loss, optimizer=partial(torch.optim.RMSprop, lr=1e-3)), data)
    return clock.seconds_per_step(steps)
