"""The table of means for the terminal, and the form of its names and numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from atlalign.evaluation.summary import ALL, METRICS, Summary

_TITLES = {"affine": "affine (best)"}
"""Displayed names of methods; `affine` alone would hide that this one knows the truth."""

# Number of characters of a measure's name that a narrow terminal shows.
_NARROW_LABEL = 22


def print_table(summaries: Sequence[Summary]) -> None:
    """Print the means of all data sets with their intervals, one column per method.

    On a narrow terminal, intervals stand below their means. A table that is still too wide, or wider than a file's
    default width, is printed in full.
    """
    console = Console()
    table = _table_of_means(summaries)
    if console.is_terminal and _width(table) > console.width:
        table = _table_of_means(summaries, narrow=True)
    Console(width=max(console.width, _width(table))).print(table)


def _table_of_means(summaries: Sequence[Summary], *, narrow: bool = False) -> Table:
    methods = methods_in(summaries)
    of_all = {(s.metric, s.method): s for s in summaries if s.dataset == ALL}
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)} if narrow else {}
    table = Table(title="mean over sections [95 % confidence]", title_justify="left", **look)
    table.add_column("", max_width=_NARROW_LABEL if narrow else None, no_wrap=not narrow)
    for method in methods:
        table.add_column(title_of(method), justify="right", no_wrap=True)
    for metric in measured_metrics(METRICS, summaries):
        cells = (mean_cell(of_all.get((metric, method)), "\n" if narrow else " ") for method in methods)
        table.add_row(METRICS[metric], *cells)
    return table


def _width(table: Table) -> int:
    console = Console()
    return Measurement.get(console, console.options.update(width=1000), table).maximum


def mean_cell(summary: Summary | None, between: str = " ") -> str:
    """Return the mean with its interval, as tables show it."""
    if summary is None:
        return "–"
    if math.isnan(summary.low):
        return _short(summary.mean)
    return f"{_short(summary.mean)}{between}[{_short(summary.low)}, {_short(summary.high)}]"


def _short(value: float) -> str:
    """Return a number with three significant digits, or with all digits before the point."""
    if value == 0 or 100 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.3g}" if 1e-4 <= abs(value) < 100 else f"{value:.1e}"


def title_of(method: str) -> str:
    """Return the displayed name of a method."""
    return _TITLES.get(method, method)


def methods_in(summaries: Iterable[Summary]) -> list[str]:
    """Return the names of the methods, in the order of the summaries."""
    return list(dict.fromkeys(s.method for s in summaries))


def measured_metrics(metrics: Iterable[str], summaries: Iterable[Summary]) -> list[str]:
    """Return the metrics that have a summary, in the given order."""
    found = {s.metric for s in summaries}
    return [metric for metric in metrics if metric in found]
