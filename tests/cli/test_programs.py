"""Programs under Hydra: an error is one sentence, and a mistake found at once leaves no folder."""

import os
import subprocess
import sys

import pytest

from atlalign.cli import main, programs
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


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_decides(monkeypatch, given, used):
    monkeypatch.setenv("OMP_WAIT_POLICY", "")  # restored after the test
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == used


def test_the_command_line_does_not_load_torch_before_it_decides_on_threads():
    code = "import sys, atlalign.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
