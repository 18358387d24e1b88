"""Export a network for other programs."""

import argparse

from atlalign.cli.flags import add_image_shape
from atlalign.console import say
from atlalign.errors import InputError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `export`."""
    command = commands.add_parser(
        "export",
        help="export a network for other programs",
        description="Export a network as a graph that runs without this package, and compare the graph with the "
        "network on random images.",
    )
    command.add_argument("model", metavar="MODEL", help="a model file, model folder or checkpoint")
    command.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        help="the file to write: .onnx (needs the extra `export`) or .pt2 (torch.export)",
    )
    add_image_shape(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.models import load_model, read_origin
    from atlalign.models.export import export_model

    network = load_model(options.model)
    shape = options.image_shape or read_origin(options.model).image_shape
    if shape is None:
        raise InputError(
            f"{options.model}: the model does not record its image size: give --image-shape HEIGHT WIDTH"
        )
    height, width = shape
    differences = export_model(network, options.out, (height, width))
    say(
        f"{options.out}: {type(network).__name__} for images of {height}×{width} px; its output differs by at most "
        f"{differences.intensity:.1e} in intensity and {differences.px:.1e} px"
    )
