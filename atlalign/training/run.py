"""One training run, from the composed configuration to metrics, checkpoints and pictures in the run's folder."""

import json
import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from atlalign.arguments import build, check_kinds_of
from atlalign.errors import (
    InputError,
    check_booleans,
    check_numbers,
    check_processes,
    mistakes_in,
    unknown_name,
    warnings_from_threads,
)
from atlalign.io.files import LockedError, lock
from atlalign.training.processes import (
    is_first_process,
    n_processes_to_start,
    owns_folder,
    run_in_processes,
)
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

# Settings that are not passed to any object.
_KINDS: Mapping[str, Any] = {
    "seed": int,
    "ckpt_path": str | None,
    "objective": str,
    "require_ratio": float | None,
    "freeze": str | list[str],
    "compile": bool,
    "channels_last": bool | None,
    "run_dir": str,
}
# The parts of the configuration in which a logger compares runs.
_COMPARED = ("model", "loss", "augment", "data", "atlas", "optimizer", "scheduler", "seed")
# The parts of the configuration whose state a checkpoint contains.
_OPTIMISATION = ("optimizer", "scheduler", "freeze")
# Objectives are minimised, so these cannot be objectives.
_BETTER_LARGER = ("val/correlation",)
# Batches are float32 images and fields, so networks of another precision cannot process them.
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def train(config: DictConfig) -> float:
    """Train as `conf/train.yaml` describes and return the final value of `config.objective`.

    The run's folder receives config.yaml, run.json (see `atlalign.training.record`), checkpoints, metrics.json and
    registered.png. A failed run leaves failure.json instead of the last two.

    Raises:
        InputError: If the configuration or the data are invalid, another run works in the folder, the training
            diverges, or `config.require_ratio` is missed.
    """
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # names each missing value
    check_kinds_of(config, _KINDS)
    folder = Path(config.run_dir)
    if config.ckpt_path == "auto" and has_finished(folder, config):
        return _objective(read_run(folder).metrics, config.objective)
    with _only_run(folder):
        return _train_in(folder, config)


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder; the processes of one run that a cluster started count as one.

    Raises:
        InputError: If another run works there.
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
    checkpoint = _checkpoint_to_resume(config.ckpt_path, folder)
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
    _check_values(config)
    # The loss is built first: a misspelt key fails before the slow imports and before any data is written.
    loss = build(config.loss)

    import pytorch_lightning as pl

    _quieten_lightning()
    started = time.monotonic()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    folder = Path(config.run_dir)
    if not has_begun(folder):
        pl.utilities.rank_zero_only(begin)(folder, config)
    network = _build_network(config, checkpoint)
    datamodule = _build_datamodule(config, network)
    module = _build_module(config, network, loss, datamodule)
    start = partial(_begin, config, record, checkpoint)
    callbacks = [*_build_callbacks(config.callbacks), pl.callbacks.LambdaCallback(on_train_start=start)]
    trainer = build(config.trainer, logger=_build_logger(config.logger) or False, callbacks=callbacks)
    if trainer.precision not in _PRECISIONS:
        raise InputError(
            f"trainer.precision: expected one of {', '.join(_PRECISIONS)}, got {trainer.precision}"
        )
    network.to(memory_format=_memory_format(config.channels_last, trainer.strategy.root_device))
    if checkpoint:
        _rewind_logs(trainer.loggers, checkpoint)
    with warnings_from_threads():
        trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)

    # The final measure of the best checkpoint is not a point on the curves.
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


def _check_values(config: DictConfig) -> None:
    """Check the settings that are not passed to any object, which would check them itself."""
    check_numbers(config, {"seed": 0})
    if config.require_ratio is not None:
        check_numbers(config, {"require_ratio": 0.0})
    check_booleans(config, "compile", "channels_last")
    if config.objective in _BETTER_LARGER:
        raise InputError(
            f"objective: expected a metric that improves as it falls, got {config.objective}; use val/vector_distance"
        )
    _check_trainer(config.trainer)
    for key in ("limit_train_batches", "limit_val_batches"):
        if OmegaConf.select(config.trainer, key) == 0:
            raise InputError(
                f"trainer.{key}: expected null, a number of batches or a fraction of them, got 0"
            )


def _check_trainer(config: DictConfig) -> None:
    """Check the numbers that Lightning accepts unchecked."""
    least: dict[str, float] = {
        "accumulate_grad_batches": 1,
        "gradient_clip_val": 0.0,
        "check_val_every_n_epoch": 1,
        "min_epochs": 0,
        "log_every_n_steps": 0,
        "num_sanity_val_steps": -1,
    }
    given = {key: OmegaConf.select(config, key) for key in least}
    named = {f"trainer.{key}": value for key, value in given.items() if value is not None}
    check_numbers(named, {name: least[name.removeprefix("trainer.")] for name in named})
    if isinstance(config.devices, int):
        check_processes("trainer.devices", config.devices)
    if config.get("max_time") is not None:
        from pytorch_lightning.callbacks import Timer

        with mistakes_in("trainer.max_time"):
            Timer(config.max_time)


def as_list(names: str | Sequence[str]) -> Sequence[str]:
    """Return the names as a list; a single name may be given as a string."""
    return [names] if isinstance(names, str) else names


def _build_function(config: DictConfig | None) -> Any:
    """Build a partial function; when called, it reports errors in its configured arguments by their key."""
    function = build(config)
    if config is None or function is None:
        return None

    def call(*arguments: Any) -> Any:
        with mistakes_in(config._get_full_key(None)):
            return function(*arguments)

    return call


def _n_processes_to_start(config: DictConfig) -> int:
    if config.trainer.devices == 1 and config.trainer.strategy == "auto":
        return 0  # skips the import of Lightning
    _quieten_lightning()
    return n_processes_to_start(build(config.trainer, logger=False, callbacks=[], enable_checkpointing=False))


def _build_network(config: DictConfig, checkpoint: str | None) -> Any:
    network = _network_of_same_run(config, checkpoint)
    if network is None:
        network = build(config.model)
    network.train()
    _freeze(network, as_list(config.freeze))
    if config.compile:
        network.compile()
    return network


def _memory_format(channels_last: bool | None, device: Any) -> Any:
    import torch

    from atlalign.networks.memory_format import fastest_memory_format

    if channels_last is None:
        return fastest_memory_format(device)
    return torch.channels_last if channels_last else torch.contiguous_format


def _network_of_same_run(config: DictConfig, checkpoint: str | None) -> Any:
    """Return the network of a run being resumed, without reading its initial model files; None for other runs."""
    from atlalign.models import load_model, read_origin

    if checkpoint is None:
        return None
    former = read_origin(checkpoint).config
    _check_optimizer(config, former, checkpoint)
    if former.get("model") != OmegaConf.to_container(config.model, resolve=True):
        return None
    with suppress(InputError):  # a network from outside the package is built from the configuration
        return load_model(checkpoint)
    return None


def _check_optimizer(config: DictConfig, former: Mapping[str, Any], checkpoint: str) -> None:
    """Check that a resumed run optimises as before: the checkpoint's state overrides the settings."""
    tree = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    known = [key for key in _OPTIMISATION if key in former]
    before, now = (flatten({key: of[key] for key in known}) for of in (former, tree))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        expected, got = (", ".join(str(of.get(key, "nothing")) for key in changed) for of in (before, now))
        raise InputError(
            f"{', '.join(changed)}: expected {expected}, as in the checkpoint, got {got}: keep the checkpoint's "
            f"values, or start a new run from its weights with model=pretrained model.path={checkpoint}"
        )


def _freeze(network: Any, parts: Sequence[str]) -> None:
    """Freeze the weights of the parts."""
    known = dict(network.named_modules())
    for part in parts:
        if part not in known:
            parts_known = [name for name, _ in network.named_children()]
            raise unknown_name("part of the network in freeze:", part, parts_known)
        known[part].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"freeze: expected at least one part to remain trainable, got {list(parts)}")


def _build_datamodule(config: DictConfig, network: Any) -> Any:
    """Build the data; unless configured, inverse fields are loaded if the network predicts them."""
    objects = {"atlas": build(config.atlas), "augment": build(config.augment)}
    if OmegaConf.select(config.data, "return_inverse", default=False) is None:
        objects["return_inverse"] = bool(getattr(network, "compute_inv", False))
    return build(config.data, **objects)


def _build_module(config: DictConfig, network: Any, loss: Any, datamodule: Any) -> Any:
    origin = {
        "config": OmegaConf.to_container(config, resolve=True),
        "intensity_scale": float(datamodule.atlas.intensity_scale),
    }
    if "step_size" in (config.scheduler or ()):
        check_numbers({"scheduler.step_size": config.scheduler.step_size}, {"scheduler.step_size": 1})
    return build(config.module)(
        network,
        loss,
        optimizer=_build_function(config.optimizer),
        scheduler=_build_function(config.scheduler),
        monitor=config.objective,
        seed=config.seed,
        origin=origin,
    )


def _build_logger(config: DictConfig | None) -> Any:
    logger = build(config)
    with mistakes_in("logger.save_dir"):
        if getattr(logger, "save_dir", None):
            Path(logger.save_dir).mkdir(parents=True, exist_ok=True)
    return logger


def _build_callbacks(group: DictConfig | None) -> list[Any]:
    """Build the callbacks; null switches a callback off."""
    for name, node in cast(dict[str, Any], group or {}).items():
        if not isinstance(node, DictConfig | None):
            raise InputError(
                f"callbacks.{name}: expected a callback's _target_ and arguments, or null, got {node!r}"
            )
    return [build(node) for node in (group or {}).values() if node is not None]


def _checkpoint_to_resume(ckpt_path: str | None, folder: Path) -> str | None:
    last = folder / "checkpoints" / "last.ckpt"
    if ckpt_path == "auto":
        return str(last) if last.exists() else None
    if ckpt_path is None:
        if last.exists():
            raise InputError(
                f"{folder} already holds a run: resume it with ckpt_path=last, or choose another run_dir"
            )
        return None
    path = last if ckpt_path == "last" else Path(ckpt_path)
    if not path.is_file():
        raise InputError(f"ckpt_path: there is no checkpoint {path}")
    if not _holds_training(path):
        raise InputError(
            f"ckpt_path: {path} holds a network but no training state to resume; start from its weights with "
            f"model=pretrained model.path={path}"
        )
    return str(path)


def _holds_training(path: Path) -> bool:
    """Return whether a model file holds a training state, as checkpoints do."""
    import torch

    from atlalign.models import read_origin

    read_origin(path)  # reports what is wrong with a file that is not a model
    with suppress(Exception):  # other formats than torch's hold no training
        return "optimizer_states" in torch.load(path, map_location="meta", weights_only=True)
    return False


def _rewind_logs(loggers: Iterable[Any], checkpoint: str) -> None:
    import torch

    from atlalign.training.resume import rewind_log

    step = torch.load(checkpoint, map_location="meta", weights_only=True).get("global_step", 0)
    for logger in loggers:
        rewind_log(logger, step)


def _quieten_lightning() -> None:
    """Hide Lightning's advertisements and internal deprecation warnings; other warnings still appear."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="pytorch_lightning")
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
