"""Losses of the predicted fields alone, against hand-computed compositions."""

import pytest
import torch
from torch import Tensor

from atlalign.errors import InputError
from atlalign.geometry import affine_to_dvf, draw_velocity, integrate, invert_affine
from atlalign.losses import ALL_REGULARITY_LOSSES, grad, gradicon, inverse_consistency, jacobian

SHAPE = (24, 32)
CONSISTENCY = {"gradicon": gradicon, "inverse_consistency": inverse_consistency}
MATRIX = torch.tensor([[[1.1, 0.2, -4.0], [-0.1, 0.9, 2.0]], [[0.8, 0.0, 3.0], [0.1, 1.2, -5.0]]])


def constant(x: float, y: float, shape: tuple[int, int] = SHAPE) -> Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, *shape)


def along_x(slope: float) -> Tensor:
    """Return the field slope · x, 0 in y."""
    return affine_to_dvf(torch.tensor([[[1 + slope, 0, 0], [0, 1, 0.0]]]), SHAPE)


def test_the_keys():
    assert set(ALL_REGULARITY_LOSSES) == {"gradicon", "inverse_consistency", "grad", "jacobian"}
    assert all(ALL_REGULARITY_LOSSES[key] is loss for key, loss in CONSISTENCY.items())


@pytest.mark.parametrize("loss", CONSISTENCY.values(), ids=CONSISTENCY)
def test_exact_inverses_cost_nothing_even_where_they_leave_the_image(loss):
    there, back = affine_to_dvf(MATRIX, SHAPE), affine_to_dvf(invert_affine(MATRIX), SHAPE)
    assert loss(there, back) < 1e-8
    assert loss(there, -there) > 1e-3
    assert loss(constant(3, -2), constant(-3, 2)) == 0


@pytest.mark.parametrize(("loss", "largest"), [(gradicon, 1e-4), (inverse_consistency, 1e-3)])
def test_a_velocity_and_its_negative_cost_no_more_than_interpolation(loss, largest):
    velocity = 9 * draw_velocity(2, (96, 120), spacing=0.25)
    there, back = integrate(velocity), integrate(-velocity)
    assert there.abs().max() > 5
    assert loss(there, back) < largest < loss(there, -there) / 100


def test_a_translation_too_many_costs_inverse_consistency_alone():
    """(5, −1) and then (−3, 2) is a move by (2, 1), of squared length 5, whichever comes first."""
    there, back = constant(5, -1), constant(-3, 2)
    assert inverse_consistency(there, back) == pytest.approx(5)
    assert gradicon(there, back) == 0


def test_a_stretch_by_hand():
    """x → 1.2 x, then x → 0.75 x, is x → 0.9 x: the Jacobian departs from the identity by −0.1."""
    there, back = along_x(0.2), along_x(-0.25)
    assert gradicon(there, back) == pytest.approx(0.01, rel=1e-4)
    # −0.1 x over the columns 0 … 31 that back leads to, and over 0 … 25, which there keeps inside
    mean_squares = [(0.1 * torch.arange(n)).square().mean() for n in (32.0, 26.0)]
    assert inverse_consistency(there, back) == pytest.approx(float(sum(mean_squares) / 2), rel=1e-4)


def test_gradicon_counts_all_four_derivatives():
    """Composed with nothing, the departure is the field's own gradient: squares of 0.1, 0.2, 0.3 and 0.4."""
    matrix = torch.tensor([[[1.1, 0.2, 0.0], [0.3, 0.6, 0.0]]])
    shear = affine_to_dvf(matrix, SHAPE)
    assert gradicon(shear, torch.zeros_like(shear)) == pytest.approx(0.01 + 0.04 + 0.09 + 0.16, rel=1e-4)


def test_points_outside_do_not_count():
    far = constant(100, 0)
    assert inverse_consistency(far, far) == 0
    assert gradicon(far, far) == 0


@pytest.mark.parametrize(("key", "loss"), [("grad", grad), ("jacobian", jacobian)])
def test_second_field_is_averaged_if_given(key, loss):
    one, other = 3 * torch.randn(2, 2, 2, 12, 15)
    both = (loss(one, one) + loss(other, other)) / 2
    torch.testing.assert_close(ALL_REGULARITY_LOSSES[key](one, other), both)
    torch.testing.assert_close(ALL_REGULARITY_LOSSES[key](one, None), loss(one, one))


@pytest.mark.parametrize("key", ALL_REGULARITY_LOSSES)
def test_gradients(key):
    fields = torch.randn(2, 2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    loss = ALL_REGULARITY_LOSSES[key]
    assert torch.autograd.gradcheck(lambda both: loss(*both), (fields,))
    assert loss(*fields).dtype == torch.float64


@pytest.mark.parametrize("key", ALL_REGULARITY_LOSSES)
def test_half_precision_is_computed_in_float32(key):
    one, other = torch.randn(2, 2, 2, 12, 15).bfloat16()
    loss = ALL_REGULARITY_LOSSES[key]
    expected = loss(one.float(), other.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(one, other), expected)


@pytest.mark.parametrize("loss", CONSISTENCY.values(), ids=CONSISTENCY)
def test_without_an_inverse(loss):
    with pytest.raises(InputError, match=r"^loss\.regularity: .*model\.compute_inv=true"):
        loss(constant(1, 1), None)
