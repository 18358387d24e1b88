"""Empty figures, the style of charts, and figures as files. Matplotlib is imported on first use: it loads slowly."""

from __future__ import annotations

from collections.abc import Sized
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# After Okabe and Ito: nearly everyone can distinguish them, on a white or a dark page.
METHOD_COLORS = ("#2b8fd1", "#999999", "#e69f00", "#cc79a7", "#009e73")
# Placeholder for the text colour of the page that shows the chart.
PAGE_COLOR = "#010203"


def empty_figure(**options: Any) -> Figure:
    """Return an empty figure that can be rendered to pixels without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def figure_svg(figure: Figure) -> str:
    """Return a chart as an <svg> element whose text and axes take the colour and font of the surrounding page."""
    import matplotlib

    buffer = StringIO()
    # Without random ids and dates, the same chart always gives the same text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "atlalign"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace(PAGE_COLOR, "currentColor")


def empty_chart(height: float) -> tuple[Figure, Axes]:
    """Return an empty chart of a height in inches, in the colours of the page that shows it."""
    figure = empty_figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_edgecolor(PAGE_COLOR)
    axes.tick_params(colors=PAGE_COLOR)
    axes.xaxis.label.set_color(PAGE_COLOR)
    axes.yaxis.label.set_color(PAGE_COLOR)
    return figure, axes


def draw_legend(axes: Axes, columns: int = 3) -> None:
    """Draw a legend above a chart."""
    axes.legend(
        frameon=False,
        ncols=columns,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0,
        labelcolor=PAGE_COLOR,
    )


def method_colors(values: Sized) -> list[str]:
    """Return a colour for each of the values; the colours repeat after the last."""
    return [METHOD_COLORS[number % len(METHOD_COLORS)] for number in range(len(values))]


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, format="png")
