"""Samples drawn while training: sections of the atlas in synthetic contrast under known deformations, made in batches.

A sample is a plane and a seed. What is drawn by these two is little, and is drawn where data are read, in workers if
there are some; images and fields are made of it on the training device, which need not wait for the draws. Nothing is
written, no sample comes twice, and the truth is as exact as that of precomputed data.
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
from atlalign.data.augmenters import BatchAugmenter
from atlalign.data.datamodule import DeviceDataModule
from atlalign.data.dataset import RegistrationBatch, SampleKey
from atlalign.data.demo import tissue_planes
from atlalign.errors import InputError, check_finite_numbers, check_numbers, check_size, unknown_name
from atlalign.geometry import (
    FieldPair,
    affine_simple_matrix,
    affine_to_dvf,
    compose,
    draw_affine_simple,
    draw_velocity,
    integrate,
    invert,
    invert_affine,
    jacobian,
    resize,
    stays_inside,
    warp,
)
from atlalign.synthesis.contrast import Contrast, Range, apply_contrast, check_probabilities, check_range
from atlalign.synthesis.damage import Damage, missing, missing_half

_LIMITS = {
    "mean_fraction": 0.1,
    "largest_fraction": 0.2,
}  # Of the width: affine maps up to these do not fold.
_LIMITS_SMOOTH = {"mean_fraction": 0.2, "largest_fraction": 0.6}  # Of the spacing: smooth fields reach these.
_MARGIN_UM = 100.0  # Planes nearer than this look nearly the same.
# Velocities are integrated on a grid of every fourth pixel, if 64 of these lie along the width.
_COARSE_PX, _COARSE_WIDTH = 4, 64
# A velocity's largest change in pixels per pixel: lengths change by at most exp(2), and the grid does not fold.
_STEEPEST = 2.0
_BYTES_A_NUMBER = 64  # of a sample in the lists that order an epoch
_INVERSE_TOLERANCE_PX = 0.05
_Drawn = TypeVar("_Drawn", bound=NamedTuple)


# --- deformations -----------------------------------------------------------------------------------------------------


class Deformation(NamedTuple):
    """What deformations are made of; `apply_deformation` turns them into fields. The first axis is the batch's."""

    velocity: Tensor  # (B, 2, h, w) on a coarse grid, of any size
    matrix: Tensor  # (B, 2, 3), an affine map of any size
    mean_fraction: Tensor  # (B, 1, 1, 1): the mean displacement, as a fraction of the width
    largest_fraction: Tensor  # (B, 1, 1, 1): the largest displacement


def draw_deformation(
    shape: tuple[int, int],
    *,
    mean_fraction: Range,
    largest_fraction: Range,
    spacing: float,
    generator: torch.Generator | None = None,
) -> Deformation:
    """Return one random deformation (B = 1) of images of `shape` (H, W), on the CPU.

    Args:
        shape: (H, W).
        mean_fraction: The mean displacement is drawn uniformly from this range, in fractions of the width.
        largest_fraction: The largest displacement, likewise.
        spacing: Distance of the smooth fields' knots as a fraction of the width.
        generator: A generator on the CPU; the global one otherwise.
    """
    sizes = torch.rand(2, 1, 1, 1, 1, generator=generator)
    return Deformation(
        velocity=draw_velocity(1, _coarse(shape), spacing=spacing, generator=generator),
        matrix=affine_simple_matrix(draw_affine_simple(1, shape, generator=generator), shape),
        mean_fraction=torch.lerp(*_ends(mean_fraction), sizes[0]),
        largest_fraction=torch.lerp(*_ends(largest_fraction), sizes[1]),
    )


def apply_deformation(drawn: Deformation, shape: tuple[int, int], kind: str) -> FieldPair:
    """Return fields (B, 2, H, W) and their inverses: `compose(dvf, inverse)` is at most 0.05 px inside the image.

    Each part of a field, smooth or affine, reaches both of the drawn sizes, to about 3 %; only where a velocity would
    be steeper than 2 px per px it stays smaller. A sample's field does not depend on the rest of its batch.

    Args:
        drawn: As `draw_deformation` returns it.
        shape: (H, W).
        kind: One of `DEFORMATIONS`.
    """
    return DEFORMATIONS[kind](drawn, shape)


def _smooth(drawn: Deformation, shape: tuple[int, int]) -> FieldPair:
    """Return diffeomorphic fields: integrated on the coarse grid, resized, and inverted as the fields that they are."""
    velocity = drawn.velocity * _missing(drawn.velocity, drawn)
    for _ in range(2):
        velocity = velocity * _missing(integrate(velocity), drawn)
    steepest = jacobian(velocity).abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    velocity = velocity * (_STEEPEST / steepest).clamp(max=1)
    dvf = resize(integrate(velocity), shape)
    start = resize(integrate(-velocity), shape)
    return FieldPair(dvf, invert(dvf, start=start, tolerance_px=_INVERSE_TOLERANCE_PX))


def _affine(drawn: Deformation, shape: tuple[int, int]) -> FieldPair:
    """Return affine fields, scaled along the line from the identity, and their inverses in closed form."""
    missing = _missing(affine_to_dvf(drawn.matrix, shape), drawn)[:, 0]
    matrix = torch.lerp(torch.eye(2, 3).to(drawn.matrix), drawn.matrix, missing)
    inverse = invert_affine(matrix.double()).to(matrix.dtype)
    return FieldPair(affine_to_dvf(matrix, shape), affine_to_dvf(inverse, shape))


def _affine_smooth(drawn: Deformation, shape: tuple[int, int]) -> FieldPair:
    """Return what a global and then a local registration would have to undo: affine outside, smooth inside."""
    affine, smooth = _affine(drawn, shape), _smooth(drawn, shape)
    dvf, inverse = compose(affine.dvf, smooth.dvf), compose(smooth.inverse, affine.inverse)
    # Between pixels a steep inverse is not exact. Beyond the border only the composition knows the affine map.
    exact = invert(dvf, start=inverse, tolerance_px=_INVERSE_TOLERANCE_PX)
    return FieldPair(dvf, torch.where(stays_inside(inverse)[:, None], exact, inverse))


DEFORMATIONS: dict[str, Callable[[Deformation, tuple[int, int]], FieldPair]] = {
    "smooth": _smooth,
    "affine": _affine,
    "affine_smooth": _affine_smooth,
}


def _missing(dvf: Tensor, drawn: Deformation) -> Tensor:
    """Return the factor (B, 1, 1, 1) by which the fields (B, 2, H, W) fall short of the drawn sizes."""
    displacement = dvf.square().sum(1).sqrt().flatten(1) / (dvf.shape[-1] - 1)
    mean, largest = (size.view(-1, 1, 1, 1) for size in (displacement.mean(1), displacement.amax(1)))
    return torch.maximum(drawn.mean_fraction / mean, drawn.largest_fraction / largest)


def _coarse(shape: tuple[int, int]) -> tuple[int, int]:
    step = max(1, min(_COARSE_PX, shape[1] // _COARSE_WIDTH))
    return (shape[0] - 1) // step + 1, (shape[1] - 1) // step + 1


def _ends(values: Range) -> tuple[Tensor, Tensor]:
    low, high = torch.tensor(values, dtype=torch.float32)
    return low, high


# --- how a section lies beside its reference --------------------------------------------------------------------------


class Setting(NamedTuple):
    """How the images of a batch differ from a section beside its own plane; the first axis is the batch's."""

    position_error: Tensor  # (B,), uniform in [−1, 1]: a share of the largest error
    half_reference: Tensor  # (B, 1, 1, 1): whether the reference of a half section shows that half alone
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
    """All that a sample is made from: what a worker draws, and the device turns into images and fields.

    Planes are those of the atlas, as it keeps them (1, H, W); draws have no axis of the batch until they are collated.
    """

    section: Tensor
    labels: Tensor  # of the section, where there is a contrast
    reference: Tensor
    deformation: Deformation
    contrast: Contrast
    damage: Damage
    setting: Setting
    position_um: Tensor
    image_id: Tensor


@dataclass(frozen=True, kw_only=True)
class SampleDraw:
    """Draws a sample of a plane by a seed, on the CPU; see `OnlineDataModule` for what is drawn."""

    atlas: Atlas
    deformation: Callable[..., Deformation]
    contrast: Callable[..., Contrast] | None
    damage: Callable[..., Damage] | None
    setting: Callable[..., Setting]
    position_error_um: float

    def __call__(self, plane: int, seed: int) -> DrawnSample:
        """Return the sample. What is drawn first stays the same whatever comes later: deformation, contrast, damage."""
        generator = torch.Generator().manual_seed(seed)
        section = self.atlas.template[plane][None]
        sample = DrawnSample(
            image_id=torch.tensor(plane),
            section=section,
            deformation=_single(self.deformation(generator=generator)),
        )
        if self.contrast is not None:
            assert self.atlas.annotation is not None  # the data module sees to that
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
    """Return what was drawn for a batch of one without the axis of the batch."""
    return drawn._make(part[0] for part in drawn)


class TrainingDraws(Dataset[DrawnSample]):
    """As many samples as wanted; key and epoch decide plane and seed, through the sampler's seeds."""

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
    """The same samples in each epoch, spread evenly over the planes."""

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
    """Return the planes that train and those that validate: one block of neighbours in each of `n_blocks` parts.

    Args:
        planes: Ascending numbers of planes.
        val_fraction: The share of each part that validates.
        n_blocks: The number of parts, about equally long.
        margin: Planes as near as this to one that validates do not train: they look nearly the same.
        seed: Decides where in its part a block lies.

    Raises:
        InputError: If too few planes are there.
    """
    if len(planes) < 2 * n_blocks:
        raise InputError(
            f"data.n_val_blocks: {n_blocks} blocks need {2 * n_blocks} planes with tissue, found {len(planes)}"
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
        raise InputError(f"data.val_fraction: {val_fraction} of {len(planes)} planes leaves none to train on")
    return train, val


# --- the data module --------------------------------------------------------------------------------------------------


class OnlineDataModule(DeviceDataModule):
    """Batches of atlas sections in synthetic contrast under known deformations, made on the training device.

    With R a section in its contrast, u a deformation and w its inverse, the moving image is R(p + w(p)), so that the
    moving image warped by u is R again; the reference is the plane of the template, or one near it.

    Args:
        atlas: The atlas at the working size, with its annotation where there is a contrast.
        samples_per_epoch: Training samples in an epoch, new ones in each.
        n_val: Validation samples, the same in each epoch.
        deformation: "smooth" (diffeomorphic), "affine", or "affine_smooth": smooth fields in affine maps.
        mean_fraction: Range of the mean displacement of each part, in fractions of the width, up to 0.1, and up to 0.2
            of the spacing where smooth fields are drawn.
        largest_fraction: Range of the largest displacement, up to 0.2 and 0.6 of the spacing; fields reach both sizes.
        spacing: Distance of the smooth fields' knots as a fraction of the width; smaller is rougher.
        contrast: Draws the contrast of sections from `labels` and `generator`, as `draw_contrast` does; None leaves
            the template as it is.
        damage: Draws what is missing in sections, likewise, as `draw_damage` does; None leaves them whole.
        p_half_reference: The probability that the reference of a section with a half missing shows that half alone.
        p_mirrored: The probability that section and reference are mirrored, left to right.
        position_error_um: The reference lies up to so far before or behind the section's plane, uniformly, as after an
            anchoring that errs; `position_um` is the reference's, and the truth stays that within the plane.
        position_range_um: The planes that are used lie at these positions, from front to back; None for all.
        val_fraction: The share of the planes that validate.
        n_val_blocks: They lie in so many blocks of neighbours, and planes within 100 µm of a block are left out.
        others: What `DeviceDataModule` takes; its `split_seed` decides all of validation, its `seed` all of training.
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
        if deformation not in DEFORMATIONS:
            raise unknown_name("data.deformation", deformation, DEFORMATIONS)
        _check_counts(samples_per_epoch=samples_per_epoch, n_val=n_val, n_val_blocks=n_val_blocks)
        if not 0 < val_fraction < 1:
            raise InputError(f"data.val_fraction: expected a share between 0 and 1, got {val_fraction}")
        _check_sizes(deformation, spacing, mean_fraction=mean_fraction, largest_fraction=largest_fraction)
        if contrast is not None and atlas.annotation is None:
            raise InputError(
                f"data.contrast needs region ids, but atlas '{atlas.name}' holds none: set atlas.with_annotation=true, "
                "or data.contrast=null for the template's own contrast"
            )
        check_probabilities("data", p_half_reference=p_half_reference, p_mirrored=p_mirrored)
        check_finite_numbers({"data.position_error_um": position_error_um}, {"data.position_error_um": 0.0})
        for draw in (contrast, damage):
            if draw is not None:
                # A wrong range fails now, and not in the first batch.
                draw(atlas.template[:1, None], generator=torch.Generator())
        for name in ("moving", "reference"):
            if self._per_image(name):
                raise InputError(
                    f"augment.{name}: data=online makes its images in batches, on the device; choose an augmenter "
                    "that works there, as augment=kornia_1"
                )
        self.samples_per_epoch = samples_per_epoch
        self.n_val = n_val
        self.deformation = deformation
        self.draw = SampleDraw(
            atlas=atlas,
            deformation=partial(
                draw_deformation,
                atlas.image_shape,
                mean_fraction=mean_fraction,
                largest_fraction=largest_fraction,
                spacing=spacing,
            ),
            contrast=contrast,
            damage=damage,
            setting=partial(draw_setting, p_half_reference=p_half_reference, p_mirrored=p_mirrored),
            position_error_um=position_error_um,
        )
        self.position_range_um = position_range_um
        self.val_fraction = val_fraction
        self.n_val_blocks = n_val_blocks

    def setup(self, stage: str | None = None) -> None:
        """Hold out the planes that validate; Lightning calls this in each process."""
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
        """Return the batch of collated samples, made on the device where they are."""
        shape, setting = self.atlas.image_shape, batch["setting"]
        pair = apply_deformation(batch["deformation"], shape, self.deformation)
        section, reference = _section(batch, shape), _in_unit_range(batch["reference"])
        if "damage" in batch:
            reference = reference.masked_fill(
                setting.half_reference & missing_half(batch["damage"], shape), 0
            )
        section, reference = (
            torch.where(setting.mirrored, image.flip(-1), image) for image in (section, reference)
        )
        # The border goes on, so that no black frame betrays the affine map of a section on a bright ground.
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
    """Return the sections (B, 1, H, W) as they are before the deformation."""
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
    """Raise an InputError unless maps as large as that do not fold."""
    if not 0.05 <= spacing <= 1:
        raise InputError(f"data.spacing: expected 0.05 to 1 of the width, got {spacing}")
    for name, size in sizes.items():
        smooth = spacing if deformation != "affine" else math.inf
        highest = min(_LIMITS[name], _LIMITS_SMOOTH[name] * smooth)
        check_range(size, name=f"data.{name}", lowest=1e-4, highest=highest)
