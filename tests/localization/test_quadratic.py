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
