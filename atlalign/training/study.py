"""A search with Optuna over training runs: the study, a file beside the runs, and the end of runs that fall behind."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytorch_lightning as pl
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from pytorch_lightning.trainer.states import TrainerFn

from atlalign.errors import InputError, mistakes_in
from atlalign.training.runs import Pruned, Run, has_begun, read_run

_FILE = "study.journal"
_NAME = "atlalign"


class SweepStudy:
    """An Optuna study whose trials are the runs `folder`/0, `folder`/1, …; the objective is minimised.

    Args:
        folder: The sweep's folder; the study is its file study.journal, made where there is none.
        space: What is varied.
        fixed: What all trials share, as overrides; a study is continued with the same alone.
        sampler: From a seed to what chooses the trials.
        seed: With the trials so far it decides the next one, whether the sweep was interrupted or not.

    Raises:
        InputError: If the study in the folder is one of other trials.
    """

    def __init__(
        self,
        folder: Path,
        space: Mapping[str, BaseDistribution],
        fixed: Sequence[str],
        *,
        sampler: Callable[..., BaseSampler],
        seed: int = 0,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.space = dict(space)
        self.sampler = sampler
        self.seed = seed
        self.study = optuna.create_study(storage=_storage(folder), study_name=_NAME, load_if_exists=True)
        self._check_identity({"fixed": sorted(fixed), "space": {k: str(v) for k, v in sorted(space.items())}})

    def __len__(self) -> int:
        """Return the number of trials so far, whatever became of them."""
        return len(self.study.get_trials(deepcopy=False))

    def ask(self) -> int:
        """Begin a trial and return its number."""
        self.study.sampler = self.sampler(seed=self.seed + len(self))
        return self.study.ask(self.space).number

    def overrides(self, number: int) -> list[str]:
        """Return what the trial's run is given beside the fixed overrides."""
        return [f"{key}={value}" for key, value in self._trial(number).params.items()]

    def open_trials(self) -> list[int]:
        """Return the numbers of trials that were begun and have no result."""
        return [t.number for t in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])]

    def settle(self, number: int) -> Run:
        """Take over what the trial's run left in its folder; a run without an end leaves its trial open.

        Raises:
            InputError: If a file in the folder is damaged.
        """
        run = read_run(self.folder / str(number))
        objective = str(run.config.get("objective"))
        value = run.metrics.get(objective, math.nan) if run.status == "finished" else math.nan
        if run.status == "pruned" or run.diverged:
            self.study.tell(number, state=TrialState.PRUNED)
        elif math.isfinite(value):
            self.study.tell(number, value)
        elif run.status != "unfinished":
            self.study.tell(number, state=TrialState.FAIL)
        return run

    def is_stuck(self, number: int) -> bool:
        """Return whether the trial's run was begun again before, and has come no further since."""
        if not has_begun(self.folder / str(number)):
            return False
        checkpoint = self.folder / str(number) / "checkpoints" / "last.ckpt"
        progress = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        key = f"begun again/{number}"
        before = self.study.user_attrs.get(key)
        self.study.set_user_attr(key, progress)
        return bool(before == progress)

    def best(self) -> FrozenTrial | None:
        """Return the best of the trials that ran to their end."""
        complete = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return min(complete, key=lambda trial: trial.values[0], default=None)

    def _trial(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]

    def _check_identity(self, identity: dict[str, Any]) -> None:
        known = self.study.user_attrs.get("identity")
        if known is None:
            self.study.set_user_attr("identity", identity)
        elif known != identity:
            raise InputError(
                f"{self.folder} holds a study of other trials: expected {known}, got {identity}. "
                "Give the command that began it, or another hydra.sweep.dir"
            )


class Pruning(pl.Callback):
    """Tells the study how a trial's run does after each epoch, and ends the run where the pruner says so.

    A run that is no open trial, such as one that is repeated outside of its sweep, is left alone.

    Args:
        run_dir: The run's folder, named by the trial's number, in the sweep's folder.
        monitor: The metric that is minimised.
        pruner: What decides.
    """

    def __init__(self, run_dir: str, monitor: str, pruner: BasePruner) -> None:
        self.run_dir = Path(run_dir)
        self.monitor = monitor
        self.pruner = pruner
        self._trial: Trial | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the trial, in the main process."""
        if stage == "fit" and trainer.is_global_zero:
            self._trial = _open_trial(self.run_dir, self.pruner)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and end the run in all processes alike; the last epoch counts in any case.

        Raises:
            Pruned: If the pruner gives the trial up.
        """
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        epoch, value = trainer.current_epoch, float(trainer.callback_metrics[self.monitor])
        is_last = epoch + 1 == trainer.max_epochs
        if trainer.strategy.broadcast(self._falls_behind(epoch, value)) and not is_last:
            raise Pruned(f"after epoch {epoch} with {self.monitor} {value:.4g}")

    def _falls_behind(self, epoch: int, value: float) -> bool:
        if self._trial is None:
            return False
        reported = self._trial.study.get_trials(deepcopy=False)[self._trial.number].intermediate_values
        if epoch not in reported:  # a run that goes on from a checkpoint comes by again
            self._trial.report(value, epoch)
        return self._trial.should_prune()


def search_space(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """Return what Optuna draws from, by key, for each override that gives more than one value.

    Raises:
        InputError: If there is none, or Optuna cannot draw from one.
    """
    space = {o.get_key_element(): _distribution(o) for o in overrides if o.is_sweep_override()}
    if not space:
        raise InputError(
            "hydra/sweeper=optuna: expected something to vary, such as 'optimizer.lr=interval(1e-4,1e-2)', got nothing"
        )
    return space


def _distribution(override: Override) -> BaseDistribution:
    with mistakes_in(str(override.input_line)):
        return _distribution_of(override)


def _distribution_of(override: Override) -> BaseDistribution:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return _numbers(sweep.start, sweep.end, log="log" in sweep.tags)
    if isinstance(sweep, RangeSweep):
        values = sorted(sweep.range())
        return _numbers(values[0], values[-1], step=abs(sweep.step))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _numbers(low: Any, high: Any, **options: Any) -> BaseDistribution:
    whole = isinstance(low, int) and isinstance(high, int)
    return IntDistribution(low, high, **options) if whole else FloatDistribution(low, high, **options)


def _storage(folder: Path) -> JournalStorage:
    # A journal, unlike SQLite, is safe on the network file systems of clusters.
    return JournalStorage(JournalFileBackend(str(folder / _FILE)))


def _open_trial(run_dir: Path, pruner: BasePruner) -> Trial | None:
    if not (run_dir.parent / _FILE).exists():
        return None
    storage = _storage(run_dir.parent)
    study = optuna.load_study(storage=storage, study_name=_NAME, pruner=pruner)
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if str(trial.number) == run_dir.name:
            study_id = storage.get_study_id_from_name(_NAME)
            return Trial(study, storage.get_trial_id_from_study_id_trial_number(study_id, trial.number))
    return None
