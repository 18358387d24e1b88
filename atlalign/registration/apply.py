"""A saved transform applied to what else belongs to a section: images, label maps, tables of points, and shapes.

Each goes to the reference or back to the section. Images and points use opposite maps: the image of the section is
looked up at forward(q) for each pixel q of the reference, whereas a point p of the section lies at inverse(p).
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from atlalign.data.images import IMAGE_ENDINGS, TIFF_ENDINGS, read_image, read_labels, slide_color, write_tiff
from atlalign.data.sections import Points
from atlalign.data.tables import Table, read_table
from atlalign.errors import InputError
from atlalign.files import written_whole
from atlalign.registration.exports import RegionName, read_regions
from atlalign.registration.geojson import move_shapes, outlines
from atlalign.registration.transform import (
    LABELS,
    REGIONS,
    Displacement,
    Grid,
    SectionTransform,
    warp_in_bands,
)

Side = Literal["reference", "section"]

_SHAPES = (".geojson", ".json")
_TABLES = (".csv",)
_ATLAS = ("ap_um", "dv_um", "ml_um")
_SECTION = ("x", "y")
_REFERENCE = ("x_reference", "y_reference")


class Options(NamedTuple):
    """What a user asks for.

    Attributes:
        to: Where the file is brought.
        labels: An image holds ids, which stay what they are.
        channel: Which channel of an image to take, from 0.
    """

    to: Side
    labels: bool = False
    channel: int | None = None


class _Results(NamedTuple):
    """What `atlalign register` wrote for a section."""

    folder: Path
    transform: SectionTransform

    @property
    def labels(self) -> NDArray[Any] | None:
        return read_labels(self.folder / LABELS) if (self.folder / LABELS).is_file() else None

    @property
    def regions(self) -> Mapping[int, RegionName]:
        return read_regions(self.folder / REGIONS) if (self.folder / REGIONS).is_file() else {}


_Job = Callable[[Path, _Results, Path, Options], str]
"""Reads a file, writes another one, and returns what to say about it."""


def transform_file(
    source: Path, folder: Path, out: Path, options: Options, *, overwrite: bool = False
) -> str:
    """Write what a saved transform makes of a file, and return one line on it.

    Images come out as TIFF, tables as CSV with commas and decimal points, whatever they had, and shapes as GeoJSON; a
    label map of the reference also as the outlines of its regions, if `out` is GeoJSON.

    Args:
        source: An image, a table of points (.csv) or shapes (.geojson, .json).
        folder: What `atlalign register` wrote for the section.
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
    results = _Results(folder, SectionTransform.load(folder))
    with written_whole(out) as unfinished:
        summary = job(source, results, unfinished, options)
    return f"{out}: {summary}"


def _job(source: Path, out: Path, options: Options) -> _Job:
    """Return what to do with a file, by the endings of its name and of the one to write."""
    kinds: list[tuple[tuple[str, ...], tuple[str, ...], _Job]] = [
        (IMAGE_ENDINGS, TIFF_ENDINGS, _transform_image),
        (_TABLES, _TABLES, _transform_table),
        (_SHAPES, _SHAPES, _transform_shapes),
    ]
    if options.labels and out.suffix.lower() in _SHAPES:
        kinds = [(IMAGE_ENDINGS, _SHAPES, _write_outlines)]
    elif options.labels or options.channel is not None:
        kinds = kinds[:1]
    for endings, out_endings, job in kinds:
        if source.suffix.lower() in endings:
            if out.suffix.lower() not in out_endings:
                raise InputError(f"expected an --out that ends in {' or '.join(out_endings)}, got {out}")
            return job
    known = ", ".join(ending for endings, *_ in kinds for ending in endings)
    raise InputError(f"{source}: expected a name that ends in one of {known}")


# --- images -----------------------------------------------------------------------------------------------------------


def _transform_image(source: Path, results: _Results, out: Path, options: Options) -> str:
    transform, pixels = results.transform, _read(source, options)
    if options.to == "reference":
        grid, displacement = section_frame(transform, pixels.shape[:2], source.name)
        target = transform.reference
    else:
        grid, displacement = reference_frame(transform, pixels.shape[:2], source.name), transform.inverse
        target = transform.section
    fill = 0 if options.labels else slide_color(pixels)
    bands = warp_in_bands(pixels, grid, displacement, target, nearest=options.labels, fill=fill)
    shape = (*target.shape, *pixels.shape[2:])
    write_tiff(out, bands, shape=shape, dtype=pixels.dtype, pixel_um=target.pixel_um)
    other = "section" if options.to == "reference" else "reference"
    return f"{_size(target)}; {source.name} has {_size(grid)}, by the extent of the {other}"


def _read(source: Path, options: Options) -> NDArray[Any]:
    if not options.labels:
        return read_image(source, channel=options.channel).pixels
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


def _write_outlines(source: Path, results: _Results, out: Path, options: Options) -> str:
    if options.to != "section":
        raise InputError("outlines of regions: expected --to section and a label map of the reference")
    transform, labels = results.transform, _read(source, options)
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


def _transform_table(source: Path, results: _Results, out: Path, options: Options) -> str:
    table = read_table(source)
    if not table.rows:
        raise InputError(f"{source}: expected names of columns and points below, found no point")
    if options.to == "reference":
        added = _to_reference(_numbers(table, _SECTION), results)
    else:
        added = _to_section(table, results.transform)
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
    outside = next(iter(added.values())).count("")
    in_region = f", {added['region_id'].count('0')} in no region" if "region_id" in added else ""
    return f"{len(table.rows)} points, {outside} outside of the section or the reference{in_region}"


def _to_reference(pixels: Points, results: _Results) -> _Columns:
    """Return columns for points (N, 2) of the section, in its pixels; cells are empty for those outside."""
    transform = results.transform
    grid = transform.reference
    points_mm = np.full(pixels.shape, np.nan)
    inside = _inside(pixels, transform.section)
    points_mm[inside] = transform.to_reference(pixels[inside])
    points_mm[~_inside(grid.to_pixels(points_mm), grid)] = np.nan
    columns = _columns(_REFERENCE, grid.to_pixels(points_mm))
    if transform.plane is not None:
        columns |= _columns(_ATLAS, transform.plane.to_atlas(points_mm))
    labels = results.labels
    if labels is not None:
        columns |= _region_columns(_ids(labels, points_mm, transform.forward.grid), results.regions)
    return columns


def _to_section(table: Table, transform: SectionTransform) -> _Columns:
    """Return columns for points of the atlas, or of the reference in its pixels; cells are empty for those outside."""
    grid = transform.reference
    extra: _Columns = {}
    if transform.plane is not None and any(name in table.names for name in _ATLAS):
        points_mm, off_um = transform.plane.from_atlas(_numbers(table, _ATLAS))
        extra = _columns(("off_plane_um",), off_um[:, None])
    else:
        points_mm = grid.to_mm(_numbers(table, _REFERENCE))
    pixels = np.full(points_mm.shape, np.nan)
    inside = _inside(grid.to_pixels(points_mm), grid)
    pixels[inside] = transform.to_section(points_mm[inside])
    pixels[~_inside(pixels, transform.section)] = np.nan
    return _columns(_SECTION, pixels) | extra


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


def _region_columns(ids: NDArray[np.int64], regions: Mapping[int, RegionName]) -> _Columns:
    named = [regions.get(i, RegionName("", "", None)) for i in ids.tolist()]
    cells = ["" if i < 0 else str(i) for i in ids.tolist()]
    return {
        "region_id": cells,
        "region_acronym": [region.acronym for region in named],
        "region_name": [region.name for region in named],
    }


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
            [_number(cells[name], f"{table.path}, line {line}, {name}") for name in columns]
            for line, cells in table.records(columns)
        ]
    )


def _number(cell: str, where: str) -> float:
    try:
        number = float(cell) if cell else np.nan
    except ValueError:
        number = np.inf
    if np.isinf(number):
        raise InputError(f"{where}: expected a number, found '{shorten(cell, 40)}'")
    return number


# --- shapes -----------------------------------------------------------------------------------------------------------


def _transform_shapes(source: Path, results: _Results, out: Path, options: Options) -> str:
    transform, content = results.transform, _read_json(source)
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
