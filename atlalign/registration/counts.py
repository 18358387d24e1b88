"""Counts of points by region, and their densities per mm² of the sections in which points were searched."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from atlalign.errors import InputError
from atlalign.io.cells import is_missing, number, shown, whole_number
from atlalign.io.tables import Table, read_parts, read_table, write_table
from atlalign.registration.record import RECORD, REGIONS, read_record
from atlalign.registration.regions import RegionName, region_names, upwards, with_parts

_SIDES = ("", "left", "right")  # "" means both sides
_Amounts = dict[str, dict[int, float]]
"""Amounts by side and region id, without the sides that are unknown."""


class _Sections(NamedTuple):
    """The regions of registered sections: their names, and their areas in mm², without parts."""

    regions: Mapping[int, RegionName]
    areas: _Amounts


def count_points(
    tables: Sequence[Path], folders: Sequence[Path], out: Path, *, overwrite: bool = False
) -> str:
    """Write the number and density of points in each region of some sections; return a one-line summary.

    The columns are id, acronym, name, points, area_mm2 and points_per_mm2. They count only points and pixels labelled
    with the region itself, not with its parts. If hemispheres are known, columns such as left_points count each side.
    If regions have parents, the table adds parent_id and columns such as points_with_parts, which include all parts.
    Points outside the atlas or in no region do not count.

    Args:
        tables: Tables of points that `atlalign transform … --to reference` wrote.
        folders: The folders of all sections in which points were searched, or folders of such folders.
        out: The CSV file to write.
        overwrite: Replace a file that exists.

    Raises:
        InputError: If a file is invalid or given twice, a point lies in a region that no section has, or `out` exists.
    """
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another --out, or add --overwrite")
    _check_different(tables)
    found = sorted({section for folder in folders for section in _sections_in(folder)})
    sections = _read_sections(found)
    points = _count(tables, sections.regions, {section.name for section in found})
    columns = _columns(points, sections)
    write_table(out, columns, zip(*columns.values(), strict=True))
    counted = sum(points[""].values())
    return f"{out}: {counted:.0f} points in {len(points[''])} regions of {len(found)} sections"


def _check_different(tables: Sequence[Path]) -> None:
    """Raise an error if a table is given twice, because its points would count twice."""
    for table, n in Counter(path.resolve() for path in tables).items():
        if n > 1:
            raise InputError(f"{table}: expected each table once, got it {n} times")


# --- the input files --------------------------------------------------------------------------------------------------


def _sections_in(folder: Path) -> list[Path]:
    folder = folder.resolve()
    if (folder / RECORD).is_file():
        return [folder]
    found = [record.parent for record in folder.glob(f"[!.]*/{RECORD}")]
    if not found:
        raise InputError(
            f"{folder}: expected a section's folder that `atlalign register` wrote, or a folder of such folders, found "
            f"no {RECORD}"
        )
    return found


def _read_sections(folders: Sequence[Path]) -> _Sections:
    """Return the regions of all sections with the sums of their areas."""
    _check_one_atlas(folders)
    regions: dict[int, RegionName] = {}
    areas: _Amounts = {side: defaultdict(float) for side in _SIDES}
    for folder in folders:
        path = folder / REGIONS
        table = read_table(path)
        named = region_names(table)
        _check_same_names(named, regions, path)
        regions |= named
        areas = {side: area for side, area in areas.items() if f"{side or 'area'}_mm2" in table.names}
        for line, cells in table.records(["id", "area_mm2"]):
            region_id = whole_number(cells["id"], f"{path}, line {line}, id")
            for side, area in areas.items():
                name = f"{side or 'area'}_mm2"
                area[region_id] += _area(cells[name], f"{path}, line {line}, {name}")
    return _Sections(regions, areas)


def _area(cell: str, where: str) -> float:
    area = float(number(cell, where))
    if area < 0:
        raise InputError(f"{where}: expected an area of at least 0, found {shown(cell)}")
    return area


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


def _count(tables: Sequence[Path], regions: Mapping[int, RegionName], sections: Collection[str]) -> _Amounts:
    """Count the points of all tables in each region.

    Raises:
        InputError: If a table does not hold points, or a point lies in an unknown region or section.
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
                f"{part.path}, line {line}, section: expected the name of a section in --with, found {shown(name)}"
            )


def _counted(part: Table, regions: Mapping[int, RegionName]) -> Counter[tuple[int, str]]:
    """Count the points in each region on each side."""
    hint = ": give a table that `atlalign transform … --to reference` wrote"
    cells = part.column("region_id", hint=hint)
    first_lines = dict(zip(reversed(cells), reversed(part.lines), strict=True))
    ids = {
        cell: _region_id(cell, regions, f"{part.path}, line {line}, region_id")
        for cell, line in sorted(first_lines.items(), key=lambda found: found[1])
    }
    sides = _sides(part)
    return Counter((ids[cell], side) for cell, side in zip(cells, sides, strict=True) if ids[cell])


def _sides(part: Table) -> list[str]:
    """Return the side of each point; "" if it is unknown."""
    cells = _optional(part, "hemisphere")
    sides = {cell: "" if is_missing(cell) else cell.lower() for cell in set(cells)}
    for line, cell in zip(part.lines, cells, strict=True):
        if sides[cell] not in _SIDES:
            raise InputError(
                f"{part.path}, line {line}, hemisphere: expected left, right or an empty cell, found {shown(cell)}"
            )
    return [sides[cell] for cell in cells]


def _region_id(cell: str, regions: Mapping[int, RegionName], where: str) -> int:
    """Return the id of a region; 0 for no region."""
    region_id = 0 if is_missing(cell) else whole_number(cell, where)
    if region_id and region_id not in regions:
        raise InputError(f"{where}: expected a region of a section in --with, found {region_id}")
    return region_id


def _optional(part: Table, name: str) -> list[str]:
    return part.column(name) if name in part.names else [""] * len(part.rows)


# --- the table --------------------------------------------------------------------------------------------------------


def _columns(points: _Amounts, sections: _Sections) -> dict[str, list[Any]]:
    """Return the columns, sorted by the number of points in a region with all its parts."""
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
