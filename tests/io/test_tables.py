"""Tables of users: the dialects of spreadsheets and programs, and what is wrong with a file."""

import csv
import math

import numpy as np
import pytest

from atlalign.errors import InputError
from atlalign.io.cells import shown
from atlalign.io.tables import read_parts, read_table, write_table


@pytest.mark.parametrize(
    "content",
    [
        "Name,P\nä.png,7217.5\nb,\n",
        "\ufeffName,P\r\nä.png,7217.5\r\nb,\r\n",
        "Name , P\n ä.png, 7217.5 \nb ,  \n",
        'Name, "P"\nä.png, "7217.5"\nb,""',
        "Name;P\nä.png;7217,5\nb;\n",
        "Name;P\nä.png;7217.5\nb;\n",
        "Name\tP\nä.png\t7217.5\nb\t\n",
        "\nName;P\n\nä.png;7217,5\n  \nb;\n\n;\n;;\n\n",
        "Name,P\nä.png,7217.5,,\nb,,\n",
        "Name,P\rä.png,7217.5\rb,\r",
        "sep=;\r\nName;P\r\nä.png;7217,5\r\nb;\r\n",
        "sep=|\nName|P\nä.png|7217.5\nb|\n",
        "Name\tP\nä.png\t7217,5\nb\t\n",
        '# a "comment, with marks\n#one more\nName,P\nä.png,7217.5\n# between\nb,\n# at the end\n',
    ],
)
def test_dialects_are_read_alike(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content.encode())
    table = read_table(tmp_path / "t.csv")
    assert (table.header, table.names) == (["Name", "P"], ["name", "p"])
    assert table.rows == [["ä.png", "7217.5"], ["b", ""]]
    assert [cells for _, cells in table.records(["p"])] == [
        {"name": "ä.png", "p": "7217.5"},
        {"name": "b", "p": ""},
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_text_of_spreadsheets_is_read(tmp_path, encoding):
    text = "Name\tP\r\nä.png\t7217.5\r\n"
    (tmp_path / "t.txt").write_bytes(
        ("" if encoding == "utf-16" else "\ufeff").encode(encoding) + text.encode(encoding)
    )
    assert read_table(tmp_path / "t.txt").rows == [["ä.png", "7217.5"]]


def test_a_number_sign_may_be_a_name_or_begin_a_cell(tmp_path):
    (tmp_path / "t.csv").write_text("#,x\n#1,5\n# only a comment\n")
    table = read_table(tmp_path / "t.csv")
    assert (table.header, table.rows) == (["#", "x"], [["#1", "5"]])


def test_parts_of_a_table_are_the_whole(tmp_path):
    lines = ["a,b", *(f"{i},x" for i in range(7)), ",", ",", "8,x", ",", ""]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    whole, parts = read_table(tmp_path / "t.csv"), list(read_parts(tmp_path / "t.csv", n_rows=3))
    assert [len(part.rows) for part in parts] == [3, 3, 3, 1]
    assert [row for part in parts for row in part.rows] == whole.rows
    assert [line for part in parts for line in part.lines] == whole.lines == [*range(2, 12)]
    (tmp_path / "t.csv").write_text("a,b\n")
    assert [part.rows for part in read_parts(tmp_path / "t.csv", n_rows=3)] == [[]]


def test_repeated_column_is_refused_only_if_used(tmp_path):
    (tmp_path / "t.csv").write_text("x,Area,area\n1,2,3\n")
    (part,) = read_parts(tmp_path / "t.csv")
    assert part.column("x") == ["1"]
    with pytest.raises(InputError, match="each column once, found 2 named 'area'"):
        part.column("area")


def test_missing_numbers_are_nan(tmp_path):
    words = ["NaN", "NA", "n/a", "#N/A", "<NA>", "null", "None", ""]
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{word},-1.5e1\n" for word in words))
    numbers = read_table(tmp_path / "t.csv").numbers(["y", "x"])
    assert numbers.shape == (8, 2)
    assert (numbers[:, 0] == -15).all()
    assert np.isnan(numbers[:, 1]).all()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("x\ty\n1,234\t5\n", "t.csv, x: .*thousands"),
        ("x;y\n1.234;5\n2,5;5\n", "t.csv, x: .*thousands"),
        ("x;y\n1.234,5;5\n", "line 2, x: expected a number, found '1.234,5'.*thousands"),
        ('x,y\n"1,234",5\n', "line 2, x: expected a number, found '1,234'.*thousands"),
        ("x,y\n1 234,5\n", "line 2, x: expected a number, found '1 234'"),
        ("x,y\n1_000,5\n", "line 2, x: expected a number, found '1_000'"),
        ("x,y\n1e999,5\n", "line 2, x: expected a number of at most 64 bits"),
        ("x,y\n-inf,5\n", "line 2, x: expected a number, found '-inf'"),
    ],
)
def test_unclear_numbers_are_refused(tmp_path, content, sentence):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_table(tmp_path / "t.csv").numbers(["x", "y"])


def test_commas_that_can_only_be_decimal_marks_are(tmp_path):
    (tmp_path / "t.csv").write_text("x\ty\tnote\n1,234\t5\t1,234\n300,5\t5\t1,234\n")
    table = read_table(tmp_path / "t.csv")
    assert table.numbers(["x", "y"]).tolist() == [[1.234, 5], [300.5, 5]]
    assert table.rows[0][2] == "1,234"


def test_line_numbers_match_a_spreadsheet(tmp_path):
    """A cell of two lines has one number, and so has a blank line."""
    (tmp_path / "t.csv").write_text('a,b\n"two\nlines",1\n\n,\nx,2\n')
    table = read_table(tmp_path / "t.csv")
    assert table.lines == [2, 4, 5]
    assert table.rows == [["two\nlines", "1"], ["", ""], ["x", "2"]]


def test_only_numbers_have_decimal_commas_and_only_beside_semicolons(tmp_path):
    (tmp_path / "t.csv").write_text('a;b,c;d\n-1,5e3;"x, 1";1,2,3\n,5;+0,25;5,\n')
    table = read_table(tmp_path / "t.csv")
    assert table.header == ["a", "b,c", "d"]
    assert table.rows == [["-1.5e3", "x, 1", "1,2,3"], [".5", "+0.25", "5,"]]
    (tmp_path / "t.csv").write_text('a,b\n"1,5",2\n')
    assert read_table(tmp_path / "t.csv").rows == [["1,5", "2"]]


def test_columns_without_a_name_may_be_several(tmp_path):
    (tmp_path / "t.csv").write_text("x,y,,\n1,2,,note\n")
    assert read_table(tmp_path / "t.csv").rows == [["1", "2", "", "note"]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,b\n\n1\n", "line 3: expected 2 cells, found 1"),
        ("a,b\n1,2,3\n", "line 2: expected 2 cells, found 3"),
        ("a,A\n1,2\n", "expected each column once, found a, A"),
        ("a|b\n1|2\n", r"expected the columns a, b, separated by commas, semicolons or tabs, found 'a\|b'$"),
        ("|" * 99, "found '" + r"\|" * 79 + "…$"),
        ("", "expected the columns a, b, separated by commas, semicolons or tabs, found none"),
        (b"a,b\n\xe4,2\n", "t.csv: cannot be read as UTF-8 text: save it as CSV UTF-8$"),
        ("a,b".encode("utf-16")[:-1], "t.csv: cannot be read as UTF-8 text"),
        ('a,b\n"' + "x" * 200_000, "cannot be read as CSV: field larger"),
    ],
)
def test_table_errors_are_reported(tmp_path, content, sentence):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence):
        read_table(tmp_path / "t.csv").records(["a", "b"])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"t\.csv: cannot be read: No such file"):
        read_table(tmp_path / "t.csv")


# --- writing ----------------------------------------------------------------------------------------------------------

DANGEROUS = [
    "=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "=", "-", "+/-", "＝1", "'=1", "''=1", "\x1b[31mred", "a\x9bb",
    "a\x00b", "m_\udcfc.png", "=\x1b]0;title\x07",
]  # fmt: skip
HARMLESS = [
    "a",
    "'quoted'",
    "it's",
    "n°1",
    "a=b",
    "C:\\x41",
    "-1.5",
    "+3e-7",
    "-inf",
    "two\nlines",
    'say "a,b"',
    "é;b",
]


def test_formula_text_is_escaped_and_restored(tmp_path):
    rows = [[text, "kept"] for text in DANGEROUS + HARMLESS]
    write_table(tmp_path / "t.csv", ["=name", "b"], rows)
    content = (tmp_path / "t.csv").read_bytes().decode()
    assert not any(ord(character) < 32 and character not in "\t\n" for character in content)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        header, *written = csv.reader(file)
    assert header == ["'=name", "b"]
    assert [row[0][0] for row in written[: len(DANGEROUS)]] == ["'"] * len(DANGEROUS)
    assert [row[0] for row in written[len(DANGEROUS) :]] == HARMLESS
    table = read_table(tmp_path / "t.csv")
    assert table.header == ["=name", "b"]
    assert [row[0] for row in table.rows] == DANGEROUS + HARMLESS


def test_written_cells_are_utf8_with_six_digits_or_empty(tmp_path):
    write_table(
        tmp_path / "t.csv",
        ["é", "b"],
        [[1 / 3, np.float32(2.5)], [None, math.nan], [12345678, -1.0], [True, "1"]],
    )
    assert (tmp_path / "t.csv").read_bytes() == "é,b\n0.333333,2.5\n,\n12345678,-1\nTrue,1\n".encode()


def test_a_table_is_written_whole_or_not_at_all(tmp_path):
    def rows():
        yield ["1"]
        raise InputError("stopped")

    (tmp_path / "t.csv").write_text("kept")
    with pytest.raises(InputError, match="stopped"):
        write_table(tmp_path / "t.csv", ["a"], rows())
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_messages_show_no_control_characters():
    assert shown("\x1b[31mred") == r"'\x1b[31mred'"
