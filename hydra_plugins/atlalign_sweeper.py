"""Sweepers for grids and for Optuna searches; Hydra finds plugins only in packages called hydra_plugins.

Hydra imports this module whenever one of its programs starts, so heavy libraries are imported where they are used.
"""

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from atlalign.training.study import SweepStudy

_log = logging.getLogger(__name__)


class GridSweeper(BasicSweeper):
    """Hydra's sweeper over every combination, which also checks the keys of all runs before the first one starts.

    All runs form one batch unless `max_batch_size` is set.
    """

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose each run and check its keys.

        Raises:
            InputError: If an object that a run builds does not accept a key.
        """
        for job in batch:
            _check_job(self, job)


class OptunaSweeper(Sweeper):
    """Lets Optuna choose the runs; each run is a numbered trial, and any launcher can start it.

    The result of a run is read from its folder, so that a stopped sweep can resume: finished trials stay, and
    unfinished ones resume from their last checkpoint.

    Args:
        n_trials: Total number of trials, including those of earlier calls.
        n_jobs: Number of trials launched together.
        params: Varied values by key, in Hydra's grammar; the command line adds to them.
        sampler: The configuration of an Optuna sampler, with `_partial_: true`.
        seed: Random seed of the sampler.
    """

    def __init__(
        self, n_trials: int, n_jobs: int, params: Mapping[str, str], sampler: DictConfig, seed: int
    ) -> None:
        self.n_trials = n_trials
        self.n_jobs = n_jobs
        self.params = params
        self.sampler = sampler
        self.seed = seed
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the objects that Hydra passes to a sweeper.

        Raises:
            InputError: If Optuna is not installed, or a number is invalid.
        """
        from hydra.core.plugins import Plugins

        from atlalign.errors import InputError, check_numbers

        given = {f"hydra.sweeper.{name}": getattr(self, name) for name in ("n_trials", "n_jobs", "seed")}
        check_numbers(
            given, {"hydra.sweeper.n_trials": 1, "hydra.sweeper.n_jobs": 1, "hydra.sweeper.seed": 0}
        )
        if importlib.util.find_spec("optuna") is None:
            raise InputError("hydra/sweeper=optuna needs Optuna: pip install 'atlalign-torch[sweep]'")
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are `n_trials`.

        Raises:
            InputError: If an object does not accept a key that all trials share, the folder holds another study,
                another process works on it, or every trial failed.
        """
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            OmegaConf.save(self.config, folder / "multirun.yaml")
            study, fixed = self._open(folder, arguments)
            begun = _to_go_on(study)
            for start in range(0, len(begun), self.n_jobs):
                self._run(study, fixed, begun[start : start + self.n_jobs])
            while (left := self.n_trials - len(study)) > 0:
                self._run(study, fixed, [study.ask() for _ in range(min(left, self.n_jobs))])
        _conclude(study)

    def _open(self, folder: Path, arguments: Sequence[str]) -> tuple["SweepStudy", list[str]]:
        """Return the study and the overrides that all trials share."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.utils import instantiate

        from atlalign.training.study import SweepStudy, search_space

        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        texts = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = {o.get_key_element(): o for o in parser.parse_overrides(texts)}
        fixed = [
            f"{key}={o.get_value_element_as_str()}"
            for key, o in overrides.items()
            if not o.is_sweep_override()
        ]
        space = search_space(list(overrides.values()))
        _check_job(self, fixed)
        return SweepStudy(folder, space, fixed, sampler=instantiate(self.sampler), seed=self.seed), fixed

    def _run(self, study: "SweepStudy", fixed: Sequence[str], numbers: Sequence[int]) -> None:
        """Launch trials together and record their results."""
        jobs = {number: _job(fixed, study, number) for number in numbers}
        legal = {
            number: job for number, job in jobs.items() if self._composes(study.folder / str(number), job)
        }
        if legal:
            self._launch(study.folder, legal)
        for number in numbers:
            run = study.settle(number)
            _log.info(f"trial {number}: {run.status} {run.reason}".rstrip())

    def _composes(self, folder: Path, job: Sequence[str]) -> bool:
        """Check a job before it is launched; an invalid job inside the launcher would end the sweep."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from atlalign.errors import InputError
        from atlalign.training.runs import record_failure

        try:
            _check_job(self, job)
        except (HydraException, OmegaConfBaseException, InputError) as error:
            record_failure(folder, error)
            return False
        return True

    def _launch(self, folder: Path, jobs: Mapping[int, Sequence[str]]) -> None:
        from atlalign.errors import InputError, describe
        from atlalign.training.runs import has_begun

        assert self.launcher is not None
        try:
            results = self.launcher.launch(list(jobs.values()), initial_job_idx=min(jobs))
        except Exception as error:
            # A job that is killed from outside ends the launcher's batch, not the sweep.
            if not any(has_begun(folder / str(number)) for number in jobs):
                raise InputError(f"the launcher started no run: {describe(error)}") from error
            _log.warning(f"trials {', '.join(map(str, jobs))}: {describe(error)}")
            return
        for number, result in zip(jobs, results, strict=True):
            _record_silent_failure(folder / str(number), result)


def _check_job(sweeper: GridSweeper | OptunaSweeper, job: Sequence[str]) -> None:
    """Compose a run and check that the objects that it builds accept their keys."""
    from atlalign.arguments import check_keys

    assert sweeper.config is not None
    assert sweeper.hydra_context is not None
    config = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(job))
    choices = config.hydra.runtime.choices
    check_keys(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), choices)


def _job(fixed: Sequence[str], study: "SweepStudy", number: int) -> list[str]:
    """Return the overrides of a trial's run, which resumes if it was started before."""
    return ["ckpt_path=auto", *fixed, *study.overrides(number), f"hydra.sweep.subdir={number}"]


def _to_go_on(study: "SweepStudy") -> list[int]:
    """Return the unfinished trials of an earlier call, without those that are killed at the same point each time."""
    from atlalign.training.runs import record_failure

    begun = [number for number in study.open_trials() if study.settle(number).status == "unfinished"]
    stuck = [number for number in begun if study.is_stuck(number)]
    for number in stuck:
        record_failure(study.folder / str(number), RuntimeError("it was killed twice at the same point"))
        study.settle(number)
    return [number for number in begun if number not in stuck]


def _record_silent_failure(folder: Path, result: JobReturn) -> None:
    """Record the error of a run that ended before it could record the error itself."""
    from atlalign.io.files import LockedError
    from atlalign.training.runs import read_run, record_failure

    if result.status == JobStatus.COMPLETED or read_run(folder).status != "unfinished":
        return
    try:
        _ = result.return_value  # raises the error that ended the run
    except LockedError:  # another run works in the folder and has not ended
        return
    except Exception as error:
        record_failure(folder, error)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second process from running the same sweep."""
    from atlalign.io.files import LockedError, lock

    try:
        with lock(folder / "study"):
            yield
    except LockedError as error:
        raise LockedError(f"{error.holder} runs the sweep in {folder}: wait until it ends") from error


def _conclude(study: "SweepStudy") -> None:
    from atlalign.errors import InputError

    for number in study.open_trials():
        _log.warning(f"trial {number} has no result: repeat the command to resume it")
    best = study.best()
    if best is None:
        raise InputError(f"{study.folder}: no trial finished; `atlalign runs {study.folder}` shows why")
    _log.info(f"best: trial {best.number} with {best.value:.4g}: {' '.join(study.overrides(best.number))}")
    _log.info(f"atlalign runs {study.folder} shows all trials")
