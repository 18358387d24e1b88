"""The files of QuickNII, VisuAlign, DeepSlice, WebAlign and WebWarp: images anchored to the Allen atlas at 25 µm.

The lists that this package writes have the same form. They may also be anchored to another atlas, whose voxels they
describe.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl
from xml.parsers import expat

from atlalign.atlas.planes import GRID
from atlalign.atlas.targets import VOXELS, Target
from atlalign.console import counted
from atlalign.errors import InputError
from atlalign.io.cells import cut, shown
from atlalign.io.files import read_bytes
from atlalign.io.tables import read_text

_log = logging.getLogger(__name__)

COMPONENTS = ("ox", "oy", "oz", "ux", "uy", "uz", "vx", "vy", "vz")
"""The names of the nine numbers of an anchoring."""

_ALLEN = re.compile(r"(aba|allen)_mouse(?!.*ccfv[12]_).*_25um", re.IGNORECASE)
_RESOLUTION = [GRID[2], GRID[0], GRID[1]]  # voxels from left to right, back to front, bottom to top


class Slice(NamedTuple):
    """One entry of a file.

    Attributes:
        where: The place of the entry in the file.
        content: The entry in the form of QuickNII's JSON: filename, nr, width, height, and anchoring as nine numbers.
        target: The atlas whose voxels are the unit of the anchoring.
    """

    where: str
    content: Any
    target: Target = Target()


def read_slices(path: Path) -> list[Slice]:
    """Return the entries of an XML file (.xml) or a JSON file (any other ending).

    Raises:
        InputError: If the file cannot be read, has another content, or anchors images to another atlas.
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
    target = _target(path, series)
    _warn_of_own_markers(path, series)
    return [Slice(f"{name}[{place}]", entry, target) for place, entry in enumerate(entries)]


def _read_xml(path: Path) -> list[Slice]:
    """Return the slices of QuickNII or DeepSlice.

    No entity is expanded and nothing is downloaded: a document type, which could declare entities, is rejected.
    """
    elements = _elements(path)
    if not elements or elements[0][0] != "series":
        found = elements[0][0] if elements else None
        raise InputError(
            f"{path}: expected a list of sections that starts with QuickNII's element 'series', found {shown(found)}"
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
        raise InputError(f"{path}: expected a list of sections, found invalid JSON: {error}") from error


def _elements(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the names, without namespaces, and the attributes of all elements in document order."""
    elements: list[tuple[str, dict[str, str]]] = []

    def refuse(*_: Any) -> None:
        raise InputError(
            f"{path}: expected XML without a document type declaration, found a DOCTYPE: remove the declaration"
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
        raise InputError(f"{path}: expected a list of sections, found invalid XML: {error}") from error
    return elements


def _of_query(text: str | None) -> list[str] | None:
    """Return the nine numbers in a text such as `ox=…&oy=…`, "" for each missing one; None if the text is empty."""
    if not text or not text.strip():
        return None
    numbers = dict(parse_qsl(text, keep_blank_values=True))
    return [numbers.get(name, "").strip() for name in COMPONENTS]


def _as_quicknii(entry: Any) -> Any:
    """Convert an entry of WebAlign to QuickNII's form."""
    if not isinstance(entry, dict):
        return entry
    return {"anchoring": entry.get("ouv"), "nr": entry.get("snr"), **entry}


def _target(path: Path, series: Mapping[str, Any]) -> Target:
    """Return the atlas of a file: the Allen CCFv3, or one whose voxels the file describes."""
    name = series.get("target", series.get("atlas"))
    if VOXELS in series and isinstance(name, str) and name:
        return Target.of_head({**series, "target": name}, str(path))
    _check_target(path, name, series.get("target-resolution"))
    return Target()


def _check_target(path: Path, target: Any, resolution: Any = None) -> None:
    """Raise an error if a file names an atlas other than the Allen Mouse Brain CCFv3 at 25 µm."""
    name = re.split(r"[/\\]", re.sub("[ -]+", "_", str(target)))[-1]
    if target not in (None, "") and not _ALLEN.match(name):
        raise InputError(
            f"{path}: expected an anchoring to the Allen mouse atlas at 25um, such as ABA_Mouse_CCFv3_2017_25um, found "
            f"the target {shown(target)}"
        )
    if resolution not in (None, _RESOLUTION):
        raise InputError(
            f"{path}: expected the target-resolution {_RESOLUTION} of the Allen mouse atlas at 25um, found "
            f"{cut(str(resolution), 40)}"
        )


def _warn_of_own_markers(path: Path, series: Mapping[str, Any]) -> None:
    """Warn that markers written by an earlier registration constrain the next one.

    VisuAlign removes the name of the aligner when it saves a file.
    """
    slices = series.get("slices")
    marked = sum(isinstance(entry, Mapping) and bool(entry.get("markers")) for entry in slices or ())
    if marked and str(series.get("aligner")).startswith("atlalign"):
        _log.warning(
            "%s: markers from an earlier registration (in %s) are used like markers of the user: "
            "delete them to register these sections without markers",
            path,
            counted(marked, "section"),
        )
