"""Claims about affine and projective maps: what their parameters mean, their fields and their inverses."""

import math

import pytest
import torch

from atlalign.errors import InputError
from atlalign.geometry import (
    AffineSimple,
    affine_simple,
    affine_simple_matrix,
    affine_to_dvf,
    invert_affine,
    projective,
    warp,
)

SHAPE = (40, 56)


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


def test_a_mirrored_scale_is_inverted_too():
    matrix = torch.tensor([[[-2.0, 0.0, 6.0], [0.0, 4.0, 8.0]]])
    assert invert_affine(matrix).tolist() == [[[-0.5, 0.0, 3.0], [0.0, 0.25, -2.0]]]


def test_the_inverse_of_any_affine_map():
    matrix = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
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
