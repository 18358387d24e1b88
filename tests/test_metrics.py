"""Measures on inputs whose value is known by hand."""

import pytest
import torch

from atlalign.metrics import correlation, folding_fraction, vector_distance


def test_vector_distance_is_euclidean_and_per_sample():
    true = torch.zeros(2, 2, 4, 6)
    predicted = torch.zeros(2, 2, 4, 6)
    predicted[0, 0], predicted[0, 1] = 3, -4
    predicted[1, 0, :2] = 1  # half of the pixels are off by one
    assert vector_distance(true, predicted).tolist() == [5.0, 0.5]


def test_folding_fraction_counts_pixels_that_turn_over():
    dvf = torch.zeros(2, 2, 8, 10)
    columns = torch.arange(10.0)
    dvf[1, 0] = torch.where(columns < 5, 0, -2 * (columns - 5))  # from column 5 on, x runs backwards
    assert folding_fraction(dvf)[0] == 0
    assert folding_fraction(dvf)[1] == pytest.approx(0.5, abs=0.11)  # the seam is one column wide


def test_correlation_ignores_gain_and_offset_and_knows_inversion():
    image = torch.rand(1, 1, 8, 9)
    assert correlation(image, 0.5 * image + 0.2).item() == pytest.approx(1, abs=1e-5)
    assert correlation(image, 1 - image).item() == pytest.approx(-1, abs=1e-5)
    assert correlation(image, torch.full_like(image, 0.3)).item() == pytest.approx(0, abs=1e-3)
    both = torch.stack([torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.0, 0, 1, 1])]).view(2, 1, 2, 2)
    assert correlation(both[:1], both[1:]).item() == pytest.approx(0, abs=1e-6)
