"""A folder of results under review: its sections, and their corrections on disk."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from atlalign.atlas.planes import Anchoring, Points
from atlalign.atlas.targets import Target
from atlalign.errors import InputError
from atlalign.io.files import lock
from atlalign.localization.recorded import LOCATED
from atlalign.registration.batch import CALLS
from atlalign.registration.batch_tables import TABLE, write_review
from atlalign.registration.corrections import (
    CORRECTION,
    Correction,
    Hemisphere,
    changes,
    correction_folder,
    read_correction,
    shown_correction,
    write_correction,
)
from atlalign.registration.failures import FAILURES, read_failures
from atlalign.registration.ignored import Ignored
from atlalign.registration.jobs import Job
from atlalign.registration.points import PointPairs
from atlalign.registration.record import RECORD, read_record

_BEGUN = (TABLE, CALLS, FAILURES, LOCATED, "slides")  # what `register` may write before its first section
_AREAS_AT_MOST = 10_000


class ConflictError(InputError):
    """Another process has changed a correction in the meantime."""


class Saved(NamedTuple):
    """A correction as stored on disk, and a key that identifies this state."""

    correction: Correction
    revision: str


class ReviewFolder:
    """A folder of results under review.

    Args:
        out: A folder that `register` writes, or is about to write.

    Raises:
        InputError: If it does not exist, or holds other files and no results.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self._records: dict[str, tuple[int, dict[str, Any]]] = {}
        self._rows: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._lock = Lock()
        if not self.out.is_dir():
            raise InputError(f"{out}: no such folder: run `atlalign register … --out {out}` first")
        if not (self.names() or self._is_begun()):
            raise InputError(
                f"{out}: expected a folder of results from `atlalign register`, found no section in it"
            )

    def _is_begun(self) -> bool:
        """Return whether `register` may have begun to write a folder that holds no section yet."""
        is_empty = all(path.name.startswith(".") for path in self.out.iterdir())
        return is_empty or any((self.out / name).exists() for name in _BEGUN)

    def names(self) -> list[str]:
        """Return the names of all sections with results, in order; links to other folders are skipped."""
        found = (path.parent.name for path in self.out.glob(f"[!.]*/{RECORD}"))
        return sorted(name for name in found if self._is_section(name))

    def path(self, name: str) -> Path:
        """Return the folder of a section.

        Raises:
            InputError: If there is no such section.
        """
        if not self._is_section(name):
            raise InputError(f"{name[:80]}: expected the name of a section")
        return self.out / name

    def _is_section(self, name: str) -> bool:
        folder = self.out / name
        try:
            is_here = Path(name).name == name and folder.resolve().parent == self.out.resolve()
            return is_here and not name.startswith(".") and (folder / RECORD).is_file()
        except (OSError, ValueError):  # a name may be too long, or hold a null character
            return False

    def record(self, name: str) -> dict[str, Any]:
        """Return the record of a section's transform, read again if it has changed.

        Raises:
            InputError: If it cannot be read.
        """
        folder = self.path(name)
        modified = (folder / RECORD).stat().st_mtime_ns
        known = self._records.get(name)
        if known is None or known[0] != modified:
            known = self._records[name] = modified, read_record(folder)
        return known[1]

    @cached_property
    def is_writable(self) -> bool:
        """Whether corrections can be written."""
        probe = self.out / f".writable-{uuid4().hex[:8]}"
        if not os.access(self.out, os.W_OK):
            return False
        try:
            probe.touch()
            probe.unlink()
        except OSError:
            return False
        return True

    # --- the list -----------------------------------------------------------------------------------------------------

    def sections(self) -> list[dict[str, Any]]:
        """Return all sections, including failed ones, with flag, reason and verdict as plain data."""
        names = self.names()
        rows = [self._row(name) for name in names]
        rows += [row for row in self._failed() if row["name"] not in set(names)]
        return sorted(rows, key=lambda row: row["name"])

    def _row(self, name: str) -> dict[str, Any]:
        """Return a section of the list, cached until one of its files changes."""
        files = [self.out / name / RECORD, *self._correction_files(name)]
        state = []
        for file in files:
            with suppress(OSError):
                state.append((file.name, file.stat().st_mtime_ns, file.stat().st_size))
        if name not in self._rows or self._rows[name][0] != state:
            self._rows[name] = state, self._read_row(name)
        return self._rows[name][1]

    def _read_row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {"name": name, "flag": "fail", "reason": "", "position_um": None, "opens": True}
        try:
            record = self.record(name)
            row |= {key: record.get(key) for key in ("flag", "reason", "position_um")}
        except (InputError, OSError) as error:
            return row | {"reason": str(error), "opens": False, **_NOTHING}
        try:
            saved = self.load(name)
        except InputError as error:
            return row | {"reason": str(error), "opens": False, **_NOTHING}
        correction = saved.correction
        return row | {
            "revision": saved.revision,
            "record": record.get("sha256", ""),
            "verdict": correction.verdict,
            "points": len(correction.points),
            "moves_plane": correction.moves_plane,
            "ignores": bool(correction.ignored),
            "is_applied": is_applied(record, correction),
        }

    def _failed(self) -> Iterator[dict[str, Any]]:
        """Yield the sections that could not be registered."""
        for name, failure in read_failures(self.out).items():
            reason = failure["reason"]
            yield {"name": name, "flag": "fail", "reason": reason, "position_um": None, "opens": False}

    # --- corrections --------------------------------------------------------------------------------------------------

    def load(self, name: str) -> Saved:
        """Return the correction of a section.

        Raises:
            InputError: If one of its files cannot be read.
        """
        self._check_inside(name)
        # Read first: a change that comes between the two is then refused when this correction is saved.
        revision = self.revision(name)
        return Saved(shown_correction(self.out, name), revision)

    def revision(self, name: str) -> str:
        """Return a key that identifies the state of a section's correction on disk."""
        total = hashlib.sha256()
        for path in self._correction_files(name):
            total.update(f"{path.name}\0".encode() + path.read_bytes())
        return total.hexdigest()[:16]

    def _check_inside(self, name: str) -> None:
        """Raise an error unless a name is that of a section, and its corrections lie inside the folder."""
        self.path(name)
        if not correction_folder(self.out, name).resolve().is_relative_to(self.out.resolve()):
            raise InputError(f"{name}: expected corrections in {self.out}, found a link to another folder")

    def _correction_files(self, name: str) -> list[Path]:
        folder = correction_folder(self.out, name)
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(path for path in found if not path.name.startswith("."))

    def save(self, name: str, correction: Correction, revision: str) -> str:
        """Write a correction, and return its revision; the painted mask on disk stays unchanged.

        Args:
            name: The section's name.
            correction: The whole correction without the mask.
            revision: The revision that was edited.

        Raises:
            ConflictError: If the revision on disk is another one.
            InputError: If it cannot be written.
        """
        self._check_inside(name)
        record = self.record(name)
        height, width = record["section"]["shape"]
        with self._lock, lock(correction_folder(self.out, name), wait=True):
            if self.revision(name) != revision:
                raise ConflictError(f"{name}: the correction was changed elsewhere in the meantime")
            mask = read_correction(self.out, name).ignored.mask
            target = Target.of_head(record, RECORD)
            whole = replace(correction, ignored=Ignored(mask, correction.ignored.areas), target=target)
            entry = record.get("visualign") or {}
            write_correction(
                self.out,
                name,
                whole,
                size=(height, width),
                filename=entry.get("filename", ""),
                number=entry.get("nr", 1),
            )
            with suppress(InputError):  # the correction is saved; `register` writes the table again
                write_review(self.out, name)
            return self.revision(name)


_NOTHING = {"verdict": None, "points": 0, "moves_plane": False, "ignores": False, "is_applied": True}


def is_applied(record: Mapping[str, Any], correction: Correction) -> bool:
    """Return whether the results were made with a correction's plane, points, mask and half."""
    made_with, wanted = (
        {name: found.get(name) or None for name in ("anchoring", "points", "ignored_sha256", "hemisphere")}
        for found in (
            record.get("settings", {}).get(CORRECTION) or {},
            changes(Job(Path()), correction) or {},
        )
    )
    return made_with == wanted


def hemisphere_of(record: Mapping[str, Any]) -> Hemisphere:
    """Return the part of the brain that the registration options give for the section, before any correction."""
    side: Hemisphere = record.get("settings", {}).get("hemisphere") or "whole"
    return side


def result_anchoring(record: Mapping[str, Any]) -> Anchoring | None:
    """Return the anchoring that the results correspond to; None if the reference is not a coronal plane of an atlas.

    The page moves coronal planes only.
    """
    entry = record.get("visualign")
    if not entry:
        return None
    vectors = np.array(entry["anchoring"], np.float64).reshape(3, 3)
    anchoring = Anchoring(vectors, (int(entry["height"]), int(entry["width"])))
    return anchoring if anchoring.kind == "coronal" else None


# --- as plain data ----------------------------------------------------------------------------------------------------


def to_json(correction: Correction, size: tuple[int, int]) -> dict[str, Any]:
    """Return a correction in the page's form, in pixels of an image (H, W)."""
    points = np.hstack([correction.points.reference_um, correction.points.on(size).section])
    return {
        "anchoring": correction.anchoring.to_json() if correction.anchoring else None,
        "moves_plane": correction.moves_plane,
        "points": points.tolist(),
        "areas": [[ring.tolist() for ring in area] for area in correction.ignored.areas],
        "verdict": correction.verdict,
        "note": correction.note,
        "hemisphere": correction.hemisphere,
    }


def from_json(found: Any, size: tuple[int, int]) -> Correction:
    """Return the correction that `to_json` has converted.

    Args:
        found: The page's data.
        size: (H, W) of the section's image.

    Raises:
        InputError: If it is not a correction.
    """
    try:
        anchoring = None
        if found["anchoring"] is not None:
            anchoring = Anchoring(np.array(found["anchoring"], np.float64).reshape(3, 3), size)
        points = as_numbers(found["points"], "points", 4)
        areas = tuple(
            tuple(as_numbers(ring, "areas", 2, least=3) for ring in area)
            for area in found["areas"][:_AREAS_AT_MOST]
        )
        return Correction(
            anchoring,
            bool(found["moves_plane"]),
            PointPairs(points[:, :2], points[:, 2:], size),
            Ignored(None, areas),
            found["verdict"],
            str(found["note"])[:10_000],
            found["hemisphere"],
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"expected a correction, found {json.dumps(found)[:80]} ({error})") from error


def as_numbers(found: Any, name: str, columns: int, *, least: int = 0) -> Points:
    """Return rows (N, columns) of numbers from the page.

    Raises:
        InputError: If a number is not finite, or there are fewer than `least` rows.
    """
    try:
        rows = (
            np.array(found, np.float64).reshape(-1, columns) if found == [] else np.array(found, np.float64)
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected rows of {columns} numbers, found {str(found)[:80]}") from error
    if rows.ndim != 2 or rows.shape[1] != columns or len(rows) < least or not np.isfinite(rows).all():
        raise InputError(
            f"{name}: expected at least {least} rows of {columns} finite numbers, found {str(found)[:80]}"
        )
    return rows
