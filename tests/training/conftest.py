"""Tiny training runs, composed as the command line composes them and run in this process."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

CONF = Path(__file__).parents[2] / "conf"
TINY = [
    "data.image_shape=[32,48]", "data.n_sections=6", "data.fields_per_section=2", "data.batch_size=2",
    "atlas.spacing_um=600", "trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false",
    "callbacks.progress=null", "callbacks.summary=null", "callbacks.figure=null",
]  # fmt: skip
TINY_LOCAL = ["model.start_filters=[4]", "model.downsample_filters=[4,4]", "model.middle_filters=[4]",
              "model.upsample_filters=[4,4]", "model.end_filters=[4]", "model.compute_inv=false"]  # fmt: skip


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory) -> Path:
    """Where all tests share their demo data."""
    return tmp_path_factory.mktemp("demo_data")


@pytest.fixture
def configure(tmp_path, demo_folder):
    """Compose the configuration of a tiny run with further overrides."""

    def configure(*overrides: str, run_dir: Path | None = None, tiny=(*TINY, *TINY_LOCAL)) -> DictConfig:
        places = [f"run_dir={run_dir or tmp_path / 'run'}"]
        places += (
            []
            if {"data=online", "data=h5", "experiment=locator"} & set(overrides)
            else [f"data.folder={demo_folder}"]
        )
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", [*tiny, *places, *overrides])

    return configure


def metrics_of(folder: Path) -> dict[str, float]:
    """Return a run's final metrics."""
    return json.loads((folder / "metrics.json").read_text())


def wait_for(path: Path, program: subprocess.Popen, seconds: float = 240) -> None:
    """Wait until a program has written a file; otherwise end the program, and report its output."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if program.poll() is not None or time.monotonic() > deadline:
            program.kill()
            pytest.fail(f"no {path.name}: {program.communicate()[1]}")
        time.sleep(0.1)
