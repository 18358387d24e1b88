"""A network that predicts which plane of the brain an image shows."""

from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CUTS = {"AP": "coronal", "DV": "horizontal", "ML": "sagittal"}
_CORNER = 0.6
_POINTS = ((0.0, 0.0), (-_CORNER, -_CORNER), (_CORNER, -_CORNER), (-_CORNER, _CORNER), (_CORNER, _CORNER))


class LocatedPlanes(NamedTuple):
    """The planes of a batch of views.

    A view's point (x, y) in [-1, 1]² lies at `planes[:, 0] + x · planes[:, 1] + y · planes[:, 2]` in the atlas.

    Attributes:
        planes: (B, 3, 3), the centre, half width and half height, each in mm along AP, DV, ML.
        sides: (B, 3), the logits of whole, left half and right half.
        log_error: (B,), the logarithm of the expected error in mm.
    """

    planes: Tensor
    sides: Tensor
    log_error: Tensor


class PlaneLocatorNet(nn.Module):
    """Residual convolutions and two dense layers on a view of a section.

    Args:
        extent_mm: The size along AP, DV and ML of the atlas in which the planes lie.
        view_px: Height and width of a view, a multiple of 32.
        widths: Channels of the stem and of the residual blocks; each halves the resolution.
        hidden: Width of the dense layer.
        cut_along: The axes across which its training sections are cut: AP (coronal), DV (horizontal), ML (sagittal).
            They are stored for messages to users.
        atlas: The name of the atlas that it was trained on.
        regions: The `large_regions` of this atlas, by which it is recognised.

    Example:
        >>> network = PlaneLocatorNet(extent_mm=(13.2, 8.0, 11.4), widths=(4, 4, 8, 8, 8), hidden=8)
        >>> network(torch.rand(2, 1, 128, 128)).planes.shape
        torch.Size([2, 3, 3])
    """

    def __init__(
        self,
        extent_mm: Sequence[float],
        view_px: int = 128,
        widths: Sequence[int] = (24, 48, 96, 160, 192),
        hidden: int = 384,
        cut_along: Sequence[str] = ("AP",),
        atlas: str = "",
        regions: Sequence[Sequence[float]] = (),
    ) -> None:
        super().__init__()
        self.hyperparameters: dict[str, Any] = {
            "view_px": view_px,
            "widths": list(widths),
            "hidden": hidden,
            "cut_along": list(cut_along),
        }
        self.cut_along = tuple(self.hyperparameters["cut_along"])
        self.view_px = view_px
        self.corner_mm = (0.0, 0.0, 0.0)
        self.trained_on(atlas, extent_mm, regions)
        self.stem = nn.Sequential(
            nn.Conv2d(1, widths[0], 5, 2, 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.body = nn.Sequential(*(_Residual(before, after) for before, after in pairwise(widths)))
        last_px = view_px // 2 ** len(widths)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * last_px**2, hidden), nn.ReLU(), nn.Linear(hidden, 13)
        )

    def trained_on(self, atlas: str, extent_mm: Sequence[float], regions: Sequence[Sequence[float]]) -> None:
        """Store the name, the size and the `large_regions` of the atlas that the network was trained on."""
        self.atlas = atlas
        self.extent_mm = tuple(float(value) for value in extent_mm)
        self.regions = [list(region) for region in regions]
        self.hyperparameters |= {"atlas": atlas, "extent_mm": list(self.extent_mm), "regions": self.regions}

    def in_frame(self, corner_mm: Sequence[float]) -> "PlaneLocatorNet":
        """Return the network for a cut or padded copy of its atlas.

        Args:
            corner_mm: The position, along AP, DV and ML in this copy, of the first corner of the training atlas.
        """
        found = copy(self)
        found.corner_mm = (float(corner_mm[0]), float(corner_mm[1]), float(corner_mm[2]))
        return found

    @property
    def cut(self) -> str:
        """The cutting direction of its training sections, in words."""
        return " or ".join(_CUTS[axis] for axis in self.cut_along)

    def forward(self, view: Tensor) -> LocatedPlanes:
        """Return the planes of views (B, 1, view_px, view_px) in [0, 1]."""
        out = self.head(self.body(self.stem(view))).float()
        extent = out.new_tensor(self.extent_mm)
        planes = out[:, :9].view(-1, 3, 3) * extent.amax() / 6
        corner = out.new_tensor(self.corner_mm)
        centre = torch.stack([corner + extent / 2, 0 * extent, 0 * extent])
        return LocatedPlanes(planes + centre, out[:, 9:12], out[:, 12])


class _Residual(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, 2, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def plane_errors(planes: Tensor, truth: Tensor) -> Tensor:
    """Return the distances (B, 5) in mm of planes (B, 3, 3) from true ones, at a view's centre and near its corners."""
    return (_at_points(planes) - _at_points(truth)).square().sum(-1).sqrt()


def _at_points(planes: Tensor) -> Tensor:
    points = planes.new_tensor(_POINTS)
    return planes[:, :1] + points @ planes[:, 1:]
