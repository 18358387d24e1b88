"""Terminal output: no file name can move the cursor, or stop a line from being printed."""

import io
import logging

import pytest

from atlalign import console
from atlalign.cli import main
from atlalign.console import ProgressLines, printable, say, track


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


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])

    def work():
        for name in "abcde":
            now[0] += 25
            yield name

    assert list(track(work(), "registering", total=7, completed=2)) == list("abcde")
    assert capsys.readouterr().out.splitlines() == [
        "registering: 5 of 7, 0:01:15",
        "registering: 7 of 7, 0:02:05",
    ]
    assert list(track([1, 2], "locating")) == [1, 2]
    assert capsys.readouterr().out == "locating: 2 of 2, 0:00:00\n"


def test_notes_are_made_only_for_lines_that_are_printed(capsys):
    lines = ProgressLines("Epoch 1", None, "steps")
    lines.show(1, lambda: pytest.fail("no line is due"))
    lines.show(2, lambda: "loss 1", is_end=True)
    assert capsys.readouterr().out == "Epoch 1: 2 steps, 0:00:00, loss 1\n"
