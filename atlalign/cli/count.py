"""Count points by region."""

import argparse
from pathlib import Path

from atlalign.console import say


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `count`."""
    command = commands.add_parser(
        "count",
        help="count points by region",
        description="Count the points in each region, and compute their density in points per mm².",
    )
    command.add_argument(
        "tables",
        metavar="TABLE",
        nargs="+",
        type=Path,
        help="a table written by `atlalign transform … --to reference`",
    )
    command.add_argument(
        "--with",
        dest="folders",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        required=True,
        help="the folders from `atlalign register` of all sections that were searched for points, or a folder of "
        "such folders; sections without points count towards the area",
    )
    command.add_argument(
        "--regions",
        metavar="REGION",
        nargs="+",
        default=[],
        help="count only these regions, each with all its parts, and show their densities; acronyms, names or ids, "
        "such as HPF TH",
    )
    command.add_argument(
        "--by",
        choices=("section",),
        help="section: write a row for each region of each section, so that you can average over sections",
    )
    command.add_argument(
        "--include-rejected",
        action="store_true",
        help="count sections that were rejected in review (default: leave out their points and areas)",
    )
    command.add_argument("--out", metavar="FILE", type=Path, required=True, help="the CSV file to write")
    command.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.registration.counts import count_points

    say(
        count_points(
            options.tables,
            options.folders,
            options.out,
            regions=options.regions,
            by=options.by,
            include_rejected=options.include_rejected,
            overwrite=options.overwrite,
        )
    )
