"""Callbacks of a training run: progress and parameter counts on the terminal, pictures in TensorBoard."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelSummary, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.model_summary.model_summary import summarize
from rich import get_console
from rich.progress import ProgressColumn
from rich.table import Table

from atlalign.console import ProgressLines, shows_bars
from atlalign.errors import check_numbers
from atlalign.plots import Panel, registration_figure

# Width in characters from which a terminal has room for the bar and the speed.
_WIDE = 110


class Progress(RichProgressBar):
    """Shows the progress on one line of 80 characters, with a bar on wide terminals. Epochs are counted from 1.

    A file gets one line per minute, and one after each epoch.
    """

    _lines: ProgressLines | None = None
    _done = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose between the bar and lines."""
        super().setup(trainer, pl_module, stage)
        if not shows_bars():
            self.disable()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the bar or the lines of an epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.is_disabled and trainer.is_global_zero:
            steps = int(trainer.num_training_batches) if trainer.num_training_batches < math.inf else None
            description = self._get_train_description(trainer.current_epoch).strip()
            self._lines = ProgressLines(description, steps, "steps")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the number of steps and the loss."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._done = batch_idx + 1
        if self._lines is not None:
            self._lines.show(self._done, lambda: self._measures(trainer, pl_module))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the measures of the validation."""
        super().on_train_epoch_end(trainer, pl_module)
        if self._lines is not None:
            self._lines.show(self._done, lambda: self._measures(trainer, pl_module), is_end=True)

    def _measures(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        shown = self.get_metrics(trainer, pl_module)
        return ", ".join(
            f"{name} {value:.4g}" for name, value in shown.items() if isinstance(value, int | float)
        )

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """Return the columns epoch, bar, batches, time and speed; a narrow terminal shows neither bar nor speed."""
        description, bar, batches, time, speed = super().configure_columns(trainer)
        if get_console().width >= _WIDE:
            return [description, bar, batches, time, speed]
        return [description, batches, time]

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Return the loss at the last step and the measures of the last validation."""
        shown = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train "): value for name, value in shown.items() if name != "train px"}

    def _get_train_description(self, current_epoch: int) -> str:
        n_epochs = self.trainer.max_epochs
        limit = f"/{n_epochs}" if n_epochs is not None and n_epochs > 0 else ""
        # As long as the description of the validation, so that the line does not jump.
        return f"Epoch {current_epoch + 1}{limit}".ljust(len(self.validation_description))


class NetworkSummary(ModelSummary):
    """Prints the parts of the network and their numbers of parameters before training starts.

    Args:
        max_depth: Number of nested levels to show.
    """

    def __init__(self, max_depth: int = 1) -> None:
        super().__init__(max_depth)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the parts; only the main process does so."""
        if not trainer.is_global_zero:
            return
        parts = summarize(pl_module, max_depth=self._max_depth)
        table = Table("part", "type")
        table.add_column("parameters", justify="right")
        for name, kind, number in zip(parts.layer_names, parts.layer_types, parts.param_nums, strict=True):
            table.add_row(name, kind, f"{number:,}")
        get_console().print(table)
        get_console().print(
            f"{parts.trainable_parameters:,} of {parts.total_parameters:,} parameters are trained"
        )


class RegistrationFigure(pl.Callback):
    """Shows validation sections in TensorBoard: images, overlays, deformed grids and error maps.

    Args:
        n_sections: Number of sections, the same in each epoch, spread over the validation samples.
        every_n_epochs: Number of epochs between two pictures.

    Raises:
        InputError: If either number is below 1.
    """

    def __init__(self, n_sections: int = 4, every_n_epochs: int = 1) -> None:
        given = {"callbacks.figure.n_sections": n_sections, "callbacks.figure.every_n_epochs": every_n_epochs}
        check_numbers(given, dict.fromkeys(given, 1))
        self.n_sections = n_sections
        self.every_n_epochs = every_n_epochs

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the sections, in the main process only, if the run has a TensorBoard logger."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        due = not trainer.sanity_checking and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if not due or not loggers or not trainer.is_global_zero:
            return
        figure = registration_figure(register_examples(pl_module, trainer.datamodule, self.n_sections))  # type: ignore[attr-defined]
        for logger in loggers:
            logger.experiment.add_figure("val/registration", figure, trainer.global_step)


def register_examples(module: pl.LightningModule, datamodule: Any, n_sections: int) -> list[Panel]:
    """Register `n_sections` validation samples of a `RegistrationDataModule`, as panels for `registration_figure`."""
    batch = datamodule.examples(n_sections)
    device = module.device
    was_training = module.training
    with torch.no_grad():
        output = module.eval()(batch.reference.to(device), batch.moving.to(device))
    module.train(was_training)
    return [
        Panel(
            reference=batch.reference[i, 0],
            moving=batch.moving[i, 0],
            registered=output.registered[i, 0].detach().cpu(),
            dvf=output.dvf[i].detach().float().cpu(),
            true_dvf=batch.dvf[i],
            title=f"image {int(batch.image_id[i])}, {int(batch.position_um[i])} µm",
        )
        for i in range(len(batch.moving))
    ]
