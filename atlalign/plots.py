"""Figures of registrations, fields, runs and evaluations.

Matplotlib is imported only when a figure is drawn: it takes about a second, and `section_overlay` does not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from io import StringIO
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlalign.geometry import identity_grid, jacobian_determinant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_INCHES = 2.6
_GRID_LINES = 16
_SECTION_OVERLAY_PX = 640  # its height
_OUTLINE = np.array([255, 200, 0], np.uint8)
# After Okabe and Ito: nearly everyone can distinguish them, on a white or a dark page.
_METHOD_COLORS = ("#2b8fd1", "#999999", "#e69f00", "#cc79a7", "#009e73")
_MARK_COLOR = "#d62728"
# Placeholder for the text colour of the page that shows the chart.
_PAGE_COLOR = "#010203"


class Panel(NamedTuple):
    """One registered section: images (H, W) in [0, 1], fields (2, H, W) in pixels."""

    reference: Tensor
    moving: Tensor
    registered: Tensor
    dvf: Tensor
    true_dvf: Tensor | None = None
    title: str = ""


def overlay(reference: Tensor, other: Tensor) -> NDArray[np.float32]:
    """Return an RGB image (H, W, 3) of two images (H, W) in [0, 1]: the reference in magenta, the other in green."""
    reference, other = (image.detach().cpu().float().clamp(0, 1) for image in (reference, other))
    return torch.stack([reference, other, reference], dim=-1).numpy()


def section_overlay(
    pixels: NDArray[Any],
    reference: Tensor,
    placed: Tensor,
    registered: Tensor,
    labels_of: Callable[[tuple[int, int]], NDArray[Any] | None],
) -> NDArray[np.uint8]:
    """Return a picture (h, w, 3) for checking a registered section.

    At its left is the section with the outlines of its regions. At its right `overlay` shows the reference and the
    section, as placed above and as registered below.

    Args:
        pixels: The section's image, grey or in colour.
        reference: (H, W) in [0, 1].
        placed: The section (H, W) before the network.
        registered: The section (H, W) after it.
        labels_of: Returns the section's labels for a thumbnail (h, w) of its image; None if there are none.
    """
    pairs = [overlay(reference, image) for image in (placed, registered)]
    right = np.concatenate([_scaled(_in_8_bits(pair), _SECTION_OVERLAY_PX // 2) for pair in pairs])
    left = thumbnail(pixels, len(right))
    labels = labels_of((left.shape[0], left.shape[1]))
    if labels is not None:
        left[_outlines(labels)] = _OUTLINE
    return np.ascontiguousarray(np.concatenate([left, right], axis=1))


def png(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture (h, w, 3) as a PNG file."""
    from imagecodecs import PNG, png_encode

    # As small as with the default settings, in half the time.
    return bytes(png_encode(picture, filter=PNG.FILTER.PAETH, strategy=PNG.STRATEGY.RLE))


def thumbnail(pixels: NDArray[Any], height: int) -> NDArray[np.uint8]:
    """Return an image in colour, (height, w, 3), scaled to the brightness of its brightest pixels."""
    # Averaging all of a large image would need several times its memory.
    step = max(1, pixels.shape[0] // (2 * height))
    small = brightened(pixels[::step, ::step])
    colored = small if small.ndim == 3 else np.stack([small] * 3, axis=-1)
    return _scaled(colored, height)


def brightened(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image in 8 bits; one that is dark or has more bits is scaled to its brightest pixels."""
    white = float(np.percentile(pixels, 99.9))
    if pixels.dtype == np.uint8 and white >= 128:
        return pixels
    return _in_8_bits(pixels / np.float32(max(white, 1e-6)))


def _in_8_bits(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image in [0, 1] in 8 bits; values outside are clipped."""
    return np.asarray(image.clip(0, 1) * 255).round().astype(np.uint8)


def _scaled(image: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """Return an image (h, w, 3) with another height, corners aligned."""
    width = round(image.shape[1] * height / image.shape[0])
    planar = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    # Not `resize_images`: its wide Gaussian takes ten times as long, which a picture to look at does not need.
    scaled = F.interpolate(planar, (height, width), mode="bilinear", align_corners=True, antialias=True)
    return np.asarray(scaled[0].permute(1, 2, 0))


def _outlines(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where (h, w) a label differs from the one to its right or below."""
    lines = np.zeros(labels.shape, np.bool_)
    lines[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines[:-1] |= labels[:-1] != labels[1:]
    return lines


def registration_figure(panels: list[Panel]) -> Figure:
    """Draw one row per section: reference, moving, registered, overlays before and after, deformed grid, error map.

    Overlays show the reference in magenta and the other image in green, so that agreement is grey. The error map is
    omitted if no section has a true field.
    """
    columns = ["reference", "moving", "registered", "before", "after", "deformed grid"]
    if any(panel.true_dvf is not None for panel in panels):
        columns.append("error (px)")
    height, width = panels[0].reference.shape
    size = (_PANEL_INCHES * len(columns), _PANEL_INCHES * height / width * len(panels) + 0.4)
    figure = _figure(figsize=size, dpi=100)
    axes = figure.subplots(len(panels), len(columns), squeeze=False)
    # Constrained layout would compute these margins, but takes twice the time.
    figure.subplots_adjust(
        left=0.03, right=0.97, bottom=0.04, top=1 - 0.4 / size[1], wspace=0.06, hspace=0.12
    )
    for column, title in enumerate(columns):
        axes[0, column].set_title(title, fontsize=9)
    for row, panel in enumerate(panels):
        _draw_panel(list(axes[row]), panel)
        axes[row, 0].set_ylabel(panel.title, fontsize=8)
    return figure


def draw_grid(axes: Axes, dvf: Tensor, n_lines: int = _GRID_LINES) -> None:
    """Draw where a regular grid of the reference lies in the moving image; dvf (2, H, W) in pixels."""
    from matplotlib.collections import LineCollection

    height, width = dvf.shape[-2:]
    field = dvf.detach().cpu().float()
    points = (field + identity_grid((height, width), field.dtype, field.device)[0]).numpy()
    step = max(1, min(height, width) // n_lines)
    lines = [*points[:, ::step].transpose(1, 2, 0), *points[:, :, ::step].transpose(2, 1, 0)]
    axes.add_collection(LineCollection(lines, colors="tab:blue", linewidths=0.5))
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.set_aspect("equal")


def _figure(**options: Any) -> Figure:
    """Return an empty figure that can be rendered to pixels without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def _draw_panel(axes: list[Axes], panel: Panel) -> None:
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    for axis, image in zip(axes, (panel.reference, panel.moving, panel.registered), strict=False):
        axis.imshow(image.detach().cpu().float().numpy(), cmap="gray", vmin=0, vmax=1)
    axes[3].imshow(overlay(panel.reference, panel.moving))
    axes[4].imshow(overlay(panel.reference, panel.registered))
    draw_grid(axes[5], panel.dvf)
    if panel.true_dvf is not None:
        _draw_error(axes[6], (panel.dvf - panel.true_dvf).norm(dim=0), panel.true_dvf.norm(dim=0))
    elif len(axes) > 6:
        axes[6].set_axis_off()


def _draw_error(axes: Axes, error: Tensor, before: Tensor) -> None:
    # The scale is the error of the identity, so that dark means good for every section.
    shown = axes.imshow(error.detach().cpu().float().numpy(), cmap="magma", vmin=0, vmax=float(before.max()))
    axes.set_xlabel(f"{float(before.mean()):.1f} → {float(error.mean()):.1f} px", fontsize=8)
    beside = axes.inset_axes((1.03, 0, 0.04, 1))
    axes.get_figure().colorbar(shown, cax=beside).ax.tick_params(labelsize=7)  # type: ignore[union-attr]


def field_grid_figure(dvf: Tensor) -> Figure:
    """Draw where a regular grid of the reference lies in the moving image; dvf (2, H, W) in pixels."""
    figure, axes = _field_axes(dvf, "deformed grid")
    draw_grid(axes, dvf)
    return figure


def field_displacement_figure(dvf: Tensor, *, step: int) -> Figure:
    """Draw the length of the displacement, and an arrow at every `step`-th pixel; dvf (2, H, W) in pixels."""
    figure, axes = _field_axes(dvf, "displacement (px)")
    field = dvf.detach().cpu().float()
    shown = axes.imshow(field.norm(dim=0).numpy(), cmap="magma", vmin=0)
    x, y = identity_grid((dvf.shape[-2], dvf.shape[-1]), field.dtype, field.device)[
        0, :, ::step, ::step
    ].numpy()
    dx, dy = field[:, ::step, ::step].numpy()
    axes.quiver(x, y, dx, dy, angles="xy", scale_units="xy", scale=1, color="white", width=0.002)
    figure.colorbar(shown, ax=axes, fraction=0.04)
    return figure


def field_jacobian_figure(dvf: Tensor) -> Figure:
    """Draw the Jacobian determinant, white at 1 and black where the field folds; dvf (2, H, W) in pixels."""
    figure, axes = _field_axes(dvf, "Jacobian determinant")
    determinant = jacobian_determinant(dvf.detach().cpu().float()[None])[0]
    reach = max(float((determinant - 1).abs().max()), 1e-3)
    shown = axes.imshow(determinant.numpy(), cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach)
    folded = torch.where(determinant <= 0, 1.0, torch.nan)
    axes.imshow(folded.numpy(), cmap="gray", vmin=1, vmax=2)
    figure.colorbar(shown, ax=axes, fraction=0.04)
    return figure


def runs_figure(
    labels: Sequence[str],
    values: Sequence[float | None],
    statuses: Sequence[str],
    baselines: Sequence[float | None],
    *,
    metric: str,
) -> Figure:
    """Draw one row per run, the first on top: the metric of a finished run as a dot, of any other as a cross.

    A run without a metric shows its status. A grey tick marks the identity, and the scale is logarithmic if runs differ
    more than a hundredfold.
    """
    size = (11, 0.8 + 0.25 * len(labels))
    figure = _figure(figsize=size, dpi=100, layout="constrained")
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
    axes.set_xlabel(f"{metric} (grey: doing nothing)" if any(baselines) else metric)
    return figure


def _field_axes(dvf: Tensor, title: str) -> tuple[Figure, Axes]:
    height, width = dvf.shape[-2:]
    figure = _figure(figsize=(7, 7 * height / width), dpi=100)
    axes = figure.subplots()
    axes.set_title(title, fontsize=9)
    return figure, axes


def distribution_figure(values: Mapping[str, Sequence[float]], *, label: str) -> Figure:
    """Draw one row per method: a dot for each value, and a box for the quartiles."""
    figure, axes = _chart(height=0.9 + 0.45 * len(values))
    for row, (of_method, color) in enumerate(zip(values.values(), _colors(values), strict=True)):
        heights = row + np.random.default_rng(0).uniform(-0.25, 0.25, len(of_method))
        axes.plot(of_method, heights, "o", color=color, markersize=3.5, alpha=0.5, markeredgewidth=0)
        box = axes.boxplot(of_method, positions=[row], orientation="horizontal", widths=0.6, showfliers=False)
        for line in (line for lines in box.values() for line in lines):
            line.set_color(_PAGE_COLOR)
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel(label)
    return figure


def position_figure(points: Mapping[str, Sequence[tuple[float, float]]], *, label: str) -> Figure:
    """Draw each method's values against the section's position, given as pairs (mm from the front, value)."""
    figure, axes = _chart(height=2.6)
    for (name, of_method), color in zip(points.items(), _colors(points), strict=True):
        x, y = zip(*of_method, strict=True)
        axes.plot(x, y, "o", color=color, label=name, markersize=4, alpha=0.7, markeredgewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position from front to back (mm)")
    axes.set_ylabel(label)
    _draw_legend(axes)
    return figure


def level_figure(
    levels: Sequence[int], values: Mapping[str, Sequence[float]], *, xlabel: str, label: str
) -> Figure:
    """Draw each method's value at each level, from 0 to 1."""
    figure, axes = _chart(height=2.6)
    for (name, of_method), color in zip(values.items(), _colors(values), strict=True):
        axes.plot(levels, of_method, "o-", color=color, label=name, markersize=4)
    axes.set_xticks(levels)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(label)
    _draw_legend(axes)
    return figure


class Course(NamedTuple):
    """A quantity along an axis: its name, its colour such as #bfdae3 or "", and its values."""

    name: str
    color: str
    values: Sequence[float]


def series_figure(
    positions_mm: Sequence[float], areas_mm2: Sequence[Course], marked_mm: Sequence[float]
) -> Figure:
    """Draw the areas of regions along the axis of the brain; vertical bars mark the sections to look at."""
    figure, axes = _chart(height=3.6)
    for position in marked_mm:
        axes.axvline(position, color=_MARK_COLOR, linewidth=5, alpha=0.35, zorder=0)
    for course, color in zip(areas_mm2, _colors(areas_mm2), strict=True):
        own = course.color or color
        axes.plot(positions_mm, course.values, "o-", color=own, label=course.name, markersize=3, linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("position from front to back (mm)")
    axes.set_ylabel("area (mm²)")
    _draw_legend(axes, columns=5)
    return figure


def located_figure(
    sections: Mapping[str, Sequence[tuple[float, float]]], placed: Sequence[tuple[float, float]]
) -> Figure:
    """Draw positions in mm over section numbers: points of sections by kind, and the line on which they are placed."""
    figure, axes = _chart(height=2.8)
    number, position = zip(*sorted(placed), strict=True)
    axes.plot(number, position, "-", color=_PAGE_COLOR, linewidth=1, label="as placed")
    for (name, points), color in zip(sections.items(), _colors(sections), strict=True):
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=color, markersize=4, label=name)
    axes.set_xlabel("section number")
    axes.set_ylabel("position from front to back (mm)")
    _draw_legend(axes)
    return figure


def curve_figure(position_mm: Sequence[float], likeness: Sequence[float], placed_mm: float) -> Figure:
    """Draw how like the planes along the axis a section is, and where it is placed."""
    figure, axes = _chart(height=1.6)
    axes.plot(position_mm, likeness, "-", color=_colors(["likeness"])[0])
    axes.axvline(placed_mm, color=_PAGE_COLOR, linewidth=1, linestyle="--")
    axes.set_xlabel("position from front to back (mm)")
    axes.set_ylabel("likeness")
    return figure


def figure_svg(figure: Figure) -> str:
    """Return a chart as an <svg> element whose text and axes take the colour and font of the surrounding page."""
    import matplotlib

    buffer = StringIO()
    # Without random ids and dates, the same chart always gives the same text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "atlalign"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(_PAGE_COLOR, "currentColor")


def _chart(height: float) -> tuple[Figure, Axes]:
    figure = _figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_edgecolor(_PAGE_COLOR)
    axes.tick_params(colors=_PAGE_COLOR)
    axes.xaxis.label.set_color(_PAGE_COLOR)
    axes.yaxis.label.set_color(_PAGE_COLOR)
    return figure, axes


def _draw_legend(axes: Axes, columns: int = 3) -> None:
    axes.legend(
        frameon=False,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        labelcolor=_PAGE_COLOR,
    )


def _colors(values: Sized) -> list[str]:
    return [_METHOD_COLORS[number % len(_METHOD_COLORS)] for number in range(len(values))]


class Outlined(NamedTuple):
    """A section on a slide.

    Attributes:
        label: Its number.
        outline: Polygons (N, 2) as (x, y) in pixels of the slide.
        matrix: (2, 3), which takes pixels of its own image to those of the slide.
        shape: (h, w) of its own image.
        note: A remark.
    """

    label: str
    outline: Sequence[NDArray[np.float64]]
    matrix: NDArray[np.float64]
    shape: tuple[int, int]
    note: str = ""


def sections_figure(
    view: NDArray[np.float32],
    scale: NDArray[np.float64],
    sections: Sequence[Outlined],
    left_out: Sequence[tuple[Sequence[NDArray[np.float64]], str]],
    *,
    is_color: bool,
    title: str,
) -> Figure:
    """Draw a slide with its sections outlined and numbered, and below it each section as its own image shows it.

    Args:
        view: (h, w, c), a small copy of the slide.
        scale: Pixels of the slide for each of the view along x and y; the axes are in pixels of the slide.
        sections: In the order of their list.
        left_out: Polygons around pieces that are no sections, with the reason.
        is_color: The channels are red, green and blue.
        title: The name of the slide.
    """
    image = _displayed(view, is_color=is_color)
    height, width = image.shape[:2]
    columns = 6
    rows = -(-len(sections) // columns)
    of_slide = min(12 * height / width, 12.0)
    figure = _figure(figsize=(12, of_slide + 0.8 + 2 * rows), dpi=100, layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[of_slide, *[2.0] * rows])
    _draw_slide(figure.add_subplot(grid[0, :]), image, scale, sections, left_out, title)
    for place, section in enumerate(sections):
        axes = figure.add_subplot(grid[1 + place // columns, place % columns])
        axes.imshow(_own_image(image, scale, section), interpolation="nearest")
        axes.set_title(section.label, fontsize=9)
        axes.set_xlabel("\n".join(section.note.split("; ")), fontsize=6)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, format="png")


def _draw_slide(
    axes: Axes,
    image: NDArray[np.float32],
    scale: NDArray[np.float64],
    sections: Sequence[Outlined],
    left_out: Sequence[tuple[Sequence[NDArray[np.float64]], str]],
    title: str,
) -> None:
    height, width = image.shape[:2]
    x, y = scale
    axes.imshow(image, extent=(-0.5, width * x - 0.5, height * y - 0.5, -0.5))
    for rings, reason in left_out:
        for ring in rings:
            axes.fill(*ring.T, fill=False, edgecolor="tab:gray", linewidth=0.7, linestyle=":")
        if rings:
            axes.text(
                float(rings[0][:, 0].min()), float(rings[0][:, 1].min()), reason, color="tab:gray", fontsize=5
            )
    for place, section in enumerate(sections):
        color = _METHOD_COLORS[place % len(_METHOD_COLORS)]
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
    """Return a view as RGB (h, w, 3) in [0, 1]; channels that are no colours are averaged at equal range."""
    low, high = np.percentile(view, [0.1, 99.9], axis=None if is_color else (0, 1))
    unit = np.clip((view - low) / np.maximum(high - low, 1e-9), 0, 1)
    shown: NDArray[np.float32] = (
        unit if is_color else np.repeat(unit.mean(axis=-1, keepdims=True), 3, axis=-1)
    )
    return shown


def _own_image(
    image: NDArray[np.float32], scale: NDArray[np.float64], section: Outlined
) -> NDArray[np.float32]:
    """Return a section (h, w, 3), small, as its own image shows it."""
    height, width = section.shape
    step = max(1.0, max(height, width) / 200)
    x, y = np.meshgrid(np.arange(0, width, step), np.arange(0, height, step))
    points = np.stack([x, y], axis=-1) @ section.matrix[:, :2].T + section.matrix[:, 2]
    columns, rows = np.moveaxis(np.round((points + 0.5) / scale - 0.5).astype(int), -1, 0)
    shape = image.shape[:2]
    own: NDArray[np.float32] = image[rows.clip(0, shape[0] - 1), columns.clip(0, shape[1] - 1)]
    return own
