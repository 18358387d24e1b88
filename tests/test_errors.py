"""What is no number, or none that is taken, gives a sentence with its name."""

import math

import numpy as np
import pytest

from atlalign.errors import InputError, check_finite_numbers, check_numbers


@pytest.mark.parametrize(
    ("value", "least", "sentence"),
    [
        ("1", 0.0, "a.b: expected a number, got 1"),
        (True, 0, "a.b: expected a whole number, got True"),
        (1.5, 0, "a.b: expected a whole number, got 1.5"),
        (0, 1, "a.b: expected at least 1, got 0"),
        (np.float32(-0.5), 0.0, "a.b: expected at least 0, got -0.5"),
        (math.inf, 0.0, "a.b: expected a finite number, got inf"),
        (-math.inf, -math.inf, "a.b: expected a finite number, got -inf"),
        (math.nan, -math.inf, "a.b: expected a number, got nan"),
    ],
)
def test_what_is_wrong_with_a_number_is_said(value, least, sentence):
    with pytest.raises(InputError) as error:
        check_finite_numbers({"a.b": value, "other": "x"}, {"a.b": least})
    assert str(error.value) == sentence


def test_only_finite_numbers_are_asked_to_be_finite():
    check_numbers({"a": math.inf, "b": np.int64(2)}, {"a": 0.0, "b": 2})
    check_finite_numbers({"a": -1e300, "b": 10**400}, {"a": -math.inf, "b": 0})
