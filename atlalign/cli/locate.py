"""Find the plane of the atlas that each section shows."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from atlalign.atlas.options import AtlasOptions
from atlalign.cli.flags import add_flags, add_images, flag_values, given_values
from atlalign.console import say, track
from atlalign.errors import InputError
from atlalign.registration.options import LocatingOptions, ReadingOptions, SeriesOptions

if TYPE_CHECKING:
    from atlalign.localization import Located

_PHANTOM_SHAPE = (160, 228)
_MIRRORED = "a mirrored whole section looks like any other: check one side of each slide"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `locate`."""
    command = commands.add_parser(
        "locate",
        help="find the plane of the atlas that each section shows",
        description="Find the atlas plane of each section from images alone: its position and both tilt angles. Also "
        "find the section's rotation, scale and shift, and whether it shows the whole brain or one half. The sections "
        "of a brain are located together: they share one cutting angle, and their numbers give their order. Left-right "
        "mirroring of a whole section cannot be detected.",
    )
    command.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        type=Path,
        help="an image, a folder of images, or a list of sections with a column filename (and brain, if there are "
        "several); the images of each subfolder are one brain. The section number is the number after _s in a file's "
        "name, such as _s012, otherwise the last number; without numbers, the order of the images is used",
    )
    command.add_argument(
        "--out",
        metavar="JSON",
        type=Path,
        required=True,
        help="the file of anchorings to write, for QuickNII, VisuAlign and `atlalign register`; a table with errors "
        "and flags (.csv) and a page for checking (.html) are written beside it",
    )
    add_images(command)
    add_flags(command, AtlasOptions)
    add_flags(command, LocatingOptions)
    add_flags(command.add_argument_group("images"), ReadingOptions)
    command.add_argument("--overwrite", action="store_true", help="replace the files if they exist")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.atlas.atlas import open_atlas
    from atlalign.atlas.targets import Target
    from atlalign.localization import Locator, find_images, locate, write_located, write_page

    _check_out(options.out, overwrite=options.overwrite)
    reading = ReadingOptions(**flag_values(ReadingOptions, options))
    jobs = find_images(options.inputs, images=options.images, reading=reading)
    atlas = open_atlas(phantom_shape=_PHANTOM_SHAPE, **given_values(AtlasOptions, options))
    say(atlas.description())
    locator = Locator(atlas, network=options.locator)
    progress = partial(track, description="locating")
    located = locate(jobs, locator, progress=progress, **flag_values(SeriesOptions, options))
    table = write_located(options.out, located, Target.of(atlas))
    page = options.out.with_suffix(".html")
    write_page(page, located)
    say(f"located by {locator.said}")
    say_located(located)
    say(f"written: {options.out}, {table}, {page}")
    failed = [_named(found) for found in located if found.anchoring is None]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(jobs)} sections could not be located:\n  " + "\n  ".join(failed)
        )


def _named(found: "Located") -> str:
    """Return the reason why a section could not be located, preceded by its name."""
    name = found.job.path.name
    return found.reason if found.reason.startswith(name) else f"{name}: {found.reason}"


def say_located(located: "Sequence[Located]", *, before: int = 0) -> None:
    """Report how many sections were located, and warn that mirroring cannot be detected."""
    flags = [found.flag for found in located]
    counts = ", ".join(f"{flags.count(flag)} {flag}" for flag in ("pass", "look", "fail"))
    found = sum(one.anchoring is not None for one in located)
    kept = f" ({before} of them earlier)" if before else ""
    say(f"{found} of {len(located)} sections located{kept}: {counts}")
    if found:
        say(_MIRRORED)


def _check_out(out: Path, *, overwrite: bool) -> None:
    if out.suffix.lower() != ".json":
        raise InputError(f"--out: expected a .json file, got {out}")
    for path in (out, out.with_suffix(".csv"), out.with_suffix(".html")):
        if path.exists() and not overwrite:
            raise InputError(f"{path} already exists: choose another --out, or add --overwrite")
