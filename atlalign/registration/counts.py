"""Counts of points by region, and their densities per mm² of the sections in which points were searched."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple

from atlalign.console import counted as with_noun
from atlalign.console import first_names
from atlalign.errors import InputError
from atlalign.io.cells import shown
from atlalign.io.tables import write_table
from atlalign.registration.count_inputs import (
    SIDES,
    Amounts,
    CountedSection,
    Points,
    read_areas,
    read_points,
    read_sections,
    total,
)
from atlalign.registration.point_sections import SECTION
from atlalign.registration.regions import RegionName, upwards, with_parts

By = Literal["section"]
"""The parts of the sections that get rows of their own."""

_INCLUDE = "--include-rejected counts them"


class _Kind(NamedTuple):
    """Points and areas, either of regions alone or with all their parts; the suffix names their columns."""

    suffix: str
    points: Amounts
    areas: Amounts


def count_points(
    tables: Sequence[Path],
    folders: Sequence[Path],
    out: Path,
    *,
    regions: Sequence[str] = (),
    by: By | None = None,
    include_rejected: bool = False,
    overwrite: bool = False,
) -> str:
    """Write the number and density of points in each region of some sections; return a summary.

    The columns are id, acronym, name, points, area_mm2 and points_per_mm2. They count only points and pixels labelled
    with the region itself, not with its parts. If hemispheres are known, columns such as left_points count each side.
    If regions have parents, the table adds parent_id and columns such as points_with_parts, which include all parts.
    Points outside the atlas or in no region do not count.

    Args:
        tables: Tables of points that `atlalign transform … --to reference` wrote.
        folders: The folders of all sections in which points were searched, or folders of such folders.
        out: The CSV file to write.
        regions: Acronyms, names or ids of the regions to write, in this order; empty means all regions.
        by: "section" writes a row for each region of each section, with a first column section.
        include_rejected: Count sections that the user rejected in review, which are left out otherwise.
        overwrite: Replace a file that exists.

    Raises:
        InputError: If a file is invalid or given twice, a point lies in a region that no section has, a region is
            unknown, or `out` exists.
    """
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another --out, or add --overwrite")
    _check_different(tables)
    found = read_sections(folders)
    rejected = [section for section in found if section.is_rejected and not include_rejected]
    sections = [section for section in found if section not in rejected]
    if not sections:
        raise InputError(f"{found[0].folder.parent}: all sections were rejected in review: {_INCLUDE}")
    if rejected or by:
        _check_names_differ(found)
    areas = read_areas(sections)
    points = read_points(tables, areas.regions, sections, rejected, by_section=by is not None)
    ids = _chosen(regions, areas.regions)
    whole = _kinds(
        total(list(points.by_section.values())), total(list(areas.by_section.values())), areas.regions
    )
    each = {
        section.name: _kinds(
            points.by_section.get(section.name, {}), areas.by_section[section.folder], areas.regions
        )
        for section in sections
    }
    order = ids or _by_number(whole[-1], areas.regions)
    columns = _columns_by_section(order, each, areas.regions) if by else _columns(order, whole, areas.regions)
    write_table(out, columns, zip(*columns.values(), strict=True))
    return "\n".join(
        [
            f"{out}: {_summary(points, sections, ids)}",
            *_remarks(rejected, points.left_out, sections),
            *(
                [_overview(ids, whole[-1], [kinds[-1] for kinds in each.values()], areas.regions, by)]
                if ids
                else []
            ),
        ]
    )


def _check_different(tables: Sequence[Path]) -> None:
    """Raise an error if a table is given twice, because its points would count twice."""
    for table, n in Counter(path.resolve() for path in tables).items():
        if n > 1:
            raise InputError(f"{table}: expected each table once, got it {n} times")


def _check_names_differ(sections: Sequence[CountedSection]) -> None:
    """Raise an error if two sections share a name, because their points could not be told apart."""
    for name, n in Counter(section.name for section in sections).items():
        if n > 1:
            raise InputError(
                f"--with: expected sections of different names, found {n} called {name}: count each brain by itself"
            )


def _chosen(wanted: Sequence[str], regions: Mapping[int, RegionName]) -> list[int]:
    """Return the ids of the regions that the user names by acronym, name or id, each once."""
    return list(dict.fromkeys(_region_called(name, regions) for name in wanted))


def _region_called(wanted: str, regions: Mapping[int, RegionName]) -> int:
    calls = [
        (region_id, (called.acronym, str(region_id), called.name)) for region_id, called in regions.items()
    ]
    for plain in (str, str.casefold):
        for place in range(3):
            found = [region_id for region_id, names in calls if plain(names[place]) == plain(wanted)]
            if len(found) == 1:
                return found[0]
            if found:
                raise InputError(
                    f"--regions: expected the name of one region, found {shown(wanted)}, which names "
                    f"{' and '.join(map(str, sorted(found)))}: give one of these ids"
                )
    known = {name.casefold(): name for _, (acronym, _, name) in calls for name in (name, acronym) if name}
    near = [known[name] for name in get_close_matches(wanted.casefold(), known, n=3)]
    raise InputError(
        f"--regions: expected the acronym, name or id of a region in these sections, found {shown(wanted)}"
        + (f": did you mean {' or '.join(near)}?" if near else "")
    )


# --- the summary ------------------------------------------------------------------------------------------------------


def _summary(points: Points, sections: Sequence[CountedSection], ids: Sequence[int]) -> str:
    of_sections = f"of {with_noun(len(sections), 'section')}"
    if ids:
        return f"{with_noun(len(ids), 'region')} {of_sections}"
    found = total(list(points.by_section.values()))[""]
    return (
        f"{with_noun(int(sum(found.values())), 'point')} in {with_noun(len(found), 'region')} {of_sections}"
    )


def _remarks(
    rejected: Sequence[CountedSection], n_left_out: int, sections: Sequence[CountedSection]
) -> Iterator[str]:
    """Yield remarks on the sections that are left out, and on the sections that count although they are flagged."""
    if rejected:
        area_mm2 = sum(sum(areas[""].values()) for areas in read_areas(rejected).by_section.values())
        yield (
            f"left out because rejected in review: {_listed(rejected)} ({with_noun(n_left_out, 'point')}, "
            f"{area_mm2:.4g} mm²); {_INCLUDE}"
        )
    for fault, faulty in (
        ("rejected in review", [section for section in sections if section.is_rejected]),
        ("flagged look", [section for section in sections if section.flag == "look"]),
        ("flagged fail", [section for section in sections if section.flag == "fail"]),
    ):
        if faulty:
            yield f"counted although {fault}: {_listed(faulty)}"


def _listed(sections: Sequence[CountedSection]) -> str:
    """Return the number of sections and the names of the first few, in words."""
    names = first_names([section.name for section in sections])
    return f"{with_noun(len(sections), 'section')}, {names}"


def _overview(
    ids: Sequence[int], whole: _Kind, each: Sequence[_Kind], regions: Mapping[int, RegionName], by: By | None
) -> str:
    """Return a table of regions for the terminal; counts by section add the mean and SD of the sections' densities."""
    header = ["region", "points", "mm²", "points per mm²"]
    rows = [
        [_called(i, regions), *_shown_density(whole.points[""].get(i, 0), whole.areas[""].get(i, 0))]
        for i in ids
    ]
    if by:
        header += ["sections", "mean per mm²", "SD"]
        for row, region_id in zip(rows, ids, strict=True):
            row += _spread([_density(kind, region_id) for kind in each if kind.areas[""].get(region_id)])
    return _lined_up([header, *rows])


def _called(region_id: int, regions: Mapping[int, RegionName]) -> str:
    return regions[region_id].acronym or str(region_id)


def _shown_density(points: float, area: float) -> list[str]:
    return [f"{points:.0f}", f"{area:.4g}", f"{points / area:.4g}" if area else "–"]


def _density(kind: _Kind, region_id: int) -> float:
    return kind.points[""].get(region_id, 0) / kind.areas[""][region_id]


def _spread(densities: Sequence[float]) -> list[str]:
    """Return the number of densities, their mean and their sample standard deviation."""
    n = len(densities)
    return [str(n), f"{mean(densities):.4g}" if n else "–", f"{stdev(densities):.4g}" if n > 1 else "–"]


def _lined_up(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines, with the first column aligned to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    )


# --- the table --------------------------------------------------------------------------------------------------------


def _kinds(points: Amounts, areas: Amounts, regions: Mapping[int, RegionName]) -> list[_Kind]:
    """Return points and areas of regions alone and, if all parents are known, with their parts."""
    alone = _Kind("", points, areas)
    if any(called.parent_id is None for called in regions.values()):
        return [alone]
    return [alone, _Kind("_with_parts", _with_parts(points, regions), _with_parts(areas, regions))]


def _by_number(kind: _Kind, regions: Mapping[int, RegionName]) -> list[int]:
    """Return the ids of all regions, those with most points first."""
    points, areas = kind.points[""], kind.areas[""]
    return sorted(regions, key=lambda i: (-points.get(i, 0), -areas.get(i, 0), i))


def _columns(
    ids: Sequence[int], kinds: Sequence[_Kind], regions: Mapping[int, RegionName]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "id": list(ids),
        "acronym": [regions[i].acronym for i in ids],
        "name": [regions[i].name for i in ids],
    }
    if len(kinds) > 1:
        columns["parent_id"] = [regions[i].parent_id or "" for i in ids]
    for suffix, counts, extents in kinds:
        for side in (side for side in SIDES if side in counts and side in extents):
            columns |= _of_side(side, suffix, ids, counts[side], extents[side])
    return columns


def _columns_by_section(
    ids: Sequence[int], each: Mapping[str, Sequence[_Kind]], regions: Mapping[int, RegionName]
) -> dict[str, list[Any]]:
    """Return the columns for each section and each region that it shows, or in which it has points."""
    columns: dict[str, list[Any]] = {}
    for section, kinds in each.items():
        _, points, areas = kinds[-1]
        own = [i for i in ids if areas[""].get(i) or points[""].get(i)]
        for name, cells in {SECTION: [section] * len(own), **_columns(own, kinds, regions)}.items():
            columns.setdefault(name, []).extend(cells)
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


def _with_parts(amounts: Amounts, regions: Mapping[int, RegionName]) -> Amounts:
    return {
        side: with_parts(amount, lambda region_id: upwards(region_id, regions))
        for side, amount in amounts.items()
    }
