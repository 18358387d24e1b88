"""Measures on inputs whose value is known by hand."""

import math

import numpy as np
import pytest
import torch

from atlalign.geometry import affine_to_dvf
from atlalign.metrics import (
    angular_error,
    contingency,
    correlation,
    field_correlation,
    field_variance,
    folding_fraction,
    hausdorff_95,
    inverse_consistency,
    log_jacobian_std,
    mutual_information,
    overlap,
    r2,
    target_registration_error,
    vector_distance,
)


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


def constant(dx: float, dy: float, shape: tuple[int, int] = (6, 8)) -> torch.Tensor:
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(1, 2, *shape).clone()


def test_angular_error_is_that_of_vectors_with_a_third_component_of_one():
    assert angular_error(constant(0, 0), constant(1, 0)).item() == pytest.approx(45)
    assert angular_error(constant(1, 0), constant(-1, 0)).item() == pytest.approx(90)
    assert angular_error(constant(1, 0), constant(0, 1)).item() == pytest.approx(60)  # cos = 1 / (√2 √2)
    dvf = 5 * torch.randn(3, 2, 6, 8)
    assert angular_error(dvf, dvf).eq(0).all()  # the arc cosine would give hundredths of a degree


def test_agreement_of_fields():
    true = torch.randn(2, 2, 16, 20)
    assert field_correlation(true, 3 * true + 1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert r2(true, true).tolist() == [1, 1]
    mean = true.mean((2, 3), keepdim=True).expand_as(true)
    assert r2(true, mean).tolist() == pytest.approx([0, 0], abs=1e-5)  # the mean explains nothing
    swapped = field_correlation(true, torch.stack([true[:, 0], -true[:, 1]], 1))
    assert swapped.tolist() == pytest.approx([0, 0], abs=1e-5)  # r = 1 in x, −1 in y
    assert r2(constant(3.0, 1.0), constant(3.0, 1.0)).isnan().all()  # nothing varies


def test_r2_is_that_of_all_pixels_together():
    """Weighted by the true variances, components and fields give the r² of all values."""
    true = torch.randn(3, 2, 8, 10) * torch.tensor([1.0, 5.0, 0.1]).view(3, 1, 1, 1) + 2
    true[:, 0] *= 3
    predicted = 0.8 * true + torch.randn(3, 2, 8, 10)
    mean = true.mean((2, 3), keepdim=True)
    weights = field_variance(true)
    pooled = (r2(true, predicted) * weights).sum() / weights.sum()
    assert pooled.item() == pytest.approx(
        (1 - (true - predicted).square().sum() / (true - mean).square().sum()).item(), rel=1e-5
    )
    assert r2(true, predicted)[2] < -1 < 0.8 < pooled  # whose mean would be far below 0


def test_log_jacobian_std_sees_spread_but_not_size():
    matrix = torch.tensor([[[1.2, 0.0, 0.0], [0.0, 1.1, 0.0]]])
    assert log_jacobian_std(affine_to_dvf(matrix, (12, 16))).item() == pytest.approx(0, abs=1e-5)
    dvf = constant(0, 0, (4, 41))
    dvf[0, 0, :, 20:] = torch.arange(
        21.0
    )  # the right half is stretched to twice its width: log 2, the seam log 1.5
    logs = torch.tensor([0.0] * 20 + [math.log(1.5)] + [math.log(2)] * 20)
    assert log_jacobian_std(dvf).item() == pytest.approx(logs.std(correction=0).item(), abs=1e-5)
    folded = constant(0, 0, (4, 12))
    folded[0, 0] = -3 * torch.arange(12.0)
    assert log_jacobian_std(folded).isnan().all()


def test_inverse_consistency_is_the_distance_after_there_and_back():
    assert inverse_consistency(constant(2, -1), constant(-2, 1)).item() == 0
    assert inverse_consistency(constant(2, -1), constant(-2, 1) + constant(3, 4)).item() == pytest.approx(5)
    assert inverse_consistency(constant(99, 0), constant(0, 0)).isnan().all()  # all of it leaves the image
    there = constant(
        2, 0
    )  # the last two columns leave the image, and what the inverse says of them does not count
    back = constant(-2, 0)
    back[..., -1] = 0
    assert inverse_consistency(there, back).item() == pytest.approx(6 * 2 / (6 * 6))


def test_mutual_information_of_images_that_determine_each_other_is_their_entropy():
    image = torch.tensor([0.1, 0.3, 0.6, 0.9]).repeat(6).view(1, 1, 4, 6)
    assert mutual_information(image, 1 - image).item() == pytest.approx(math.log(4), abs=1e-6)
    assert mutual_information(image, torch.full_like(image, 0.5)).item() == pytest.approx(0, abs=1e-6)
    half = (image > 0.5).float()
    assert mutual_information(image, half).item() == pytest.approx(math.log(2), abs=1e-6)


def test_target_registration_error_of_a_shift():
    reference, moving = torch.tensor([[[2.0, 3.0], [1.0, 1.0]]]), torch.tensor([[[5.0, 7.0], [1.0, 1.0]]])
    error = target_registration_error(reference, moving, constant(0, 0))
    assert error.tolist() == [[5, 0]]
    assert target_registration_error(reference, moving, constant(3, 4)).tolist() == [[0, 5]]
    in_um = target_registration_error(reference, moving, constant(0, 0), pixel=(10.0, 20.0))
    assert in_um[0, 0].item() == pytest.approx(math.hypot(30, 80))


def square(left: int, label: int = 7) -> np.ndarray:
    labels = np.zeros((20, 30), np.int64)
    labels[5:15, left : left + 10] = label
    return labels


def test_overlap_of_a_shifted_square():
    found = overlap(contingency(square(5), square(8)))
    assert found.region.tolist() == [7]
    assert found.dice.tolist() == [0.7]
    assert found.iou.tolist() == [70 / 130]
    exact = overlap(contingency(square(5), square(5)))
    assert (exact.dice.tolist(), exact.iou.tolist(), exact.in_both.tolist()) == ([1], [1], [True])


def test_a_region_in_one_image_alone_counts_as_missed():
    found = overlap(contingency(square(5), square(5, label=2**31 + 1)))
    assert found.region.tolist() == [7, 2**31 + 1]
    assert found.dice.tolist() == found.iou.tolist() == [0, 0]
    assert not found.in_both.any()
    assert hausdorff_95(square(5), square(5, label=9)) == {}
    assert overlap(contingency(0 * square(5), 0 * square(5))).dice.size == 0
    with pytest.raises(ValueError, match=r"one shape, got \(20, 30\) and \(20, 29\)"):
        contingency(square(5), square(5)[:, 1:])


def test_merged_regions_overlap_as_their_labels_would():
    labels = np.random.default_rng(0).integers(0, 5, (2, 12, 14))
    coarse = np.array([0, 10, 10, 30, 30])
    table = contingency(*labels)
    merged, direct = overlap(table.relabelled(coarse[table.region])), overlap(contingency(*coarse[labels]))
    assert merged.region.tolist() == [10, 30]
    for one, other in zip(merged, direct, strict=True):
        np.testing.assert_array_equal(one, other)


def test_hausdorff_distance_of_a_shifted_square():
    assert hausdorff_95(square(5), square(5)) == {7: 0}
    # 36 pixels of outline: of the left edge's 10 pixels all are 3 px away, which is more than 5 %.
    assert hausdorff_95(square(5), square(8)) == {7: 3}
    assert hausdorff_95(square(5), square(8), pixel=(25.0, 10.0)) == {7: 75}
    assert hausdorff_95(square(5).T, square(8).T, pixel=(25.0, 10.0)) == {7: 30}
    speck = square(5)
    speck[0, 29] = 7  # one pixel of 37 far away does not count in the 95th percentile
    assert hausdorff_95(square(5), speck) == {7: 0}


def test_hausdorff_distance_is_the_95th_percentile_of_either_direction():
    row = np.zeros((20, 100), int)
    row[2, :93] = 7
    with_more = row.copy()
    with_more[12, :7] = 7  # 7 of 100 pixels lie 10 px away: in the 95th percentile, and not in the 90th
    assert hausdorff_95(row, with_more) == hausdorff_95(with_more, row) == {7: 10}


def test_an_outline_ends_at_the_image():
    whole, half = np.ones((10, 10), int), np.ones((10, 10), int)
    half[:, 5:] = 0
    assert hausdorff_95(whole, half) == {1: 5}
