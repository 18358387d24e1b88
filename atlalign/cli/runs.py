"""Compare the training runs of a sweep."""

import argparse
import sys
from pathlib import Path

from atlalign.console import say


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `runs`."""
    command = commands.add_parser(
        "runs",
        help="compare the training runs of a sweep",
        description="Print a table of all training runs in the given folders, and write it as .md, .csv and .png.",
    )
    command.add_argument(
        "folders",
        metavar="FOLDER",
        nargs="+",
        type=Path,
        help="a sweep's folder, or any folder that holds runs",
    )
    command.add_argument(
        "--sort",
        metavar="METRIC",
        help="sort by this metric (default: the runs' objective, or val/ratio if that is the vector distance and image "
        "sizes differ)",
    )
    command.add_argument("--descending", action="store_true", help="list the largest value first")
    command.add_argument(
        "--out",
        metavar="PATH",
        type=Path,
        help="path of the files to write, without suffix (default: FOLDER/runs)",
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from rich.console import Console

    from atlalign.training.comparison import compare, reasons, rich_table, write_run_table
    from atlalign.training.runs import find_runs

    table = compare(find_runs(options.folders), options.sort, descending=options.descending)
    paths = write_run_table(table, options.out or options.folders[0] / "runs")
    # In a file or a pipe, the table takes the width that it needs.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    console.print(rich_table(table, console.width))
    for line in (*reasons(table), f"written: {', '.join(map(str, paths))}"):
        say(line)
