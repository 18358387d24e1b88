"""The programs that Hydra configures: `atlalign train`, `generate` and `evaluate`, and the scripts of the same names.

Each takes Hydra's overrides (`KEY=VALUE`, `GROUP=OPTION`, `--multirun`, `--help`), not flags of argparse.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlalign.cli.overrides import quoted_overrides
from atlalign.declarations import interface
from atlalign.errors import quiet_pipe, readable_errors

if TYPE_CHECKING:
    from omegaconf import DictConfig  # slow to import and needed by few commands


def train() -> None:
    """Train a registration network."""
    _run("train", _train)


def generate() -> None:
    """Generate a training data set."""
    _run("generate", _generate)


def evaluate() -> None:
    """Measure a trained network on annotated sections."""
    _run("evaluate", _evaluate)


PROGRAMS: dict[str, Callable[[], None]] = {"train": train, "generate": generate, "evaluate": evaluate}


def run_program(name: str, arguments: Sequence[str]) -> int:
    """Run one of `PROGRAMS` with Hydra's arguments and return its exit status."""
    sys.argv = [f"atlalign {name}", *arguments]  # Hydra reads its arguments only from here
    PROGRAMS[name]()
    return 0


def conf_folder() -> Path:
    """Return the folder of configuration: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"


def _run(name: str, task: Callable[["DictConfig"], Any]) -> None:
    with quiet_pipe(), readable_errors(), interface("keys"):
        import hydra

        sys.argv[1:] = quoted_overrides(sys.argv[1:])  # Hydra reads its arguments only from here
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)(task)()


def _train(config: "DictConfig") -> float:
    """Train with this configuration and return the value that a sweep minimises."""
    from atlalign.training.run import train

    return train(config)


def _generate(config: "DictConfig") -> None:
    """Write the configured h5 data set, and a figure of its samples."""
    from atlalign.synthesis.generate import generate

    generate(config)


def _evaluate(config: "DictConfig") -> None:
    """Measure a network and baselines on annotated sections; write tables and a report."""
    from atlalign.evaluation.evaluate import evaluate

    evaluate(config)
