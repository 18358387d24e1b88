"""One section registered: from its file to the map between it and its reference.

Two maps make up the result. The *placement* is affine and brings the section to the network's size; the network's field
does the rest. Both together interpolate the image once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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
from atlalign.io.images import one_channel, open_channels
from atlalign.io.pieces import several_sections
from atlalign.io.pixels import log
from atlalign.io.scenes import Scene
from atlalign.io.views import overview
from atlalign.metrics import mutual_information
from atlalign.registration.jobs import Job
from atlalign.registration.likeness import likeness
from atlalign.registration.measures import affine_part, cover
from atlalign.registration.placement import (
    Placement,
    Section,
    antialiased,
    flipped,
    place,
    read_section,
    sampled_image,
    turned,
)
from atlalign.registration.quality import Alternative, OtherPlane, Quality
from atlalign.registration.recipe import Recipe
from atlalign.registration.references import Reference
from atlalign.registration.refine import refine as refined_dvf
from atlalign.registration.transform import Displacement, Grid, SectionTransform
from atlalign.registration.turning import likely_turns

NEARBY_UM, FARTHER_UM = (-500.0, -250.0, 250.0, 500.0), (-2000.0, -1000.0, 1000.0, 2000.0)
"""Distances from its plane at which a section is registered as well, the latter only in case of doubt."""

_DOUBT = -0.05  # of `better_elsewhere`: sections in their places are clearly less like the planes nearby
LARGEST_DEFAULT_PX = 2**27
"""Of larger images, outputs have larger pixels unless the user chooses."""
_LARGEST_PX = 10**11  # more is a mistake, whatever the disk holds
_OVERVIEW = (320, 456)  # enough to tell sections from each other
_APART_DEG = 5.0  # the network corrects smaller turns

# --- from the file ----------------------------------------------------------------------------------------------------


class RegisteredSection(NamedTuple):
    """A section from its file to its registration.

    Attributes:
        image: The image with all of its channels, of which more can be read.
        channel: The channel that is registered.
        section: That channel as the network sees it.
        reference: The image that it is registered to.
        placement: Its place on the reference before the network.
        registered: The map, both images and the quality.
    """

    image: Scene
    channel: Scene
    section: Section
    reference: Reference
    placement: Placement
    registered: "Registered"


def register_section(job: Job, recipe: Recipe) -> RegisteredSection:
    """Read, place and register one section; nothing is written.

    Raises:
        InputError: If it cannot be read, placed or registered.
    """
    recipe = recipe.of(job)
    network, references, options = recipe.network, recipe.references, recipe.options
    name = job.path.name
    image = open_channels(job.path, scene=options.scene, page=options.page, z=options.z)
    image.check()  # before work that a missing part of the file would spoil
    reference = references.of(job, options.hemisphere)
    channel = one_channel(image, options.channel, name)
    if not options.one_section:
        _check_is_one(channel, options.pixel_size_um, job.path)
    section = read_section(channel, network.image_shape, background=options.background, name=name)
    placement = place(
        section,
        reference,
        by=options.place,
        anchoring=job.anchoring,
        pixel_size_um=options.pixel_size_um,
        mirrored=options.mirrored,
        turn=options.turn or 0.0,
    )
    is_free = options.turn is None and placement.placed_by in ("scale", "fit")
    turns = [
        attempt(network.module, reference, section, other)
        for other in _likely(section, reference, placement)
        if is_free or _is_apart(other, placement)
    ]
    if is_free and turns:
        kept = max(turns, key=lambda other: other.likeness)
    else:
        kept = attempt(network.module, reference, section, placement)
    output_um = _output_um(options.output_um, section, reference, kept.placement, name)
    registered = _completed(
        network.module, reference, section, kept, options.refine, options.refine_smoothness
    )
    transform = replace(registered.transform, output_um=output_um)

    turned_otherwise = [
        Alternative(f"turned by {_further(other.placement, kept.placement):.0f}°", other.likeness)
        for other in turns
        if _is_apart(other.placement, kept.placement)
    ]
    if options.hemisphere is not None:  # of a whole brain both sides look alike
        turned_otherwise += _mirrored(network.module, reference, section, kept.placement)

    def on_planes(distances_um: Sequence[float]) -> list[OtherPlane]:
        """Return how like planes at distances from its own the section is."""
        planes = references.nearby(job, options.hemisphere, distances_um)
        return [
            OtherPlane(distance, attempt(network.module, plane, section, kept.placement).likeness)
            for distance, plane in planes.items()
        ]

    planes = on_planes(NEARBY_UM)
    if registered.quality.compared((), planes).better_elsewhere > _DOUBT:
        planes += on_planes(FARTHER_UM)
    quality = registered.quality.compared(turned_otherwise, planes)
    registered = registered._replace(transform=transform, quality=quality)
    return RegisteredSection(image, channel, section, reference, kept.placement, registered)


def _check_is_one(channel: Scene, pixel_size_um: float | None, path: Path) -> None:
    """Raise an error if the image shows several sections, as all of them at once fit no plane."""
    view = overview(channel, _OVERVIEW)
    x, y = channel.pixel_um or (pixel_size_um, pixel_size_um)
    known = pixel_size_um or (None if x is None or y is None else (x + y) / 2)
    count = several_sections(
        view.pixels[:, :],
        is_color=channel.is_color,
        pixel_um=None if known is None else known * sum(view.scale) / 2,
    )
    if count > 1:
        raise InputError(
            f"{path.name}: expected one section, found {count}: separate them (atlalign sections {path} --out FOLDER), "
            "or say that all of it is one section (--one-section)"
        )


def _likely(section: Section, reference: Reference, placement: Placement) -> list[Placement]:
    """Return the placement at the two turns at which the section looks most like its reference."""
    likely = likely_turns(section, reference, placement)[:2]
    return [turned(placement, reference, turn.degrees) for turn in likely]


def _further(placement: Placement, than: Placement) -> float:
    """Return the turn from one placement to another in degrees."""
    return (placement.turn - than.turn + 180) % 360 - 180


def _is_apart(placement: Placement, other: Placement) -> bool:
    return abs(_further(placement, other)) > _APART_DEG


def _output_um(
    wanted: float | None, section: Section, reference: Reference, placement: Placement, name: str
) -> float | None:
    """Return the pixel size of the images to write; None for that of the section's image.

    Raises:
        InputError: If they would be too large.
    """
    own_um = min(*placement.pixel_um, *reference.grid.pixel_um)
    largest = max(math.prod(section.shape), math.prod(reference.grid.finer(own_um).shape))
    if wanted is None and largest <= LARGEST_DEFAULT_PX:
        return None
    output_um = wanted or own_um * math.sqrt(largest / LARGEST_DEFAULT_PX)
    if wanted is None:
        log.warning(
            "%s: images are written with pixels of %.3g µm, because at %.3g µm they would have %.0f megapixels "
            "(--output-um chooses another size)",
            name,
            output_um,
            own_um,
            largest / 1e6,
        )
    elif math.prod(reference.grid.finer(wanted).shape) > _LARGEST_PX:
        raise InputError(
            f"{name}: --output-um: expected a registered image of at most {_LARGEST_PX:.0e} pixels, got {wanted:g} µm"
        )
    return output_um


def _mirrored(
    network: nn.Module, reference: Reference, section: Section, placement: Placement
) -> list[Alternative]:
    """Return the likeness of the mirrored section to its reference at the most likely turn."""
    likely = _likely(section, reference, flipped(placement, reference))[:1]
    return [Alternative("mirrored", attempt(network, reference, section, other).likeness) for other in likely]


# --- a placed section -------------------------------------------------------------------------------------------------


class Registered(NamedTuple):
    """A registered section.

    Attributes:
        transform: The map between the section's image and the reference.
        placed: (1, 1, H, W), the section before the network.
        registered: (1, 1, H, W).
        quality: How well the registration went.
    """

    transform: SectionTransform
    placed: Tensor
    registered: Tensor
    quality: Quality


class Attempt(NamedTuple):
    """A placed section, and the network's registration of it.

    Attributes:
        placement: Its place on the reference.
        placed: (1, 1, H, W), the section there.
        dvf: (1, 2, H, W), the network's field.
        registered: (1, 1, H, W), the section under that field.
        likeness: Of the registered section to the reference.
    """

    placement: Placement
    placed: Tensor
    dvf: Tensor
    registered: Tensor
    likeness: float


@torch.inference_mode()
def attempt(network: nn.Module, reference: Reference, section: Section, placement: Placement) -> Attempt:
    """Return the network's registration of a section as it is placed.

    Raises:
        InputError: If the network fails, or its field is not finite.
    """
    placed = sampled_image(antialiased(section, placement), placement, reference.grid.shape)
    dvf = _field(network, reference.image, placed)
    registered = warp(placed, dvf)
    return Attempt(placement, placed, dvf, registered, likeness(reference.image, registered))


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
        network: Takes (reference, moving) and returns a `Registration`; it runs on the device of its weights.
        reference: At the network's size.
        section: The image.
        placement: Its place on the reference.
        refine: Number of optimisation steps that follow; see `refine.refine`.
        refine_smoothness: Their `smoothness`.

    Raises:
        InputError: If the network fails, as on images of another size or for lack of memory, or its field is not
            finite.
    """
    found = attempt(network, reference, section, placement)
    return _completed(network, reference, section, found, refine, refine_smoothness)


@torch.inference_mode()
def _completed(
    network: nn.Module,
    reference: Reference,
    section: Section,
    found: Attempt,
    refine: int,
    refine_smoothness: float,
) -> Registered:
    """Return the registration that an attempt leads to: refined, measured, and as a map between files."""
    back = _field(network, found.placed, reference.image)
    # Inverse consistency is a property of the network, not of the refinement.
    there_and_back = torch.where(stays_inside(found.dvf)[:, None], compose(back, found.dvf), torch.nan)
    dvf = found.dvf
    if refine:
        dvf = refined_dvf(reference.image, found.placed, dvf, steps=refine, smoothness=refine_smoothness)
    registered = warp(found.placed, dvf)
    quality = Quality(
        **_moved(reference, found.placed, registered, dvf, there_and_back),
        **affine_part(found.dvf, reference)._asdict(),
        **cover(found.registered, reference)._asdict(),
        likeness=found.likeness,
    )
    transform = _transform(reference, section, found.placement, dvf)
    return Registered(transform, found.placed, registered, quality)


def _moved(
    reference: Reference, placed: Tensor, registered: Tensor, dvf: Tensor, there_and_back: Tensor
) -> dict[str, Any]:
    """Return the measures of `Quality` that depend on the final field."""
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


def _displacement(grid: Grid, to_mm: Callable[[Points], Points], scale: NDArray[np.float64]) -> Displacement:
    """Return the map of a function that takes pixels, `scale` times those of the grid, to mm of the other frame."""
    pixels = identity_grid(grid.shape, torch.float64, torch.device("cpu"))[0].flatten(1).T.numpy()
    mm = to_mm(pixels * scale) - grid.to_mm(pixels)
    return Displacement(grid, torch.from_numpy(mm.T.reshape(2, *grid.shape).astype(np.float32)))
