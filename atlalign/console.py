"""Output on the terminal or in a log: progress, and text without control characters from the names of users' files."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from datetime import timedelta
from typing import TypeVar

_SECONDS_BETWEEN_LINES = 60.0

T = TypeVar("T")


def say(text: str, *, error: bool = False) -> None:
    """Print a text with escapes for unprintable characters and for those that the terminal or file cannot represent.

    Args:
        text: One or more lines.
        error: Print to stderr.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


def shows_bars() -> bool:
    """Return whether the output is a terminal or a notebook, where a line can be redrawn."""
    from rich import get_console

    console = get_console()
    return console.is_terminal or console.is_jupyter


def track(
    items: Iterable[T], description: str, *, total: int | None = None, completed: int = 0
) -> Iterator[T]:
    """Yield the items and show the progress: a bar on a terminal, a line per minute in a file.

    Args:
        items: The items to work on, or the results of the work as they appear.
        description: The work, such as "registering".
        total: The number of items; None for the length of `items`.
        completed: The number of items that were done before.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if shows_bars():
        from rich import progress

        yield from progress.track(items, description=description, total=total, completed=completed)
        return
    lines = ProgressLines(description, total)
    for item in items:
        yield item
        completed += 1
        lines.show(completed, is_end=completed == total)


class ProgressLines:
    """Prints the progress of one piece of work to a log: a line per minute, and one at the end.

    Args:
        description: The work.
        total: The number of parts of the work; None if unknown.
        unit: The noun for a part; may be empty.
    """

    def __init__(self, description: str, total: int | None, unit: str = "") -> None:
        self._description = description
        self._of = f"{'' if total is None else f' of {total}'}{f' {unit}' * bool(unit)}"
        self._started = self._shown = time.monotonic()

    def show(self, done: int, note: Callable[[], str] = str, *, is_end: bool = False) -> None:
        """Print a line at the end, or if the last line is a minute old.

        Args:
            done: The number of parts that are done.
            note: Returns further information; called only for a line that is printed.
            is_end: Whether the work has ended.
        """
        now = time.monotonic()
        if is_end or now - self._shown >= _SECONDS_BETWEEN_LINES:
            self._shown = now
            passed = timedelta(seconds=round(now - self._started))
            say(", ".join(filter(None, (f"{self._description}: {done}{self._of}", str(passed), note()))))


def first_names(names: Sequence[str], *, at_most: int = 10) -> str:
    """Return the first names, separated by commas, and the number of the remaining ones."""
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 image" and "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Return a text with escapes for unprintable characters other than line breaks, which could move the cursor."""
    return "".join(
        character if character.isprintable() or character == "\n" else _escape(character)
        for character in text
    )


def make_warnings_printable() -> None:
    """Escape unprintable characters in warnings that have no handler of their own."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable("%(message)s"))


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
