"""Samples drawn during training: atlas sections in synthetic contrast under known deformations, made in batches.

A sample is a plane and a seed, from which a loader process draws a few parameters. The training device makes images and
fields from these parameters, and need not wait for them. Nothing is written, no sample is repeated, and the true fields
are as exact as those of precomputed data.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from atlalign.atlas.atlas import Atlas
from atlalign.data.augmenter_kinds import BatchAugmenter
from atlalign.data.datamodule import DeviceDataModule
from atlalign.data.dataset import RegistrationBatch, SampleKey
from atlalign.data.demo import tissue_planes
from atlalign.errors import (
    InputError,
    check_finite_numbers,
    check_numbers,
    check_probabilities,
    check_range,
    check_size,
)
from atlalign.geometry import warp
from atlalign.geometry.random_fields import InvertibleField, invertible_field
from atlalign.synthesis.contrast import Contrast, Range, apply_contrast
from atlalign.synthesis.damage import Damage, missing, missing_half

_LIMITS = {
    "mean_fraction": 0.1,
    "largest_fraction": 0.2,
}  # As fractions of the width: affine maps up to these do not fold.
_LIMITS_SMOOTH = {
    "mean_fraction": 0.2,
    "largest_fraction": 0.6,
}  # As fractions of the spacing: smooth fields reach these.
_MARGIN_UM = 100.0  # Planes nearer than this look nearly the same.
# Velocities are integrated on every fourth pixel, or on a finer grid with at least 64 points along the width.
_COARSE_PX, _COARSE_WIDTH = 4, 64
_BYTES_A_NUMBER = 64  # per sample, in the lists that order an epoch
_INVERSE_TOLERANCE_PX = 0.05
_Drawn = TypeVar("_Drawn", bound=NamedTuple)


# --- section and reference --------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """Random deviations of a batch from pairs of a section and exactly its own plane; the first axis is the batch."""

    position_error: Tensor  # (B,), uniform in [−1, 1], as a share of the largest error
    half_reference: Tensor  # (B, 1, 1, 1): whether the reference of a half section shows only that half
    mirrored: Tensor  # (B, 1, 1, 1): whether both images are mirrored, left to right


def draw_setting(
    *, p_half_reference: float, p_mirrored: float, generator: torch.Generator | None = None
) -> Setting:
    """Return one random setting (B = 1), on the CPU."""
    error, half, mirror = torch.rand(3, 1, generator=generator)
    single = (1, 1, 1, 1)
    return Setting(2 * error - 1, (half < p_half_reference).view(single), (mirror < p_mirrored).view(single))


# --- samples ----------------------------------------------------------------------------------------------------------


class DrawnSample(TypedDict, total=False):
    """The parts of a sample that a worker draws and the device turns into images and fields.

    Planes (1, H, W) have the atlas's own type and values. Drawn parameters get their batch axis when they are collated.
    """

    section: Tensor
    labels: Tensor  # of the section, if there is a contrast
    reference: Tensor
    deformation: NamedTuple
    contrast: Contrast
    damage: Damage
    setting: Setting
    position_um: Tensor
    image_id: Tensor


@dataclass(frozen=True, kw_only=True)
class SampleDraw:
    """Draws a sample from a plane and a seed, on the CPU, with the options of `OnlineDataModule`."""

    atlas: Atlas
    field: InvertibleField
    contrast: Callable[..., Contrast] | None
    damage: Callable[..., Damage] | None
    setting: Callable[..., Setting]
    position_error_um: float

    def __call__(self, plane: int, seed: int) -> DrawnSample:
        """Return the sample; the deformation is drawn first, so that it does not depend on the other draws."""
        generator = torch.Generator().manual_seed(seed)
        section = self.atlas.template[plane][None]
        sample = DrawnSample(
            image_id=torch.tensor(plane),
            section=section,
            deformation=_single(self.field.draw(_in_unit_range(section[None]), generator=generator)),
        )
        if self.contrast is not None:
            assert self.atlas.annotation is not None  # the data module checks this
            sample["labels"] = self.atlas.annotation[plane][None]
            sample["contrast"] = _single(self.contrast(section[None], generator=generator))
        if self.damage is not None:
            sample["damage"] = _single(self.damage(section[None], generator=generator))
        sample["setting"] = _single(self.setting(generator=generator))
        reference_plane = self._reference_plane(plane, sample["setting"])
        sample["reference"] = self.atlas.template[reference_plane][None]
        sample["position_um"] = self.atlas.first_um(reference_plane)
        return sample

    def _reference_plane(self, plane: int, setting: Setting) -> Tensor:
        error_um = self.position_error_um * setting.position_error.double()
        position_um = (plane + 0.5) * self.atlas.spacing_um + error_um
        return self.atlas.plane_index(position_um.clamp(0, self.atlas.extent_um))


def _single(drawn: _Drawn) -> _Drawn:
    """Return the parameters of a batch of one without the batch axis."""
    return drawn._make(part[0] for part in drawn)


class TrainingDraws(Dataset[DrawnSample]):
    """Any number of samples; the seed in a sample's key determines its plane and parameters."""

    def __init__(self, draw: Callable[[int, int], DrawnSample], planes: np.ndarray, n_samples: int) -> None:
        self.draw = draw
        self.planes = planes
        self.n_samples = n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, key: SampleKey) -> DrawnSample:
        random = np.random.default_rng(key.seed)
        return self.draw(int(random.choice(self.planes)), int(random.integers(2**31)))


class ValidationDraws(Dataset[DrawnSample]):
    """The validation samples, the same in each epoch and spread evenly over the planes."""

    def __init__(
        self, draw: Callable[[int, int], DrawnSample], planes: np.ndarray, n_samples: int, seed: int
    ) -> None:
        self.draw = draw
        self.planes = planes[np.linspace(0, len(planes) - 1, n_samples).round().astype(int)]
        self.seeds = np.random.default_rng(seed).integers(2**31, size=n_samples)

    def __len__(self) -> int:
        return len(self.planes)

    def __getitem__(self, key: SampleKey | int) -> DrawnSample:
        index = key.sample if isinstance(key, SampleKey) else key
        return self.draw(int(self.planes[index]), int(self.seeds[index]))


def hold_out(
    planes: np.ndarray, *, val_fraction: float, n_blocks: int, margin: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the training and the validation planes: in each of `n_blocks` parts, a block of neighbours validates.

    Args:
        planes: Numbers of planes, ascending.
        val_fraction: The fraction of each part that is used for validation.
        n_blocks: The number of parts of about the same length.
        margin: Planes within this distance of a validation plane are not used for training, because they look alike.
        seed: Determines the place of each block in its part.

    Raises:
        InputError: If there are too few planes.
    """
    if len(planes) < 2 * n_blocks:
        raise InputError(
            f"data.n_val_blocks: expected at least {2 * n_blocks} planes with tissue for {n_blocks} blocks, "
            f"found {len(planes)}"
        )
    random = np.random.default_rng(seed)
    blocks = []
    for part in np.array_split(planes, n_blocks):
        length = min(max(1, round(val_fraction * len(part))), len(part) - 1)
        first = random.integers(len(part) - length + 1)
        blocks.append(part[first : first + length])
    val = np.concatenate(blocks)
    train = planes[np.abs(planes[:, None] - val).min(axis=1) > margin]
    if not len(train):
        raise InputError(
            f"data.val_fraction: expected some of the {len(planes)} planes left for training, got {val_fraction}"
        )
    return train, val


# --- the data module --------------------------------------------------------------------------------------------------


class OnlineDataModule(DeviceDataModule):
    """Batches of atlas sections in synthetic contrast under known deformations, made on the training device.

    Let R be a section in its contrast and u a deformation with the inverse w. The moving image is R(p + w(p)), so the
    moving image warped by u is R again. The reference is the plane of the template, or one near it.

    Args:
        atlas: The atlas at the working size, with its annotation if there is a contrast.
        samples_per_epoch: Number of training samples in an epoch; each epoch has new ones.
        n_val: Number of validation samples; each epoch has the same ones.
        deformation: "smooth" (diffeomorphic), "affine", or "affine_smooth" (smooth fields in affine maps).
        mean_fraction: Range of the mean displacement of each part, as a fraction of the width. It is at most 0.1, and
            for smooth fields also at most 0.2 of the spacing.
        largest_fraction: Range of the largest displacement, likewise: at most 0.2, and for smooth fields also at most
            0.6 of the spacing. Each field reaches both sizes.
        spacing: Distance between the knots of smooth fields, as a fraction of the width; smaller is rougher.
        contrast: Draws a contrast from sections and `generator`, as `draw_contrast` does; None keeps the template's.
        damage: Draws damage from sections and `generator`, as `draw_damage` does; None keeps sections intact.
        p_half_reference: Probability that the reference of a half section shows only that half.
        p_mirrored: Probability that section and reference are both mirrored, left to right.
        position_error_um: Largest distance between the reference and the section's plane, uniform in both directions,
            to simulate inaccurate anchorings. `position_um` is that of the reference. The true field stays within
            the plane.
        position_range_um: Range of planes, from front to back; None for all.
        val_fraction: Fraction of the planes that are used for validation.
        n_val_blocks: Number of blocks of neighbouring validation planes. Planes within 100 µm of a block are not used.
        others: The arguments of `DeviceDataModule`. `split_seed` determines the validation samples, `seed` the training
            samples.
    """

    def __init__(
        self,
        *,
        atlas: Atlas,
        samples_per_epoch: int = 1000,
        n_val: int = 100,
        deformation: Literal["smooth", "affine", "affine_smooth"] = "smooth",
        mean_fraction: Range = (0.01, 0.03),
        largest_fraction: Range = (0.03, 0.08),
        spacing: float = 0.25,
        contrast: Callable[..., Contrast] | None = None,
        damage: Callable[..., Damage] | None = None,
        p_half_reference: float = 0.0,
        p_mirrored: float = 0.0,
        position_error_um: float = 0.0,
        position_range_um: Sequence[float] | None = None,
        val_fraction: float = 0.2,
        n_val_blocks: int = 4,
        **others: Any,
    ) -> None:
        super().__init__(atlas=atlas, **others)
        _check_sizes(deformation, spacing, mean_fraction=mean_fraction, largest_fraction=largest_fraction)
        self.field = invertible_field(
            deformation,
            mean_fraction=mean_fraction,
            largest_fraction=largest_fraction,
            spacing=spacing,
            grid_px=max(1, min(_COARSE_PX, atlas.image_shape[1] // _COARSE_WIDTH)),
            tolerance_px=_INVERSE_TOLERANCE_PX,
        )
        _check_counts(samples_per_epoch=samples_per_epoch, n_val=n_val, n_val_blocks=n_val_blocks)
        if not 0 < val_fraction < 1:
            raise InputError(f"data.val_fraction: expected a share between 0 and 1, got {val_fraction}")
        if contrast is not None and atlas.annotation is None:
            raise atlas.lacks_annotation("keep the template's contrast with data.contrast=null")
        check_probabilities("data", p_half_reference=p_half_reference, p_mirrored=p_mirrored)
        check_finite_numbers({"data.position_error_um": position_error_um}, {"data.position_error_um": 0.0})
        for draw in (contrast, damage):
            if draw is not None:
                # A wrong range fails now rather than in the first batch.
                draw(atlas.template[:1, None], generator=torch.Generator())
        for name in ("moving", "reference"):
            if self._per_image(name):
                raise InputError(
                    f"augment.{name}: expected an augmenter for batches, because data=online makes images in batches "
                    "on the device: choose one such as augment=kornia_1"
                )
        self.samples_per_epoch = samples_per_epoch
        self.n_val = n_val
        self.draw = SampleDraw(
            atlas=atlas,
            field=self.field,
            contrast=contrast,
            damage=damage,
            setting=partial(draw_setting, p_half_reference=p_half_reference, p_mirrored=p_mirrored),
            position_error_um=position_error_um,
        )
        self.position_range_um = position_range_um
        self.val_fraction = val_fraction
        self.n_val_blocks = n_val_blocks

    def setup(self, stage: str | None = None) -> None:
        """Hold out the validation planes; Lightning calls this in each process."""
        if hasattr(self, "train_dataset"):
            return
        self.train_planes, self.val_planes = hold_out(
            self._planes(),
            val_fraction=self.val_fraction,
            n_blocks=self.n_val_blocks,
            margin=int(_MARGIN_UM // self.atlas.spacing_um),
            seed=self.split_seed,
        )
        self.train_dataset = TrainingDraws(self.draw, self.train_planes, self.samples_per_epoch)
        self.val_dataset = ValidationDraws(self.draw, self.val_planes, self.n_val, self.split_seed)
        self.train_split, self.val_split = np.arange(self.samples_per_epoch), np.arange(self.n_val)
        self._check_enough_to_train(f"data.samples_per_epoch={self.samples_per_epoch}")

    def complete(
        self,
        batch: DrawnSample,
        *,
        moving_augmenter: BatchAugmenter | None = None,
        reference_augmenter: BatchAugmenter | None = None,
    ) -> RegistrationBatch:
        """Return the batch that collated samples describe, made on their device."""
        shape, setting = self.atlas.image_shape, batch["setting"]
        pair = self.field.pair(batch["deformation"], shape)
        section, reference = _section(batch, shape), _in_unit_range(batch["reference"])
        if "damage" in batch:
            reference = reference.masked_fill(
                setting.half_reference & missing_half(batch["damage"], shape), 0
            )
        section, reference = (
            torch.where(setting.mirrored, image.flip(-1), image) for image in (section, reference)
        )
        # Extend the border: on a bright background, a black frame would reveal the affine map.
        moving = warp(section, pair.inverse, padding_mode="border")
        moving = moving if moving_augmenter is None else moving_augmenter(moving)
        reference = reference if reference_augmenter is None else reference_augmenter(reference)
        return RegistrationBatch(
            reference=reference,
            moving=moving,
            registered=warp(moving, pair.dvf),
            dvf=pair.dvf,
            inv_dvf=pair.inverse if self.return_inverse else None,
            position_um=batch["position_um"],
            image_id=batch["image_id"],
            dataset_id=torch.zeros_like(batch["image_id"]),
        )

    def _planes(self) -> np.ndarray:
        planes = tissue_planes(self.atlas)
        if self.position_range_um is None:
            return planes
        check_range(
            self.position_range_um, name="data.position_range_um", lowest=0, highest=self.atlas.extent_um
        )
        first, last = self.position_range_um
        position = planes * self.atlas.spacing_um
        chosen: np.ndarray = planes[(position >= first) & (position <= last)]
        return chosen


def _section(batch: DrawnSample, shape: tuple[int, int]) -> Tensor:
    """Return the sections (B, 1, H, W) before their deformation."""
    template = _in_unit_range(batch["section"])
    lost = missing(batch["damage"], shape) if "damage" in batch else None
    if "contrast" not in batch:
        return template if lost is None else template.masked_fill(lost, 0)
    labels = batch["labels"] if lost is None else batch["labels"].masked_fill(lost, 0)
    return apply_contrast(template, labels, batch["contrast"])


def _in_unit_range(planes: Tensor) -> Tensor:
    return planes.float() / 255


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        check_numbers({f"data.{name}": count}, {f"data.{name}": 1})
        check_size(f"data.{name}", [count], _BYTES_A_NUMBER)


def _check_sizes(deformation: str, spacing: float, **sizes: Range) -> None:
    """Raise an InputError if fields of these sizes may fold."""
    if not 0.05 <= spacing <= 1:
        raise InputError(f"data.spacing: expected 0.05 to 1 of the width, got {spacing}")
    for name, size in sizes.items():
        smooth = spacing if deformation != "affine" else math.inf
        highest = min(_LIMITS[name], _LIMITS_SMOOTH[name] * smooth)
        check_range(size, name=f"data.{name}", lowest=1e-4, highest=highest)
