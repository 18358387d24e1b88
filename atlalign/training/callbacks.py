"""What happens beside the training step: pictures in TensorBoard."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from atlalign.data.dataset import RegistrationBatch
from atlalign.networks import Registration
from atlalign.plots import Panel, registration_figure


class RegistrationFigure(pl.Callback):
    """Shows validation sections in TensorBoard: images, overlays, deformed grid, error map.

    Args:
        n_sections: How many sections of the first validation batch are shown.
        every_n_epochs: Draw after each so many epochs.
    """

    def __init__(self, n_sections: int = 4, every_n_epochs: int = 1) -> None:
        self.n_sections = n_sections
        self.every_n_epochs = every_n_epochs

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: RegistrationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch."""
        due = (
            batch_idx == 0
            and not trainer.sanity_checking
            and trainer.current_epoch % self.every_n_epochs == 0
        )
        if not due or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                figure = registration_figure(panels(batch, outputs, self.n_sections))
                logger.experiment.add_figure("val/registration", figure, trainer.global_step)


def panels(batch: RegistrationBatch, output: Registration, n_sections: int) -> list[Panel]:
    """Return the first sections of a batch as `registration_figure` draws them."""
    return [
        Panel(
            reference=batch.reference[i, 0],
            moving=batch.moving[i, 0],
            registered=output.registered[i, 0],
            dvf=output.dvf[i],
            true_dvf=batch.dvf[i],
            title=f"image {int(batch.image_id[i])} at {int(batch.position_um[i])} µm",
        )
        for i in range(min(n_sections, len(batch.moving)))
    ]
