"""Synthetic contrast: regions get intensities of their own, whatever their ids; a draw can be replayed anywhere."""

import pytest
import torch

from atlalign.errors import InputError
from atlalign.synthesis.contrast import Contrast, apply_contrast, draw_contrast

SHAPE = (32, 50)
IDS = (0, 1, 997, 614454277, 2**40 + 1)
# Nothing but the regions: the intensity of a pixel is that of its region.
PLAIN = {
    "template_share": (0, 0), "texture": (0, 0), "bias": (0, 0), "blur_px": (0, 0), "noise": (0, 0),
}  # fmt: skip


def draw(labels: torch.Tensor, seed: int = 0, **ranges) -> Contrast:
    return draw_contrast(labels, generator=torch.Generator().manual_seed(seed), **ranges)


@pytest.fixture
def labels():
    """Return four sections (4, 1, H, W) of five vertical stripes: the ground and four regions."""
    stripes = torch.tensor(IDS)[torch.arange(SHAPE[1]) * len(IDS) // SHAPE[1]]
    return stripes.expand(4, 1, *SHAPE).contiguous()


@pytest.fixture
def template():
    return torch.rand(4, 1, *SHAPE)


def test_each_region_has_its_own_intensity(labels, template):
    image = apply_contrast(template, labels, draw(labels, **PLAIN, n_groups=(256, 256), spread=(1, 1)))
    values = torch.stack([image[labels == one].view(4, -1) for one in IDS])
    torch.testing.assert_close(values.amin(2), values.amax(2))
    distances = (values[:, None, :, 0] - values[None, :, :, 0]).abs()
    assert (distances + torch.eye(len(IDS))[..., None]).min() > 1e-4
    assert values[1:, :, 0].std(dim=1).min() > 0.01  # and another one in every section


def test_ids_that_differ_by_one_bit_are_distinguished():
    ids = torch.cat([torch.tensor([5]), 5 ^ 2 ** torch.arange(62)])
    labels = ids.view(1, 1, 7, 9).expand(20, -1, -1, -1)
    image = apply_contrast(torch.zeros(20, 1, 7, 9), labels, draw(labels, **PLAIN, n_groups=(256, 256)))
    same = (image.flatten(1)[:, 1:] == image.flatten(1)[:, :1]).float().mean()
    assert same < 3 / 256  # one in 256 by chance


def test_types_of_ids_do_not_matter(labels, template):
    few = torch.where(labels > 2**31, 3, labels)
    drawn = draw(labels)
    assert torch.equal(
        apply_contrast(template, few.int(), drawn), apply_contrast(template, few.long(), drawn)
    )


def test_fewer_groups_than_regions_share_intensities():
    labels = torch.arange(1, 673).view(1, 1, 24, 28).expand(3, -1, -1, -1)
    image = apply_contrast(torch.zeros(3, 1, 24, 28), labels, draw(labels, **PLAIN, n_groups=(8, 8)))
    for section in image:
        _, counts = section.unique(return_counts=True)
        assert len(counts) == 8
        assert counts.min() > 672 / 8 / 2


def test_the_ground_is_dark_or_bright_and_the_template_does_not_show_there(labels, template):
    for p_bright, low, high in ((0, 0, 0.1), (1, 0.75, 1)):
        only = {**PLAIN, "template_share": (1, 1)}
        ground = apply_contrast(template, labels, draw(labels, **only, p_bright=p_bright))[labels == 0]
        assert low <= ground.min() <= ground.max() <= high


def test_the_template_alone_inverted_and_to_a_power(labels, template):
    tissue = labels != 0
    only = {**PLAIN, "template_share": (1, 1)}
    same = apply_contrast(template, labels, draw(labels, **only, p_inverted=0, log2_gamma=(0, 0)))
    torch.testing.assert_close(same[tissue], template[tissue])
    inverted = apply_contrast(template, labels, draw(labels, **only, p_inverted=1, log2_gamma=(0, 0)))
    torch.testing.assert_close(inverted[tissue], 1 - template[tissue])
    squared = apply_contrast(template, labels, draw(labels, **only, p_inverted=0, log2_gamma=(1, 1)))
    torch.testing.assert_close(squared[tissue], template[tissue] ** 2)


def test_noise_is_normal_white_and_as_strong_as_wanted():
    labels = torch.ones(2, 1, 100, 100).int()
    flat = {**PLAIN, "spread": (0, 0)}
    image = apply_contrast(
        torch.zeros(2, 1, 100, 100), labels, draw(labels, **{**flat, "noise": (0.02, 0.02)})
    )
    clean = apply_contrast(torch.zeros(2, 1, 100, 100), labels, draw(labels, **flat))
    noise = ((image - clean) / 0.02).flatten(1)
    assert noise.mean().abs() < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert (noise.abs() > 2).float().mean() == pytest.approx(0.045, abs=0.015)
    neighbours = torch.stack([(noise[:, :-step] * noise[:, step:]).mean(1) for step in (1, 2, 100)])
    assert neighbours.abs().max() < 0.05
    assert (noise[0] * noise[1]).mean().abs() < 0.05


def test_blur_is_a_gaussian_of_the_drawn_width():
    labels = torch.zeros(1, 1, 41, 41).int()
    labels[0, 0, 20, 20] = 1
    drawn = draw(labels, **{**PLAIN, "blur_px": (1.5, 1.5)})
    drawn = drawn._replace(intensity=torch.ones_like(drawn.intensity))
    drawn.intensity[:, 0] = 0
    image = apply_contrast(torch.zeros(1, 1, 41, 41), labels, drawn)[0, 0]
    assert image.sum() == pytest.approx(1, abs=1e-4)
    offset = torch.arange(41) - 20.0
    assert (image.sum(0) * offset**2).sum() == pytest.approx(1.5**2, rel=0.01)
    assert (image.sum(1) * offset**2).sum() == pytest.approx(1.5**2, rel=0.01)


def test_a_draw_is_replayed_and_seeds_differ(labels, template):
    first, again, other = (apply_contrast(template, labels, draw(labels, seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert (first - other).abs().flatten(1).mean(1).min() > 0.01


def test_a_section_does_not_depend_on_the_rest_of_its_batch(labels, template):
    drawn = draw(labels)
    whole = apply_contrast(template, labels, drawn)
    alone = apply_contrast(template[2:3], labels[2:3], Contrast(*(part[2:3] for part in drawn)))
    torch.testing.assert_close(alone, whole[2:3], atol=1e-5, rtol=0)


def test_everything_at_its_strongest_stays_in_range(labels, template):
    strongest = {"texture": (1, 1), "bias": (2, 2), "noise": (1, 1), "blur_px": (0, 0)}
    image = apply_contrast(template, labels, draw(labels, **strongest))
    assert image.dtype == torch.float32
    assert image.shape == template.shape
    assert (image.min(), image.max()) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_groups": (0, 5)}, r"contrast.n_groups: expected \[from, to\] with 1 ≤ from ≤ to ≤ 256, got \[0, 5\]"),
        ({"blur_px": (1, 3)}, "contrast.blur_px: .* ≤ 2, got"),
        ({"noise": (0.2, 0.1)}, "contrast.noise: expected"),
        ({"texture": (0.1,)}, "contrast.texture: expected"),
        ({"p_bright": 1.5}, r"contrast.p_bright: expected a probability in \[0, 1\], got 1.5"),
    ],
)  # fmt: skip
def test_bad_ranges(arguments, message, labels):
    with pytest.raises(InputError, match=message):
        draw_contrast(labels, **arguments)
