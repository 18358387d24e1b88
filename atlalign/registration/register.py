"""Registration of one section: from its file to the map between it and its reference.

Two maps make up the result. The *placement* is affine and brings the section to the network's size; the network's field
does the rest. The image is interpolated once, by both maps together.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from atlalign.geometry import compose, jacobian_determinant, stays_inside, warp
from atlalign.io.images import one_channel, open_channels
from atlalign.metrics import mutual_information
from atlalign.networks import FinePassNet
from atlalign.registration.attempt import Attempt, after_last_pass, attempt, compared, network_field
from atlalign.registration.by_hand import placed_by_hand
from atlalign.registration.expected_error import expected_error_um
from atlalign.registration.jobs import Job
from atlalign.registration.measures import affine_part, cover
from atlalign.registration.network import TrainedNetwork, passes_of
from atlalign.registration.one_section import check_is_one
from atlalign.registration.output_size import output_pixel_um
from atlalign.registration.placed_field import field_of
from atlalign.registration.placed_image import placed_ignored
from atlalign.registration.placement import Placement, flipped, place_job, turned
from atlalign.registration.points import PointPairs, honoured
from atlalign.registration.quality import Alternative, OtherPlane, Quality
from atlalign.registration.recipe import Recipe
from atlalign.registration.references import Reference
from atlalign.registration.refine import refine as refined_dvf
from atlalign.registration.registered import (
    Registered,
    RegisteredSection,
    displacement_measures,
    lengths_um,
    section_transform,
)
from atlalign.registration.section import Section, read_section
from atlalign.registration.turning import likely_turns

NEARBY_UM, FARTHER_UM = (-500.0, -250.0, 250.0, 500.0), (-2000.0, -1000.0, 1000.0, 2000.0)
"""Distances from the section's plane at which it is also registered, the farther ones only in case of doubt."""
_DOUBT = (
    -0.05
)  # of `better_elsewhere`: correctly placed sections fit the neighbouring planes clearly less well
_APART_DEG = 5.0  # the network corrects smaller turns


def register_section(job: Job, recipe: Recipe) -> RegisteredSection:
    """Read, place and register one section; nothing is written.

    In the result, `registered.transform` is the map, a `SectionTransform`; `registered.registered` is the registered
    image as a tensor; and `registered.quality` holds the measures: lengths in µm, `similarity_before` and
    `similarity_after` in nats.

    Raises:
        InputError: If the section cannot be read, placed or registered.
    """
    recipe = recipe.of(job)
    network, references, options = recipe.network, recipe.references, recipe.options
    name = job.path.name
    image = open_channels(job.path, scene=options.scene, page=options.page, z=options.z)
    image.check()  # before any work that a missing part of the file would waste
    reference = references.of(job, options.hemisphere)
    module = network.module
    channel = one_channel(image, options.channel, name)
    if module is None:
        return placed_by_hand(job, image, channel, reference, options)
    section = read_section(
        channel, network.image_shape, background=options.background, name=name, ignored=job.ignored
    )
    check_is_one(section, options, job.path)
    placement = place_job(section, reference, job, options)
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
    output_um = output_pixel_um(options.output_um, section, reference, kept.placement, name)
    registered = _completed(
        module,
        network.last_pass,
        reference,
        section,
        kept,
        options.refine,
        options.refine_smoothness,
        job.points,
    )
    transform = replace(registered.transform, output_um=output_um)

    turned_otherwise = [
        Alternative(f"turned by {_further(other.placement, kept.placement):.0f}°", other.likeness)
        for other in turns
        if _is_apart(other.placement, kept.placement)
    ]
    if options.hemisphere is not None:  # in a whole brain both sides look alike
        turned_otherwise += _mirrored(module, reference, section, kept.placement)

    def on_planes(distances_um: Sequence[float]) -> list[OtherPlane]:
        """Return the section's likeness to planes at these distances from its own."""
        planes = references.nearby(job, options.hemisphere, distances_um)
        return [
            OtherPlane(distance, attempt(module, plane, section, kept.placement).likeness)
            for distance, plane in planes.items()
        ]

    planes = on_planes(NEARBY_UM)
    if registered.quality.compared((), planes).better_elsewhere > _DOUBT:
        planes += on_planes(FARTHER_UM)
    quality = registered.quality.compared(turned_otherwise, planes)
    error_um = _expected_error_um(network, kept, reference, registered)
    if error_um is not None:
        quality = replace(quality, expected_error_um=float(np.nanmedian(error_um)))
    registered = registered._replace(transform=transform, quality=quality, expected_error_um=error_um)
    return RegisteredSection(image, channel, section, reference, kept.placement, registered)


def _expected_error_um(
    network: TrainedNetwork, kept: Attempt, reference: Reference, registered: Registered
) -> NDArray[np.float32] | None:
    """Return the error expected before the last pass, refinement and points; None without a calibration."""
    if network.calibration is None or network.one_sided is None or registered.return_um is None:
        return None
    fields = (kept.placed, kept.dvf, registered.return_um)
    return expected_error_um(network.one_sided, network.calibration, reference, *fields)


def _likely(section: Section, reference: Reference, placement: Placement) -> list[Placement]:
    """Return the placement at the two turns at which the section looks most like its reference."""
    likely = likely_turns(section, reference, placement)[:2]
    return turned(placement, reference, *(turn.degrees for turn in likely))


def _further(placement: Placement, than: Placement) -> float:
    """Return the turn between two placements in degrees."""
    return (placement.turn - than.turn + 180) % 360 - 180


def _is_apart(placement: Placement, other: Placement) -> bool:
    return abs(_further(placement, other)) > _APART_DEG


def _mirrored(
    network: nn.Module, reference: Reference, section: Section, placement: Placement
) -> list[Alternative]:
    """Return the likeness of the mirrored section to its reference at the most likely turn."""
    likely = _likely(section, reference, flipped(placement, reference))[:1]
    return [Alternative("mirrored", attempt(network, reference, section, other).likeness) for other in likely]


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
        reference: The reference at the network's size; for a `FinePassNet`, at the size of its coarse network.
        section: The image.
        placement: Its placement on the reference.
        refine: Number of subsequent optimisation steps; see `refine.refine`.
        refine_smoothness: The `smoothness` of these steps.
        points: Pairs of corresponding points in the reference and the section.

    Raises:
        InputError: If the network fails, for example on another image size or for lack of memory, or its field is not
            finite.
    """
    network, last_pass = passes_of(network)
    found = attempt(network, reference, section, placement)
    points = PointPairs.none() if points is None else points
    return _completed(network, last_pass, reference, section, found, refine, refine_smoothness, points)


@torch.inference_mode()
def _completed(
    network: nn.Module,
    last_pass: FinePassNet | None,
    reference: Reference,
    section: Section,
    found: Attempt,
    refine: int,
    refine_smoothness: float,
    points: PointPairs,
) -> Registered:
    """Return the final registration of an attempt: corrected, refined, adjusted to its points, and measured."""
    back = network_field(network, found.placed, reference.image)
    # Inverse consistency is a property of the network, not of the refinement.
    there_and_back = torch.where(stays_inside(found.dvf)[:, None], compose(back, found.dvf), torch.nan)
    return_um = lengths_um(there_and_back, reference.grid)
    ignored = placed_ignored(section, found.placement, reference.grid.shape)
    dvf = found.dvf if last_pass is None else after_last_pass(last_pass, reference, section, found)
    if refine:
        dvf = refined_dvf(
            reference.image, found.placed, dvf, steps=refine, smoothness=refine_smoothness, ignored=ignored
        )
    base = transform = section_transform(dvf, found.placement, section, reference)
    folding = _folding(dvf)
    if len(points):
        transform = honoured(base, points, by_network=True)
        dvf = field_of(transform, found.placement.matrix).float()
    registered, seen = compared(reference, found.placed, ignored, dvf)
    placed = found.placed if ignored is None else found.placed * (ignored == 0)
    quality = Quality(
        **displacement_measures(dvf, seen),
        folding=_folding(dvf),
        inverse_consistency_um=float(return_um[seen.tissue].nanmean()),
        similarity_before=float(mutual_information(seen.image, placed)),
        similarity_after=float(mutual_information(seen.image, registered)),
        **affine_part(found.dvf, found.seen)._asdict(),
        **cover(found.registered, found.seen)._asdict(),
        likeness=found.likeness,
        folding_by_points=max(0.0, _folding(dvf) - folding),
    )
    return Registered(
        transform, found.placed, warp(found.placed, dvf), quality, return_um, base if len(points) else None
    )


def _folding(dvf: Tensor) -> float:
    return float((jacobian_determinant(dvf) <= 0).float().mean())
