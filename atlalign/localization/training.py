"""Training of the network that locates sections: its data, drawn from an atlas alone, and its loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from atlalign.atlas.atlas import Atlas
from atlalign.data.dataset import SampleKey, SeededSampler
from atlalign.errors import InputError, check_numbers, check_processes
from atlalign.io.files import fingerprint_of
from atlalign.localization.same_atlas import large_regions
from atlalign.localization.samples import Views, ViewSampler
from atlalign.localization.volume import AtlasVolume
from atlalign.networks.plane_locator import LocatedPlanes, PlaneLocatorNet, plane_errors
from atlalign.training.module import NetworkModule

_NEAR_MM = 0.3  # smaller errors count by their square
_VALIDATION_SEED = 2**31


class PlaneLoss(nn.Module):
    """The distance of planes from the true ones, and the losses of the network's other outputs.

    Args:
        side: Weight of the cross-entropy of whole, left and right.
        expected_error: Weight of the error of the logarithm of the expected error.
    """

    def __init__(self, side: float = 0.05, expected_error: float = 0.05) -> None:
        super().__init__()
        self.side = side
        self.expected_error = expected_error

    def forward(self, located: LocatedPlanes, views: Views) -> dict[str, Tensor]:
        """Return the terms by name, and their weighted `total`."""
        errors = plane_errors(located.planes, views.planes)
        expected = located.log_error - errors.detach().mean(1).clamp(min=1e-6).log()
        terms = {
            "plane": F.smooth_l1_loss(errors, torch.zeros_like(errors), beta=_NEAR_MM),
            "side": F.cross_entropy(located.sides, views.sides),
            "expected_error": expected.abs().mean(),
        }
        total = terms["plane"] + self.side * terms["side"] + self.expected_error * terms["expected_error"]
        return {**terms, "total": total}


class LocatorModule(NetworkModule):
    """Trains a `PlaneLocatorNet`. Metrics are in mm; `identity` is the best constant answer to a batch."""

    distance = "plane_error"
    unit = "mm"

    def setup(self, stage: str) -> None:
        """Store the properties of the training atlas in the network, because planes are in the frame of this atlas."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        volume = data.sampler.volume
        assert isinstance(self.network, PlaneLocatorNet)
        self.network.trained_on(data.atlas.name, volume.size_mm, large_regions(volume))

    def forward(self, images: Tensor) -> LocatedPlanes:
        """Return the planes of views (B, 1, view_px, view_px)."""
        located: LocatedPlanes = self.network(images)
        return located

    def measured(self, batch: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss, and all losses and measures by name, without gradients."""
        located = self(batch.images)
        terms = self.loss(located, batch)
        with torch.no_grad():
            measures = {
                "plane_error": plane_errors(located.planes, batch.planes).mean(),
                "side_correct": (located.sides.argmax(1) == batch.sides).float().mean(),
            }
        losses = {f"loss/{name}": value.detach() for name, value in terms.items()}
        return terms["total"], {**losses, **measures}

    def without(self, batch: Views) -> Tensor:
        """Return the mean error without a network: that of the mean plane as a constant answer."""
        return plane_errors(batch.planes.mean(0, keepdim=True), batch.planes).mean()

    def size(self, batch: Views) -> int:
        """Return the number of views."""
        return len(batch.images)


class ViewDataModule(pl.LightningDataModule):
    """Batches of views of an atlas, new ones in each epoch; no section is needed.

    Args:
        atlas: The atlas with region ids.
        image_shape: The size at which the atlas was loaded; null keeps the size of its file.
        voxel_um: The atlas is reduced to about this resolution.
        view_px: Height and width of the network's views.
        batch_size: Views per step.
        samples_per_epoch: Training views in an epoch.
        n_val: Validation views, the same in each epoch.
        num_workers: Number of processes that draw views; None means 0.
        seed: Random seed of the views.
        augment: An option of registration; must be None here.
        cut_along: See `ViewSampler`, also for all further options.
    """

    def __init__(
        self,
        *,
        atlas: Atlas,
        image_shape: Sequence[int] | None = None,
        voxel_um: float = 50.0,
        view_px: int = 128,
        batch_size: int = 32,
        samples_per_epoch: int = 6400,
        n_val: int = 512,
        num_workers: int | None = None,
        seed: int = 0,
        augment: Mapping[str, Any] | None = None,
        cut_along: Sequence[str] = ("AP",),
        largest_tilt: float = 15.0,
        p_turned: float = 0.5,
        p_half: float = 0.15,
        p_expression: float = 0.2,
        distortion: float = 0.06,
    ) -> None:
        super().__init__()
        given = {
            "batch_size": batch_size,
            "samples_per_epoch": samples_per_epoch,
            "n_val": n_val,
            "view_px": view_px,
        }
        check_numbers(
            {f"data.{name}": value for name, value in given.items()},
            dict.fromkeys(map("data.{}".format, given), 1),
        )
        check_processes("data.num_workers", num_workers or 0)
        if any((augment or {}).values()):
            raise InputError("augment: expected none: views have their own contrast, noise and damage")
        self.atlas = atlas
        self.sampler = ViewSampler(
            volume=AtlasVolume.of(atlas, voxel_um),
            view_px=view_px,
            cut_along=cut_along,
            largest_tilt=largest_tilt,
            p_turned=p_turned,
            p_half=p_half,
            p_expression=p_expression,
            distortion=distortion,
        )
        self.batch_size = batch_size
        self.n_batches = {"train": samples_per_epoch // batch_size, "val": -(-n_val // batch_size)}
        self.num_workers = num_workers or 0
        self.seed = seed
        if not self.n_batches["train"]:
            raise InputError(
                f"data.samples_per_epoch: expected at least a batch of {batch_size}, got {samples_per_epoch}"
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of the next epoch."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        return self._loader("train", self.seed, epoch, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches."""
        return self._loader("val", _VALIDATION_SEED, 0, shuffle=False)

    def fingerprints(self) -> dict[str, str]:
        """Return the SHA-256 of the volume from which views are made."""
        volume = self.sampler.volume
        return {
            "atlas": fingerprint_of(volume.template.numpy(), volume.labels.numpy(), volume.voxel_mm.tolist())
        }

    def _loader(self, split: str, seed: int, epoch: int, *, shuffle: bool) -> DataLoader[Any]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = SeededSampler(
            range(self.n_batches[split]),
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            epoch=epoch,
        )
        return DataLoader(
            _ViewBatches(self.sampler, self.batch_size, self.n_batches[split]),
            batch_size=None,
            sampler=sampler if split == "train" else list(sampler),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class _ViewBatches(Dataset[Views]):
    """Batches of views; the seed of a batch's key determines its views."""

    def __init__(self, sampler: ViewSampler, batch_size: int, n_batches: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.n_batches = n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, key: SampleKey) -> Views:
        return self.sampler(self.batch_size, torch.Generator().manual_seed(key.seed))
