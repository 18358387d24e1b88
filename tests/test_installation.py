"""The contents of an installation: the wheel, outside of a checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atlalign.cli import main
from atlalign.hydra_messages import conf_folder

ROOT = Path(__file__).parents[1]


def test_a_checkout_uses_its_own_configuration():
    assert conf_folder() == ROOT / "conf"


def test_the_programs_are_listed_beside_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown for name in ("register", "train", "generate", "evaluate"))


@pytest.mark.slow
@pytest.mark.network  # a wheel is built with the setuptools of today
def test_a_wheel_trains_without_a_checkout(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"  # a build leaves a folder beside what it builds
    for name in ("atlalign", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(source)]
    subprocess.run([sys.executable, *install], check=True, capture_output=True, timeout=300)
    assert {path.name for path in (site / "atlalign" / "conf").glob("*.yaml")} >= {
        "train.yaml",
        "generate.yaml",
    }
    empty = tmp_path / "empty"
    empty.mkdir()
    tiny = [
        "data.image_shape=[32,48]",
        "data.n_sections=4",
        "data.fields_per_section=1",
        "data.batch_size=2",
        "trainer.max_epochs=1",
    ]
    finished = subprocess.run(
        [sys.executable, "-m", "atlalign", "train", "experiment=demo", *tiny, "require_ratio=null"],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert list(empty.glob("runs/*/registered.png"))
