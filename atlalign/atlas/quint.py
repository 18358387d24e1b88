"""The files of QuickNII, VisuAlign, DeepSlice, WebAlign and WebWarp: images anchored to the Allen atlas at 25 µm."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl
from xml.parsers import expat

from atlalign.atlas.planes import GRID
from atlalign.errors import InputError
from atlalign.io.files import read_bytes
from atlalign.io.tables import cut, read_text, shown

_log = logging.getLogger(__name__)

COMPONENTS = ("ox", "oy", "oz", "ux", "uy", "uz", "vx", "vy", "vz")
"""What the nine numbers of an anchoring are called."""

_ALLEN = re.compile(r"(?<![a-z])(aba|allen)_.*25um", re.IGNORECASE)
_RESOLUTION = [GRID[2], GRID[0], GRID[1]]  # voxels from left to right, back to front, bottom to top


class Slice(NamedTuple):
    """One entry of a file.

    Attributes:
        where: Its place in the file.
        content: The entry as QuickNII's JSON has it: filename, nr, width, height, and anchoring as nine numbers.
    """

    where: str
    content: Any


def read_slices(path: Path) -> list[Slice]:
    """Return the entries of a file, which is XML if its name says so, and JSON otherwise.

    Raises:
        InputError: If it cannot be read, is not such a file, or anchors to another atlas.
    """
    return _read_xml(path) if path.suffix.lower() == ".xml" else _read_json(path)


def _read_json(path: Path) -> list[Slice]:
    """Return the slices of QuickNII, VisuAlign and DeepSlice, or the sections of WebAlign and WebWarp."""
    content = _loaded(path)
    series = content if isinstance(content, dict) else {}
    if isinstance(series.get("slices"), list):
        name, entries = "slices", series["slices"]
    elif isinstance(series.get("sections"), list):
        name, entries = "sections", [_as_quicknii(entry) for entry in series["sections"]]
    else:
        raise InputError(
            f"{path}: expected a list of sections, an object with slices (QuickNII, VisuAlign, DeepSlice) or sections "
            f"(WebAlign, WebWarp), found {shown(content)}"
        )
    _check_target(path, series.get("target", series.get("atlas")), series.get("target-resolution"))
    _warn_of_markers(path, entries)
    return [Slice(f"{name}[{place}]", entry) for place, entry in enumerate(entries)]


def _read_xml(path: Path) -> list[Slice]:
    """Return the slices of QuickNII or DeepSlice.

    Nothing in the file is expanded or fetched: a document type, where entities are declared, is refused.
    """
    elements = _elements(path)
    if not elements or elements[0][0] != "series":
        found = elements[0][0] if elements else None
        raise InputError(
            f"{path}: expected a list of sections, QuickNII's element 'series', found {shown(found)}"
        )
    _check_target(path, elements[0][1].get("target"))
    slices = [attributes for name, attributes in elements if name == "slice"]
    return [
        Slice(f"slice {number}", {**attributes, "anchoring": _of_query(attributes.get("anchoring"))})
        for number, attributes in enumerate(slices, start=1)
    ]


def _loaded(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(
            f"{path}: expected a list of sections, found JSON that is nested too deeply"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: expected a list of sections, found no valid JSON: {error}") from error


def _elements(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the names, without namespaces, and the attributes of all elements in their order."""
    elements: list[tuple[str, dict[str, str]]] = []

    def refuse(*_: Any) -> None:
        raise InputError(
            f"{path}: expected a list of sections, found XML with a document type (DOCTYPE): remove it"
        )

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, attributes: elements.append(
        (name.rpartition(":")[2], attributes)
    )
    content = read_bytes(path)
    try:
        parser.Parse(content, True)
    except InputError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise InputError(f"{path}: expected a list of sections, found no valid XML: {error}") from error
    return elements


def _of_query(text: str | None) -> list[str] | None:
    """Return the nine numbers of `ox=…&oy=…`, those that are missing empty; None without any."""
    if not text or not text.strip():
        return None
    numbers = dict(parse_qsl(text, keep_blank_values=True))
    return [numbers.get(name, "").strip() for name in COMPONENTS]


def _as_quicknii(entry: Any) -> Any:
    """Return an entry of WebAlign as QuickNII would write it."""
    if not isinstance(entry, dict):
        return entry
    return {"anchoring": entry.get("ouv"), "nr": entry.get("snr"), **entry}


def _check_target(path: Path, target: Any, resolution: Any = None) -> None:
    """Raise an error where a file names another atlas than the Allen Mouse Brain CCFv3 at 25 µm."""
    if target not in (None, "") and not _ALLEN.search(re.sub("[ -]+", "_", str(target))):
        raise InputError(
            f"{path}: expected an anchoring to the Allen mouse atlas at 25um, such as ABA_Mouse_CCFv3_2017_25um, found "
            f"the target {shown(target)}"
        )
    if resolution not in (None, _RESOLUTION):
        raise InputError(
            f"{path}: expected the target-resolution {_RESOLUTION} of the Allen mouse atlas at 25um, found "
            f"{cut(str(resolution), 40)}"
        )


def _warn_of_markers(path: Path, slices: Sequence[Any]) -> None:
    marked = sum(isinstance(entry, Mapping) and bool(entry.get("markers")) for entry in slices)
    if marked:
        _log.warning(
            "%s: the markers of %d sections, made in VisuAlign or WebWarp, are not used, only their anchorings",
            path,
            marked,
        )
