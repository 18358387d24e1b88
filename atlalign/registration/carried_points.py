"""Map tables of points in parts, so that tables of any length fit into memory."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Plane, Points, check_is_um
from atlalign.console import counted
from atlalign.errors import InputError
from atlalign.io.cells import cut, escape_controls, shown
from atlalign.io.tables import Table, read_parts, write_table
from atlalign.registration.corrections import is_rejected
from atlalign.registration.grid import Grid
from atlalign.registration.point_sections import (
    SECTION,
    SectionNames,
    check_one_image,
    names_of_sections,
    section_cells,
    section_column,
    sections_in,
)
from atlalign.registration.record import RECORD, read_record
from atlalign.registration.regions import RegionName, upwards
from atlalign.registration.results import Results, is_inside
from atlalign.registration.transform import SectionTransform
from atlalign.registration.transform_options import TransformOptions, Unit

OFF_PLANE_UM = 100.0
"""The default largest distance of atlas points from a section's plane: section thickness plus position error."""

_SECTIONS_IN_MEMORY = 32

_ATLAS = ("ap_um", "dv_um", "ml_um")
_SECTION = ("x", "y")
_REFERENCE = ("x_reference", "y_reference")
_CENTROIDS: Mapping[tuple[str, ...], Unit] = {
    ("centroid x px", "centroid y px"): "px",
    ("centroid x µm", "centroid y µm"): "um",
}
"""QuPath's names for the coordinates of a point, and their unit."""
_NAPARI = ("axis-1", "axis-0")
_POINTS, _LEFT_OUT, _OUTSIDE = "points", "left out", "outside the section or the reference"
_IN_NO_REGION, _WITHOUT_NUMBERS = "in no region", "without numbers"
"""The categories of points in the summary."""
_PATH_MARK = ">"  # a slash occurs in acronyms such as VISp2/3


class _Moved(NamedTuple):
    """The cells to add to a table, by column; the counts for the summary; and the unit of x and y in words."""

    columns: dict[str, list[str]]
    counts: dict[str, int]
    remark: str = ""


_Mover = Callable[[Table], _Moved]


def transform_table(source: Path, folder: Path, out: Path, options: TransformOptions) -> str:
    """Write a table of points with added columns for their mapped positions, and return a one-line summary.

    Raises:
        InputError: If the table does not hold points of the section, or of the sections in the folder.
    """
    table = next(read_parts(source))
    _check_table(table, options)
    mover, names, remark = _mover(table, folder, options)
    taken = [name for name in names if name in table.names]
    if taken:
        raise InputError(
            f"{source}: expected a table without the columns to add, found {', '.join(taken)}: rename them"
        )
    counts: Counter[str] = Counter()
    write_table(out, [*table.header, *names], _carried_rows(source, mover, names, counts))
    n_points = counts.pop(_POINTS)
    said = [f"{n} {what}" for what, n in counts.items() if n or what != _WITHOUT_NUMBERS]
    return f"{n_points} points, {', '.join([*remark, *said])}"


def _check_table(table: Table, options: TransformOptions) -> None:
    if not table.rows:
        raise InputError(
            f"{table.path}: expected a row of column names and at least one point, found no point"
        )
    if options.to == "reference" and options.off_plane_um is not None:
        raise InputError(f"{table.path}: --off-plane-um needs --to section")
    if options.to == "section" and options.unit is not None:
        raise InputError(f"{table.path}: --unit needs --to reference")


def _mover(table: Table, folder: Path, options: TransformOptions) -> tuple[_Mover, list[str], list[str]]:
    """Return the function that maps the parts of a table, the columns that it adds, and remarks for the summary."""
    if (folder / RECORD).exists() or not sections_in(folder):
        return _mover_of_one(table, folder, options)
    return _mover_by_section(table, folder, options)


def _mover_of_one(
    table: Table, folder: Path, options: TransformOptions
) -> tuple[_Mover, list[str], list[str]]:
    """Return what `_mover` returns, for points of one section."""
    results = Results.load(folder, options.scale)
    _check_section(table, folder)
    moved = _moved(table._replace(rows=[], lines=[]), results, options)
    remarks = [moved.remark] if moved.remark else []
    return partial(_moved, results=results, options=options), list(moved.columns), remarks


def _mover_by_section(
    table: Table, folder: Path, options: TransformOptions
) -> tuple[_Mover, list[str], list[str]]:
    """Return what `_mover` returns, for points of several sections with results in one folder."""
    names = SectionNames(sections_in(folder))
    column = section_column(table, names)
    if column is None:
        found = cut(", ".join(f"'{name}'" for name in table.header), 80)
        raise InputError(
            f"{table.path}: expected a column {SECTION} (or Image) that names each point's section, because {folder} "
            f"holds several sections, found {escape_controls(found)}: add it, or give the folder of one section"
        )
    sections = _sections_in(table.path, column, names, folder, options)
    load = lru_cache(_SECTIONS_IN_MEMORY)(lambda name: Results.load(folder / sections[name], options.scale))
    nothing = table._replace(rows=[], lines=[])
    columns = [_moved(nothing, load(name), options).columns for name in sections]
    added = list(dict.fromkeys(chain.from_iterable(columns)))
    used = sorted(set(sections.values()))
    rejected = [name for name in used if is_rejected(folder.resolve() / name)]
    remarks = [f"in {counted(len(used), 'section')}"]
    remarks += [f"rejected in review: {', '.join(rejected)}"] if rejected else []
    return partial(_moved_by_section, column, load, options, added), added, remarks


def _carried_rows(
    source: Path, mover: _Mover, names: Sequence[str], counts: Counter[str]
) -> Iterator[list[str]]:
    """Yield the rows of a table with the added cells, and count the points."""
    for part in read_parts(source):
        moved = mover(part)
        counts.update({_POINTS: len(part.rows)} | moved.counts)
        cells = zip(*(moved.columns[name] for name in names), strict=True)
        yield from ([*row, *new] for row, new in zip(part.rows, cells, strict=True))


def _check_section(table: Table, folder: Path) -> None:
    """Raise an error if a row names a section other than this folder's, or the image of another section."""
    own = folder.resolve()
    beside = SectionNames([own, *(path for path in sections_in(own.parent) if path != own)])
    column = section_column(table, beside)
    if column is None:
        check_one_image(table)
        return
    checked = {""}
    for line, name in section_cells(table.path, column):
        if name not in checked:
            _check_is_own(name, own, beside, f"{table.path}, line {line}, {column}")
            checked.add(name)


def _check_is_own(name: str, own: Path, beside: SectionNames, where: str) -> None:
    """Raise an error if a name refers to a section other than `own`, or to an unknown image."""
    try:
        found = beside.find(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if found == own.name:
        return
    advice = (
        f"give the folder that holds all sections, {own.parent}"
        if found
        else f"give the folder of its own section, or remove this column if all points belong to {own.name}"
    )
    raise InputError(f"{where}: expected points of {own.name}, found points of {shown(name)}: {advice}")


def _sections_in(
    source: Path, column: str, names: SectionNames, folder: Path, options: TransformOptions
) -> dict[str, str]:
    """Return the name of the results folder for each section name in a table."""
    if isinstance(options.scale, Path):
        raise InputError(
            f"--scale: expected a number for points of several sections, got the image {options.scale}"
        )
    sections: dict[str, str] = {}
    for line, name in section_cells(source, column):
        if name not in sections:
            sections[name] = names.section_of(name, f"{source}, line {line}, {column}", f"in {folder}")
    return sections


def _moved(table: Table, results: Results, options: TransformOptions) -> _Moved:
    if options.to == "reference":
        return _to_reference(table, results, options.unit)
    return _to_section(table, results, options.off_plane_um)


def _moved_by_section(
    column: str, load: Callable[[str], Results], options: TransformOptions, names: Sequence[str], table: Table
) -> _Moved:
    """Map points of several sections, which a column names."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names_of_sections(table, column)):
        places[name].append(place)
    columns = {name: [""] * len(table.rows) for name in names}
    n_empty = len(places.pop("", ()))
    counts = Counter({_LEFT_OUT: n_empty, _WITHOUT_NUMBERS: n_empty})
    for section, of_section in places.items():
        moved = _moved(table.only(of_section), load(section), options)
        counts[_LEFT_OUT] += sum(n for what, n in moved.counts.items() if what != _IN_NO_REGION)
        counts[_WITHOUT_NUMBERS] += moved.counts[_WITHOUT_NUMBERS]
        for name, cells in moved.columns.items():
            for place, cell in zip(of_section, cells, strict=True):
                columns[name][place] = cell
    return _Moved(columns, dict(counts))


def _to_reference(table: Table, results: Results, unit: Unit | None) -> _Moved:
    """Map points of the section to the reference; cells are empty for points outside."""
    transform = results.transform
    pixels, remark = _pixels(table, results, unit)
    grid = transform.reference
    points_mm = np.full(pixels.shape, np.nan)
    inside = is_inside(pixels, transform.section)
    points_mm[inside] = transform.to_reference(pixels[inside])
    points_mm[~is_inside(grid.to_pixels(points_mm), grid)] = np.nan
    columns = {} if SECTION in table.names else {SECTION: [results.folder.resolve().name] * len(table.rows)}
    columns |= _decimals(_REFERENCE, grid.to_pixels(points_mm))
    if transform.plane is not None:
        columns |= _decimals(_ATLAS, transform.plane.to_atlas(points_mm))
        columns["hemisphere"] = _sides(points_mm, transform)
    counts = {_OUTSIDE: _n_outside(points_mm, pixels)}
    if results.labels is not None:
        ids = _ids(results.labels, points_mm, transform.forward.grid)
        ids[results.is_ignored(pixels) & (ids > 0)] = 0
        columns |= _region_columns(ids, results.regions)
        counts[_IN_NO_REGION] = int(np.count_nonzero(ids == 0))
    return _Moved(columns, counts | {_WITHOUT_NUMBERS: _n_without_numbers(pixels)}, remark)


def _n_outside(moved: Points, points: Points) -> int:
    """Return the number of points (N, k) that have coordinates but were mapped to the outside."""
    return int(np.isnan(moved[:, 0]).sum()) - _n_without_numbers(points)


def _n_without_numbers(points: Points) -> int:
    return int(np.isnan(points).any(axis=1).sum())


def _pixels(table: Table, results: Results, unit: Unit | None) -> tuple[Points, str]:
    """Return the points (N, 2) of a table in pixels of the section, and the unit of x and y in words.

    x and y, and napari's axes, start at the centre of the first pixel; QuPath's centroids start at its corner.
    """
    columns = _point_columns(table)
    values = table.numbers(columns)
    if columns in _CENTROIDS:
        if unit is not None:
            raise InputError(
                f"{table.path}: --unit cannot be combined with the columns {' and '.join(columns)}, which name a unit"
            )
        unit = _CENTROIDS[columns]
    corner = 0.5 if columns in _CENTROIDS else 0.0
    if unit != "um":
        pixels = results.to_section(values - corner)
        results.check_near(pixels, values, table)
        return pixels, ""
    _check_size_is_known(results)
    x, y = results.transform.section.pixel_um
    pixels = values / (x, y) - corner
    said = f"in µm at pixels of {x:.4g} × {y:.4g} µm"
    results.check_near(pixels, values, table, hint=f"{said}; check --unit and the pixel size")
    return pixels, said


def _point_columns(table: Table) -> tuple[str, ...]:
    """Return the names, in lower case, of the two columns with the points of the section.

    Raises:
        InputError: If the table has several such pairs.
    """
    found = [pair for pair in (_SECTION, _NAPARI, *_CENTROIDS) if set(pair) <= set(table.names)]
    if len(found) > 1:
        pairs = " as well as ".join(" and ".join(pair) for pair in found)
        raise InputError(
            f"{table.path}: expected one pair of columns with points, found {pairs}: keep only one pair"
        )
    if found == [_NAPARI] and "axis-2" in table.names:
        raise InputError(
            f"{table.path}: expected napari's axis-0 and axis-1 (y and x) of a 2D image, found axis-2 as well: rename "
            "the columns with the section's pixels to x and y"
        )
    return found[0] if found else _SECTION


def _check_size_is_known(results: Results) -> None:
    """Check that the section's pixel size is known rather than estimated from its placement."""
    if results.scale != (1.0, 1.0):
        raise InputError(
            "--scale cannot be combined with points in µm, which do not depend on an image's size"
        )
    origin = read_record(results.folder).get("pixel_size_from", "file")
    if origin not in ("file", "user"):
        raise InputError(
            f"{results.folder}: expected a known pixel size for points in µm, found a size that was estimated from the "
            f"placement ({origin}): give points in pixels, or register the section with --pixel-size-um"
        )


def _to_section(table: Table, results: Results, off_plane_um: float | None) -> _Moved:
    """Map points of the atlas or the reference's pixels to the section; cells are empty for points outside."""
    transform = results.transform
    if transform.plane is not None and any(name in table.names for name in _ATLAS):
        limit_um = OFF_PLANE_UM if off_plane_um is None else off_plane_um
        return _from_atlas(table, results, transform.plane, limit_um)
    if off_plane_um is not None:
        raise InputError(f"{table.path}: --off-plane-um needs the columns {', '.join(_ATLAS)}")
    given = table.numbers(_REFERENCE)
    pixels = _section_pixels(transform.reference.to_mm(given), transform)
    counts = {_OUTSIDE: _n_outside(pixels, given), _WITHOUT_NUMBERS: _n_without_numbers(given)}
    return _Moved(_decimals(_SECTION, results.from_section(pixels)), counts)


def _from_atlas(table: Table, results: Results, plane: Plane, off_plane_um: float) -> _Moved:
    """Map points of the atlas to the section; x and y are also empty for points too far off its plane."""
    points_um = table.numbers(_ATLAS)
    for line, position_um in zip(table.lines, points_um[:, 0], strict=True):
        check_is_um(position_um, f"{table.path}, line {line}, ap_um")
    points_mm, off_um = plane.from_atlas(points_um)
    is_far = np.abs(off_um) > off_plane_um
    pixels = _section_pixels(points_mm, results.transform)
    n_outside = _n_outside(pixels[~is_far], points_um[~is_far])
    pixels[is_far] = np.nan
    columns = _decimals(_SECTION, results.from_section(pixels)) | _decimals(
        ("off_plane_um",), off_um[:, None]
    )
    far = f"more than {off_plane_um:g} µm from the section's plane (off_plane_um)"
    counts = {far: int(is_far.sum()), _OUTSIDE: n_outside}
    return _Moved(columns, counts | {_WITHOUT_NUMBERS: _n_without_numbers(points_um)})


def _section_pixels(points_mm: Points, transform: SectionTransform) -> Points:
    """Map points (N, 2) of the reference's frame to pixels of the section; NaN for points outside one of them."""
    grid = transform.reference
    pixels = np.full(points_mm.shape, np.nan)
    inside = is_inside(grid.to_pixels(points_mm), grid)
    pixels[inside] = transform.to_section(points_mm[inside])
    pixels[~is_inside(pixels, transform.section)] = np.nan
    return pixels


def _ids(labels: NDArray[Any], points_mm: Points, reference: Grid) -> NDArray[np.int64]:
    """Return the labels (N,) at points (N, 2) of the reference's frame; -1 for points that are NaN."""
    height, width = labels.shape
    known = np.isfinite(points_mm).all(axis=1)
    pixels = reference.with_shape((height, width)).to_pixels(points_mm[known])
    x, y = np.floor(pixels + 0.5).astype(int).T
    ids = np.full(len(points_mm), -1)
    ids[known] = labels[y.clip(0, height - 1), x.clip(0, width - 1)]
    return ids


def _sides(points_mm: Points, transform: SectionTransform) -> list[str]:
    """Return the side of the brain of each point (N, 2) in the reference's frame; "" for unknown ones."""
    if not transform.has_sides:
        return [""] * len(points_mm)
    middle = transform.midline_mm
    return ["" if np.isnan(x) else "left" if x < middle else "right" for x in points_mm[:, 0]]


def _region_columns(ids: NDArray[np.int64], regions: Mapping[int, RegionName]) -> dict[str, list[str]]:
    named = [regions.get(i, RegionName()) for i in ids.tolist()]
    cells = ["" if i < 0 else str(i) for i in ids.tolist()]
    columns = {
        "region_id": cells,
        "region_acronym": [region.acronym for region in named],
        "region_name": [region.name for region in named],
    }
    if any(region.parent_id is not None for region in regions.values()):
        paths = {i: _path(i, regions) for i in set(ids.tolist())}
        columns["region_path"] = [paths[i] for i in ids.tolist()]
    return columns


def _path(region_id: int, regions: Mapping[int, RegionName]) -> str:
    """Return the acronyms from the root down to a region; a region without an acronym is represented by its id."""
    names = [regions[i].acronym or str(i) for i in upwards(region_id, regions)]
    return _PATH_MARK.join(reversed(names))


def _decimals(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, list[str]]:
    """Return numbers (N, k) as columns of cells with three decimals; NaN becomes an empty cell."""
    return {
        name: ["" if np.isnan(value) else f"{value:.3f}" for value in column]
        for name, column in zip(names, values.T.tolist(), strict=True)
    }
