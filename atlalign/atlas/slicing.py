"""An atlas cut across another axis: into horizontal or sagittal planes instead of coronal ones."""

from dataclasses import replace

from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import IN_PLANE


def sliced_across(atlas: Atlas, across: int) -> Atlas:
    """Return an atlas whose planes cut across an axis: 0 for AP, 1 for DV (horizontal), 2 for ML (sagittal).

    Rows and columns of a plane lie along the other two axes, see `IN_PLANE`. No voxel is copied.
    """
    if across == 0:
        return atlas
    x, y = IN_PLANE[across]
    spacing_um = (atlas.spacing_um, *atlas.pixel_um[::-1])  # along AP, DV, ML
    origin_um = (atlas.spacing_um / 2, *atlas.origin_um[::-1])

    def turned(volume: Tensor) -> Tensor:
        return volume.permute(across, y, x)

    return replace(
        atlas,
        template=turned(atlas.template),
        annotation=None if atlas.annotation is None else turned(atlas.annotation),
        spacing_um=spacing_um[across],
        pixel_um=(spacing_um[x], spacing_um[y]),
        origin_um=(origin_um[x], origin_um[y]),
    )
