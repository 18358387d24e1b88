"""Separate the sections of slides."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from atlalign.console import say
from atlalign.errors import InputError

if TYPE_CHECKING:
    from atlalign.io.scenes import Focus


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `sections`."""
    command = commands.add_parser(
        "sections",
        help="separate the sections of slides",
        description="Find the sections on slides, turn them upright, and write each as an OME-TIFF, with a list "
        "(sections.csv) and a contact sheet. To correct the result, edit the list and run the same command again: "
        "delete a row to drop its section; move rows to change the order; write a turn in degrees (counter-clockwise), "
        "mirrored (yes), the number of another section to merge, or two points x1 y1 x2 y2 of a line to split. "
        "Only sections that change are written again.",
    )
    command.add_argument(
        "slides", metavar="SLIDE", nargs="+", type=Path, help="a slide scanner's file, or any image"
    )
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder for the sections")
    command.add_argument(
        "--order",
        choices=("rows", "columns", "serpentine", "serpentine-columns"),
        default="rows",
        help="order of the sections on a slide: row by row from the top left, column by column, or with every second "
        "row or column backwards (default: %(default)s)",
    )
    command.add_argument(
        "--pixel-size-um",
        type=float,
        metavar="UM",
        help="pixel size of the slides in µm; overrides the files' metadata",
    )
    command.add_argument(
        "--background",
        choices=("auto", "bright", "dark"),
        default="auto",
        help="brightness of the empty slide (default: %(default)s)",
    )
    command.add_argument(
        "--z",
        metavar="N",
        help="plane of z-stacks, counted from 0; best for the sharpest, max for the brightest values",
    )
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="find all sections anew, and discard the list and its changes",
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.sections.listing import LIST
    from atlalign.sections.separate import SectionsOptions, separate

    if options.pixel_size_um is not None and not 0 < options.pixel_size_um < 1e4:
        raise InputError(f"--pixel-size-um: expected a size above 0 µm, got {options.pixel_size_um:g}")
    result = separate(
        options.slides,
        options.out,
        SectionsOptions(
            order=options.order,
            pixel_size_um=options.pixel_size_um,
            background=options.background,
            z=_focus(options.z),
            overwrite=options.overwrite,
        ),
        progress=lambda name: say(f"writing {name}"),
    )
    if result.sections:
        kept = len(result.sections) - result.written
        say(f"{len(result.sections)} sections ({result.written} written, {kept} unchanged)")
        say(f"written: {options.out / LIST}")
    if result.errors:
        raise InputError(
            f"{len(result.errors)} of {len(options.slides)} slides could not be separated:\n  "
            + "\n  ".join(result.errors)
        )


def _focus(text: str | None) -> "Focus | None":
    if text is None or text in ("max", "best"):
        return text  # type: ignore[return-value]
    if not text.isdecimal():
        raise InputError(f"--z: expected a number from 0, best or max, got {text}")
    return int(text)
