"""Sections found on a slide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from atlalign.plots.figures import METHOD_COLORS, empty_figure


class Outlined(NamedTuple):
    """A section on a slide.

    Attributes:
        label: Its number.
        outline: Polygons (N, 2) as (x, y) in pixels of the slide.
        matrix: (2, 3), maps pixels of its own image to pixels of the slide.
        shape: (h, w) of its own image.
        note: A remark.
        left_out: The reason why it has no image; empty if it has one.
    """

    label: str
    outline: Sequence[NDArray[np.float64]]
    matrix: NDArray[np.float64]
    shape: tuple[int, int]
    note: str = ""
    left_out: str = ""


def sections_figure(
    view: NDArray[np.float32],
    scale: NDArray[np.float64],
    sections: Sequence[Outlined],
    *,
    is_color: bool,
    title: str,
) -> Figure:
    """Draw a slide with its sections outlined and numbered, and below it each section's own image.

    Args:
        view: (h, w, c), a small copy of the slide.
        scale: The number of slide pixels per pixel of the view along x and y; the axes are in pixels of the slide.
        sections: In the order of their list.
        is_color: Whether the channels are red, green and blue.
        title: The name of the slide.
    """
    image = _displayed(view, is_color=is_color)
    height, width = image.shape[:2]
    columns = 6
    kept = [section for section in sections if not section.left_out]
    rows = -(-len(kept) // columns)
    of_slide = min(12 * height / width, 12.0)
    figure = empty_figure(figsize=(12, of_slide + 0.8 + 2 * rows), dpi=100, layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[of_slide, *[2.0] * rows])
    _draw_slide(figure.add_subplot(grid[0, :]), image, scale, sections, title)
    for place, section in enumerate(kept):
        axes = figure.add_subplot(grid[1 + place // columns, place % columns])
        axes.imshow(_own_image(image, scale, section), interpolation="nearest")
        axes.set_title(section.label, fontsize=9)
        axes.set_xlabel("\n".join(section.note.split("; ")), fontsize=6)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def _draw_slide(
    axes: Axes,
    image: NDArray[np.float32],
    scale: NDArray[np.float64],
    sections: Sequence[Outlined],
    title: str,
) -> None:
    height, width = image.shape[:2]
    x, y = scale
    axes.imshow(image, extent=(-0.5, width * x - 0.5, height * y - 0.5, -0.5))
    for section in (one for one in sections if one.left_out):
        for ring in section.outline:
            axes.fill(*ring.T, fill=False, edgecolor="tab:gray", linewidth=0.7, linestyle=":")
        left, top = np.concatenate(section.outline).min(axis=0)
        said = f"{section.label} {section.left_out}"
        axes.text(float(left), float(top), said, color="tab:gray", fontsize=7, va="bottom")
    for place, section in enumerate(one for one in sections if not one.left_out):
        color = METHOD_COLORS[place % len(METHOD_COLORS)]
        for ring in section.outline:
            axes.fill(*ring.T, fill=False, edgecolor=color, linewidth=1.5)
        points = np.concatenate(section.outline)
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        box = {"facecolor": color, "edgecolor": "none", "boxstyle": "round,pad=0.2"}
        axes.text(
            float(middle[0]),
            float(middle[1]),
            section.label,
            color="white",
            fontsize=12,
            ha="center",
            va="center",
            bbox=box,
        )
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("x (pixels of the slide)", fontsize=8)
    axes.set_ylabel("y (pixels of the slide)", fontsize=8)
    axes.tick_params(labelsize=7)


def _displayed(view: NDArray[np.float32], *, is_color: bool) -> NDArray[np.float32]:
    """Return a view as RGB (h, w, 3) in [0, 1]; other channels are scaled to equal ranges and averaged."""
    low, high = np.percentile(view, [0.1, 99.9], axis=None if is_color else (0, 1))
    unit = np.clip((view - low) / np.maximum(high - low, 1e-9), 0, 1)
    shown: NDArray[np.float32] = (
        unit if is_color else np.repeat(unit.mean(axis=-1, keepdims=True), 3, axis=-1)
    )
    return shown


def _own_image(
    image: NDArray[np.float32], scale: NDArray[np.float64], section: Outlined
) -> NDArray[np.float32]:
    """Return a section's own image (h, w, 3) at reduced size."""
    height, width = section.shape
    step = max(1.0, max(height, width) / 200)
    x, y = np.meshgrid(np.arange(0, width, step), np.arange(0, height, step))
    points = np.stack([x, y], axis=-1) @ section.matrix[:, :2].T + section.matrix[:, 2]
    columns, rows = np.moveaxis(np.round((points + 0.5) / scale - 0.5).astype(int), -1, 0)
    shape = image.shape[:2]
    own: NDArray[np.float32] = image[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)]
    return own
