"""A saved transform applied to what else belongs to a section: images, label maps, tables of points, and shapes.

Each goes to the reference or back to the section. Images and points use opposite maps: the image of the section is
looked up at forward(q) for each pixel q of the reference, whereas a point p of the section lies at inverse(p).
"""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from atlalign.atlas.planes import Plane, Points, check_is_um
from atlalign.errors import InputError
from atlalign.io.files import written_whole
from atlalign.io.images import (
    IMAGE_ENDINGS,
    TIFF_ENDINGS,
    read_channels,
    read_image,
    read_labels,
    write_tiff,
)
from atlalign.io.intensity import slide_color
from atlalign.io.tables import Table, number, read_table
from atlalign.registration.geojson import move_shapes, outlines
from atlalign.registration.regions import RegionName, read_regions, upwards
from atlalign.registration.transform import (
    LABELS,
    RECORD,
    REGIONS,
    Displacement,
    Grid,
    SectionTransform,
    read_record,
    warp_in_bands,
)

Side = Literal["reference", "section"]
Unit = Literal["px", "um"]

OFF_PLANE_UM = 100.0
"""How far off a section's plane atlas points are still taken to lie on it: a section and what its place may err by."""

_SHAPES = (".geojson", ".json")
_TABLES = (".csv", ".tsv", ".txt")
_ATLAS = ("ap_um", "dv_um", "ml_um")
_SECTION = ("x", "y")
_REFERENCE = ("x_reference", "y_reference")
_CENTROIDS: Mapping[tuple[str, ...], Unit] = {
    ("centroid x px", "centroid y px"): "px",
    ("centroid x µm", "centroid y µm"): "um",
}
"""What QuPath calls a point, and its unit."""
_NOT_OME = ("int64", "uint64", "float16")
_PATH_MARK = ">"  # acronyms have slashes: VISp2/3


class TransformOptions(NamedTuple):
    """What a user asks for.

    Attributes:
        to: Where the file is brought.
        labels: An image holds ids, which stay what they are.
        channel: Which channel of an image to take, from 0; None takes all.
        unit: Of x and y in a table; None takes pixels, as px does.
        off_plane_um: How far off the section's plane atlas points may lie; None takes `OFF_PLANE_UM`.
    """

    to: Side
    labels: bool = False
    channel: int | None = None
    unit: Unit | None = None
    off_plane_um: float | None = None


class _Results(NamedTuple):
    """What `atlalign register` wrote for a section."""

    folder: Path
    transform: SectionTransform

    @classmethod
    def load(cls, folder: Path) -> "_Results":
        return cls(folder, SectionTransform.load(folder))

    @property
    def labels(self) -> NDArray[Any] | None:
        return read_labels(self.folder / LABELS) if (self.folder / LABELS).is_file() else None

    @property
    def regions(self) -> Mapping[int, RegionName]:
        return read_regions(self.folder / REGIONS) if (self.folder / REGIONS).is_file() else {}


_Task = Callable[[Path, Path, Path, TransformOptions], str]
"""Reads a file, writes another one by the results in a folder, and returns what to say about it."""


def transform_file(
    source: Path, folder: Path, out: Path, options: TransformOptions, *, overwrite: bool = False
) -> str:
    """Write what a saved transform makes of a file, and return one line on it.

    Images come out as TIFF, with several channels as OME-TIFF, tables as CSV with commas and decimal points, whatever
    they had, and shapes as GeoJSON; a label map of the reference also as the outlines of its regions, if `out` is
    GeoJSON.

    Args:
        source: An image, a table of points (.csv, .tsv, .txt) or shapes (.geojson, .json).
        folder: What `atlalign register` wrote for the section; of tables with a column `section`, which names such
            folders, where these lie.
        out: The file to write.
        options: What to do.
        overwrite: Replace a file that exists.

    Raises:
        InputError: If a file is not what is expected, or `out` exists.
    """
    job = _job(source, out, options)
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another --out, or --overwrite")
    with written_whole(out) as unfinished:
        summary = job(source, folder, unfinished, options)
    return f"{out}: {summary}"


def _job(source: Path, out: Path, options: TransformOptions) -> _Task:
    """Return what to do with a file, by the endings of its name and of the one to write."""
    kinds: list[tuple[tuple[str, ...], tuple[str, ...], _Task]] = [
        (IMAGE_ENDINGS, TIFF_ENDINGS, _transform_image),
        (_TABLES, _TABLES[:1], _transform_table),
        (_SHAPES, _SHAPES, _transform_shapes),
    ]
    of_image = options.labels or options.channel is not None
    of_table = options.off_plane_um is not None or options.unit is not None
    if of_image and of_table:
        raise InputError(
            "expected options of images (--labels, --channel) or of points (--unit, --off-plane), found both"
        )
    if options.labels and out.suffix.lower() in _SHAPES:
        kinds = [(IMAGE_ENDINGS, _SHAPES, _write_outlines)]
    elif of_image:
        kinds = kinds[:1]
    elif of_table:
        kinds = kinds[1:2]
    for endings, out_endings, job in kinds:
        if source.suffix.lower() in endings:
            if out.suffix.lower() not in out_endings:
                raise InputError(f"expected an --out that ends in {' or '.join(out_endings)}, got {out}")
            return job
    known = ", ".join(ending for endings, *_ in kinds for ending in endings)
    raise InputError(f"{source}: expected a name that ends in one of {known}")


# --- images -----------------------------------------------------------------------------------------------------------


def _transform_image(source: Path, folder: Path, out: Path, options: TransformOptions) -> str:
    transform, channels = SectionTransform.load(folder), _read(source, options)
    first = channels[0]
    if len(channels) > 1 and first.dtype.name in _NOT_OME:
        raise InputError(
            f"{source.name}: expected channels that an OME-TIFF can hold, found {first.dtype}: take one (--channel)"
        )
    if options.to == "reference":
        grid, displacement = section_frame(transform, first.shape[:2], source.name)
        target = transform.reference
    else:
        grid, displacement = reference_frame(transform, first.shape[:2], source.name), transform.inverse
        target = transform.section
    bands = chain.from_iterable(
        warp_in_bands(pixels, grid, displacement, target, nearest=options.labels, fill=_fill(pixels, options))
        for pixels in channels
    )
    shape = (*target.shape, *first.shape[2:])
    write_tiff(out, bands, shape=shape, dtype=first.dtype, pixel_um=target.pixel_um, channels=len(channels))
    other = "section" if options.to == "reference" else "reference"
    several = f"{len(channels)} channels of " if len(channels) > 1 else ""
    return f"{several}{_size(target)}; {source.name} has {_size(grid)}, by the extent of the {other}"


def _fill(pixels: NDArray[Any], options: TransformOptions) -> Any:
    return 0 if options.labels else slide_color(pixels)


def _read(source: Path, options: TransformOptions) -> list[NDArray[Any]]:
    """Return the channels (h, w) of an image, or one image (h, w, 3) in colour."""
    if options.labels:
        return [_read_labels(source, options)]
    if options.channel is None:
        return read_channels(source)
    return [read_image(source, channel=options.channel).pixels]


def _read_labels(source: Path, options: TransformOptions) -> NDArray[Any]:
    if options.channel is not None:
        raise InputError("--labels: expected no --channel, for a label map has only one")
    return read_labels(source)


def section_frame(transform: SectionTransform, shape: Sequence[int], name: str) -> tuple[Grid, Displacement]:
    """Return the pixels of an image (h, w) that shows the same as the section's, and the map to it from the reference.

    Its outer edges are those of the section's image, whatever its size: another channel, a smaller or larger scan.

    Raises:
        InputError: If the image has other proportions than the section.
    """
    height, width = transform.section.shape
    size = np.array(transform.section.pixel_um) * (width / shape[1], height / shape[0])
    _check_proportions(size, shape, transform.section, name, "section's image")
    # Where the centre of the image's first pixel lies in the frame of the section.
    first_mm = (size - transform.section.pixel_um) / 2 / 1000
    moved = transform.forward.mm - torch.from_numpy(first_mm).float().view(2, 1, 1)
    grid = Grid((shape[0], shape[1]), (float(size[0]), float(size[1])))
    return grid, Displacement(transform.forward.grid, moved)


def reference_frame(transform: SectionTransform, shape: Sequence[int], name: str) -> Grid:
    """Return the pixels of an image (h, w) that shows the reference plane; its outermost pixels are the reference's.

    Raises:
        InputError: If the image has other proportions than the reference.
    """
    grid = transform.forward.grid.with_shape((shape[0], shape[1]))
    _check_proportions(np.array(grid.pixel_um), shape, transform.forward.grid, name, "reference")
    return grid


def _check_proportions(size: Points, shape: Sequence[int], grid: Grid, name: str, what: str) -> None:
    """Raise an error unless pixels are square, or of the grid's own proportions, but for a size rounded to pixels."""
    own = grid.pixel_um[0] / grid.pixel_um[1]
    rounding = 1.5 / min(shape)
    if min(abs(size[0] / size[1] / ratio - 1) for ratio in (1.0, own)) > rounding:
        height, width = grid.shape
        raise InputError(
            f"{name}: expected the proportions of the {what}, {height}×{width} px, found {shape[0]}×{shape[1]}"
        )


def _size(grid: Grid) -> str:
    (height, width), (x, y) = grid
    return f"{height}×{width} px of {x:.4g} × {y:.4g} µm"


def _write_outlines(source: Path, folder: Path, out: Path, options: TransformOptions) -> str:
    if options.to != "section":
        raise InputError("outlines of regions: expected --to section and a label map of the reference")
    results = _Results.load(folder)
    transform, labels = results.transform, _read_labels(source, options)
    grid = reference_frame(transform, labels.shape, source.name)
    shapes = outlines(labels, results.regions)
    moved = move_shapes(
        shapes,
        lambda pixels: transform.to_section(grid.to_mm(pixels)),
        longest_edge=_longest_edge(transform.forward, grid),
    )
    _write_json(out, shapes)
    return f"the outlines of {moved.shapes} regions"


# --- points -----------------------------------------------------------------------------------------------------------


_Columns = dict[str, list[str]]


def _transform_table(source: Path, folder: Path, out: Path, options: TransformOptions) -> str:
    table = read_table(source)
    if not table.rows:
        raise InputError(f"{source}: expected names of columns and points below, found no point")
    if options.to == "reference" and options.off_plane_um is not None:
        raise InputError(f"{source}: expected --to section beside --off-plane")
    if options.to == "section" and options.unit is not None:
        raise InputError(f"{source}: expected --to reference beside --unit")
    if "section" in table.names and not (folder / RECORD).exists():
        added, remark = _of_several(table, folder, options)
    else:
        _check_of_section(table, folder)
        added, remark = _moved(table, _Results.load(folder), options)
    taken = [name for name in added if name in table.names]
    if taken:
        raise InputError(
            f"{source}: expected no column {', '.join(taken)}, which is to be added: rename it before"
        )
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*table.header, *added])
        cells = zip(*added.values(), strict=True)
        writer.writerows([*row, *new] for row, new in zip(table.rows, cells, strict=True))
    return f"{len(table.rows)} points, {remark}"


class _Moved(NamedTuple):
    """What is to be added to a table of points, and what to say of it."""

    columns: _Columns
    remark: str


def _check_of_section(table: Table, folder: Path) -> None:
    """Raise an error where a table says that its points are those of another section."""
    if "section" not in table.names:
        return
    for line, cells in table.records(["section"]):
        if cells["section"] not in ("", folder.resolve().name):
            raise InputError(
                f"{table.path}, line {line}, section: expected points of {folder.resolve().name}, found some of "
                f"'{cells['section']}': give the folder that holds all sections"
            )


def _moved(table: Table, results: _Results, options: TransformOptions) -> _Moved:
    if options.to == "reference":
        return _to_reference(table, results, options.unit)
    return _to_section(table, results.transform, options.off_plane_um)


def _of_several(table: Table, folder: Path, options: TransformOptions) -> _Moved:
    """Return columns for points of several sections, whose folders of results the column `section` names."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, (line, cells) in enumerate(table.records(["section"])):
        name = cells["section"]
        if not name or not (folder / name / RECORD).is_file():
            raise InputError(f"{table.path}, line {line}, section: expected one in {folder}, found '{name}'")
        places[name].append(place)
    columns: _Columns = {}
    for name, of_section in places.items():
        part = table._replace(
            rows=[table.rows[i] for i in of_section], lines=[table.lines[i] for i in of_section]
        )
        for column, cells_of_part in _moved(part, _Results.load(folder / name), options).columns.items():
            whole = columns.setdefault(column, [""] * len(table.rows))
            for place, cell in zip(of_section, cells_of_part, strict=True):
                whole[place] = cell
    left_out = next(iter(columns.values())).count("")
    return _Moved(columns, f"in {len(places)} sections, {left_out} left out")


def _to_reference(table: Table, results: _Results, unit: Unit | None) -> _Moved:
    """Return columns for points of the section; cells are empty for those outside."""
    transform = results.transform
    pixels, remark = _pixels(table, results, unit)
    grid = transform.reference
    points_mm = np.full(pixels.shape, np.nan)
    inside = _inside(pixels, transform.section)
    points_mm[inside] = transform.to_reference(pixels[inside])
    points_mm[~_inside(grid.to_pixels(points_mm), grid)] = np.nan
    columns = _columns(_REFERENCE, grid.to_pixels(points_mm))
    if transform.plane is not None:
        columns |= _columns(_ATLAS, transform.plane.to_atlas(points_mm))
        columns["hemisphere"] = _sides(points_mm, transform)
    labels, remark = results.labels, remark + _outside(np.isnan(points_mm[:, 0]))
    if labels is not None:
        ids = _ids(labels, points_mm, transform.forward.grid)
        columns |= _region_columns(ids, results.regions)
        remark += f", {np.count_nonzero(ids == 0)} in no region"
    return _Moved(columns, remark)


def _pixels(table: Table, results: _Results, unit: Unit | None) -> tuple[Points, str]:
    """Return the points (N, 2) of a table in pixels of the section, and what to say of how they came about.

    x and y count from the centre of the first pixel, QuPath's centroids from its corner.
    """
    columns = _point_columns(table)
    if columns == _SECTION:
        values = _numbers(table, columns)
    elif unit is None:
        unit, values = _CENTROIDS[columns], _numbers(table, columns)
    else:
        raise InputError(f"{table.path}: expected no --unit beside {' and '.join(columns)}, which say theirs")
    corner = 0.0 if columns == _SECTION else 0.5
    if unit != "um":
        return values - corner, ""
    _check_size_is_known(results)
    x, y = results.transform.section.pixel_um
    return values / (x, y) - corner, f"in µm at pixels of {x:.4g} × {y:.4g} µm, "


def _point_columns(table: Table) -> tuple[str, ...]:
    """Return the names of the two columns, in lower case, that hold points of the section.

    Raises:
        InputError: If there are several such pairs.
    """
    found = [pair for pair in (_SECTION, *_CENTROIDS) if set(pair) <= set(table.names)]
    if len(found) > 1:
        pairs = " as well as ".join(" and ".join(pair) for pair in found)
        raise InputError(
            f"{table.path}: expected points in one pair of columns, found {pairs}: remove others"
        )
    return found[0] if found else _SECTION


def _check_size_is_known(results: _Results) -> None:
    """Raise an error where the size of the section's pixels comes from how it was placed, not from who measured it."""
    origin = read_record(results.folder).get("pixel_size_from", "file")
    if origin not in ("file", "user"):
        raise InputError(
            f"{results.folder}: expected a section whose pixels have a known size for points in µm, found one "
            f"estimated by its placement ({origin}): give points in pixels, or register it with --pixel-size-um"
        )


def _outside(outside: NDArray[np.bool_]) -> str:
    return f"{outside.sum()} outside of the section or the reference"


def _to_section(table: Table, transform: SectionTransform, off_plane_um: float | None) -> _Moved:
    """Return columns for points of the atlas, or of the reference in its pixels; cells are empty for those outside."""
    if transform.plane is not None and any(name in table.names for name in _ATLAS):
        return _from_atlas(
            table, transform, transform.plane, OFF_PLANE_UM if off_plane_um is None else off_plane_um
        )
    if off_plane_um is not None:
        raise InputError(f"{table.path}: expected no --off-plane without the columns {', '.join(_ATLAS)}")
    pixels = _section_pixels(transform.reference.to_mm(_numbers(table, _REFERENCE)), transform)
    return _Moved(_columns(_SECTION, pixels), _outside(np.isnan(pixels[:, 0])))


def _from_atlas(table: Table, transform: SectionTransform, plane: Plane, off_plane_um: float) -> _Moved:
    """Return columns for points of the atlas; x and y are empty also for what lies further off the section's plane."""
    points_um = _numbers(table, _ATLAS)
    for line, position_um in zip(table.lines, points_um[:, 0], strict=True):
        check_is_um(position_um, f"{table.path}, line {line}, ap_um")
    points_mm, off_um = plane.from_atlas(points_um)
    is_far = np.abs(off_um) > off_plane_um
    pixels = _section_pixels(points_mm, transform)
    is_outside = np.isnan(pixels[:, 0]) & ~is_far
    pixels[is_far] = np.nan
    columns = _columns(_SECTION, pixels) | _columns(("off_plane_um",), off_um[:, None])
    far = f"{is_far.sum()} more than {off_plane_um:g} µm off the section's plane (off_plane_um)"
    return _Moved(columns, f"{far}, {_outside(is_outside)}")


def _section_pixels(points_mm: Points, transform: SectionTransform) -> Points:
    """Return points (N, 2) of the reference's frame in pixels of the section, NaN for those outside of either."""
    grid = transform.reference
    pixels = np.full(points_mm.shape, np.nan)
    inside = _inside(grid.to_pixels(points_mm), grid)
    pixels[inside] = transform.to_section(points_mm[inside])
    pixels[~_inside(pixels, transform.section)] = np.nan
    return pixels


def _inside(pixels: Points, grid: Grid) -> NDArray[np.bool_]:
    """Return which points (N, 2) lie on a pixel of the grid; NaN does not."""
    height, width = grid.shape
    x, y = pixels[:, 0], pixels[:, 1]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


def _ids(labels: NDArray[Any], points_mm: Points, reference: Grid) -> NDArray[np.int64]:
    """Return the labels (N,) at points (N, 2) of the reference's frame, -1 where they are NaN."""
    height, width = labels.shape
    known = np.isfinite(points_mm).all(axis=1)
    pixels = reference.with_shape((height, width)).to_pixels(points_mm[known])
    x, y = np.floor(pixels + 0.5).astype(int).T
    ids = np.full(len(points_mm), -1)
    ids[known] = labels[y.clip(0, height - 1), x.clip(0, width - 1)]
    return ids


def _sides(points_mm: Points, transform: SectionTransform) -> list[str]:
    """Return the side of the brain on which points (N, 2) of the reference's frame lie, "" where they are NaN."""
    middle = transform.midline_mm
    return ["" if np.isnan(x) else "left" if x < middle else "right" for x in points_mm[:, 0]]


def _region_columns(ids: NDArray[np.int64], regions: Mapping[int, RegionName]) -> _Columns:
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
    """Return the acronyms from the root down to a region; what has none is called by its id."""
    names = [regions[i].acronym or str(i) for i in upwards(region_id, regions)]
    return _PATH_MARK.join(reversed(names))


def _columns(names: Sequence[str], values: Points) -> _Columns:
    """Return columns of cells of numbers (N, k); NaN is an empty cell."""
    return {
        name: ["" if np.isnan(value) else f"{value:.3f}" for value in column]
        for name, column in zip(names, values.T, strict=True)
    }


def _numbers(table: Table, columns: Sequence[str]) -> Points:
    """Return columns (N, k) of a table; empty cells are NaN."""
    return np.array(
        [
            [
                float(number(cells[name], f"{table.path}, line {line}, {name}")) if cells[name] else np.nan
                for name in columns
            ]
            for line, cells in table.records(columns)
        ]
    )


# --- shapes -----------------------------------------------------------------------------------------------------------


def _transform_shapes(source: Path, folder: Path, out: Path, options: TransformOptions) -> str:
    transform, content = SectionTransform.load(folder), _read_json(source)
    reference = transform.reference
    if options.to == "reference":
        grid, field, target = transform.section, transform.inverse, reference
    else:
        grid, field, target = reference, transform.forward, transform.section

    def move(pixels: Points) -> Points:
        if options.to == "reference":
            return reference.to_pixels(transform.to_reference(pixels))
        return transform.to_section(reference.to_mm(pixels))

    edge = _longest_edge(field, grid)
    try:
        moved = move_shapes(content, move, longest_edge=edge)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    _write_json(out, content)
    beyond = ~(_inside(moved.before, grid) & _inside(moved.after, target))
    return (
        f"{moved.shapes} shapes, no edge longer than {edge:.3g} px; {beyond.sum()} points beyond the image or the "
        "reference"
    )


def _longest_edge(field: Displacement, grid: Grid) -> float:
    """Return, in pixels of `grid`, the distance of a field's pixels, between which it is linear."""
    return min(field.grid.pixel_um) / max(grid.pixel_um)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as GeoJSON: {error}") from error


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
