"""No registration of real sections that errs by much may pass."""

import numpy as np
import pytest

from tests.registration.what_passes import LARGEST_ERROR_UM, Row, cells, markdown, measure, turned_image


def test_an_image_is_turned_counter_clockwise():
    image = np.zeros((30, 50, 3), np.uint8)
    image[10, 40] = 255
    turned, moved = turned_image(image, 90)
    assert turned.shape == (50, 30, 3)
    assert np.argwhere(turned[..., 0] > 128).tolist() == [[9, 10]]  # what was at the right is on top
    assert moved @ (40, 10, 1) == pytest.approx(np.array([10, 9]))


def test_only_pass_with_a_large_error_is_wrong():
    row = Row(
        "dust", "fit", [100.0, 200.0, 200.0, np.inf, np.nan], ["pass", "pass", "look", "pass", "refused"]
    )
    assert row.wrongly_passed == 2
    assert cells(row) == ["dust", "fit", "5", "167", "200", "3", "1", "0", "1", "inf", "2"]
    lines = markdown([row]).splitlines()[-3:]
    assert len({len(line) for line in lines}) == 1  # lined up


@pytest.mark.slow
def test_no_wrong_registration_passes(test_data):
    """On a section that limits were not chosen on, in all situations; undisturbed it passes."""
    rows = measure(test_data, [5])
    assert [(row.situation, row.placing) for row in rows if row.wrongly_passed] == []
    assert {flag for row in rows if row.situation == "untouched" for flag in row.flags} == {"pass"}
    assert LARGEST_ERROR_UM == 150
