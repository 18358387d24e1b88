"""Lists of sections: which images there are, and where each lies in the atlas."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from atlalign.atlas.planes import GRID_UM, Anchoring, check_is_um
from atlalign.atlas.quint import COMPONENTS, read_slices
from atlalign.errors import InputError
from atlalign.io.files import is_folder
from atlalign.io.named_files import check_name, find_files, is_visible
from atlalign.io.tables import number, read_table, shown, whole_number

_log = logging.getLogger(__name__)
_SAME_VOXELS = 0.01  # the numbers of one anchoring in two files differ by their rounding
_SNIFFED_BYTES = 2**20  # of a file, to see what it is
_OWN = '"aligner": "atlalign'  # as `registration.visualign` begins a file


class Identity(NamedTuple):
    """What a sample keeps of its original: the position in µm from the front, and the ids."""

    position_um: int
    image_id: int
    dataset_id: int


class ListedSection(NamedTuple):
    """One image of a list.

    Attributes:
        path: Its file; the place of the entry in the list if it names none.
        identity: What its samples keep; its position is rounded down.
        position_um: Where its centre lies along AP.
        anchoring: Where all of it lies, if the list says that.
        problem: What is wrong with its position, if anything: then the position means nothing.
        missing: Why its file was not found, if so.
        cells: All cells of its row in a table, by the names of their columns in lower case.
        where: The line of that row.
    """

    path: Path
    identity: Identity
    position_um: float
    anchoring: Anchoring | None
    problem: str = ""
    missing: str = ""
    cells: Mapping[str, str] = MappingProxyType({})
    where: str = ""


def find_list(path: Path) -> Path:
    """Return `path`, or of a folder the one list of sections in it; files of one name that agree are one list.

    Hidden files, the tables that a registration writes, and files that are no lists of sections do not count. Beside
    another list, a .tsv or .txt file does not: it holds cells, or notes.

    Raises:
        InputError: If a folder has none, or several.
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


def read_list(path: Path, images: Path | None = None) -> list[ListedSection]:
    """Return the sections of a list; each says by itself what is wrong with it, its `problem` and why it is `missing`.

    A table's columns are `filename`, `p` in µm and perhaps `image_id` and `dataset_id`, or those of DeepSlice, whose
    CSV file does not say what it is anchored to: it must be the Allen atlas at 25 µm. Images are not read.

    Args:
        path: The list.
        images: The folder of its images; None for that of the list.

    Raises:
        InputError: If the list cannot be read, is not one, or is empty.
    """
    reader = _LIST_READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"expected a list of sections ({', '.join(LIST_ENDINGS)}) or a folder, got {path}")
    sections = _located(reader(path), path, images)
    _warn_of_contradictions(path)
    if not sections:
        raise InputError(f"{path}: the list names no section")
    return sections


def _located(sections: Sequence[ListedSection], path: Path, images: Path | None) -> list[ListedSection]:
    """Return the sections with their files in place of the names that the list has for these."""
    names = [str(section.path) for section in sections]
    files = find_files(images or path.parent, names, only_here=images is not None)
    located = [
        section._replace(path=file.path, missing=section.missing or file.missing)
        for section, file in zip(sections, files, strict=True)
    ]
    comments = {place for place, file in enumerate(files) if file.missing and names[place].startswith("#")}
    if comments:
        _log.warning(
            "%s: %d rows whose image would begin with # count as comments, such as %s",
            path,
            len(comments),
            shown(names[min(comments)]),
        )
    guessed = [(name, file.path) for name, file in zip(names, files, strict=True) if file.guessed]
    if guessed:
        name, file_path = guessed[0]
        _log.warning(
            "%s: %d images lie in another folder than it says, or are written otherwise, such as %s for %s",
            path,
            len(guessed),
            file_path,
            shown(name),
        )
    return [section for place, section in enumerate(located) if place not in comments]


# --- which file of a folder is the list -------------------------------------------------------------------------------


def _start(path: Path) -> str:
    """Return the first characters of a text file, as far as they are Latin letters."""
    try:
        with path.open("rb") as file:
            # Of text in UTF-16 each other byte is 0.
            return file.read(_SNIFFED_BYTES).replace(b"\0", b"").decode("latin-1")
    except OSError:
        return ""


def _looks_like_a_list(path: Path, start: str) -> bool:
    if _LIST_READERS[path.suffix.lower()] is _read_anchored:
        return any(word in start for word in ('"slices"', '"sections"', "<series"))
    return "filename" in start.lstrip().partition("\n")[0].lower()


def _check_agreement(path: Path, other: Path) -> None:
    """Check that two lists name the same images, and place them alike.

    Raises:
        InputError: If they do not.
    """
    differing = _differing(path, other)
    if differing:
        raise InputError(
            f"expected one list of sections in the folder {path.parent}, found {path.name} and {other.name}, which "
            f"differ in {differing[0].name}: name one of them in place of the folder"
        )


def _warn_of_contradictions(path: Path) -> None:
    """Log a warning if the same list in another format, beside it, places sections otherwise."""
    for ending in LIST_ENDINGS:
        other = path.with_suffix(ending)
        if other == path or not other.is_file() or not _looks_like_a_list(other, _start(other)):
            continue
        with suppress(InputError):  # a file that nobody named need not be readable
            differing = _differing(path, other)
            if differing:
                _log.warning(
                    "%s: %s beside it places %d sections otherwise, such as %s; only %s is used",
                    *(path, other.name, len(differing), differing[0].name, path.name),
                )


def _differing(path: Path, other: Path) -> list[Path]:
    """Return the images that only one of two lists names, or that they place otherwise."""
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
    return [_anchored_section(*entry, place) for place, entry in enumerate(read_slices(path))]


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
    rows = table.records(["filename", "p"])
    return [
        _positioned_section(f"line {line}", cells, place) for place, (line, cells) in enumerate(_filled(rows))
    ]


def _filled(rows: Iterable[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a table in which any cell is filled."""
    return [(line, cells) for line, cells in rows if any(cells.values())]


def _deepslice_entry(cells: Mapping[str, str]) -> dict[str, Any]:
    return {**cells, "filename": cells["filenames"], "anchoring": [cells[name] for name in COMPONENTS]}


def _anchored_section(where: str, entry: Any, place: int) -> ListedSection:
    """Return what an entry of QuickNII's says."""
    named = _named_section(where, entry, place)
    if named.problem:
        return named
    image_id = place
    try:
        image_id = _whole(entry.get("nr"), "nr", default=place)
        anchoring = _anchoring(entry)
    except InputError as error:
        return named._replace(identity=Identity(0, image_id, 0), problem=str(error))
    # The plane that the centre lies in starts a little before it.
    plane_um = int(np.floor(anchoring.position_um / GRID_UM) * GRID_UM)
    return named._replace(
        identity=Identity(plane_um, image_id, 0), position_um=anchoring.position_um, anchoring=anchoring
    )


def _positioned_section(where: str, cells: Mapping[str, str], place: int) -> ListedSection:
    """Return what a row of a table of positions says."""
    named = _named_section(where, cells, place)
    if named.problem:
        return named
    try:
        position_um = float(number(cells["p"], f"{where}, p"))
        check_is_um(position_um, f"{where}, p")
        image_id = _whole(cells.get("image_id"), f"{where}, image_id", default=place)
        dataset_id = _whole(cells.get("dataset_id"), f"{where}, dataset_id", default=0)
    except InputError as error:
        return named._replace(problem=str(error))
    identity = Identity(math.floor(position_um), image_id, dataset_id)
    return named._replace(identity=identity, position_um=position_um, cells=cells, where=where)


def _named_section(where: str, entry: Any, place: int) -> ListedSection:
    """Return a section without a position, whose path is the name that an entry has for its image."""
    nowhere = ListedSection(Path(where), Identity(0, place, 0), 0.0, None)
    try:
        if not isinstance(entry, Mapping):
            raise InputError(f"expected an object with a filename, found {shown(entry)}")
        return nowhere._replace(path=Path(check_name(entry.get("filename"))))
    except InputError as error:
        return nowhere._replace(problem=str(error), missing=str(error))


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


_ANCHORED, _TABLES, _NOTES = (".json", ".waln", ".wwrp", ".xml"), (".csv",), (".tsv", ".txt")
_LIST_READERS = dict.fromkeys(_ANCHORED, _read_anchored) | dict.fromkeys(_TABLES + _NOTES, _read_table)
LIST_COLUMNS = (
    *("filename", "p", "image_id", "dataset_id"),
    *("filenames", *COMPONENTS, "width", "height", "nr", "depths", "markers"),
    *("", "unnamed: 0"),  # the number of a row, as pandas writes it
)
"""The columns of tables, in lower case, that say which image a row is about and where it lies, or number the rows."""
LIST_ENDINGS = tuple(_LIST_READERS)
"""What the names of lists of sections end in, the most telling first."""
