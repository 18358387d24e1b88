import numpy as np
import pytest
from scipy import ndimage

from atlalign.io.images import read_image
from atlalign.localization.upright import upright_turns


@pytest.fixture(scope="module")
def turn_of():
    return upright_turns()


@pytest.mark.parametrize("name", ["s049", "s099", "s154"])
@pytest.mark.parametrize("clockwise", [0, 100, -150])
def test_the_turn_makes_a_real_section_upright(test_data, turn_of, name, clockwise):
    pixels = read_image(test_data / "sections" / f"641_2002_2568_NM01_{name}.png").pixels[::4, ::4]
    dark = ndimage.gaussian_filter(1 - pixels.mean(axis=2) / 255, 1)
    image = ndimage.rotate(dark, -clockwise, order=1)
    found = turn_of(image, image > 0.05)
    assert abs((found - clockwise + 180) % 360 - 180) < 10


def test_a_disc_has_no_upper_end(turn_of):
    y, x = np.indices((200, 200)) - 100
    mask = np.hypot(x, y) < 80
    image = mask * (1 + 0.1 * np.random.default_rng(0).random(mask.shape))
    assert turn_of(image, mask) is None
