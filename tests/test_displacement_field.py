"""Claims about fields as users hold them: numpy in and out, files that other programs understand, clear refusals."""

import math
import pickle
import re

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

import atlalign
from atlalign import DisplacementField, displacement_field
from atlalign.errors import InputError
from atlalign.geometry import ControlPoints, control_points

SHAPE = (40, 56)


def wave(amplitude_x: float = 6, amplitude_y: float = 4, shape=SHAPE) -> DisplacementField:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return DisplacementField(
        amplitude_x * np.sin(6 * x / shape[1] + 1) * np.cos(3 * y / shape[0]),
        amplitude_y * np.cos(4 * x / shape[1]) * np.sin(5 * y / shape[0] + 0.5),
    )


def shift(dx: float, dy: float, shape=SHAPE) -> DisplacementField:
    return DisplacementField(np.full(shape, dx), np.full(shape, dy))


def smooth_image(shape=SHAPE) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return 0.5 + 0.5 * np.sin(x / 6) * np.cos(y / 7 + x / 30)


def noise(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(0).random(shape)


def middle(array: np.ndarray) -> np.ndarray:
    return array[12:-12, 14:-14]


# --- what a field is --------------------------------------------------------------------------------------------------


def test_the_package_offers_the_class_and_nothing_that_it_does_not_have():
    assert atlalign.DisplacementField is displacement_field.DisplacementField
    with pytest.raises(AttributeError, match="no attribute 'Displacement'"):
        _ = atlalign.Displacement


def test_a_field_keeps_its_own_numbers():
    x, y = np.zeros(SHAPE), np.ones(SHAPE)
    field = DisplacementField(x, y)
    x[:] = 5
    assert field.delta_x.max() == 0
    assert field.delta_y.min() == 1
    with pytest.raises(ValueError, match="read-only"):
        field.delta_x[0, 0] = 1
    field.dvf[:] = 9
    assert field.delta_y.max() == 1


@pytest.mark.parametrize(
    ("x", "y"),
    [(np.zeros((3, 4)), np.zeros((4, 3))), (np.zeros(5), np.zeros(5)), (np.zeros((1, 4)), np.zeros((1, 4)))],
)
def test_two_arrays_of_one_shape_are_expected(x, y):
    with pytest.raises(InputError, match=re.escape(f"got {x.shape} and {y.shape}")):
        DisplacementField(x, y)


def test_figures_by_hand():
    field = DisplacementField([[3, 0, 0], [0, 0, 0]], [[4, 0, 0], [0, 1, 0]])
    assert field.norm.tolist() == [[5, 0, 0], [0, 1, 0]]
    assert [part.tolist() for part in field.transformation] == [
        [[3, 1, 2], [0, 1, 2]],
        [[4, 0, 0], [1, 2, 1]],
    ]
    assert field.outsiders.tolist() == [[True, False, False], [False, True, False]]
    assert field.shape == (2, 3)
    summary = field.summary()
    assert summary["mean_displacement_px"] == 1
    assert summary["largest_displacement_px"] == 5
    assert summary["outsider_share"] == pytest.approx(1 / 3)
    assert "largest displacement 5.00 px" in repr(field)


def test_the_jacobian_is_the_change_of_area_and_folds_are_counted():
    half_mirrored = DisplacementField.from_transform([[-0.5, 0, 40], [0, 2, 0]], SHAPE)
    np.testing.assert_allclose(half_mirrored.jacobian, -1, atol=1e-5)
    assert half_mirrored.summary()["folded_share"] == 1
    assert half_mirrored.summary()["smallest_jacobian"] == pytest.approx(-1)


def test_only_finite_fields_are_valid():
    assert wave().is_valid
    x = np.zeros(SHAPE)
    x[3, 4] = np.nan
    broken = DisplacementField(x, x)
    assert not broken.is_valid
    with pytest.raises(InputError, match="expected finite displacements"):
        broken.pseudo_inverse()


# --- where fields come from -------------------------------------------------------------------------------------------


def test_a_function_and_its_matrix_give_the_same_field():
    matrix = [[1.1, 0.2, -3], [-0.1, 0.9, 2]]
    by_function = DisplacementField.from_transform(
        lambda x, y: (1.1 * x + 0.2 * y - 3, -0.1 * x + 0.9 * y + 2), SHAPE
    )
    for other in (
        DisplacementField.from_transform(matrix, SHAPE),
        DisplacementField.from_transform([*matrix, [0, 0, 1]], SHAPE),
        DisplacementField.generate(SHAPE, "affine", matrix=matrix),
        DisplacementField.generate(SHAPE, "projective", matrix=[*matrix, [0, 0, 1]]),
    ):
        np.testing.assert_allclose(other.dvf, by_function.dvf, atol=1e-5)
    np.testing.assert_array_equal(
        DisplacementField.from_transform(in_place, SHAPE).dvf,
        DisplacementField.from_transform(lambda x, y: (x + 2, y - 3), SHAPE).dvf,
    )
    # (10, 20) goes to (12, 19).
    assert (by_function.delta_x[20, 10], by_function.delta_y[20, 10]) == pytest.approx((2, -1), abs=1e-5)


def in_place(x, y):
    x += 2
    y -= 3
    return x, y


def test_tensors_are_taken_x_first():
    field = DisplacementField.from_dvf(torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]))
    assert field.delta_y[0].tolist() == [5, 6]
    with pytest.raises(InputError, match=r"expected \(2, H, W\), got \(1, 2, 3, 4\)"):
        DisplacementField.from_dvf(torch.zeros(1, 2, 3, 4))


def test_affine_simple_turns_counter_clockwise_about_the_centre():
    image = np.zeros((41, 41))
    image[20, 30] = 1
    turned = DisplacementField.generate((41, 41), "affine_simple", rotation=math.pi / 2).warp(image)
    assert np.unravel_index(turned.argmax(), turned.shape) == (10, 20)
    about_corner = DisplacementField.generate((41, 41), "affine_simple", scale_x=2, apply_centering=False)
    assert about_corner.delta_x[5].tolist() == list(range(41))


@pytest.mark.parametrize("method", ["rbf", "griddata"])
def test_control_points_are_rows_and_columns(method):
    field = DisplacementField.generate(
        SHAPE,
        "control_points",
        points=[(10, 40), (30, 20)],
        values_delta_x=[5, -3],
        values_delta_y=[1, 2],
        interpolation_method=method,
    )
    assert (field.delta_x[10, 40], field.delta_y[10, 40]) == pytest.approx((5, 1), abs=1e-3)
    assert (field.delta_x[30, 20], field.delta_y[30, 20]) == pytest.approx((-3, 2), abs=1e-3)
    np.testing.assert_allclose(field.norm[[0, 0, -1, -1], [0, -1, 0, -1]], 0, atol=1e-3)


def test_control_points_are_interpolated_as_asked():
    points, x, y = [(10, 40), (30, 20)], [5, -3], [1, 2]
    options = {"points": points, "values_delta_x": x, "values_delta_y": y}
    nearest = DisplacementField.generate(
        SHAPE, "control_points", **options, interpolation_method="griddata", method="nearest"
    )
    assert set(nearest.delta_x.ravel()) == {5, -3, 0}
    thin, loose = (
        DisplacementField.generate(SHAPE, "control_points", **options, function="thin_plate", smooth=smooth)
        for smooth in (0, 300)
    )
    assert thin.delta_x[10, 40] == pytest.approx(5, abs=1e-3)
    assert abs(loose.delta_x[10, 40] - 5) > 0.1
    parameters = ControlPoints(torch.tensor([[[40.0, 10], [20, 30]]]), torch.tensor([[[5.0, 1], [-3, 2]]]))
    expected = control_points(parameters, SHAPE, function="thin_plate", smooth=300)[0]
    torch.testing.assert_close(loose.dvf, expected)


def test_stretched_edges_come_from_the_mask_and_the_seed():
    mask = np.zeros(SHAPE, dtype=bool)
    mask[20, 10:40] = True
    options = {"edge_mask": mask, "n_points": 4, "radius_max": 5, "function": "thin_plate"}
    first, again, other = (
        DisplacementField.generate(SHAPE, "edge_stretching", seed=seed, **options) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.dvf, again.dvf)
    assert not np.array_equal(first.dvf, other.dvf)
    with pytest.raises(InputError, match=r"edge_mask: expected the field's shape \(40, 56\), got \(56, 40\)"):
        DisplacementField.generate(SHAPE, "edge_stretching", edge_mask=mask.T)


def test_smooth_fields_have_the_size_asked_for():
    field = DisplacementField.generate(SHAPE, "smooth", mean_fraction=0.03, largest_fraction=0.01, seed=0)
    assert field.norm.mean() / 56 == pytest.approx(0.03, rel=0.02)
    assert field.jacobian.min() > 0


def stretched(**changed) -> DisplacementField:
    parameters = {"points": [(1, 2)], "values_delta_x": [1], "values_delta_y": [1], **changed}
    return DisplacementField.generate(SHAPE, "control_points", **parameters)


def infinite() -> DisplacementField:
    x = np.zeros(SHAPE)
    x[3, 4] = np.inf
    return DisplacementField(x, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DisplacementField.generate(SHAPE, "afine"), "unknown approach 'afine'. Did you mean affine"),
        (lambda: DisplacementField.generate(SHAPE, "affine", matrix=np.eye(2)), r"got \(2, 2\)"),
        (lambda: DisplacementField.from_transform(np.eye(4), SHAPE), r"projective \(3, 3\), got \(4, 4\)"),
        (lambda: wave().warp(np.zeros((40, 55))), r"image: expected the field's shape \(40, 56\), got \(40, 55\)"),
        (lambda: wave().warp(noise(), interpolation="quadratic"), "unknown interpolation 'quadratic'"),
        (lambda: wave().warp(noise(), border_mode="wrap"), "unknown border mode 'wrap'"),
        (lambda: wave().warp_annotation(noise()), "annotation: expected integers, got float64"),
        (lambda: wave()(shift(1, 1, (3, 3))), r"inner field: expected the field's shape \(40, 56\), got \(3, 3\)"),
        (lambda: wave().mask(noise()), "mask_matrix: expected booleans, got float64"),
        (
            lambda: DisplacementField.generate(
                SHAPE, "control_points", points=[(1, 2)], values_delta_x=[1], values_delta_y=[1],
                interpolation_method="spline",
            ),
            "unknown interpolation method 'spline'",
        ),
        (lambda: stretched(function="gaussian"), "unknown function 'gaussian'. There are: linear, thin_plate"),
        (lambda: stretched(interpolation_method="griddata", method="spline"), "unknown method 'spline'"),
        (lambda: stretched(method="cubic"), "unknown parameter of rbf 'method'. There are: function, smooth"),
        (lambda: stretched(values_delta_x=[1, 2]), r"values_delta_y \(N,\), got \(1, 2\), \(2,\), \(1,\)"),
        (lambda: DisplacementField.generate(SHAPE, foo=1), "unknown parameter of identity 'foo'. There are: none"),
        (lambda: DisplacementField.generate(SHAPE, "affine"), "affine: expected the parameters matrix"),
        (lambda: DisplacementField.generate((0, 5)), r"shape: expected \(H, W\), whole .*, got \(0, 5\)"),
        (lambda: wave().resize((1, 5)), r"new_shape: expected \(H, W\), whole numbers of at least 2 px, got \(1, 5\)"),
        (lambda: wave().resize((10.5, 5)), r"new_shape: .* got \(10\.5, 5\)"),
        (lambda: wave().adjust(delta_x_max=-2), "delta_x_max: expected at least 0, got -2"),
        (lambda: wave().anchor(ds_f="abc"), "ds_f: expected a whole number, got abc"),
        (lambda: DisplacementField.generate(SHAPE, "smooth", spacing=0), "spacing: expected .*, got 0"),
        (lambda: infinite().warp_annotation(np.zeros(SHAPE, int)), "warp_annotation: expected finite displ"),
        (lambda: infinite().warp(noise()), "warp: expected finite displacements, found some that are not"),
    ],
)  # fmt: skip
def test_mistakes_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


# --- warping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("border_mode", "scipy_mode"),
    [
        ("constant", "grid-constant"),
        ("replicate", "nearest"),
        ("reflect", "reflect"),
        ("reflect_101", "mirror"),
    ],
)
def test_linear_warping_agrees_with_scipy_far_beyond_the_border(border_mode, scipy_mode):
    field, image = wave(130, 70), noise()
    x, y = field.transformation
    expected = map_coordinates(image, [y.astype(float), x.astype(float)], order=1, mode=scipy_mode)
    assert field.outsiders.mean() > 0.5
    np.testing.assert_allclose(field.warp(image, border_mode=border_mode), expected, atol=2e-4)


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
def test_reflected_borders_match_a_padded_image(interpolation):
    field, image = wave(20, 12), noise()
    padded = DisplacementField(*(np.pad(part, 60, mode="edge") for part in (field.delta_x, field.delta_y)))
    expected = padded.warp(np.pad(image, 60, mode="symmetric"), interpolation=interpolation)[60:-60, 60:-60]
    warped = field.warp(image, interpolation=interpolation, border_mode="reflect")
    assert field.outsiders.mean() > 0.2
    np.testing.assert_allclose(warped, expected, atol=1e-4)


def test_a_whole_shift_is_exact_whatever_the_interpolation():
    image = noise()
    for interpolation in ("linear", "nearest", "cubic"):
        warped = shift(3, -2).warp(image, interpolation=interpolation)
        np.testing.assert_allclose(warped[2:, :-3], image[:-2, 3:], atol=1e-6)


def test_cubic_is_closer_to_a_smooth_image_than_linear():
    x = np.mgrid[: SHAPE[0], : SHAPE[1]][1]
    image, expected = np.sin(x / 3.0), np.sin((x + 0.5) / 3.0)
    linear, cubic = (shift(0.5, 0).warp(image, interpolation=how) for how in ("linear", "cubic"))
    assert np.abs(middle(cubic - expected)).max() < 0.6 * np.abs(middle(linear - expected)).max()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_images_keep_their_type_and_integers_are_rounded(dtype):
    image = np.zeros((4, 6), dtype=dtype)
    image[:, 3:] = 2**25 + 3 if dtype is np.int32 else 7
    warped = shift(0.5, 0, (4, 6)).warp(image)
    assert warped.dtype == dtype
    step = {np.uint8: 4, np.uint16: 4, np.int32: 2**24 + 2}.get(dtype, 3.5)  # Half rounds to even.
    assert warped[0, 2] == step
    assert warped[0, 3] == image[0, 3]


def test_cubic_overshoot_does_not_wrap_around():
    image = np.zeros((6, 8), dtype=np.uint8)
    image[:, 4:] = 255
    warped = shift(0.5, 0, (6, 8)).warp(image, interpolation="cubic", border_mode="replicate")
    assert set(warped[:, :3].ravel()) == {0}
    assert set(warped[:, 4:].ravel()) == {255}


@pytest.mark.parametrize("name", ["u1", "i2", "u2", "i4", "u4", "i8", "u8", ">u4", ">i2"])
def test_annotations_of_any_integer_type_come_through_unchanged(name):
    dtype = np.dtype(name)
    limit = np.iinfo(dtype).max
    labels = np.array([[limit, limit - 1, 5], [limit - 2, 0, 7]], dtype=dtype)
    warped = shift(1, 0, (2, 3)).warp_annotation(labels)
    assert warped.dtype == dtype.newbyteorder("=")
    assert warped.tolist() == labels[:, [1, 2, 2]].tolist()
    strided = np.repeat(labels, 2, axis=1)[::-1, ::2]
    assert shift(0, 0, (2, 3)).warp_annotation(strided).tolist() == labels[::-1].tolist()


# --- algebra ----------------------------------------------------------------------------------------------------------


def test_a_of_b_warps_like_a_first_and_b_second():
    shape = (96, 120)
    a, b, image = wave(12, 8, shape), wave(-7, 10, shape), smooth_image(shape)
    twice = b.warp(a.warp(image))
    assert np.abs(a(b).warp(image) - twice)[28:-28, 28:-28].max() < 0.02
    assert np.abs(b(a).warp(image) - twice)[28:-28, 28:-28].max() > 0.1


def test_scaling_works_from_both_sides_and_with_numpy_numbers():
    field = wave()
    for scaled in (field * 0.5, 0.5 * field, np.float64(0.5) * field, field * np.float32(0.5)):
        assert isinstance(scaled, DisplacementField)
        np.testing.assert_allclose(scaled.dvf, 0.5 * field.dvf)
    with pytest.raises(TypeError):
        _ = field * "2"
    with pytest.raises(TypeError):
        _ = noise() * field


@settings(max_examples=10, deadline=None)
@given(dx=st.floats(-5, 5), dy=st.floats(-3, 3))
def test_the_inverse_undoes_the_field(dx, dy):
    field = wave(dx, dy)
    inverse = field.pseudo_inverse()
    assert field(inverse).norm.max() < 0.01
    assert field.inverse_mask(inverse).all()
    assert not (abs(dx) > 1 and np.allclose(inverse.dvf, -field.dvf, atol=0.01))


def test_an_inverse_of_a_folding_field_warns_with_the_share():
    x = np.zeros((20, 60))
    x[:, 20:31] = np.linspace(10, -10, 11)
    folding = DisplacementField(x, np.zeros_like(x))
    with pytest.warns(UserWarning, match=r"folds: 1\d\.\d\d%"):
        inverse = folding.pseudo_inverse()
    mask = folding.inverse_mask(inverse)
    assert not mask[:, 22:29].any()
    assert mask[:, :18].all()


def test_the_smallest_fold_is_warned_of():
    x = np.zeros((40, 100))
    x[10, 20:25] = [3, 1.5, 0, -1.5, -3]
    with pytest.warns(UserWarning, match=r"folds: 0\.\d\d%"):
        DisplacementField(x, np.zeros_like(x)).pseudo_inverse()


def test_anchoring_keeps_the_middle_and_fixes_the_corners():
    field = shift(4, -3)
    anchored = field.anchor(h_kept=0.6, w_kept=0.6, ds_f=8)
    np.testing.assert_allclose(middle(anchored.delta_x), 4, atol=0.5)
    np.testing.assert_allclose(middle(anchored.delta_y), -3, atol=0.5)
    np.testing.assert_allclose(anchored.norm[[0, 0, -1, -1], [0, -1, 0, -1]], 0, atol=1e-3)


def test_adjusted_fields_have_no_outsiders_and_change_nothing_else():
    field = wave(60, 45)
    adjusted = field.adjust()
    assert field.outsiders.any()
    assert not adjusted.outsiders.any()
    np.testing.assert_allclose(adjusted.dvf[:, ~field.outsiders], field.dvf[:, ~field.outsiders], atol=1e-5)
    x, _ = field.transformation
    left, stays = x < 0, adjusted.transformation[0]
    assert (stays[left] == 0).all()


def test_adjusting_clips_each_component_to_its_own_limit():
    adjusted = wave(60, 45).adjust(delta_x_max=5, delta_y_max=30, force_inside_border=False)
    assert np.abs(adjusted.delta_x).max() == 5
    assert np.abs(adjusted.delta_y).max() == 30
    assert adjusted.outsiders.any()


def test_masking_leaves_the_field_inside_only():
    mask = np.zeros(SHAPE, dtype=bool)
    mask[10:20, 30:40] = True
    masked = wave().mask(mask)
    np.testing.assert_array_equal(masked.dvf, np.where(mask, wave().dvf, 0))


def test_resizing_keeps_the_identity_and_scales_displacements():
    assert DisplacementField.generate((20, 30)).resize((77, 31)).norm.max() == 0
    resized = shift(2, 3, (11, 21)).resize((31, 41))
    np.testing.assert_allclose(resized.delta_x, 4, atol=1e-5)
    np.testing.assert_allclose(resized.delta_y, 9, atol=1e-5)


# --- files ------------------------------------------------------------------------------------------------------------

SUFFIXES = [".npy", ".nii.gz", ".nii", ".mha", ".nrrd"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saved_field_is_read_back(suffix, tmp_path):
    field = wave()
    field.save(tmp_path / f"field{suffix}")
    np.testing.assert_array_equal(DisplacementField.from_file(tmp_path / f"field{suffix}").dvf, field.dvf)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_endings_may_be_in_capitals(suffix, tmp_path):
    path = tmp_path / f"Field{suffix.upper()}"
    wave().save(path)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(DisplacementField.from_file(path).dvf, wave().dvf)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failed_write_is_reported_and_leaves_nothing(suffix, tmp_path):
    path = tmp_path / f"field{suffix}"
    path.mkdir()
    with pytest.raises(InputError, match=rf"field{re.escape(suffix)} cannot be written: "):
        wave().save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_numpy_files_are_channels_last(tmp_path):
    shift(2, -1).save(tmp_path / "field.npy")
    array = np.load(tmp_path / "field.npy")
    assert array.shape == (*SHAPE, 2)
    assert array[3, 4].tolist() == [2, -1]


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_itk_warps_with_a_saved_field_like_we_do(suffix, tmp_path):
    field, image = wave(), smooth_image().astype(np.float32)
    field.save(tmp_path / f"field{suffix}")
    read = SimpleITK.ReadImage(str(tmp_path / f"field{suffix}"), SimpleITK.sitkVectorFloat64)
    transform = SimpleITK.DisplacementFieldTransform(read)
    by_itk = SimpleITK.GetArrayFromImage(SimpleITK.Resample(SimpleITK.GetImageFromArray(image), transform))
    inside = ~field.outsiders
    assert inside.mean() > 0.7
    np.testing.assert_allclose(field.warp(image)[inside], by_itk[inside], atol=1e-4)


def test_foreign_spacing_and_direction_become_pixels(tmp_path):
    array = np.zeros((*SHAPE, 2), dtype=np.float32)
    array[..., 0], array[..., 1] = 6.0, 10.0
    image = SimpleITK.GetImageFromArray(array, isVector=True)
    image.SetSpacing((2.0, 5.0))
    image.SetDirection((0.0, 1.0, -1.0, 0.0))
    SimpleITK.WriteImage(image, str(tmp_path / "field.mha"))
    field = DisplacementField.from_file(tmp_path / "field.mha")
    # A step of one column is 2 long and leads along −y, one of a row 5 and along x: (6, 10) is −5 columns, 1.2 rows.
    pixels = np.array([field.delta_x[0, 0], field.delta_y[0, 0]], dtype=float)
    origin = np.array(image.GetOrigin())
    np.testing.assert_allclose(
        np.array(image.TransformContinuousIndexToPhysicalPoint(pixels.tolist())) - origin, [6, 10], atol=1e-5
    )


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("a file ran code",))


def test_files_never_run_code(tmp_path):
    np.save(tmp_path / "field.npy", np.array([Harmful()], dtype=object), allow_pickle=True)
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Harmful()))
    for name in ("field.npy", "pickle.npy"):
        with pytest.raises(InputError, match=rf"{name}: expected an \.npy array of numbers"):
            DisplacementField.from_file(tmp_path / name)


def write_itk(path, array, *, vector: bool) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=vector), str(path))


BAD_FILES = {
    "truncated.npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"), "cannot read it"),
    "empty.npy": (lambda path: path.write_bytes(b""), "cannot read it"),
    "channels_first.npy": (lambda path: np.save(path, np.zeros((2, 5, 6))), r"found \(2, 5, 6\) of float64"),
    "text.npy": (lambda path: np.save(path, np.full((5, 6, 2), "a")), r"found \(5, 6, 2\) of <U1"),
    "huge.npy": (lambda path: np.save(path, np.full((5, 6, 2), 1e300)), "found 60 that are not"),
    "nan.npy": (lambda path: np.save(path, np.full((5, 6, 2), np.nan)), "found 60 that are not"),
    "rubbish.mha": (lambda path: path.write_text("rubbish"), "expected an ITK image, cannot read it"),
    "scalar.mha": (lambda path: write_itk(path, np.zeros((5, 6)), vector=False), "found 2D with 1"),
    "volume.mha": (lambda path: write_itk(path, np.zeros((4, 5, 6, 3)), vector=True), "found 3D with 3"),
    "field.png": (lambda path: path.write_text("rubbish"), r"a name that ends in \.npy, \.nii\.gz"),
    "absent.npy": (lambda path: None, "expected a file with a displacement field, found no such file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_sentence_with_their_name(name, tmp_path):
    write, message = BAD_FILES[name]
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        DisplacementField.from_file(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_saving_needs_a_known_type_and_an_existing_folder(tmp_path):
    with pytest.raises(InputError, match=r"field\.jpg: expected a name that ends in"):
        wave().save(tmp_path / "field.jpg")
    with pytest.raises(InputError, match="expected an existing folder"):
        wave().save(tmp_path / "nowhere" / "field.npy")


# --- plots ------------------------------------------------------------------------------------------------------------


def test_plots_show_the_field():
    field = DisplacementField.from_transform([[-1, 0, 55], [0, 1, 0]], SHAPE)
    grid = field.plot_grid().axes[0].collections[0].get_segments()
    np.testing.assert_allclose(grid[0][0], [55, 0])  # The mirrored top left corner.
    displacement = field.plot_displacement(ds_f=10).axes[0]
    np.testing.assert_allclose(displacement.images[0].get_array(), field.norm, atol=1e-4)
    assert displacement.collections[0].U[0] == pytest.approx(55)
    jacobian, folded = field.plot_jacobian().axes[0].images
    np.testing.assert_allclose(jacobian.get_array(), -1, atol=1e-5)
    assert not np.ma.getmaskarray(folded.get_array()).any()
