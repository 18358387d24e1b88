"""The table that compares training runs, for the terminal and as Markdown, CSV and picture."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from atlalign.console import printable
from atlalign.errors import unknown_name
from atlalign.io.files import written_whole
from atlalign.io.tables import write_table
from atlalign.training.runs import Run, Value, write_text

_DISTANCE, _BASELINE = "val/vector_distance", "val/identity/vector_distance"
# The error divided by the error before registration.
_RATIO = "val/ratio"
# Number of characters of a setting that a terminal shows.
_WIDEST_CHOICE = 30
# Metrics that the table shows after the one that it is sorted by; the CSV file has all metrics.
_SHOWN_METRICS = (_DISTANCE, _RATIO, "val/folding_fraction", "val/correlation", "epochs", "seconds")
# Settings that do not change the result: where a run is stored and how its progress is shown.
_INCIDENTAL = ("run_dir", "ckpt_path", "callbacks.pruning")


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
    """Return notes on the table's order and on useless runs, and the reason why each run ended early, if it did."""
    named = zip(table.names, table.runs, strict=True)
    return [
        *filter(None, (table.note, _useless(table.runs))),
        *(f"{name} {run.status}: {run.reason}" for name, run in named if run.reason),
    ]


def _useless(runs: Sequence[Run]) -> str:
    """Return a line that counts the runs no better than doing nothing; empty if all are better."""
    ratios = [run.metrics[_RATIO] for run in runs if _RATIO in run.metrics]
    useless = sum(ratio >= 1 for ratio in ratios)
    if not useless:
        return ""
    return (
        f"{useless} of {len(ratios)} runs do not reduce the error: their {_RATIO}, the error divided by the error "
        "before registration, is 1 or more"
    )


def rich_table(table: RunTable, width: int) -> Table:
    """Return the table for a terminal of `width` characters; only the files have every key and untruncated values.

    If runs build different objects, keys that only some runs have are left out. If the table is still too wide, its
    widest columns are left out until it fits.
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


def _narrow_table(table: RunTable, n_left_out: int) -> Table:
    left_out = f"keys left out: {n_left_out} (the files have all keys)" if n_left_out else None
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
    """Return whether only some runs have this key, because they build different objects in its place."""
    parents = {key[:place] for place, letter in enumerate(key) if letter == "."}
    return bool(parents & set(table.keys)) and not all(key in run.config for run in table.runs if run.config)


def _with_ratio(run: Run) -> Run:
    for name in (str(run.config.get("objective")), _DISTANCE):
        after, before = run.metrics.get(name), run.metrics.get(_before(name))
        if after is not None and before:
            return replace(run, metrics={**run.metrics, _RATIO: after / before})
    return run


def _before(metric: str) -> str:
    """Return the name of a metric before registration."""
    return f"val/identity/{metric.removeprefix('val/')}"


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
    """Return the paths of the runs relative to their common folder."""
    paths = [run.folder.absolute() for run in runs]
    shared = 0
    while all(len(p.parts) > shared + 1 for p in paths) and len({p.parts[: shared + 1] for p in paths}) == 1:
        shared += 1
    return ["/".join(path.parts[shared:]) for path in paths]


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
    return 1.0 if metric == _RATIO else run.metrics.get(_before(metric))


def _short(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escape_markdown(cell: str) -> str:
    return cell.replace("|", r"\|")
