"""Displacement losses against their formulas, written out in NumPy."""

import numpy as np
import pytest
import torch

from atlalign.errors import InputError
from atlalign.geometry import affine_to_dvf
from atlalign.losses import (
    ALL_DVF_LOSSES,
    Grad,
    VDClipper,
    jacobian,
    jacobian_distance,
    mse,
    mse_po,
    vdclip,
    vector_distance,
)

KEYS = [
    "grad",
    "jacobian",
    "jacobian_distance",
    "mae",
    "mse",
    "mse_po",
    "vdclip2",
    "vdclip3",
    "vector_distance",
    "vector_jacobian_distance",
    "vector_jacobian_distance_02",
]


def pair(shape=(2, 2, 7, 9), dtype=torch.float32):
    """Fields of a few pixels that fold here and there."""
    y_true, y_pred = 3 * torch.randn(2, *shape, dtype=dtype)
    return y_true, y_pred


def length(dvf):
    return np.sqrt(dvf[:, 0] ** 2 + dvf[:, 1] ** 2 + 0.001)


def determinants(dvf):
    """Central differences, pixel by pixel, x = column."""
    x, y = dvf[:, 0], dvf[:, 1]
    b, h, w = x.shape
    result = np.empty((b, h - 2, w - 2))
    for row in range(1, h - 1):
        for column in range(1, w - 1):
            xx = (x[:, row, column + 1] - x[:, row, column - 1]) / 2
            xy = (x[:, row + 1, column] - x[:, row - 1, column]) / 2
            yx = (y[:, row, column + 1] - y[:, row, column - 1]) / 2
            yy = (y[:, row + 1, column] - y[:, row - 1, column]) / 2
            result[:, row - 1, column - 1] = (1 + xx) * (1 + yy) - xy * yx
    return result


def distance(a, b):
    return length(a - b).mean()


def jacobian_distance_numpy(a, b):
    return np.mean((determinants(a) - determinants(b)) ** 2)


FORMULAS = {
    "grad": lambda a, b: (np.abs(np.diff(b, axis=2)).mean() + np.abs(np.diff(b, axis=3)).mean()) / 2,
    "jacobian": lambda a, b: np.maximum(0, -determinants(b)).mean(),
    "jacobian_distance": jacobian_distance_numpy,
    "mae": lambda a, b: np.abs(a - b).mean(),
    "mse": lambda a, b: ((a - b) ** 2).mean(),
    "mse_po": lambda a, b: ((a - b)[:, 0] ** 2 + (a - b)[:, 1] ** 2).mean(),
    "vector_distance": distance,
    "vdclip2": lambda a, b: (distance(a, b) / 20) ** 2,
    "vdclip3": lambda a, b: (distance(a, b) / 20) ** 3,
    "vector_jacobian_distance": lambda a, b: 0.5 * distance(a, b) + 0.5 * jacobian_distance_numpy(a, b),
    "vector_jacobian_distance_02": lambda a, b: 0.2 * distance(a, b) + 0.8 * jacobian_distance_numpy(a, b),
}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_its_formula(key):
    y_true, y_pred = pair()
    expected = FORMULAS[key](y_true.double().numpy(), y_pred.double().numpy())
    assert ALL_DVF_LOSSES[key](y_true, y_pred).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("key", KEYS)
def test_gradients_are_right_and_float64_stays(key):
    y_true, y_pred = pair((2, 2, 4, 5), torch.float64)
    loss = ALL_DVF_LOSSES[key]
    assert loss(y_true, y_pred).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (y_true.requires_grad_(), y_pred.requires_grad_()))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(key, dtype):
    y_true, y_pred = (field.to(dtype) for field in pair())
    loss = ALL_DVF_LOSSES[key]
    expected = loss(y_true.float(), y_pred.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(y_true, y_pred), expected)
        torch.testing.assert_close(loss(y_true.float(), y_pred), expected)


@pytest.mark.parametrize("key", [key for key in KEYS if key not in ("mae", "mse")])
def test_only_fields_are_taken(key):
    with pytest.raises(ValueError, match=r"fields \(B, 2, H, W\), got \(1, 1, 7, 9\)"):
        ALL_DVF_LOSSES[key](torch.rand(1, 1, 7, 9), torch.rand(1, 1, 7, 9))


def test_mse_po_is_twice_the_mse():
    y_true, y_pred = pair()
    torch.testing.assert_close(mse_po(y_true, y_pred), 2 * mse(y_true, y_pred))


def test_vector_distance_by_hand():
    y_pred = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 4, 5)
    assert vector_distance(torch.zeros(1, 2, 4, 5), y_pred).item() == pytest.approx(5, abs=1e-3)
    assert vector_distance(y_pred, y_pred).item() == pytest.approx(0.001**0.5)


@pytest.mark.parametrize(("power", "at_10_px"), [(2, 0.25), (3, 0.125)])
def test_vdclipper_curve(power, at_10_px):
    def at(distance_px):
        shifted = torch.tensor([0.0, distance_px]).view(1, 2, 1, 1).expand(1, 2, 4, 5)
        return VDClipper(threshold=20, power=power)(torch.zeros(1, 2, 4, 5), shifted).item()

    assert at(20.0) == pytest.approx(1, abs=1e-4)
    assert at(10.0) == pytest.approx(at_10_px, abs=1e-4)
    assert at(40.0) == pytest.approx(2**power, abs=1e-3)


def test_vdclipper_works_on_the_mean_of_the_batch():
    """The power of the mean, not the mean of powers."""
    y_pred = torch.stack([torch.zeros(2, 4, 5), torch.full((2, 4, 5), 800.0**0.5)])
    assert vdclip(torch.zeros_like(y_pred), y_pred).item() == pytest.approx(1, abs=2e-3)


def test_grad_by_hand():
    """A slope of 2 along x in one of two components, nothing along y."""
    y_pred = torch.zeros(1, 2, 4, 5)
    y_pred[:, 0] = 2 * torch.arange(5.0)
    truth = torch.randn(1, 2, 4, 5)
    assert Grad()(truth, y_pred).item() == pytest.approx((0 + 2 / 2) / 2)
    assert Grad(penalty="l2")(truth, y_pred).item() == pytest.approx((0 + 4 / 2) / 2)


def test_jacobian_is_how_much_the_prediction_folds():
    """x → −2x has determinant −2 everywhere; the identity and a translation fold nowhere."""
    mirrored = affine_to_dvf(torch.tensor([[[-2.0, 0.0, 3.0], [0.0, 1.0, 0.0]]]), (5, 6))
    identity = torch.zeros(1, 2, 5, 6)
    assert jacobian(identity, mirrored).item() == pytest.approx(2)
    assert jacobian(mirrored, identity).item() == 0
    assert jacobian(mirrored, identity + 7).item() == 0


def test_jacobian_distance_by_hand():
    """Area ×6 against ×1; the edges, with their own differences, are left out."""
    stretched = affine_to_dvf(torch.tensor([[[2.0, 0.5, 0.0], [0.0, 3.0, 0.0]]]), (5, 6))
    identity = torch.zeros(1, 2, 5, 6)
    assert jacobian_distance(stretched, identity).item() == pytest.approx(25, rel=1e-5)
    assert jacobian_distance(stretched, stretched).item() == 0
    edge = stretched.clone()
    edge[:, 0, 0, 0] += 9  # a corner is no neighbour of an interior pixel
    assert jacobian_distance(edge, stretched).item() == 0


def test_too_small_fields_are_refused():
    with pytest.raises(ValueError, match="grad: expected fields of at least 2×2, got 1×9"):
        Grad()(torch.zeros(1, 2, 1, 9), torch.zeros(1, 2, 1, 9))
    with pytest.raises(ValueError, match="jacobian: expected fields of at least 3×3, got 7×2"):
        jacobian(torch.zeros(1, 2, 7, 2), torch.zeros(1, 2, 7, 2))


def test_wrong_hyperparameters_are_refused():
    with pytest.raises(InputError, match="unknown penalty of Grad 'l3'"):
        Grad(penalty="l3")
    with pytest.raises(InputError, match="threshold and power above 0, got 0 and 2"):
        VDClipper(threshold=0)
