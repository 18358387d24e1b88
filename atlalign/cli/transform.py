"""Take images, points and shapes through a registration."""

import argparse
from pathlib import Path

from atlalign.console import say
from atlalign.errors import InputError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `transform`."""
    command = commands.add_parser(
        "transform",
        help="take images, points and shapes through a registration",
        description="Take an image, a label map, a table of points (.csv, .tsv or .txt with x and y, QuPath's "
        "centroids, or ap_um, dv_um and ml_um) or QuPath's shapes (.geojson) from a section to its reference, or back.",
    )
    command.add_argument("input", metavar="INPUT", type=Path, help="an image, .csv, .tsv, .txt or .geojson")
    command.add_argument(
        "--with",
        dest="folder",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="the section's folder, which `atlalign register` wrote; of a table with a column `section`, which names "
        "such folders, where these lie",
    )
    command.add_argument("--to", choices=("reference", "section"), required=True, help="where to take it")
    command.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help=".tif for images, .csv for points, .geojson for shapes; for label maps of the reference also .geojson, "
        "with the outlines of regions",
    )
    command.add_argument(
        "--labels", action="store_true", help="the image holds ids, which are not to be mixed"
    )
    command.add_argument(
        "--channel", type=int, metavar="N", help="which channel of the image to take, from 0; all (default)"
    )
    command.add_argument("--page", type=int, metavar="N", help="which page of a TIFF file to take, from 0")
    command.add_argument("--z", type=int, metavar="N", help="which plane of a z-stack to take, from 0")
    command.add_argument(
        "--unit", choices=("px", "um"), help="what the columns x and y are in: pixels (default) or µm"
    )
    command.add_argument(
        "--off-plane",
        type=float,
        metavar="UM",
        help="how far off the section's plane atlas points are still taken to lie on it (100)",
    )
    command.add_argument(
        "--scale",
        type=_number_or_path,
        metavar="N|IMAGE",
        help="coordinates on the section's side are pixels of an image N times as large as the registered one, such as "
        "the full scan; or that image",
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
        raise InputError(f"--off-plane: expected at least 0 µm, got {options.off_plane:g}")
    wanted = TransformOptions(
        options.to,
        labels=options.labels,
        channel=options.channel,
        page=options.page,
        z=options.z,
        unit=options.unit,
        off_plane_um=options.off_plane,
        scale=options.scale,
    )
    say(transform_file(options.input, options.folder, options.out, wanted, overwrite=options.overwrite))
