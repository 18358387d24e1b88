"""The network that comes with the package locates real sections that it was not trained on."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from atlalign.atlas.atlas import file_atlas, phantom_atlas
from atlalign.atlas.section_lists import read_list
from atlalign.localization import SHIPPED_LOCATOR, Locator, locate
from atlalign.models import load_model
from atlalign.networks import PlaneLocatorNet
from atlalign.registration.jobs import Job


def test_it_is_small_and_has_a_card():
    assert isinstance(load_model(SHIPPED_LOCATOR), PlaneLocatorNet)
    assert SHIPPED_LOCATOR.stat().st_size < 10e6
    card = (SHIPPED_LOCATOR.parent / "README.md").read_text()
    assert "# locator.safetensors" in card


@pytest.fixture(scope="module")
def locator(test_data):
    return Locator(file_atlas(test_data / "allen_ccf_25um.h5"))


def test_it_knows_the_atlas_of_its_training(locator, test_data):
    atlas = file_atlas(test_data / "allen_ccf_25um.h5")
    assert (locator.doubt, locator.network.corner_mm) == ("", (0, 0, 0))
    every = slice(2, None, 4)
    coarse = replace(
        atlas,
        template=atlas.template[every, every, every],
        annotation=atlas.annotation[every, every, every],
        spacing_um=100.0,
        pixel_um=(100.0, 100.0),
        origin_um=(50.0, 50.0),
    )
    assert Locator(coarse, network=locator.network).doubt == ""
    assert "Allen" in Locator(phantom_atlas(image_shape=(80, 114), spacing_um=100)).doubt


@pytest.mark.parametrize("quarter_turns", [0, 2])
def test_a_real_section_is_found_upright_and_upside_down(locator, test_data, tmp_path, quarter_turns):
    listed = read_list(test_data / "sections" / "sections.json")[8]
    with Image.open(listed.path) as image:
        Image.fromarray(np.rot90(np.asarray(image), quarter_turns)).save(tmp_path / "x.png")
    (found,) = locate([Job(tmp_path / "x.png")], locator)
    assert found.side == "whole"
    assert abs(found.position_um - listed.position_um) < 350
    assert max(map(abs, found.tilt_deg)) < 6
    to_right_um = found.anchoring.share_to_um[2, 0]  # along ML
    assert to_right_um * (1 if quarter_turns == 0 else -1) > 5000


def test_half_a_real_section_has_its_side(locator, test_data, tmp_path):
    listed = read_list(test_data / "sections" / "sections.json")[10]
    with Image.open(listed.path) as image:
        pixels = np.asarray(image.convert("RGB")).copy()
    middle = 5700 - listed.anchoring.share_to_um[2, 2]
    column = round(middle / listed.anchoring.share_to_um[2, 0] * pixels.shape[1])
    pixels[:, :column] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    (found,) = locate([Job(tmp_path / "x.png")], locator)
    assert found.side == "right"
    assert abs(found.position_um - listed.position_um) < 500
