"""Reads the files of `conf/` with their comments: every key, its default and its meaning."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

_NOT_KEYS = ("defaults", "hydra")


@dataclass(frozen=True)
class Key:
    """A key of a configuration file.

    Attributes:
        name: With the names of the mappings that hold it, as on the command line.
        default: As the file writes it; empty for a mapping.
        meaning: The comment above it, or else what the docstring of the built object says.
    """

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class ConfFile:
    """A configuration file.

    Attributes:
        purpose: The comment at its top.
        target: What it builds; empty if nothing.
        begins: The files whose values it begins with.
        keys: Its keys.
        meanings: Those of its keys, and of the keys that it begins with.
    """

    purpose: str
    target: str
    begins: tuple[str, ...]
    keys: tuple[Key, ...]
    meanings: dict[str, str]


@cache
def read(path: Path) -> ConfFile:
    """Return what a file says."""
    text = path.read_text(encoding="utf-8")
    root, lines, values = yaml.compose(text), text.splitlines(), yaml.safe_load(text) or {}
    top = _comment_from_top(lines)
    begins = tuple(_begins(values.get("defaults", ())))
    bases = (path.parent / f"{name}.yaml" for name in begins)
    known: dict[str, str] = {}
    for base in filter(Path.is_file, bases):
        known |= read(base).meanings
    keys = tuple(_keys(root, lines, len(top), known)) if root is not None else ()
    return ConfFile(
        " ".join(line for line in top if not line.startswith("@package")),
        values.get("_target_", ""),
        begins,
        keys,
        known | {key.name: key.meaning for key in keys},
    )


def _comment_from_top(lines: list[str]) -> list[str]:
    found = []
    for line in lines:
        if not line.startswith("#"):
            break
        found.append(line.lstrip("# "))
    return found


def _begins(defaults: Any) -> Iterator[str]:
    for entry in defaults:
        if isinstance(entry, dict):
            yield from (
                f"{key.removeprefix('override ').lstrip('/')}={value}" for key, value in entry.items()
            )
        elif entry != "_self_":
            yield entry.partition("@")[0]


def _keys(
    node: yaml.MappingNode,
    lines: list[str],
    first_line: int,
    known: dict[str, str],
    prefix: str = "",
    parent: str = "",
) -> Iterator[Key]:
    """Yield the keys of a mapping and of those within it.

    A key without a comment means what the built object's docstring says, or else what the file says that this one
    begins with, or else the comment that it shares with the key above or the mapping around it.
    """
    documented, shared = _documented(node), ""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if key.value.startswith("_") or name in _NOT_KEYS:
            continue
        comment = _comment_above(lines, key.start_mark.line, first_line)
        meaning = comment or documented.get(key.value) or known.get(name) or shared or parent
        shared = comment or shared
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            if comment:
                yield Key(name, "", comment)
            yield from _keys(value, lines, first_line, known, f"{name}.", comment)
        else:
            yield Key(name, _written(value, lines), meaning)


def _comment_above(lines: list[str], line: int, first_line: int) -> str:
    """Return the comment directly above a line, unless it is the file's own."""
    indent = re.match(r" *", lines[line])[0]  # type: ignore[index]
    found: list[str] = []
    for above in reversed(lines[first_line:line]):
        if not above.startswith(f"{indent}#"):
            break
        found.insert(0, above.lstrip("# "))
    return " ".join(found)


def _written(node: yaml.Node, lines: list[str]) -> str:
    """Return a value as the file writes it."""
    start, end = node.start_mark, node.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column] or "null"
    return " ".join(" ".join(lines[start.line : end.line])[start.column :].split())


def _documented(node: yaml.MappingNode) -> dict[str, str]:
    """Return what the docstring of the built object says of its arguments, in brief for other packages."""
    from reference import parameters

    targets = [value.value for key, value in node.value if key.value == "_target_"]
    if not targets:
        return {}
    found = parameters(get_object(targets[0]))
    return (
        found if targets[0].startswith("atlalign.") else {name: _brief(text) for name, text in found.items()}
    )


def _brief(text: str) -> str:
    """Return the first sentence of another package's description."""
    return (
        re.split(r"(?<=[a-z\])`])(?<!\be\.g)(?<!\bi\.e)\.(?:\s|$)|\n\s*\n|\s*Example:|\s*\.\. ", text)[
            0
        ].replace("``", "`")
        + "."
    )
