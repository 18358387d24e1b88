"""An atlas is recognised by its large regions at any resolution, cut or padded; another one is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from atlalign.atlas.atlas import phantom_atlas
from atlalign.localization.same_atlas import frame_offset_mm, large_regions
from atlalign.localization.volume import AtlasVolume


@pytest.fixture(scope="module")
def volume() -> AtlasVolume:
    return AtlasVolume.of(phantom_atlas(image_shape=(80, 114), spacing_um=100), 100)


@pytest.fixture(scope="module")
def regions(volume):
    return large_regions(volume)


def with_labels(volume: AtlasVolume, labels: torch.Tensor) -> AtlasVolume:
    return replace(volume, labels=labels)


def test_a_region_has_its_centre_and_volume():
    labels = torch.zeros(20, 10, 10, dtype=torch.int32)
    labels[4:12, 2:6, 0:4] = 7  # 0.1 mm voxels
    labels[14:16, 2:4, 2:4] = 9
    box = AtlasVolume(labels.float(), labels, torch.full((3,), 0.1), torch.tensor([1.0, 0, 0]))
    larger, smaller = large_regions(box)
    assert (larger[0], smaller[0]) == (7, 9)
    # Every second voxel counts, so that a centre may be off by half a voxel.
    assert larger[1:4] == pytest.approx([1.8, 0.4, 0.2], abs=0.051)
    assert larger[4] == pytest.approx(0.8 * 0.4 * 0.4, rel=1e-3)


@pytest.mark.parametrize("spacing_um", [50, 200])
def test_the_same_atlas_at_another_resolution(regions, spacing_um):
    shape = (8000 // spacing_um, 11400 // spacing_um)
    other = AtlasVolume.of(phantom_atlas(image_shape=shape, spacing_um=spacing_um), spacing_um)
    assert frame_offset_mm(other, regions) == pytest.approx([0, 0, 0], abs=1e-9)


@pytest.mark.parametrize(
    ("pads", "offset_mm"),
    [
        ((0, 0, 0, 0, 6, 9), (0.6, 0, 0)),
        ((4, 8, 5, 0, 0, 3), (0, 0.5, 0.4)),
        ((0, 0, 0, 0, -30, -20), (-3.0, 0, 0)),
        ((0, 0, -8, 0, 0, 0), (0, -0.8, 0)),
    ],
)
def test_a_cut_or_padded_copy_has_another_frame(volume, regions, pads, offset_mm):
    labels = torch.nn.functional.pad(volume.labels, pads)
    assert frame_offset_mm(with_labels(volume, labels), regions) == pytest.approx(offset_mm, abs=0.03)


@pytest.mark.parametrize("change", ["ids", "flipped", "stretched", "half", "none in common"])
def test_another_atlas_is_not_recognised(volume, regions, change):
    labels = volume.labels
    ids = labels.unique()
    shuffled = np.r_[0, np.random.default_rng(0).permutation(ids[1:].numpy())]
    changed = {
        "ids": with_labels(volume, torch.from_numpy(shuffled)[torch.searchsorted(ids, labels)]),
        "flipped": with_labels(volume, labels.flip(0)),
        "stretched": replace(volume, voxel_mm=volume.voxel_mm * torch.tensor([1.12, 1, 1])),
        "half": with_labels(volume, labels[..., : labels.shape[2] // 2]),
        "none in common": with_labels(volume, torch.where(labels > 0, labels + 10_000, 0)),
    }
    assert frame_offset_mm(changed[change], regions) is None
