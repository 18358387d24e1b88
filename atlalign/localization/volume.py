"""The atlas as a volume that is sampled at any point, in mm along AP, DV and ML."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.atlas.atlas import Atlas

COLUMNS_PX = 228
"""Pixels across the atlas in a search: the resolution of the shipped registration network."""


def width_um(atlas: Atlas) -> float:
    """Return the width of an atlas along ML."""
    return atlas.pixel_um[0] * atlas.image_shape[1]


@dataclass(frozen=True, eq=False)
class AtlasVolume:
    """Template and region ids at a coarse resolution.

    Attributes:
        template: float32 in [0, 1], (P, H, W).
        labels: Region ids (P, H, W), 0 outside of the brain.
        voxel_mm: The size of a voxel along AP, DV, ML, float32 (3,).
        first_mm: The outer corner of the first voxel, float32 (3,).
    """

    template: Tensor
    labels: Tensor
    voxel_mm: Tensor
    first_mm: Tensor

    @classmethod
    def of(cls, atlas: Atlas, voxel_um: float = 50.0) -> "AtlasVolume":
        """Return the volume of an atlas, with voxels averaged to about `voxel_um`.

        Raises:
            InputError: If the atlas has no region ids.
        """
        if atlas.annotation is None:
            raise atlas.lacks_annotation()
        size_um = (atlas.spacing_um, atlas.pixel_um[1], atlas.pixel_um[0])
        first_um = (0.0, atlas.origin_um[1] - size_um[1] / 2, atlas.origin_um[0] - size_um[2] / 2)
        steps = tuple(max(1, round(voxel_um / size)) for size in size_um)
        labels = atlas.annotation[tuple(slice(step // 2, None, step) for step in steps)].contiguous()
        template = _joined(atlas.template, steps, labels.shape)
        voxel_mm = torch.tensor([step * size / 1000 for step, size in zip(steps, size_um, strict=True)])
        return cls(template, labels, voxel_mm, torch.tensor(first_um) / 1000)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """The far end of the volume along AP, DV, ML."""
        ap, dv, ml = (self.first_mm + self.voxel_mm * torch.tensor(self.labels.shape)).tolist()
        return ap, dv, ml

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """The size of the volume along AP, DV, ML."""
        ap, dv, ml = (self.voxel_mm * torch.tensor(self.labels.shape)).tolist()
        return ap, dv, ml

    @property
    def centre_mm(self) -> Tensor:
        """The middle of the volume along AP, DV, ML."""
        return self.first_mm + self.voxel_mm * torch.tensor(self.labels.shape) / 2

    def indices(self, points_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Return the flat index of the voxel that holds each point (..., 3), and whether the point lies inside."""
        shape = torch.tensor(self.labels.shape)
        index = ((points_mm - self.first_mm) / self.voxel_mm).floor().int()
        inside = ((index >= 0) & (index < shape)).all(-1)
        ap, dv, ml = torch.minimum(index.clamp(min=0), shape - 1).unbind(-1)
        return (ap * shape[1] + dv) * shape[2] + ml, inside

    def at(self, points_mm: Tensor) -> tuple[Tensor, Tensor]:
        """Return template and region ids at points (..., 3), both 0 outside."""
        index, inside = self.indices(points_mm)
        return self.template.view(-1)[index] * inside, self.labels.view(-1)[index] * inside


def _joined(template: Tensor, steps: tuple[int, ...], shape: torch.Size) -> Tensor:
    """Return means over blocks of `steps` voxels; the last blocks may be incomplete."""
    planes = []
    for start in range(0, len(template), steps[0]):
        mean = template[start : start + steps[0]].float().mean(0)[None, None]
        planes.append(F.avg_pool2d(mean, steps[1:], steps[1:], ceil_mode=True)[0, 0])
    joined = torch.stack(planes)[: shape[0], : shape[1], : shape[2]] / 255
    assert math.prod(joined.shape) == math.prod(shape)
    return joined.contiguous()
