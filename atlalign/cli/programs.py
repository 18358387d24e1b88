"""The programs that Hydra configures: `atlalign train`, `generate` and `evaluate`, and the scripts of the same names.

Each takes Hydra's overrides (`KEY=VALUE`, `GROUP=OPTION`, `--multirun`, `--help`), not argparse's flags.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from atlalign.cli.overrides import check_repeated, quoted_overrides
from atlalign.cli.threads import share_cores
from atlalign.declarations import interface
from atlalign.errors import quiet_pipe, readable_errors
from atlalign.hydra_messages import conf_folder

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


def _run(name: str, task: Callable[["DictConfig"], Any]) -> None:
    share_cores()
    with quiet_pipe(), readable_errors(), interface("keys"), _own_error():
        import hydra

        check_repeated(sys.argv[1:])
        sys.argv[1:] = quoted_overrides(sys.argv[1:])  # Hydra reads its arguments only from here
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)(_silent(task))()


class _FailedError(BaseException):
    """Carries a task's error through Hydra, which prints all overrides before it raises an Exception."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def _own_error() -> Iterator[None]:
    """Raise the error of a task in place of its carrier."""
    try:
        yield
    except _FailedError as failed:
        raise failed.error from failed.error.__cause__


def _silent(task: Callable[["DictConfig"], Any]) -> Callable[["DictConfig"], Any]:
    """Return the task with its error in a carrier; in a multirun, the sweeper needs the error itself."""

    @functools.wraps(task)
    def run(config: "DictConfig") -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        try:
            return task(config)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raise _FailedError(error) from error

    return run


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
