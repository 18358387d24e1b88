"""Stopping and resuming: a run resumed from `last.ckpt` gives the same result as an uninterrupted one.

The random numbers of a step depend only on seed, step and process (`RegistrationModule`, `DeviceDataModule`). A
checkpoint therefore needs weights, optimiser, schedule, callbacks, the epoch's sums, and the position in the epoch.
Lightning restarts exactly from two kinds of positions only: between two steps of an epoch, and between two epochs.
`LastCheckpoint` saves nowhere else.
"""

import csv
import io
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from atlalign.errors import check_numbers
from atlalign.io.files import written_whole

# Ctrl-C, a stop request of the system or cluster, and SLURM's warning before the time limit (not on Windows).
_STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(SystemExit):
    """A signal stopped the run, which was saved first; the program ends with status 128 + signal."""


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`, and saves before a signal stops the run.

    The file is written at the start, after each epoch, and at intervals between steps. SIGINT (Ctrl-C), SIGTERM and
    SIGUSR1 stop the run at the next position where it can save: after the step, or after the current validation.

    Args:
        dirpath: The folder of `last.ckpt`.
        every_n_minutes: Minutes between two saves within an epoch; None saves only after epochs.
        every_n_steps: Optimiser steps between two saves within an epoch; None saves only after epochs.
    """

    def __init__(
        self, dirpath: str, every_n_minutes: float | None = None, every_n_steps: int | None = None
    ) -> None:
        due = {
            "callbacks.last.every_n_minutes": every_n_minutes,
            "callbacks.last.every_n_steps": every_n_steps,
        }
        given = {name: number for name, number in due.items() if number is not None}
        check_numbers(given, {name: 1 if name.endswith("steps") else 0.0 for name in given})
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_minutes = every_n_minutes
        self.every_n_steps = every_n_steps
        self._saved_at = 0.0
        self._signal = 0
        self._alone = True
        self._metrics: dict[str, torch.Tensor] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not continue training if early stopping had already ended the run."""
        trainer.should_stop = any(
            isinstance(callback, EarlyStopping) and callback.wait_count >= max(1, callback.patience)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make a resumed run match an uninterrupted one; from here on, signals wait for the next save."""
        # Lightning would repeat the end of an epoch if max_steps is set, and skip a step of a plateau schedule.
        loop = trainer.fit_loop
        loop.epoch_loop.restarting = loop.epoch_loop.restarting and _is_within_epoch(trainer)
        loop._restarting = False
        trainer.callback_metrics.update(self._metrics)
        self._saved_at = time.monotonic()
        self._alone = trainer.world_size == 1
        if trainer.received_sigterm:  # received during setup, when Lightning handled signals
            self._signal, trainer._signal_connector.received_sigterm = signal.SIGTERM, False
        if threading.current_thread() is threading.main_thread():
            for number in _STOP_SIGNALS:  # Lightning restores the previous handlers
                signal.signal(number, self._note_signal)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save between two epochs: after the validation and schedules of the previous epoch."""
        self._save(trainer)
        self._stop_if_asked(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch when a save is due."""
        if _is_place_to_save(trainer) and _any_process(trainer, self._is_due(trainer)):
            self._save(trainer)
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save at the end of the training."""
        self._save(trainer)
        self._stop_if_asked(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the metrics that callbacks and schedules read until the next validation."""
        checkpoint["callback_metrics"] = {k: v.detach().cpu() for k, v in trainer.callback_metrics.items()}
        # An epoch that is ready but has not started counts as not begun; otherwise Lightning's restart would miscount.
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["started"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the metrics that `on_save_checkpoint` added."""
        self._metrics = checkpoint.get("callback_metrics", {})

    def _is_due(self, trainer: pl.Trainer) -> bool:
        steps, minutes = self.every_n_steps, self.every_n_minutes
        return bool(
            self._signal
            or (steps and trainer.global_step % steps == 0)
            or (minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes)
        )

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at = time.monotonic()

    def _note_signal(self, number: int, frame: Any) -> None:
        """Note the signal; a second Ctrl-C stops at once, unless a parent process handles it for all processes."""
        if number == signal.SIGINT == self._signal and self._alone:
            raise KeyboardInterrupt
        self._signal = number

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        if not _any_process(trainer, bool(self._signal)):
            return
        number = self._signal or signal.SIGTERM
        if trainer.is_global_zero:
            folder = self.path.parent.parent
            print(
                f"stopped by {signal.Signals(number).name} after step {trainer.global_step} and saved; resume with "
                f"the same command and hydra.run.dir={folder} ckpt_path=last",
                file=sys.stderr,
            )
        raise Stopped(128 + number)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it when it is complete and on the disk.

    Lightning's own writer uses the system's folder for temporary files and copies the file from there to other file
    systems. A run that is killed during the copy leaves half a file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`; until it is complete, `path` keeps its previous content."""
        buffer = io.BytesIO()  # torch's own writer does not report a full disk
        torch.save(checkpoint, buffer)
        with written_whole(Path(path)) as unfinished:
            unfinished.write_bytes(buffer.getbuffer())


@pl.utilities.rank_zero_only
def rewind_log(logger: Any, step: int) -> None:
    """Remove a run's log entries from optimiser step `step` on, because a resumed run logs them again.

    Handles CSV and TensorBoard logs; other loggers are left unchanged.
    """
    if isinstance(logger, CSVLogger):
        _rewind_csv(logger, step)
    elif isinstance(logger, TensorBoardLogger):
        logger._kwargs["purge_step"] = step


def _rewind_csv(logger: CSVLogger, step: int) -> None:
    path = Path(logger.log_dir) / "metrics.csv"
    if not path.exists():
        return
    with path.open(newline="") as file:
        rows: list[dict[str, Any]] = [row for row in csv.DictReader(file) if int(row["step"]) < step]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")
        logger.experiment.metrics = rows  # Lightning has already deleted the file
    logger.save()


def _is_within_epoch(trainer: pl.Trainer) -> bool:
    return bool(trainer.fit_loop.epoch_progress.current.ready > trainer.current_epoch)


def _is_place_to_save(trainer: pl.Trainer) -> bool:
    """Return whether the finished batch leaves no gradients for the next one and is not followed by validation."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return not (loop._should_accumulate() or loop._should_check_val_fx(fetcher) or loop._is_training_done)


def _any_process(trainer: pl.Trainer, decision: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(decision, all=False)
