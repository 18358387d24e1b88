"""The list of sections, which the user edits.

The list describes the current images. It requests changes by its columns `keep`, `turned`, `turn`, `mirrored`, `merge`
and `split`, by the order of its rows, and by missing rows. Once a requested change has been made, its cell is emptied.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from atlalign.errors import InputError
from atlalign.io.cells import number, shown
from atlalign.io.tables import read_table, write_table
from atlalign.sections.outlines import Line
from atlalign.sections.section import Section

LIST = "sections.csv"
EDITS = ("turn", "mirrored", "merge", "split")
"""The columns that are empty unless the user requests a change."""

_STATED = ("filename", "keep", "section_number", "turned", "slide", "note")
"""The columns that `sections` rewrites."""

_COLUMNS = ("filename", "keep", "section_number", "p", "pixel_size_um", "turned", *EDITS, "slide", "note")
_YES_OR_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


class Row(NamedTuple):
    """One row of the list.

    Attributes:
        section: The section before the changes.
        where: The line of the list.
        keep: Whether the section gets an image.
        turned: The turn from the slide to the image, counter-clockwise in degrees; None if it stays the same.
        turn: A further turn; None if the cell is empty.
        mirrored: Whether to mirror the image.
        merge: The labels of sections that are parts of this one.
        split: The line that divides it.
        cells: The other cells.
    """

    section: Section
    where: str
    keep: bool
    turned: float | None
    turn: float | None
    mirrored: bool
    merge: tuple[str, ...]
    split: Line | None
    cells: Mapping[str, str]


def write_list(folder: Path, sections: Sequence[Section]) -> None:
    """Write the list of sections."""
    own = {name: None for section in sections for name in section.cells}
    header = [*_COLUMNS, *(name for name in own if name not in _COLUMNS)]
    rows = (_cells(section, place) for section, place in zip(sections, _places(sections), strict=True))
    write_table(folder / LIST, header, ([cells.get(name, "") for name in header] for cells in rows))


def _places(sections: Sequence[Section]) -> list[str]:
    """Return the place of each section in the series; rejected pieces have no place.

    A section that the user drops keeps its place, so that the distances between its neighbours stay the same.
    """
    counted = [not section.left_out for section in sections]
    return [str(sum(counted[: place + 1])) if is_one else "" for place, is_one in enumerate(counted)]


def _cells(section: Section, place: str) -> dict[str, str]:
    return {
        **section.cells,
        "filename": section.filename,
        "keep": "yes" if section.kept else "no",
        "section_number": place,
        "turned": "" if section.left_out else _degrees(section),
        "slide": section.slide,
        "note": _note(section),
    }


def _degrees(section: Section) -> str:
    return f"{section.turn:g}"


def _note(section: Section) -> str:
    return f"left out: {section.left_out}" if section.left_out else section.note


def read_rows(folder: Path, sections: Sequence[Section]) -> list[Row]:
    """Return the rows of the list for the existing sections.

    Raises:
        InputError: If the list cannot be read, or a row is invalid.
    """
    known = {section.filename: section for section in sections}
    table = read_table(folder / LIST)
    rows = []
    for line, cells in table.records(["filename"]):
        if any(cells.values()):
            rows.append(_row(cells, f"{table.path}, line {line}", known))
    names = [row.section.filename for row in rows]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise InputError(f"{rows[place].where}: expected each section once, found '{name}' again")
    return rows


def _row(cells: Mapping[str, str], where: str, known: Mapping[str, Section]) -> Row:
    name = cells["filename"]
    if name not in known:
        raise InputError(f"{where}: expected the name of a section in this folder, found {shown(name)}")
    section = known[name]
    turned = _number(cells.get("turned", ""), f"{where}, turned")
    return Row(
        section,
        where,
        _yes_or_no(cells.get("keep", ""), f"{where}, keep", section.kept),
        None if turned == float(_degrees(section)) else turned,
        _number(cells.get("turn", ""), f"{where}, turn"),
        _yes_or_no(cells.get("mirrored", ""), f"{where}, mirrored", False),
        tuple(_label(part) for part in re.split(r"[\s,;+&]+", cells.get("merge", "")) if part),
        _line(cells.get("split", ""), f"{where}, split"),
        {key: cell for key, cell in cells.items() if key not in (*_STATED, "merge", "split")},
    )


def _number(cell: str, where: str) -> float | None:
    return float(number(cell, where)) if cell else None


def _yes_or_no(cell: str, where: str, if_empty: bool) -> bool:
    if cell and cell.lower() not in _YES_OR_NO:
        raise InputError(f"{where}: expected yes or no, found {shown(cell)}")
    return _YES_OR_NO.get(cell.lower(), if_empty)


def _label(text: str) -> str:
    """Return the label of the section that a cell names by its label, its number, or its file."""
    return Section(text.lower(), "", 0, ()).label if "_s" in text.lower() else text.lower().lstrip("s0")


def _line(cell: str, where: str) -> Line | None:
    if not cell:
        return None
    numbers = [float(found) for found in _NUMBER.findall(cell)]
    if len(numbers) != 4 or numbers[:2] == numbers[2:]:
        raise InputError(
            f"{where}: expected x1 y1 x2 y2, two points of the slide in pixels between which the section is cut, "
            f"found {shown(cell)}"
        )
    return numbers[0], numbers[1], numbers[2], numbers[3]
