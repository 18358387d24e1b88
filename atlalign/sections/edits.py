"""The changes that the user requests in the list of sections, applied to the sections."""

from collections.abc import Sequence

from atlalign.errors import InputError
from atlalign.io.cells import shown
from atlalign.sections.listing import EDITS, Row
from atlalign.sections.outlines import Line, bounds, cut_by
from atlalign.sections.section import Section, section_name
from atlalign.sections.upright import without_turn

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def edited(rows: Sequence[Row]) -> list[Section]:
    """Return the sections after the changes that the list requests, in the order of its rows.

    Unchanged sections are returned as they are.

    Raises:
        InputError: If a change is impossible.
    """
    return [part for row in _merged(rows) for part in _changed(row)]


def _merged(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, with one row for merged sections: the first of their own rows."""
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
    """Return the index of the row of another section on the same slide."""
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
    """Return the row of merged sections, turned like the largest of them until their common turn is found."""
    if len(group) == 1:
        return group[0]
    first, largest = group[0], max(group, key=lambda row: _extent(row.section))
    keep = any(row.keep for row in group)
    section = first.section._replace(
        outline=tuple(ring for row in group for ring in row.section.outline),
        turn=largest.section.turn,
        flipped=largest.section.flipped,
        left_out="" if keep else first.section.left_out,
        needs_turn=True,
        note="merged",
        is_written=False,
    )
    # Its parts may look like several sections, but the user has declared them one.
    cells = {**first.cells, "one_section": "yes"}
    return first._replace(section=section, keep=keep, cells=cells)


def _is_turned(row: Row) -> bool:
    """Return whether the user has set the upright direction."""
    return row.turn is not None or row.turned is not None


def _extent(section: Section) -> float:
    left, top, right, bottom = bounds(section.outline)
    return (right - left) * (bottom - top)


def _changed(row: Row) -> list[Section]:
    """Return the section of a row, or its parts, turned and mirrored as requested."""
    cells = {name: cell for name, cell in row.cells.items() if name not in EDITS}
    if _is_turned(row):
        cells["turn"] = "0"  # for `register` as well
    if row.cells.get("mirrored"):
        cells["mirrored"] = "no"
    parts = [row.section] if row.split is None else _split(row, row.split)
    return [_changed_part(row, part)._replace(cells=cells) for part in parts]


def _changed_part(row: Row, part: Section) -> Section:
    if _is_turned(row):
        part = part._replace(note=without_turn(part.note), needs_turn=False)
    if row.turned is not None:
        part = part._replace(turn=(row.turned + 180) % 360 - 180, is_written=False)
    part = part.turned(row.turn or 0.0, mirrored=row.mirrored)
    if row.keep == part.kept:
        return part
    return part._replace(kept=row.keep, left_out="" if row.keep else part.left_out, is_written=False)


def _split(row: Row, line: Line) -> list[Section]:
    section = row.section
    halves = [half for half in cut_by(section.outline, line) if half]
    if len(halves) < 2:
        left, top, right, bottom = bounds(section.outline)
        raise InputError(
            f"{row.where}, split: expected a line through the section, which lies at x {left:.0f} to {right:.0f} and "
            f"y {top:.0f} to {bottom:.0f}, found a line outside it"
        )
    halves.sort(key=lambda half: bounds(half)[:2])
    stem = section.filename.rpartition("_s")[0]
    return [
        section._replace(
            filename=section_name(stem, section.label + letter),
            outline=half,
            needs_turn=True,
            note="split",
            is_written=False,
        )
        for letter, half in zip(_LETTERS, halves, strict=False)
    ]
