"""Map images, points and shapes between a section and its reference."""

import argparse
from pathlib import Path

from atlalign.cli.flags import add_flags, flag_values
from atlalign.console import say
from atlalign.registration.transform_options import TransformOptions


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `transform`."""
    command = commands.add_parser(
        "transform",
        help="map images, points and shapes between a section and its reference",
        description="Map a file from a section to its reference, or back. The file may be an image, a label map, a "
        "table of points (columns x and y, QuPath's centroids, napari's axis-0 and axis-1, or ap_um, dv_um and ml_um), "
        "or shapes from QuPath (GeoJSON). All channels of an image are mapped, unless --channel names one.",
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
        help="the section's folder from `atlalign register`; for points of several sections, the folder that holds "
        "all of them, if the table's column `section`, or `Image` as in QuPath, names each point's section or image",
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
        help="the file to write: .tif for images, .csv for points, .geojson for shapes or, with --labels --to "
        "section, for region outlines",
    )
    add_flags(command, TransformOptions)
    command.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.registration.carry import transform_file

    wanted = TransformOptions(options.to, **flag_values(TransformOptions, options))
    say(transform_file(options.input, options.folder, options.out, wanted, overwrite=options.overwrite))
