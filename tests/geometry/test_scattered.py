"""Claims about fields from a few points, with scipy as the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import Rbf, griddata
from torch import Tensor

from atlalign.errors import InputError
from atlalign.geometry import affine_to_dvf, anchor, interpolate_griddata, interpolate_rbf
from atlalign.geometry.scattered import anchor_points, corners

SHAPE = (30, 44)


def some_points(n: int = 7, batch_size: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(batch_size, n, 2, generator=generator) * torch.tensor([43.0, 29.0])
    return points, 5 * torch.randn(batch_size, n, 2, generator=generator)


@pytest.mark.parametrize("smooth", [0.0, 4.0])
@pytest.mark.parametrize("function", ["linear", "thin_plate"])
def test_rbf_agrees_with_scipy(function, smooth):
    points, displacements = some_points()
    field = interpolate_rbf(points, displacements, SHAPE, function=function, smooth=smooth)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for sample in range(2):
        for component in range(2):
            x, y = points[sample].double().numpy().T
            values = displacements[sample, :, component].double().numpy()
            expected = Rbf(x, y, values, function=function, smooth=smooth)(columns, rows)
            np.testing.assert_allclose(field[sample, component], expected, atol=1e-3)


@pytest.mark.parametrize(("function", "tolerance_px"), [("linear", 2e-3), ("thin_plate", 1e-4)])
def test_a_large_field_goes_through_its_points(function, tolerance_px):
    generator = torch.Generator().manual_seed(0)
    points = torch.stack([torch.randperm(300, generator=generator)[:40] for _ in range(2)], dim=-1)
    displacements = 20 * torch.randn(1, 40, 2, generator=generator)
    field = interpolate_rbf(points[None].float(), displacements, (320, 456), function=function)
    assert field.dtype == torch.float32
    x, y = points.unbind(1)
    torch.testing.assert_close(field[0, :, y, x].T, displacements[0], atol=tolerance_px, rtol=0)


@pytest.mark.parametrize("method", ["nearest", "linear", "cubic"])
def test_griddata_is_scipys_of_the_same_method(method):
    points, displacements = some_points(batch_size=1)
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    expected = griddata(points[0].numpy(), displacements[0].numpy(), (columns, rows), method, fill_value=0.0)
    field = interpolate_griddata(points, displacements, SHAPE, method=method)
    np.testing.assert_allclose(field[0].permute(1, 2, 0), expected, atol=1e-4)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown function 'gaussian'"):
        interpolate_rbf(*some_points(), SHAPE, function="gaussian")
    with pytest.raises(InputError, match="unknown method 'spline'"):
        interpolate_griddata(*some_points(), SHAPE, method="spline")


def test_many_points_are_evaluated_in_strips_without_a_seam():
    points, displacements = some_points(20, 1)
    whole = interpolate_rbf(points, displacements, (301, 5))
    wide = interpolate_rbf(points, displacements, (301, 4001))
    torch.testing.assert_close(wide[..., :5], whole, atol=1e-3, rtol=0)


def test_coinciding_points_are_refused():
    points = torch.tensor([[[3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]])
    with pytest.raises(InputError, match="two at the same place"):
        interpolate_rbf(points, torch.zeros(1, 3, 2), SHAPE)
    with pytest.raises(InputError, match=r"got \(1, 3, 2\) and \(1, 2, 2\)"):
        interpolate_rbf(points, torch.zeros(1, 2, 2), SHAPE)


def test_griddata_is_exact_for_affine_fields():
    matrix = torch.tensor([[[1.1, 0.2, -3.0], [-0.1, 0.9, 2.0]]])
    expected = affine_to_dvf(matrix, SHAPE)
    points = torch.cat([torch.tensor([[10.0, 12.0], [30.0, 20.0]]), corners(SHAPE)])[None]
    displacements = points @ (matrix[:, :, :2] - torch.eye(2)).mT + matrix[:, :, 2]
    torch.testing.assert_close(
        interpolate_griddata(points, displacements, SHAPE), expected, atol=1e-4, rtol=0
    )


# --- anchor -----------------------------------------------------------------------------------------------------------


def random_field(batch_size: int = 1) -> Tensor:
    return torch.randn(batch_size, 2, *SHAPE, generator=torch.Generator().manual_seed(3))


@settings(max_examples=10, deadline=None)
@given(kept=st.floats(0.2, 1.0), step=st.integers(4, 15))
def test_the_anchored_field_is_zero_at_the_corners(kept, step):
    anchored = anchor(random_field(), h_kept=kept, w_kept=kept, ds_f=step)
    assert anchored[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].abs().max() < 1e-3


def test_the_anchored_field_is_the_given_one_at_its_points():
    field = random_field()
    anchored = anchor(field, h_kept=13 / 29, w_kept=21 / 43, ds_f=7)
    # The centre is (21.5, 14.5): rows 11 and 18, columns 11, 18, 25 and 32 are 7 apart around it.
    for row in (11, 18):
        for column in (11, 18, 25, 32):
            torch.testing.assert_close(anchored[..., row, column], field[..., row, column], atol=1e-3, rtol=0)
    assert (anchored[..., 14, 14] - field[..., 14, 14]).abs().max() > 0.1


def test_anchoring_agrees_with_scipy_and_does_not_mix_a_batch():
    fields = random_field(3)
    anchored = anchor(fields, h_kept=13 / 29, w_kept=21 / 43, ds_f=7, smooth=2.0)
    x, y = np.meshgrid([11, 18, 25, 32], [11, 18])
    nodes_x = np.append(x.ravel(), [0, 43, 0, 43])
    nodes_y = np.append(y.ravel(), [0, 0, 29, 29])
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for sample in range(3):
        for component in range(2):
            values = np.append(fields[sample, component].numpy()[y, x].ravel(), np.zeros(4))
            expected = Rbf(nodes_x, nodes_y, values, function="linear", smooth=2.0)(columns, rows)
            np.testing.assert_allclose(anchored[sample, component], expected, atol=1e-3)


def test_anchoring_without_a_remembered_map_is_the_same(monkeypatch):
    field = random_field()
    remembered = anchor(field, ds_f=6)
    monkeypatch.setattr("atlalign.geometry.scattered._LARGEST_MAP", 0)
    torch.testing.assert_close(anchor(field, ds_f=6), remembered, atol=1e-3, rtol=0)


def test_all_of_the_image_may_be_kept_but_no_more():
    assert anchor(random_field(), h_kept=1.0, w_kept=1.0, ds_f=1).isfinite().all()
    x, y = anchor_points(SHAPE, 1.0, 1.0, 15, torch.device("cpu")).unbind(1)
    # 29 and 43 pixels hold one and two steps of 15.
    assert y.unique().tolist() == [7.0, 22.0]
    assert x.unique().tolist() == [6.5, 21.5, 36.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"h_kept": 0.0}, "h_kept: expected a share above 0 and at most 1, got 0"),
        ({"w_kept": 1.5}, r"w_kept: expected a share above 0 and at most 1, got 1\.5"),
        ({"ds_f": 0}, "ds_f: expected at least 1, got 0"),
        ({"ds_f": 2.5}, "ds_f: expected a whole number, got 2.5"),
        ({"smooth": -1}, "smooth: expected at least 0, got -1"),
    ],
)
def test_impossible_anchors_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        anchor(random_field(), **options)
