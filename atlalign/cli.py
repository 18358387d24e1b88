"""The command line `atlalign`: one subcommand a job; heavy imports happen in the job that needs them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from atlalign import __version__
from atlalign.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake gives its sentence on stderr and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlalign", description="Register brain sections to an atlas. Training is `python train.py`."
    )
    parser.add_argument("--version", action="version", version=f"atlalign {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_validate(commands)
    _add_import_keras(commands)
    _add_merge(commands)
    _add_export(commands)
    _add_runs(commands)
    return parser


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
        default=13200.0,
        help="positions lie in [0, EXTENT_UM]; 13200 for the Allen atlas (default)",
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
    from atlalign.keras_import import ORIGIN, import_keras
    from atlalign.models import save_model

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
        "--sort", metavar="METRIC", help="the metric to sort by (default: the runs' objective)"
    )
    command.add_argument("--descending", action="store_true", help="the largest first")
    command.add_argument(
        "--out", metavar="PATH", type=Path, help="files to write, without ending (FOLDER/runs)"
    )
    command.set_defaults(run=_runs)


def _runs(options: argparse.Namespace) -> None:
    from rich.console import Console

    from atlalign.runs import compare, find_runs, reasons, rich_table, write_table

    table = compare(find_runs(options.folders), options.sort, descending=options.descending)
    paths = write_table(table, options.out or options.folders[0] / "runs")
    # A file or a pipe is as wide as the table.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False)
    console.print(rich_table(table))
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
        "--out", metavar="FILE", required=True, help="FILE.onnx (needs the extra `export`), or FILE.pt2 for torch.export"
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
    from atlalign.export import export_model
    from atlalign.models import load_model, read_origin

    network = load_model(options.model)
    shape = options.image_shape or read_origin(options.model).image_shape
    if shape is None:
        raise InputError(f"{options.model} does not tell the size of its images: give --image-shape HEIGHT WIDTH")
    height, width = shape
    differences = export_model(network, options.out, (height, width))
    print(
        f"{options.out}: {type(network).__name__} for images of {height}×{width} px; it differs by at most "
        f"{differences.intensity:.1e} in intensity and {differences.px:.1e} px"
    )
