"""Damage: lost parts have the drawn size and the requested frequency, and draws can be replayed anywhere."""

import pytest
import torch
from torch import Tensor

from atlalign.errors import InputError
from atlalign.synthesis.contrast import apply_contrast, draw_contrast
from atlalign.synthesis.damage import Damage, draw_damage, missing, missing_half

SHAPE = (96, 136)
EACH = {"p_holes": 1.0, "p_tears": 1.0, "p_cut": 1.0, "p_half": 1.0}


def draw(n: int = 32, seed: int = 0, **options) -> Damage:
    return draw_damage(torch.zeros(n, 1, *SHAPE), generator=torch.Generator().manual_seed(seed), **options)


def lost(n: int = 32, seed: int = 0, **options) -> Tensor:
    """Return the mask of lost parts (n, H, W)."""
    return missing(draw(n, seed, **options), SHAPE)[:, 0]


def test_nothing_is_missing_unless_asked_for():
    assert not lost().any()
    assert not missing_half(draw(), SHAPE).any()


@pytest.mark.parametrize("p", EACH)
def test_each_kind_comes_as_often_as_its_probability(p):
    share = lost(200, **{p: 0.3}).flatten(1).any(1).float().mean()
    assert share == pytest.approx(0.3, abs=0.1)
    assert lost(20, **{p: 1.0}).flatten(1).any(1).all()


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_holes_take_their_share_of_the_image(share):
    found = lost(p_holes=1, hole_share=(share, share)).float().mean((1, 2))
    assert found.mean() == pytest.approx(share, rel=0.1)


def test_a_tear_is_as_wide_as_drawn():
    """Along a straight tear, 10 px per unit of noise."""
    x = (torch.arange(SHAPE[1]) - 60.0) / 10
    damage = draw(1, p_tears=1, tear_px=(4, 4))
    noise = torch.nn.functional.interpolate(
        x.expand(1, 1, 6, SHAPE[1]), (6, 8), mode="bilinear", align_corners=True
    )
    none = torch.full_like(noise, -9.0)
    straight = damage._replace(noise=torch.cat([none, noise, none, none], dim=1))
    row = missing(straight, SHAPE)[0, 0, 40]
    assert row.nonzero()[:, 0].tolist() in ([58, 59, 60, 61], [59, 60, 61], [59, 60, 61, 62])
    assert not missing(straight._replace(noise=torch.cat([none, noise, -none, none], dim=1)), SHAPE).any()


def test_tears_are_thin():
    width, double = (float(lost(p_tears=1, tear_px=(w, w)).float().mean()) for w in (2, 4))
    assert 0.002 < width < 0.03
    assert double == pytest.approx(2 * width, rel=0.15)


def straight_edges(damage: Damage) -> Damage:
    return damage._replace(noise=torch.zeros_like(damage.noise))


def test_a_cut_takes_its_share_from_the_side_that_it_looks_to():
    damage = straight_edges(draw(4, p_cut=1, cut_share=(0.25, 0.25)))
    angle = torch.tensor([0, 0.5, 1, 1.5]).view(4, 1, 1) * torch.pi
    right, below, left, above = missing(damage._replace(cut_angle=angle), SHAPE)[:, 0]
    assert torch.equal(right, (torch.arange(136) >= 102).expand(SHAPE))
    assert torch.equal(below, (torch.arange(96) >= 72)[:, None].expand(SHAPE))
    assert torch.equal(left, right.flip(1))
    assert torch.equal(above, below.flip(0))


def test_a_half_ends_near_the_midline_left_as_often_as_right():
    damage = draw(200, p_half=1)
    assert set(damage.half.flatten().tolist()) == {-1.0, 1.0}
    assert damage.half.mean().abs() < 0.2
    found, halves = missing(damage, SHAPE), missing_half(damage, SHAPE)
    assert torch.equal(halves[damage.half.flatten() == -1][0, 0], (torch.arange(136) < 68).expand(SHAPE))
    assert (found ^ halves).any(2).float().sum(-1).max() < 0.1 * 136  # ragged
    assert torch.equal(missing(straight_edges(damage), SHAPE), halves)


def test_missing_tissue_shows_the_ground_of_the_contrast():
    labels, template = torch.ones(8, 1, *SHAPE).int(), torch.rand(8, 1, *SHAPE)
    contrast = draw_contrast(labels, p_bright=1, noise=(0, 0), bias=(0, 0), blur_px=(0, 0), texture=(0, 0))
    holes = missing(draw(8, **EACH), SHAPE)
    image = apply_contrast(template, labels.masked_fill(holes, 0), contrast)
    assert image[holes].min() >= 0.75
    assert torch.equal(image[~holes], apply_contrast(template, labels, contrast)[~holes])


def test_a_draw_is_replayed_and_sections_do_not_depend_on_their_batch():
    damage = draw(6, **EACH)
    whole = missing(damage, SHAPE)
    assert torch.equal(missing(draw(6, **EACH), SHAPE), whole)
    assert not torch.equal(missing(draw(6, seed=1, **EACH), SHAPE), whole)
    assert torch.equal(missing(Damage(*(part[2:3] for part in damage)), SHAPE), whole[2:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_holes": 1.5}, r"damage.p_holes: expected a probability in \[0, 1\], got 1.5"),
        ({"hole_share": (0.2, 0.1)}, r"damage.hole_share: expected \[from, to\]"),
        ({"tear_px": (-1, 1)}, "damage.tear_px: .* 0 ≤ from ≤ to ≤ 20"),
        ({"cut_share": (0.1, 0.9)}, "damage.cut_share: .* ≤ 0.5, got"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        draw(1, **options)
