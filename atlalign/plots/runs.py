"""Training runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from atlalign.plots.figures import empty_figure


def runs_figure(
    labels: Sequence[str],
    values: Sequence[float | None],
    statuses: Sequence[str],
    baselines: Sequence[float | None],
    *,
    metric: str,
) -> Figure:
    """Draw one row per run, the first at the top: the metric of a finished run as a dot, that of any other as a cross.

    A run without a metric shows its status. A grey tick marks the identity. The scale is logarithmic if runs differ
    more than a hundredfold.
    """
    size = (11, 0.8 + 0.25 * len(labels))
    figure = empty_figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots()
    for row, (value, status, baseline) in enumerate(zip(values, statuses, baselines, strict=True)):
        if value is not None:
            axes.plot(value, row, "o" if status == "finished" else "x", color="tab:blue")
        else:
            axes.text(0.01, row, status, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        if baseline is not None:
            axes.plot(baseline, row, "|", color="tab:gray", markersize=12)
    known = [value for value in values if value is not None]
    if known and max(known) > 100 * min(known) > 0:
        axes.set_xscale("log")
    axes.set_yticks(range(len(labels)), [shorten(label, 90) for label in labels], fontsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_xlabel(f"{metric} (grey: no registration)" if any(baselines) else metric)
    return figure
