"""Register sections to an atlas."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlalign.cli.calls import record_call
from atlalign.cli.flags import add_flags, flag_values
from atlalign.cli.locate import add_series_options
from atlalign.console import say
from atlalign.declarations import flag
from atlalign.errors import InputError, unknown_name
from atlalign.io.files import WriteError
from atlalign.registration.options import Options

if TYPE_CHECKING:
    from atlalign.registration.jobs import Job
    from atlalign.registration.quality import Limit
    from atlalign.registration.recipe import Recipe

_READING = ("background", "scene", "channel", "page", "z", "one_section")
LOCATED = "located.json"
"""The anchorings of sections whose position was found; beside it stands the table of all."""

_NO_NAMES = (
    "regions have no names: run again with `--ontology CSV --overwrite`, where CSV is a table such as the Allen "
    "Institute's structure_tree_safe_2017.csv"
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `register`."""
    command = commands.add_parser(
        "register",
        help="register sections to an atlas",
        description="Register images of sections to an atlas. Sections that are already registered are skipped.",
    )
    command.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        type=Path,
        help="an image; a list of sections (.json, .xml or .csv from QuickNII or DeepSlice; .waln or .wwrp "
        "from WebAlign or WebWarp; .csv, .tsv or .txt with columns filename and p, the position in µm); a folder of "
        "images, perhaps with one list. Positions that are not known are found",
    )
    command.add_argument(
        "--images",
        metavar="FOLDER",
        type=Path,
        help="folder of the images that lists name (default: the folder of each list)",
    )
    command.add_argument(
        "--model",
        metavar="FILE",
        type=Path,
        help="a model file, model folder or checkpoint (default: the network that comes with the package); none places "
        "sections by their anchorings and corrections alone, whatever they show",
    )
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results")
    _add_reference_options(command)
    add_flags(command.add_argument_group("sections"), Options)
    add_series_options(command.add_argument_group("sections without a position, which is found"))
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of sections processed at a time (default: the number of cores, at most 4)",
    )
    command.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="MEASURE=LOOK,FAIL",
        help="change the limits from which a quality measure flags a section `look` and `fail`; may be repeated; also "
        "applies to sections that are already registered",
    )
    command.add_argument(
        "--image-shape",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the network's input in pixels (default: the size used in training)",
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: %(default)s)")
    command.add_argument(
        "--overwrite", action="store_true", help="replace results that were made with other settings"
    )
    command.set_defaults(run=_run)


def _add_reference_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("reference")
    group.add_argument("--atlas", help="allen (downloaded once), phantom, or an atlas file (default: allen)")
    group.add_argument(
        "--annotation", metavar="FILE", help="file with the region ids, if the atlas file does not hold them"
    )
    group.add_argument(
        "--ontology",
        metavar="CSV",
        help="table of region names for an atlas file or reference image: columns id, acronym, name, and optionally "
        "structure_id_path and color_hex_triplet, such as the Allen Institute's structure_tree_safe_2017.csv",
    )
    group.add_argument(
        "--spacing-um",
        type=float,
        metavar="UM",
        help="voxel size of an atlas file in µm (default: the value in the file, or 25 if it has none)",
    )
    group.add_argument(
        "--axes",
        metavar="AP,DV,ML",
        help="directions of an atlas file's axes, in the order of the file: AP or PA (front to back or back to front), "
        "DV or VD (top to bottom or bottom to top), and LR (also ML) or RL (left to right or right to left) (default: "
        "the value in the file, or AP,DV,ML)",
    )
    group.add_argument(
        "--position",
        type=float,
        metavar="UM",
        help="position of the images in µm from the front of the atlas; bregma is at about 5400 in the Allen atlas "
        "(default: found, see `atlalign locate`)",
    )
    group.add_argument("--reference", metavar="IMAGE", help="register to this image instead of an atlas")
    group.add_argument(
        "--reference-labels", metavar="IMAGE", help="label image with the region ids of the reference image"
    )
    group.add_argument(
        "--reference-pixel-um",
        type=float,
        metavar="UM",
        help="pixel size of the reference image in µm; overrides its metadata",
    )


def _run(options: argparse.Namespace) -> None:
    from rich.progress import track

    from atlalign.cli.slides import with_sections
    from atlalign.registration.batch import TABLE, VISUALIGN, register_batch
    from atlalign.registration.jobs import find_jobs, find_lists
    from atlalign.registration.record import REGIONS

    what: dict[str, Any] = {"position_um": options.position, "listed": options.reference is None}
    options.inputs = with_sections(options.inputs, options.out, Options(**flag_values(Options, options)))
    for path in find_lists(options.inputs, **what):
        if path.absolute() in {(options.out / name).absolute() for name in (TABLE, VISUALIGN)}:
            raise InputError(
                f"{path}: the results would overwrite this list: rename it, or choose another --out"
            )
    jobs = find_jobs(options.inputs, images=options.images, **what)
    workers = min(len(jobs), _workers(options.workers))
    recipe = recipe_of(options)
    jobs = _placed(jobs, recipe, options)
    try:
        outcomes = list(
            track(
                register_batch(jobs, recipe, options.out, overwrite=options.overwrite, workers=workers),
                description="registering",
                total=len(jobs),
            )
        )
    finally:
        _record_call(options)
    flags = [outcome.row["flag"] for outcome in outcomes if not outcome.error]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if flags:
        counts = ", ".join(f"{flags.count(flag)} {flag}" for flag in ("pass", "look", "fail"))
        before = sum(not outcome.is_new for outcome in outcomes)
        say(f"{len(flags)} of {len(jobs)} sections registered ({before} of them before): {counts}")
        say(f"written: {options.out / TABLE}")
        tables = (options.out / outcome.row["section"] / REGIONS for outcome in outcomes)
        if recipe.references.ontology is None and any(path.is_file() for path in tables):
            say(_NO_NAMES)
    if errors:
        raise InputError(
            f"{len(errors)} of {len(jobs)} sections could not be registered:\n  " + "\n  ".join(errors)
        )


def _record_call(options: argparse.Namespace) -> None:
    """Keep how sections were registered beside them; what cannot be written is no reason to fail then."""
    from atlalign.registration.record import RECORD

    if any(options.out.glob(f"*/{RECORD}")):
        with suppress(WriteError):
            record_call(options.out, options.arguments)


def _placed(jobs: "list[Job]", recipe: "Recipe", options: argparse.Namespace) -> "list[Job]":
    """Return the jobs with the planes of those whose position is not known, which are found."""
    from atlalign.cli.locate import located_jobs, say_located
    from atlalign.localization import Locator, write_located
    from atlalign.registration.references import AtlasReferences

    unplaced = [job for job in jobs if job.position_um is None and not job.problem]
    if not unplaced or not isinstance(recipe.references, AtlasReferences):
        return jobs
    locator = Locator(recipe.references.atlas)
    reading = {name: getattr(recipe.options, name) for name in _READING}
    located = located_jobs(
        [job._replace(options={**reading, **job.options}) for job in unplaced],
        locator,
        independent=options.independent,
        section_spacing_um=options.section_spacing_um,
    )
    say_located(located)
    say(f"written: {options.out / LOCATED}, {write_located(options.out / LOCATED, located)}")
    placed = {
        id(job): replace(found, job=job).placed_job() for job, found in zip(unplaced, located, strict=True)
    }
    return [placed.get(id(job), job) for job in jobs]


def _workers(wanted: int | None) -> int:
    import torch

    if wanted is not None and wanted < 1:
        raise InputError(f"--workers: expected at least 1, got {wanted}")
    # More workers would need more memory without saving time.
    return min(4, torch.get_num_threads()) if wanted is None else wanted


def recipe_of(options: argparse.Namespace) -> "Recipe":
    """Return the recipe that the options ask for.

    Raises:
        InputError: If they contradict each other, or a file cannot be read.
    """
    from atlalign.registration.recipe import atlas_recipe, image_recipe

    common: dict[str, Any] = {
        "ontology": options.ontology,
        "model": options.model,
        "image_shape": options.image_shape,
        "device": options.device,
        "options": Options(**flag_values(Options, options), limits=_limits(options.limit)),
    }
    if options.reference is not None:
        for name in ("atlas", "annotation", "spacing_um", "axes", "position"):
            if getattr(options, name) is not None:
                raise InputError(f"{flag(name)} cannot be combined with --reference")
        of_image = {"labels": options.reference_labels, "pixel_um": options.reference_pixel_um}
        return image_recipe(options.reference, **of_image, **common)
    for name in ("reference_labels", "reference_pixel_um"):
        if getattr(options, name) is not None:
            raise InputError(f"{flag(name)} needs --reference")
    of_atlas = {
        "annotation": options.annotation,
        "spacing_um": options.spacing_um,
        "axes": options.axes,
    }
    return atlas_recipe(options.atlas or "allen", **of_atlas, **common)


def _limits(texts: Sequence[str]) -> "dict[str, Limit]":
    """Return the quality limits given as MEASURE=LOOK,FAIL."""
    from atlalign.registration.quality import LIMITS, Limit

    limits = {}
    for text in texts:
        name, _, numbers = text.partition("=")
        if name not in LIMITS:
            raise unknown_name("measure", name, LIMITS)
        try:
            look, fail = (float(number) for number in numbers.split(","))
        except ValueError as error:
            raise InputError(f"--limit {text}: expected {name}=LOOK,FAIL, two numbers") from error
        if not look <= fail:
            raise InputError(f"--limit {text}: expected {name}=LOOK,FAIL with LOOK ≤ FAIL")
        limits[name] = Limit(look, fail)
    return limits
