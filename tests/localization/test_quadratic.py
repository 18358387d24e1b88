"""The peak of a quadratic is found from few points, with its width and a prior."""

import numpy as np
import pytest

from atlalign.localization.quadratic import Quadratic, design

CURVATURE = np.array([[-2.0, 0.5, 0.1], [0.5, -1.5, 0.3], [0.1, 0.3, -1.0]])
PEAK = np.array([0.4, -0.3, 0.7])


def values(points: np.ndarray) -> np.ndarray:
    away = points - PEAK
    return 3.0 + 0.5 * np.einsum("ni,ij,nj->n", away, CURVATURE, away)


def test_the_design_determines_a_quadratic():
    points = design(3)
    assert points.shape == (13, 3)
    found = Quadratic.through(points, values(points))
    assert found.curvature == pytest.approx(CURVATURE)
    assert found.peak == pytest.approx(PEAK)
    assert found.variances == pytest.approx(np.diag(np.linalg.inv(-CURVATURE)))


def test_a_prior_pulls_by_its_precision():
    found = Quadratic(np.array([2.0]), np.array([[-2.0]]))  # a peak at 1, with a variance of 1/2
    pulled = found.with_prior(np.array([4.0]), np.array([2.0]))
    assert pulled.peak == pytest.approx([2.5])
    assert pulled.variances == pytest.approx([0.25])


def test_values_without_a_peak_get_a_far_one():
    points = design(2)
    found = Quadratic.through(points, points[:, 0] + points[:, 1] ** 2)
    assert (np.linalg.eigvalsh(found.curvature) < 0).all()
    assert found.peak[0] > 10


def test_parts_that_depend_on_one_direction_have_one_peak_together():
    """Each part sees its own direction alone: together they determine all three."""
    points = design(3)
    arms = np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [0.5, 0.2]])
    directions = np.column_stack([np.ones(4), arms])
    away = (points - PEAK) @ directions.T
    found = Quadratic.of_parts(points, directions, 0.7 - 1.5 * away**2)
    assert found.peak == pytest.approx(PEAK)
    assert found.curvature == pytest.approx(-3.0 * directions.T @ directions)
    # A part without a peak has a slope alone.
    rising = Quadratic.of_parts(points, directions[:1], (points @ directions[:1].T) ** 2)
    assert rising.curvature == pytest.approx(np.zeros((3, 3)), abs=1e-12)


def test_a_sum_has_both_precisions():
    first, second = Quadratic(np.array([2.0]), np.array([[-2.0]])), Quadratic(np.zeros(1), np.array([[-6.0]]))
    assert first.plus(second).peak == pytest.approx([0.25])
    assert first.plus(second).variances == pytest.approx([1 / 8])
