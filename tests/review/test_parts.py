"""The parts of the review page that are plain functions."""

from dataclasses import replace

import numpy as np
import pytest

from atlalign.atlas.planes import Anchoring
from atlalign.errors import InputError
from atlalign.review.borders import borders
from atlalign.review.brush import stroke_area
from atlalign.review.plane_settings import PlaneSettings

# Of QuickNII: the image's width runs along −ML, its height along −DV; 4 µm pixels are a little longer than wide.
ANCHORING = Anchoring(np.array([[450.0, 300, 310], [-440, 6, -9], [5, 12, -290]]), (2000, 2800))


def test_settings_give_the_anchoring_back():
    settings = PlaneSettings.of(ANCHORING)
    assert settings.is_flipped  # the left of the image is the right of the atlas
    assert settings.size == 1
    np.testing.assert_allclose(settings.anchoring(ANCHORING).vectors, ANCHORING.vectors, atol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"position_um": 7000.0},
        {"tilt_ml_deg": 6.0},
        {"tilt_dv_deg": -11.0},
        {"turn_deg": 170.0},
        {"size": 1.3},
        {"is_flipped": False},
    ],
)
def test_each_setting_changes_itself_alone(change):
    wanted = replace(PlaneSettings.of(ANCHORING), **change)
    found = PlaneSettings.of(wanted.anchoring(ANCHORING), ANCHORING)
    assert found.to_json() == pytest.approx(wanted.to_json(), abs=1e-6)


def test_a_tilt_is_the_angle_of_the_plane():
    """A plane that falls back by 6° towards the right lies tan 6° further back for each µm of ML."""
    plane = replace(PlaneSettings.of(ANCHORING), tilt_ml_deg=6.0).anchoring(ANCHORING).plane((0.0, 0.0))
    (here,), (right,) = (plane.to_atlas(np.array([[x, 3.0]])) for x in (2.0, 3.0))
    assert right[0] - here[0] == pytest.approx(1000 * np.tan(np.radians(6)))


@pytest.mark.parametrize(
    "wrong",
    [None, {}, {"tilt_ml_deg": 60.0}, {"size": 0.0}, {"position_um": float("nan")}, {"turn_deg": "x"}],
)
def test_impossible_settings_are_refused(wrong):
    given = wrong and PlaneSettings.of(ANCHORING).to_json() | wrong
    with pytest.raises(
        InputError, match=next(iter(wrong)) if wrong and "tilt" not in str(wrong) else "plane"
    ):
        PlaneSettings.from_json(given)


def test_borders_lie_between_labels_and_meet_at_junctions():
    labels = np.ones((20, 30), int)
    labels[:, 10:] = 2
    labels[12:, 10:] = 3
    lines = borders(labels)
    assert len(lines.counts) == 3  # from the one junction in three directions
    parts = np.split(lines.points, np.cumsum(lines.counts)[:-1])
    ends = {tuple(part[k]) for part in parts for k in (0, -1)}
    assert (9.5, 11.5) in ends
    for x, y in lines.points:
        assert x == pytest.approx(9.5) or y == pytest.approx(11.5)
    assert len(borders(np.ones((5, 5), int)).points) == 0


def test_a_closed_border_is_smooth_and_closed():
    y, x = np.mgrid[:60, :60]
    lines = borders((np.hypot(x - 30, y - 28) < 20).astype(int))
    assert len(lines.counts) == 1
    assert (lines.points[0] == lines.points[-1]).all()
    assert (
        np.abs(np.hypot(*(lines.points - (30, 28)).T) - 20).max() < 0.8
    )  # stairs alone would be off by as much


def test_a_stroke_is_as_wide_as_its_brush():
    (outline,) = stroke_area(np.array([[100.0, 50.0], [160.0, 50.0]]), 10.0)
    assert outline.min(axis=0) == pytest.approx([90, 40], abs=0.5)
    assert outline.max(axis=0) == pytest.approx([170, 60], abs=0.5)
    (disc,) = stroke_area(np.array([[5.0, 5.0]]), 4.0)
    assert np.abs(np.hypot(*(disc - 5).T) - 4).max() < 0.4


def test_a_closed_stroke_has_a_hole():
    turn = np.linspace(0, 2 * np.pi, 60)
    outline, hole = stroke_area(100 + 40 * np.stack([np.cos(turn), np.sin(turn)], axis=1), 5.0)
    assert np.hypot(*(outline - 100).T).mean() == pytest.approx(45, abs=0.6)
    assert np.hypot(*(hole - 100).T).mean() == pytest.approx(35, abs=0.6)
