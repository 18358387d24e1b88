"""Refinement at test time: it comes closer to a known warp, in another contrast, and never folds."""

import math

import pytest
import torch

from atlalign.atlas.atlas import phantom_atlas
from atlalign.geometry import compose, integrate, invert, jacobian_determinant, smooth_field, warp
from atlalign.registration import refine as refinement
from atlalign.registration.refine import refine

SHAPE = (64, 92)


@pytest.fixture(scope="module")
def reference():
    return phantom_atlas(image_shape=SHAPE, spacing_um=1200).section(6000)[None]


@pytest.fixture(scope="module")
def dvf():
    drawn = smooth_field(
        1, SHAPE, mean_fraction=0.015, largest_fraction=0.04, generator=torch.Generator().manual_seed(4)
    )
    return drawn.dvf


@pytest.fixture
def nothing():
    return torch.zeros(1, 2, *SHAPE)


def distance(field, truth, reference):
    """Return the mean distance in pixels over tissue."""
    return (field - truth).square().sum(1).sqrt()[reference[:, 0] > 0.1].mean()


@pytest.mark.parametrize("inverted", [False, True])
def test_it_comes_closer_to_a_known_warp_whichever_image_is_brighter(reference, dvf, nothing, inverted):
    moving = warp(reference, invert(dvf))  # so that dvf brings it back
    moving = (1 - moving) * (moving > 0.05) if inverted else moving
    refined = refine(reference, moving, nothing, steps=50)
    assert distance(refined, dvf, reference) < 0.5 * distance(nothing, dvf, reference)
    assert (jacobian_determinant(refined) > 0).all()


def test_a_shift_is_found_in_inverted_contrast(reference, nothing):
    shift = nothing + torch.tensor([3.0, -2.0]).view(1, 2, 1, 1)
    refined = refine(reference, 1 - warp(reference, -shift), nothing, steps=50)
    assert distance(refined, shift, reference) < 0.5


def test_uninformative_images_keep_the_start(reference, dvf, nothing):
    grey = torch.full_like(reference, 0.4)
    for pair in ((grey, grey), (grey, reference), (reference, grey)):
        assert torch.allclose(refine(*pair, dvf, steps=3), dvf, atol=1e-5)
    assert distance(refine(reference, reference, nothing, steps=20), nothing, reference) < 0.2


def test_the_start_is_kept_without_steps(reference, dvf):
    assert torch.allclose(refine(reference, reference, dvf, steps=0), dvf, atol=1e-5)


def test_from_a_good_start_it_comes_closer_the_more_steps_it_takes(reference, dvf):
    moving = warp(reference, invert(dvf))
    start = compose(dvf, integrate(torch.full_like(dvf, 0.8)))
    fields = [start, *(refine(reference, moving, start, steps=steps) for steps in (2, 40))]
    none, few, many = (distance(field, dvf, reference) for field in fields)
    assert many < few < none


def test_both_ways_are_inverse_to_each_other(reference, dvf, nothing):
    moving = warp(reference, invert(dvf))
    there, back = (
        refine(*pair, nothing, steps=20, smoothness=0.01)
        for pair in ((reference, moving), (moving, reference))
    )
    assert distance(there, nothing, reference) > 0.5
    assert distance(compose(back, there), nothing, reference) < 0.05


def test_nothing_folds_however_little_it_is_smoothed(reference, nothing, monkeypatch):
    monkeypatch.setattr(refinement, "_FIRST_SMOOTHNESS", 0.05)
    monkeypatch.setattr(refinement, "_STEP", 2.0)
    noise = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    refined = refine(reference, noise, nothing, steps=40, smoothness=0.02, expected_error=math.inf)
    assert refined.abs().max() > 4
    assert (jacobian_determinant(refined) > 0).all()


def test_it_repeats_itself_and_works_inside_of_inference_mode(reference, dvf, nothing):
    moving = warp(reference, dvf)
    with torch.inference_mode():
        refined = refine(reference, moving, nothing, steps=2)
    assert refined.abs().max() > 0
    assert torch.equal(refined, refine(reference, moving, nothing, steps=2))


def test_the_smoother_it_is_the_less_fields_bend(reference, dvf, nothing):
    moving = warp(reference, invert(dvf))
    fields = [refine(reference, moving, nothing, steps=40, smoothness=share) for share in (0.01, 0.15)]
    bent, smooth = (torch.diff(field, n=2, dim=-1).abs().mean() for field in fields)
    assert smooth < 0.8 * bent


def test_movements_are_penalised(reference, nothing):
    other = phantom_atlas(image_shape=SHAPE, spacing_um=1200, seed=5).section(8400)[
        None
    ]  # another plane and brain
    errors = (0.01, 0.05, math.inf)
    little, more, free = (
        refine(reference, other, nothing, steps=30, expected_error=error).square().mean().sqrt()
        for error in errors
    )
    assert little < 0.5 * more
    assert more < 0.8 * free
    shift = nothing + torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
    right = refine(reference, warp(reference, -shift), nothing, steps=30)  # worth its price
    assert distance(right, shift, reference) < 0.5


def test_mutual_information_is_that_of_the_histogram():
    # Four equally likely pairs of bins, one to one: log(4) nats; at both ends the blur leaves the table.
    levels = torch.tensor([0.0, 10, 20, 31]).repeat(16, 16).view(1, 16, 64) / 31
    all_ = torch.ones(1, 1, 16, 64)
    mutual = refinement._mutual_information(levels, levels[..., [1, 2, 3, 0] * 16], all_)
    assert mutual.item() == pytest.approx(math.log(4), abs=5e-3)
    apart = refinement._mutual_information(levels, levels.mT.reshape(1, 16, 64), all_)
    assert apart.item() == pytest.approx(0, abs=1e-3)
    # What has no weight does not count: the right half of the second image says something else.
    half = torch.cat([torch.ones(1, 1, 16, 32), torch.zeros(1, 1, 16, 32)], dim=-1)
    mixed = torch.cat([levels[..., :32], levels.mT.reshape(1, 16, 64)[..., 32:]], dim=-1)
    assert refinement._mutual_information(levels, mixed, half).item() == pytest.approx(math.log(4), abs=0.02)
    assert refinement._mutual_information(levels, mixed, all_).item() < 1.2


def test_the_gradient_of_mutual_information_is_that_of_its_change():
    torch.manual_seed(0)
    fixed = torch.rand(1, 200, 300)
    warped = (0.8 * fixed + 0.1 * torch.rand_like(fixed)).requires_grad_()
    weights = torch.ones(1, *fixed.shape)
    value = refinement._mutual_information(fixed, warped, weights)
    (gradient,) = torch.autograd.grad(value, warped)
    towards = (0.8 * fixed + 0.05 - warped).detach()  # less noise
    change = refinement._mutual_information(fixed, warped.detach() + 0.3 * towards, weights) - value
    assert 0.3 * (gradient * towards).sum().item() == pytest.approx(change.item(), rel=0.5)


def test_local_correlation_is_1_for_any_linear_relation(reference):
    rough = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    related = refinement.local_correlation(rough, 0.9 - 0.7 * rough)
    assert related.mean().item() > 0.95  # a floor of variance
    assert refinement.local_correlation(rough, torch.full_like(rough, 0.5)).mean().item() < 1e-6
    assert refinement._mean(related, torch.zeros_like(rough)).item() == 0


def test_remaining_tissue_is_not_pulled_over_a_missing_piece(nothing, monkeypatch):
    y, x = torch.meshgrid(*(torch.arange(float(size)) for size in SHAPE), indexing="ij")
    ellipse = torch.sigmoid(12 - 12 * ((x - 46) / 34) ** 2 - 12 * ((y - 32) / 22) ** 2)
    whole = (ellipse * (0.6 + 0.1 * torch.cos(x / 6) * torch.cos(y / 5)))[None, None]
    torn = whole * torch.sigmoid(3 * (60 - x))

    def moved_px() -> float:
        """Return by how much what lies beside the tear is moved."""
        beside = refine(whole, torn, nothing, steps=50, expected_error=math.inf)[0, :, 32, 50:60]
        return beside.square().sum(0).sqrt().mean().item()

    assert moved_px() < 0.3
    monkeypatch.setattr(refinement, "_PIECE", 1.0)  # no piece is as large
    assert moved_px() > 0.6


def test_only_tissue_near_the_other_image_is_compared():
    images = torch.zeros(2, 1, 40, 80)
    images[:, :, 10:30, 10:30] = 0.5
    images[1, :, 10:30, 31:33] = 0.5  # within the radius of 2 px
    images[0, :, 10:30, 50:70] = 0.5  # only there
    images[0, :, 36, 76] = 1.0  # a speck
    expected = torch.ones(1, 1, 40, 80)
    expected[:, :, 8:32, 48:72] = 0
    assert torch.equal(refinement._comparable(images), expected)
