"""Check an h5 data set."""

import argparse

from atlalign.console import say


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `validate`."""
    command = commands.add_parser(
        "validate",
        help="check an h5 data set",
        description="Check an h5 data set and list every problem found.",
    )
    command.add_argument("file", metavar="FILE", help="the h5 file to check")
    command.add_argument(
        "--extent-um",
        type=float,
        help="length of the atlas from front to back; positions must lie in [0, UM] (default: the value in the file, "
        "or 13200, that of the Allen atlas)",
        metavar="UM",
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.data import schema

    summary = schema.validate(options.file, options.extent_um)
    height, width = summary.image_shape
    say(f"{options.file} is valid: {summary.n_samples} samples of {height}×{width} px")
