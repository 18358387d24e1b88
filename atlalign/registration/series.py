"""A series of sections: areas of large regions along the axis, and sections that do not fit their neighbours.

A brain changes smoothly from section to section. A section whose areas differ from both neighbours most likely lies on
a wrong plane, is torn, or is registered badly.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Plane
from atlalign.io.files import written_whole
from atlalign.io.tables import Table, read_table, write_table
from atlalign.plots import Course, figure_svg, series_figure
from atlalign.registration.record import REGIONS

SERIES, SERIES_PLOT = "series.csv", "series.svg"
"""The files of a series in the folder of results: its table and its plot."""
COLUMNS = ("section", "position_um", "area_mm2", "jump", "is_jump", "region", "expected_mm2", "found_mm2")
"""The columns of the table: for each section, the region whose area differs most from its neighbours' areas."""

LEAST = 5
"""The least number of sections that form a series."""

_SHOWN = 10  # regions
_JUMP, _TIMES_USUAL = 0.06, 2.0


class SectionAreas(NamedTuple):
    """A section of a series: its name, its position, and the areas of its regions in mm² by id, with their parts."""

    section: str
    position_um: float
    areas: Mapping[int, float]


class Jump(NamedTuple):
    """The difference between a section and the areas expected from its neighbours.

    Attributes:
        share: The missing and the excess areas, as a fraction of the expected area.
        region: The id of the region that differs most.
        expected_mm2: Its area according to the neighbours.
        found_mm2: Its area in the section.
        is_jump: Whether the difference is large, in itself and for the series.
    """

    share: float
    region: int
    expected_mm2: float
    found_mm2: float
    is_jump: bool = False


def write_series(out: Path, records: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the table and the plot of all sections of an atlas in a folder of results, if they form a series.

    Returns the plot as an <svg> element, or an empty string for too few sections.

    Args:
        out: The folder.
        records: The records of the sections' transforms by folder name.
    """
    placed = {
        name: record
        for name, record in records.items()
        if _is_placed(record) and (out / name / REGIONS).exists()
    }
    if len(placed) < LEAST:
        return ""
    tables = {name: read_table(out / name / REGIONS) for name in placed}
    series = sorted(
        (SectionAreas(name, placed[name]["position_um"], _areas(table)) for name, table in tables.items()),
        key=lambda section: (section.position_um, section.section),
    )
    regions = large_regions(series, _parents(tables.values()))
    found = jumps(series, regions)
    names = _names(tables.values())
    write_table(out / SERIES, COLUMNS, _rows(series, found, regions, names))
    figure = series_figure(
        [section.position_um / 1000 for section in series],
        [_course(region, series, names) for region in regions],
        [
            section.position_um / 1000
            for section, jump in zip(series, found, strict=True)
            if jump and jump.is_jump
        ],
    )
    plot = figure_svg(figure)
    with written_whole(out / SERIES_PLOT) as unfinished:
        unfinished.write_text(plot, encoding="utf-8")
    return plot


def _is_placed(record: Mapping[str, Any]) -> bool:
    """Return whether a section has a place from front to back; a sagittal or horizontal section has none."""
    plane = record.get("plane")
    is_coronal = plane is None or Plane(np.array(plane, np.float64)).kind == "coronal"
    return is_coronal and record.get("position_um") is not None


# --- the measure ------------------------------------------------------------------------------------------------------


def large_regions(series: Sequence[SectionAreas], parents: Mapping[int, int]) -> list[int]:
    """Return the ids of some large regions that do not overlap, the largest in the series first.

    The search starts at the root: the largest region is replaced by its parts until there are enough regions.

    Args:
        series: The sections.
        parents: The parent of each region, 0 for none; if empty, regions are used as they are.
    """
    totals: dict[int, float] = {}
    for section in series:
        for region, area in section.areas.items():
            totals[region] = totals.get(region, 0.0) + area
    parts: dict[int, list[int]] = {}
    for region in totals:
        parts.setdefault(parents.get(region, 0), []).append(region)
    chosen, whole = sorted(parts.get(0, ()), key=lambda i: -totals[i]), set()
    while len(chosen) < _SHOWN and (divisible := [i for i in chosen if i not in whole]):
        largest = divisible[0]
        own = [part for part in parts.get(largest, ()) if totals[part] > 0]
        if sum(totals[part] for part in own) < 0.5 * totals[largest]:
            whole.add(largest)  # most of it has no known parts
            continue
        chosen = sorted([*(i for i in chosen if i != largest), *own], key=lambda i: -totals[i])
    return chosen[:_SHOWN]


def jumps(series: Sequence[SectionAreas], regions: Sequence[int]) -> list[Jump | None]:
    """Return each section's difference from its neighbours; None if a side has no neighbour.

    Expected areas lie on the cubic through two neighbours on each side, or else on the line through one on each. A
    section is a jump if its difference is large for the series, and larger than its neighbours' differences.
    """
    positions = np.array([section.position_um for section in series])
    areas = np.array([[section.areas.get(region, 0.0) for region in regions] for section in series])
    found = [_jump(place, positions, areas, regions) for place in range(len(series))]
    shares = np.array([0.0 if jump is None else jump.share for jump in found])
    limit = max(_JUMP, _TIMES_USUAL * float(np.median([jump.share for jump in found if jump] or [np.inf])))
    return [
        jump
        and jump._replace(is_jump=bool(jump.share > limit and jump.share == shares[_around(place)].max()))
        for place, jump in enumerate(found)
    ]


def _around(place: int) -> slice:
    return slice(max(0, place - 1), place + 2)


def _jump(
    place: int, positions: NDArray[np.float64], areas: NDArray[np.float64], regions: Sequence[int]
) -> Jump | None:
    before = np.flatnonzero(positions < positions[place])[-2:]
    behind = np.flatnonzero(positions > positions[place])[:2]
    if not (len(before) and len(behind) and len(regions)):
        return None
    four = np.concatenate([before, behind])
    is_cubic = len(np.unique(positions[four])) == 4
    neighbours = four if is_cubic else np.array([before[-1], behind[0]])
    expected = _interpolated(positions[place], positions[neighbours], areas[neighbours])
    difference = np.abs(areas[place] - expected)
    worst = int(difference.argmax())
    share = float(difference.sum() / max(expected.sum(), 1e-9))
    return Jump(share, regions[worst], float(expected[worst]), float(areas[place, worst]))


def _interpolated(
    position: float, positions: NDArray[np.float64], areas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return areas at positions on the polynomial through the areas (N, R) at N positions; none is below 0."""
    others = [np.delete(positions, i) for i in range(len(positions))]
    weights = [np.prod((position - own) / (at - own)) for at, own in zip(positions, others, strict=True)]
    return np.asarray((np.array(weights) @ areas).clip(min=0))


# --- tables of regions ------------------------------------------------------------------------------------------------


def _areas(table: Table) -> dict[int, float]:
    name = "area_with_parts_mm2" if "area_with_parts_mm2" in table.names else "area_mm2"
    return {int(cells["id"]): float(cells[name]) for _, cells in table.records(["id", name])}


def _parents(tables: Any) -> dict[int, int]:
    return {
        int(cells["id"]): int(cells["parent_id"] or 0)
        for table in tables
        if "parent_id" in table.names
        for _, cells in table.records(["id", "parent_id"])
    }


def _names(tables: Any) -> dict[int, tuple[str, str]]:
    """Return the acronyms of regions (ids where these are missing), and their colours."""
    return {
        int(cells["id"]): (cells["acronym"] or cells["id"], cells["color"])
        for table in tables
        for _, cells in table.records(["id", "acronym", "color"])
    }


def _course(region: int, series: Sequence[SectionAreas], names: Mapping[int, tuple[str, str]]) -> Course:
    acronym, color = names[region]
    return Course(acronym, color, [section.areas.get(region, 0.0) for section in series])


def _rows(
    series: Sequence[SectionAreas],
    found: Sequence[Jump | None],
    regions: Sequence[int],
    names: Mapping[int, tuple[str, str]],
) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for section, jump in zip(series, found, strict=True):
        total = float(sum(section.areas.get(region, 0.0) for region in regions))
        of_jump: tuple[Any, ...] = ("",) * 5
        if jump is not None:
            said = "yes" if jump.is_jump else ""
            of_jump = (jump.share, said, names[jump.region][0], jump.expected_mm2, jump.found_mm2)
        rows.append((section.section, section.position_um, total, *of_jump))
    return rows
