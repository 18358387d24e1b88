"""Apply a saved transform to other files of a section: images, label maps, tables of points, and shapes.

Files are mapped to the reference or back to the section. Images and points use opposite maps: the registered image
takes the value at forward(q) for each pixel q of the reference, whereas a section point p is mapped to inverse(p).
"""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.files import written_whole
from atlalign.io.images import (
    IMAGE_ENDINGS,
    TIFF_ENDINGS,
    read_channels,
    read_image,
    read_labels,
)
from atlalign.io.intensity import slide_color
from atlalign.io.tiff_writer import write_tiff
from atlalign.registration.carried_points import transform_table
from atlalign.registration.carried_shapes import transform_shapes, write_outlines
from atlalign.registration.results import TransformOptions, reference_frame, section_frame
from atlalign.registration.transform import Grid, SectionTransform, warp_in_bands

__all__ = ["TransformOptions", "transform_file"]

_SHAPES = (".geojson", ".json")
_TABLES = (".csv", ".tsv", ".txt")
_NOT_OME = ("int64", "uint64", "float16")

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
        folder: The section's folder that `atlalign register` wrote; for a table whose column `section` names several
            such folders, their parent folder.
        out: The file to write.
        options: The direction and the settings of the mapping.
        overwrite: Replace a file that exists.

    Raises:
        InputError: If a file or an option is invalid, or `out` exists.
    """
    job = _job(source, out, options)
    if not source.is_file():
        raise InputError(f"{source}: no such file")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another --out, or add --overwrite")
    return f"{out}: {job(source, folder, out, options)}"


def _job(source: Path, out: Path, options: TransformOptions) -> _Task:
    """Return the task for a file, given the endings of its name and of the output's name."""
    kinds: list[tuple[tuple[str, ...], tuple[str, ...], _Task]] = [
        (IMAGE_ENDINGS, TIFF_ENDINGS, _transform_image),
        (_TABLES, _TABLES[:1], transform_table),
        (_SHAPES, _SHAPES, transform_shapes),
    ]
    of_image = options.labels or (options.channel, options.page, options.z) != (None, None, None)
    of_table = options.off_plane_um is not None or options.unit is not None
    if of_image and of_table:
        raise InputError(
            "--unit and --off-plane are for points and cannot be combined with --labels, --channel, --page or --z, "
            "which are for images"
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
    transform, channels = SectionTransform.load(folder), _read(source, options)
    first = channels[0]
    if len(channels) > 1 and first.dtype.name in _NOT_OME:
        raise InputError(
            f"{source.name}: OME-TIFF cannot store channels of type {first.dtype}: choose one with --channel"
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
    with written_whole(out) as unfinished:
        write_tiff(
            unfinished,
            bands,
            shape=shape,
            dtype=first.dtype,
            pixel_um=target.pixel_um,
            channels=len(channels),
        )
    other = "section" if options.to == "reference" else "reference"
    several = f"{len(channels)} channels of " if len(channels) > 1 else ""
    return f"{several}{_size(target)}; {source.name} has {_size(grid)}, given the extent of the {other}"


def _fill(pixels: NDArray[Any], options: TransformOptions) -> Any:
    return 0 if options.labels else slide_color(pixels)


def _read(source: Path, options: TransformOptions) -> list[NDArray[Any]]:
    """Return the channels (h, w) of an image, or one image (h, w, 3) in colour."""
    if options.labels:
        return [read_labels(source, page=options.page, z=options.z)]
    if options.channel is None:
        return read_channels(source, page=options.page, z=options.z)
    return [read_image(source, channel=options.channel, page=options.page, z=options.z).pixels]


def _size(grid: Grid) -> str:
    (height, width), (x, y) = grid
    return f"{height}×{width} px of {x:.4g} × {y:.4g} µm"
