"""The inputs of counts: the areas of the regions of registered sections, and the points in them, by section."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import NamedTuple

from atlalign.errors import InputError
from atlalign.io.cells import is_missing, number, shown, whole_number
from atlalign.io.tables import Table, read_parts, read_table
from atlalign.registration.corrections import is_rejected
from atlalign.registration.point_sections import (
    SECTION,
    SectionNames,
    names_of_sections,
    section_column,
    sections_in,
)
from atlalign.registration.record import RECORD, REGIONS, read_record
from atlalign.registration.regions import RegionName, region_names

SIDES = ("", "left", "right")  # "" means both sides
Amounts = dict[str, dict[int, float]]
"""Amounts by side and region id, without the sides that are unknown."""

_REGION = "region_id"
_HINT = ": give a table that `atlalign transform … --to reference` wrote"


class CountedSection(NamedTuple):
    """A registered section.

    Attributes:
        folder: The folder of its results.
        flag: pass, look or fail; empty if its record lacks it.
        is_rejected: Whether the user rejected it in review.
    """

    folder: Path
    flag: str = ""
    is_rejected: bool = False

    @property
    def name(self) -> str:
        """The name by which tables of points refer to the section."""
        return self.folder.name


class Areas(NamedTuple):
    """The names of the regions of sections, and their areas in mm², without parts, by section."""

    regions: Mapping[int, RegionName]
    by_section: Mapping[Path, Amounts]


class Points(NamedTuple):
    """The numbers of points in each region.

    Attributes:
        by_section: The numbers by the name of each counted section; "" for points whose table does not name it.
        left_out: The number of points, in any region, of sections that are left out.
    """

    by_section: Mapping[str, Amounts]
    left_out: int


# --- sections ---------------------------------------------------------------------------------------------------------


def read_sections(folders: Sequence[Path]) -> list[CountedSection]:
    """Return the sections whose folders, or parent folders, are given, each once.

    Raises:
        InputError: If a folder holds no results, or a record or a review cannot be read.
    """
    found = sorted({section for folder in folders for section in _sections_at(folder)})
    return [
        CountedSection(folder, str(read_record(folder).get("flag", "")), is_rejected(folder))
        for folder in found
    ]


def _sections_at(folder: Path) -> list[Path]:
    folder = folder.resolve()
    if (folder / RECORD).is_file():
        return [folder]
    found = sections_in(folder)
    if not found:
        raise InputError(
            f"{folder}: expected a section's folder that `atlalign register` wrote, or a folder of such folders, found "
            f"no {RECORD}"
        )
    return found


def read_areas(sections: Sequence[CountedSection]) -> Areas:
    """Return the names and areas of the regions of sections.

    Raises:
        InputError: If a table is invalid, or the sections belong to different atlases.
    """
    _check_one_atlas([section.folder for section in sections])
    regions: dict[int, RegionName] = {}
    areas = {}
    for section in sections:
        table = read_table(section.folder / REGIONS)
        named = region_names(table)
        _check_same_names(named, regions, table.path)
        regions |= named
        areas[section.folder] = _areas_of(table)
    return Areas(regions, dict(zip(areas, with_common_sides(list(areas.values())), strict=True)))


def _areas_of(table: Table) -> Amounts:
    columns = {side: f"{side or 'area'}_mm2" for side in SIDES}
    areas: Amounts = {side: defaultdict(float) for side in SIDES if columns[side] in table.names}
    for line, cells in table.records(["id", "area_mm2"]):
        region_id = whole_number(cells["id"], f"{table.path}, line {line}, id")
        for side, area in areas.items():
            name = columns[side]
            area[region_id] += _area(cells[name], f"{table.path}, line {line}, {name}")
    return areas


def _area(cell: str, where: str) -> float:
    area = float(number(cell, where))
    if area < 0:
        raise InputError(f"{where}: expected an area of at least 0, found {shown(cell)}")
    return area


def with_common_sides(amounts: Sequence[Amounts]) -> list[Amounts]:
    """Return amounts with only the sides that are known in all of them."""
    known = set(SIDES).intersection(*amounts)
    return [{side: amount for side, amount in each.items() if side in known} for each in amounts]


def total(amounts: Sequence[Amounts]) -> Amounts:
    """Return the sums of amounts, for the sides that are known in all of them."""
    sums: Amounts = {side: defaultdict(float) for side in SIDES if all(side in each for each in amounts)}
    for side, whole in sums.items():
        for region_id, amount in chain.from_iterable(each[side].items() for each in amounts):
            whole[region_id] += amount
    return sums


def _check_one_atlas(folders: Sequence[Path]) -> None:
    """Raise an error if sections belong to different atlases; sections of reference images may differ."""
    atlases: dict[str, tuple[Path, str]] = {}
    for folder in folders:
        record = read_record(folder)
        settings = record.get("settings", {})
        if record.get("position_um") is not None and "reference_sha256" in settings:
            atlases.setdefault(settings["reference_sha256"], (folder, settings.get("reference", "an atlas")))
    if len(atlases) > 1:
        (first, one), (second, other) = list(atlases.values())[:2]
        raise InputError(
            f"{second}: expected sections of one atlas, found '{other}' here and '{one}' in {first.name}, or two "
            "versions of it: register each atlas into a folder of its own"
        )


def _check_same_names(named: Mapping[int, RegionName], regions: Mapping[int, RegionName], path: Path) -> None:
    """Raise an error if an id has different acronyms, which means that sections belong to different atlases."""
    for region_id in sorted(named.keys() & regions.keys()):
        one, other = named[region_id].acronym, regions[region_id].acronym
        if one and other and one != other:
            raise InputError(
                f"{path}, id {region_id}: expected sections of one atlas, found acronyms {shown(one)} here and "
                f"{shown(other)} in another section: count each atlas separately"
            )


# --- points -----------------------------------------------------------------------------------------------------------


def read_points(
    tables: Sequence[Path],
    regions: Mapping[int, RegionName],
    counted: Sequence[CountedSection],
    left_out: Sequence[CountedSection] = (),
    *,
    by_section: bool = False,
) -> Points:
    """Count the points of tables in each region of each section.

    Args:
        tables: Tables of points.
        regions: The regions of the counted sections.
        counted: The sections whose points count.
        left_out: Sections whose points do not count.
        by_section: Whether each point in a region must name its section; it always must if sections are left out.

    Raises:
        InputError: If a table does not hold points, a point lies in an unknown region or section, or a point does not
            name its section although it must.
    """
    names = SectionNames(section.folder for section in (*counted, *left_out))
    excluded = {section.name for section in left_out}
    found = {name: _nothing() for name in ("", *(section.name for section in counted))}
    sides, n_left_out = set(SIDES), 0
    for part, sections in chain.from_iterable(_with_sections(table, names) for table in tables):
        if "hemisphere" not in part.names:
            sides = {""}
        cells = part.column(_REGION, hint=_HINT)
        out = [name in excluded for name in sections]
        n_left_out += sum(map(_is_region, compress(cells, out)))
        own = part.only(place for place, is_out in enumerate(out) if not is_out)
        named = [name for name in sections if name not in excluded]
        for (section, region_id, side), n_points in _in_regions(own, named, regions).items():
            for known in {"", side}:
                found[section][known][region_id] += n_points
    if found[""][""] and (excluded or by_section):
        why = (
            f"{', '.join(sorted(excluded))} must be left out" if excluded else "points are counted by section"
        )
        raise InputError(
            f"{tables[0]}: expected a column {SECTION} (or Image) that names each point's section, because {why}: run "
            "`atlalign transform` again, which adds it"
        )
    by_name = {name: {side: each[side] for side in SIDES if side in sides} for name, each in found.items()}
    return Points(by_name, n_left_out)


def _nothing() -> Amounts:
    return {side: defaultdict(float) for side in SIDES}


def _with_sections(table: Path, names: SectionNames) -> Iterator[tuple[Table, list[str]]]:
    """Yield the parts of a table with the name of each point's section; "" if it names none."""
    column: str | None = None
    known = {"": ""}
    for number_of_part, part in enumerate(read_parts(table)):
        column = column if number_of_part else section_column(part, names)
        if column is None:
            yield part, [""] * len(part.rows)
            continue
        given = names_of_sections(part, column)
        for line, name in zip(part.lines, given, strict=True):
            if name not in known:
                known[name] = names.section_of(name, f"{table}, line {line}, {column}", "in --with")
        yield part, [known[name] for name in given]


def _in_regions(
    part: Table, sections: Sequence[str], regions: Mapping[int, RegionName]
) -> Counter[tuple[str, int, str]]:
    """Count the points by section, region and side."""
    cells = part.column(_REGION)
    first_lines = dict(zip(reversed(cells), reversed(part.lines), strict=True))
    ids = {
        cell: _region_id(cell, regions, f"{part.path}, line {line}, {_REGION}")
        for cell, line in sorted(first_lines.items(), key=lambda found: found[1])
    }
    points = zip(sections, cells, _sides(part), strict=True)
    return Counter((section, ids[cell], side) for section, cell, side in points if ids[cell])


def _is_region(cell: str) -> bool:
    return not is_missing(cell) and cell != "0"


def _region_id(cell: str, regions: Mapping[int, RegionName], where: str) -> int:
    """Return the id of a region; 0 for no region."""
    region_id = 0 if is_missing(cell) else whole_number(cell, where)
    if region_id and region_id not in regions:
        raise InputError(f"{where}: expected a region of a section in --with, found {region_id}")
    return region_id


def _sides(part: Table) -> list[str]:
    """Return the side of each point; "" if it is unknown."""
    cells = part.column("hemisphere") if "hemisphere" in part.names else [""] * len(part.rows)
    sides = {cell: "" if is_missing(cell) else cell.lower() for cell in set(cells)}
    for line, cell in zip(part.lines, cells, strict=True):
        if sides[cell] not in SIDES:
            raise InputError(
                f"{part.path}, line {line}, hemisphere: expected left, right or an empty cell, found {shown(cell)}"
            )
    return [sides[cell] for cell in cells]
