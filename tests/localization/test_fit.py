"""What is left of a registration without narrow bends, and how much a section must be bent."""

import pytest
import torch

from atlalign.localization.fit import Fitter, Frame, affine_field, affine_part, smoothed, wide_part
from atlalign.localization.volume import AtlasVolume
from atlalign.registration.placement import Section

AFFINE = torch.tensor([[[0.1, -0.02, 3.0], [0.05, 0.0, -2.0]]], dtype=torch.float64)
SIZE = (1, 2, 30, 40)


def tissue() -> torch.Tensor:
    mask = torch.zeros(1, 1, *SIZE[2:], dtype=torch.bool)
    mask[..., 5:25, 8:33] = True
    return mask


def test_the_affine_part_is_that_on_tissue():
    field = affine_field(AFFINE, torch.zeros(SIZE))
    field[..., :5, :] = 100.0  # beyond the tissue anything may be
    assert affine_part(field, tissue()).numpy() == pytest.approx(AFFINE.numpy(), abs=1e-5)
    nowhere = affine_part(field, torch.zeros_like(tissue()))
    assert nowhere.abs().max() < 1e-3


def test_smoothing_keeps_what_is_even_up_to_the_border():
    field = torch.full(SIZE, 2.5)
    assert smoothed(field, 4.0).numpy() == pytest.approx(2.5, abs=1e-5)
    field[..., ::2] += 1
    assert smoothed(field, 4.0)[..., 10:30].std() < 1e-3


def test_wide_bends_remain_and_narrow_ones_do_not():
    x = torch.arange(SIZE[3]) / SIZE[3]
    affine = affine_field(AFFINE, torch.zeros(SIZE))
    wide, narrow = torch.cos(torch.pi * x).expand(SIZE), torch.cos(12 * torch.pi * x).expand(SIZE)
    on_all = torch.ones_like(tissue())
    assert (wide_part(affine + narrow, on_all) - affine).abs().max() < 0.15
    assert (wide_part(affine + wide, on_all) - affine - wide).abs().mean() < 0.15


def test_cells_of_a_fit_lie_on_the_image():
    """The frame covers 8 mm down and 11.2 mm to the right, from the corner at (1, 2) mm."""
    labels = torch.ones(10, 20, 28, dtype=torch.int32)
    volume = AtlasVolume(labels.float(), labels, torch.full((3,), 0.4), torch.tensor([0.0, 1.0, 2.0]))
    section = Section(torch.zeros(4, 4), (1.0, 1.0), (4, 4), None, "dark")
    centres = Fitter(torch.nn.Identity(), Frame(volume, 0, 0.1), section, "whole").cell_centres()
    assert centres.shape == (35, 2)
    assert centres.mean(axis=0) == pytest.approx([5.0, 7.6], abs=1e-4)
    assert centres[0] == pytest.approx([1 + 8 / 10, 2 + 11.2 / 14], abs=0.06)
    assert centres[1] - centres[0] == pytest.approx([0, 1.6], abs=0.06)
