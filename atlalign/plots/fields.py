"""Plots of one displacement field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atlalign.geometry import identity_grid, jacobian_determinant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from atlalign.plots.figures import empty_figure

_GRID_LINES = 16


def draw_grid(axes: Axes, dvf: Tensor, n_lines: int = _GRID_LINES) -> None:
    """Draw the positions of a regular grid of the reference in the moving image; dvf (2, H, W) in pixels."""
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


def field_grid_figure(dvf: Tensor) -> Figure:
    """Draw the positions of a regular grid of the reference in the moving image; dvf (2, H, W) in pixels."""
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


def _field_axes(dvf: Tensor, title: str) -> tuple[Figure, Axes]:
    height, width = dvf.shape[-2:]
    figure = empty_figure(figsize=(7, 7 * height / width), dpi=100)
    axes = figure.subplots()
    axes.set_title(title, fontsize=9)
    return figure, axes
