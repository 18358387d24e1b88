"""Terminal output: no file name can move the cursor, or stop a line from being printed."""

import io
import logging

import pytest

from atlalign.cli import main
from atlalign.console import printable, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Süd µ … 脳 'a b'", "Süd µ … 脳 'a b'"),
        ("two\nlines", "two\nlines"),
        ("\x1b[2J\x1b]0;a\x07.png", "\\x1b[2J\\x1b]0;a\\x07.png"),
        ("a\tb\rc\x9b\x7f", "a\\tb\\rc\\x9b\\x7f"),
        ("m_\udcfc.png", "m_\\udcfc.png"),
        ("gnp.\u202ea", "gnp.\\u202ea"),
    ],
)
def test_only_printable_characters_are_printed(text, shown, capsys):
    assert printable(text) == shown
    say(text)
    say(text, error=True)
    assert capsys.readouterr() == (shown + "\n",) * 2


def test_a_stream_that_lacks_a_character_gets_its_escape(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", stream)
    say("脳 µ")
    stream.seek(0)
    assert stream.read().strip() == "\\u8133 µ"


def test_the_command_line_prints_names_escaped(tmp_path, capsys):
    assert main(["register", str(tmp_path / "\x1b[31m.png"), "--out", str(tmp_path / "o")]) == 1
    assert main(["validate", str(tmp_path / "\x1b[31m.h5")]) == 1
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\\x1b[31m.h5" in printed.err
    warning = logging.LogRecord("atlalign", logging.WARNING, "", 0, "%s: no", ("\x1b[31m",), None)
    assert logging.lastResort.format(warning) == "\\x1b[31m: no"
