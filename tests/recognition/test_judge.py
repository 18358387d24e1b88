import numpy as np
import pytest
from scipy import ndimage

from atlalign.io.images import read_image
from atlalign.recognition.judge import BrainJudge


@pytest.fixture(scope="module")
def judge():
    return BrainJudge()


@pytest.mark.parametrize("name", ["s049", "s099", "s154"])
@pytest.mark.parametrize("clockwise", [0, 100, -150])
def test_the_turn_makes_a_real_section_upright(test_data, judge, name, clockwise):
    pixels = read_image(test_data / "sections" / f"641_2002_2568_NM01_{name}.png").pixels[::4, ::4]
    dark = ndimage.gaussian_filter(1 - pixels.mean(axis=2) / 255, 1)
    image = ndimage.rotate(dark, -clockwise, order=1)
    found = judge.turn(image, image > 0.05)
    assert abs((found - clockwise + 180) % 360 - 180) < 10


def test_a_disc_has_no_upper_end(judge):
    y, x = np.indices((200, 200)) - 100
    mask = np.hypot(x, y) < 80
    image = mask * (1 + 0.1 * np.random.default_rng(0).random(mask.shape))
    assert judge.turn(image, mask) is None


def test_halves_are_stranger_than_the_section_that_they_make(test_data, judge):
    pixels = read_image(test_data / "sections" / "641_2002_2568_NM01_s109.png").pixels[::4, ::4]
    dark = ndimage.gaussian_filter(1 - pixels.mean(axis=2) / 255, 1)
    gap = np.zeros((len(dark), 16))
    middle = round(np.nonzero(dark > 0.05)[1].mean())
    halves = dark[:, :middle], dark[:, middle:]
    together = np.concatenate([halves[0], gap, halves[1]], axis=1)
    two = np.concatenate([dark, gap, dark], axis=1)
    of_one = judge.strangeness(together, together > 0.05)
    assert of_one < 0.8 < judge.strangeness(two, two > 0.05)
