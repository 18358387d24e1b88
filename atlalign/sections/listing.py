"""The list of sections, which a person edits, and the file that remembers where they lie on their slides.

The list says what the images show now; its columns `turn`, `mirrored`, `merge` and `split`, the order of its rows and
missing rows say what is to change. Once that is done, the columns are emptied.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atlalign.errors import InputError
from atlalign.io.files import read_bytes, written_whole
from atlalign.io.tables import number, read_table, shown, write_table
from atlalign.sections.outlines import Line, bounds, cut_by
from atlalign.sections.section import Section, section_name

LIST = "sections.csv"
MEMORY = "sections.geojson"
_EDITS = ("turn", "mirrored", "merge", "split")
_COLUMNS = ("filename", "p", "pixel_size_um", *_EDITS, "slide", "note")
_YES_OR_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False, "": False}
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Memory(NamedTuple):
    """What is remembered of a folder of sections.

    Attributes:
        sections: In the order of the list.
        slides: For each slide's file name, what tells whether it is still the same.
        applied: The SHA-256 of the list whose changes are made already, after an interrupted run.
    """

    sections: list[Section]
    slides: dict[str, str]
    applied: str = ""


class Row(NamedTuple):
    """What a row of the list says.

    Attributes:
        section: As it was.
        where: The line of the list.
        turn: In degrees, counter-clockwise; None if the cell is empty.
        mirrored: The image is to be mirrored.
        merge: The labels of sections that are parts of this one.
        split: The line that divides it.
        cells: The other cells.
    """

    section: Section
    where: str
    turn: float | None
    mirrored: bool
    merge: tuple[str, ...]
    split: Line | None
    cells: Mapping[str, str]


# --- the memory -------------------------------------------------------------------------------------------------------


def read_memory(folder: Path) -> Memory | None:
    """Return what is remembered of a folder; None if nothing is.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder / MEMORY
    if not path.is_file():
        return None
    try:
        content = json.loads(read_bytes(path))
        sections = [_section(feature) for feature in content["features"]]
        return Memory(sections, dict(content["slides"]), content["applied"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: expected the outlines of sections that `atlalign sections` wrote, found something else: add "
            "--overwrite to find the sections anew"
        ) from error


def write_memory(folder: Path, memory: Memory) -> None:
    """Write what is to be remembered, as GeoJSON."""
    content = {
        "type": "FeatureCollection",
        "slides": memory.slides,
        "applied": memory.applied,
        "features": [_feature(section) for section in memory.sections],
    }
    with written_whole(folder / MEMORY) as unfinished:
        unfinished.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _feature(section: Section) -> dict[str, Any]:
    closed = [np.vstack([ring, ring[:1]]).round(2).tolist() for ring in section.outline]
    return {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": [[ring] for ring in closed]},
        "properties": {
            "filename": section.filename,
            "slide": section.slide,
            "scene": section.scene,
            "turn": section.turn,
            "flipped": section.flipped,
            "note": section.note,
            "cells": dict(section.cells),
            "is_written": section.is_written,
        },
    }


def _section(feature: Mapping[str, Any]) -> Section:
    rings = (np.array(polygon[0], float)[:-1] for polygon in feature["geometry"]["coordinates"])
    return Section(outline=tuple(rings), **feature["properties"])


# --- the list ---------------------------------------------------------------------------------------------------------


def write_list(folder: Path, sections: Sequence[Section]) -> None:
    """Write the list of sections."""
    own = {name: None for section in sections for name in section.cells}
    header = [*_COLUMNS, *(name for name in own if name not in _COLUMNS)]
    write_table(
        folder / LIST, header, ([_cells(section).get(name, "") for name in header] for section in sections)
    )


def _cells(section: Section) -> dict[str, str]:
    return {
        **section.cells,
        "filename": section.filename,
        "slide": section.slide,
        "note": section.note,
    }


def read_rows(folder: Path, sections: Sequence[Section]) -> list[Row]:
    """Return what the list says of the sections as they are.

    Raises:
        InputError: If the list cannot be read, or a row cannot be understood.
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
    kept = {
        key: cell for key, cell in cells.items() if key not in ("filename", "slide", "note", "merge", "split")
    }
    turn = cells.get("turn", "")
    return Row(
        section,
        where,
        float(number(turn, f"{where}, turn")) if turn else None,
        _yes_or_no(cells.get("mirrored", ""), f"{where}, mirrored"),
        tuple(_label(part) for part in re.split(r"[\s,;+&]+", cells.get("merge", "")) if part),
        _line(cells.get("split", ""), f"{where}, split"),
        kept,
    )


def _yes_or_no(cell: str, where: str) -> bool:
    if cell.lower() not in _YES_OR_NO:
        raise InputError(f"{where}: expected yes or no, found {shown(cell)}")
    return _YES_OR_NO[cell.lower()]


def _label(text: str) -> str:
    """Return the label of a section that is named by it, by its number, or by its file."""
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


# --- changes ----------------------------------------------------------------------------------------------------------


def edited(rows: Sequence[Row]) -> list[Section]:
    """Return the sections after the changes that the list asks for, in the order of its rows.

    A section that nothing changes is returned as it is.

    Raises:
        InputError: If a change is impossible.
    """
    return [part for row in _merged(rows) for part in _changed(row)]


def _merged(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, those of sections that are merged as one: the first of them."""
    first = list(range(len(rows)))

    def head(place: int) -> int:
        return place if first[place] == place else head(first[place])

    for place, row in enumerate(rows):
        for label in row.merge:
            one, other = sorted((head(place), head(_place(rows, row, label))))
            first[other] = one
    groups: dict[int, list[Row]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(head(place), []).append(row)
    return [_as_one(group) for group in groups.values()]


def _place(rows: Sequence[Row], row: Row, label: str) -> int:
    """Return the place of the row of another section on the same slide."""
    own = row.section
    for place, other in enumerate(rows):
        section = other.section
        if section.label == label and section.slide == own.slide and section is not own:
            if section.scene != own.scene:
                raise InputError(
                    f"{row.where}, merge: expected a section of the same scene, found {shown(label)}"
                )
            return place
    raise InputError(
        f"{row.where}, merge: expected the number of another section of {own.slide}, found {shown(label)}"
    )


def _as_one(group: Sequence[Row]) -> Row:
    first, *others = group
    if not others:
        return first
    outline = tuple(ring for row in group for ring in row.section.outline)
    section = first.section._replace(outline=outline, note="merged", is_written=False)
    # Its parts may look like several sections, but a person has said that they are one.
    return first._replace(section=section, cells={**first.cells, "one_section": "yes"})


def _changed(row: Row) -> list[Section]:
    """Return the section of a row, or its parts, turned and mirrored as the row asks."""
    cells = {name: cell for name, cell in row.cells.items() if name not in _EDITS}
    if row.turn is not None:
        cells["turn"] = "0"  # a person has said which way is up
    if row.cells.get("mirrored"):
        cells["mirrored"] = "no"
    parts = [row.section] if row.split is None else _split(row, row.split)
    return [part.turned(row.turn or 0.0, mirrored=row.mirrored)._replace(cells=cells) for part in parts]


def _split(row: Row, line: Line) -> list[Section]:
    section = row.section
    halves = [half for half in cut_by(section.outline, line) if half]
    if len(halves) < 2:
        left, top, right, bottom = bounds(section.outline)
        raise InputError(
            f"{row.where}, split: expected a line through the section, which lies at x {left:.0f} to {right:.0f} and "
            f"y {top:.0f} to {bottom:.0f}, found one that passes it"
        )
    halves.sort(key=lambda half: bounds(half)[:2])
    stem = section.filename.rpartition("_s")[0]
    return [
        section._replace(
            filename=section_name(stem, section.label + letter), outline=half, note="split", is_written=False
        )
        for letter, half in zip(_LETTERS, halves, strict=False)
    ]
