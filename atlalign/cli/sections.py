"""Separate the sections of slides."""

import argparse
from pathlib import Path

from atlalign.cli.flags import add_flags, flag_values
from atlalign.console import say
from atlalign.errors import InputError
from atlalign.sections.options import SectionsOptions


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `sections`."""
    command = commands.add_parser(
        "sections",
        help="separate the sections on slides",
        description="Find the sections on slides, turn them upright, and write each as an OME-TIFF, with a list "
        "(sections.csv) and a contact sheet. To correct the result, edit these columns of the list and run the same "
        "command again. keep: no drops a section, yes includes a rejected piece. turn: a further counter-clockwise "
        "turn, in degrees, of the section as the contact sheet shows it. turned: the whole counter-clockwise turn from "
        "the slide, in degrees. mirrored: yes mirrors the section. merge: the number of the other section. split: x1 "
        "y1 x2 y2, two points on the cutting line, read from the axes of the contact sheet. Move rows to change the "
        "order. Only changed sections are written again.",
    )
    command.add_argument(
        "slides", metavar="SLIDE", nargs="+", type=Path, help="a slide scanner's file, or any other image"
    )
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder for the sections")
    add_flags(command, SectionsOptions)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.recognition.judge import BrainJudge
    from atlalign.sections.listing import LIST
    from atlalign.sections.separate import separate

    chosen = SectionsOptions(**flag_values(SectionsOptions, options))
    result = separate(
        options.slides,
        options.out,
        chosen,
        judge=BrainJudge(),
        progress=lambda name: say(f"writing {name}"),
    )
    if result.sections or not result.errors:
        kept = len(result.sections) - result.written
        say(f"{len(result.sections)} sections ({result.written} written, {kept} unchanged)")
        say(f"written: {options.out / LIST}")
    if result.errors:
        raise InputError(
            f"{len(result.errors)} of {len(options.slides)} slides could not be separated:\n  "
            + "\n  ".join(result.errors)
        )
