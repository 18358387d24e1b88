"""The one exception that a user may cause: it is shown without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Something that the user gave is wrong; the message says what was expected, what came, where."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a `name` that is none of `known`, with near matches and the whole list."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return InputError(f"unknown {kind} '{name}'.{hint} There are: {', '.join(names)}")
