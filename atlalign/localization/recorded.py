"""Records of located sections; a section keeps its plane until something that the plane depends on changes."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from atlalign.atlas.planes import Anchoring
from atlalign.atlas.section_lists import read_list
from atlalign.errors import InputError
from atlalign.io.files import storable, write_json
from atlalign.localization.located import Located
from atlalign.registration.jobs import Job

LOCATED = "located.json"
"""The anchorings of located sections; a table of all located sections is written beside it."""
RECORD = "located_from.json"
"""The record of the located sections, with their settings, beside the list of their anchorings."""

ATLAS = "atlas_sha256"
"""The setting that identifies the content of the atlas."""

_SAME_VOXELS = 0.01
_PLAIN = (
    *("brain", "number", "side", "position_um", "tilt_deg", "error_um", "error_deg", "likeness", "strain"),
    *("flag", "reason", "other_um", "elsewhere_um", "alone_um", "placed_um"),
)


class Recorded:
    """The sections that were located into one folder.

    Args:
        folder: The folder of the record; it need not exist.
        settings: Plain data that a plane depends on besides the image: `ATLAS`, and the options for series.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.path = folder / RECORD
        self.settings = dict(settings)
        self.entries = _read(self.path)

    def unchanged(self, jobs: Sequence[Job]) -> dict[int, Located]:
        """Return the sections that keep their earlier planes, by their index among the jobs.

        If the user has moved a plane in the list beside the record, for example with QuickNII, the section gets that
        plane.
        """
        listed = _anchorings(self.path.with_name(LOCATED))
        found = {place: self._located(job) for place, job in enumerate(jobs)}
        return {
            place: _moved(located, listed.get(_file(located.job)))
            for place, located in found.items()
            if located is not None
        }

    def _located(self, job: Job) -> Located | None:
        entry = self.entries.get(_key(job))
        try:
            unchanged = isinstance(entry, Mapping) and entry.get("from") == self._from(job)
        except OSError:  # no image
            return None
        return _of_entry(job, entry) if unchanged else None

    def changed(self, job: Job) -> set[str]:
        """Return the names of the settings that have changed since a section was located; empty if it never was."""
        entry = self.entries.get(_key(job))
        former = entry.get("from") if isinstance(entry, Mapping) else None
        if not isinstance(former, Mapping):
            return set()
        own = self._from(job)
        return {name for name in {*former, *own} if former.get(name) != own.get(name)}

    def others(self, jobs: Sequence[Job]) -> list[Located]:
        """Return the sections in the record that are not among the jobs, and lie in the same atlas."""
        asked = set(map(_key, jobs))
        same = self.settings[ATLAS]
        kept = [entry for key, entry in self.entries.items() if key not in asked and _atlas(entry) == same]
        found = [_of_entry(Job(Path(str(entry.get("file")))), entry) for entry in kept]
        return [located for located in found if located is not None]

    def write(self, located: Sequence[Located]) -> None:
        """Add sections to the record."""
        for found in located:
            if found.anchoring is not None:
                self.entries[_key(found.job)] = {
                    "file": _file(found.job),
                    "from": self._from(found.job),
                    "anchoring": found.anchoring.to_json(),
                    "size": list(found.anchoring.size),
                    "located": {name: _plain(getattr(found, name)) for name in _PLAIN},
                }
        write_json(self.path, self.entries, indent=1)

    def _from(self, job: Job) -> dict[str, Any]:
        """Return everything that a section's plane depends on, as plain data."""
        status = job.path.stat()
        own = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "brain": job.brain}
        own["section_number"] = job.section_number
        given = {**self.settings, **own, "options": _given(job)}
        return json.loads(storable(json.dumps(given, ensure_ascii=False, default=str)))  # type: ignore[no-any-return]


def _anchorings(path: Path) -> dict[str, Anchoring]:
    """Return the anchorings of a list by image file; empty if there is no such list."""
    if not path.is_file():
        return {}
    with suppress(InputError):
        return {
            storable(str(section.path.absolute())): section.anchoring
            for section in read_list(path)
            if section.anchoring is not None
        }
    return {}


def _moved(located: Located, anchoring: Anchoring | None) -> Located:
    """Return a section on the plane to which the user has moved it, or unchanged."""
    assert located.anchoring is not None
    if anchoring is None or np.allclose(anchoring.vectors, located.anchoring.vectors, atol=_SAME_VOXELS):
        return located
    ml_deg, dv_deg = np.rad2deg(np.arctan(anchoring.tilt))
    return Located(
        job=located.job,
        brain=located.brain,
        number=located.number,
        side=located.side,
        anchoring=Anchoring(anchoring.vectors, located.anchoring.size),
        position_um=anchoring.position_um,
        tilt_deg=(float(ml_deg), float(dv_deg)),
        reason="moved by hand",
    )


def _of_entry(job: Job, entry: Any) -> Located | None:
    """Return the section of an entry; None if it is damaged."""
    try:
        height, width = entry["size"]
        anchoring = Anchoring(np.array(entry["anchoring"], np.float64).reshape(3, 3), (height, width))
        plain = {name: _from_plain(entry["located"][name]) for name in _PLAIN}
    except (KeyError, TypeError, ValueError):
        return None
    return Located(job=job, anchoring=anchoring, **plain)


def _atlas(entry: Any) -> Any:
    return entry["from"].get(ATLAS) if isinstance(entry, dict) and "from" in entry else None


def _read(path: Path) -> dict[str, Any]:
    """Return the entries of a record; none if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(job: Job) -> str:
    return _file(job) + job._replace(options=_given(job)).part


def _file(job: Job) -> str:
    return storable(str(job.path.absolute()))


def _given(job: Job) -> dict[str, Any]:
    """Return the options that are set."""
    return {name: value for name, value in job.options.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return a value in JSON's form, without NaN."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_from_plain(part) for part in value)
    return math.nan if value is None else value
