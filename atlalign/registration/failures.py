"""Sections that could not be registered; `failures.json` beside the results lists each until it is registered.

Calls of `atlalign register` that share a folder of results share this file, so that each of them can write a table of
all sections. A failure is deleted when its section is registered, or when its image is deleted.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atlalign import __version__
from atlalign.io.files import is_file, is_folder, lock, storable, write_json

FAILURES = "failures.json"

Failures = dict[str, dict[str, Any]]
"""Failures by section name: `reason`, the name of the image's `file`, and the path of the `image` (None: no file)."""


def read_failures(out: Path) -> Failures:
    """Return the failures in a folder of results; none if their file is missing or damaged."""
    try:
        found = json.loads((out / FAILURES).read_text(encoding="utf-8"))["failures"]
        return {
            name: {key: failure[key] for key in ("reason", "file", "image")}
            for name, failure in found.items()
            if not _is_deleted(failure["image"])
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_deleted(image: str | None) -> bool:
    """Return whether an image was deleted from its folder; False if this machine cannot see the folder."""
    return image is not None and is_folder(Path(image).parent) and not is_file(Path(image))


def add_failure(out: Path, name: str, image: Path, reason: str) -> None:
    """Store the reason why a section could not be registered.

    Raises:
        WriteError: If the folder of results cannot be written.
    """
    path = str(image.absolute())
    is_known = is_file(image) and path == storable(path)
    failure = {"reason": reason, "file": storable(image.name), "image": path if is_known else None}
    _change(out, lambda failures: failures | {name: failure})


def remove_failure(out: Path, name: str) -> None:
    """Delete the failure of a section that has now been registered.

    Raises:
        WriteError: If the folder of results cannot be written.
    """
    if name in read_failures(out):
        _change(out, lambda failures: {other: failures[other] for other in failures if other != name})


def _change(out: Path, change: Callable[[Failures], Failures]) -> None:
    """Replace the failures while no other process does; without failures, the file is deleted."""
    with lock(out / FAILURES, wait=True):
        failures = change(read_failures(out))
        if not failures:
            (out / FAILURES).unlink(missing_ok=True)
            return
        content = {"aligner": f"atlalign {__version__}", "failures": failures}
        write_json(out / FAILURES, content)
