"""Registered sections: images, overlays, deformed grids and error maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from atlalign.plots.fields import draw_grid
from atlalign.plots.figures import empty_figure
from atlalign.plots.pictures import overlay

_PANEL_INCHES = 2.6


class Panel(NamedTuple):
    """One registered section: images (H, W) in [0, 1], fields (2, H, W) in pixels."""

    reference: Tensor
    moving: Tensor
    registered: Tensor
    dvf: Tensor
    true_dvf: Tensor | None = None
    title: str = ""


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
    figure = empty_figure(figsize=size, dpi=100)
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
    # The scale ends at the error of the identity, so that dark means good in every section.
    shown = axes.imshow(error.detach().cpu().float().numpy(), cmap="magma", vmin=0, vmax=float(before.max()))
    axes.set_xlabel(f"{float(before.mean()):.1f} → {float(error.mean()):.1f} px", fontsize=8)
    beside = axes.inset_axes((1.03, 0, 0.04, 1))
    axes.get_figure().colorbar(shown, cax=beside).ax.tick_params(labelsize=7)  # type: ignore[union-attr]
