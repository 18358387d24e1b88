"""Registration without a network: the anchoring and the points place the section."""

from dataclasses import MISSING, fields, replace

import torch

from atlalign.errors import InputError
from atlalign.geometry import warp
from atlalign.io.scenes import Scene
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options
from atlalign.registration.output_size import output_pixel_um
from atlalign.registration.placed_field import field_of
from atlalign.registration.placed_image import placed_image
from atlalign.registration.placement import place_job
from atlalign.registration.points import folded_share, honoured
from atlalign.registration.quality import Quality
from atlalign.registration.references import Reference
from atlalign.registration.registered import (
    Registered,
    RegisteredSection,
    displacement_measures,
    section_transform,
)
from atlalign.registration.section import unread_section

_UNMEASURED = {entry.name: torch.nan for entry in fields(Quality) if entry.default is MISSING}


def placed_by_hand(
    job: Job, image: Scene, channel: Scene, reference: Reference, options: Options
) -> RegisteredSection:
    """Return a section placed by its anchoring and its points alone."""
    if options.place in ("scale", "fit") or (job.anchoring is None and options.place != "stretch"):
        raise InputError(
            f"{job.path.name}: expected an anchoring or --place stretch with --model none, because --place scale and "
            "fit need visible tissue"
        )
    if options.refine:
        raise InputError("--refine: expected a network whose result can be refined, found --model none")
    section = unread_section(channel, reference.grid.shape)
    placement = place_job(section, reference, job, options)
    output_um = output_pixel_um(options.output_um, section, reference, placement, job.path.name)
    base = section_transform(torch.zeros(1, 2, *reference.grid.shape), placement, section, reference)
    transform = honoured(base, job.points, by_network=False)
    dvf = field_of(transform, placement.matrix).float()
    placed = placed_image(section, placement, reference.grid.shape)
    folding = folded_share(transform, placement.matrix)
    measured = {**displacement_measures(dvf, reference), "folding": folding, "folding_by_points": folding}
    quality = Quality(**{**_UNMEASURED, **measured})
    without_points = base if len(job.points) else None
    transform = replace(transform, output_um=output_um)
    registered = Registered(transform, placed, warp(placed, dvf), quality, without_points=without_points)
    return RegisteredSection(image, channel, section, reference, placement, registered)
