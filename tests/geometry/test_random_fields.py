"""Claims about random fields: their size, their border, their inverses, and that they can be replayed."""

import math
from pathlib import Path

import pytest
import torch
import yaml

from atlalign.errors import InputError
from atlalign.geometry import (
    RANDOM_FIELDS,
    anchor,
    compose,
    control_points,
    draw_affine_simple,
    draw_control_points,
    draw_edge_stretching,
    draw_velocity,
    edges,
    invert,
    jacobian_determinant,
    smooth_field,
    stays_inside,
    warp,
)
from atlalign.geometry.random_fields import (
    INVERTIBLE_FIELDS,
    Affine,
    AffineDraw,
    AffineSmooth,
    Anchor,
    EdgeStretching,
    FieldPair,
    Mix,
    Smooth,
    SmoothDraw,
    Stretching,
    TooFewEdgesError,
    invertible_field,
)
from atlalign.geometry.random_fields.smooth import _spline_basis

SHAPE = (40, 56)
IMAGES = torch.zeros(1, 1, *SHAPE)
UNMOVED = {"scale": 0.0, "rotation": 0.0, "translation_fraction": 0.0, "shear": 0.0}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- smooth fields ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [0.1, 0.25])
def test_smooth_fields_are_as_large_as_asked_and_do_not_fold(spacing):
    dvf, inverse = smooth_field(6, SHAPE, spacing=spacing, generator=seeded())
    displacement = dvf.norm(dim=1).flatten(1) / SHAPE[1]
    mean, largest = displacement.mean(dim=1), displacement.amax(dim=1)
    assert (mean >= 0.02).all()
    assert (largest >= 0.06).all()
    # No larger than needed: each field touches one of the two sizes.
    assert (torch.minimum(mean / 0.02, largest / 0.06) <= 1.01 + 1e-6).all()
    assert jacobian_determinant(dvf).min() > 0
    assert jacobian_determinant(inverse).min() > 0


def test_smooth_fields_and_their_inverses_undo_each_other():
    dvf, inverse = smooth_field(3, SHAPE, generator=seeded())
    assert compose(dvf, inverse).norm(dim=1).max() < 0.01
    # The other way round it is only as good as the interpolation of the inverse between pixels.
    assert compose(inverse, dvf).norm(dim=1).max() < 0.1


def test_smooth_fields_keep_the_border_and_so_all_content():
    dvf, inverse = smooth_field(3, SHAPE, generator=seeded())
    for field in (dvf, inverse):
        border = torch.cat([field[:, :, 0], field[:, :, -1], field[..., 0], field[..., -1]], dim=-1)
        assert border.abs().max() < 1e-3


def test_a_larger_spacing_is_smoother():
    fine, coarse = (draw_velocity(8, SHAPE, spacing=s, generator=seeded()) for s in (0.1, 0.3))
    steepness = [v.diff(dim=-1).abs().mean() / v.abs().mean() for v in (fine, coarse)]
    assert steepness[0] > 2 * steepness[1]


def test_splines_lie_at_the_knots_and_end_at_the_border():
    basis = _spline_basis(41, 10.0, "cpu")
    assert basis.shape == (41, 3)
    for knot, spline in enumerate(basis.T):
        assert spline[10 * (knot + 1)] == pytest.approx(2 / 3)
        assert spline[[0, -1]].abs().max() < 1e-6
    assert basis[20, [0, 2]].tolist() == pytest.approx([1 / 6, 1 / 6])
    assert _spline_basis(46, 10.0, "cpu").shape == (46, 3)  # 4.5 intervals are 4


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda: draw_velocity(1, SHAPE, spacing=-1), "spacing.* -1"),
        (lambda: draw_velocity(1, SHAPE, spacing=0), "spacing.* 0"),
        (lambda: draw_control_points(1, SHAPE, n_points=-1), "n_points.* -1"),
        (lambda: draw_control_points(1, SHAPE, n_points=2.5), r"n_points.* 2\.5"),
        (lambda: draw_control_points(1, SHAPE, radius_max=-1), "radius_max.* -1"),
        (lambda: smooth_field(1, SHAPE, mean_fraction=0.6, generator=seeded()), r"mean_fraction=0\.6"),
        (lambda: Affine(**UNMOVED, largest_fraction=0.1).draw(IMAGES), r"0\.1"),
        (lambda: Affine(largest_fraction=-0.1), "largest_fraction.* -0.1"),
        (lambda: Smooth(mean_fraction=(0.2, 0.1)), r"mean_fraction.* \[0\.2, 0\.1\]|mean_fraction.* \(0\.2"),
        (lambda: Smooth(grid_px=0), "grid_px.* 0"),
        (lambda: Stretching(function="cubic"), "cubic"),
        (lambda: Stretching(radius_fraction=math.inf), "radius_fraction.* inf"),
        (lambda: Anchor(h_kept=2), "h_kept.* 2"),
        (lambda: Mix(parts={"a": Affine()}, weights={"b": 1}), "weights.* b"),
        (lambda: Mix(parts={"a": Affine()}, weights={"a": 0}), "weights.* 0"),
        (lambda: invertible_field("smoth"), "smoth.*smooth"),
    ],
)
def test_parameters_without_a_meaning_are_refused(call, key):
    with pytest.raises(InputError, match=key):
        call()


# --- affine maps ------------------------------------------------------------------------------------------------------


def test_random_affine_maps_reach_their_size_and_have_exact_inverses():
    affine = Affine(mean_fraction=0.02, largest_fraction=0.06)
    drawn = affine.draw(torch.zeros(8, 1, *SHAPE), generator=seeded())
    dvf, inverse = affine.pair(drawn, SHAPE)
    assert torch.equal(dvf, affine.apply(drawn, SHAPE))
    displacement = dvf.norm(dim=1).flatten(1) / SHAPE[1]
    reached = torch.minimum(displacement.mean(dim=1) / 0.02, displacement.amax(dim=1) / 0.06)
    torch.testing.assert_close(reached, torch.ones(8), atol=1e-4, rtol=0)
    assert compose(dvf, inverse)[..., 8:-8, 8:-8].abs().max() < 1e-4


def test_translations_are_fractions_of_the_width():
    drawn = draw_affine_simple(500, (40, 80), translation_fraction=0.1, generator=seeded())
    for translation in (drawn.translation_x, drawn.translation_y):
        assert 7.8 < translation.abs().max() <= 8


# --- edge stretching --------------------------------------------------------------------------------------------------


def square_mask() -> torch.Tensor:
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[0, 10:14, 20:22] = True
    mask[1, 30, 5:12] = True
    return mask


def test_edge_points_are_different_pixels_of_their_own_image():
    mask = square_mask()
    points, displacements = draw_edge_stretching(mask, n_points=7, radius_max=9, generator=seeded())
    for own, drawn in zip(mask, points.long(), strict=True):
        assert own[drawn[:, 1], drawn[:, 0]].all()
        assert len(drawn.unique(dim=0)) == 7
    radius = displacements.norm(dim=-1)
    assert (radius <= 9).all()
    assert radius.std() > 1


def test_points_are_displaced_in_all_directions_alike():
    drawn = draw_control_points(50, SHAPE, n_points=40, generator=seeded()).displacements.flatten(0, 1)
    angle = torch.atan2(drawn[:, 1], drawn[:, 0])
    quarters = torch.histc(angle, bins=4, min=-math.pi, max=math.pi)
    assert (quarters / 2000 - 0.25).abs().max() < 0.05


def test_stretched_edges_move_as_drawn_and_the_corners_stay():
    parameters = draw_edge_stretching(square_mask(), n_points=4, radius_max=6, generator=seeded())
    for function, tolerance in (("linear", 1e-4), ("thin_plate", 1e-4)):
        dvf = control_points(parameters, SHAPE, function=function)
        for field, points, displacements in zip(dvf, *parameters, strict=True):
            x, y = points.long().unbind(1)
            torch.testing.assert_close(field[:, y, x].T, displacements, atol=tolerance, rtol=0)
            assert field[:, [0, 0, -1, -1], [0, -1, 0, -1]].abs().max() < tolerance


def test_too_few_edges_are_refused_without_counting_corners():
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[0, [0, 0, -1, -1, 5], [0, -1, 0, -1, 5]] = True
    with pytest.raises(TooFewEdgesError, match=r"2 .* 1"):
        draw_edge_stretching(mask, n_points=2)


def test_edges_surround_a_bright_square():
    image = torch.zeros(1, 1, *SHAPE)
    image[..., 10:30, 10:40] = 1
    found = edges(image)[0]
    rows, columns = found.nonzero().unbind(1)
    assert found.sum() > 60
    assert not found[14:26, 14:36].any()
    assert rows.min() >= 7
    assert columns.max() <= 42


# --- the table --------------------------------------------------------------------------------------------------------

CONF = Path(__file__).parents[2] / "conf" / "deformation"
SIZES = {"mean_fraction": (0.01, 0.05), "largest_fraction": (0.02, 0.15), "spacing": 0.25}


def bright(n: int = 1) -> torch.Tensor:
    """Return images (B, 1, H, W) with edges."""
    images = torch.zeros(n, 1, *SHAPE)
    images[..., 10:30, 10:40] = 1
    return images


def largest_residual(outer: torch.Tensor, inner: torch.Tensor) -> float:
    """Return the largest |compose(outer, inner)| in px over the points that inner leaves in the image."""
    inside = stays_inside(inner)
    return float(compose(outer, inner).square().sum(1).sqrt()[inside].max())


def test_the_configuration_has_the_kinds_of_the_table_under_their_names():
    targets = {path.stem: yaml.safe_load(path.read_text())["_target_"] for path in CONF.glob("*.yaml")}
    module = "atlalign.geometry.random_fields"
    assert targets == {name: f"{module}.{kind.__name__}" for name, kind in RANDOM_FIELDS.items()}


@pytest.mark.parametrize("name", INVERTIBLE_FIELDS)
@pytest.mark.parametrize("shape", [SHAPE, (100, 172)], ids=str)
def test_fields_and_inverses_are_exact_and_do_not_fold(name, shape):
    field = invertible_field(
        name, mean_fraction=0.02, largest_fraction=0.15, spacing=0.25, grid_px=2, tolerance_px=0.05
    )
    pair = field.pair(field.draw(torch.zeros(4, 1, *shape), generator=seeded()), shape)
    assert largest_residual(pair.dvf, pair.inverse) < 0.051
    assert largest_residual(pair.inverse, pair.dvf) < 0.5  # bilinear between the pixels of a steep inverse
    assert jacobian_determinant(pair.dvf).min() > 0.1


@pytest.mark.parametrize(("grid_px", "shape", "tolerance"), [(1, SHAPE, 0.0101), (2, (100, 172), 0.03)])
def test_smooth_fields_reach_the_drawn_sizes_in_fractions_of_the_width(grid_px, shape, tolerance):
    smooth = Smooth(**SIZES, grid_px=grid_px)
    drawn = smooth.draw(torch.zeros(8, 1, *shape), generator=seeded())
    displacement = smooth.apply(drawn, shape).square().sum(1).sqrt().flatten(1) / shape[1]
    mean, largest = displacement.mean(1), displacement.amax(1)
    reached = torch.minimum(mean / drawn.mean_fraction.flatten(), largest / drawn.largest_fraction.flatten())
    torch.testing.assert_close(reached, torch.ones(8), atol=tolerance, rtol=0)
    assert (drawn.mean_fraction.max() <= 0.05) & (drawn.mean_fraction.min() >= 0.01)
    assert drawn.largest_fraction.std() > 0.01


def parts_and_whole(n: int) -> tuple[FieldPair, FieldPair, FieldPair]:
    """Return the affine parts, the smooth parts and the whole of `n` affine_smooth fields of 96×136."""
    shape = (96, 136)
    whole = AffineSmooth(mean_fraction=0.02, largest_fraction=0.15, spacing=0.25, tolerance_px=0.05)
    drawn = whole.draw(torch.zeros(n, 1, *shape), generator=seeded())
    affine = Affine().pair(AffineDraw(drawn.matrix), shape)
    return affine, Smooth(tolerance_px=0.05).pair(SmoothDraw(*drawn[1:]), shape), whole.pair(drawn, shape)


def test_an_affine_smooth_field_is_undone_by_the_affine_map_first_and_the_smooth_field_second():
    image = torch.nn.functional.interpolate(torch.rand(4, 1, 9, 12), size=(96, 136), mode="bicubic")
    affine, smooth, both = (pair.dvf for pair in parts_and_whole(4))
    right = (warp(image, both) - warp(warp(image, affine), smooth))[..., 12:-12, 16:-16].abs().mean()
    wrong = (warp(image, both) - warp(warp(image, smooth), affine))[..., 12:-12, 16:-16].abs().mean()
    assert right < 0.01 < wrong


def test_beyond_the_border_an_affine_smooth_inverse_is_that_of_its_parts():
    affine, smooth, both = (pair.inverse for pair in parts_and_whole(4))
    expected = compose(smooth, affine)
    outside = ~stays_inside(expected)
    assert outside.float().mean() > 0.02
    assert torch.equal(both.movedim(1, -1)[outside], expected.movedim(1, -1)[outside])


def test_a_velocity_that_would_fold_stays_smaller():
    smooth = Smooth(mean_fraction=0.5, largest_fraction=0.5, spacing=0.1)
    dvf = smooth.apply(smooth.draw(IMAGES, generator=seeded()), SHAPE)
    assert jacobian_determinant(dvf).min() > 0
    assert 0.02 < dvf.norm(dim=1).max() / SHAPE[1] < 0.5


def test_zero_size_gives_no_deformation():
    smooth = Smooth(mean_fraction=0.0, largest_fraction=0.0)
    assert smooth.apply(smooth.draw(IMAGES, generator=seeded()), SHAPE).abs().max() < 1e-3


@pytest.mark.parametrize("name", [*INVERTIBLE_FIELDS, "control_points", "edge_stretching"])
def test_a_field_does_not_depend_on_the_rest_of_its_batch(name):
    field = RANDOM_FIELDS[name]()
    drawn = field.draw(bright(5), generator=seeded())
    alone = type(drawn)(*(part[3:4] for part in drawn))
    before = torch.zeros(5, 2, *SHAPE)
    whole = field.after(before, drawn)[3:4]
    torch.testing.assert_close(field.after(before[:1], alone), whole, atol=1e-3, rtol=0)


def test_every_deformation_comes_after_the_field_before():
    """A shift of 5 px before a deformation adds 5 px to each of its displacements, the anchor apart."""
    shift = torch.zeros(1, 2, *SHAPE)
    shift[:, 0] = 5.0
    for field in (Affine(), Smooth(), EdgeStretching(anchor=None)):
        drawn = field.draw(bright(), generator=seeded(3))
        torch.testing.assert_close(
            field.after(shift, drawn) - field.after(0 * shift, drawn), shift, atol=1e-4, rtol=0
        )


def test_the_anchor_pins_the_corners_and_none_leaves_them():
    shift = torch.full((1, 2, *SHAPE), 4.0)
    pinned, free = (
        EdgeStretching(anchor=pins, factor_mean=0, factor_std=0) for pins in (Anchor(spacing=0.2), None)
    )
    pinned, free = (field.after(shift, field.draw(bright(), generator=seeded())) for field in (pinned, free))
    assert pinned[0, :, 0, 0].abs().max() < 2
    torch.testing.assert_close(free, shift, atol=1e-4, rtol=0)


def test_an_anchor_has_the_options_of_its_function():
    dvf = torch.randn(1, 2, *SHAPE, generator=seeded())
    expected = anchor(dvf, h_kept=0.5, w_kept=0.7, ds_f=9, smooth=3.0)
    options = {"h_kept": 0.5, "w_kept": 0.7, "spacing": 9 / 56, "smooth": 3.0}
    assert torch.equal(Anchor(**options)(dvf), expected)
    for name in options:
        others = {key: value for key, value in options.items() if key != name}
        assert not torch.allclose(Anchor(**others)(dvf), expected, atol=1e-2), name


def test_each_stretching_draws_its_factor():
    once, twice, never = (
        Stretching(factor_mean=0, factor_std=std, anchor=None).draw(bright(2), generator=seeded())[1]
        for std in (0.4, 0.8, 0)
    )
    assert once.abs().max() > 1
    torch.testing.assert_close(twice, 2 * once)
    assert never.abs().max() == 0


def test_points_of_a_stretching_move_by_at_most_their_fraction_of_the_width():
    points, displacements = Stretching(n_points=50, radius_fraction=0.1, factor_mean=1, factor_std=0).draw(
        bright(4), generator=seeded()
    )
    assert points.shape == (4, 50, 2)
    assert 0.095 * 56 < displacements.norm(dim=-1).max() <= 0.1 * 56


def test_a_mix_draws_its_parts_as_often_as_weighted():
    parts = {name: Affine(**UNMOVED) for name in "abc"}
    mix = Mix(parts=parts, weights={"c": 0, "b": 3, "a": 1})
    generator = seeded()
    drawn = [mix.draw(IMAGES, generator=generator)[0] for _ in range(400)]
    counts = {name: sum(one is part for one in drawn) for name, part in parts.items()}
    assert counts["c"] == 0
    assert counts["a"] + counts["b"] == 400
    assert 0.2 < counts["a"] / 400 < 0.3


# --- replay and devices -----------------------------------------------------------------------------------------------

DRAWS = {
    "velocity": lambda generator: draw_velocity(2, SHAPE, generator=generator),
    "affine_simple": lambda generator: draw_affine_simple(2, SHAPE, generator=generator),
    "control_points": lambda generator: draw_control_points(2, SHAPE, generator=generator),
    "edge_stretching": lambda generator: draw_edge_stretching(square_mask(), generator=generator),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_draws_the_same_again_and_another_seed_something_else(name):
    first, again, other = (
        torch.cat([torch.as_tensor(part).flatten() for part in DRAWS[name](seeded(seed))])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.gpu
def test_a_gpu_draws_and_computes_the_same():
    here, there = (smooth_field(2, SHAPE, generator=seeded(), device=device) for device in ("cpu", "cuda"))
    for own, other in zip(here, there, strict=True):
        torch.testing.assert_close(own, other.cpu(), atol=2e-2, rtol=0)
    torch.testing.assert_close(invert(here.dvf), invert(here.dvf.cuda()).cpu(), atol=2e-3, rtol=0)
    torch.testing.assert_close(anchor(here.dvf), anchor(here.dvf.cuda()).cpu(), atol=1e-3, rtol=0)
    for draw in (draw_affine_simple, draw_control_points):
        drawn = [torch.cat([*draw(2, SHAPE, generator=seeded(), device=where)]) for where in ("cpu", "cuda")]
        torch.testing.assert_close(drawn[0], drawn[1].cpu())
