"""Options declared once in a dataclass, for Python, the command line and lists of sections."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Interface = Literal["python", "flags", "keys"]
"""How a user writes options: arguments in Python, flags of a command, or Hydra's keys."""

_interface: Interface = "python"
_KEYS = {
    "atlas": "path",
    "annotation": "annotation_path",
}  # of `conf/atlas`, where they differ from the arguments


@dataclass(frozen=True)
class Option:
    """The declaration of an option beyond its type and default, as in `turn: Annotated[float, Option("…")] = 0.0`.

    Attributes:
        help: The text in --help.
        metavar: The placeholder for the value in --help.
        is_column: Whether a list may set the option for each section.
        kind: A function that reads the value from text; needed only if the type does not determine one.
    """

    help: str
    metavar: str | None = None
    is_column: bool = True
    kind: Callable[[str], Any] | None = None


@dataclass(frozen=True)
class Declaration:
    """One option of a command.

    Attributes:
        name: The Python argument, the key in a record, and the column of a list.
        kind: bool, int, float or str, or another function that reads the value.
        default: The default value.
        choices: All permitted values; empty if any value is permitted.
        option: Its help and placeholder, and whether it is a column.
    """

    name: str
    kind: Callable[[str], Any]
    default: Any
    choices: tuple[str, ...]
    option: Option

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return flag(self.name)


def number_or_name(text: str) -> int | str:
    """Return the whole number that the text denotes, or the text itself if it denotes none."""
    return int(text) if text.strip().removeprefix("-").isdecimal() else text


def flag(name: str) -> str:
    """Return the flag of the option with this Python name."""
    return f"--{name.replace('_', '-')}"


@contextmanager
def interface(name: Interface) -> Iterator[None]:
    """Within the context, write options in messages as users of this interface write them."""
    global _interface  # not a context variable, because threads read it too
    former, _interface = _interface, name
    try:
        yield
    finally:
        _interface = former


def is_interface(name: Interface) -> bool:
    """Return whether messages currently write options as users of this interface write them."""
    return _interface == name


def option(name: str) -> str:
    """Return an option of a command as the user writes it: `position_um` in Python, otherwise `--position-um`."""
    return name if _interface == "python" else flag(name)


def atlas_option(name: str, value: str = "") -> str:
    """Return an option of the atlas as the user writes it: `axes`, `--axes` or `atlas.axes`, with a value if given."""
    if _interface == "flags":
        return f"{flag(name)} {value}".rstrip()
    written = f"atlas.{_KEYS.get(name, name)}" if _interface == "keys" else name
    if not value:
        return written
    return f"{written}={value}" if _interface == "keys" else f"{written}='{value}'"


def declarations(options: type) -> list[Declaration]:
    """Return the options that a dataclass declares, in order; other fields are ignored."""
    hints = get_type_hints(options, include_extras=True)
    return [
        _declaration(entry.name, entry.default, *get_args(hints[entry.name])[:2])
        for entry in fields(options)
        if get_origin(hints[entry.name]) is Annotated
    ]


def _declaration(name: str, default: Any, annotation: Any, option: Option) -> Declaration:
    if option.kind is not None:
        return Declaration(name, option.kind, default, (), option)
    union = get_origin(annotation) in (Union, UnionType)
    (part,) = {*(get_args(annotation) if union else (annotation,))} - {NoneType}
    if get_origin(part) is Literal:
        return Declaration(name, str, default, get_args(part), option)
    return Declaration(name, part, default, (), option)
