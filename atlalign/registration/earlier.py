"""Earlier results of a section: whether a new call may keep them, and whether it may replace them."""

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from textwrap import shorten
from typing import Any

from atlalign.declarations import flag
from atlalign.errors import InputError
from atlalign.io.files import file_name, storable
from atlalign.registration.corrections import CORRECTION, Correction, changes, read_correction
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options
from atlalign.registration.points import WITHOUT_POINTS
from atlalign.registration.quality import MEASURES
from atlalign.registration.recipe import Recipe
from atlalign.registration.record import FORWARD, INVERSE, RECORD, check_whole, read_record
from atlalign.registration.section_files import SECTION_FILES

_OF_PLANE = {"position_um", "anchoring", "hemisphere"}
"""The settings that locating a section determines."""
_RESULTS = {FORWARD, INVERSE, RECORD, WITHOUT_POINTS, *SECTION_FILES}
_WORTHLESS = {".DS_Store", "Thumbs.db"}  # files of file managers

_FLAGS = (*(entry.name for entry in fields(Options)), "image_shape")
_WORDS = {
    **{name: flag(name) for name in _FLAGS},
    "file": "image",
    "bytes": "image",
    "modified_ns": "image",
    "position_um": "position",
    "model_sha256": "model",
    "reference_sha256": "reference",
    **{name: flag(name) for name in ("independent", "section_spacing_um")},
    "locator_sha256": flag("locator"),
    "atlas_sha256": "reference",
}
"""Names of settings as the user knows them."""


def settings_of(job: Job, recipe: Recipe, correction: Correction) -> dict[str, Any]:
    """Return all settings that determine the result, as plain data by name; limits are left out, as they only judge it.

    The corrections are one setting, which is missing if they do not change the result.
    """
    status = job.path.stat()
    of_image = {"file": job.path.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    where = {
        "position_um": job.position_um,
        "anchoring": None if job.anchoring is None else job.anchoring.to_json(),
    }
    settings = {**of_image, **where, **asdict(recipe.options), **recipe.origin}
    del settings["limits"]
    plain: dict[str, Any] = json.loads(storable(json.dumps(settings, ensure_ascii=False)))
    changed = changes(job, correction)
    return plain if changed is None else {**plain, CORRECTION: changed}


def earlier_record(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Return the record of an earlier registration with the same settings; None if there is no intact one."""
    if not folder.exists():
        return None
    former = _earlier_settings(folder)
    changed = _changed(former, settings)
    if former and not changed:
        with suppress(InputError):
            record = check_whole(folder)
            if record.keys() >= set(MEASURES):  # an earlier version had fewer measures
                return record
    # Users make corrections on purpose, so these do not need --overwrite as well.
    if overwrite or not former or changed <= {CORRECTION}:
        check_replaceable(folder)
        return None
    raise _refusal(folder, changed)


def check_unplaced(job: Job, recipe: Recipe, out: Path, relocated: Collection[str] = ()) -> None:
    """Check that a section whose plane is not known yet has no earlier results, or results that may be kept.

    This check is fast. Without it, minutes of locating would be wasted before `earlier_record` refuses the section.

    Args:
        job: The section, without a position.
        recipe: The reference, the network and the options.
        out: The folder of results.
        relocated: Names of the settings that have changed since the section was located.

    Raises:
        InputError: If the section has results that were made with other settings.
    """
    name = file_name(job.name)
    if not (out / name).exists() or not (former := _earlier_settings(out / name)):
        return
    settings = settings_of(job, recipe.of(job), read_correction(out, name))
    changed = _changed(former, settings) - _OF_PLANE - {CORRECTION}
    if former.get("anchoring") is None:  # a located section has one
        changed.add("position_um")
    if changed or relocated:
        raise _refusal(out / name, changed or relocated)


def _changed(former: Mapping[str, Any], settings: Mapping[str, Any]) -> set[str]:
    """Return the names of settings that differ; an option that did not exist at the time had its default, None."""
    return {name for name in {*former, *settings} if former.get(name) != settings.get(name)}


def _refusal(folder: Path, changed: Collection[str]) -> InputError:
    names = sorted({_WORDS.get(name, name) for name in changed})
    return InputError(
        f"{folder} holds results made with another {', '.join(names)}: choose another --out, or add --overwrite"
    )


def _earlier_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the results in a folder; empty if their record is damaged.

    Raises:
        InputError: If the folder contains other files.
    """
    if not (folder / RECORD).exists():
        check_replaceable(folder)
    try:
        settings = read_record(folder).get("settings")
    except InputError:
        return {}
    return settings if isinstance(settings, dict) else {}


def check_replaceable(folder: Path) -> None:
    """Raise an error if replacing the folder would delete files other than earlier results."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    foreign = found - (_RESULTS if RECORD in found else set()) - _WORTHLESS
    if foreign:
        names = shorten(", ".join(sorted(foreign)), 80)
        raise InputError(
            f"{folder} holds files other than results ({names}): move it away, or choose another --out"
        )
