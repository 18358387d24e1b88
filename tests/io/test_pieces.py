import numpy as np
import pytest
from scipy import ndimage

from atlalign.io.pieces import find_sections

PIXEL_UM = 40.0
GROUND, TISSUE = 230.0, 120.0


def slide(height_mm: float = 16, width_mm: float = 40) -> np.ndarray:
    """An empty slide with a little noise."""
    shape = (round(height_mm * 25), round(width_mm * 25))
    return GROUND + np.random.default_rng(0).normal(0, 1.5, shape)


def drawn(
    image: np.ndarray, x_mm: float, y_mm: float, a_mm: float, b_mm: float, value: float = TISSUE
) -> np.ndarray:
    """Draw an ellipse with half axes a along x and b along y; return where it is."""
    y, x = np.indices(image.shape) / 25
    inside = ((x - x_mm) / a_mm) ** 2 + ((y - y_mm) / b_mm) ** 2 < 1
    image[inside] = value
    return inside


def found(image: np.ndarray, **options: object) -> np.ndarray:
    options = {"is_color": False, "pixel_um": PIXEL_UM, **options}
    return find_sections(image.astype(np.uint8), **options).labels


def owners(labels: np.ndarray, masks: list[np.ndarray]) -> list[int]:
    """Return the label of each mask, and check that it has most of it."""
    numbers = [int(np.bincount(labels[mask]).argmax()) for mask in masks]
    for number, mask in zip(numbers, masks, strict=True):
        assert number > 0
        assert (labels[mask] == number).mean() > 0.9
    return numbers


@pytest.mark.parametrize("is_bright", [True, False])
def test_each_section_is_found_once(is_bright):
    image = slide()
    masks = [drawn(image, x, y, 4.5, 3) for x, y in ((6, 5), (18, 10), (31, 6))]
    labels = found(image if is_bright else 255 - image)
    assert sorted(owners(labels, masks)) == [1, 2, 3] == list(range(1, labels.max() + 1))


def test_neighbours_that_touch_are_two_sections():
    image = slide()
    masks = [drawn(image, 10, 8, 4.5, 3), drawn(image, 18.9, 8, 4.5, 3), drawn(image, 32, 8, 4.5, 3)]
    assert ndimage.label(masks[0] | masks[1])[1] == 1
    assert len(set(owners(found(image), masks))) == 3


def test_two_hemispheres_apart_are_one_section():
    image = slide()
    masks = [drawn(image, 10, 8, 4.5, 3), drawn(image, 28, 8, 4.5, 3)]
    for middle in (10, 28):  # 0.8 mm apart
        image[:, round(25 * (middle - 0.4)) : round(25 * (middle + 0.4))] = GROUND
    labels = found(image)
    assert labels.max() == 2
    halves = [mask & (image == TISSUE) for mask in masks]
    assert len(set(owners(labels, halves))) == 2


def test_a_torn_corner_belongs_to_its_section():
    image = slide()
    section, other = drawn(image, 10, 8, 4.5, 3), drawn(image, 24, 8, 4.5, 3)
    y, x = np.indices(image.shape) / 25
    image[section & (np.abs(x + y - 20.5) < 0.4)] = GROUND
    corner = section & (x + y > 21)
    rest = section & (x + y < 20)
    labels = found(image)
    assert labels.max() == 2
    first, second, third = owners(labels, [rest, corner, other])
    assert first == second != third


def test_bulbs_and_stems_near_each_other_are_one_section():
    image = slide()
    bulbs = [drawn(image, x, 8, 1.0, 1.6) for x in (7, 9.2)]
    whole = drawn(image, 24, 8, 4.5, 3)
    cerebellum, stem = drawn(image, 35, 6, 3.4, 1.9), drawn(image, 35, 9.9, 2.6, 1.8)
    labels = found(image)
    first, second, third, fourth, fifth = owners(labels, [*bulbs, whole, cerebellum, stem])
    assert first == second
    assert fourth == fifth
    assert len({first, third, fourth}) == labels.max() == 3


def test_dirt_is_not_taken_for_a_section():
    image = slide()
    section = drawn(image, 30, 8, 4.5, 3)
    y, x = np.indices(image.shape) / 25
    image[(x > 1) & (x < 11) & (y > 1) & (y < 15)] = 190  # a label with text
    image[(x > 2) & (x < 9) & (y > 4) & (y < 5)] = 20
    bubble = np.hypot(x - 17, y - 5)
    image[(bubble < 2.5) & (bubble > 2.4)] = 90
    image[:, 25 * 13] = 100  # the edge of a coverslip
    for place in range(12):
        drawn(image, 14 + place, 12 + place % 3, 0.2, 0.15, 30)
    result = find_sections(image.astype(np.uint8), is_color=False, pixel_um=PIXEL_UM)
    assert result.number == 1
    assert (result.labels[section] == 1).mean() > 0.9
    assert result.left_out[0].reason == "rectangular"
    assert {piece.reason for piece in result.left_out[1:]} == {"small"}


@pytest.mark.parametrize("value", [0, 255])
def test_an_image_of_one_value_has_no_sections(value):
    assert find_sections(np.full((50, 60), value, np.uint8), is_color=False, pixel_um=20).number == 0


@pytest.mark.parametrize("specks", [0, 60])
def test_a_slide_without_sections_has_none(specks):
    image, random = slide(), np.random.default_rng(1)
    for _ in range(specks):
        x, y, size = random.uniform((1, 1, 0.05), (39, 15, 0.3))
        drawn(image, x, y, size, size, 40)
    assert found(image).max() == 0


def test_haze_between_bright_sections_is_not_tissue():
    image = np.zeros(slide().shape)
    masks = [
        drawn(image, 10, 8, 4.5, 3, 150),
        drawn(image, 20.5, 8, 4.5, 3, 150),
        drawn(image, 32, 8, 4.5, 3, 60),
    ]
    image = (
        12
        + image
        + 0.25 * ndimage.gaussian_filter(image, 25)
        + np.random.default_rng(0).normal(0, 1, image.shape)
    )
    labels = found(image)
    assert len(set(owners(labels, masks))) == labels.max() == 3
    assert labels[8 * 25, round(15.25 * 25)] == 0


def test_pale_sections_are_found_beside_dark_ones_in_any_color():
    image = np.repeat(slide()[..., None], 3, axis=-1)
    y, x = np.indices(image.shape[:2]) / 25
    masks = [np.hypot((x - middle) / 4.5, (y - 8) / 3) < 1 for middle in (6, 18, 31)]
    for mask, color in zip(masks, ((120, 60, 30), (235, 190, 215), (150, 140, 220)), strict=True):
        image[mask] = color
    labels = found(image, is_color=True)
    assert sorted(owners(labels, masks)) == [1, 2, 3]


def test_the_pixel_size_may_be_unknown():
    image = slide()
    masks = [drawn(image, x, 8, 4.5, 3) for x in (7, 19, 32)]
    assert sorted(owners(found(image, pixel_um=None), masks)) == [1, 2, 3]


def test_a_close_up_of_tissue_shows_no_sections():
    image = slide()
    for x, y in ((6, 5), (18, 10), (31, 6)):
        drawn(image, x, y, 4.5, 3)
    assert found(image, pixel_um=1.0).max() == 0  # 1 mm wide


def test_real_sections_are_one_each(test_data):
    from atlalign.io.images import read_image

    for name in (
        "s004",
        "s154",
        "s199",
    ):  # four bulbs; a midbrain beside two lobes; a cerebellum above its stem
        image = read_image(test_data / "sections" / f"641_2002_2568_NM01_{name}.png")
        for pixel_um in (12.5, None):
            assert find_sections(image.pixels, is_color=True, pixel_um=pixel_um).number == 1, name
