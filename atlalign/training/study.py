"""An Optuna search over training runs: the study, its file beside the runs, and pruning of runs that fall behind."""

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
        folder: The sweep's folder; the study is stored in its file study.journal, created if missing.
        space: The varied keys and their distributions.
        fixed: The overrides that all trials share; a study can only be resumed with the same ones.
        sampler: Maps a seed to an Optuna sampler.
        seed: Together with the trials so far, it determines the next trial, even after an interruption.

    Raises:
        InputError: If the study in the folder has other trials.
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
        """Return the number of trials so far, in any state."""
        return len(self.study.get_trials(deepcopy=False))

    def ask(self) -> int:
        """Begin a trial and return its number."""
        self.study.sampler = self.sampler(seed=self.seed + len(self))
        return self.study.ask(self.space).number

    def overrides(self, number: int) -> list[str]:
        """Return the trial's own overrides, without the fixed ones."""
        return [f"{key}={value}" for key, value in self._trial(number).params.items()]

    def open_trials(self) -> list[int]:
        """Return the numbers of started trials without a result."""
        return [t.number for t in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING])]

    def settle(self, number: int) -> Run:
        """Report the result of the trial's run to the study; an unfinished run leaves its trial open.

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
        """Return whether the trial's run was restarted before and has made no progress since."""
        if not has_begun(self.folder / str(number)):
            return False
        checkpoint = self.folder / str(number) / "checkpoints" / "last.ckpt"
        progress = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        key = f"begun again/{number}"
        before = self.study.user_attrs.get(key)
        self.study.set_user_attr(key, progress)
        return bool(before == progress)

    def best(self) -> FrozenTrial | None:
        """Return the best of the completed trials."""
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
                f"{self.folder} holds a study of other trials: expected {known}, got {identity}; "
                "repeat the command that started it, or choose another hydra.sweep.dir"
            )


class Pruning(pl.Callback):
    """Reports a trial's run to the study after each epoch, and ends the run if the pruner says so.

    A run that is not an open trial, such as one repeated outside its sweep, is neither reported nor ended.

    Args:
        run_dir: The run's folder, named by the trial's number, in the sweep's folder.
        monitor: The metric to minimise.
        pruner: The Optuna pruner.
    """

    def __init__(self, run_dir: str, monitor: str, pruner: BasePruner) -> None:
        self.run_dir = Path(run_dir)
        self.monitor = monitor
        self.pruner = pruner
        self._trial: Trial | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the trial in the main process."""
        if stage == "fit" and trainer.is_global_zero:
            self._trial = _open_trial(self.run_dir, self.pruner)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the metric, and end a pruned run in all processes; a run that reaches its last epoch is never pruned.

        Raises:
            Pruned: If the pruner ends the trial.
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
        if epoch not in reported:  # a run resumed from a checkpoint repeats the epoch
            self._trial.report(value, epoch)
        return self._trial.should_prune()


def search_space(overrides: Sequence[Override]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each override with several values, by the override's key.

    Raises:
        InputError: If no override has several values, or Optuna cannot draw from one.
    """
    space = {o.get_key_element(): _distribution(o) for o in overrides if o.is_sweep_override()}
    if not space:
        raise InputError(
            "hydra/sweeper=optuna: expected a key to vary, such as 'optimizer.lr=interval(1e-4,1e-2)', got none"
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
