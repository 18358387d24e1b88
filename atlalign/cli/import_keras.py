"""Convert a network saved by the Keras package."""

import argparse

from atlalign.console import say


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand `import-keras`."""
    command = commands.add_parser(
        "import-keras",
        help="convert a network saved by the Keras package",
        description="Convert a network saved by the Keras package's save_model. TensorFlow is not needed.",
    )
    command.add_argument("path", metavar="PATH", help="an .h5 file, or a folder with a .json and an .h5 file")
    command.add_argument("--out", metavar="PATH", required=True, help="the model file to write")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from atlalign.models import save_model
    from atlalign.models.keras_import import ORIGIN, import_keras

    network = import_keras(options.path)
    save_model(network, options.out, origin=ORIGIN)
    say(f"{options.out}: {type(network).__name__}")
