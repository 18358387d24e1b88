"""Programs under Hydra: an error is one sentence, and a mistake found at once leaves no folder."""

import sys

import pytest

from atlalign.cli import programs
from atlalign.errors import InputError


def test_a_failing_program_prints_one_line(tmp_path, monkeypatch, capsys):
    def fail(config):
        raise InputError("expected this, got that")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["atlalign train", "seed=3", "hydra.run.dir=run"])
    with pytest.raises(SystemExit) as stopped:
        programs._run("train", fail)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: expected this, got that\n"
