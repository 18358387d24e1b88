"""The calibration of the expected error recovers a known law, and its area under the ROC curve is exact."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from atlalign.registration.expected_error import Calibration

FOLDER = Path(__file__).parents[1] / "experiments" / "07-real-sections"
sys.path.insert(0, str(FOLDER))
try:
    calibrate = importlib.import_module("expected_error")
finally:
    sys.path.remove(str(FOLDER))


def samples(law: Calibration, part: str, seed: int) -> list:
    """Errors of which half are larger than the law says."""
    random = np.random.default_rng(seed)
    views, returns = random.uniform(5, 300, (2, 4000))
    spread = np.exp(random.normal(0, 1, 4000))
    error = (law.error_um(views, returns) + 5) * spread - 5
    return [calibrate.Sample(part, 0, views, returns, np.maximum(error, -4.9))]


def test_a_known_law_is_found():
    law = Calibration(constant=0.6, of_views=0.5, of_return=0.3)
    found = calibrate.fitted([*samples(law, "a", 0), *samples(law, "c", 1)])
    assert found[1:] == pytest.approx(law[1:], abs=0.1)
    (sample,) = samples(law, "a", 2)
    assert (sample.error_um < found.error_um(sample.views_um, sample.return_um)).mean() == pytest.approx(
        0.5, abs=0.03
    )


def test_the_area_is_the_share_of_pairs_in_order():
    score, is_bad = np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True])
    assert calibrate.roc_area(score, is_bad) == pytest.approx(3 / 4)
    assert calibrate.roc_area(-score, is_bad) == pytest.approx(1 / 4)
