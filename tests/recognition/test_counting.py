"""The number of sections in an image, from the phantom (unknown to the network) and from real sections."""

import numpy as np
import pytest
import torch

from atlalign.atlas.atlas import phantom_atlas
from atlalign.io.images import read_image
from atlalign.io.intensity import tissue_of
from atlalign.recognition.counting import Seen, count_sections
from atlalign.recognition.divisions import divisions

PIXEL_UM = 50.0


def number(image: np.ndarray) -> int:
    return count_sections(Seen.of(torch.from_numpy(np.ascontiguousarray(image, np.float32))))


def joined(*sections: np.ndarray, axis: int, gap: int = 40) -> np.ndarray:
    """Put sections beside or below each other, each in the middle, on a ground of 0."""
    largest = np.max([section.shape for section in sections], axis=0)
    padded = []
    for section in sections:
        missing = largest - section.shape
        padded.append(np.pad(section, [(m // 2 + gap // 2, m - m // 2 + gap // 2) for m in missing]))
    return np.concatenate(padded, axis=axis)


# --- divisions --------------------------------------------------------------------------------------------------------


def discs(*centres: tuple[float, float], radius: float = 30) -> np.ndarray:
    y, x = np.mgrid[:200, :300]
    return np.any([np.hypot(y - top, x - left) < radius for top, left in centres], axis=0)


@pytest.mark.parametrize("other", [(60, 180), (140, 60), (130, 150)])
def test_a_line_divides_two_discs_in_any_direction(other):
    one = discs((60, 60))
    found = divisions(discs((60, 60), other))[0]
    assert found.neck == 0
    assert any((part == one).all() for part in (found.one, found.other))


def test_a_neck_is_a_fraction_of_the_smaller_part():
    (found, *_) = divisions(discs((100, 80), (100, 138)))
    assert 0 < found.neck < 0.5
    assert found.one.sum() == pytest.approx(found.other.sum(), rel=0.05)


def test_a_disc_has_no_divisions():
    assert divisions(discs((100, 100), radius=60)) == []


# --- sections ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantom() -> np.ndarray:
    return phantom_atlas(image_shape=(160, 228), spacing_um=PIXEL_UM).section(6000)[0].numpy()


@pytest.mark.parametrize("gap_um", [500, 2000, 5000])
def test_parts_of_one_section_are_one_section_at_any_distance(phantom, gap_um):
    gap = np.zeros((len(phantom), round(gap_um / PIXEL_UM)))
    middle = phantom.shape[1] // 2
    for at in (middle, round(0.7 * phantom.shape[1])):
        assert number(np.pad(np.concatenate([phantom[:, :at], gap, phantom[:, at:]], axis=1), 20)) == 1


def real(folder, name: str) -> np.ndarray:
    """Return a section bright on black, at a third of its resolution."""
    pixels = read_image(folder / name).pixels[::3, ::3]
    return tissue_of(pixels).image.numpy()


@pytest.fixture(scope="module")
def stained(test_data) -> list[np.ndarray]:
    folder = test_data / "sections"
    return [real(folder, f"641_2002_2568_NM01_s{number}.png") for number in ("049", "109", "199")]


@pytest.mark.parametrize("axis", [0, 1])
def test_pairs_of_sections_are_two_beside_and_below_each_other(stained, axis):
    one, other, cerebellum = stained
    assert number(joined(one, other, axis=axis)) == 2
    assert number(joined(cerebellum, one[::-1, ::-1], axis=axis)) == 2


@pytest.mark.parametrize("axis", [0, 1])
def test_pairs_of_gene_expression_are_two(test_data, axis):
    one, other = (real(test_data / "ish", name) for name in ("71661895_s0265.jpg", "71661919_s0345.jpg"))
    assert number(joined(one, other, axis=axis)) == 2


def test_four_sections_are_four(stained):
    row = joined(stained[0], stained[1], axis=1)
    assert number(joined(row, row[:, ::-1], axis=0)) == 4


@pytest.mark.parametrize("gap", [4, 16, 60])
def test_hemispheres_are_one_section_and_two_left_halves_are_two(stained, gap):
    section = np.pad(stained[1], 20)
    middle = round(float(np.nonzero(section > 0.1)[1].mean()))
    left, right = section[:, :middle], section[:, middle:]
    between = np.zeros((len(section), gap))
    assert number(np.concatenate([left, between, right], axis=1)) == 1
    assert number(joined(left, left, axis=1)) == 2


def test_a_cerebellum_apart_from_its_stem_belongs_to_it(stained):
    section = stained[2]
    row = round(float(np.quantile(np.nonzero(section > 0.1)[0], 0.45)))
    gap = np.zeros((20, section.shape[1]))
    assert number(np.pad(np.concatenate([section[:row], gap, section[row:]]), 20)) == 1


def test_real_sections_are_one_each_whatever_their_stain(test_data):
    folders = {"sections": "*_s[01][0-5]4.png", "ish": "*_s0[0-3]?1.jpg", "rat": "section.tif"}
    paths = [path for folder, name in folders.items() for path in sorted((test_data / folder).glob(name))]
    assert len(paths) > 7
    for path in paths:
        assert number(real(path.parent, path.name)) == 1, path.name
