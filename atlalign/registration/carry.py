"""Apply a saved transform to other files of a section: images, label maps, tables of points, and shapes.

Files are mapped to the reference or back to the section. Images and points use opposite maps: the registered image
takes the value at forward(q) for each pixel q of the reference, whereas a section point p is mapped to inverse(p).
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.files import is_file, written_whole
from atlalign.io.images import (
    IMAGE_ENDINGS,
    TIFF_ENDINGS,
    all_pixels,
    open_channels,
    open_image,
    open_labels,
)
from atlalign.io.intensity import slide_color
from atlalign.io.scenes import Scene
from atlalign.io.tiff_writer import NOT_OME, write_tiff
from atlalign.io.views import at_scale, overview
from atlalign.registration.bands import warp_in_bands
from atlalign.registration.carried_points import transform_table
from atlalign.registration.carried_shapes import transform_shapes, write_outlines
from atlalign.registration.corrections import is_rejected
from atlalign.registration.displacement import Displacement
from atlalign.registration.grid import Grid
from atlalign.registration.record import RECORD
from atlalign.registration.results import reference_frame, section_frame
from atlalign.registration.transform import SectionTransform
from atlalign.registration.transform_options import TransformOptions

_SHAPES = (".geojson", ".json")
_TABLES = (".csv", ".tsv", ".txt")
_SMALL = (512, 512)  # enough of an image to see the colour of its slide

_Task = Callable[[Path, Path, Path, TransformOptions], str]
"""Reads a file, writes the mapped one with the results in a folder, and returns a one-line summary."""


def transform_file(
    source: Path, folder: Path, out: Path, options: TransformOptions, *, overwrite: bool = False
) -> str:
    """Map a file with a saved transform, write the result, and return a one-line summary.

    Images are written as TIFF (several channels as OME-TIFF), tables as CSV with commas and decimal points, and shapes
    as GeoJSON. A label map of the reference is written as the outlines of its regions if `out` is GeoJSON.

    Args:
        source: An image, a table of points (.csv, .tsv, .txt) or shapes (.geojson, .json).
        folder: The section's folder that `atlalign register` wrote. For a table of points of several sections, their
            parent folder; the table's column `section` or `Image` names each point's section or image.
        out: The file to write.
        options: The direction and the settings of the mapping.
        overwrite: Replace an existing file.

    Raises:
        InputError: If a file or an option is invalid, or `out` exists.
    """
    job = _job(source, out, options)
    if not is_file(source):
        raise InputError(f"{source}: no such file")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another --out, or add --overwrite")
    summary = f"{out}: {job(source, folder, out, options)}"
    if (folder / RECORD).exists() and is_rejected(folder.resolve()):
        summary += f"; {folder.resolve().name} was rejected in review"
    return summary


def _job(source: Path, out: Path, options: TransformOptions) -> _Task:
    """Return the task for a file, given the endings of its name and of the output's name."""
    kinds: list[tuple[tuple[str, ...], tuple[str, ...], _Task]] = [
        (IMAGE_ENDINGS, TIFF_ENDINGS, _transform_image),
        (_TABLES, _TABLES[:1], transform_table),
        (_SHAPES, _SHAPES, transform_shapes),
    ]
    chosen = (options.scene, options.channel, options.page, options.z, options.output_um)
    of_image = options.labels or any(choice is not None for choice in chosen)
    of_table = options.off_plane_um is not None or options.unit is not None
    if of_image and of_table:
        raise InputError(
            "--unit and --off-plane-um are for points and cannot be combined with --labels, --scene, --channel, "
            "--page, --z or --output-um, which are for images"
        )
    if options.labels and options.channel is not None:
        raise InputError("--labels cannot be combined with --channel: a label map has one channel")
    if options.labels and out.suffix.lower() in _SHAPES:
        kinds = [(IMAGE_ENDINGS, _SHAPES, write_outlines)]
    elif of_image:
        kinds = kinds[:1]
    elif of_table:
        kinds = kinds[1:2]
    for endings, out_endings, job in kinds:
        if source.suffix.lower() in endings:
            if options.scale is not None and job is _transform_image:
                raise InputError(f"{source}: --scale cannot be combined with an image, whose size is known")
            if out.suffix.lower() not in out_endings:
                raise InputError(f"--out: expected a name that ends in {' or '.join(out_endings)}, got {out}")
            return job
    known = ", ".join(ending for endings, *_ in kinds for ending in endings)
    raise InputError(f"{source}: expected a name that ends in one of {known}")


# --- images -----------------------------------------------------------------------------------------------------------


def _transform_image(source: Path, folder: Path, out: Path, options: TransformOptions) -> str:
    transform, image = SectionTransform.load(folder), _open(source, options)
    transform = transform if options.output_um is None else replace(transform, output_um=options.output_um)
    if len(image.channels) > 1 and image.dtype.name in NOT_OME:
        raise InputError(
            f"{source.name}: OME-TIFF cannot store channels of type {image.dtype}: choose one with --channel"
        )
    if options.to == "reference":
        grid, displacement = section_frame(transform, image.shape, source.name), transform.forward
        target = transform.reference
    else:
        grid, displacement = reference_frame(transform, image.shape, source.name), transform.inverse
        target = transform.in_section
    bands = chain.from_iterable(
        _warped(channel, grid, displacement, target, labels=options.labels, name=source.name)
        for channel in image.each_channel()
    )
    with written_whole(out) as unfinished:
        write_tiff(
            unfinished,
            bands,
            shape=(*target.shape, 3) if image.is_color else target.shape,
            dtype=image.dtype,
            pixel_um=target.pixel_um,
            channels=image.channels,
            labels=options.labels,
        )
    other = "section" if options.to == "reference" else "reference"
    several = f"{len(image.channels)} channels of " if len(image.channels) > 1 else ""
    return f"{several}{_size(target)}; {source.name} has {_size(grid)}, given the extent of the {other}"


def _open(source: Path, options: TransformOptions) -> Scene:
    choice: dict[str, Any] = {"scene": options.scene, "page": options.page, "z": options.z}
    if options.labels:
        return open_labels(source, **choice)
    if options.channel is not None:
        return open_image(source, channel=options.channel, **choice)
    return open_channels(source, **choice)


def _warped(
    channel: Scene, grid: Grid, displacement: Displacement, target: Grid, *, labels: bool, name: str
) -> Iterator[NDArray[Any]]:
    """Yield one warped channel in bands, read at the resolution at which it is written."""
    if labels:
        return warp_in_bands(all_pixels(channel, name), grid, displacement, target, nearest=True)
    view = at_scale(channel, min(to / of for to, of in zip(target.pixel_um, grid.pixel_um, strict=True)))
    source = grid.scaled(view.scale, (view.pixels.shape[0], view.pixels.shape[1]))
    fill = slide_color(overview(channel, _SMALL).pixels)
    return warp_in_bands(view.pixels, source, displacement, target, fill=fill)


def _size(grid: Grid) -> str:
    (height, width), (x, y), _ = grid
    return f"{height}×{width} px of {x:.4g} × {y:.4g} µm"
