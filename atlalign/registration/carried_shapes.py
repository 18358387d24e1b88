"""Map GeoJSON: shapes from QuPath, and the outlines of a label map."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atlalign.atlas.planes import Points
from atlalign.errors import InputError
from atlalign.io.files import write_json
from atlalign.io.images import read_labels
from atlalign.io.tables import read_text
from atlalign.registration.geojson import move_shapes, outlines
from atlalign.registration.grid import Grid
from atlalign.registration.results import (
    Results,
    is_far_outside,
    is_inside,
    longest_edge,
    reference_frame,
)
from atlalign.registration.transform_options import TransformOptions


def transform_shapes(source: Path, folder: Path, out: Path, options: TransformOptions) -> str:
    """Write a GeoJSON document with mapped shapes, and return a one-line summary.

    Raises:
        InputError: If the file is not GeoJSON, or a shape lies far outside the image.
    """
    results = Results.load(folder, options.scale)
    with _readable_nesting(source):
        content = _read_json(source)
        summary = _move_document(content, results, options, source)
        write_json(out, content, indent=None)
    return summary


def _move_document(content: Any, results: Results, options: TransformOptions, source: Path) -> str:
    """Map the shapes of a GeoJSON document in place, and return a one-line summary."""
    to_reference = options.to == "reference"
    reference, section = results.transform.reference, results.transform.section

    def move(pixels: Points) -> Points:
        if to_reference:
            return reference.to_pixels(results.transform.to_reference(results.to_section(pixels)))
        return results.from_section(results.transform.to_section(reference.to_mm(pixels)))

    def check(pixels: Points) -> None:
        if to_reference:
            results.check_near(results.to_section(pixels), pixels + 0.5, source)
        else:
            _check_on_reference(pixels, reference)

    edge = results.longest_edge if to_reference else longest_edge(results.transform.forward, reference)
    try:
        moved = move_shapes(content, move, longest_edge=edge, check=check)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    before, after = moved.before, moved.after
    if to_reference:
        inside = is_inside(results.to_section(before), section) & is_inside(after, reference)
    else:
        inside = is_inside(before, reference) & is_inside(results.to_section(after), section)
    return (
        f"{moved.shapes} shapes, edges split to at most {edge:.3g} px; {(~inside).sum()} points outside the section "
        "or the reference"
    )


def _check_on_reference(pixels: Points, grid: Grid) -> None:
    for x, y in pixels[is_far_outside(pixels, grid)][:1] + 0.5:
        height, width = grid.shape
        raise InputError(
            f"expected shapes in pixels of the reference, which has {height}×{width} px, found a point far outside at "
            f"({x:g}, {y:g})"
        )


def write_outlines(source: Path, folder: Path, out: Path, options: TransformOptions) -> str:
    """Write the outlines of a reference label map in section coordinates, and return a one-line summary.

    Raises:
        InputError: If --to is not section, or the map and the reference differ in proportions.
    """
    if options.to != "section":
        raise InputError(
            "--out: outlines of regions (.geojson) need --to section and a label map of the reference"
        )
    results = Results.load(folder, options.scale)
    transform, labels = results.transform, read_labels(source, page=options.page, z=options.z)
    grid = reference_frame(transform, labels.shape, source.name)
    shapes = outlines(labels, results.regions)
    moved = move_shapes(
        shapes,
        lambda pixels: results.from_section(transform.to_section(grid.to_mm(pixels))),
        longest_edge=longest_edge(transform.forward, grid),
    )
    write_json(out, shapes, indent=None)
    return f"the outlines of {moved.shapes} regions"


@contextmanager
def _readable_nesting(source: Path) -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise InputError(f"{source}: cannot be read as GeoJSON: too deeply nested") from error


def _read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as GeoJSON: {error}") from error
