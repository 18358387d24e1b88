"""One section registered: from its file to the map between it and its reference.

Two maps make up the result. The *placement* is affine and brings the section to the network's size; the network's field
does the rest. Both together interpolate the image once.
"""

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from atlalign.errors import InputError, describe
from atlalign.geometry import (
    compose,
    jacobian_determinant,
    stays_inside,
    warp,
)
from atlalign.io.images import one_channel, open_channels
from atlalign.io.pieces import several_sections
from atlalign.io.pixels import log
from atlalign.io.scenes import Scene
from atlalign.io.views import overview
from atlalign.metrics import mutual_information
from atlalign.registration.grid import Grid
from atlalign.registration.jobs import Job
from atlalign.registration.likeness import likeness
from atlalign.registration.measures import affine_part, cover
from atlalign.registration.options import Options
from atlalign.registration.placed_field import field_of, transform_of
from atlalign.registration.placement import (
    Placement,
    Section,
    antialiased,
    flipped,
    place,
    placed_ignored,
    placed_image,
    read_section,
    sampled_image,
    turned,
    unread_section,
)
from atlalign.registration.points import PointPairs, folded_share, honoured
from atlalign.registration.quality import Alternative, OtherPlane, Quality
from atlalign.registration.recipe import Recipe
from atlalign.registration.references import Reference
from atlalign.registration.refine import refine as refined_dvf
from atlalign.registration.transform import SectionTransform
from atlalign.registration.turning import likely_turns

NEARBY_UM, FARTHER_UM = (-500.0, -250.0, 250.0, 500.0), (-2000.0, -1000.0, 1000.0, 2000.0)
"""Distances from its plane at which a section is registered as well, the latter only in case of doubt."""

_DOUBT = -0.05  # of `better_elsewhere`: sections in their places are clearly less like the planes nearby
LARGEST_DEFAULT_PX = 2**27
"""Of larger images, outputs have larger pixels unless the user chooses."""
_LARGEST_PX = 10**11  # more is a mistake, whatever the disk holds
_OVERVIEW = (320, 456)  # enough to tell sections from each other
_UNMEASURED = {entry.name: torch.nan for entry in fields(Quality) if entry.default is MISSING}
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
    module = network.module
    channel = one_channel(image, options.channel, name)
    if module is None:
        return _by_hand(job, image, channel, reference, options)
    if not options.one_section:
        _check_is_one(channel, options.pixel_size_um, job.path)
    section = read_section(
        channel, network.image_shape, background=options.background, name=name, ignored=job.ignored
    )
    placement = _place(section, reference, job, options)
    is_free = options.turn is None and placement.placed_by in ("scale", "fit")
    turns = [
        attempt(module, reference, section, other)
        for other in _likely(section, reference, placement)
        if is_free or _is_apart(other, placement)
    ]
    if is_free and turns:
        kept = max(turns, key=lambda other: other.likeness)
    else:
        kept = attempt(module, reference, section, placement)
    output_um = _output_um(options.output_um, section, reference, kept.placement, name)
    registered = _completed(
        module, reference, section, kept, options.refine, options.refine_smoothness, job.points
    )
    transform = replace(registered.transform, output_um=output_um)

    turned_otherwise = [
        Alternative(f"turned by {_further(other.placement, kept.placement):.0f}°", other.likeness)
        for other in turns
        if _is_apart(other.placement, kept.placement)
    ]
    if options.hemisphere is not None:  # of a whole brain both sides look alike
        turned_otherwise += _mirrored(module, reference, section, kept.placement)

    def on_planes(distances_um: Sequence[float]) -> list[OtherPlane]:
        """Return how like planes at distances from its own the section is."""
        planes = references.nearby(job, options.hemisphere, distances_um)
        return [
            OtherPlane(distance, attempt(module, plane, section, kept.placement).likeness)
            for distance, plane in planes.items()
        ]

    planes = on_planes(NEARBY_UM)
    if registered.quality.compared((), planes).better_elsewhere > _DOUBT:
        planes += on_planes(FARTHER_UM)
    quality = registered.quality.compared(turned_otherwise, planes)
    registered = registered._replace(transform=transform, quality=quality)
    return RegisteredSection(image, channel, section, reference, kept.placement, registered)


def _place(section: Section, reference: Reference, job: Job, options: Options) -> Placement:
    """Return the place of a section that its job and the options ask for."""
    return place(
        section,
        reference,
        by=options.place,
        anchoring=job.anchoring,
        pixel_size_um=options.pixel_size_um,
        mirrored=options.mirrored,
        turn=options.turn or 0.0,
    )


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


def _by_hand(
    job: Job, image: Scene, channel: Scene, reference: Reference, options: Options
) -> RegisteredSection:
    """Return a section that lies where its anchoring and its points put it, whatever it shows."""
    if options.place in ("scale", "fit") or (job.anchoring is None and options.place != "stretch"):
        raise InputError(
            f"{job.path.name}: expected a section with an anchoring, or --place stretch, where no network "
            "registers it (--model none): scale and fit look for tissue"
        )
    if options.refine:
        raise InputError("--refine: expected a network to refine the result of, found --model none")
    section = unread_section(channel, reference.grid.shape)
    placement = _place(section, reference, job, options)
    output_um = _output_um(options.output_um, section, reference, placement, job.path.name)
    base = _transform(torch.zeros(1, 2, *reference.grid.shape), placement, section, reference)
    transform = honoured(base, job.points, by_network=False)
    dvf = field_of(transform, placement.matrix).float()
    placed = placed_image(section, placement, reference.grid.shape)
    folding = folded_share(transform, placement.matrix)
    measured = {**_displacement(dvf, reference), "folding": folding, "folding_by_points": folding}
    quality = Quality(**{**_UNMEASURED, **measured})
    without_points = base if len(job.points) else None
    transform = replace(transform, output_um=output_um)
    registered = Registered(transform, placed, warp(placed, dvf), quality, without_points)
    return RegisteredSection(image, channel, section, reference, placement, registered)


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
        without_points: The transform before it honoured points that a person set; None without points.
    """

    transform: SectionTransform
    placed: Tensor
    registered: Tensor
    quality: Quality
    without_points: SectionTransform | None = None


class Attempt(NamedTuple):
    """A placed section, and the network's registration of it.

    Attributes:
        placement: Its place on the reference.
        placed: (1, 1, H, W), the section there.
        dvf: (1, 2, H, W), the network's field.
        registered: (1, 1, H, W), the section under that field.
        seen: The reference without what lies on ignored tissue of the section: all that is measured.
        likeness: Of the registered section to the reference.
    """

    placement: Placement
    placed: Tensor
    dvf: Tensor
    registered: Tensor
    seen: Reference
    likeness: float


@torch.inference_mode()
def attempt(network: nn.Module, reference: Reference, section: Section, placement: Placement) -> Attempt:
    """Return the network's registration of a section as it is placed.

    Raises:
        InputError: If the network fails, or its field is not finite.
    """
    placed = sampled_image(antialiased(section, placement), placement, reference.grid.shape)
    dvf = _field(network, reference.image, placed)
    ignored = placed_ignored(section, placement, reference.grid.shape)
    registered, seen = _compared(reference, placed, ignored, dvf)
    return Attempt(placement, placed, dvf, registered, seen, likeness(seen.image, registered))


def _compared(
    reference: Reference, placed: Tensor, ignored: Tensor | None, dvf: Tensor
) -> tuple[Tensor, Reference]:
    """Return the section under a field, and the reference, both with nothing where tissue is ignored."""
    registered = warp(placed, dvf)
    if ignored is None:
        return registered, reference
    hidden = warp(ignored, dvf) > 0
    return registered * ~hidden, reference.without(hidden[0, 0])


def register(
    network: nn.Module,
    reference: Reference,
    section: Section,
    placement: Placement,
    *,
    refine: int = 0,
    refine_smoothness: float = 0.1,
    points: PointPairs | None = None,
) -> Registered:
    """Register a placed section to its reference.

    Args:
        network: Takes (reference, moving) and returns a `Registration`; it runs on the device of its weights.
        reference: At the network's size.
        section: The image.
        placement: Its place on the reference.
        refine: Number of optimisation steps that follow; see `refine.refine`.
        refine_smoothness: Their `smoothness`.
        points: Places in the reference and in the section that belong together.

    Raises:
        InputError: If the network fails, as on images of another size or for lack of memory, or its field is not
            finite.
    """
    found = attempt(network, reference, section, placement)
    points = PointPairs.none() if points is None else points
    return _completed(network, reference, section, found, refine, refine_smoothness, points)


@torch.inference_mode()
def _completed(
    network: nn.Module,
    reference: Reference,
    section: Section,
    found: Attempt,
    refine: int,
    refine_smoothness: float,
    points: PointPairs,
) -> Registered:
    """Return the registration that an attempt leads to: refined, through its points, and measured."""
    back = _field(network, found.placed, reference.image)
    # Inverse consistency is a property of the network, not of the refinement.
    there_and_back = torch.where(stays_inside(found.dvf)[:, None], compose(back, found.dvf), torch.nan)
    ignored = placed_ignored(section, found.placement, reference.grid.shape)
    dvf = found.dvf
    if refine:
        dvf = refined_dvf(
            reference.image, found.placed, dvf, steps=refine, smoothness=refine_smoothness, ignored=ignored
        )
    base = transform = _transform(dvf, found.placement, section, reference)
    folding = _folding(dvf)
    if len(points):
        transform = honoured(base, points, by_network=True)
        dvf = field_of(transform, found.placement.matrix).float()
    registered, seen = _compared(reference, found.placed, ignored, dvf)
    placed = found.placed if ignored is None else found.placed * (ignored == 0)
    quality = Quality(
        **_displacement(dvf, seen),
        folding=_folding(dvf),
        inverse_consistency_um=float(_length_um(there_and_back, reference.grid)[seen.tissue].nanmean()),
        similarity_before=float(mutual_information(seen.image, placed)),
        similarity_after=float(mutual_information(seen.image, registered)),
        **affine_part(found.dvf, found.seen)._asdict(),
        **cover(found.registered, found.seen)._asdict(),
        likeness=found.likeness,
        folding_by_points=max(0.0, _folding(dvf) - folding),
    )
    return Registered(
        transform, found.placed, warp(found.placed, dvf), quality, base if len(points) else None
    )


def _displacement(dvf: Tensor, reference: Reference) -> dict[str, Any]:
    """Return those measures of `Quality` that are lengths of the final field."""
    displacement = _length_um(dvf, reference.grid)[reference.tissue]
    return {
        "displacement_mean_um": float(displacement.mean()),
        "displacement_max_um": float(displacement.max()) if len(displacement) else torch.nan,
    }


def _folding(dvf: Tensor) -> float:
    return float((jacobian_determinant(dvf) <= 0).float().mean())


def _transform(dvf: Tensor, placement: Placement, section: Section, reference: Reference) -> SectionTransform:
    image = Grid(section.shape, placement.pixel_um)
    return transform_of(dvf, placement.matrix, reference.grid, image, reference.plane)


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
