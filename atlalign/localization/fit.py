"""The fit of a section to planes of the atlas: its likeness to each plane after registration to it."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from atlalign.atlas.planes import Matrix, homogeneous, invert_affine
from atlalign.geometry import sample, warp
from atlalign.io.pixels import Floats
from atlalign.localization.volume import AtlasVolume
from atlalign.metrics import mutual_information
from atlalign.recognition.views import antialiased
from atlalign.registration.refine import local_correlation
from atlalign.registration.section import Section

_BINS = 32
_AT_ONCE = 8  # planes in a batch
_TISSUE = 0.03  # of the brightest
_WIDE_BENDS = 0.12  # of the width: the standard deviation of the Gaussian that smooths bends
_CELLS = (5, 7)  # along rows and columns
_RIM = 0.035  # of the width: pixels closer to the outline do not count as inside
_LEAST_CORRELATION = 0.01
_LEAST_WEIGHT = 1e-6  # in pixels: a plane without tissue has no affine part
_ML = 2
_IN_PLANE = {0: (1, 2), 1: (0, 2), 2: (1, 0)}  # the axes along rows and columns of planes across an axis


@dataclass(frozen=True, eq=False)
class Frame:
    """Images of planes across one axis of the atlas, with rows and columns along the other two.

    Attributes:
        volume: The atlas.
        across: The axis: 0 (AP), 1 (DV) or 2 (ML).
        pixel_mm: The pixel size.
    """

    volume: AtlasVolume
    across: int
    pixel_mm: float

    @property
    def axes(self) -> tuple[int, int]:
        """The axes along rows (down) and columns (right)."""
        return _IN_PLANE[self.across]

    @cached_property
    def ticks(self) -> tuple[Tensor, Tensor]:
        """The positions of rows and columns in mm along their axes."""
        first, size = self.volume.first_mm, self.volume.voxel_mm * torch.tensor(self.volume.labels.shape)
        down, right = (
            first[axis] + (torch.arange(round(float(size[axis]) / self.pixel_mm)) + 0.5) * self.pixel_mm
            for axis in self.axes
        )
        return down, right

    def finer(self) -> "Frame":
        """Return the frame with pixels of half the size."""
        return Frame(self.volume, self.across, self.pixel_mm / 2)

    def shown(self, side: str) -> Tensor:
        """Return the mask (H, W) of the part of the atlas that a section shows: one half, or the whole."""
        down, right = self.ticks
        ticks = {self.axes[0]: down[:, None], self.axes[1]: right}
        shape = (len(down), len(right))
        if side == "whole" or _ML not in ticks:
            return torch.ones(shape)
        is_right = ticks[_ML] > self.volume.centre_mm[_ML]
        return (is_right == (side == "right")).expand(shape).float()

    def templates(self, planes: NDArray[np.float64]) -> Tensor:
        """Return the template (N, 1, H, W) on planes (N, 3), interpolated across them.

        A plane is its position in mm at the middle of the volume, and its slopes along rows and columns.
        """
        down, right = self.ticks
        axes = (self.across, *self.axes)
        middle = self.volume.centre_mm[list(axes)]
        position, per_down, per_right = torch.from_numpy(planes).float().view(-1, 3, 1, 1).unbind(1)
        height = position + per_down * (down - middle[1])[:, None] + per_right * (right - middle[2])
        volume = self.volume.template.movedim(axes, (0, 1, 2))
        first, voxel = self.volume.first_mm[list(axes)], self.volume.voxel_mm[list(axes)]
        rows, columns = (
            ((ticks - first[i]) / voxel[i]).long().clamp(0, volume.shape[i] - 1)
            for i, ticks in ((1, down), (2, right))
        )
        depth = (height - first[0]) / voxel[0] - 0.5
        before = depth.floor().long()

        def layer(index: Tensor) -> Tensor:
            inside = (index >= 0) & (index < len(volume))
            return volume[index.clamp(0, len(volume) - 1), rows[:, None], columns] * inside

        return torch.lerp(layer(before), layer(before + 1), depth - before)[:, None]


@dataclass(frozen=True, eq=False)
class Lie:
    """The position of an image in a frame.

    Attributes:
        plane: (3,), in the form that `Frame.templates` takes.
        to_pixel: (2, 3), maps (right, down) in mm to pixels of the image.
    """

    plane: NDArray[np.float64]
    to_pixel: Matrix

    @classmethod
    def of(cls, matrix: Matrix, frame: Frame) -> "Lie":
        """Return the position of an image, given the map (3, 3) from its pixels to (AP, DV, ML) in mm."""
        down, right = frame.axes
        to_mm = matrix[[right, down]]
        across = matrix[frame.across]
        slopes = np.linalg.solve(to_mm[:, :2].T, across[:2])  # per right, per down
        middle = frame.volume.centre_mm.double().numpy()
        position = across[2] + slopes @ (middle[[right, down]] - to_mm[:, 2])
        return cls(np.array([position, slopes[1], slopes[0]]), invert_affine(to_mm))

    def matrix(self, frame: Frame) -> Matrix:
        """Return the map (3, 3) from pixels of the image to (AP, DV, ML) in mm."""
        down, right = frame.axes
        to_mm = invert_affine(self.to_pixel)
        middle = frame.volume.centre_mm.double().numpy()
        position, per_down, per_right = self.plane
        across = per_right * to_mm[0] + per_down * to_mm[1]
        across[2] += position - per_right * middle[right] - per_down * middle[down]
        found = np.empty((3, 3))
        found[[frame.across, right, down]] = across, to_mm[0], to_mm[1]
        return found

    def on(self, plane: NDArray[np.float64]) -> "Lie":
        """Return the position of the image on another plane."""
        return replace(self, plane=plane)


class Fitter:
    """Registers a section to planes.

    Args:
        network: The registration network.
        frame: The images of planes.
        section: The section.
        side: The part of the brain that it shows: whole, left or right.
    """

    def __init__(self, network: nn.Module, frame: Frame, section: Section, side: str) -> None:
        self.network = network
        self.frame = frame
        self.section = section
        self.shown = frame.shown(side)

    def likeness(self, lie: Lie, planes: NDArray[np.float64]) -> Floats:
        """Return the section's likeness to each of the planes (N, 3) after registration; see `Fit`."""
        return self.fit(lie, planes).likeness

    @torch.inference_mode()
    def fit(self, lie: Lie, planes: NDArray[np.float64]) -> "Fit":
        """Return the section's fit to each of the planes (N, 3)."""
        placed = self._placed(lie)
        parts = np.array_split(planes, -(-len(planes) // _AT_ONCE))
        fits = [self._fit(placed, part) for part in parts]
        return Fit(*(np.concatenate(values) for values in zip(*fits, strict=True)))

    def cell_centres(self) -> Floats:
        """Return the centres (C, 2) of the cells of a fit, as (down, right) in mm."""
        down, right = (
            F.adaptive_avg_pool1d(ticks[None, None], size)[0, 0]
            for ticks, size in zip(self.frame.ticks, _CELLS, strict=True)
        )
        return np.asarray(torch.cartesian_prod(down, right).double().numpy())

    @torch.inference_mode()
    def straightened(self, lie: Lie) -> Lie:
        """Return the position of the image after the affine part of its registration."""
        reference, dvf = self._registration(self._placed(lie), lie.plane[None])
        affine = affine_part(dvf, reference > _TISSUE)[0].numpy()  # (2, 3) in pixels of the frame
        affine[:, :2] += np.eye(2)
        to_frame = homogeneous(self._to_frame_px())
        mm = invert_affine(self._to_frame_px()) @ homogeneous(affine) @ to_frame
        return replace(lie, to_pixel=lie.to_pixel @ homogeneous(mm))

    @torch.inference_mode()
    def strain(self, lie: Lie) -> float:
        """Return the strain, a measure of the bending that makes the section look like the plane.

        It is the root mean square of narrow bends, in thousandths of the width, divided by the local correlation inside
        the tissue. The outlines of two brains are easily made alike; the inside of a different brain needs more bending
        and gains less.
        """
        placed = self._placed(lie)
        reference, dvf = self._registration(placed, lie.plane[None])
        tissue = reference > _TISSUE
        bends = float(bends_of(dvf - wide_part(dvf, tissue), tissue))
        filled = ndimage.binary_fill_holes(tissue[0, 0].numpy())
        inside = ndimage.binary_erosion(filled, iterations=round(_RIM * dvf.shape[-1]))
        correlation = local_correlation(reference, warp(placed, dvf))[0, 0].numpy()
        return bends / max(float(correlation[inside].mean()) if inside.any() else 0.0, _LEAST_CORRELATION)

    @torch.inference_mode()
    def pictures(self, lie: Lie) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the plane of the atlas, and the section placed on it, each (H, W) in 8 bits."""
        images = self.frame.templates(lie.plane[None])[0, 0] * self.shown, self._placed(lie)[0, 0]
        plane, section = ((image.clamp(0, 1) * 255).round().byte().numpy() for image in images)
        return plane, section

    def _to_frame_px(self) -> Matrix:
        """Return the map (2, 3) from (right, down) in mm to pixels of the frame."""
        down, right = self.frame.ticks
        scale = 1 / self.frame.pixel_mm
        return np.array([[scale, 0, -float(right[0]) * scale], [0, scale, -float(down[0]) * scale]])

    def _placed(self, lie: Lie) -> Tensor:
        """Return the section (1, 1, H, W) placed in the frame."""
        down, right = self.frame.ticks
        y, x = torch.meshgrid(down, right, indexing="ij")
        to_grey = self.section.to_grey @ homogeneous(lie.to_pixel)
        step = abs(np.linalg.det(to_grey[:, :2])) ** 0.5 * self.frame.pixel_mm
        affine = torch.from_numpy(to_grey).float()
        points = torch.stack([x, y], -1) @ affine[:, :2].T + affine[:, 2]
        return sample(antialiased(self.section.grey, float(step))[None, None], points[None])

    def _registration(self, placed: Tensor, planes: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        """Return the images (N, 1, H, W) of planes, and the fields (N, 2, H, W) that register the section to them."""
        reference = self.frame.templates(planes) * self.shown
        moving = placed.expand(len(planes), -1, -1, -1)
        return reference, self.network(reference, moving).dvf.float()

    def _fit(self, placed: Tensor, planes: NDArray[np.float64]) -> "Fit":
        reference, dvf = self._registration(placed, planes)
        tissue = reference > _TISSUE
        wide = wide_part(dvf, tissue)
        registered = warp(placed.expand(len(planes), -1, -1, -1), wide)
        correlation = local_correlation(reference, registered)
        likeness = mutual_information(reference, registered, bins=_BINS) + correlation.mean((1, 2, 3))
        cells = F.adaptive_avg_pool2d(correlation, _CELLS).flatten(1)
        bends = bends_of(dvf - wide, tissue)
        return Fit(*(values.double().numpy() for values in (likeness, bends, cells)))


class Fit(NamedTuple):
    """The fit of a section to N planes, after registration by an affine map and wide bends only.

    If narrow bends counted, the section would look as much like a wrong plane as like the right one.

    Attributes:
        likeness: Mutual information and mean local correlation, (N,).
        bends: The size of the narrow bends that were left out, (N,); see `bends_of`.
        cells: The mean local correlation in cells of the image, (N, C).
    """

    likeness: Floats
    bends: Floats
    cells: Floats


def bends_of(narrow: Tensor, tissue: Tensor) -> Tensor:
    """Return the root mean square (N,) of fields (N, 2, H, W) on tissue, in thousandths of the width."""
    squares = narrow.square().sum(1, keepdim=True) * tissue
    mean = squares.sum((1, 2, 3)) / tissue.sum((1, 2, 3)).clamp(min=1)
    return 1000 / narrow.shape[-1] * mean.sqrt()


def affine_part(dvf: Tensor, tissue: Tensor) -> Tensor:
    """Return the affine displacements (N, 2, 3) of (x, y, 1) nearest to fields (N, 2, H, W) on tissue (N, 1, H, W)."""
    basis = _pixels(dvf)
    weighted = basis * tissue.flatten(1)[..., None]
    normal = weighted.mT @ basis + _LEAST_WEIGHT * torch.eye(3, dtype=basis.dtype)
    solved: Tensor = torch.linalg.solve(normal, weighted.mT @ dvf.flatten(2).mT.double())
    return solved.mT


def wide_part(dvf: Tensor, tissue: Tensor) -> Tensor:
    """Return fields (N, 2, H, W) without narrow bends: their affine part on tissue (N, 1, H, W), and wide bends."""
    affine = affine_field(affine_part(dvf, tissue), dvf)
    return affine + smoothed(dvf - affine, _WIDE_BENDS * dvf.shape[-1])


def affine_field(affine: Tensor, like: Tensor) -> Tensor:
    """Return affine displacements (N, 2, 3) as fields of the size of `like`."""
    return (affine @ _pixels(like).T).view(like.shape).to(like)


def smoothed(field: Tensor, sigma_px: float) -> Tensor:
    """Return fields (N, 2, H, W) averaged under a Gaussian that ignores everything beyond the border."""
    along_y, along_x = (_averages(size, sigma_px).to(field) for size in field.shape[-2:])
    return along_y @ field @ along_x.T


def _averages(size: int, sigma_px: float) -> Tensor:
    points = torch.arange(size)
    heights = torch.exp(-((points[:, None] - points) ** 2) / (2 * sigma_px**2))
    return heights / heights.sum(1, keepdim=True)


def _pixels(like: Tensor) -> Tensor:
    """Return (x, y, 1) of all pixels of images (…, H, W), float64 (H · W, 3)."""
    height, width = like.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3).double()
