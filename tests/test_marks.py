"""The images of experiments/08-locating lie where they are said to lie."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.section_lists import read_list

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments" / "08-locating"))
import inputs

VECTORS = [100.0, 300.0, 250.0, 300.0, 5.0, 0.0, 3.0, 8.0, -200.0]
SIZE = (200, 300)
SPOT = (210, 60)  # (x, y)


@pytest.fixture
def sections(tmp_path):
    pixels = np.full((*SIZE, 3), 255, np.uint8)
    pixels[40:160, 30:270] = 120
    pixels[SPOT[1] - 3 : SPOT[1] + 4, SPOT[0] - 3 : SPOT[0] + 4] = 0
    Image.fromarray(pixels).save(tmp_path / "s.png")
    entry = {"filename": "s.png", "nr": 7, "height": SIZE[0], "width": SIZE[1], "anchoring": VECTORS}
    (tmp_path / "list.json").write_text(json.dumps({"slices": [entry]}))
    return read_list(tmp_path / "list.json")


@pytest.mark.parametrize("draw", [inputs.real, inputs.turned])
def test_turned_image_keeps_its_place(sections, tmp_path, draw):
    (known,) = draw(sections, tmp_path)
    with Image.open(known.path) as image:
        pixels = np.asarray(image.convert("L"))
    y, x = np.argwhere(pixels < 40).mean(axis=0)
    expected = inputs.pixel_to_mm(sections[0].anchoring) @ (*SPOT, 1.0)
    assert known.matrix @ (x, y, 1.0) == pytest.approx(expected, abs=0.03)


def test_halves_are_cut_at_the_midline(sections, tmp_path):
    left, right = inputs.halved(sections, tmp_path)
    for half, beyond in ((left, 1), (right, -1)):
        with Image.open(half.path) as image:
            y, x = np.nonzero(np.asarray(image.convert("L")) < 200)
        ml = half.matrix[2, 0] * x + half.matrix[2, 1] * y + half.matrix[2, 2] - 5.7
        assert (beyond * ml <= 0.05).all()


def test_synthetic_planes_lie_inside_the_atlas(tmp_path):
    atlas = phantom_atlas(image_shape=(80, 114), spacing_um=100)
    for known in inputs.synthetic(atlas, 3, tmp_path, 0):
        centre = known.matrix @ (*known.centre, 1.0)
        assert ((centre > 0) & (centre < (13.2, 8.0, 11.4))).all()
        with Image.open(known.path) as image:
            assert image.size == (360, 360)
