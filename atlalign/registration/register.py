"""A trained network applied to a placed section, and how it went.

Two maps make up the result. The *placement* is affine and brings the section to the network's size; the network's field
does the rest. Images are interpolated once, by both together.
"""

from collections.abc import Callable
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
from atlalign.registration.quality import Quality
from atlalign.registration.refine import refine as refined_dvf
from atlalign.registration.transform import Displacement, Grid, SectionTransform


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
