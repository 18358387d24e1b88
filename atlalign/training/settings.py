"""Checks of the settings of a training run that are passed to no object, so that no constructor checks them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from atlalign.errors import (
    InputError,
    check_booleans,
    check_numbers,
    check_processes,
    missing_file,
    mistakes_in,
)

# Settings that are not passed to any object.
KINDS: Mapping[str, Any] = {
    "seed": int,
    "ckpt_path": str | None,
    "objective": str,
    "require_ratio": float | None,
    "freeze": str | list[str],
    "compile": bool,
    "channels_last": bool | None,
    "run_dir": str,
}
# Objectives are minimised, so these cannot be objectives.
_BETTER_LARGER = ("val/correlation",)


# Files that must exist before a run starts.
_FILES = ("atlas.path", "atlas.annotation_path", "atlas.ontology_path", "data.path")


def check_files(config: DictConfig) -> None:
    """Check that the files of the configuration exist, before anything slow is imported.

    Raises:
        InputError: If one is missing.
    """
    for key in _FILES:
        name = OmegaConf.select(config, key)
        if isinstance(name, str) and not (path := Path(name).expanduser()).exists():
            raise missing_file(key, path)


def check_values(config: DictConfig) -> None:
    """Check the values of the settings that no object checks, and the trainer's numbers.

    Raises:
        InputError: If one is out of range.
    """
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
    """Check the trainer's numbers, which Lightning does not check."""
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
