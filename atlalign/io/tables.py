"""Tables that users bring, as spreadsheets and programs write them."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, NamedTuple

from atlalign.console import printable
from atlalign.errors import InputError
from atlalign.io.files import read_bytes

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SEPARATORS = ",;\t"
_DECIMAL_COMMA = re.compile(r"^([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)$")


class Table(NamedTuple):
    """A table of texts, without spaces around them.

    Attributes:
        path: Its file.
        header: The names of the columns as they are written; each once, whatever its case, if it is not empty.
        rows: Their cells, one for each column.
        lines: The number that a spreadsheet shows beside each row.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    @property
    def names(self) -> list[str]:
        """The names of the columns in lower case, the Greek letter μ as the sign µ of units."""
        return [name.lower().replace("\u03bc", "\u00b5") for name in self.header]

    def records(self, columns: Sequence[str], *, hint: str = "") -> Iterator[tuple[int, dict[str, str]]]:
        """Return each row's line and its cells by the names of their columns in lower case.

        Args:
            columns: Those that there must be.
            hint: What to do where one is missing.

        Raises:
            InputError: If one is missing.
        """
        names = self.names
        if not set(columns) <= set(names):
            found = cut(", ".join(f"'{name}'" for name in self.header), 80) or "none"
            raise InputError(
                f"{self.path}: expected the columns {', '.join(columns)}, separated by commas, semicolons or tabs, "
                f"found {found}{hint}"
            )
        return zip(self.lines, (dict(zip(names, row, strict=True)) for row in self.rows), strict=True)


def cut(text: str, length: int) -> str:
    """Return a text, or where it is longer its first characters and an ellipsis."""
    return text if len(text) <= length else f"{text[:length]}…"


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 where its first bytes say so, as Excel's "Unicode text" does.

    Raises:
        InputError: If it cannot be read, or is written in another way.
    """
    content = read_bytes(path)
    try:
        return content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        kind = path.suffix[1:].upper()
        raise InputError(f"{path}: cannot be read as UTF-8 text: save it as {kind} UTF-8") from error


def read_table(path: Path) -> Table:
    """Return a table whose cells are separated by commas, semicolons or tabs, by what makes most columns of its header.

    Where commas do not, decimal commas become points. Blank lines and empty rows at the end are left out.

    Raises:
        InputError: If the file cannot be read, names a column twice, or has a row of another length.
    """
    text = read_text(path)
    try:
        separator = max(_SEPARATORS, key=lambda mark: len(next(_cells(text.lstrip(), mark), [])))
        found = [(line, row) for line, row in enumerate(_cells(text, separator), 1) if row not in ([], [""])]
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from error
    while found and not any(found[-1][1]):
        found.pop()
    (_, header), *found = found or [(0, [])]
    named = [name.lower() for name in header if name]
    if len(set(named)) < len(named):
        raise InputError(f"{path}: expected each column once, found {', '.join(header)}")
    width = len(header)
    for line, row in found:
        if len(row) < width or any(row[width:]):
            raise InputError(f"{path}, line {line}: expected {width} cells, found {len(row)}")
    rows = [row[:width] for _, row in found]
    if separator != ",":
        rows = [[_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in row] for row in rows]
    return Table(path, header, rows, [line for line, _ in found])


def number(value: Any, where: str) -> Decimal:
    """Return a number that an h5 file can hold the whole part of, with all of its digits.

    Raises:
        InputError: If it is none, or not finite; the message begins with `where`.
    """
    try:
        found = Decimal(str(value))
    except InvalidOperation:
        found = Decimal("nan")
    if not found.is_finite():
        raise InputError(f"{where}: expected a number, found {shown(value)}")
    if not -(2**63) <= found < 2**63:
        raise InputError(f"{where}: expected a number of at most 64 bits, found {shown(value)}")
    return found


def whole_number(value: Any, where: str) -> int:
    """Return a whole number, which spreadsheets may write as 6720.0.

    Raises:
        InputError: If it is none; the message begins with `where`.
    """
    found = number(value, where)
    if found % 1:
        raise InputError(f"{where}: expected a whole number, found {shown(value)}")
    return int(found)


def shown(value: Any) -> str:
    """Return a value as messages show it: cut, and without characters that do not print."""
    if value in (None, ""):
        return "none"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"'{printable(cut(str(value), 40))}'"


def _cells(text: str, separator: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    return ([cell.strip() for cell in cells] for cells in reader)
