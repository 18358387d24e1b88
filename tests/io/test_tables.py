"""Tables of users: the dialects of spreadsheets and programs, and what is wrong with a file."""

import pytest

from atlalign.errors import InputError
from atlalign.io.tables import read_table


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


def test_lines_are_those_of_a_spreadsheet(tmp_path):
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
def test_what_is_wrong_with_a_table_is_said(tmp_path, content, sentence):
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=sentence):
        read_table(tmp_path / "t.csv").records(["a", "b"])


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"t\.csv: cannot be read: No such file"):
        read_table(tmp_path / "t.csv")
