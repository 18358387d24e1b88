"""The training step of every network: losses, measures, optimiser, and what a checkpoint holds."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from atlalign import __version__, metrics
from atlalign.data.dataset import RegistrationBatch
from atlalign.errors import InputError
from atlalign.losses import RegistrationLoss
from atlalign.networks import Registration
from atlalign.networks.architecture import describe


class RegistrationModule(pl.LightningModule):
    """Trains a network that maps (reference, moving) to a `Registration`.

    Args:
        network: Any module with that signature.
        loss: The weighted terms.
        optimizer: From parameters to an optimiser.
        scheduler: From the optimiser to a learning-rate schedule, stepped after each epoch.
        monitor: The metric that a plateau schedule watches.
        origin: Plain data kept in each checkpoint: the resolved configuration and the atlas' intensity scale.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: RegistrationLoss,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        monitor: str = "val/vector_distance",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.monitor = monitor
        self.origin = dict(origin or {})

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        """Register `moving` to `reference`, both (B, 1, H, W) in [0, 1]."""
        output: Registration = self.network(reference, moving)
        return output

    def training_step(self, batch: RegistrationBatch, batch_idx: int) -> Tensor:
        """Return the total loss of a batch."""
        output = self(batch.reference, batch.moving)
        return self._measure("train", output, batch)

    def validation_step(self, batch: RegistrationBatch, batch_idx: int) -> None:
        """Measure a batch, and what doing nothing would have given."""
        output: Registration = self(batch.reference, batch.moving)
        self._measure("val", output, batch)
        identity = metrics.vector_distance(batch.dvf, torch.zeros_like(batch.dvf))
        self._log("val", {"identity/vector_distance": identity.mean()}, len(batch.dvf))

    def configure_optimizers(self) -> Any:
        """Build the optimiser and, where there is one, the schedule."""
        optimizer = self.optimizer([p for p in self.network.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self.scheduler(optimizer), "interval": "epoch", "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add architecture and configuration as plain data: the file alone is enough to build the network again."""
        checkpoint["atlalign"] = {"version": __version__, **self.origin}
        with suppress(InputError):  # else the configuration of the model must do
            checkpoint["atlalign"]["architecture"] = describe(self.network)

    def _measure(self, split: str, output: Registration, batch: RegistrationBatch) -> Tensor:
        terms = self.loss(output, batch)
        with torch.no_grad():
            measures = {
                "vector_distance": metrics.vector_distance(batch.dvf, output.dvf.float()).mean(),
                "folding_fraction": metrics.folding_fraction(output.dvf.float()).mean(),
                "correlation": metrics.correlation(batch.reference, output.registered.float()).mean(),
            }
        losses = {f"loss/{name}": value.detach() for name, value in terms.items()}
        self._log(split, {**losses, **measures}, len(batch.dvf))
        total: Tensor = terms["total"]
        return total

    def _log(self, split: str, values: Mapping[str, Tensor], batch_size: int) -> None:
        self.log_dict(
            {f"{split}/{name}": value for name, value in values.items()},
            on_step=False,
            on_epoch=True,
            batch_size=batch_size,
            sync_dist=True,
        )
        # The progress bar's two numbers; those of each step are not worth waiting for the other processes.
        for name, label in (("loss/total", "loss"), ("vector_distance", "px")):
            if name in values:
                self.log(
                    f"{split} {label}",
                    values[name],
                    prog_bar=True,
                    logger=False,
                    batch_size=batch_size,
                    sync_dist=split == "val",
                )
