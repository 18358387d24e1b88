"""Output on the terminal, without the control characters that names of users' files may contain."""

import logging
import sys


def say(text: str, *, error: bool = False) -> None:
    """Print a text through `printable`, in characters that the terminal or file can represent.

    Args:
        text: One or more lines.
        error: Print to stderr.
    """
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream)


def printable(text: str) -> str:
    """Return a text with escapes for unprintable characters other than line breaks, which could move the cursor."""
    return "".join(
        character if character.isprintable() or character == "\n" else _escape(character)
        for character in text
    )


def make_warnings_printable() -> None:
    """Print warnings that have no handler of their own through `printable`."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Printable("%(message)s"))


class _Printable(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
