"""The regions of a section: their names and a table of their areas."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.ontology import Ontology
from atlalign.errors import InputError
from atlalign.io.cells import shown, whole_number
from atlalign.io.pixels import PixelSize
from atlalign.io.tables import Table, read_table, write_table

_Paths = dict[int, tuple[int, ...]]
"""The ids from the root down to a region, by the region's id."""
_Pixels = Counter[int] | defaultdict[int, float]
"""The number of pixels of each region, by id."""


class RegionName(NamedTuple):
    """The name of a region.

    Attributes:
        acronym: Short name; empty if the ontology lacks the region.
        name: Full name.
        color: (r, g, b), each 0 to 255, or None.
        parent_id: The region that it is part of; 0 without a parent, None if unknown.
    """

    acronym: str = ""
    name: str = ""
    color: tuple[int, int, int] | None = None
    parent_id: int | None = None


class RegionAreas:
    """Counts the pixels of each region while a label image is processed in bands.

    Args:
        pixel_um: The size of a pixel.

    Attributes:
        pixels: The number of pixels of each id.
        left: The number of these pixels left of the midline; None if unknown.
    """

    def __init__(self, pixel_um: PixelSize) -> None:
        self.pixels: Counter[int] = Counter()
        self.left: Counter[int] | None = None
        self.pixel_mm2 = pixel_um[0] * pixel_um[1] / 1e6

    def counted(self, bands: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Yield bands of labels unchanged, and count their pixels except label 0."""
        for band in bands:
            self.pixels.update(_counts(band.ravel()))
            yield band

    def counted_by_side(
        self, bands: Iterable[tuple[NDArray[Any], NDArray[np.bool_]]]
    ) -> Iterator[NDArray[Any]]:
        """Yield bands of labels as `counted` does; each comes with a mask of its pixels left of the midline."""
        self.left = Counter()
        for band, is_left in bands:
            self.pixels.update(_counts(band.ravel()))
            self.left.update(_counts(band[is_left]))
            yield band


def _counts(labels: NDArray[Any]) -> dict[int, int]:
    """Return the number of occurrences of each label (N,) except 0."""
    if not labels.size:
        return {}
    # Sorting the runs of equal labels takes a fraction of the time of sorting all pixels.
    starts = np.concatenate([[0], np.flatnonzero(labels[1:] != labels[:-1]) + 1])
    lengths = np.diff(starts, append=labels.size)
    ids, place = np.unique(labels[starts], return_inverse=True)
    pixels = np.bincount(place, weights=lengths)
    return {int(i): int(n) for i, n in zip(ids, pixels, strict=True) if i != 0}


def write_regions(
    path: Path, areas: RegionAreas, ontology: Ontology | None, *, known: Iterable[int] = ()
) -> None:
    """Write a table of areas, sorted by the area of a region with all its parts.

    Its columns are id, acronym, name, color, area_mm2, pixels and share, the fraction of all regions' pixels. They
    count only pixels labelled with the region itself, not with its parts. If sides were counted, left_mm2 and right_mm2
    follow area_mm2. If the ontology is a tree, the table adds parent_id, area_with_parts_mm2 (also by side), and rows
    for all parents.

    Args:
        path: The CSV file.
        areas: The counted pixels.
        ontology: Names and parents of the ids; an id that it lacks gets an empty name.
        known: Ids that get a row even if they do not occur in the section.
    """
    paths = _paths({*areas.pixels, *(int(i) for i in known)}, ontology)
    whole = with_parts(areas.pixels, paths.__getitem__)
    ids = sorted(paths, key=lambda i: (-whole[i], len(paths[i]), i))
    columns = _own_columns(ids, areas, ontology)
    if ontology is not None and ontology.depth:
        left = None if areas.left is None else with_parts(areas.left, paths.__getitem__)
        columns["parent_id"] = [paths[i][-2] if len(paths[i]) > 1 else "" for i in ids]
        columns |= _area_columns("_with_parts", ids, whole, left, areas.pixel_mm2)
    write_table(path, columns, zip(*columns.values(), strict=True))


def _paths(ids: Iterable[int], ontology: Ontology | None) -> _Paths:
    """Return the paths of regions and of all their parents."""
    ends = [(i,) if ontology is None or i not in ontology else ontology[i].path for i in ids]
    return {region_id: path[: depth + 1] for path in ends for depth, region_id in enumerate(path)}


def with_parts(amounts: Mapping[int, float], path: Callable[[int], Iterable[int]]) -> defaultdict[int, float]:
    """Return the amount of each region together with all its parts.

    Args:
        amounts: The amount of each region without its parts, by id.
        path: Returns the ids of a region and of all its parents.
    """
    totals: defaultdict[int, float] = defaultdict(float)
    for region_id, amount in amounts.items():
        for whole_id in path(region_id):
            totals[whole_id] += amount
    return totals


def _own_columns(ids: Sequence[int], areas: RegionAreas, ontology: Ontology | None) -> dict[str, list[Any]]:
    called = [_called(i, ontology) for i in ids]
    total = areas.pixels.total() or 1
    return {
        "id": list(ids),
        "acronym": [acronym for acronym, _, _ in called],
        "name": [name for _, name, _ in called],
        "color": [color for _, _, color in called],
        **_area_columns("", ids, areas.pixels, areas.left, areas.pixel_mm2),
        "pixels": [areas.pixels[i] for i in ids],
        "share": [areas.pixels[i] / total for i in ids],
    }


def _area_columns(
    suffix: str, ids: Sequence[int], pixels: _Pixels, left: _Pixels | None, pixel_mm2: float
) -> dict[str, list[Any]]:
    """Return columns of areas; if the pixels left of the midline are known, also of each side's area."""
    counts = {"area": [pixels[i] for i in ids]}
    if left is not None:
        counts |= {"left": [left[i] for i in ids], "right": [pixels[i] - left[i] for i in ids]}
    return {
        f"{what}{suffix}_mm2": [float(count * pixel_mm2) for count in of_ids]
        for what, of_ids in counts.items()
    }


def _called(region_id: int, ontology: Ontology | None) -> tuple[str, str, str]:
    if ontology is None or region_id not in ontology:
        return "", "", ""
    region = ontology[region_id]
    return region.acronym, region.name, f"#{bytes(region.color).hex()}" if region.color else ""


def read_regions(path: Path) -> dict[int, RegionName]:
    """Return the region names in a file that `write_regions` wrote, by id.

    Raises:
        InputError: If the file cannot be read or is not such a table.
    """
    return region_names(read_table(path))


def region_names(table: Table) -> dict[int, RegionName]:
    """Return the region names in a table that `write_regions` wrote, by id.

    Raises:
        InputError: If it is not such a table.
    """
    names: dict[int, RegionName] = {}
    for line, row in table.records(["id", "acronym", "name", "color"]):
        where = f"{table.path}, line {line}"
        region_id = whole_number(row["id"], f"{where}, id")
        if region_id in names:
            raise InputError(f"{where}, id: expected each region once, found {region_id} again")
        names[region_id] = _region_name(row, where)
    return names


def upwards(region_id: int, regions: Mapping[int, RegionName]) -> Iterator[int]:
    """Yield a region and all its parents, each once, even if a damaged table contains a cycle."""
    seen: set[int] = set()
    while region_id in regions and region_id not in seen:
        yield region_id
        seen.add(region_id)
        region_id = regions[region_id].parent_id or 0


def _region_name(row: Mapping[str, str], where: str) -> RegionName:
    parent = row.get("parent_id")
    parent_id = None if parent is None else whole_number(parent or 0, f"{where}, parent_id")
    color = _color(row["color"], f"{where}, color") if row["color"] else None
    return RegionName(row["acronym"], row["name"], color, parent_id)


def _color(text: str, where: str) -> tuple[int, int, int]:
    try:
        red, green, blue = bytes.fromhex(text.removeprefix("#"))
    except ValueError as error:
        raise InputError(f"{where}: expected a color such as #bfdae3, found {shown(text)}") from error
    return red, green, blue
