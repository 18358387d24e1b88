"""Map images, points and shapes between a section and its reference."""

import argparse
import math
from pathlib import Path

from atlalign.console import say
from atlalign.errors import InputError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `transform`."""
    command = commands.add_parser(
        "transform",
        help="map images, points and shapes between a section and its reference",
        description="Map a file from a section to its reference, or back. The file may be an image, a label map, a "
        "table of points (columns x and y, QuPath's centroids, napari's axis-0 and axis-1, or ap_um, dv_um and ml_um), "
        "or shapes from QuPath (GeoJSON).",
    )
    command.add_argument(
        "input",
        metavar="INPUT",
        type=Path,
        help="an image, a table (.csv, .tsv, .txt) or shapes (.geojson, .json)",
    )
    command.add_argument(
        "--with",
        dest="folder",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="the section's folder that `atlalign register` wrote; for a table whose column `section` names several "
        "such folders, their parent folder",
    )
    command.add_argument(
        "--to",
        choices=("reference", "section"),
        required=True,
        help="map to the reference, or back to the section",
    )
    command.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="the file to write: .tif for images, .csv for points, .geojson for shapes; with --labels --to section, "
        ".geojson writes the outlines of regions",
    )
    command.add_argument(
        "--labels",
        action="store_true",
        help="the image holds region ids: use nearest-neighbour interpolation",
    )
    command.add_argument(
        "--scene", metavar="N|NAME", help="scene of a slide with several, counted from 0, or its name"
    )
    command.add_argument(
        "--channel",
        metavar="N|NAME",
        help="map only this channel of the image, counted from 0, or its name (default: all)",
    )
    command.add_argument("--page", type=int, metavar="N", help="page of a TIFF file, counted from 0")
    command.add_argument(
        "--z",
        metavar="N|max|best",
        help="plane of a z-stack, counted from 0; max takes the brightest value of all planes, best the sharpest plane",
    )
    command.add_argument(
        "--output-um",
        type=float,
        metavar="UM",
        help="size of the pixels of the image to write, in µm (default: that of the registration's own images)",
    )
    command.add_argument("--unit", choices=("px", "um"), help="unit of the columns x and y (default: px)")
    command.add_argument(
        "--off-plane",
        type=float,
        metavar="UM",
        help="largest distance of atlas points from the section's plane; points beyond get no x and y (default: 100)",
    )
    command.add_argument(
        "--scale",
        type=_number_or_path,
        metavar="N|IMAGE",
        help="section coordinates are pixels of an image N times as wide and high as the registered one, such as the "
        "full scan; give N, or that image",
    )
    command.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    command.set_defaults(run=_run)


def _number_or_path(text: str) -> float | Path:
    try:
        return float(text)
    except ValueError:
        return Path(text)


def _run(options: argparse.Namespace) -> None:
    from atlalign.registration.carry import TransformOptions, transform_file

    if options.off_plane is not None and not options.off_plane >= 0:
        raise InputError(f"--off-plane: expected a distance of at least 0 µm, got {options.off_plane:g}")
    if options.output_um is not None and not 0 < options.output_um < math.inf:
        raise InputError(f"--output-um: expected a size above 0 µm, got {options.output_um:g}")
    wanted = TransformOptions(
        options.to,
        labels=options.labels,
        scene=options.scene,
        channel=options.channel,
        page=options.page,
        z=options.z,
        output_um=options.output_um,
        unit=options.unit,
        off_plane_um=options.off_plane,
        scale=options.scale,
    )
    say(transform_file(options.input, options.folder, options.out, wanted, overwrite=options.overwrite))
