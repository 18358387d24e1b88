"""The training step of every network: losses, measures, optimiser, and the contents of a checkpoint."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from atlalign import __version__, metrics
from atlalign.data.dataset import RegistrationBatch
from atlalign.errors import InputError, unknown_name
from atlalign.models.model_file import ModelOrigin, origin_of
from atlalign.networks import Registration
from atlalign.networks.architecture import architecture_of
from atlalign.networks.contract import call_network
from atlalign.training.runs import DivergedError


class NetworkModule(pl.LightningModule, ABC):
    """Trains a network; subclasses define the batch and its measures.

    Args:
        network: Any module that `measured` can call.
        loss: The weighted loss terms.
        optimizer: Maps parameters to an optimiser.
        scheduler: Maps the optimiser to a learning-rate schedule, which steps after each epoch.
        monitor: The metric that selects the best checkpoint and controls a plateau schedule.
        seed: Together with step and process, it determines the random numbers that a network draws in training.
        origin: Plain data stored in each checkpoint: the resolved configuration and the atlas's intensity scale.
    """

    distance: str
    """The measure to minimise, named without the split."""
    unit: str
    """Its unit."""

    def __init__(
        self,
        network: nn.Module,
        loss: Any,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        monitor: str = "val/vector_distance",
        seed: int = 0,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.monitor = monitor
        self.seed = seed
        self.origin = dict(origin or {})
        self._train_means = EpochMeans()
        self._val_means = EpochMeans()

    @property
    def model_origin(self) -> ModelOrigin:
        """The recorded origin of the network."""
        return origin_of(self.origin)

    def save_checkpoint(self, path: Path) -> bool:
        """Write a checkpoint from which training can resume; return False if the module has no trainer."""
        if self._trainer is None:
            return False
        self._trainer.save_checkpoint(path, weights_only=False)
        return True

    @abstractmethod
    def measured(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss, and all losses and measures by name, without gradients."""

    @abstractmethod
    def without(self, batch: Any) -> Tensor:
        """Return the distance before registration."""

    @abstractmethod
    def size(self, batch: Any) -> int:
        """Return the number of samples."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the total loss of a batch.

        With several processes, each computes the loss of its own batch, and all take the same step along the mean
        gradient. For losses that are means over samples, this equals the gradient of the whole batch. A power of a
        batch mean (`vdclip2`) is taken in each process, then averaged.
        """
        total, values = self.measured(batch)
        if not total.requires_grad:
            raise InputError(
                "loss: expected a value with a gradient, got one that does not depend on the network's weights; a loss "
                "must be computed with torch alone, without .detach() or .item()"
            )
        self._train_means.add(values, self.size(batch))
        self._check_step(values)
        # Waiting for the other processes at each step, only to update the progress bar, is not worth the time.
        self.log_dict(self._shown("train", values), prog_bar=True, logger=False)
        return total

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure a batch, and its distance before registration."""
        _, values = self.measured(batch)
        self._val_means.add({**values, f"identity/{self.distance}": self.without(batch)}, self.size(batch))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the network's draws from seed, step and process alone, so that a resumed run draws the same numbers."""
        step = self.trainer.fit_loop.total_batch_idx
        seed_global_generators(np.random.SeedSequence((self.seed, step, self.global_rank)))

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch's samples in all processes."""
        self._log_means("train", self._train_means)
        self._train_means = EpochMeans()

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation samples in all processes.

        Raises:
            InputError: If no metric has the name `monitor`; the validation before the first step detects this.
            DivergedError: If a loss or distance that must be finite is not.
        """
        means = self._log_means("val", self._val_means)
        known = [f"val/{name}" for name in means]
        if self.monitor not in known:
            raise unknown_name("metric for objective:", self.monitor, known)
        self._check_finite({f"val/{name}": mean for name, mean in means.items()})
        self.log_dict(self._shown("val", means), prog_bar=True, logger=False, sync_dist=True, batch_size=1)
        self._val_means = EpochMeans()

    def configure_optimizers(self) -> Any:
        """Build the optimiser and the schedule, if there is one."""
        optimizer = self.optimizer([p for p in self.network.parameters() if p.requires_grad])
        if self.scheduler is None:
            return optimizer
        schedule = {"scheduler": self.scheduler(optimizer), "interval": "epoch", "monitor": self.monitor}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add architecture and configuration as plain data, so that the file alone suffices to rebuild the network."""
        checkpoint["atlalign"] = {"version": __version__, **self.origin}
        with suppress(InputError):  # without an architecture, the network is rebuilt from the configuration
            checkpoint["atlalign"]["architecture"] = architecture_of(self.network)
        checkpoint["epoch_means"] = self._train_means.state(self.trainer.strategy.reduce)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the epoch's means.

        Raises:
            InputError: If the checkpoint belongs to another network.
        """
        expected = {name: weight.shape for name, weight in self.state_dict().items()}
        found = {name: weight.shape for name, weight in checkpoint["state_dict"].items()}
        other = sorted(name for name, _ in expected.items() ^ found.items())
        if other:
            raise InputError(
                "ckpt_path: expected a checkpoint of the configured network, got one with other weights: "
                f"{', '.join(other[:3])}{' …' if len(other) > 3 else ''}"
            )
        self._train_means = EpochMeans(**checkpoint.get("epoch_means", {}))

    def _check_step(self, values: Mapping[str, Tensor]) -> None:
        # Checking each number would make the CPU wait for a GPU, so on a GPU validation detects divergence. In half
        # precision a step that overflows is skipped, which is not a divergence.
        if self.device.type == "cpu" and self.trainer.precision != "16-mixed":
            self._check_finite({f"train/{name}": value for name, value in values.items()})

    def _check_finite(self, values: Mapping[str, Tensor]) -> None:
        """Raise an error for the first loss, distance or monitored metric that is not finite."""
        for name, value in values.items():
            needed = name.endswith(("loss/total", f"/{self.distance}")) or name == self.monitor
            if needed and not bool(value.isfinite()):
                raise DivergedError(self._divergence(name, float(value)))

    def _divergence(self, name: str, value: float) -> str:
        callback = self.trainer.checkpoint_callback
        best = getattr(callback, "best_model_path", "")
        left = f"the last good checkpoint is {best}" if best else "there is no earlier checkpoint"
        return (
            f"the training diverged: {name} is {value} at step {self.trainer.global_step}; {left}. Lower optimizer.lr, "
            "or clip gradients with trainer.gradient_clip_val"
        )

    def _log_means(self, split: str, epoch: "EpochMeans") -> dict[str, Tensor]:
        means = epoch.means(self.trainer.strategy.reduce)
        named = {f"{split}/{name}": mean for name, mean in means.items()}
        self.log_dict(named, sync_dist=True, batch_size=1)  # the processes already agree
        return means

    def _shown(self, split: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the two numbers that the progress bar shows."""
        return {f"{split} loss": values["loss/total"], f"{split} {self.unit}": values[self.distance]}


class RegistrationModule(NetworkModule):
    """Trains a network that maps (reference, moving) to a `Registration`."""

    distance = "vector_distance"
    unit = "px"

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        """Register `moving` to `reference`, both (B, 1, H, W) in [0, 1]."""
        return call_network(self.network, reference, moving)

    def measured(self, batch: RegistrationBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss, and all losses and measures by name, without gradients."""
        output = self(batch.reference, batch.moving)
        terms = self.loss(output, batch)
        with torch.no_grad():
            measures = {
                "vector_distance": metrics.vector_distance(batch.dvf, output.dvf.float()).mean(),
                "folding_fraction": metrics.folding_fraction(output.dvf.float()).mean(),
                "correlation": metrics.correlation(batch.reference, output.registered.float()).mean(),
            }
        losses = {f"loss/{name}": value.detach() for name, value in terms.items()}
        return terms["total"], {**losses, **measures}

    def without(self, batch: RegistrationBatch) -> Tensor:
        """Return the mean length of the true displacements."""
        return metrics.vector_distance(batch.dvf, torch.zeros_like(batch.dvf)).mean()

    def size(self, batch: RegistrationBatch) -> int:
        """Return the number of pairs."""
        return len(batch.dvf)


class EpochMeans:
    """Means over an epoch's samples in all processes.

    Unlike Lightning's means, they can be stored in a checkpoint and are exact if processes have unequal numbers of
    samples.

    Args:
        n_samples: Number of samples so far.
        sums: Sum of each value over these samples.
    """

    def __init__(self, n_samples: int = 0, sums: Mapping[str, Tensor] | None = None) -> None:
        self.n_samples = n_samples
        self.sums = dict(sums or {})

    def add(self, means: Mapping[str, Tensor], n_samples: int) -> None:
        """Include the means over a batch of `n_samples`."""
        self.n_samples += n_samples
        for name, mean in means.items():
            former = self.sums[name].to(mean.device) if name in self.sums else 0
            self.sums[name] = former + mean.float() * n_samples

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Return the mean of each value; `reduce` returns the mean of a tensor over the processes."""
        return {
            name: reduce(total.clone()) / reduce(torch.full_like(total, self.n_samples))
            for name, total in self.sums.items()
        }

    def state(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the constructor's arguments as plain data, averaged over processes."""
        sums = {name: reduce(total.clone()).cpu() for name, total in self.sums.items()}
        return {"n_samples": self.n_samples, "sums": sums}


def seed_global_generators(entropy: np.random.SeedSequence) -> None:
    """Seed the global generators of torch (all devices), NumPy and Python."""
    seed = int(entropy.generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a user's network may draw from it
    random.seed(seed)
