"""The calls of `atlalign register` that made a folder of results, stored beside the results."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from atlalign.errors import InputError
from atlalign.io.files import lock, storable, write_json

_PATHS = ("atlas", "annotation", "ontology", "model", "reference", "reference_labels")


def _path(out: Path) -> Path:
    from atlalign.registration.batch import CALLS  # slow to import

    return out / CALLS


class Call(NamedTuple):
    """A call of `atlalign register`.

    Attributes:
        folder: The working directory.
        arguments: The arguments after `register`.
    """

    folder: str
    arguments: list[str]


def record_call(out: Path, arguments: Sequence[str]) -> None:
    """Append a call, made in the current directory, to the calls of a folder of results.

    Raises:
        InputError: If the file cannot be written.
    """
    call = Call(storable(str(Path.cwd())), [storable(argument) for argument in arguments])
    with lock(_path(out), wait=True):  # so that calls that end at the same time are all stored
        calls = [*(former for former in read_calls(out) if former != call), call]
        write_json(_path(out), [former._asdict() for former in calls])


def read_calls(out: Path) -> list[Call]:
    """Return the calls that made a folder of results; none if their file is missing or damaged."""
    try:
        found = json.loads(_path(out).read_text(encoding="utf-8"))
        return [Call(str(call["folder"]), [str(word) for word in call["arguments"]]) for call in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def with_absolute_paths(options: Namespace, folder: Path) -> Namespace:
    """Return the options with absolute instead of relative paths, so that they work from any directory.

    Args:
        options: The options from the command line.
        folder: The directory that relative paths start from.
    """

    def absolute(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(name, part) for part in value]
        if isinstance(value, Path):
            return folder / value
        is_path = name in _PATHS and isinstance(value, str) and (folder / value).exists()
        return str(folder / value) if is_path else value

    return Namespace(**{name: absolute(name, value) for name, value in vars(options).items()})


def no_calls(out: Path) -> InputError:
    """Return the error for a folder whose sections cannot be registered again."""
    return InputError(
        f"{out}: expected {_path(out).name}, the record of how `atlalign register` made the results: "
        "run `atlalign register` again with the same options and --out"
    )
