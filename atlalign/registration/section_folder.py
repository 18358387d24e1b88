"""The folder of one section's results: the registration, its files and its record."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atlalign import __version__
from atlalign.atlas.planes import Anchoring
from atlalign.io.files import folder_written_whole, storable
from atlalign.registration import visualign
from atlalign.registration.earlier import check_replaceable
from atlalign.registration.jobs import Job
from atlalign.registration.points import WITHOUT_POINTS
from atlalign.registration.quality import MEASURES, Quality, derived_measures, judge
from atlalign.registration.recipe import Recipe
from atlalign.registration.register import register_section
from atlalign.registration.registered import RegisteredSection
from atlalign.registration.section_files import write_section_files

_DOUBT = "doubt"  # the key of a record for reasons that do not follow from its measures


def register_into(job: Job, recipe: Recipe, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Register one image, write its folder of results, and return its record.

    Raises:
        InputError: If the image cannot be registered, or the folder holds other files.
    """
    start = time.perf_counter()
    found = register_section(job, recipe)
    record = _record(job, recipe, found, settings)
    with folder_written_whole(folder, replace=True) as unfinished:
        write_section_files(unfinished, found, recipe.references.ontology, job.ignored)
        if found.registered.transform.plane is not None:
            record["visualign"] = _visualign_slice(job, recipe, found)
        if found.registered.without_points is not None:
            found.registered.without_points.forward.write(unfinished / WITHOUT_POINTS)
        record["seconds"] = round(time.perf_counter() - start, 2)
        found.registered.transform.save(unfinished, record)
        if folder.exists():
            check_replaceable(folder)  # the folder may have changed since the first check
    return record


def _record(
    job: Job, recipe: Recipe, found: RegisteredSection, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of a registration, with its flag."""
    placement, target = found.placement, recipe.references.target
    measured = {
        "position_um": job.position_um,
        **({} if target is None else target.to_json()),
        **_measures(found.registered.quality),
        "pixel_um": placement.pixel_um,
        "pixel_size_from": placement.pixel_size_from,
        "placed_by": placement.placed_by,
        "turn": round(placement.turn, 2),
        "background": found.section.background,
        "settings": dict(settings),
        "version": __version__,
    }
    return judged_record(measured, job, recipe)


def _visualign_slice(job: Job, recipe: Recipe, found: RegisteredSection) -> dict[str, Any]:
    """Return the section's entry in VisuAlign's file."""
    transform = found.registered.transform
    entry = visualign.visualign_slice(
        transform,
        storable(job.path.name),
        job.number,
        anchoring=job.anchoring,
        tissue=found.reference.tissue.numpy(),
        labels=found.reference.labels,
    )
    if recipe.network.module is None and job.anchoring is not None:
        # Without a network the markers are the whole registration, so they are written exactly.
        own = Anchoring(job.anchoring.vectors, transform.section.shape)
        entry["markers"] = job.points.as_markers(own)
    return entry


def _measures(quality: Quality) -> dict[str, Any]:
    """Return all measures as plain data; None replaces NaN, which JSON cannot store."""
    measured = asdict(quality)
    measured |= derived_measures(measured)
    return {name: None if value != value else value for name, value in measured.items()}


def judged_record(record: Mapping[str, Any], job: Job, recipe: Recipe) -> dict[str, Any]:
    """Return a record with its flag and the reason for it, given its measures, the recipe's limits and any doubts."""
    measures: dict[str, Any] = {name: math.nan if record[name] is None else record[name] for name in MEASURES}
    doubt = _doubt(job, recipe)
    flag, reason = judge(Quality(**measures), recipe.limits, doubt=doubt)
    bounds = {name: list(limit) for name, limit in recipe.limits.items()}
    judged = {**record, "flag": flag, "reason": reason, "limits": bounds, _DOUBT: doubt}
    return judged if doubt else {name: value for name, value in judged.items() if name != _DOUBT}


def _doubt(job: Job, recipe: Recipe) -> str:
    """Return the reasons to check a result whatever its measures are."""
    reasons = [job.doubt] if job.doubt else []
    if recipe.network.module is not None and job.anchoring is not None and job.anchoring.kind != "coronal":
        reasons.append(f"{job.anchoring.kind} section: networks and limits are meant for coronal sections")
    return "; ".join(reasons)
