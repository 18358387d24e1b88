"""Count points by region."""

import argparse
from pathlib import Path

from atlalign.console import say


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `count`."""
    command = commands.add_parser(
        "count",
        help="count points by region",
        description="Count by region the points that `atlalign transform … --to reference` wrote, in all and for each "
        "mm² of the sections.",
    )
    command.add_argument(
        "tables", metavar="TABLE", nargs="+", type=Path, help="a table with a column region_id"
    )
    command.add_argument(
        "--with",
        dest="folders",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        required=True,
        help="the sections' folders, which `atlalign register` wrote, or where these lie; also of sections in which "
        "there is no point",
    )
    command.add_argument("--out", metavar="FILE", type=Path, required=True, help="the .csv file to write")
    command.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.registration.counts import count_points

    say(count_points(options.tables, options.folders, options.out, overwrite=options.overwrite))
