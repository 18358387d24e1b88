"""The files that training runs leave in their folders, and the table that compares runs."""

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from atlalign.console import printable
from atlalign.errors import InputError, describe, unknown_name
from atlalign.io.files import written_whole
from atlalign.io.tables import write_table

Value = str | int | float | bool

_DISTANCE, _BASELINE = "val/vector_distance", "val/identity/vector_distance"
# The error divided by the error before registration.
_RATIO = "val/ratio"
# Characters of a setting that a terminal shows.
_WIDEST_CHOICE = 30
# Metrics that the table shows after the one that it is sorted by; the CSV file has all metrics.
_SHOWN_METRICS = (_DISTANCE, "val/folding_fraction", "val/correlation", "epochs", "seconds")
# Settings that do not change the result: the location of a run and the way it was watched.
_INCIDENTAL = ("run_dir", "ckpt_path", "callbacks.pruning")


class Pruned(Exception):  # noqa: N818 - a run that others have overtaken is not an error
    """A run was stopped early because other runs did better at the same point."""


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
        metrics: Final metrics by name; for a run that ended early only its `seconds`, if known.
        diverged: Whether the run failed because the training diverged.
    """

    folder: Path
    status: str
    reason: str
    config: dict[str, Value]
    metrics: dict[str, float]
    diverged: bool = False


@dataclass(frozen=True)
class RunTable:
    """Runs side by side, best first.

    Args:
        runs: The runs in the order of the table.
        names: A short name for each run.
        keys: The configuration keys in which the runs differ.
        metric: The metric that the table is sorted by.
        note: Why the table is not sorted by the objective; empty if it is.
    """

    runs: list[Run]
    names: list[str]
    keys: list[str]
    metric: str
    note: str = ""


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
    """Write to `folder`/failure.json that its run ended with `error`."""
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
    """Return a mapping of names to numbers after checking it."""
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
    """Return whether `folder` holds a finished run with exactly this configuration."""
    written = folder / "config.yaml"
    same = written.exists() and written.read_text() == OmegaConf.to_yaml(config, resolve=True)
    return same and read_run(folder).status == "finished"


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


def compare(runs: Sequence[Run], metric: str | None = None, *, descending: bool = False) -> RunTable:
    """Sort runs by a metric; runs without it come last.

    Args:
        runs: The runs in any order.
        metric: A final metric, or `val/ratio`, the mean vector distance divided by the distance before registration.
            None stands for the runs' objective. If that is the vector distance and image sizes differ, so that pixels
            are not comparable, None stands for `val/ratio`.
        descending: Put the largest value first.

    Raises:
        InputError: If runs have metrics, but none has this one.
    """
    runs, note = [_with_ratio(run) for run in runs], ""
    objective = _objective(runs)
    if metric is None and objective == _DISTANCE and _sizes_differ(runs):
        objective = _RATIO
        note = (
            f"image sizes differ, so pixels are not comparable: sorted by {_RATIO}, {_DISTANCE} / {_BASELINE}"
        )
    metric = metric or objective
    known = {name for run in runs for name in run.metrics}
    if any(run.status == "finished" for run in runs) and metric not in known:
        raise unknown_name("metric", metric, known)

    def rank(run: Run) -> tuple[bool, float]:
        value = run.metrics.get(metric, math.nan)
        return (True, 0.0) if math.isnan(value) else (False, -value if descending else value)

    ordered = sorted(runs, key=rank)
    return RunTable(ordered, _short_names(ordered), _differing_keys(runs), metric, note)


def write_run_table(table: RunTable, stem: Path) -> list[Path]:
    """Write `stem`.md, `stem`.csv (every metric) and `stem`.png, and return their paths."""
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("md", "csv", "png")]
    write_text(paths[0], markdown(table))
    _write_csv(paths[1], table)
    with written_whole(paths[2]) as unfinished:
        _draw(table, unfinished)
    return paths


def header(table: RunTable) -> list[str]:
    """Return the table's columns: run, status, differing keys, chosen metrics."""
    return ["run", "status", *table.keys, *_shown_metrics(table)]


def rows(table: RunTable) -> Iterator[list[str]]:
    """Yield the table's rows as text."""
    for name, run in zip(table.names, table.runs, strict=True):
        choices = [_short(run.config.get(key, "")) for key in table.keys]
        yield [name, run.status, *choices, *(_short(run.metrics.get(m, "")) for m in _shown_metrics(table))]


def reasons(table: RunTable) -> list[str]:
    """Return one line on why each run ended early, after a line on the order of the table."""
    named = zip(table.names, table.runs, strict=True)
    return [table.note] * bool(table.note) + [
        f"{name} {run.status}: {run.reason}" for name, run in named if run.reason
    ]


def rich_table(table: RunTable, width: int) -> Table:
    """Return the table for a terminal of `width` characters; the files have every key and whole values.

    If runs build different objects, keys that only some runs have are left out. Then the widest columns are left out
    until the table fits.
    """
    keys = [key for key in table.keys if not _belongs_to_differing(key, table)]
    shown = _narrow_table(replace(table, keys=keys), len(table.keys) - len(keys))
    while keys and _table_width(shown) > width:
        keys.remove(max(keys, key=lambda key: _column_width(key, table)))
        shown = _narrow_table(replace(table, keys=keys), len(table.keys) - len(keys))
    return shown


def markdown(table: RunTable) -> str:
    """Return the table in Markdown, followed by the reasons why runs ended early."""
    lines = [header(table), ["---"] * len(header(table)), *rows(table)]
    text = "".join(f"| {' | '.join(_escape_markdown(cell) for cell in line)} |\n" for line in lines)
    return text + "".join(f"\n- {reason}" for reason in reasons(table)) + "\n" * bool(reasons(table))


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


def _narrow_table(table: RunTable, n_left_out: int) -> Table:
    left_out = f"keys left out: {n_left_out} (the files have all)" if n_left_out else None
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=left_out, caption_justify="left")
    for column in header(table):
        justify: Literal["left", "right"] = "right" if column in _shown_metrics(table) else "left"
        shown.add_column(_broken(column), justify=justify, overflow="fold")
    for line in rows(table):
        shown.add_row(*(escape(printable(_narrow(cell))) for cell in line))
    return shown


def _table_width(shown: Table) -> int:
    console = Console()
    return Measurement.get(console, console.options.update(width=100_000), shown).maximum


def _broken(name: str) -> str:
    """Return a long name with line breaks after its groups."""
    return re.sub(r"(?<=[/.])", "\n", name)


def _narrow(text: str) -> str:
    half = _WIDEST_CHOICE // 2
    return text if len(text) <= _WIDEST_CHOICE else f"{text[:half]}…{text[1 - half :]}"


def _column_width(key: str, table: RunTable) -> int:
    cells = (_narrow(_short(run.config.get(key, ""))) for run in table.runs)
    return max(map(len, (*cells, *_broken(key).splitlines())))


def _belongs_to_differing(key: str, table: RunTable) -> bool:
    """Return whether a key belongs to only some of the objects that runs build in the same place."""
    parents = {key[:place] for place, letter in enumerate(key) if letter == "."}
    return bool(parents & set(table.keys)) and not all(key in run.config for run in table.runs if run.config)


def _with_ratio(run: Run) -> Run:
    after, before = (run.metrics.get(name) for name in (_DISTANCE, _BASELINE))
    if after is None or not before:
        return run
    return replace(run, metrics={**run.metrics, _RATIO: after / before})


def _sizes_differ(runs: Sequence[Run]) -> bool:
    return len({str(run.config.get("data.image_shape")) for run in runs if _DISTANCE in run.metrics}) > 1


def _shown_metrics(table: RunTable) -> list[str]:
    present = {name for run in table.runs for name in run.metrics}
    return [n for n in dict.fromkeys((table.metric, *_SHOWN_METRICS)) if n in present or n == table.metric]


def _objective(runs: Sequence[Run]) -> str:
    return next(
        (str(run.config["objective"]) for run in runs if "objective" in run.config), _SHOWN_METRICS[0]
    )


def _differing_keys(runs: Sequence[Run]) -> list[str]:
    """Return the keys whose values differ; of several keys that always vary together, the shortest."""
    configs = [run.config for run in runs if run.config]
    columns: dict[tuple[str, ...], str] = {}
    for key in sorted({key for config in configs for key in config}, key=lambda key: (key.count("."), key)):
        values = tuple(str(config.get(key, "")) for config in configs)
        if len(set(values)) > 1 and not key.startswith(_INCIDENTAL):
            columns.setdefault(values, key)
    return sorted(columns.values())


def _short_names(runs: Sequence[Run]) -> list[str]:
    """Return the runs' paths relative to their common folder."""
    paths = [run.folder.absolute() for run in runs]
    shared = 0
    while all(len(p.parts) > shared + 1 for p in paths) and len({p.parts[: shared + 1] for p in paths}) == 1:
        shared += 1
    return ["/".join(path.parts[shared:]) for path in paths]


def _natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sort run 10 after run 9."""
    return [(not p.isdigit(), int(p) if p.isdigit() else 0, p) for p in path.absolute().parts]


def _write_csv(path: Path, table: RunTable) -> None:
    metrics = sorted({name for run in table.runs for name in run.metrics})
    rows = (
        [name, run.status, run.reason, *map(run.config.get, table.keys), *map(run.metrics.get, metrics)]
        for name, run in zip(table.names, table.runs, strict=True)
    )
    write_table(path, ["run", "status", "reason", *table.keys, *metrics], rows)


def _draw(table: RunTable, path: Path) -> None:
    from atlalign.plots import runs_figure

    labels = [
        " ".join([name, *(f"{key}={_short(run.config[key])}" for key in table.keys if key in run.config)])
        for name, run in zip(table.names, table.runs, strict=True)
    ]
    values = [run.metrics.get(table.metric) for run in table.runs]
    baselines = [_doing_nothing(run, table.metric) for run in table.runs]
    statuses = [run.status for run in table.runs]
    runs_figure(labels, values, statuses, baselines, metric=table.metric).savefig(path, format="png")


def _doing_nothing(run: Run, metric: str) -> float | None:
    """Return the metric before registration, if known."""
    return {_DISTANCE: run.metrics.get(_BASELINE), _RATIO: 1.0}.get(metric)


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escape_markdown(cell: str) -> str:
    return cell.replace("|", r"\|")


def _read_config(path: Path) -> dict[str, Value]:
    """Return a run's resolved configuration; in paths, `${run_dir}` replaces the run's own folder."""
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
