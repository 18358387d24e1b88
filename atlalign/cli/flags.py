"""Command-line flags, generated from the dataclass that declares a command's options."""

import argparse
from pathlib import Path
from typing import Any

from atlalign.declarations import Declaration, declarations


def add_flags(group: argparse._ActionsContainer, options: type) -> None:
    """Add a flag for each option that a dataclass declares."""
    for declared in declarations(options):
        group.add_argument(declared.flag, help=declared.option.help, **_arguments(declared))


def flag_values(options: type, namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the values of a dataclass's flags by field name."""
    return {declared.name: getattr(namespace, declared.name) for declared in declarations(options)}


def add_image_shape(command: argparse._ActionsContainer) -> None:
    """Add the option for the size of the network's input."""
    command.add_argument(
        "--image-shape",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the network's input in pixels (default: the size used in training)",
    )


def add_images(command: argparse._ActionsContainer) -> None:
    """Add the option for the folder of the images named in lists."""
    command.add_argument(
        "--images",
        metavar="FOLDER",
        type=Path,
        help="folder of the images named in lists (default: the folder of each list)",
    )


def given_values(options: type, namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the values that the user has set; all flags of the dataclass must default to None."""
    return {name: value for name, value in flag_values(options, namespace).items() if value is not None}


def _arguments(declared: Declaration) -> dict[str, Any]:
    """Return the arguments of `add_argument` that depend on the option's type."""
    if declared.kind is bool:
        return {"action": "store_true"}
    if declared.choices:
        return {"choices": declared.choices, "default": declared.default}
    return {"type": declared.kind, "default": declared.default, "metavar": declared.option.metavar}
