"""One training run, from the composed configuration to metrics, checkpoints and pictures in the run's folder."""

import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from atlalign.arguments import build, check_kinds_of
from atlalign.console import say
from atlalign.errors import InputError, warnings_from_threads
from atlalign.io.files import LockedError, lock
from atlalign.training.building import (
    build_callbacks,
    build_datamodule,
    build_logger,
    build_loss,
    build_module,
    build_network,
    memory_format,
)
from atlalign.training.checkpoints import checkpoint_to_resume, resumed_at, rewind_logs
from atlalign.training.processes import is_first_process, n_processes_to_start, owns_folder, run_in_processes
from atlalign.training.record import describe_run, write_run_record
from atlalign.training.runs import (
    begin,
    flatten,
    has_begun,
    has_finished,
    read_run,
    recorded_failure,
    write_text,
)
from atlalign.training.settings import KINDS, check_files, check_values

# The parts of the configuration in which a logger compares runs.
_COMPARED = ("model", "loss", "augment", "data", "atlas", "optimizer", "scheduler", "seed")
# Batches are float32 images and fields, so networks of another precision cannot process them.
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def train(config: DictConfig) -> float:
    """Train as `conf/train.yaml` describes and return the final value of `config.objective`.

    The run's folder receives config.yaml, run.json (see `atlalign.training.record`), checkpoints, metrics.json and
    registered.png. A failed run leaves failure.json instead of metrics.json and registered.png.

    Raises:
        InputError: If the configuration or the data are invalid, another run works in the folder, the training
            diverges, or `config.require_ratio` is missed.
    """
    with _no_empty_folder(config):
        OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # names each missing value
        check_kinds_of(config, KINDS)
        if not _is_multirun():  # whose runs leave the reason in their folders
            check_files(config)
    folder = Path(config.run_dir)
    if config.ckpt_path in ("auto", "last") and has_finished(folder, config):
        say(
            f"{folder}: this run has finished; to extend it, increase trainer.max_epochs or trainer.max_steps"
        )
        return _objective(read_run(folder).metrics, config.objective)
    with _only_run(folder):
        return _train_in(folder, config)


@contextmanager
def _no_empty_folder(config: DictConfig) -> Iterator[None]:
    """If the run fails before it writes anything, remove the empty folder that Hydra has made for it."""
    try:
        yield
    except Exception:
        with suppress(Exception):  # the folder may hold files, or the setting itself be the error
            Path(config.run_dir).rmdir()
        raise


def _is_multirun() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder; the processes of one run that a cluster started count as one.

    Raises:
        InputError: If another run works in it.
    """
    if not is_first_process():
        yield
        return
    try:
        with lock(folder / "run"):
            yield
    except LockedError as error:
        raise LockedError(
            f"run_dir: {error.holder} trains in {folder}: wait until it ends, or choose another hydra.run.dir"
        ) from error


def _save_overrides(folder: Path) -> None:
    """Write Hydra's own files to .hydra; Hydra itself would do so even while another run works in the folder."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return
    settings = HydraConfig.get()
    write_text(folder / ".hydra" / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": settings})))
    write_text(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(settings.overrides.task))


def _train_in(folder: Path, config: DictConfig) -> float:
    checkpoint = checkpoint_to_resume(config.ckpt_path, folder)
    if is_first_process():
        _save_overrides(folder)
    with recorded_failure(folder, config, owns_folder):
        n_processes = _n_processes_to_start(config)
        if not n_processes:
            return _train(config, checkpoint, describe_run())
        resolved = OmegaConf.create(cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)))
        run_in_processes(_train, (resolved, checkpoint, describe_run()), n_processes)
        return _objective(json.loads((folder / "metrics.json").read_text()), config.objective)


def _train(config: DictConfig, checkpoint: str | None, record: dict[str, Any]) -> float:
    check_files(config)
    check_values(config)
    # The loss is built first: a misspelt key fails before the slow imports and before any data is written.
    loss = build_loss(config)

    import pytorch_lightning as pl

    _quieten_lightning()
    started = time.monotonic()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    folder = Path(config.run_dir)
    if not has_begun(folder):
        pl.utilities.rank_zero_only(begin)(folder, config)
    network = build_network(config, checkpoint)
    datamodule = build_datamodule(config, network)
    module = build_module(config, network, loss, datamodule)
    start = partial(_begin, config, record, checkpoint)
    callbacks = [*build_callbacks(config.callbacks), pl.callbacks.LambdaCallback(on_train_start=start)]
    trainer = build(config.trainer, logger=build_logger(config.logger) or False, callbacks=callbacks)
    if trainer.precision not in _PRECISIONS:
        raise InputError(
            f"trainer.precision: expected one of {', '.join(_PRECISIONS)}, got {trainer.precision}"
        )
    network.to(memory_format=memory_format(config.channels_last, trainer.strategy.root_device))
    if checkpoint:
        epoch, step = resumed_at(checkpoint)
        rewind_logs(trainer.loggers, step)
        if trainer.is_global_zero:
            say(f"resuming from {checkpoint}, in epoch {epoch} after step {step}")
    with warnings_from_threads():
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)

    # The final measures of the best checkpoint are not a point on the logged curves.
    loggers, trainer.loggers = trainer.loggers, []
    best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
    validated = trainer.validate(module, datamodule, ckpt_path=best, weights_only=True, verbose=False)[0]
    metrics = {
        **{name: float(value) for name, value in validated.items() if "/" in name},
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(time.monotonic() - started, 1),
    }
    if trainer.is_global_zero:
        begin(folder, config)  # for a run that had nothing left to train
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        _log_hyperparameters(loggers, config, metrics)
        if hasattr(datamodule, "examples"):
            _draw_result(module, datamodule, folder / "registered.png")
        _print_result(metrics, folder, module)
    _require(metrics, config.require_ratio, module.distance)
    return _objective(metrics, config.objective)


def _n_processes_to_start(config: DictConfig) -> int:
    if config.trainer.devices == 1 and config.trainer.strategy == "auto":
        return 0  # skips the import of Lightning
    _quieten_lightning()
    return n_processes_to_start(build(config.trainer, logger=False, callbacks=[], enable_checkpointing=False))


def _quieten_lightning() -> None:
    """Hide Lightning's advertisements and internal deprecation warnings; other warnings still appear."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="pytorch_lightning")
    # A resumed run writes into the folder of its own checkpoints.
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    # The sampler restores its own position.
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")


def _begin(
    config: DictConfig, record: dict[str, Any], checkpoint: str | None, trainer: Any, module: Any
) -> None:
    """Write the run's record, now that every possible error of the configuration has been found."""
    if not trainer.is_global_zero:
        return
    folder = Path(config.run_dir)
    begin(folder, config)
    resumed = checkpoint is not None and folder.resolve() in Path(checkpoint).resolve().parents
    write_run_record(folder, record, trainer.datamodule.fingerprints(), resumed=resumed)


def _log_hyperparameters(loggers: list[Any], config: DictConfig, metrics: dict[str, float]) -> None:
    """Log the run's choices with its final metrics, where the logger can compare runs."""
    from pytorch_lightning.loggers import TensorBoardLogger

    tree = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    parameters = flatten({key: tree[key] for key in _COMPARED}, separator="/")
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(parameters, {f"final/{name}": value for name, value in metrics.items()})
            logger.finalize("success")
        if getattr(logger, "log_dir", None):
            # Lightning writes the file, but config.yaml already holds its contents.
            (Path(logger.log_dir) / "hparams.yaml").unlink(missing_ok=True)


def _draw_result(module: Any, datamodule: Any, path: Path) -> None:
    import torch

    from atlalign.plots import registration_figure
    from atlalign.training.callbacks import register_examples

    # Lightning has moved the network to the CPU, where it would be compiled again.
    with torch.compiler.set_stance("force_eager"):
        panels = register_examples(module.cpu(), datamodule, n_sections=4)
    registration_figure(panels).savefig(path)


def _print_result(metrics: dict[str, float], folder: Path, module: Any) -> None:
    table = Table(title="validation", title_justify="left")
    table.add_column("")
    for column in ("before", "after", "after / before"):
        table.add_column(column, justify="right")
    before, after = metrics[f"val/identity/{module.distance}"], metrics[f"val/{module.distance}"]
    name = f"mean {module.distance.replace('_', ' ')} ({module.unit})"
    table.add_row(name, f"{before:.2f}", f"{after:.2f}", f"{after / before:.2f}")
    console = Console()
    console.print(table)
    console.print(f"metrics, checkpoints and a picture are in [bold]{folder}[/bold]")


def _require(metrics: dict[str, float], require_ratio: float | None, distance: str) -> None:
    ratio = metrics[f"val/{distance}"] / metrics[f"val/identity/{distance}"]
    if require_ratio is not None and not ratio <= require_ratio:
        raise InputError(
            f"require_ratio: expected an error of at most {require_ratio:.2f} times the error before registration, "
            f"got {ratio:.2f}"
        )


def _objective(metrics: dict[str, float], name: str) -> float:
    if name not in metrics:
        raise InputError(f"objective: there is no metric '{name}'; there are: {', '.join(sorted(metrics))}")
    return metrics[name]
