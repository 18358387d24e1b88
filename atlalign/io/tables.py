"""CSV tables: read in the dialects of spreadsheets and programs, written so that a spreadsheet runs no formula."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.cells import NUMBER, as_meant, cells_of, cut, escape_controls, is_missing, number
from atlalign.io.files import written_whole

_SEPARATORS = ",;\t"
_PART_ROWS = 20_000
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_COMMENT = "#"
_SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?\s*', re.IGNORECASE)  # Excel's first line
_DECIMAL_COMMA = re.compile(r"([+-]?\d*),(\d+(?:[eE][+-]?\d+)?)", re.ASCII)
_POINT_GROUPS = re.compile(r"[+-]?\d{1,3}(\.\d{3})+", re.ASCII)
_COMMA_GROUPS = re.compile(r"[+-]?\d{1,3}(,\d{3})+", re.ASCII)


class Table(NamedTuple):
    """A table of text cells, stripped of surrounding spaces.

    Attributes:
        path: Its file.
        header: The column names as written.
        rows: Their cells, one for each column.
        lines: The row number that a spreadsheet shows for each row.
        unclear: Columns, as in `names`, whose commas or points may be decimal marks or thousands separators.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    unclear: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        """The column names in lower case, with the Greek letter μ replaced by the micro sign µ."""
        return [_name(text) for text in self.header]

    def records(self, columns: Sequence[str], *, hint: str = "") -> Iterator[tuple[int, dict[str, str]]]:
        """Return each row's line, and its cells by lower-case column name.

        Args:
            columns: Names of the required columns.
            hint: Advice for the error message if one is missing.

        Raises:
            InputError: If one is missing, occurs twice or holds unclear numbers.
        """
        self._check(columns, hint)
        names = self.names
        return zip(self.lines, (dict(zip(names, row, strict=True)) for row in self.rows), strict=True)

    def column(self, name: str, *, hint: str = "") -> list[str]:
        """Return the cells of one column.

        Raises:
            InputError: As in `records`.
        """
        self._check([name], hint)
        place = self.names.index(name)
        return [row[place] for row in self.rows]

    def only(self, places: Iterable[int]) -> "Table":
        """Return a table with only the rows at these places."""
        chosen = list(places)
        return self._replace(
            rows=[self.rows[place] for place in chosen], lines=[self.lines[place] for place in chosen]
        )

    def numbers(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """Return columns (N, k) of numbers; NaN for an empty cell and for NaN, NA, null and none.

        Raises:
            InputError: As in `records` and `number`.
        """
        self._check(columns)
        values = [
            [self._number(line, name, cell) for line, cell in zip(self.lines, self.column(name), strict=True)]
            for name in columns
        ]
        return np.array(values, np.float64).reshape(len(columns), len(self.rows)).T

    def _number(self, line: int, name: str, cell: str) -> float:
        if NUMBER.fullmatch(cell) and len(cell) < 19:  # most are short, and none of these is out of range
            value = float(cell)
            if abs(value) < 2**63:
                return value
        return float("nan") if is_missing(cell) else float(number(cell, f"{self.path}, line {line}, {name}"))

    def _check(self, columns: Sequence[str], hint: str = "") -> None:
        counts = Counter(self.names)
        if not set(columns) <= counts.keys():
            found = cut(", ".join(f"'{name}'" for name in self.header), 80) or "none"
            raise InputError(
                f"{self.path}: expected the columns {', '.join(columns)}, separated by commas, semicolons or tabs, "
                f"found {escape_controls(found)}{hint}"
            )
        for name in columns:
            if counts[name] > 1:
                raise InputError(
                    f"{self.path}: expected each column once, found {counts[name]} named '{name}'"
                )
            if name in self.unclear:
                raise InputError(
                    f"{self.path}, {name}: expected one kind of decimal mark, found numbers whose comma or point could "
                    "also be a thousands separator: write numbers without thousands separators"
                )


# --- reading ----------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        InputError: If it cannot be read, or has another encoding.
    """
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a text file without changing its line endings."""
    try:
        with path.open("rb") as content:
            encoding = "utf-16" if content.read(2) in _UTF_16 else "utf-8-sig"
        with path.open(encoding=encoding, newline="") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeError as error:
        kind = path.suffix[1:].upper()
        raise InputError(f"{path}: cannot be read as UTF-8 text: save it as {kind} UTF-8") from error


def read_table(path: Path) -> Table:
    """Return a whole table; see `read_parts` for the accepted dialects.

    Raises:
        InputError: As in `read_parts`, or if the table names a column twice.
    """
    parts = list(read_parts(path))
    table = parts[0]._replace(
        rows=[row for part in parts for row in part.rows],
        lines=[line for part in parts for line in part.lines],
        unclear=frozenset().union(*(part.unclear for part in parts)),
    )
    named = [name for name in table.names if name]
    if len(set(named)) < len(named):
        raise InputError(
            f"{path}: expected each column once, found {', '.join(table.header)}: rename or remove the repeated columns"
        )
    return table


def read_parts(path: Path, *, n_rows: int = _PART_ROWS) -> Iterator[Table]:
    """Yield a table of any length in consecutive parts that fit into memory; a table without rows yields one part.

    Cells are separated by the mark in Excel's line `sep=`; without that line, by the comma, semicolon or tab that
    yields the most columns in the header. Blank lines, empty rows at the end and comments are skipped. A comment begins
    with #, and stands above the header or has fewer cells than the header. If semicolons or tabs separate cells,
    decimal commas become points. The escapes of `write_table` are undone.

    Raises:
        InputError: If the file cannot be read, or a row has another length than the header.
    """
    with _opened(path) as file:
        try:
            yield from _parts(path, file, n_rows)
        except csv.Error as error:
            raise InputError(f"{path}: cannot be read as CSV: {error}") from error


def _parts(path: Path, file: TextIO, n_rows: int) -> Iterator[Table]:
    n_above, first, separator = _find_header(file)
    reader = csv.reader(chain([first], file), delimiter=separator, skipinitialspace=True, strict=True)
    header = [as_meant(cell.strip()) for cell in next(reader, [])]
    rows = _rows(reader, path, len(header), n_above + 2)
    part = list(islice(rows, n_rows))
    while True:
        cells, unclear = _with_points([row for _, row in part], header, separator)
        yield Table(path, header, cells, [line for line, _ in part], unclear)
        part = list(islice(rows, n_rows))
        if not part:
            return


def _find_header(file: TextIO) -> tuple[int, str, str]:
    """Return the number of rows above the header, its first line, and the separator of cells."""
    separator, n_above = "", 0
    for line in file:
        said = _SEPARATOR_LINE.fullmatch(line)
        if said:
            separator = said[1]  # a spreadsheet does not show it as a row
        elif line.strip() and not _is_comment_above(line):
            return n_above, line, separator or _separator_of(line)
        else:
            n_above += 1
    return n_above, "", separator or _SEPARATORS[0]


def _is_comment_above(line: str) -> bool:
    # A cell "#" alone may be the name of a column.
    text = line.strip()
    return text.startswith(_COMMENT) and text[1:2] not in ("", *_SEPARATORS)


def _separator_of(line: str) -> str:
    def n_cells(mark: str) -> int:
        return len(next(csv.reader([line.strip(" \r\n")], delimiter=mark, skipinitialspace=True), []))

    return max(_SEPARATORS, key=n_cells)


def _rows(
    reader: Iterable[list[str]], path: Path, width: int, first_line: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield rows of `width` cells and their lines; skip comments, blank lines and empty rows at the end."""
    empty: list[tuple[int, list[str]]] = []
    for line, cells in enumerate(reader, first_line):
        row = [cell.strip() for cell in cells]
        if not any(row):
            empty += [(line, row)] if len(row) > 1 else []
            continue
        if _is_comment(row, width):
            continue
        for known in (*empty, (line, row)):
            yield known[0], _fitted(known[1], width, f"{path}, line {known[0]}")
        empty.clear()


def _is_comment(row: list[str], width: int) -> bool:
    if not row[0].startswith(_COMMENT):
        return False
    return len([cell for cell in row if cell]) < width and not any("\n" in cell for cell in row)


def _fitted(row: list[str], width: int, where: str) -> list[str]:
    if len(row) < width or any(row[width:]):
        raise InputError(f"{where}: expected {width} cells, found {len(row)}")
    cells = row[:width]
    return list(map(as_meant, cells)) if "'" in "".join(cells) else cells


def _with_points(
    rows: list[list[str]], header: Sequence[str], separator: str
) -> tuple[list[list[str]], frozenset[str]]:
    """Return rows with decimal points for commas, and the names of columns in which commas are ambiguous."""
    unclear = set()
    for place, name in enumerate(header if separator != "," else ()):
        cells = [row[place] for row in rows]
        with_comma = [cell for cell in cells if "," in cell and _DECIMAL_COMMA.fullmatch(cell)]
        if not with_comma:
            continue
        has_points = any(_POINT_GROUPS.fullmatch(cell) for cell in cells)
        # Semicolons imply that the comma is the spreadsheet's decimal mark; tabs do not.
        if has_points or (separator != ";" and all(_COMMA_GROUPS.fullmatch(cell) for cell in with_comma)):
            unclear.add(_name(name))
            continue
        for row in rows:
            if found := _DECIMAL_COMMA.fullmatch(row[place]):
                row[place] = f"{found[1]}.{found[2]}"
    return rows, frozenset(unclear)


def _name(text: str) -> str:
    return text.lower().replace("\u03bc", "\u00b5")


# --- writing ----------------------------------------------------------------------------------------------------------


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    r"""Write a table atomically as CSV in UTF-8 with commas.

    Fractional numbers get six significant digits; None and NaN become empty cells. Text that a spreadsheet could run as
    a formula, because it begins with =, +, -, @ or a tab, gets an apostrophe in front. So does text with control
    characters, which are escaped as `\x1b`. `read_table` and `read_parts` undo both.

    Args:
        path: The file.
        header: The column names.
        rows: The cells of each row, one per column; an iterator is consumed while writing.

    Raises:
        InputError: If the file cannot be written.
    """
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(cells_of(header))
        writer.writerows(map(cells_of, rows))
