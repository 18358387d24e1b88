"""Refinement at test time: it comes closer to a known warp, in another contrast, and never folds."""

import pytest
import torch

from atlalign.data.atlas import phantom_atlas
from atlalign.geometry import compose, integrate, invert, jacobian_determinant, smooth_field, warp
from atlalign.losses.image import ncc
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


@pytest.mark.parametrize("inverted", [False, True])
def test_it_comes_closer_to_a_known_warp_whichever_image_is_brighter(reference, dvf, inverted):
    moving = warp(reference, invert(dvf))  # so that dvf brings it back
    moving = (1 - moving) * (moving > 0.05) if inverted else moving
    refined = refine(reference, moving, torch.zeros_like(dvf), steps=60)
    tissue = reference[:, 0] > 0.1
    before, after = (field.square().sum(1).sqrt()[tissue].mean() for field in (dvf, refined - dvf))
    assert after < 0.6 * before
    assert (jacobian_determinant(refined) > 0).all()


def test_the_start_is_kept_where_nothing_is_better(reference, dvf):
    assert torch.equal(refine(reference, reference, torch.zeros_like(dvf), steps=3), torch.zeros_like(dvf))
    assert torch.allclose(refine(reference, reference, dvf, steps=0), dvf, atol=1e-5)


def test_what_the_network_found_is_where_it_starts(reference, dvf):
    """It moves from the field that it is given, and the better the more steps it takes."""
    moving = warp(reference, invert(dvf))
    start = compose(dvf, integrate(torch.full_like(dvf, 0.8)))
    few, many = (refine(reference, moving, start, steps=steps) for steps in (2, 40))
    loss = [float(ncc(reference, warp(moving, field))) for field in (start, few, many)]
    assert loss[0] > loss[1] > loss[2]


@pytest.mark.parametrize("smoothness", [0.0, 1e-3])
def test_nothing_folds_however_little_it_is_smoothed(reference, smoothness):
    noise = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    refined = refine(reference, noise, torch.zeros(1, 2, *SHAPE), steps=40, smoothness=smoothness)
    assert refined.abs().max() > 1
    assert (jacobian_determinant(refined) > 0).all()


def test_it_works_inside_of_inference_mode(reference, dvf):
    with torch.inference_mode():
        refined = refine(reference, warp(reference, dvf), torch.zeros_like(dvf), steps=2)
    assert refined.abs().max() > 0
