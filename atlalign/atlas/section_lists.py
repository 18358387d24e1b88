"""Lists of sections: the images and their positions in the atlas."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from atlalign.atlas.planes import GRID_UM, Anchoring, check_is_um
from atlalign.atlas.quint import COMPONENTS, read_slices
from atlalign.atlas.targets import Target
from atlalign.console import counted
from atlalign.errors import InputError
from atlalign.io.cells import number, shown, whole_number
from atlalign.io.files import is_folder
from atlalign.io.named_files import check_name, find_files, is_visible
from atlalign.io.tables import read_parts, read_table

_log = logging.getLogger(__name__)
_SAME_VOXELS = 0.01  # two files round the numbers of the same anchoring differently
_SNIFFED_BYTES = 2**20  # read from the start of a file to detect its content
_POSITION_WORDS = frozenset(("p", "ap", "pos", "position", "positions", "bregma"))
_ALLEN = Target()
_OWN = '"aligner": "atlalign'  # marks the files that `registration.visualign` writes


class Identity(NamedTuple):
    """The part of a section that all of its samples share: the position in µm from the front, and the ids."""

    position_um: int
    image_id: int
    dataset_id: int


class ListedSection(NamedTuple):
    """One image of a list.

    Attributes:
        path: The file; if the entry names none, its place in the list.
        identity: Position and ids for its samples; the position is rounded down.
        position_um: The position of its centre along AP.
        anchoring: The anchoring of the whole image, if the list has it.
        problem: The reason why its position is invalid; empty if it is valid.
        missing: The reason why its file was not found; empty if it was found.
        unplaced: Whether the list does not give its position at all; `problem` says so too.
        cells: All cells of its row in a table, by column name in lower case.
        where: The line of that row, for messages.
        markers: VisuAlign's markers: (x, y) on the overlay of the atlas, then (x, y) in the image. Both are in pixels
            of the anchored image, from the outer corner of its first pixel.
        target: The name of the atlas to which it is anchored; empty for the Allen atlas.
    """

    path: Path
    identity: Identity
    position_um: float
    anchoring: Anchoring | None
    problem: str = ""
    missing: str = ""
    unplaced: bool = False
    cells: Mapping[str, str] = MappingProxyType({})
    where: str = ""
    markers: tuple[tuple[float, ...], ...] = ()
    target: str = ""


def find_list(path: Path) -> Path:
    """Return the path of a list: `path` itself if it is a file, or the one list of sections in a folder.

    Several files with the same name and different endings are one list if they agree. Hidden files, tables that a
    registration writes, and files that are not lists of sections are ignored. If there is another list, .tsv and .txt
    files are ignored too, because they usually hold cells or notes.

    Raises:
        InputError: If a folder has no list or several.
    """
    if not is_folder(path):
        return path
    files = sorted(
        file for file in path.iterdir() if file.suffix.lower() in LIST_ENDINGS and is_visible(file)
    )
    contents = {file: _start(file) for file in files}
    files = [file for file in files if _OWN not in contents[file]]
    found = [file for file in files if _looks_like_a_list(file, contents[file])] or files
    found = [file for file in found if file.suffix.lower() not in _NOTES] or found
    if len({file.stem for file in found}) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(
            f"expected one list of sections ({', '.join(LIST_ENDINGS)}) in the folder {path}, found {names}"
        )
    first, *others = sorted(found, key=lambda file: LIST_ENDINGS.index(file.suffix.lower()))
    for other in others:
        _check_agreement(first, other)
    return first


def holds_list(folder: Path) -> bool:
    """Return whether a folder has a list of sections that is not one of the tables of a registration."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in LIST_ENDINGS and is_visible(file))
    starts = ((file, _start(file)) for file in files)
    return any(_OWN not in start and _looks_like_a_list(file, start) for file, start in starts)


def read_list(path: Path, images: Path | None = None) -> list[ListedSection]:
    """Return the sections of a list; an invalid entry has a `problem`, and one without a file says why in `missing`.

    A table has the columns `filename`, `p` in µm and optionally `image_id` and `dataset_id`, or the columns of
    DeepSlice. DeepSlice's CSV file names no atlas, and is taken to refer to the Allen atlas at 25 µm. Images are not
    read.

    Args:
        path: The list.
        images: The folder of its images; None means the folder of the list.

    Raises:
        InputError: If the file cannot be read, is not a list of sections, or is empty.
    """
    reader = _LIST_READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"expected a list of sections ({', '.join(LIST_ENDINGS)}) or a folder, got {path}")
    sections = _located(reader(path), path, images)
    _warn_of_contradictions(path)
    if not sections:
        raise InputError(f"{path}: expected a list of sections, found no section in it")
    return sections


def _located(sections: Sequence[ListedSection], path: Path, images: Path | None) -> list[ListedSection]:
    """Return the sections with the paths of their files instead of the names in the list."""
    names = [str(section.path) for section in sections]
    files = find_files(images or path.parent, names, only_here=images is not None)
    located = [
        section._replace(path=file.path, missing=section.missing or file.missing)
        for section, file in zip(sections, files, strict=True)
    ]
    comments = {place for place, file in enumerate(files) if file.missing and names[place].startswith("#")}
    if comments:
        _log.warning(
            "%s: taken as comments, because they begin with # and name no image: %s, such as %s",
            path,
            counted(len(comments), "row"),
            shown(names[min(comments)]),
        )
    guessed = [(name, file.path) for name, file in zip(names, files, strict=True) if file.guessed]
    if guessed:
        name, file_path = guessed[0]
        _log.warning(
            "%s: found in another folder or under another spelling: %s, such as %s for %s",
            path,
            counted(len(guessed), "image"),
            file_path,
            shown(name),
        )
    return [section for place, section in enumerate(located) if place not in comments]


def unused_positions(folder: Path) -> list[tuple[Path, list[str]]]:
    """Return the tables in a folder that have columns of positions but are not lists of sections, with these columns.

    Tables that atlalign writes, and tables of points in an atlas, are not among them.
    """
    tables = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in _TABLES + _NOTES)
    found = []
    for path in filter(is_visible, tables):
        with suppress(InputError):
            table = next(read_parts(path, n_rows=1))
            columns = [
                name
                for name in table.header
                if not _POSITION_WORDS.isdisjoint(re.findall("[a-z]+", name.lower()))
            ]
            is_other = {"section", "flag"} <= {*table.names} or "dv_um" in table.names
            if (
                columns
                and len(table.header) > 1
                and not is_other
                and not _looks_like_a_list(path, _start(path))
            ):
                found.append((path, columns))
    return found


# --- finding the list in a folder -----------------------------------------------------------------------------------


def _start(path: Path) -> str:
    """Return the start of a text file; only its Latin letters are decoded correctly."""
    try:
        with path.open("rb") as file:
            # In UTF-16, every other byte of Latin text is 0.
            return file.read(_SNIFFED_BYTES).replace(b"\0", b"").decode("latin-1")
    except OSError:
        return ""


def _looks_like_a_list(path: Path, start: str) -> bool:
    if _LIST_READERS[path.suffix.lower()] is _read_anchored:
        return any(word in start for word in ('"slices"', '"sections"', "<series"))
    return "filename" in start.lstrip().partition("\n")[0].lower()


def _check_agreement(path: Path, other: Path) -> None:
    """Check that two lists name the same images at the same positions.

    Raises:
        InputError: If they differ.
    """
    differing = _differing(path, other)
    if differing:
        raise InputError(
            f"expected one list of sections in the folder {path.parent}, found {path.name} and {other.name}, which "
            f"differ in {differing[0].name}: give one of them instead of the folder"
        )


def _warn_of_contradictions(path: Path) -> None:
    """Log a warning if the same list in another format, beside this one, places sections differently."""
    for ending in LIST_ENDINGS:
        other = path.with_suffix(ending)
        if other == path or not other.is_file() or not _looks_like_a_list(other, _start(other)):
            continue
        with suppress(InputError):  # a file that the user did not name need not be readable
            differing = _differing(path, other)
            if differing:
                _log.warning(
                    "%s: %s beside it places %s differently, such as %s; only %s is used",
                    *(path, other.name, counted(len(differing), "section"), differing[0].name, path.name),
                )


def _differing(path: Path, other: Path) -> list[Path]:
    """Return the images that only one of two lists names, or that the lists place differently."""
    placed, otherwise = (
        {section.path: section for section in _LIST_READERS[file.suffix.lower()](file)}
        for file in (path, other)
    )
    return sorted(key for key in placed | otherwise if not _agree(placed.get(key), otherwise.get(key)))


def _agree(first: ListedSection | None, second: ListedSection | None) -> bool:
    if first is None or second is None or bool(first.problem) != bool(second.problem):
        return False
    if first.anchoring is None or second.anchoring is None:
        return first.anchoring is second.anchoring and first.position_um == second.position_um
    return bool(np.allclose(first.anchoring.vectors, second.anchoring.vectors, rtol=0, atol=_SAME_VOXELS))


# --- formats ----------------------------------------------------------------------------------------------------------


def _read_anchored(path: Path) -> list[ListedSection]:
    return [
        _anchored_section(where, entry, place, target)
        for place, (where, entry, target) in enumerate(read_slices(path))
    ]


def _read_table(path: Path) -> list[ListedSection]:
    table = read_table(path)
    if "ox" in table.names:
        rows = table.records(
            ["filenames", *COMPONENTS, "width", "height"], hint=": use DeepSlice's .json file"
        )
        return [
            _anchored_section(f"line {line}", _deepslice_entry(cells), place)._replace(cells=cells)
            for place, (line, cells) in enumerate(_filled(rows))
        ]
    rows = table.records(["filename", *({"p"} & set(table.names))])
    return [
        _positioned_section(f"line {line}", cells, place) for place, (line, cells) in enumerate(_filled(rows))
    ]


def _filled(rows: Iterable[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a table that are neither empty nor excluded by the user."""
    return [
        (line, cells)
        for line, cells in rows
        if any(cells.values()) and cells.get("keep", "").lower() not in _NO
    ]


def _deepslice_entry(cells: Mapping[str, str]) -> dict[str, Any]:
    return {
        **cells,
        "filename": cells["filenames"],
        "anchoring": [cells[name] for name in COMPONENTS],
        "markers": None,
    }


def _anchored_section(where: str, entry: Any, place: int, target: Target = _ALLEN) -> ListedSection:
    """Return the section in an entry of QuickNII's form, whose anchoring is in the voxels of a target."""
    named = _named_section(where, entry, place)
    if named.problem:
        return named
    image_id = place
    try:
        image_id = _whole(entry.get("nr"), "nr", default=place)
        anchoring = read_anchoring(entry, target)
        markers = read_markers(entry.get("markers"))
    except InputError as error:
        is_unplaced = not entry.get("anchoring")
        return named._replace(identity=Identity(0, image_id, 0), problem=str(error), unplaced=is_unplaced)
    # Rounded down to the start of the atlas plane that contains the centre.
    plane_um = int(np.floor(anchoring.position_um / GRID_UM) * GRID_UM)
    return named._replace(
        identity=Identity(plane_um, image_id, 0),
        position_um=anchoring.position_um,
        anchoring=anchoring,
        markers=markers,
        target="" if target == _ALLEN else target.name,
    )


def _positioned_section(where: str, cells: Mapping[str, str], place: int) -> ListedSection:
    """Return the section of a row in a table of positions."""
    named = _named_section(where, cells, place)
    if named.problem:
        return named
    try:
        position_um = float(number(cells.get("p", ""), f"{where}, p"))
        check_is_um(position_um, f"{where}, p")
        image_id = _whole(cells.get("image_id"), f"{where}, image_id", default=place)
        dataset_id = _whole(cells.get("dataset_id"), f"{where}, dataset_id", default=0)
    except InputError as error:
        return named._replace(problem=str(error), unplaced=not cells.get("p"), cells=cells, where=where)
    identity = Identity(math.floor(position_um), image_id, dataset_id)
    return named._replace(identity=identity, position_um=position_um, cells=cells, where=where)


def _named_section(where: str, entry: Any, place: int) -> ListedSection:
    """Return a section without a position; its path is the image name in the entry."""
    nowhere = ListedSection(Path(where), Identity(0, place, 0), 0.0, None)
    try:
        if not isinstance(entry, Mapping):
            raise InputError(f"expected an object with a filename, found {shown(entry)}")
        return nowhere._replace(path=Path(check_name(entry.get("filename"))))
    except InputError as error:
        return nowhere._replace(problem=str(error), missing=str(error))


def read_anchoring(entry: Mapping[str, Any], target: Target = _ALLEN) -> Anchoring:
    """Return the anchoring in an entry of QuickNII's form, which is in the voxels of a target.

    Raises:
        InputError: If the entry lacks an anchoring or an image size, or its anchoring is impossible.
    """
    given = entry.get("anchoring")
    if not isinstance(given, list) or len(given) != 9:
        found = len(given) if isinstance(given, list) else shown(given)
        raise InputError(f"anchoring: expected nine numbers, found {found}")
    vectors = np.array([float(number(value, "anchoring")) for value in given]).reshape(3, 3)
    height, width = (_whole(entry.get(side), side, default=0) for side in ("height", "width"))
    if height < 1 or width < 1:
        raise InputError(
            "expected the width and height of the anchored image in pixels, found "
            f"{width or 'no width'} and {height or 'no height'}"
        )
    return Anchoring(vectors if target == _ALLEN else target.in_grid(vectors), (height, width))


def read_markers(found: Any, where: str = "markers") -> tuple[tuple[float, ...], ...]:
    """Return VisuAlign's markers, a list of four numbers each; None is an empty list.

    Raises:
        InputError: If `found` is something else, or a number is not finite.
    """
    if not isinstance(found, list | None):
        raise InputError(f"{where}: expected a list of markers with four numbers each, found {shown(found)}")
    for place, marker in enumerate(found or ()):
        if not isinstance(marker, list) or len(marker) != 4:
            raise InputError(f"{where}[{place}]: expected four numbers (x, y, x, y), found {_length(marker)}")
    return tuple(
        tuple(float(number(value, f"{where}[{place}]")) for value in marker)
        for place, marker in enumerate(found or ())
    )


def _length(found: Any) -> str:
    return str(len(found)) if isinstance(found, list) else shown(found)


def _whole(value: Any, name: str, *, default: int) -> int:
    return default if value in (None, "") else whole_number(value, name)


_ANCHORED, _TABLES, _NOTES = (".json", ".waln", ".wwrp", ".xml"), (".csv",), (".tsv", ".txt")
_LIST_READERS = dict.fromkeys(_ANCHORED, _read_anchored) | dict.fromkeys(_TABLES + _NOTES, _read_table)
_NO = ("no", "false", "0")
LIST_COLUMNS = (
    *("filename", "p", "image_id", "dataset_id", "brain"),
    *("filenames", *COMPONENTS, "width", "height", "nr", "depths", "markers"),
    *("keep", "section_number", "turned", "slide", "note"),  # from `atlalign sections`
    *("", "unnamed: 0"),  # the number of a row, as pandas writes it
)
"""The columns of tables, in lower case, that give the image of a row, its position, or the row's number."""
LIST_ENDINGS = tuple(_LIST_READERS)
"""The endings of lists of sections; the most informative formats come first."""
