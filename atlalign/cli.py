"""The command line `atlalign`: one subcommand a job; heavy imports happen in the job that needs them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlalign import __version__
from atlalign.errors import InputError, unknown_name

if TYPE_CHECKING:
    from atlalign.registration.recipe import Recipe
    from atlalign.registration.register import Limit


_NO_NAMES = (
    "regions have no names: `--ontology CSV --overwrite` gives them, CSV being a table such as the Allen Institute's "
    "structure_tree_safe_2017.csv"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake gives its sentence on stderr and exit status 1, Ctrl-C 130."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: what is finished stays", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlalign", description="Register brain sections to an atlas. Training is `python train.py`."
    )
    parser.add_argument("--version", action="version", version=f"atlalign {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_register(commands)
    _add_transform(commands)
    _add_count(commands)
    _add_validate(commands)
    _add_import_keras(commands)
    _add_merge(commands)
    _add_export(commands)
    _add_runs(commands)
    return parser


def _add_transform(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "transform",
        help="take images, points and shapes through a registration",
        description="Take an image, a label map, a table of points (.csv, .tsv or .txt with x and y, QuPath's "
        "centroids, or ap_um, dv_um and ml_um) or QuPath's shapes (.geojson) from a section to its reference, or back.",
    )
    command.add_argument("input", metavar="INPUT", type=Path, help="an image, .csv, .tsv, .txt or .geojson")
    command.add_argument(
        "--with",
        dest="folder",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="the section's folder, which `atlalign register` wrote; of a table with a column `section`, which names "
        "such folders, where these lie",
    )
    command.add_argument("--to", choices=("reference", "section"), required=True, help="where to take it")
    command.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help=".tif for images, .csv for points, .geojson for shapes; for label maps of the reference also .geojson, "
        "with the outlines of regions",
    )
    command.add_argument(
        "--labels", action="store_true", help="the image holds ids, which are not to be mixed"
    )
    command.add_argument(
        "--channel", type=int, metavar="N", help="which channel of the image to take, from 0; all (default)"
    )
    command.add_argument(
        "--unit", choices=("px", "um"), help="what the columns x and y are in: pixels (default) or µm"
    )
    command.add_argument(
        "--off-plane",
        type=float,
        metavar="UM",
        help="how far off the section's plane atlas points are still taken to lie on it (100)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    command.set_defaults(run=_transform)


def _transform(options: argparse.Namespace) -> None:
    from atlalign.registration.apply import TransformOptions, transform_file

    if options.off_plane is not None and not options.off_plane >= 0:
        raise InputError(f"--off-plane: expected at least 0 µm, got {options.off_plane:g}")
    wanted = TransformOptions(
        options.to,
        labels=options.labels,
        channel=options.channel,
        unit=options.unit,
        off_plane_um=options.off_plane,
    )
    print(transform_file(options.input, options.folder, options.out, wanted, overwrite=options.overwrite))


def _add_count(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
    command.set_defaults(run=_count)


def _count(options: argparse.Namespace) -> None:
    from atlalign.registration.counts import count_points

    print(count_points(options.tables, options.folders, options.out, overwrite=options.overwrite))


def _add_validate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "validate",
        help="check an h5 data set",
        description="Check an h5 data set; list every problem it has.",
    )
    command.add_argument("file", metavar="FILE", help="the h5 file")
    command.add_argument(
        "--extent-um",
        type=float,
        help="positions lie in [0, EXTENT_UM]; what the file says of its atlas, or 13200 for the Allen atlas (default)",
    )
    command.set_defaults(run=_validate)


def _validate(options: argparse.Namespace) -> None:
    from atlalign.data import schema

    summary = schema.validate(options.file, options.extent_um)
    height, width = summary.image_shape
    print(f"{options.file} is valid: {summary.n_samples} samples of {height}×{width} px")


def _add_import_keras(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "import-keras",
        help="convert a network of the Keras package",
        description="Convert what the Keras package's save_model wrote; TensorFlow is not needed.",
    )
    command.add_argument("path", metavar="PATH", help="an .h5 file, or the folder of a .json and an .h5 file")
    command.add_argument("--out", metavar="PATH", required=True, help="the model file to write")
    command.set_defaults(run=_import_keras)


def _import_keras(options: argparse.Namespace) -> None:
    from atlalign.models import save_model
    from atlalign.models.keras_import import ORIGIN, import_keras

    network = import_keras(options.path)
    save_model(network, options.out, origin=ORIGIN)
    print(f"{options.out}: {type(network).__name__}")


def _add_merge(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "merge",
        help="make one network of a global and a local one",
        description="Make one network that registers globally, then locally, of two model files or checkpoints.",
    )
    command.add_argument("global_path", metavar="GLOBAL", help="the file of the global network")
    command.add_argument("local_path", metavar="LOCAL", help="the file of the local network")
    command.add_argument("--out", metavar="PATH", required=True, help="the model file to write")
    command.set_defaults(run=_merge)


def _merge(options: argparse.Namespace) -> None:
    from atlalign.models import common_origin, merge_global_local, read_origin, save_model

    merged = merge_global_local(options.global_path, options.local_path)
    origin = common_origin(read_origin(options.global_path), read_origin(options.local_path))
    save_model(merged, options.out, origin=origin)
    print(f"{options.out}: {type(merged).__name__}")


def _add_runs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "runs",
        help="compare the training runs of a sweep",
        description="Print the table of all runs in some folders, sorted by a metric; write it as .md, .csv and .png.",
    )
    command.add_argument(
        "folders", metavar="FOLDER", nargs="+", type=Path, help="a sweep's folder, or any above runs"
    )
    command.add_argument(
        "--sort",
        metavar="METRIC",
        help="the metric to sort by (default: the runs' objective, among images of several sizes val/ratio)",
    )
    command.add_argument("--descending", action="store_true", help="the largest first")
    command.add_argument(
        "--out", metavar="PATH", type=Path, help="files to write, without ending (FOLDER/runs)"
    )
    command.set_defaults(run=_runs)


def _runs(options: argparse.Namespace) -> None:
    from rich.console import Console

    from atlalign.training.runs import compare, find_runs, reasons, rich_table, write_table

    table = compare(find_runs(options.folders), options.sort, descending=options.descending)
    paths = write_table(table, options.out or options.folders[0] / "runs")
    # A file or a pipe is as wide as the table.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    console.print(rich_table(table, console.width))
    for line in (*reasons(table), f"written: {', '.join(map(str, paths))}"):
        print(line)


def _add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "export",
        help="write a network for other programs",
        description="Write a network as a graph that runs without this package, and compare the two on random images.",
    )
    command.add_argument("model", metavar="MODEL", help="a model file, a folder or a checkpoint")
    command.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="FILE.onnx (needs the extra `export`), or FILE.pt2 for torch.export",
    )
    command.add_argument(
        "--image-shape",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="the size of the images; that of the training (default)",
    )
    command.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from atlalign.models import load_model, read_origin
    from atlalign.models.export import export_model

    network = load_model(options.model)
    shape = options.image_shape or read_origin(options.model).image_shape
    if shape is None:
        raise InputError(
            f"{options.model} does not tell the size of its images: give --image-shape HEIGHT WIDTH"
        )
    height, width = shape
    differences = export_model(network, options.out, (height, width))
    print(
        f"{options.out}: {type(network).__name__} for images of {height}×{width} px; it differs by at most "
        f"{differences.intensity:.1e} in intensity and {differences.px:.1e} px"
    )


def _add_register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
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
        help="an image; a list of sections (.json of QuickNII or DeepSlice, .csv, .tsv or .txt with filename and p); a "
        "folder",
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
        default=0.01,
        metavar="SHARE",
        help="how far the last of these steps smooth, as a share of the width, 0.005 to 0.2: 0.01 follows borders "
        "(default), 0.1 trusts that deformations are smooth",
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
    command.set_defaults(run=_register)


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
    group.add_argument("--spacing-um", type=float, help="the size of an atlas file's voxels (25)")
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
        "--mirrored",
        action="store_true",
        help="the images show the right of the brain at their left, as seen from the front: the atlas has its left "
        "there; anchorings say so by themselves",
    )
    group.add_argument(
        "--quarter-turns",
        type=int,
        default=0,
        help="how often to turn them by 90° counter-clockwise to be upright; the EXIF orientation of a JPG is not "
        "looked at",
    )


def _register(options: argparse.Namespace) -> None:
    from rich.progress import track

    from atlalign.registration.batch import TABLE, register_batch
    from atlalign.registration.jobs import find_jobs
    from atlalign.registration.transform import REGIONS

    jobs = find_jobs(options.inputs, position_um=options.position, listed=options.reference is None)
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
        print(f"{len(flags)} of {len(jobs)} sections registered ({before} of them before): {counts}")
        print(f"written: {options.out / TABLE}")
        tables = (options.out / outcome.row["section"] / REGIONS for outcome in outcomes)
        if recipe.ontology is None and any(path.is_file() for path in tables):
            print(_NO_NAMES)
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
            quarter_turns=options.quarter_turns,
            channel=options.channel,
            pixel_um=options.pixel_size_um,
            refinement_steps=options.refine,
            refinement_smoothness=options.refine_smoothness,
            limits=_limits(options.limit),
        ),
    }
    if options.reference is not None:
        for name in ("atlas", "annotation", "spacing_um", "position"):
            if getattr(options, name) is not None:
                raise InputError(f"expected either --reference or --{name.replace('_', '-')}, got both")
        of_image = {"labels": options.reference_labels, "pixel_um": options.reference_pixel_um}
        return image_recipe(options.reference, **of_image, **common)
    for name in ("reference_labels", "reference_pixel_um"):
        if getattr(options, name) is not None:
            raise InputError(f"expected --{name.replace('_', '-')} beside --reference, got no --reference")
    of_atlas = {"annotation": options.annotation, "spacing_um": options.spacing_um}
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
