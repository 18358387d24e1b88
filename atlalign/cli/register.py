"""Register sections to an atlas."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlalign.atlas.options import AtlasOptions
from atlalign.cli.calls import record_call
from atlalign.cli.flags import add_flags, add_image_shape, add_images, flag_values, given_values
from atlalign.console import counted, first_names, say, track
from atlalign.declarations import flag
from atlalign.errors import InputError, unknown_name
from atlalign.io.files import WriteError, itk_name
from atlalign.registration.options import LocatingOptions, Options, ReferenceImageOptions

if TYPE_CHECKING:
    from atlalign.registration.batch import Outcome
    from atlalign.registration.jobs import Job
    from atlalign.registration.quality import Limit
    from atlalign.registration.recipe import Recipe


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
        "images, optionally with one list. Sections without a position are located first",
    )
    add_images(command)
    command.add_argument(
        "--model",
        metavar="FILE",
        type=Path,
        help="a model file, model folder or checkpoint (default: the network that comes with the package); none means "
        "no network: anchorings and corrections alone place the sections",
    )
    command.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results")
    _add_reference_options(command)
    add_flags(command.add_argument_group("sections"), Options)
    add_flags(
        command.add_argument_group("sections without a position, which are located first"), LocatingOptions
    )
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
        help="limits above which a quality measure flags a section `look` and `fail`; may be repeated; also applies to "
        "sections that are already registered",
    )
    add_image_shape(command)
    command.add_argument(
        "--allow",
        metavar="NAME",
        action="append",
        default=[],
        help="importable name of your own network class that the model may use, such as my_lab.Shift; may be repeated",
    )
    command.add_argument(
        "--device", default="auto", help="the device: auto, cpu, cuda or mps (default: %(default)s)"
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace results that were made with other settings"
    )
    command.set_defaults(run=_run)


def _add_reference_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("reference")
    add_flags(group, AtlasOptions)
    group.add_argument(
        "--ontology",
        metavar="CSV",
        help="table of region names for an atlas file or reference image, such as the Allen Institute's "
        "structure_tree_safe_2017.csv; columns id, acronym, name, and optionally structure_id_path and "
        "color_hex_triplet",
    )
    group.add_argument(
        "--position-um",
        type=float,
        metavar="UM",
        help="position of the images in µm from the front of the atlas; bregma is at about 5400 in the Allen atlas "
        "(default: located from the image, as `atlalign locate` does)",
    )
    add_flags(group, ReferenceImageOptions)


def _run(options: argparse.Namespace) -> None:
    from atlalign.cli.slides import with_sections
    from atlalign.registration.batch import register_batch
    from atlalign.registration.batch_tables import TABLE, VISUALIGN
    from atlalign.registration.jobs import find_jobs, find_lists
    from atlalign.registration.record import REGIONS
    from atlalign.registration.references import AtlasReferences

    what: dict[str, Any] = {"position_um": options.position_um, "listed": options.reference is None}
    options.inputs = with_sections(options.inputs, options.out, Options(**flag_values(Options, options)))
    for path in find_lists(options.inputs, **what):
        if path.absolute() in {(options.out / name).absolute() for name in (TABLE, VISUALIGN)}:
            raise InputError(
                f"{path}: the results would overwrite this list: rename it, or choose another --out"
            )
    jobs = find_jobs(options.inputs, images=options.images, **what)
    workers = min(len(jobs), _workers(options.workers))
    recipe = recipe_of(options)
    _open_for_review(options.out)
    if isinstance(recipe.references, AtlasReferences):
        say(recipe.references.atlas.description())
    jobs = _located(jobs, recipe, options)
    made = register_batch(jobs, recipe, options.out, overwrite=options.overwrite, workers=workers)
    outcomes = list(track(_with_call(made, options), "registering", total=len(jobs)))
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if len(errors) < len(jobs):
        _say_registered(outcomes, options.out)
        tables = (options.out / outcome.row["section"] / REGIONS for outcome in outcomes)
        if recipe.references.ontology is None and any(path.is_file() for path in tables):
            say(_NO_NAMES)
    if errors:
        raise InputError(
            f"{len(errors)} of {len(jobs)} sections could not be registered:\n  " + "\n  ".join(errors)
        )


def _open_for_review(out: Path) -> None:
    """Create the folder of results, so that `atlalign review` can open it while sections are located.

    Raises:
        InputError: If its name is not valid text. Other errors are raised when the first result is written.
    """
    itk_name(out)
    with suppress(OSError):
        out.mkdir(parents=True, exist_ok=True)


def _say_registered(outcomes: "Sequence[Outcome]", out: Path) -> None:
    """Report how many sections are registered, which of them need checking, and where to see them."""
    from atlalign.pages import INDEX
    from atlalign.registration.batch_tables import TABLE

    done = [outcome for outcome in outcomes if not outcome.error]
    flags = [outcome.row["flag"] for outcome in done]
    before = sum(not outcome.is_new for outcome in done)
    nothing = "nothing to do: " if before == len(outcomes) else ""
    earlier = f" ({before} in earlier calls)" if before else ""
    counts = ", ".join(f"{flags.count(name)} {name}" for name in ("pass", "look", "fail"))
    say(f"{nothing}{len(done)} of {counted(len(outcomes), 'section')} registered{earlier}: {counts}")
    for name in ("look", "fail"):
        flagged = [outcome.row["section"] for outcome in done if outcome.row["flag"] == name]
        if flagged:
            say(f"flagged {name}: {first_names(flagged)}")
    say(f"written: {out / TABLE}; open {out / INDEX} to look at the sections")


def _with_call(outcomes: "Iterable[Outcome]", options: argparse.Namespace) -> "Iterator[Outcome]":
    """Yield outcomes, and store the call with the first result, so that corrections can start before the end.

    A call without a result is not stored, because the latest stored call is used to register sections again.
    """
    is_stored = False
    for outcome in outcomes:
        if not (is_stored or outcome.error):
            with suppress(WriteError):
                record_call(options.out, options.arguments)
            is_stored = True
        yield outcome


def _located(jobs: "list[Job]", recipe: "Recipe", options: argparse.Namespace) -> "list[Job]":
    """Return jobs in which sections without a position have been located, and report it."""
    from atlalign.cli.locate import say_located
    from atlalign.localization import locate_unplaced
    from atlalign.localization.recorded import LOCATED

    found = locate_unplaced(
        jobs,
        recipe,
        options.out,
        overwrite=options.overwrite,
        progress=partial(_locating, n_sections=len(jobs)),
        **flag_values(LocatingOptions, options),
    )
    number = len(found.located)
    if found.files:
        say(f"located by {found.locator}")
        say_located(found.located, before=found.kept)
        say(f"written: {', '.join(map(str, found.files))}")
    elif found.located:
        say(f"{number} of {number} sections located earlier: their planes are kept ({options.out / LOCATED})")
    return found.jobs


def _locating(jobs: "Iterable[Job]", *, n_sections: int) -> "Iterator[Job]":
    """Report the number of sections to locate, because locating takes long, and then yield the sections."""
    unplaced = list(jobs)
    if unplaced:
        say(
            f"{len(unplaced)} of {counted(n_sections, 'section')} without a position: locating from the image"
        )
    return track(unplaced, "locating")


def _workers(wanted: int | None) -> int:
    import torch

    if wanted is not None and wanted < 1:
        raise InputError(f"--workers: expected at least 1, got {wanted}")
    # More workers would need more memory without saving time.
    return min(4, torch.get_num_threads()) if wanted is None else wanted


def recipe_of(options: argparse.Namespace) -> "Recipe":
    """Return the recipe that the options ask for.

    Raises:
        InputError: If options contradict each other, or a file cannot be read.
    """
    from atlalign.registration.recipe import atlas_recipe, image_recipe

    common: dict[str, Any] = {
        "ontology": options.ontology,
        "model": options.model,
        "image_shape": options.image_shape,
        "device": options.device,
        "allow": options.allow,
        "options": Options(**flag_values(Options, options), limits=_limits(options.limit)),
    }
    atlas, image = given_values(AtlasOptions, options), given_values(ReferenceImageOptions, options)
    if not image:
        return atlas_recipe(**atlas, **common)
    if "reference" not in image:
        raise InputError(f"{flag(next(iter(image)))} needs --reference")
    for name in (*atlas, *(["position_um"] if options.position_um is not None else [])):
        raise InputError(f"{flag(name)} cannot be combined with --reference")
    return image_recipe(**image, **common)


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
