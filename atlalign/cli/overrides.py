"""Hydra overrides as users type them: values that Hydra's grammar rejects, such as many paths, are quoted."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from atlalign.console import say
from atlalign.errors import InputError
from atlalign.hydra_messages import conf_folder

_OVERRIDE = re.compile(r"(?P<key>[+~]{0,2}[\w@./:-]+)=(?P<value>.+)", re.DOTALL)
# Hydra's own syntax: quotes, lists, mappings, interpolations and functions. A malformed one is not a path.
_GRAMMAR = re.compile(r"""["'\[{$]|\w+\(""")
_MULTIRUN = ("-m", "--multirun")
_RENAMED = {"checkpoint": "model.path"}
"""Renamed keys of earlier versions and their current names."""
_AXES = re.compile(r"\[?(\s*[A-Za-z]{2}\s*(?:,\s*[A-Za-z]{2}\s*){2})\]?")
"""Three directions, as text or as a list: one value, also in a multirun."""


def quoted_overrides(arguments: Sequence[str]) -> list[str]:
    """Return a program's arguments with quotes where Hydra needs them, and `~` replaced by the home folder.

    `data.path=/x/My data (1)/made.h5` becomes `data.path="/x/My data (1)/made.h5"`. Valid overrides stay unchanged.
    In a multirun, each value of a list such as `a.h5,b (1).h5` is quoted separately; otherwise a path may hold commas.
    The axes of an atlas, such as `atlas.axes=LR,PA,VD`, are always one value.

    Raises:
        InputError: If an override has a key of an earlier version, or is invalid in a way that quotes cannot fix.
    """
    multirun = any(flag in arguments for flag in _MULTIRUN)
    return [_quoted(argument, multirun=multirun) for argument in arguments]


def check_repeated(arguments: Sequence[str]) -> None:
    """Report keys that are given more than once: Hydra silently uses the last value.

    Raises:
        InputError: If a repeated key is a group, because only one of its options can apply.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        match = None if argument.startswith(("-", "~")) else _OVERRIDE.fullmatch(argument)
        key = match["key"].lstrip("+") if match else ""
        if key in given and (conf_folder() / key).is_dir():
            raise InputError(
                f"{key}: expected one option of this group, got {given[key]} and {argument}: keep one of them"
            )
        if key in given:
            say(f"{key}: given more than once: {argument} replaces {given[key]}", error=True)
        if key:
            given[key] = argument


def _quoted(argument: str, *, multirun: bool) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if argument.startswith("-") or not match:
        return argument
    key, value = match["key"], match["value"]
    if key.lstrip("+~") in _RENAMED:
        raise InputError(f"{key}: this key was renamed: use {_RENAMED[key.lstrip('+~')]}={value}")
    if key.endswith(".axes") and (axes := _AXES.fullmatch(value)):
        return f'{key}="{axes[1]}"'
    parsed = _parsed(argument)
    if parsed is not None and not _is_path_with_commas(value, parsed, multirun=multirun):
        if parsed.is_sweep_override() and not multirun:
            raise InputError(
                f"{key}: expected one value, got {value}: write a list as '{key}=[{value}]', or add -m to run once for "
                "each value"
            )
        return argument
    if _GRAMMAR.match(value):
        raise InputError(
            f"{key}: expected a value that Hydra can parse, got {value}: check its brackets and quotes; quote text "
            f"with special characters twice, for the shell and for Hydra: '{key}=\"…\"'"
        )
    values = value.split(",") if multirun else [value]
    return f"{key}={','.join(_values(key, values))}"


def _values(key: str, values: Sequence[str]) -> Iterator[str]:
    from hydra.core.override_parser.types import Quote, QuotedString

    for value in values:
        home = value.startswith("~")
        text = str(Path(value).expanduser()) if home else value
        commas = "," in text
        yield (
            text
            if not commas and _parsed(f"{key}={text}")
            else QuotedString(text, Quote.double).with_quotes()
        )


def _parsed(argument: str) -> Any:
    """Return the parsed override; None if Hydra cannot parse it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _is_path_with_commas(value: str, parsed: Any, *, multirun: bool) -> bool:
    sweep = parsed.is_sweep_override() and not multirun
    return sweep and "/" in value and not _GRAMMAR.match(value)
