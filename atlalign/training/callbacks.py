"""What happens beside the training step: pictures in TensorBoard."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from atlalign.errors import check_numbers
from atlalign.plots import Panel, registration_figure


class RegistrationFigure(pl.Callback):
    """Shows validation sections in TensorBoard: images, overlays, deformed grid, error map.

    Args:
        n_sections: How many sections are shown, the same each time, spread over the validation samples.
        every_n_epochs: Draw after each so many epochs.

    Raises:
        InputError: If one of them is below 1.
    """

    def __init__(self, n_sections: int = 4, every_n_epochs: int = 1) -> None:
        given = {"callbacks.figure.n_sections": n_sections, "callbacks.figure.every_n_epochs": every_n_epochs}
        check_numbers(given, dict.fromkeys(given, 1))
        self.n_sections = n_sections
        self.every_n_epochs = every_n_epochs

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, in the main process, where a TensorBoard logger is there."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        due = not trainer.sanity_checking and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if not due or not loggers or not trainer.is_global_zero:
            return
        figure = registration_figure(register_examples(pl_module, trainer.datamodule, self.n_sections))  # type: ignore[attr-defined]
        for logger in loggers:
            logger.experiment.add_figure("val/registration", figure, trainer.global_step)


def register_examples(module: pl.LightningModule, datamodule: Any, n_sections: int) -> list[Panel]:
    """Register validation samples of a `RegistrationDataModule` as `registration_figure` draws them."""
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
