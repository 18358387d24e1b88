"""Whether two atlases are the same one, judged by the ids, volumes and relative positions of large regions.

These properties do not depend on the resolution or the source, and stay the same in a cut or padded volume. The atlas
of another species has other ids, or the same ids at other positions.
"""

from collections.abc import Sequence

import numpy as np

from atlalign.io.pixels import Floats
from atlalign.localization.volume import AtlasVolume

_MOST = 60
_STEP = 2  # voxels: every second one along each axis is counted
_SAME_VOLUME = 0.25  # as a fraction: regions that a cut has made smaller do not count
_NEAR_MM = 0.25
_LEAST, _LEAST_SHARE = 10, 0.7  # of the regions with the same volume must lie at the same relative position
_SAME_FRAME_MM = 0.05


def large_regions(volume: AtlasVolume, most: int = _MOST) -> list[list[float]]:
    """Return [id, AP, DV, ML, volume] of the largest regions of an atlas: their centres in mm, volumes in mm³."""
    labels = volume.labels[::_STEP, ::_STEP, ::_STEP].numpy()
    voxel_mm = volume.voxel_mm.double().numpy()
    first_mm = volume.first_mm.double().numpy() + voxel_mm / 2
    ids, region, count = np.unique(labels, return_inverse=True, return_counts=True)
    region = region.reshape(labels.shape)
    centres = np.empty((len(ids), 3))
    for axis in range(3):
        place = np.arange(labels.shape[axis]).reshape([-1 if other == axis else 1 for other in range(3)])
        total = np.bincount(region.ravel(), np.broadcast_to(place, labels.shape).ravel(), len(ids))
        centres[:, axis] = first_mm[axis] + _STEP * voxel_mm[axis] * total / count
    volumes = count * float(np.prod(_STEP * voxel_mm))
    largest = [place for place in np.argsort(-volumes, kind="stable") if ids[place]][:most]
    return [
        [int(ids[place]), *centres[place].round(3).tolist(), round(float(volumes[place]), 3)]
        for place in largest
    ]


def frame_offset_mm(volume: AtlasVolume, regions: Sequence[Sequence[float]]) -> Floats | None:
    """Return the position (3,) of another atlas's first corner in this volume, or None if it is not the same atlas.

    The atlases are the same if most regions with the same id and volume lie at the same relative position. The position
    is 0 unless one of them is cut or padded.

    Args:
        volume: This atlas.
        regions: The `large_regions` of the other atlas.
    """
    own = {int(one[0]): np.array(one[1:]) for one in large_regions(volume, 4 * _MOST)}
    pairs = [(own[int(one[0])], np.array(one[1:])) for one in regions if int(one[0]) in own]
    same = [here[:3] - there[:3] for here, there in pairs if abs(here[3] / there[3] - 1) < _SAME_VOLUME]
    if len(same) < _LEAST:
        return None
    offset: Floats = np.median(same, axis=0)
    near = (np.abs(np.array(same) - offset) < _NEAR_MM).all(axis=1)
    if near.sum() < max(_LEAST, _LEAST_SHARE * len(same)):
        return None
    return np.zeros(3) if np.abs(offset).max() < _SAME_FRAME_MM else offset
