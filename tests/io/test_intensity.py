"""The background of a section's image is found in any surroundings, and removed."""

import numpy as np
import pytest
import torch
from PIL import Image

from atlalign.atlas.section_lists import read_list
from atlalign.errors import InputError
from atlalign.io.ground import find_ground
from atlalign.io.intensity import on_dark_ground, slide_color, tissue_of
from tests.registration import situations

H, W = 120, 180


def section() -> np.ndarray:
    """An ellipse with two darker and one brighter spot, (h, w) in [0, 1] on a ground of 0."""
    y, x = np.meshgrid(np.linspace(-1, 1, H), np.linspace(-1, 1, W), indexing="ij")
    image = np.where((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1, 0.6, 0.0)
    image[30:50, 60:80], image[70:90, 90:120], image[40:60, 100:110] = 0.3, 0.4, 0.9
    return image


def bits(image: np.ndarray) -> np.ndarray:
    return (image * 255).round().clip(0, 255).astype(np.uint8)


def white_slide() -> np.ndarray:
    """Brown: blue is absorbed most."""
    return 1 - section()[..., None] * np.array([0.6, 0.8, 1.0])


EXPECTED = (torch.from_numpy(section()) / 0.9).float()


class TestGround:
    @pytest.mark.parametrize("level", [0.0, 0.2, 0.45])
    def test_a_constant_dark_ground_is_taken_off(self, level):
        image = torch.from_numpy(level + 0.5 * section()).float()
        ground = find_ground(image)
        assert not ground.is_bright
        assert ground.level == pytest.approx(level, abs=1e-6)
        assert torch.allclose(on_dark_ground(image).image, EXPECTED, atol=1e-5)

    @pytest.mark.parametrize("level", [0.4, 0.7, 1.0])
    def test_ground_brighter_than_the_tissue_counts_as_bright(self, level):
        """Also where it is darker than mid-grey."""
        image = torch.from_numpy(level * (1 - section())).float()
        ground = find_ground(image)
        assert ground.is_bright
        assert ground.level == pytest.approx(level, abs=1e-6)
        assert torch.allclose(on_dark_ground(image).image, EXPECTED, atol=1e-5)

    def test_a_ground_of_0_changes_no_bit(self):
        image = torch.from_numpy(section()).float()
        ground = find_ground(image)
        assert ground.level == 0
        assert not ground.surface((H, W)).any()
        assert not ground.void.any()

    def test_a_gradient_is_found_under_the_tissue_as_well(self):
        y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
        light = 0.8 + 0.1 * x - 0.05 * y - 0.05 * x * x
        image = light * (1 - torch.from_numpy(section()).float())
        ground = find_ground(image)
        assert torch.allclose(ground.surface((H, W)), light, atol=0.003)
        assert torch.allclose(on_dark_ground(image).image, EXPECTED, atol=0.01)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    @pytest.mark.parametrize("change", [situations.framed, situations.with_corners])
    def test_frames_and_corners_are_neither_ground_nor_tissue(self, change, value):
        for image, is_bright, level in (
            (0.7 - 0.6 * section(), True, 0.7),
            (0.3 + 0.6 * section(), False, 0.3),
        ):
            changed = torch.from_numpy(change(image, value=value)).float()
            ground = find_ground(changed)
            assert ground.is_bright == is_bright
            assert ground.level == pytest.approx(level, abs=1e-6)
            assert bool(ground.in_full(ground.void, (H, W))[0, 0])
            found = on_dark_ground(changed).image
            assert not found[~torch.from_numpy(section() > 0)].any()
            assert torch.allclose(found[40:80, 50:130], EXPECTED[40:80, 50:130], atol=1e-5)

    def test_tissue_outline_is_not_taken_for_a_frame(self):
        assert not find_ground(torch.from_numpy(section()).float()).void.any()
        square = np.zeros((H, W))
        square[30:90, 40:140] = np.random.default_rng(0).uniform(0.3, 1, (60, 100))
        assert not find_ground(torch.from_numpy(square).float()).void.any()

    @pytest.mark.parametrize("cut", [(20, 0), (0, 40), (30, 60)])
    def test_tissue_may_touch_the_border(self, cut):
        image = torch.from_numpy(0.2 + 0.5 * section()[cut[0] :, cut[1] :]).float()
        assert find_ground(image).level == pytest.approx(0.2, abs=1e-6)
        assert find_ground(1 - image).level == pytest.approx(0.8, abs=1e-6)

    def test_half_a_section_touches_one_border(self):
        half = torch.from_numpy(section()[:, : W // 2]).float()
        assert find_ground(half).level == 0
        assert find_ground(1 - half).is_bright

    def test_gain_offset_and_inversion_change_nothing(self):
        image = torch.from_numpy(section()).float()
        for same in (image * 3000, image * 100 + 500, 7 - image, 0.3 * (1 - image)):
            assert torch.allclose(on_dark_ground(same).image, EXPECTED, atol=1e-4)


class TestForeign:
    def test_dust_and_labels_neither_set_the_range_nor_stay(self):
        for change in (situations.dusty, situations.labelled):
            image = change(0.1 + 0.3 * section())
            found = on_dark_ground(torch.from_numpy(image).float()).image
            is_foreign = torch.from_numpy(image == 1)
            assert not found[is_foreign].any()
            off_edges = torch.from_numpy(image == 0.1 + 0.3 * section())
            near = torch.nn.functional.max_pool2d((~off_edges)[None].float(), 7, stride=1, padding=3)[0] > 0
            torch.testing.assert_close(found[~near], EXPECTED[~near], atol=1e-4, rtol=0)

    def test_outlines_of_bubbles_are_left_out(self):
        image = situations.with_bubbles(1 - section())
        torch.testing.assert_close(
            on_dark_ground(torch.from_numpy(image).float()).image, EXPECTED, atol=1e-4, rtol=0
        )

    def test_scattered_cells_stay_where_no_tissue_is_solid(self):
        """As of in-situ hybridization, where dots are all there is."""
        random = np.random.default_rng(0)
        image = np.zeros((H, W), np.float32)
        image[random.integers(20, 100, 150), random.integers(30, 150, 150)] = random.uniform(0.2, 1, 150)
        ground = find_ground(torch.from_numpy(image))
        assert ground.is_nothing
        assert not ground.foreign.any()
        assert torch.equal(on_dark_ground(torch.from_numpy(image)).image > 0, torch.from_numpy(image > 0))


def test_the_grounds_noise_becomes_0_and_that_of_tissue_stays():
    image = situations.noisy(0.1 + 0.5 * section(), 0.02)
    found = on_dark_ground(torch.from_numpy(image).float()).image
    is_ground = torch.from_numpy(section() == 0)
    assert (found[is_ground] > 0).float().mean() < 0.05  # beside tissue
    assert found[~is_ground].std() > 0.02


def test_a_steep_falloff_of_light_is_found_under_the_tissue_as_well():
    light = situations.vignetted_steeply(np.full((H, W), 0.9))
    image = torch.from_numpy(light * (1 - section())).float()
    torch.testing.assert_close(
        find_ground(image).surface((H, W)), torch.from_numpy(light).float(), atol=0.004, rtol=0
    )


class TestTissue:
    @pytest.mark.parametrize("name", sorted(set(situations.BRIGHT) - {"gamma"}))  # which no ground explains
    def test_a_bright_slide_is_taken_off_in_every_situation(self, name):
        plain = tissue_of(bits(white_slide()))
        found = tissue_of(bits(situations.BRIGHT[name](white_slide())))
        assert plain.background == found.background == "bright"
        inner = (slice(20, 100), slice(35, 145))
        assert (found.image - plain.image)[inner].abs().mean() < 0.02
        assert (found.image - plain.image).abs().mean() < 0.02

    @pytest.mark.parametrize("name", situations.DARK)
    def test_a_dark_ground_is_taken_off_in_every_situation(self, name):
        found = tissue_of(bits(situations.DARK[name](section())))
        assert found.background == "dark"
        assert (found.image - EXPECTED).abs().mean() < 0.01

    @pytest.mark.parametrize("image", [white_slide() * 0.6, 0.3 + 0.5 * section()])
    def test_8_and_16_bits_are_the_same(self, image):
        narrow = bits(image)
        wide = narrow.astype(np.uint16) * 257
        assert torch.allclose(tissue_of(narrow).image, tissue_of(wide).image, atol=1e-5)
        assert torch.allclose(tissue_of(narrow).image, tissue_of(wide / 65535).image, atol=1e-5)

    @pytest.mark.parametrize("value", [0, 90, 255])
    def test_an_empty_image_is_refused(self, value):
        with pytest.raises(InputError, match=f"empty: .*every pixel is {value}"):
            tissue_of(np.full((40, 60), value, np.uint8), name="empty")

    def test_section_that_fills_the_image_needs_a_given_background(self):
        random = np.random.default_rng(0)
        coarse = torch.from_numpy(random.uniform(0.2, 1, (1, 1, 8, 12)))
        image = torch.nn.functional.interpolate(coarse, (H, W), mode="bicubic").clamp(0, 1)[0, 0].numpy()
        with pytest.raises(InputError, match=r"filled: .*--background"):
            tissue_of(bits(image), name="filled")
        assert tissue_of(bits(image), background="dark").background == "dark"
        assert tissue_of(bits(image), background="bright").background == "bright"

    def test_ground_alone_is_refused(self):
        ramp = np.add.outer(np.arange(100), np.arange(120)).astype(np.uint8)
        with pytest.raises(InputError, match=r"^empty: expected a section"):
            tissue_of(ramp, name="empty")


def test_the_slides_color_is_that_of_the_ground():
    tint = np.array([0.9, 0.8, 0.6])
    for image in (white_slide() * tint, situations.framed(white_slide() * tint)):
        color = slide_color(bits(image))
        assert color.dtype == np.uint8
        assert color.tolist() == bits(tint).tolist()
    assert slide_color(bits(section())) == 0


@pytest.mark.parametrize("number", [4, 11])
def test_real_sections_come_out_the_same(test_data, number):
    listed = read_list(test_data / "sections" / "sections.json")[number]
    image = np.asarray(Image.open(listed.path).convert("RGB")) / 255.0
    plain = tissue_of(bits(image)).image
    for name in ("grey 0.6", "tinted", "black frame", "black corners, 8°", "vignetting"):
        found = tissue_of(bits(situations.BRIGHT[name](image))).image
        assert (found - plain).abs().mean() < 0.01, name
