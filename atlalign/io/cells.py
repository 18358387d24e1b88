"""The cells of tables: numbers as people write them, and text that is safe in a spreadsheet and a terminal."""

import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from atlalign.console import printable
from atlalign.errors import InputError

_MISSING = frozenset(("", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"))
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

# A spreadsheet may read these characters, including their full-width forms, as the start of a formula.
_FORMULA = re.compile(r"'*(\s*[=+\-@＝＋－＠]|[\t\r])")
_SIGNED_NUMBER = re.compile(rf"[+-](inf|nan)|{NUMBER.pattern}", re.ASCII)
# Control characters except tab and line feed, and bytes of file names that are not valid text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_SUSPECT = re.compile(
    rf"^(?!(?:{_SIGNED_NUMBER.pattern})$)(?:{_FORMULA.pattern})|{_CONTROL.pattern}", re.MULTILINE
)
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})|\\u(d[89a-f][0-9a-f]{2})")


def cut(text: str, length: int) -> str:
    """Return a text; one longer than `length` is cut short and ends in an ellipsis."""
    return text if len(text) <= length else f"{text[:length]}…"


def escape_controls(text: str) -> str:
    r"""Return a text with control characters escaped as `\x1b`, so that a terminal ignores them."""
    return _CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def as_meant(cell: str) -> str:
    """Return the original text of a cell that `cells_of` has made safe."""
    if cell[:1] != "'" or not (_FORMULA.match(cell[1:]) or _ESCAPED.search(cell)):
        return cell
    return _ESCAPED.sub(lambda found: chr(int(found[1] or found[2], 16)), cell[1:])


def is_missing(cell: str) -> bool:
    """Return whether a cell is a missing value: empty, NaN, NA, null or none."""
    return cell.lower() in _MISSING


def number(value: Any, where: str) -> Decimal:
    """Return the number in a cell with all of its digits; its integer part must fit into 64 bits.

    Raises:
        InputError: If it is not a finite number, or too large; the message begins with `where`.
    """
    text = str(value)
    try:
        found = Decimal("nan" if "_" in text else text)
    except InvalidOperation:
        found = Decimal("nan")
    if not found.is_finite():
        has_comma = isinstance(value, str) and "," in value
        hint = ": use a decimal point and no thousands separators" if has_comma else ""
        raise InputError(f"{where}: expected a number, found {shown(value)}{hint}")
    if not -(2**63) <= found < 2**63:
        raise InputError(f"{where}: expected a number of at most 64 bits, found {shown(value)}")
    return found


def whole_number(value: Any, where: str) -> int:
    """Return the whole number in a cell; spreadsheets may write it as 6720.0.

    Raises:
        InputError: If it is not a whole number; the message begins with `where`.
    """
    found = number(value, where)
    if found % 1:
        raise InputError(f"{where}: expected a whole number, found {shown(value)}")
    return int(found)


def shown(value: Any) -> str:
    """Return a value in the form that error messages use."""
    if value in (None, ""):
        return "none"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"'{printable(cut(str(value), 40))}'"


def cells_of(row: Iterable[Any]) -> list[str]:
    """Return values as text for a row of a table, safe in a spreadsheet."""
    cells = [value if isinstance(value, str) else _text(value) for value in row]
    # Unsafe text is rare, and searching a whole row at once takes a tenth of the time of searching each cell.
    return list(map(_harmless, cells)) if _SUSPECT.search("\n".join(cells)) else cells


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.6g}"
    return "" if value is None else str(value)


def _harmless(text: str) -> str:
    if _SIGNED_NUMBER.fullmatch(text) or not (_FORMULA.match(text) or _CONTROL.search(text)):
        return text
    return f"'{escape_controls(text)}"
