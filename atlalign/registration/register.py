"""A trained network applied to a placed section, and how it went.

Two maps make up the result. The *placement* is affine and brings the section to the network's size; the network's field
does the rest. Images are interpolated once, by both together.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from atlalign.atlas.planes import Points, apply_affine, invert_affine
from atlalign.errors import InputError, describe
from atlalign.geometry import (
    compose,
    identity_grid,
    invert,
    jacobian_determinant,
    stays_inside,
    warp,
    warp_points,
)
from atlalign.metrics import mutual_information
from atlalign.registration.likeness import likeness
from atlalign.registration.measures import affine_part, cover
from atlalign.registration.placement import Placement, Reference, Section, antialiased, sampled_image
from atlalign.registration.refine import refine as refined_dvf
from atlalign.registration.transform import Displacement, Grid, SectionTransform


class Alternative(NamedTuple):
    """Where a section could lie as well.

    Attributes:
        where: In words, such as "turned by 180°".
        likeness: Of the section to the reference there, when registered.
    """

    where: str
    likeness: float


_NOWHERE = Alternative("", 0.0)


@dataclass(frozen=True)
class Quality:
    """How a registration went; lengths are means or maxima over the reference's tissue.

    Attributes:
        displacement_mean_um: By how much the network moves it.
        displacement_max_um: The largest such displacement.
        folding: The share of the plane on which the field folds.
        inverse_consistency_um: The mean distance from where a point comes back to, when the network also registers the
            reference to the section: what a network is sure of, it finds both ways.
        similarity_before: Mutual information of section and reference, in nats, as placed.
        similarity_after: The same when registered.
        bending_um: The mean distance of the network's displacements from the affine map closest to them. A section in
            its place is bent little; one that lies elsewhere, or lacks a part, is bent much to look alike.
        rescaling: By what share that affine map changes the section's size. The network follows a wrong pixel size only
            in part.
        rotation_deg: By how many degrees that affine map turns the section, either way. The network follows a wrong
            turn only in part.
        uncovered: The share of the reference's tissue on which the section, as the network registers it, shows none: it
            is torn, lacks a part, is half of what was expected, or its stain leaves most tissue dark.
        beyond: The area of the section's tissue outside of the reference's tissue, as a share of the latter.
        likeness: Of the reference and the section as the network registers it.
        likeness_turned: The largest likeness when the section is turned otherwise, or half a section mirrored, and
            registered; 0 if none was tried.
        turned: The turn that has it.
        likeness_elsewhere: The largest likeness on planes before and behind, also registered; 0 if none was tried.
        elsewhere: The plane that has it.
    """

    displacement_mean_um: float
    displacement_max_um: float
    folding: float
    inverse_consistency_um: float
    similarity_before: float
    similarity_after: float
    bending_um: float
    rescaling: float
    rotation_deg: float
    uncovered: float
    beyond: float
    likeness: float
    likeness_turned: float = 0.0
    turned: str = ""
    likeness_elsewhere: float = 0.0
    elsewhere: str = ""

    def compared(self, turns: Iterable[Alternative], planes: Iterable[Alternative]) -> "Quality":
        """Return the measures with the likeliest of other turns and of other planes."""
        turned, elsewhere = (
            max(found, key=lambda other: other.likeness, default=_NOWHERE) for found in (turns, planes)
        )
        return replace(
            self,
            likeness_turned=turned.likeness,
            turned=turned.where,
            likeness_elsewhere=elsewhere.likeness,
            elsewhere=elsewhere.where,
        )

    @property
    def similarity_loss(self) -> float:
        """By how much the similarity has fallen."""
        return self.similarity_before - self.similarity_after

    @property
    def better_turned(self) -> float:
        """By what share the section is more like its reference at another turn, both times registered."""
        return self.likeness_turned / max(self.likeness, 1e-3) - 1

    @property
    def better_elsewhere(self) -> float:
        """By what share the section is more like another plane, both times registered."""
        return self.likeness_elsewhere / max(self.likeness, 1e-3) - 1


class Limit(NamedTuple):
    """From what on a measure of `Quality` calls for a look, and from what on the registration counts as failed."""

    look: float
    fail: float


LIMITS: Mapping[str, Limit] = {
    "displacement_max_um": Limit(1500.0, 3000.0),
    "folding": Limit(0.0, 0.01),
    "inverse_consistency_um": Limit(250.0, 500.0),
    "similarity_loss": Limit(0.0, 0.05),
    "bending_um": Limit(200.0, 500.0),
    "rescaling": Limit(0.13, 0.5),
    "rotation_deg": Limit(3.0, 20.0),
    "uncovered": Limit(0.06, 0.97),
    "beyond": Limit(0.15, 0.5),
    "better_turned": Limit(-0.05, 1.0),
    "better_elsewhere": Limit(-0.02, 1.0),
}
"""The limits that `judge` goes by; a value above one is beyond it.

Chosen on five sections of a brown immunostain with the shipped network, so that what errs by more than 150 µm does not
pass: of 206 such results on five other sections one did, with 167 µm (tests/registration/SITUATIONS.md). Some of the 18
sections are beyond a limit as they are: two lack tissue, others are as much like a plane 500 µm off. A stain that shows
little of the tissue is always beyond `uncovered`.
"""


def judge(quality: Quality, limits: Mapping[str, Limit] = LIMITS) -> tuple[str, str]:
    """Return pass, look or fail, and the reason for the latter two."""
    found = {name: getattr(quality, name) for name in limits}
    for flag, bounds in (
        ("fail", {name: limit.fail for name, limit in limits.items()}),
        ("look", {name: limit.look for name, limit in limits.items()}),
    ):
        # What is not a number is beyond every limit.
        beyond = [
            f"{name} {found[name]:.4g} > {bound:g}{_where(quality, name)}"
            for name, bound in bounds.items()
            if not found[name] <= bound
        ]
        if beyond:
            return flag, "; ".join(beyond)
    return "pass", ""


def _where(quality: Quality, measure: str) -> str:
    """Return where the section fits better, for the measures that compare places."""
    where = {"better_turned": quality.turned, "better_elsewhere": quality.elsewhere}.get(measure)
    if not where:
        return ""
    how = "better" if getattr(quality, measure) > 0 else "almost as well"
    return f" (it fits {how} {where})"


class Registered(NamedTuple):
    """A registered section.

    Attributes:
        transform: Between the section's image and the reference.
        placed: (1, 1, H, W), the section before the network looked at it.
        registered: (1, 1, H, W).
        quality: How it went.
    """

    transform: SectionTransform
    placed: Tensor
    registered: Tensor
    quality: Quality


@torch.inference_mode()
def register(
    network: nn.Module,
    reference: Reference,
    section: Section,
    placement: Placement,
    *,
    refine: int = 0,
    refine_smoothness: float = 0.1,
) -> Registered:
    """Register a placed section to its reference.

    Args:
        network: Takes (reference, moving) and returns a `Registration`; it runs where its weights are.
        reference: At the size that the network takes.
        section: The image.
        placement: Where it lies on the reference.
        refine: So many steps of `refine` follow.
        refine_smoothness: As `refine` has it.

    Raises:
        InputError: If the network fails, as on images of another size or for want of memory, or its field is not
            finite.
    """
    section = antialiased(section, placement)
    placed = sampled_image(section, placement, reference.grid.shape)
    dvf = _field(network, reference.image, placed)
    back = _field(network, placed, reference.image)
    by_network = warp(placed, dvf)
    measures = {
        **affine_part(dvf, reference)._asdict(),
        **cover(by_network, reference)._asdict(),
        "likeness": likeness(reference.image, by_network),
    }
    # What the network is sure of is asked of the network alone.
    there_and_back = torch.where(stays_inside(dvf)[:, None], compose(back, dvf), torch.nan)
    if refine:
        dvf = refined_dvf(reference.image, placed, dvf, steps=refine, smoothness=refine_smoothness)
    registered = warp(placed, dvf)
    quality = Quality(**_moved(reference, placed, registered, dvf, there_and_back), **measures)
    return Registered(_transform(reference, section, placement, dvf), placed, registered, quality)


def _moved(
    reference: Reference, placed: Tensor, registered: Tensor, dvf: Tensor, there_and_back: Tensor
) -> dict[str, Any]:
    """Return those measures of `Quality` that are of the field, refined or not."""
    tissue = reference.tissue
    displacement = _length_um(dvf, reference.grid)[tissue]
    residual = _length_um(there_and_back, reference.grid)[tissue]
    return {
        "displacement_mean_um": float(displacement.mean()),
        "displacement_max_um": float(displacement.max()),
        "folding": float((jacobian_determinant(dvf) <= 0).float().mean()),
        "inverse_consistency_um": float(residual.nanmean()),
        "similarity_before": float(mutual_information(reference.image, placed)),
        "similarity_after": float(mutual_information(reference.image, registered)),
    }


def _field(network: nn.Module, reference: Tensor, moving: Tensor) -> Tensor:
    """Return the network's field (1, 2, H, W) on the CPU.

    Raises:
        InputError: If the network fails, or its field is not finite.
    """
    device = next((parameter.device for parameter in network.parameters()), moving.device)
    try:
        output = network(reference.to(device), moving.to(device))
    except (ValueError, RuntimeError) as error:
        height, width = reference.shape[-2:]
        raise InputError(f"the network fails on images of {height}×{width} px: {describe(error)}") from error
    dvf: Tensor = output.dvf.float().cpu()
    if not bool(dvf.isfinite().all()):
        raise InputError("the network returned displacements that are not finite")
    return dvf


@torch.inference_mode()
def registered_likeness(
    network: nn.Module, reference: Reference, section: Section, placement: Placement
) -> float:
    """Return how like its reference a placed section is when the network has registered it."""
    placed = sampled_image(antialiased(section, placement), placement, reference.grid.shape)
    return likeness(reference.image, warp(placed, _field(network, reference.image, placed)))


def _length_um(dvf: Tensor, grid: Grid) -> Tensor:
    return (dvf[0] * torch.tensor(grid.pixel_um).view(2, 1, 1)).square().sum(dim=0).sqrt()


def _transform(reference: Reference, section: Section, placement: Placement, dvf: Tensor) -> SectionTransform:
    image = Grid(section.shape, placement.pixel_um)
    field = dvf.double()

    def to_section_mm(points: Points) -> Points:
        moved = warp_points(torch.from_numpy(points)[None], field)[0].numpy()
        return image.to_mm(apply_affine(placement.matrix, moved))

    inverse = invert(field)

    def to_reference_mm(points: Points) -> Points:
        placed = apply_affine(invert_affine(placement.matrix), points)
        return reference.grid.to_mm(warp_points(torch.from_numpy(placed)[None], inverse)[0].numpy())

    # As fine as the network's grid: more would only repeat what is between its pixels.
    coarse = image.finer(max(min(reference.grid.pixel_um), *placement.pixel_um))
    scale = np.array(coarse.pixel_um) / np.array(placement.pixel_um)
    return SectionTransform(
        _displacement(reference.grid, to_section_mm, np.ones(2)),
        _displacement(coarse, to_reference_mm, scale),
        image,
        reference.plane,
    )


def _displacement(grid: Grid, to_mm: Callable[[Points], Points], scale: Points) -> Displacement:
    """Return the map of a function that takes pixels, `scale` times those of the grid, to mm of the other frame."""
    pixels = identity_grid(grid.shape, torch.float64, torch.device("cpu"))[0].flatten(1).T.numpy()
    mm = to_mm(pixels * scale) - grid.to_mm(pixels)
    return Displacement(grid, torch.from_numpy(mm.T.reshape(2, *grid.shape).astype(np.float32)))
