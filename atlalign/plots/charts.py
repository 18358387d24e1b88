"""Charts for pages: values of methods, and series of sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure
from atlalign.plots.figures import PAGE_COLOR, draw_legend, empty_chart, method_colors

_MARK_COLOR = "#d62728"


def distribution_figure(values: Mapping[str, Sequence[float]], *, label: str) -> Figure:
    """Draw one row per method: a dot for each value, and a box for the quartiles."""
    figure, axes = empty_chart(height=0.9 + 0.45 * len(values))
    for row, (of_method, color) in enumerate(zip(values.values(), method_colors(values), strict=True)):
        heights = row + np.random.default_rng(0).uniform(-0.25, 0.25, len(of_method))
        axes.plot(of_method, heights, "o", color=color, markersize=3.5, alpha=0.5, markeredgewidth=0)
        box = axes.boxplot(of_method, positions=[row], orientation="horizontal", widths=0.6, showfliers=False)
        for line in (line for lines in box.values() for line in lines):
            line.set_color(PAGE_COLOR)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    return figure


def position_figure(points: Mapping[str, Sequence[tuple[float, float]]], *, label: str) -> Figure:
    """Draw each method's values against the section's position, given as pairs (mm from the front, value)."""
    figure, axes = empty_chart(height=2.6)
    for (name, of_method), color in zip(points.items(), method_colors(points), strict=True):
        x, y = zip(*of_method, strict=True)
        axes.plot(x, y, "o", color=color, label=name, markersize=4, alpha=0.7, markeredgewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position from front to back (mm)")
    axes.set_ylabel(label)
    draw_legend(axes)
    return figure


def level_figure(
    levels: Sequence[int], values: Mapping[str, Sequence[float]], *, xlabel: str, label: str
) -> Figure:
    """Draw the value of each method at each level, on a scale from 0 to 1."""
    figure, axes = empty_chart(height=2.6)
    for (name, of_method), color in zip(values.items(), method_colors(values), strict=True):
        axes.plot(levels, of_method, "o-", color=color, label=name, markersize=4)
    axes.set_xticks(levels)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(label)
    draw_legend(axes)
    return figure


class Course(NamedTuple):
    """A quantity along an axis: its name, its colour such as #bfdae3 (or ""), and its values."""

    name: str
    color: str
    values: Sequence[float]


def series_figure(
    positions_mm: Sequence[float], areas_mm2: Sequence[Course], marked_mm: Sequence[float]
) -> Figure:
    """Draw the areas of regions along the brain's axis; vertical bars mark the sections to check."""
    figure, axes = empty_chart(height=3.6)
    for position in marked_mm:
        axes.axvline(position, color=_MARK_COLOR, linewidth=5, alpha=0.35, zorder=0)
    for course, color in zip(areas_mm2, method_colors(areas_mm2), strict=True):
        own = course.color or color
        axes.plot(positions_mm, course.values, "o-", color=own, label=course.name, markersize=3, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position from front to back (mm)")
    axes.set_ylabel("area (mm²)")
    draw_legend(axes, columns=5)
    return figure


def located_figure(
    sections: Mapping[str, Sequence[tuple[float, float]]], placed: Sequence[tuple[float, float]]
) -> Figure:
    """Draw the positions of sections in mm against their numbers, by kind, and the line on which they are placed."""
    figure, axes = empty_chart(height=2.8)
    number, position = zip(*sorted(placed), strict=True)
    axes.plot(number, position, "-", color=PAGE_COLOR, linewidth=1, label="as placed")
    for (name, points), color in zip(sections.items(), method_colors(sections), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=color, markersize=4, label=name)
    axes.set_xlabel("section number")
    axes.set_ylabel("position from front to back (mm)")
    draw_legend(axes)
    return figure


def curve_figure(position_mm: Sequence[float], likeness: Sequence[float], placed_mm: float) -> Figure:
    """Draw a section's likeness to the planes along the axis, and its position."""
    figure, axes = empty_chart(height=1.6)
    axes.plot(position_mm, likeness, "-", color=method_colors(["likeness"])[0])
    axes.axvline(placed_mm, color=PAGE_COLOR, linewidth=1, linestyle="--")
    axes.set_xlabel("position from front to back (mm)")
    axes.set_ylabel("likeness")
    return figure
