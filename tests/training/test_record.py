"""run.json records a run, and its command reproduces the same numbers."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atlalign.io.files import fingerprint
from atlalign.training import record
from atlalign.training.run import train
from tests.training.conftest import TINY, TINY_LOCAL, metrics_of

ROOT = Path(__file__).parents[2]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_record_holds_command_versions_and_data(configure, tmp_path, demo_folder):
    config = configure()
    train(config)
    content = record_of(tmp_path / "run")
    assert content["versions"]["torch"] == torch.__version__.split("+")[0]
    assert content["command"] is None  # this is no command line
    (file,) = (path for path in demo_folder.iterdir() if fingerprint(path) == content["data"]["file"])
    assert file.suffix == ".h5"
    train(configure("ckpt_path=last", "trainer.max_epochs=2"))
    again = record_of(tmp_path / "run")
    (resumed,) = again.pop("resumed")
    assert again == {key: value for key, value in content.items() if key != "resumed"}
    assert resumed["data"] == content["data"]


def test_other_data_has_another_hash(configure, tmp_path):
    hashes = []
    for name, option in (("a", "data.data_seed=1"), ("b", "data.data_seed=2"), ("c", "atlas.spacing_um=400")):
        train(configure(option, run_dir=tmp_path / name))
        hashes.append(record_of(tmp_path / name)["data"])
    a, b, c = hashes
    assert a["file"] != b["file"]
    assert a["atlas"] == b["atlas"] != c["atlas"]


def test_git_says_commit_and_changes_or_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "atlalign", type("Module", (), {"__file__": str(tmp_path / "lib" / "x.py")}))
    (tmp_path / "lib").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert record.describe_run()["git"] == []
    (tmp_path / "file").write_text("one")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "file"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    (state,) = record.describe_run()["git"]  # one checkout, both of the package and of the working directory
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert state == {"folder": str(tmp_path), "commit": commit, "changed": False}
    (tmp_path / "file").write_text("two")
    assert record.describe_run()["git"][0]["changed"]


@pytest.mark.slow
def test_the_command_of_a_sweep_s_run_repeats_it(demo_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it would be the command's beginning
    options = [
        *TINY,
        *TINY_LOCAL,
        f"data.folder={demo_folder}",
        "loss=vdclip2,ncc_vdclip2",
        "loss.weights.dvf=0.5",
    ]
    command = [sys.executable, "train.py", "-m", *options, f"hydra.sweep.dir={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=200)
    first = record_of(tmp_path / "1")
    assert "loss=ncc_vdclip2" in first["command"]
    again = shlex.split(first["command"])
    assert again[:4] == ["python", "-m", "atlalign", "train"]
    again = [sys.executable, *again[1:], f"hydra.run.dir={tmp_path / 'again'}"]
    subprocess.run(again, cwd=first["folder"], check=True, capture_output=True, timeout=200)
    one, two = (metrics_of(tmp_path / name) for name in ("1", "again"))
    del one["seconds"], two["seconds"]
    assert one == two
    assert record_of(tmp_path / "again")["data"] == first["data"]
