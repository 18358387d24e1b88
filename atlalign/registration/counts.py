"""Points counted by region: what `atlalign transform` wrote of cells, over the areas of the sections they lie in."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from atlalign.errors import InputError
from atlalign.io.tables import (
    Table,
    is_missing,
    number,
    read_parts,
    read_table,
    shown,
    whole_number,
    write_table,
)
from atlalign.registration.regions import RegionName, region_names, upwards, with_parts
from atlalign.registration.transform import RECORD, REGIONS

_SIDES = ("", "left", "right")  # the first one is both
_Amounts = dict[str, dict[int, float]]
"""How much of something there is on each side, by a region's id; a side is missing where it is not known."""


class _Sections(NamedTuple):
    """What registered sections show: what regions are called, and their own areas in mm²."""

    regions: Mapping[int, RegionName]
    areas: _Amounts


def count_points(
    tables: Sequence[Path], folders: Sequence[Path], out: Path, *, overwrite: bool = False
) -> str:
    """Write how many points lie in each region of some sections, and how many in a mm² of it; return one line on it.

    The columns are id, acronym, name and, of what the atlas gives to a region but to none of its parts, points,
    area_mm2 and points_per_mm2; the same of each side where it is known, as in left_points; and where regions know
    what they are part of, parent_id and the same with all parts, as in points_with_parts. Points outside of the atlas
    or in no region do not count.

    Args:
        tables: What `atlalign transform … --to reference` wrote of points.
        folders: The sections' folders, or those that hold them; also of sections in which there is no point.
        out: The CSV file to write.
        overwrite: Replace a file that exists.

    Raises:
        InputError: If a file is not what is expected, a point lies in a region that no section shows, or `out` exists.
    """
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another --out, or --overwrite")
    found = sorted({section for folder in folders for section in _sections_in(folder)})
    sections = _read_sections(found)
    points = _count(tables, sections.regions, {section.name for section in found})
    columns = _columns(points, sections)
    write_table(out, columns, zip(*columns.values(), strict=True))
    counted = sum(points[""].values())
    return f"{out}: {counted:.0f} points in {len(points[''])} regions of {len(found)} sections"


# --- what there is ----------------------------------------------------------------------------------------------------


def _sections_in(folder: Path) -> list[Path]:
    folder = folder.resolve()
    if (folder / RECORD).is_file():
        return [folder]
    found = [record.parent for record in folder.glob(f"[!.]*/{RECORD}")]
    if not found:
        raise InputError(
            f"{folder}: expected a section's folder that `atlalign register` wrote, or a folder of these"
        )
    return found


def _read_sections(folders: Sequence[Path]) -> _Sections:
    """Return what the tables of regions in these folders say, areas summed."""
    regions: dict[int, RegionName] = {}
    areas: _Amounts = {side: defaultdict(float) for side in _SIDES}
    for folder in folders:
        path = folder / REGIONS
        table = read_table(path)
        regions |= region_names(table)
        areas = {side: area for side, area in areas.items() if f"{side or 'area'}_mm2" in table.names}
        for line, cells in table.records(["id", "area_mm2"]):
            region_id = whole_number(cells["id"], f"{path}, line {line}, id")
            for side, area in areas.items():
                name = f"{side or 'area'}_mm2"
                area[region_id] += float(number(cells[name], f"{path}, line {line}, {name}"))
    return _Sections(regions, areas)


def _count(tables: Sequence[Path], regions: Mapping[int, RegionName], sections: Collection[str]) -> _Amounts:
    """Return how many points of these tables lie in each region.

    Raises:
        InputError: If a table is none of points, or some lie in a region or a section that is not among these.
    """
    counts: _Amounts = {side: defaultdict(float) for side in _SIDES}
    for part in chain.from_iterable(map(read_parts, tables)):
        if "hemisphere" not in part.names:
            counts = {"": counts[""]}
        _check_sections(part, sections)
        for (region_id, side), n_points in _counted(part, regions).items():
            for known in {"", side} & counts.keys():
                counts[known][region_id] += n_points
    return counts


def _check_sections(part: Table, sections: Collection[str]) -> None:
    for line, name in zip(part.lines, _optional(part, "section"), strict=True):
        if name and name not in sections:
            raise InputError(
                f"{part.path}, line {line}, section: expected one of those in --with, found {shown(name)}"
            )


def _counted(part: Table, regions: Mapping[int, RegionName]) -> Counter[tuple[int, str]]:
    """Return how many points lie in each region on each side."""
    hint = ": it is to be what `atlalign transform … --to reference` wrote"
    cells = part.column("region_id", hint=hint)
    first_lines = dict(zip(reversed(cells), reversed(part.lines), strict=True))
    ids = {
        cell: _region_id(cell, regions, f"{part.path}, line {line}, region_id")
        for cell, line in sorted(first_lines.items(), key=lambda found: found[1])
    }
    sides = _optional(part, "hemisphere")
    return Counter((ids[cell], side) for cell, side in zip(cells, sides, strict=True) if ids[cell])


def _region_id(cell: str, regions: Mapping[int, RegionName], where: str) -> int:
    """Return the id of a region, 0 for none."""
    region_id = 0 if is_missing(cell) else whole_number(cell, where)
    if region_id and region_id not in regions:
        raise InputError(f"{where}: expected a region of the sections, found {region_id}")
    return region_id


def _optional(part: Table, name: str) -> list[str]:
    return part.column(name) if name in part.names else [""] * len(part.rows)


# --- the table --------------------------------------------------------------------------------------------------------


def _columns(points: _Amounts, sections: _Sections) -> dict[str, list[Any]]:
    """Return the columns, the regions with most points first, all of their parts counted."""
    regions, areas = sections
    kinds = [("", points, areas)]
    if all(called.parent_id is not None for called in regions.values()):
        kinds.append(("_with_parts", _with_parts(points, regions), _with_parts(areas, regions)))
    most, largest = kinds[-1][1][""], kinds[-1][2][""]
    ids = sorted(regions, key=lambda i: (-most.get(i, 0), -largest.get(i, 0), i))
    columns: dict[str, list[Any]] = {
        "id": ids,
        "acronym": [regions[i].acronym for i in ids],
        "name": [regions[i].name for i in ids],
    }
    if len(kinds) > 1:
        columns["parent_id"] = [regions[i].parent_id or "" for i in ids]
    for suffix, counts, extents in kinds:
        for side in (side for side in _SIDES if side in counts and side in extents):
            columns |= _of_side(side, suffix, ids, counts[side], extents[side])
    return columns


def _of_side(
    side: str, suffix: str, ids: Sequence[int], counts: Mapping[int, float], areas: Mapping[int, float]
) -> dict[str, list[Any]]:
    pairs = [(counts.get(i, 0), areas.get(i, 0)) for i in ids]
    points = f"{side}_points{suffix}".removeprefix("_")
    return {
        points: [int(count) for count, _ in pairs],
        f"{side or 'area'}{suffix}_mm2": [area for _, area in pairs],
        f"{points}_per_mm2": [count / area if area else None for count, area in pairs],
    }


def _with_parts(amounts: _Amounts, regions: Mapping[int, RegionName]) -> _Amounts:
    return {
        side: with_parts(amount, lambda region_id: upwards(region_id, regions))
        for side, amount in amounts.items()
    }
