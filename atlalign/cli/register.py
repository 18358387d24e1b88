"""Register sections to an atlas."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlalign.console import say
from atlalign.errors import InputError, unknown_name

if TYPE_CHECKING:
    from atlalign.registration.recipe import Recipe
    from atlalign.registration.register import Limit


_NO_NAMES = (
    "regions have no names: `--ontology CSV --overwrite` gives them, CSV being a table such as the Allen Institute's "
    "structure_tree_safe_2017.csv"
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `register`."""
    command = commands.add_parser(
        "register",
        help="register sections to an atlas",
        description="Register images of sections. Run again, it does what is missing.",
    )
    command.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        type=Path,
        help="an image; a list of sections (.json, .xml or .csv of QuickNII or DeepSlice; .waln or .wwrp of WebAlign; "
        ".csv, .tsv or .txt with the columns filename and p); a folder with images and one list",
    )
    command.add_argument(
        "--images",
        metavar="FOLDER",
        type=Path,
        help="the folder of the images that lists name; that of each list (default)",
    )
    command.add_argument(
        "--model",
        metavar="FILE",
        type=Path,
        help="a model file, a folder or a checkpoint; what comes with the package (default)",
    )
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder of results")
    _add_reference_options(command)
    _add_section_options(command)
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="how many sections are worked on at a time; as many as cores, but at most 4 (default)",
    )
    command.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="STEPS",
        help="steps of optimisation on each pair of images after the network, such as 80; slower, and closer",
    )
    command.add_argument(
        "--refine-smoothness",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="how far the last of these steps smooth, as a share of the width, 0.005 to 0.2: 0.1 trusts "
        "that deformations are smooth (default), 0.01 follows borders, often to worse places within",
    )
    command.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="MEASURE=LOOK,FAIL",
        help="from what on a measure of quality calls for a look, and from what on it fails; may be repeated, and also "
        "judges what was registered before",
    )
    command.add_argument(
        "--image-shape", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="what the network takes"
    )
    command.add_argument("--device", default="auto", help="auto (default), cpu, cuda, …")
    command.add_argument(
        "--overwrite", action="store_true", help="replace results that were made in another way"
    )
    command.set_defaults(run=_run)


def _add_reference_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what to register to")
    group.add_argument("--atlas", help="allen (default; downloaded once), phantom, or a file")
    group.add_argument(
        "--annotation", metavar="FILE", help="the region ids of an atlas file, if it does not hold them"
    )
    group.add_argument(
        "--ontology",
        metavar="CSV",
        help="the names of an atlas file's or a reference's regions: a table of id, acronym, name, and perhaps "
        "structure_id_path and color_hex_triplet, such as the Allen Institute's structure_tree_safe_2017.csv",
    )
    group.add_argument(
        "--spacing-um",
        type=float,
        metavar="UM",
        help="the size of an atlas file's voxels; what the file says, or 25 if it says nothing (default)",
    )
    group.add_argument(
        "--axes",
        metavar="AP,DV,ML",
        help="the directions of an atlas file's axes in its own order: AP or PA (front to back, or the other way), DV "
        "or VD (top to bottom), and ML, which is LR, or RL; what the file says, or AP,DV,ML (default)",
    )
    group.add_argument(
        "--position",
        type=float,
        metavar="UM",
        help="where the images lie, from the front of the atlas; in the Allen atlas bregma lies at about 5400",
    )
    group.add_argument("--reference", metavar="IMAGE", help="an image of one's own, in place of an atlas")
    group.add_argument("--reference-labels", metavar="IMAGE", help="its regions")
    group.add_argument("--reference-pixel-um", type=float, metavar="UM", help="the size of its pixels")
    group.add_argument(
        "--hemisphere",
        choices=("left", "right"),
        help="the half of the brain that the sections show, wherever it lies in their images; the left one lies "
        "at the left of the reference",
    )


def _add_section_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("how the sections are to be read and placed")
    group.add_argument(
        "--pixel-size-um", type=float, metavar="UM", help="the size of their pixels, against the files' word"
    )
    group.add_argument(
        "--place",
        choices=("auto", "anchoring", "scale", "fit", "stretch"),
        default="auto",
        help="by their anchoring, the size of their pixels, or the extent of the tissue (auto: the first that is "
        "possible); stretch: corner on corner",
    )
    group.add_argument(
        "--background", choices=("auto", "bright", "dark"), default="auto", help="what the slide is"
    )
    group.add_argument("--channel", type=int, help="which channel, from 0, of images that have several")
    group.add_argument(
        "--page", type=int, metavar="N", help="which page, from 0, of TIFF files that have several"
    )
    group.add_argument("--z", type=int, metavar="N", help="which plane, from 0, of z-stacks")
    group.add_argument(
        "--mirrored",
        action="store_true",
        help="the images show the right of the brain at their left, as seen from the front: the atlas has its left "
        "there; anchorings say so by themselves",
    )
    group.add_argument(
        "--turn",
        type=float,
        metavar="DEGREES",
        help="counter-clockwise turn that makes the images upright, -360 to 360, after the orientation that their EXIF "
        "or TIFF tags give; 0 takes them as they are. By default, the turn of each image without an anchoring is "
        "estimated",
    )


def _run(options: argparse.Namespace) -> None:
    from rich.progress import track

    from atlalign.registration.batch import TABLE, VISUALIGN, register_batch
    from atlalign.registration.jobs import find_jobs, find_lists
    from atlalign.registration.transform import REGIONS

    what: dict[str, Any] = {"position_um": options.position, "listed": options.reference is None}
    for path in find_lists(options.inputs, **what):
        if path.absolute() in {(options.out / name).absolute() for name in (TABLE, VISUALIGN)}:
            raise InputError(
                f"{path}: the results would replace this list: rename it, or choose another --out"
            )
    jobs = find_jobs(options.inputs, images=options.images, **what)
    workers = min(len(jobs), _workers(options.workers))
    recipe = _recipe(options)
    outcomes = list(
        track(
            register_batch(jobs, recipe, options.out, overwrite=options.overwrite, workers=workers),
            description="registering",
            total=len(jobs),
        )
    )
    flags = [outcome.row["flag"] for outcome in outcomes if not outcome.error]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if flags:
        counts = ", ".join(f"{flags.count(flag)} {flag}" for flag in ("pass", "look", "fail"))
        before = sum(not outcome.is_new for outcome in outcomes)
        say(f"{len(flags)} of {len(jobs)} sections registered ({before} of them before): {counts}")
        say(f"written: {options.out / TABLE}")
        tables = (options.out / outcome.row["section"] / REGIONS for outcome in outcomes)
        if recipe.ontology is None and any(path.is_file() for path in tables):
            say(_NO_NAMES)
    if errors:
        raise InputError(
            f"{len(errors)} of {len(jobs)} sections could not be registered:\n  " + "\n  ".join(errors)
        )


def _workers(wanted: int | None) -> int:
    import torch

    if wanted is not None and wanted < 1:
        raise InputError(f"--workers: expected at least 1, got {wanted}")
    # More would rather need memory than save time.
    return min(4, torch.get_num_threads()) if wanted is None else wanted


def _recipe(options: argparse.Namespace) -> "Recipe":
    from atlalign.registration.recipe import Options, atlas_recipe, image_recipe

    common: dict[str, Any] = {
        "ontology": options.ontology,
        "hemisphere": options.hemisphere,
        "model": options.model,
        "image_shape": options.image_shape,
        "device": options.device,
        "options": Options(
            by=options.place,
            background=options.background,
            mirrored=options.mirrored,
            turn=options.turn,
            channel=options.channel,
            page=options.page,
            z=options.z,
            pixel_um=options.pixel_size_um,
            refinement_steps=options.refine,
            refinement_smoothness=options.refine_smoothness,
            limits=_limits(options.limit),
        ),
    }
    if options.reference is not None:
        for name in ("atlas", "annotation", "spacing_um", "axes", "position"):
            if getattr(options, name) is not None:
                raise InputError(f"expected either --reference or --{name.replace('_', '-')}, got both")
        of_image = {"labels": options.reference_labels, "pixel_um": options.reference_pixel_um}
        return image_recipe(options.reference, **of_image, **common)
    for name in ("reference_labels", "reference_pixel_um"):
        if getattr(options, name) is not None:
            raise InputError(f"expected --{name.replace('_', '-')} beside --reference, got no --reference")
    of_atlas = {
        "annotation": options.annotation,
        "spacing_um": options.spacing_um,
        "axes": options.axes,
    }
    return atlas_recipe(options.atlas or "allen", **of_atlas, **common)


def _limits(texts: Sequence[str]) -> "dict[str, Limit]":
    """Return the limits of quality that are given as MEASURE=LOOK,FAIL."""
    from atlalign.registration.register import LIMITS, Limit

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
            raise InputError(f"--limit {text}: expected {name}=LOOK,FAIL, the second no lower than the first")
        limits[name] = Limit(look, fail)
    return limits
