"""Write a network for other programs."""

import argparse

from atlalign.console import say
from atlalign.errors import InputError


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `export`."""
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
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
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
    say(
        f"{options.out}: {type(network).__name__} for images of {height}×{width} px; it differs by at most "
        f"{differences.intensity:.1e} in intensity and {differences.px:.1e} px"
    )
