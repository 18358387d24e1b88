"""The files that training runs leave in their folders."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from atlalign.errors import InputError, describe
from atlalign.io.files import written_whole

Value = str | int | float | bool


class Pruned(Exception):  # noqa: N818 - a run that others have overtaken is not an error
    """A run was stopped early because other runs were better at the same epoch."""


class DivergedError(InputError):
    """A training diverged: a loss or a measure is no longer finite."""


@dataclass(frozen=True)
class Run:
    """One run, as recorded in its folder.

    Args:
        folder: The run's folder.
        status: `finished`, `failed`, `pruned` or `unfinished` (still running, or killed).
        reason: Why the run ended early, in one line.
        config: Its configuration by dotted keys; empty if the run ended before writing it.
        metrics: Final metrics by name; a run that ended early has at most `seconds`.
        diverged: Whether the run failed because the training diverged.
    """

    folder: Path
    status: str
    reason: str
    config: dict[str, Value]
    metrics: dict[str, float]
    diverged: bool = False


@contextmanager
def recorded_failure(
    folder: Path, config: DictConfig, owns: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """If the enclosed run fails, write its configuration and the reason to `folder`.

    A finished run in the folder stays unchanged if the new attempt fails before it starts to train.

    Args:
        folder: The run's folder.
        config: The run's configuration.
        owns: Returns whether this process may write to the folder; called before the run and after a failure.
    """
    started = time.monotonic()
    finished = _time_of(folder / "metrics.json")
    if finished is None and owns():
        (folder / "failure.json").unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if not owns():
            raise
        if finished is not None and _time_of(folder / "metrics.json") == finished:
            raise
        record_failure(folder, error, seconds=round(time.monotonic() - started, 1))
        if not (folder / "config.yaml").exists():
            with suppress(OmegaConfBaseException):  # the configuration itself may be the error
                write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        raise


def begin(folder: Path, config: DictConfig) -> None:
    """Write the run's configuration, and delete the result of an earlier attempt."""
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    for name in ("failure.json", "metrics.json"):
        (folder / name).unlink(missing_ok=True)


def record_failure(folder: Path, error: BaseException, **metrics: float) -> None:
    """Record in `folder`/failure.json that its run ended with `error`."""
    status, reason = ("pruned", str(error)) if isinstance(error, Pruned) else ("failed", describe(error))
    content: dict[str, Any] = {"status": status, "reason": reason, "metrics": metrics}
    if isinstance(error, DivergedError):
        content["diverged"] = True
    write_text(folder / "failure.json", json.dumps(content, indent=2) + "\n")


def read_run(folder: Path) -> Run:
    """Read the run in `folder`.

    Raises:
        InputError: If one of its files is damaged.
    """
    config, failure, metrics = folder / "config.yaml", folder / "failure.json", folder / "metrics.json"
    measured = _metrics(metrics, _read_json(metrics)) if metrics.exists() else {}
    known = _read_config(config) if config.exists() else {}
    if not failure.exists():
        return Run(folder, "finished" if measured else "unfinished", "", known, measured)
    end = _read_json(failure)
    match end:
        case {"status": ("failed" | "pruned") as status, "reason": str(reason), "metrics": dict(before)}:
            measured = {**_metrics(failure, before), **measured}
            return Run(folder, status, reason, known, measured, diverged=end.get("diverged") is True)
    raise _damaged(failure, "the end of a run (status, reason, metrics)", end)


def _metrics(path: Path, content: Mapping[str, Any]) -> dict[str, float]:
    """Check that `content` maps names to numbers, and return it."""
    for name, value in content.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _damaged(path, f"a number for {name}", value)
    return dict(content)


def _damaged(path: Path, expected: str, found: Any) -> InputError:
    shown = shorten(repr(found), 100)
    return InputError(
        f"{path}: expected {expected}, got {shown}: delete the file, and run the command with ckpt_path=auto"
    )


def has_begun(folder: Path) -> bool:
    """Return whether `folder` holds a run."""
    return (folder / "config.yaml").exists()


def has_finished(folder: Path, config: DictConfig) -> bool:
    """Return whether `folder` holds a finished run, resumed or not, with this configuration."""
    written = folder / "config.yaml"
    if not written.exists():
        return False
    known, now = (
        [line for line in text.splitlines() if not line.startswith("ckpt_path:")]
        for text in (written.read_text(), OmegaConf.to_yaml(config, resolve=True))
    )
    return known == now and read_run(folder).status == "finished"


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Read every run in `folders` and their subfolders.

    Raises:
        InputError: If a folder is missing, or no run is found.
    """
    found: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}")
        for mark in ("config.yaml", "failure.json", ".hydra"):
            found |= {path.parent for path in folder.rglob(mark) if path.parent.name != ".hydra"}
    if not found:
        raise InputError(f"{', '.join(map(str, folders))}: found no run (a run's folder has a config.yaml)")
    return [read_run(folder) for folder in sorted(found, key=_natural_order)]


def flatten(tree: Any, separator: str = ".", prefix: str = "") -> dict[str, Value]:
    """Return a configuration's values by dotted keys such as data.batch_size; a group's own key names its object."""
    if not isinstance(tree, Mapping):
        return {prefix: tree if isinstance(tree, str | int | float | bool) else str(tree)}
    flat: dict[str, Value] = {}
    for key, value in tree.items():
        if key == "_target_":
            flat[prefix] = str(value).rpartition(".")[2]
        else:
            flat |= flatten(value, separator, f"{prefix}{separator}{key}" if prefix else str(key))
    return flat


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        InputError: If the file cannot be written.
    """
    with written_whole(path) as unfinished:
        unfinished.write_text(text)


def _natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key that places run 10 after run 9."""
    return [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in path.absolute().parts]


def _read_config(path: Path) -> dict[str, Value]:
    """Return a run's resolved configuration, with `${run_dir}` in place of the run's own folder in paths."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text())
        place = str(tree["run_dir"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the configuration of a run, got {describe(error)}") from error
    return {
        key: value.replace(place, "${run_dir}") if isinstance(value, str) else value
        for key, value in flatten(tree).items()
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected JSON, got {describe(error)}: delete the file, and repeat the command with "
            "ckpt_path=auto"
        ) from error
    if not isinstance(content, dict):
        raise _damaged(path, "a JSON object", content)
    return content


def _time_of(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
