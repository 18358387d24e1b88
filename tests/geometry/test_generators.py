"""Claims about random fields: their size, their border, their inverses, and that they can be replayed."""

import math

import pytest
import torch

from atlalign.errors import InputError
from atlalign.geometry import (
    AffineSimple,
    affine_map,
    affine_simple,
    affine_simple_matrix,
    affine_to_dvf,
    anchor,
    compose,
    control_points,
    draw_affine_simple,
    draw_control_points,
    draw_edge_stretching,
    draw_velocity,
    edges,
    integrate_pair,
    invert,
    invert_affine,
    jacobian_determinant,
    projective,
    scale_affine,
    scale_velocity,
    smooth_field,
    warp,
)
from atlalign.geometry.generators import _spline_basis

SHAPE = (40, 56)


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


def test_a_velocity_is_scaled_the_same_alone_and_in_a_batch():
    velocities = draw_velocity(6, SHAPE, generator=seeded()) * torch.tensor([1.0, 20, 3, 9, 0.1, 1]).view(
        -1, 1, 1, 1
    )
    sizes = {"mean_fraction": 0.02, "largest_fraction": 0.06}
    together = scale_velocity(velocities, **sizes)
    alone = torch.cat([scale_velocity(velocity[None], **sizes) for velocity in velocities])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: draw_velocity(1, SHAPE, spacing=-1),
            "spacing: expected a fraction of the width above 0, got -1",
        ),
        (
            lambda: draw_velocity(1, SHAPE, spacing=0),
            "spacing: expected a fraction of the width above 0, got 0",
        ),
        (lambda: draw_control_points(1, SHAPE, n_points=-1), "n_points: expected at least 1, got -1"),
        (lambda: draw_control_points(1, SHAPE, n_points=2.5), "n_points: expected a whole number, got 2.5"),
        (lambda: draw_control_points(1, SHAPE, radius_max=-1), "radius_max: expected at least 0, got -1"),
        (
            lambda: scale_affine(torch.eye(2, 3)[None], SHAPE, mean_fraction=0.1, largest_fraction=0.1),
            "expected maps that move something, found the identity",
        ),
    ],
)
def test_parameters_without_a_meaning_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_velocities_that_would_fold_or_cannot_grow_are_refused():
    with pytest.raises(InputError, match="does not fold, found a Jacobian determinant of -"):
        integrate_pair(300 * torch.randn(1, 2, 16, 16, generator=seeded()))
    with pytest.raises(InputError, match=r"no factor gives a mean displacement of 0\.2"):
        scale_velocity(torch.zeros(1, 2, *SHAPE), mean_fraction=0.2, largest_fraction=0.2)
    with pytest.raises(InputError, match="fold"):
        smooth_field(1, SHAPE, mean_fraction=0.6, generator=seeded())


# --- affine maps ------------------------------------------------------------------------------------------------------


def single(**changes: float) -> AffineSimple:
    values = {"scale_x": 1, "scale_y": 1, "rotation": 0, "translation_x": 0, "translation_y": 0, "shear": 0}
    return AffineSimple(
        **{name: torch.tensor([float(value)]) for name, value in {**values, **changes}.items()}
    )


def place_after(parameters: AffineSimple, row: int, column: int) -> tuple[int, int]:
    """Return (row, column) where a dot lies after warping."""
    image = torch.zeros(1, 1, 41, 41)
    image[..., row, column] = 1
    return divmod(int(warp(image, affine_simple(parameters, (41, 41))).argmax()), 41)


def test_scale_two_shrinks_the_content_about_the_centre():
    assert place_after(single(scale_x=2), 20, 30) == (20, 25)


def test_a_positive_rotation_turns_the_content_counter_clockwise_on_the_screen():
    # From the right of the centre to above it: row 20 − 10.
    assert place_after(single(rotation=math.pi / 2), 20, 30) == (10, 20)


def test_translations_move_the_content_against_the_axes():
    assert place_after(single(translation_x=3, translation_y=-4), 20, 30) == (24, 27)


def test_the_simple_matrix_by_hand():
    parameters = single(scale_x=1.2, scale_y=0.8, rotation=0.3, translation_x=5, translation_y=-2, shear=0.1)
    expected = [
        [1.2 * math.cos(0.3), -0.8 * math.sin(0.4), 5.0],
        [1.2 * math.sin(0.3), 0.8 * math.cos(0.4), -2.0],
    ]
    about_origin = affine_simple_matrix(parameters, SHAPE, apply_centering=False)
    torch.testing.assert_close(about_origin[0], torch.tensor(expected))
    centred = affine_to_dvf(affine_simple_matrix(parameters, (41, 61)), (41, 61))
    assert centred[0, :, 20, 30].tolist() == pytest.approx([5, -2], abs=1e-5)


def test_random_affine_maps_reach_their_size_and_have_exact_inverses():
    matrix, inverse = affine_map(8, SHAPE, generator=seeded())
    dvf = affine_to_dvf(matrix, SHAPE)
    displacement = dvf.norm(dim=1).flatten(1) / SHAPE[1]
    reached = torch.minimum(displacement.mean(dim=1) / 0.02, displacement.amax(dim=1) / 0.06)
    torch.testing.assert_close(reached, torch.ones(8), atol=1e-4, rtol=0)
    both = inverse[:, :, :2] @ matrix[:, :, :2]
    torch.testing.assert_close(both, torch.eye(2).expand(8, 2, 2), atol=1e-6, rtol=0)
    point = torch.tensor([30.0, 10.0, 1.0])
    there = torch.cat([matrix @ point, torch.ones(8, 1)], dim=1)
    back = (inverse @ there[..., None])[..., 0]
    torch.testing.assert_close(back, point[:2].expand(8, 2), atol=1e-4, rtol=0)


def test_translations_are_fractions_of_the_width():
    drawn = draw_affine_simple(500, (40, 80), translation_fraction=0.1, generator=seeded())
    for translation in (drawn.translation_x, drawn.translation_y):
        assert 7.8 < translation.abs().max() <= 8


def test_a_mirrored_scale_is_inverted_too():
    matrix = torch.tensor([[[-2.0, 0.0, 6.0], [0.0, 4.0, 8.0]]])
    assert invert_affine(matrix).tolist() == [[[-0.5, 0.0, 3.0], [0.0, 0.25, -2.0]]]


def test_the_inverse_of_any_affine_map():
    matrix = torch.randn(5, 2, 3, dtype=torch.float64, generator=seeded())
    square = torch.cat([matrix, torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(5, 1, 3)], dim=1)
    torch.testing.assert_close(invert_affine(matrix), square.inverse()[:, :2])
    assert not invert_affine(torch.ones(1, 2, 3)).isfinite().any()  # singular


# --- projective maps --------------------------------------------------------------------------------------------------


def test_the_projective_field_by_hand():
    matrix = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [0.1, 0.0, 1.0]]])
    # (4, 3) goes to (6, 3, 1.4).
    assert projective(matrix, (5, 6))[0, :, 3, 4].tolist() == pytest.approx([6 / 1.4 - 4, 3 / 1.4 - 3])


def test_an_affine_map_is_projective():
    affine = torch.tensor([[[1.1, 0.2, 3.0], [-0.1, 0.9, -4.0]]])
    square = torch.cat([affine, torch.tensor([[[0.0, 0.0, 1.0]]])], dim=1)
    torch.testing.assert_close(projective(square, SHAPE), affine_to_dvf(affine, SHAPE), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        projective(-3 * square, SHAPE), affine_to_dvf(affine, SHAPE), atol=1e-5, rtol=0
    )


def test_a_horizon_on_the_grid_is_refused():
    matrix = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.1, 0.0, 1.0]]])
    with pytest.raises(InputError, match="without a horizon"):
        projective(matrix, SHAPE)
    with pytest.raises(InputError, match=r"\(B, 3, 3\), got \(2, 3\)"):
        projective(matrix[0, :2], SHAPE)


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


def test_too_few_edges_are_refused_and_corners_are_no_edges():
    mask = torch.zeros(1, *SHAPE, dtype=torch.bool)
    mask[0, [0, 0, -1, -1, 5], [0, -1, 0, -1, 5]] = True
    with pytest.raises(InputError, match="at least 2 edge pixels, found 1"):
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
