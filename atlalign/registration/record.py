"""The record of a section's folder: plain data on how its files were made, with their sizes and checksums."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlalign.errors import InputError
from atlalign.io.cells import cut
from atlalign.io.files import fingerprint, storable, written_whole

FORWARD, INVERSE, RECORD = "forward.nii.gz", "inverse.nii.gz", "transform.json"
"""The files of a transform."""
LABELS, REGIONS = "reference_labels.tif", "regions.csv"
"""The files beside a transform if the reference has labels."""
RECORD_FORMAT = 1
_CHECKSUM = "sha256"  # of the record itself
REGISTER_AGAIN = "register the section again with --overwrite"


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record saved with a transform, as plain data.

    Raises:
        InputError: If the folder holds no transform, or its record was changed after it was written.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(_no_record(folder, error)) from error
    if not isinstance(record, dict) or record.get("format") != RECORD_FORMAT:
        found = record.get("format", "none") if isinstance(record, dict) else "no object"
        raise InputError(
            f"{folder / RECORD}: expected a record of format {RECORD_FORMAT}, found {cut(str(found), 40)}: use the "
            f"version of atlalign that wrote it, or {REGISTER_AGAIN}"
        )
    if record.get(_CHECKSUM) != _checksum(record):
        raise InputError(
            f"{folder / RECORD}: expected an unchanged record, found one that was changed later: {REGISTER_AGAIN}"
        )
    return record


def _no_record(folder: Path, error: Exception) -> str:
    """Return the reason why a folder is not the folder of one section."""
    if (folder / RECORD).exists():
        return (
            f"{folder / RECORD}: expected the record of a section, found a file that cannot be read ({error}): "
            f"{REGISTER_AGAIN}"
        )
    if any(folder.glob(f"*/{RECORD}")):
        return f"{folder}: expected the folder of one section, found a folder that holds several"
    return f"{folder}: expected a section's folder from `atlalign register`, found no {RECORD} in it"


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record and its checksum, and replace the previous record."""
    content = {**record, _CHECKSUM: _checksum(record)}
    with written_whole(folder / RECORD) as unfinished:
        unfinished.write_text(storable(_compact_json(content)) + "\n", encoding="utf-8")


def check_whole(folder: Path) -> dict[str, Any]:
    """Return the record of a transform after checking that no file of its folder has changed.

    A file is read only if its size or time differs from the record.

    Raises:
        InputError: If the record or a file is missing, damaged or changed.
    """
    record = read_record(folder)
    for name in record.get("files", {}):
        check_file(folder, record, name)
    return record


def check_file(folder: Path, record: Mapping[str, Any], name: str) -> None:
    """Check that a file listed in a record has not changed since it was written.

    Raises:
        InputError: If it is missing, damaged or changed.
    """
    state = record.get("files", {}).get(name)
    if state is None:
        return
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: expected a file of results, found no file: {REGISTER_AGAIN}")
    if not _is_as_written(path, state):
        raise InputError(
            f"{path}: expected an unchanged file, found one that was changed later: {REGISTER_AGAIN}"
        )


def file_state(path: Path) -> dict[str, Any]:
    """Return the size, time and checksum of a file, as stored in a record."""
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": fingerprint(path)}


def _is_as_written(path: Path, state: Mapping[str, Any]) -> bool:
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) == (state["bytes"], state["modified_ns"]):
        return True
    return bool(status.st_size == state["bytes"] and fingerprint(path) == state["sha256"])


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the checksum of a record's content, which does not depend on its layout."""
    content = {name: value for name, value in record.items() if name != _CHECKSUM}
    text = storable(json.dumps(content, ensure_ascii=False, sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()


def _compact_json(record: Mapping[str, Any]) -> str:
    """Return plain data as indented JSON, each list of numbers on one line."""
    text = json.dumps(record, indent=2, ensure_ascii=False)
    # Strings in JSON have no line breaks, and lists of numbers contain neither brackets nor quotes.
    return re.sub(r'\[\n([^\[\]{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text)
