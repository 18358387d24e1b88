"""Lists of sections: which images there are, and where each lies in the atlas."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from atlalign.atlas.planes import GRID_UM, Anchoring, check_is_um
from atlalign.errors import InputError
from atlalign.io.tables import number, read_table, read_text, shown, whole_number

_log = logging.getLogger(__name__)
LIST_ENDINGS = (".json", ".csv", ".tsv", ".txt")
"""What the names of lists of sections end in."""
_DEEPSLICE = ("ox", "oy", "oz", "ux", "uy", "uz", "vx", "vy", "vz")


class Identity(NamedTuple):
    """What a sample keeps of its original: the position in µm from the front, and the ids."""

    position_um: int
    image_id: int
    dataset_id: int


class ListedSection(NamedTuple):
    """One image of a list.

    Attributes:
        path: Its file; where the list names none, the entry's own name in the list.
        identity: What its samples keep; its position is rounded down.
        position_um: Where its centre lies along AP.
        anchoring: Where all of it lies, if the list says that.
        problem: What is wrong with what the list says of it, if anything: then its position means nothing.
        cells: All that a table says of it, by the names of its columns in lower case.
        where: In which line of the table.
    """

    path: Path
    identity: Identity
    position_um: float
    anchoring: "Anchoring | None"
    problem: str = ""
    cells: Mapping[str, str] = MappingProxyType({})
    where: str = ""


def find_list(path: Path) -> Path:
    """Return `path`, or of a folder the one list of sections (.json, .csv) in it; both of one name are one list.

    Without either, a .tsv or .txt file is it: beside one, these are tables of cells, or notes.

    Raises:
        InputError: If a folder has none, or several.
    """
    if not path.is_dir():
        return path
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in LIST_ENDINGS)
    found = [p for p in files if p.suffix.lower() in LIST_ENDINGS[:2]] or files
    # DeepSlice saves both; of them the .json comes last.
    if len({p.stem for p in found}) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise InputError(f"expected one list of sections (.json or .csv) in the folder {path}, found {names}")
    return found[-1]


def read_list(path: Path) -> list[ListedSection]:
    """Return the sections of a list; what is wrong with one of them is its `problem`.

    A table's columns are `filename`, `p` in µm and perhaps `image_id` and `dataset_id`, or those of DeepSlice, whose
    CSV file does not say what it is anchored to: it must be the Allen atlas at 25 µm. Images are not read; those whose
    backslashes have to be slashes are found.

    Raises:
        InputError: If the list cannot be read, is not one, or is empty.
    """
    reader = _LIST_READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"expected a list of sections ({', '.join(LIST_ENDINGS)}) or a folder, got {path}")
    sections = reader(path)
    if not sections:
        raise InputError(f"{path}: the list names no section")
    return sections


def _read_anchored(path: Path) -> list[ListedSection]:
    """Return the sections of a QuickNII or DeepSlice file, whose anchoring is in 25 µm voxels of the Allen atlas."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a list of sections, for it is not JSON: {error}") from error
    slices = content.get("slices") if isinstance(content, dict) else None
    if not isinstance(slices, list):
        raise InputError(
            f"{path}: not a list of sections: expected QuickNII's object with slices, found {shown(content)}"
        )
    target = str(content.get("target", "25um"))
    if "25um" not in target:
        raise InputError(
            f"{path}: expected an anchoring to the Allen atlas at 25um, found the target '{target}'"
        )
    marked = sum(isinstance(entry, dict) and bool(entry.get("markers")) for entry in slices)
    if marked:
        _log.warning(
            "%s: the markers of %d sections, made in VisuAlign, are not used: their linear anchoring is",
            path,
            marked,
        )
    return [
        _anchored_section(path.parent, f"slices[{place}]", entry, place) for place, entry in enumerate(slices)
    ]


def _read_table(path: Path) -> list[ListedSection]:
    table = read_table(path)
    if "ox" in table.names:
        rows = table.records(
            ["filenames", *_DEEPSLICE, "width", "height"], hint=": use DeepSlice's .json file"
        )
        return [
            _anchored_section(path.parent, f"line {line}", _deepslice_entry(cells), place)._replace(
                cells=cells
            )
            for place, (line, cells) in enumerate(rows)
        ]
    rows = table.records(["filename", "p"])
    return [
        _positioned_section(path.parent, f"line {line}", cells, place)
        for place, (line, cells) in enumerate(rows)
    ]


def _deepslice_entry(cells: Mapping[str, str]) -> dict[str, Any]:
    return {**cells, "filename": cells["filenames"], "anchoring": [cells[name] for name in _DEEPSLICE]}


def _anchored_section(folder: Path, name: str, entry: Any, place: int) -> ListedSection:
    """Return what an entry of QuickNII's says, which is called `name` where it names no file."""
    file, number = folder / name, place
    try:
        file = _file(folder, entry)
        number = _whole(entry.get("nr"), "nr", default=place)
        anchoring = _anchoring(entry)
    except InputError as error:
        return ListedSection(file, Identity(0, number, 0), 0.0, None, problem=str(error))
    # The plane that the centre lies in starts a little before it.
    plane_um = int(np.floor(anchoring.position_um / GRID_UM) * GRID_UM)
    return ListedSection(file, Identity(plane_um, number, 0), anchoring.position_um, anchoring)


def _positioned_section(folder: Path, name: str, cells: Mapping[str, str], place: int) -> ListedSection:
    """Return what a row says, which is called `name` where it names no file."""
    file = folder / name
    try:
        file = _file(folder, cells)
        position_um = float(number(cells["p"], f"{name}, p"))
        check_is_um(position_um, f"{name}, p")
        image_id = _whole(cells.get("image_id"), f"{name}, image_id", default=place)
        dataset_id = _whole(cells.get("dataset_id"), f"{name}, dataset_id", default=0)
    except InputError as error:
        return ListedSection(file, Identity(0, place, 0), 0.0, None, problem=str(error))
    identity = Identity(math.floor(position_um), image_id, dataset_id)
    return ListedSection(file, identity, position_um, None, cells=cells, where=name)


def _file(folder: Path, entry: Any) -> Path:
    """Return the file that an entry names, perhaps with the backslashes of Windows."""
    if not isinstance(entry, Mapping):
        raise InputError(f"expected an object with a filename, found {shown(entry)}")
    name = entry.get("filename")
    if not isinstance(name, str) or not name:
        raise InputError(f"expected a filename, found {shown(name)}")
    slashed = folder / name.replace("\\", "/")
    return slashed if slashed.is_file() else folder / name


def _anchoring(entry: Mapping[str, Any]) -> Anchoring:
    given = entry.get("anchoring")
    if not isinstance(given, list) or len(given) != 9:
        found = len(given) if isinstance(given, list) else shown(given)
        raise InputError(f"anchoring: expected nine numbers, found {found}")
    vectors = np.array([float(number(value, "anchoring")) for value in given]).reshape(3, 3)
    height, width = (_whole(entry.get(side), side, default=0) for side in ("height", "width"))
    if height < 1 or width < 1:
        raise InputError(
            "expected width and height of the image that was anchored, in pixels, found "
            f"{width or 'no width'} and {height or 'no height'}"
        )
    return Anchoring(vectors, (height, width))


def _whole(value: Any, name: str, *, default: int) -> int:
    return default if value in (None, "") else whole_number(value, name)


_LIST_READERS = dict.fromkeys(LIST_ENDINGS, _read_table) | {".json": _read_anchored}
