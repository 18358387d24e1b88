"""The checkpoint that a training run resumes from."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from atlalign.errors import InputError
from atlalign.training.runs import flatten

# The parts of the configuration whose state a checkpoint contains.
_OPTIMISATION = ("optimizer", "scheduler", "freeze")


def network_of_same_run(config: DictConfig, checkpoint: str | None) -> Any:
    """Return the network of a run that is resumed, without reading its initial model files; None for a new run."""
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


def checkpoint_to_resume(ckpt_path: str | None, folder: Path) -> str | None:
    """Return the path of the checkpoint to resume from; None for a new run.

    Args:
        ckpt_path: The setting: a path, `last`, `auto` (the last checkpoint if there is one) or None.
        folder: The run's folder.

    Raises:
        InputError: If the checkpoint is missing or holds no training state, or a new run would overwrite another.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if ckpt_path == "auto":
        return str(last) if last.exists() else None
    if ckpt_path is None:
        if last.exists():
            raise InputError(
                f"{folder} already holds a run: resume it with ckpt_path=last, or choose another "
                "hydra.run.dir"
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


def resumed_at(checkpoint: str) -> tuple[int, int]:
    """Return the epoch, counted from 1, and the number of steps after which a checkpoint was saved."""
    import torch

    saved = torch.load(checkpoint, map_location="meta", weights_only=True)
    return saved.get("epoch", 0) + 1, saved.get("global_step", 0)


def rewind_logs(loggers: Iterable[Any], step: int) -> None:
    """Delete all entries after this step from the logs."""
    from atlalign.training.resume import rewind_log

    for logger in loggers:
        rewind_log(logger, step)
