"""Measures of regions under a field, compared with values computed by hand."""

import math

import pytest
import torch

from atlalign.atlas.atlas import phantom_atlas
from atlalign.evaluation.measures import Regions
from atlalign.geometry import invert, smooth_field, stays_inside, warp


def test_regions_move_with_the_error_of_the_field():
    labels = torch.zeros(1, 20, 30, dtype=torch.int64)
    labels[:, 5:15, 10:20] = 2**31 + 5
    zero, off = torch.zeros(1, 2, 20, 30), torch.zeros(1, 2, 20, 30)
    off[:, 0] = 3
    found = Regions(labels, zero, {"": lambda ids: ids}, (25.0, 10.0)).measures(off)
    assert found == {"dice": 0.7, "iou": 70 / 130, "hd95_um": 75, "lost": 0}
    # Only the error counts: the same 3 px on top of a true shift.
    true = torch.tensor([2.0, -4.0]).view(1, 2, 1, 1).expand(1, 2, 20, 30).contiguous()
    assert Regions(labels, true, {"": lambda ids: ids}, (25.0, 10.0)).measures(true + off) == found


@pytest.fixture(scope="module")
def bent():
    """A plane's labels, and two smooth fields of 5 px in the mean and 17 px at most."""
    labels = phantom_atlas(image_shape=(64, 96), spacing_um=1100.0).labels(6000)
    generator = torch.Generator().manual_seed(0)
    size = {"mean_fraction": 0.05, "largest_fraction": 0.15}
    return labels, *smooth_field(2, (64, 96), **size, spacing=0.25, generator=generator).dvf.split(1)


def test_the_truth_has_dice_1_even_where_it_leaves_the_section(bent):
    labels, true, _ = bent
    found = Regions(labels, true, {"": lambda ids: ids}, (1.0, 1.0)).measures(true)
    assert (found["dice"], found["hd95_um"]) == (1, 0)


def test_labels_go_to_the_section_by_the_truth_and_come_back_by_the_judged_field(bent):
    labels, true, judged = bent
    regions = Regions(labels, true, {}, (1.0, 1.0))
    in_section = warp(labels[None], invert(true), mode="nearest")
    for field in (true, judged):
        inside = stays_inside(field)[0].numpy()
        expected = warp(in_section, field, mode="nearest")[0, 0].numpy()
        # Looked up twice instead of once, an outline is rounded twice; a wrong order or sign leaves at most 0.78.
        assert (regions.carried(field) == expected)[inside].mean() > 0.93
        assert not regions.carried(field)[~inside].any()
    assert (regions.carried(true) == labels[0].numpy())[stays_inside(true)[0].numpy()].mean() > 0.99


def test_field_pointing_outside_brings_back_no_label():
    off = torch.zeros(1, 2, 20, 30)
    off[:, 0] = 3
    regions = Regions(torch.ones(1, 20, 30, dtype=torch.int32), torch.zeros_like(off), {}, (1.0, 1.0))
    assert (regions.carried(off)[:, :27] == 1).all()
    assert (regions.carried(off)[:, 27:] == 0).all()


def test_measures_of_missing_regions_are_undefined():
    zero = torch.zeros(1, 2, 20, 30)
    found = Regions(torch.zeros(1, 20, 30, dtype=torch.int32), zero, {"": lambda ids: ids}, (1.0, 1.0))
    assert all(math.isnan(value) for value in found.measures(zero).values())
