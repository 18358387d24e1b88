"""Claims about displacement fields that a swapped axis, order or sign would break."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from atlalign.geometry import (
    affine_to_dvf,
    compose,
    draw_velocity,
    identity_grid,
    integrate,
    inverse_mask,
    invert,
    jacobian,
    jacobian_determinant,
    limit_steepness,
    resize,
    stays_inside,
    warp,
    warp_points,
)
from atlalign.geometry.inverse import _landing

SHAPE = (96, 120)
CPU = torch.device("cpu")


def wave(
    amplitude_x: float, amplitude_y: float, shape: tuple[int, int] = SHAPE, phase: float = 0.0
) -> Tensor:
    """Return a smooth field (1, 2, H, W) with these largest displacements."""
    x, y = identity_grid(shape, torch.float32, CPU)[0]
    dx = amplitude_x * torch.sin(2 * math.pi * x / shape[1] + 1 + phase) * torch.cos(3 * y / shape[0])
    dy = amplitude_y * torch.cos(4 * x / shape[1] + phase) * torch.sin(2 * math.pi * y / shape[0] + 0.5)
    return torch.stack([dx, dy])[None]


def smooth_image(shape: tuple[int, int] = SHAPE) -> Tensor:
    x, y = identity_grid(shape, torch.float32, CPU)[0]
    return (0.5 + 0.5 * torch.sin(x / 7) * torch.cos(y / 9 + x / 30))[None, None]


def inner_part(tensor: Tensor, margin: int = 16) -> Tensor:
    return tensor[..., margin:-margin, margin:-margin]


def residual(outer: Tensor, inner: Tensor) -> Tensor:
    return compose(outer, inner).norm(dim=1)


# --- warp -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding_mode", "scipy_mode"),
    [("zeros", "grid-constant"), ("border", "nearest"), ("reflection", "mirror")],
)
def test_warp_agrees_with_scipy_beyond_all_borders(padding_mode, scipy_mode):
    image = torch.rand(2, 3, 7, 9, dtype=torch.float64)
    dvf = 4 * torch.randn(2, 2, 7, 9, dtype=torch.float64)
    points = (identity_grid((7, 9), torch.float64, CPU) + dvf).numpy()
    warped = warp(image, dvf, padding_mode=padding_mode)
    for sample in range(2):
        for channel in range(3):
            expected = map_coordinates(
                image[sample, channel].numpy(), points[sample, ::-1], order=1, mode=scipy_mode
            )
            np.testing.assert_allclose(warped[sample, channel], expected, atol=1e-12)


def test_positive_dx_moves_content_left_and_positive_dy_up():
    image = torch.zeros(1, 1, 5, 7)
    image[..., 3, 4] = 1
    shift = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 5, 7)
    warped = warp(image, shift)
    assert warped[0, 0, 2, 2] == pytest.approx(1, abs=1e-6)
    assert warped.sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("padding_mode", "dx", "expected"),
    [("zeros", -0.25, 0.75), ("zeros", -1.0, 0.0), ("border", -0.25, 1.0), ("border", -9.0, 1.0)],
)
def test_the_outermost_pixel_fades_over_one_pixel_or_is_replicated(padding_mode, dx, expected):
    dvf = torch.zeros(1, 2, 4, 6)
    dvf[:, 0] = dx
    warped = warp(torch.ones(1, 1, 4, 6), dvf, padding_mode=padding_mode)
    torch.testing.assert_close(warped[0, 0, :, 0], torch.full((4,), expected))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-5)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_the_identity_leaves_the_image(mode, dtype, tolerance):
    # In float32 grid_sample's unit resolves 456 columns to 1.4e-5 px, and noise differs by up to 1 per px.
    image = torch.rand(1, 1, 320, 456, dtype=dtype)
    warped = warp(image, torch.zeros(1, 2, 320, 456, dtype=dtype), mode=mode)
    torch.testing.assert_close(warped, image, rtol=0, atol=0 if mode == "nearest" else tolerance)


# --- labels -----------------------------------------------------------------------------------------------------------

INTEGERS = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("name", INTEGERS)
def test_labels_of_any_integer_type_keep_their_values(name):
    dtype = getattr(torch, name)
    limit = min(torch.iinfo(dtype).max, 2**62)
    ids = [1, limit, limit - 1, limit - 2, limit // 2 + 1, 5]
    labels = torch.tensor([ids], dtype=torch.int64).to(dtype)[None, None]
    dvf = torch.zeros(1, 2, 1, 6)
    dvf[:, 0] = 1.4  # to the pixel on the right, and one past the border at the end
    warped = warp(labels, dvf, mode="nearest")
    replicated = warp(labels, dvf, mode="nearest", padding_mode="border")
    assert warped.dtype == replicated.dtype == dtype
    assert warped.to(torch.int64).flatten().tolist() == [*ids[1:], 0]
    assert replicated.to(torch.int64).flatten().tolist() == [*ids[1:], ids[-1]]


@pytest.mark.parametrize(("far", "expected"), [(1e20, 3), (math.inf, 3), (-1e20, 1), (-math.inf, 1)])
def test_labels_from_far_beyond_a_border_are_those_of_that_border(far, expected):
    dvf = torch.zeros(1, 2, 2, 3)
    dvf[:, 0] = far
    labels = torch.tensor([1, 2, 3]).expand(1, 1, 2, 3)
    assert (warp(labels, dvf, mode="nearest", padding_mode="border") == expected).all()
    assert (warp(labels, dvf, mode="nearest") == 0).all()


def test_labels_move_like_a_nearest_image():
    labels = torch.randint(1, 100, (2, 1, 20, 24))
    dvf = 5 * torch.randn(2, 2, 20, 24)
    as_image = warp(labels.double(), dvf.double(), mode="nearest")
    torch.testing.assert_close(warp(labels, dvf, mode="nearest").double(), as_image)


def test_boolean_masks_are_labels():
    mask = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    mask[..., 1, 2] = True
    dvf = torch.zeros(1, 2, 3, 4)
    dvf[:, 0] = 1
    assert warp(mask, dvf, mode="nearest").nonzero().tolist() == [[0, 0, 1, 1]]


# --- points -----------------------------------------------------------------------------------------------------------


def test_points_are_displaced_by_the_interpolated_field():
    dvf = torch.arange(2 * 2 * 3 * 4, dtype=torch.float32).view(2, 2, 3, 4)
    points = torch.tensor([[[2.0, 1.0], [0.5, 0.0], [-3.0, 1.5]]]).expand(2, 3, 2)
    # Rows of 4: at (2, 1) the first sample's dx is 6 and dy is 12 + 6; left of the border the border's hold.
    expected = [[2 + 6.0, 1 + 18.0], [0.5 + 0.5, 12.5], [-3 + 6.0, 1.5 + 18.0]]
    torch.testing.assert_close(warp_points(points, dvf)[0], torch.tensor(expected))
    torch.testing.assert_close(warp_points(points, dvf)[1], torch.tensor(expected) + 24)


def test_a_dot_in_the_moving_image_lies_where_its_reference_point_is_sent():
    dvf = wave(8, 5)
    target = torch.tensor([[[40.0, 50.0]]])
    x, y = warp_points(target, dvf)[0, 0]
    grid_x, grid_y = identity_grid(SHAPE, torch.float32, CPU)[0]
    dot = torch.exp(-((grid_x - x) ** 2 + (grid_y - y) ** 2) / 32)[None, None]
    assert warp(dot, dvf)[0, 0, 50, 40] > 0.99


# --- compose ----------------------------------------------------------------------------------------------------------

MATRIX_A = torch.tensor([[[1.03, 0.05, 4.0], [-0.02, 0.97, -6.0]]])
MATRIX_B = torch.tensor([[[0.96, -0.06, 3.0], [0.04, 1.02, 5.0]]])


def matrix_product(a: Tensor, b: Tensor) -> Tensor:
    linear = a[:, :, :2] @ b[:, :, :2]
    return torch.cat([linear, a[:, :, :2] @ b[:, :, 2:] + a[:, :, 2:]], dim=2)


def test_affine_maps_compose_to_the_product_of_their_matrices():
    composed = compose(affine_to_dvf(MATRIX_A, SHAPE), affine_to_dvf(MATRIX_B, SHAPE))
    product = affine_to_dvf(matrix_product(MATRIX_A, MATRIX_B), SHAPE)
    swapped = affine_to_dvf(matrix_product(MATRIX_B, MATRIX_A), SHAPE)
    torch.testing.assert_close(inner_part(composed), inner_part(product), atol=1e-4, rtol=0)
    assert (inner_part(composed) - inner_part(swapped)).abs().max() > 0.3


def test_warping_twice_is_warping_once_with_the_composed_field():
    image, outer, inner = smooth_image(), wave(14, 8), wave(8, 12, phase=2)
    twice = warp(warp(image, outer), inner)
    for field, is_right in (
        (compose(outer, inner), True),
        (compose(inner, outer), False),
        (outer + inner, False),
    ):
        difference = (inner_part(warp(image, field), 28) - inner_part(twice, 28)).abs().max()
        assert difference < 0.02 if is_right else difference > 0.1


def test_beyond_the_border_the_outer_displacement_is_the_borders():
    outer = torch.zeros(1, 2, 3, 5)
    outer[:, 0, :, -1], outer[:, 1, :, -1] = 7, -2
    inner = torch.zeros(1, 2, 3, 5)
    inner[:, 0] = 10
    composed = compose(outer, inner)
    torch.testing.assert_close(composed[:, 0], torch.full((1, 3, 5), 17.0))
    torch.testing.assert_close(composed[:, 1], torch.full((1, 3, 5), -2.0))


def test_the_identity_is_neutral():
    field, identity = wave(9, 6), torch.zeros(1, 2, *SHAPE)
    torch.testing.assert_close(compose(identity, field), field, atol=0, rtol=0)
    torch.testing.assert_close(compose(field, identity), field, atol=1e-5, rtol=0)


# --- affine_to_dvf, resize --------------------------------------------------------------------------------------------


def test_affine_field_by_hand():
    matrix = torch.tensor([[[1.0, 2.0, 3.0], [0.5, 1.0, -1.0]]])
    dvf = affine_to_dvf(matrix, (3, 4))
    # At (x, y) = (3, 1): (3 + 2 + 3, 1.5 + 1 − 1) − (3, 1).
    assert dvf[0, :, 1, 3].tolist() == [5.0, 0.5]
    assert dvf[0, :, 0, 0].tolist() == [3.0, -1.0]


def test_resizing_an_affine_field_conjugates_its_matrix():
    shape, new_shape = (24, 30), (96, 120)
    ratio = torch.tensor([119 / 29, 95 / 23])
    matrix = MATRIX_A.clone()
    matrix[:, :, 2] /= 2
    conjugated = matrix.clone()
    conjugated[:, :, :2] *= ratio[:, None] / ratio[None]
    conjugated[:, :, 2] *= ratio
    resized = resize(affine_to_dvf(matrix, shape), new_shape)
    torch.testing.assert_close(resized, affine_to_dvf(conjugated, new_shape), atol=1e-4, rtol=0)


def test_resizing_there_and_back_returns_the_field():
    field = wave(8, 5, (20, 30))
    finer = resize(field, (39, 59))  # Every second pixel centre of the finer grid is one of the coarser.
    torch.testing.assert_close(resize(finer, (20, 30)), field, atol=1e-5, rtol=0)
    assert resize(field, (20, 30)) is field


# --- jacobian ---------------------------------------------------------------------------------------------------------


def test_jacobian_entries_are_component_then_direction():
    x, y = identity_grid((6, 8), torch.float32, CPU)[0]
    gradient = jacobian(torch.stack([2 * x + 3 * y, 5 * x - 7 * y])[None])
    expected = torch.tensor([[2.0, 3.0], [5.0, -7.0]]).view(1, 2, 2, 1, 1).expand(1, 2, 2, 6, 8)
    torch.testing.assert_close(gradient, expected)


def test_determinant_is_that_of_the_affine_map_up_to_the_edges():
    determinant = jacobian_determinant(affine_to_dvf(MATRIX_A, (6, 8)))
    expected = torch.linalg.det(MATRIX_A[:, :, :2]).view(1, 1, 1).expand(1, 6, 8)
    torch.testing.assert_close(determinant, expected, atol=1e-5, rtol=0)


def test_a_mirrored_image_is_folded_everywhere():
    matrix = torch.tensor([[[-1.0, 0.0, 7.0], [0.0, 1.0, 0.0]]])
    torch.testing.assert_close(jacobian_determinant(affine_to_dvf(matrix, (6, 8))), -torch.ones(1, 6, 8))


# --- integrate --------------------------------------------------------------------------------------------------------


def test_a_linear_velocity_integrates_to_the_matrix_exponential():
    generator = torch.tensor([[0.10, -0.15], [0.20, -0.05]])
    centre = torch.tensor([59.5, 47.5])
    velocity_matrix = torch.cat([generator, -generator @ centre[:, None]], dim=1) + torch.eye(2, 3)
    linear = torch.matrix_exp(generator)
    matrix = torch.cat([linear, (centre - linear @ centre)[:, None]], dim=1)
    dvf = integrate(affine_to_dvf(velocity_matrix[None], SHAPE))
    torch.testing.assert_close(
        inner_part(dvf), inner_part(affine_to_dvf(matrix[None], SHAPE)), atol=2e-2, rtol=0
    )


def test_the_field_of_minus_the_velocity_is_the_inverse():
    velocity = wave(9, 6)
    # The residual is interpolation's, and small against the displacement (9 px) and its second order (1 px).
    assert inner_part(residual(integrate(velocity), integrate(-velocity))).max() < 0.03


def test_only_steep_velocities_are_scaled_down_each_as_a_whole():
    velocity = torch.zeros(3, 2, 4, 5)
    velocity[0, 0, 1, 2] = 8.0  # 8 px per px along x and y
    velocity[1, 1, :, 3:] = -5.0  # along x alone
    velocity[2, 1] = 1.5 * torch.arange(4.0)[:, None]
    limited = limit_steepness(velocity)
    torch.testing.assert_close(limited[0], velocity[0] / 4)
    torch.testing.assert_close(limited[1], velocity[1] * 0.4)
    assert torch.equal(limited[2], velocity[2])


def test_a_velocity_of_zero_has_a_gradient():
    velocity = torch.zeros(1, 2, 8, 8, requires_grad=True)
    limit_steepness(velocity).sum().backward()
    assert torch.equal(velocity.grad, torch.ones(1, 2, 8, 8))


@pytest.mark.parametrize("spacing_px", [1, 2, 8])
@pytest.mark.parametrize("size_px", [5, 100])
def test_white_noise_integrates_to_a_field_without_folds(spacing_px, size_px):
    noise = size_px * torch.randn(2, 2, SHAPE[0] // spacing_px, SHAPE[1] // spacing_px)
    velocity = resize(noise, SHAPE)
    assert (jacobian_determinant(integrate(velocity)) <= 0).float().mean() > 1e-3
    limited = limit_steepness(velocity)
    there, back = integrate(limited), integrate(-limited)
    assert min(jacobian_determinant(there).min(), jacobian_determinant(back).min()) > 0.03


@pytest.mark.parametrize("spacing", [0.15, 0.25])
def test_a_smooth_velocity_and_its_negative_are_inverse_at_the_working_size(spacing):
    velocity = draw_velocity(2, (320, 456), spacing=spacing)
    velocity *= 15 / velocity.abs().amax((1, 2, 3), keepdim=True)
    assert torch.equal(limit_steepness(velocity), velocity)
    assert residual(integrate(velocity), integrate(-velocity)).max() < 0.05


# --- invert -----------------------------------------------------------------------------------------------------------


def test_a_known_field_has_its_known_inverse():
    inverse_matrix = torch.linalg.inv(torch.cat([MATRIX_A, torch.tensor([[[0.0, 0.0, 1.0]]])], dim=1))[:, :2]
    inverse = invert(affine_to_dvf(MATRIX_A, SHAPE))
    torch.testing.assert_close(
        inner_part(inverse), inner_part(affine_to_dvf(inverse_matrix, SHAPE)), atol=2e-3, rtol=0
    )


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(2, 70),
    width=st.integers(2, 70),
    strength=st.floats(0.0, 0.1),
    seed=st.integers(0, 1000),
)
def test_every_field_that_does_not_fold_is_inverted_everywhere(height, width, strength, seed):
    random = torch.Generator().manual_seed(seed)
    amplitude = strength * torch.randn(2, generator=random) * torch.tensor([width, height])
    field = wave(*amplitude.tolist(), shape=(height, width), phase=seed)
    assume(jacobian_determinant(field).min() > 0.1)
    inverse = invert(field)
    assert residual(field, inverse).max() <= 1.1e-3
    assert (inverse.abs().amax(dim=(2, 3)) <= field.abs().amax(dim=(2, 3)) + 1e-3).all()


def test_large_fields_of_full_size_are_inverted_to_a_hundredth_of_a_pixel():
    field = torch.cat([wave(30, 21, (320, 456)), wave(12, 30, (320, 456), phase=1)])
    assert inverse_mask(field, invert(field)).all()
    assert residual(field, -field).max() > 5  # Negation, the wrong inverse, is seen.


def test_rough_fields_are_inverted_too():
    noise = 0.3 * (2 * torch.rand(1, 2, 40, 50) - 1)
    field = wave(5, 4, (40, 50)) + noise.clamp(-0.2, 0.2)
    assert residual(field, invert(field)).max() <= 1.1e-3


def test_inverse_outside_the_image_is_no_larger_than_the_field():
    field = affine_to_dvf(torch.tensor([[[0.6, 0.3, 40.0], [-0.3, 0.7, -20.0]]]), SHAPE)
    inverse = invert(field)
    assert not inside(inverse).all()
    assert (inverse.abs().amax(dim=(2, 3)) <= field.abs().amax(dim=(2, 3)) + 1e-3).all()


def test_a_sample_is_inverted_the_same_alone_and_in_a_batch():
    calm, wild = wave(2, 3), wave(14, 10)
    together = invert(torch.cat([calm, wild]))
    torch.testing.assert_close(together[:1], invert(calm), atol=1e-5, rtol=0)
    torch.testing.assert_close(together[1:], invert(wild), atol=1e-5, rtol=0)


def test_a_start_is_only_polished():
    field = wave(9, 6)
    exact = invert(field, tolerance_px=1e-5)
    assert torch.equal(invert(field, start=exact), exact)
    assert residual(field, invert(field, start=exact + 0.3, tolerance_px=5e-3)).max() <= 5.1e-3


def test_nan_stays_visible():
    field = wave(2, 2)
    field[0, 0, 50, 60] = torch.nan
    assert invert(field).isnan().any()


def folding_at(first: int, last: int) -> Tensor:
    """Return a field that maps the columns `first` … `last` backward onto the same columns, x to first + last − x."""
    x = torch.arange(60.0)
    mirrored = torch.where((x >= first) & (x <= last), first + last - x, x)
    dvf = torch.zeros(1, 2, 20, 60)
    dvf[:, 0] = mirrored - x
    return dvf


def test_pixels_on_which_a_fold_lands_have_no_inverse():
    field = folding_at(20, 30)
    mask = inverse_mask(field, invert(field))
    # The determinant's central difference sees the fold one pixel inside of where it begins.
    assert not mask[:, :, 22:29].any()
    assert mask[:, :, :18].all()
    assert mask[:, :, 33:].all()


def test_where_a_field_folds_the_inverse_is_no_larger_than_the_field():
    field = wave(45, 38)
    assert (jacobian_determinant(field) <= 0).float().mean() > 0.1
    inverse = invert(field)
    assert (inverse.abs().amax(dim=(2, 3)) <= field.abs().amax(dim=(2, 3)) + 1e-3).all()
    assert not inverse_mask(field, inverse).all()


@pytest.mark.parametrize("amplitude", [3.0, 1e2, 1e4])
def test_the_wildest_field_has_a_finite_answer(amplitude):
    field = amplitude * torch.randn(2, 2, 70, 80)
    inverse = invert(field)
    assert inverse.isfinite().all()
    assert (inverse.abs().amax(dim=(2, 3)) <= field.abs().amax(dim=(2, 3)) + 1e-3).all()


def test_a_wrong_inverse_is_not_masked_as_right():
    field = wave(9, 6)
    assert inverse_mask(field, -field).float().mean() < 0.5


def inside(dvf: Tensor) -> Tensor:
    """Return where (B, H, W) a pixel is sent into the image."""
    target = identity_grid((dvf.shape[-2], dvf.shape[-1]), dvf.dtype, CPU) + dvf
    limit = torch.tensor([dvf.shape[-1] - 1, dvf.shape[-2] - 1]).view(1, 2, 1, 1)
    return ((target >= 0) & (target <= limit)).all(dim=1)


# --- derivatives and precision ----------------------------------------------------------------------------------------


def off_grid(batch_size: int, shape: tuple[int, int]) -> Tensor:
    """Return a field whose targets stay a tenth of a pixel away from the interpolant's kinks."""
    whole = torch.randint(-1, 2, (batch_size, 2, *shape), dtype=torch.float64)
    return (whole + 0.1 + 0.8 * torch.rand(batch_size, 2, *shape, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_gradient_of_warp(padding_mode):
    image = torch.rand(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)

    def warped(image: Tensor, dvf: Tensor) -> Tensor:
        return warp(image, dvf, padding_mode=padding_mode)

    assert torch.autograd.gradcheck(warped, (image, off_grid(2, (4, 5))))


def test_gradient_of_compose_and_of_the_affine_field():
    assert torch.autograd.gradcheck(compose, (off_grid(1, (4, 5)), off_grid(1, (4, 5))))
    matrix = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda matrix: affine_to_dvf(matrix, (3, 4)), matrix)


def test_autocast_leaves_coordinates_in_full_precision():
    image, outer, inner = smooth_image(), wave(14, 8), wave(8, 12)
    points = torch.tensor([[[100.3, 77.7]]])

    def results() -> list[Tensor]:
        affine = affine_to_dvf(MATRIX_A, SHAPE)
        return [
            affine,
            compose(outer, inner),
            warp(image, outer),
            warp_points(points, outer),
            resize(outer, (40, 50)),
        ]

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        for got, wanted in zip(results(), expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_fields_in_bfloat16_come_out_in_float32():
    half = wave(14, 8).bfloat16()
    torch.testing.assert_close(compose(half, half), compose(half.float(), half.float()))
    torch.testing.assert_close(invert(half), invert(half.float()))
    torch.testing.assert_close(jacobian_determinant(half), jacobian_determinant(half.float()))
    torch.testing.assert_close(
        affine_to_dvf(MATRIX_A.bfloat16(), SHAPE), affine_to_dvf(MATRIX_A.bfloat16().float(), SHAPE)
    )
    labels = torch.arange(320).view(1, 1, 1, 320)
    shift = torch.ones(1, 2, 1, 320, dtype=torch.bfloat16)
    assert warp(labels, shift * torch.tensor([1, 0]).view(1, 2, 1, 1), mode="nearest")[0, 0, 0, 300] == 301


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_where_points_lie_is_asked_in_full_precision(dtype):
    # Neither type can hold all columns of a grid of 2,500.
    dvf = torch.zeros(1, 2, 4, 2500, dtype=dtype)
    dvf[:, 0, :, :2499] = 0.75
    assert stays_inside(dvf)[0, 0].nonzero()[-1] == 2499
    assert stays_inside(dvf).float().mean() == 1
    selected = torch.zeros(1, 4, 2500, dtype=torch.bool)
    selected[0, 1, 2301] = True
    assert _landing(dvf, selected)[0].nonzero().tolist() == [[1, 2301], [1, 2302], [2, 2301], [2, 2302]]


def test_grids_made_in_inference_or_export_serve_training_afterwards(monkeypatch):
    shape = (11, 13)  # No other test's: the grids are remembered by shape.

    def move(dvf: Tensor) -> Tensor:
        return warp(dvf, compose(dvf, dvf))

    with (
        monkeypatch.context() as patch,
        FakeTensorMode(),
    ):  # What torch.export does, in a fraction of its time.
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        move(torch.zeros(1, 2, *shape))
    with torch.inference_mode():
        move(torch.zeros(1, 2, *shape))
    dvf = wave(0.3, 0.2, shape).requires_grad_()
    move(dvf).sum().backward()
    assert dvf.grad is not None
    assert dvf.grad.abs().sum() > 0


# --- errors -----------------------------------------------------------------------------------------------------------

DVF = torch.zeros(2, 2, 4, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: warp(torch.zeros(2, 1, 4, 6), DVF), r"\(2, C, 4, 5\), got \(2, 1, 4, 6\)"),
        (lambda: warp(torch.zeros(1, 1, 4, 5), DVF), r"\(2, C, 4, 5\), got \(1, 1, 4, 5\)"),
        (lambda: warp(torch.zeros(2, 1, 4, 5), DVF[:, :1]), r"\(B, 2, H, W\), got \(2, 1, 4, 5\)"),
        (lambda: warp(torch.zeros(2, 1, 4, 5, dtype=torch.int32), DVF), "mode='nearest', got 'bilinear'"),
        (lambda: compose(DVF, DVF[:1]), r"\(1, C, 4, 5\), got \(2, 2, 4, 5\)"),
        (lambda: warp_points(torch.zeros(3, 2), DVF), r"\(2, N, 2\) as \(x, y\), got \(3, 2\)"),
        (lambda: affine_to_dvf(torch.zeros(1, 3, 3), (4, 5)), r"\(B, 2, 3\), got \(1, 3, 3\)"),
        (lambda: resize(DVF, (1, 5)), r"2×2, got \(4, 5\) to \(1, 5\)"),
        (lambda: jacobian_determinant(DVF[0]), r"\(B, 2, H, W\), got \(2, 4, 5\)"),
        (lambda: integrate(DVF, -1), "steps: expected at least 0, got -1"),
        (lambda: integrate(DVF, 2.5), "steps: expected a whole number, got 2.5"),
        (lambda: invert(DVF[0]), r"\(B, 2, H, W\), got \(2, 4, 5\)"),
        (lambda: invert(DVF, start=DVF[:1]), r"got \(1, 2, 4, 5\)"),
    ],
)
def test_errors_say_what_was_expected_and_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numpy_arrays_are_refused_with_the_class_that_takes_them():
    image, field = np.zeros((1, 1, 4, 5), np.float32), np.zeros((1, 2, 4, 5), np.float32)
    with pytest.raises(ValueError, match=r"^dvf: .*got a ndarray.*DisplacementField"):
        warp(torch.from_numpy(image), field)
    with pytest.raises(ValueError, match=r"^image: .*got a ndarray.*DisplacementField"):
        warp(image, torch.from_numpy(field))
