"""Sections of one brain lie on a line over their numbers, or in their order, despite outliers."""

from pathlib import Path

import numpy as np
import pytest

from atlalign.errors import InputError
from atlalign.localization.search import Curve, second_place
from atlalign.localization.series import common, in_order, numbers_of, on_a_line, section_number

GRID = np.arange(0.0, 13.0, 0.1)


def curve(position_mm: float, width_mm: float = 0.2, low: float = -8.0) -> Curve:
    odds = np.maximum(-0.5 * ((GRID - position_mm) / width_mm) ** 2, low)
    return Curve(GRID, odds, odds)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("brain_641_s012.png", 12),
        ("NM01_s004_x2.ome.tif", 4),
        ("slice 17.jpg", 17),
        ("a2_b030c.tif", 30),
        ("section.tif", None),
    ],
)
def test_numbers_are_read_from_names(name, number):
    assert section_number(Path(name)) == number


def test_a_number_twice_is_no_series():
    with pytest.raises(InputError, match=r"found 12 in a_s12\.png and b_s012\.png"):
        numbers_of([Path("a_s12.png"), Path("a_s13.png"), Path("b_s012.png")])
    assert numbers_of([Path("a.png"), Path("b_s1.png")]) is None


def test_numbers_in_a_list_count_more_than_names():
    paths = [Path("a_s001.tif"), Path("a_s002.tif"), Path("b_s001.tif")]
    assert numbers_of(paths, [2, 1, 4]) == [2, 1, 4]
    with pytest.raises(InputError, match="a_s001"):
        numbers_of(paths, [2, None, 4])


@pytest.mark.parametrize("spacing_mm", [0.3, -0.3])
def test_a_line_is_found_in_spite_of_outliers_either_way(spacing_mm):
    numbers = [1, 2, 4, 5, 7, 8, 11]
    true = 6.0 + spacing_mm * (np.array(numbers) - 6)
    said = true + np.array([0.05, -0.05, 0.05, 4.0, 0.0, -0.05, -5.0])
    series = on_a_line([curve(x) for x in said], numbers)
    assert np.abs(series.position_mm - true).max() < 0.05
    assert series.spacing_mm == pytest.approx(spacing_mm, abs=0.02)
    assert series.fits.tolist() == [True, True, True, False, True, True, False]


def test_a_known_spacing_is_kept():
    series = on_a_line([curve(x) for x in (4.0, 4.5, 5.0)], [1, 2, 3], spacing_mm=0.4)
    assert abs(series.spacing_mm) == 0.4
    assert np.diff(series.position_mm) == pytest.approx([0.4, 0.4])
    assert series.position_mm[1] == pytest.approx(4.5, abs=0.02)


@pytest.mark.parametrize("way", [1, -1])
def test_only_the_order_is_used_where_there_are_no_numbers(way):
    said = np.array([3.0, 3.2, 9.0, 4.1, 6.0])[::way]
    series = in_order([curve(x) for x in said])
    assert (way * np.diff(series.position_mm) >= 0).all()
    fitting = said != 9.0
    assert np.abs(series.position_mm - said)[fitting].max() < 0.1
    assert series.fits.tolist() == fitting.tolist()


def test_a_common_value_is_the_weighted_median():
    assert common(np.array([0.0, 1.0, 10.0]), np.array([1.0, 1.0, 1.0])) == 1.0
    assert common(np.array([0.0, 1.0, 10.0]), np.array([1.0, 1.0, 0.1])) == 10.0


def test_a_curve_knows_its_peak_width_and_rival():
    one = curve(5.03, low=-20)
    assert one.best_mm == pytest.approx(5.03, abs=1e-6)
    assert one.error_mm == pytest.approx(0.2, rel=0.1)
    assert second_place(one, apart_mm=0.4, odds=1.5) is None
    odds = np.logaddexp(one.odds, curve(8.0).odds - 1.0)
    assert second_place(Curve(GRID, odds, odds), apart_mm=0.4, odds=1.5) == pytest.approx(8.0, abs=0.06)


def test_curves_merge_by_position():
    merged = curve(5.0).merged(Curve(np.array([5.0, 5.05]), np.array([1.0, 2.0]), np.array([3.0, 4.0])))
    assert len(merged.position_mm) == len(GRID) + 1
    assert (np.diff(merged.position_mm) > 0).all()
    assert merged.best_mm == pytest.approx(5.05, abs=0.02)
