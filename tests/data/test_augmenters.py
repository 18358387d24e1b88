import ast
import pickle
import random
from pathlib import Path

import albumentations as A
import hydra.utils
import kornia.augmentation as K
import kornia.geometry.transform as KG
import numpy as np
import pytest
import torch
import torchvision.transforms as v1
from omegaconf import OmegaConf
from torch import nn
from torchvision.transforms import v2

from atlalign.data import augmenter_kinds, augmenters
from atlalign.data.augmenter_kinds import BatchAugmenter, ImageAugmenter, as_augmenter
from atlalign.data.augmenters import (
    RANGES,
    IntensityDraw,
    apply_intensity,
    augmenter_1,
    box_taps,
    draw_intensity,
    kept_pixels,
    kornia_1,
)
from atlalign.errors import InputError

CONF = Path(__file__).parents[2] / "conf" / "augment"
NAMES = tuple(RANGES)


def random_image(shape=(24, 32), seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def constant(value, shape=(5, 5)):
    return np.full(shape, value, dtype=np.float32)


def with_centre(background, centre, size=5):
    image = constant(background, (size, size))
    image[size // 2, size // 2] = centre
    return image


def leaves(pipeline):
    """The twelve transforms of augmenter_1, by the names of RANGES."""
    eleven = list(pipeline.transforms[0].transforms)
    eleven[3:4] = eleven[3].transforms
    return dict(zip(NAMES, eleven, strict=True))


def by_albumentations(name, image, *parameters):
    """Apply one operation of augmenter_1, its ranges narrowed to `parameters`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RANGES, name, tuple((value, value) for value in parameters))
        return leaves(augmenter_1())[name](image=image)["image"]


def by_kornia(name, image, *parameters, seed=7):
    draw = IntensityDraw(
        torch.tensor([NAMES.index(name)]),
        torch.tensor([(*parameters, 0.0, 0.0)[:2]]),
        torch.tensor([seed]),
    )
    return apply_intensity(torch.from_numpy(image)[None, None], draw)[0, 0].numpy()


PIPELINES = pytest.mark.parametrize("apply", [by_albumentations, by_kornia])


# Each operation against a hand-computed result


@PIPELINES
@pytest.mark.parametrize(
    ("name", "parameters", "value", "expected"),
    [
        ("multiply", (1.2,), 0.5, 0.6),
        ("add", (-0.3,), 0.5, 0.2),
        ("add", (0.3,), 0.9, 1.0),
        ("invert", (), 0.3, 0.7),
        ("linear_contrast", (1.2,), 0.75, 0.8),
        ("linear_contrast", (0.8,), 0.0, 0.1),
        ("sigmoid_contrast", (1.0,), 0.0, 1 / (1 + np.exp(0.5))),
        ("sigmoid_contrast", (1.2,), 1.0, 1 / (1 + np.exp(-0.6))),
        ("gaussian_noise", (0.3, 0.0), 0.5, 0.8),
        ("sharpen", (1.0,), 0.4, 0.4),
        ("emboss", (1.0,), 0.4, 0.4),
        ("edge_detect", (0.9,), 0.5, 0.05),
        ("gaussian_blur", (3.0,), 0.4, 0.4),
        ("average_blur", (6.0,), 0.4, 0.4),
    ],
)
def test_constant_image(apply, name, parameters, value, expected):
    image = constant(value, (12, 15))
    result = apply(name, image, *parameters)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.full_like(image, expected), atol=1e-6)


@PIPELINES
def test_sharpen(apply):
    result = apply("sharpen", with_centre(0.5, 0.55), 0.5)
    # Centre: ½ · 0.55 + ½ · (9 · 0.55 − 8 · 0.5); neighbours: ½ · 0.5 + ½ · (9 · 0.5 − 7 · 0.5 − 0.55).
    expected = constant(0.5)
    expected[1:4, 1:4] = 0.475
    expected[2, 2] = 0.75
    np.testing.assert_allclose(result, expected, atol=1e-6)


@PIPELINES
def test_edge_detect(apply):
    result = apply("edge_detect", with_centre(0.5, 0.4), 0.5)
    # Half the image; at the centre and its four neighbours plus half the Laplacian: 4 · 0.1 and −0.1.
    expected = constant(0.25)
    expected[2, 1:4] = expected[1:4, 2] = 0.25 - 0.05
    expected[2, 2] = 0.2 + 0.2
    np.testing.assert_allclose(result, expected, atol=1e-6)


@PIPELINES
@pytest.mark.parametrize("slope", [(0.03, 0.0), (0.0, 0.03), (-0.02, 0.01)])
def test_emboss_lights_slopes_that_rise_to_the_lower_right(apply, slope):
    row, column = np.mgrid[:7, :7].astype(np.float32)
    image = 0.3 + slope[0] * row + slope[1] * column
    # On a plane the kernel adds six times the slope along each axis.
    expected = image + 0.5 * 6 * sum(slope)
    np.testing.assert_allclose(apply("emboss", image, 0.5)[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-6)


@PIPELINES
def test_gaussian_blur(apply):
    result = apply("gaussian_blur", with_centre(0.0, 1.0, size=9), 1.0)
    taps = np.exp(-0.5 * np.arange(-4, 5) ** 2.0) * ([0] + [1] * 7 + [0])
    np.testing.assert_allclose(result, np.outer(taps, taps) / taps.sum() ** 2, atol=1e-6)


@PIPELINES
def test_gaussian_blur_of_tiny_sigma_is_the_identity(apply):
    image = random_image()
    np.testing.assert_allclose(apply("gaussian_blur", image, 0.01), image, atol=1e-6)


@PIPELINES
@pytest.mark.parametrize(
    ("width", "taps"),
    [
        (2, [0, 0, 0.25, 0.5, 0.25, 0, 0]),
        (3, [0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0]),
        (4, [0, 1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8, 0]),
        (4.5, [0, 1 / 6, 2 / 9, 2 / 9, 2 / 9, 1 / 6, 0]),
        (7, [1 / 7] * 7),
    ],
)
def test_average_blur_is_centred(apply, width, taps):
    # The outermost row and column also see the point mirrored.
    result = apply("average_blur", with_centre(0.0, 1.0, size=9), width)[1:-1, 1:-1]
    np.testing.assert_allclose(result, np.outer(taps, taps), atol=1e-6)


def test_box_taps_have_the_width_and_no_shift():
    widths = np.linspace(2, 7, 11, dtype=np.float32)
    taps = box_taps(widths, radius=3)
    assert np.array_equal(taps, taps[:, ::-1])
    np.testing.assert_allclose(1 / taps[:, 3], widths, rtol=1e-6)


@PIPELINES
def test_gaussian_noise_has_mean_and_deviation(apply):
    result = apply("gaussian_noise", constant(0.4, (64, 64)), 0.1, 0.08) - 0.4
    # Five standard errors of 4096 draws.
    assert abs(result.mean() - 0.1) < 5 * 0.08 / 64
    assert abs(result.std() / 0.08 - 1) < 5 / np.sqrt(2 * 4096)
    neighbours = np.corrcoef(result[:, :-1].ravel(), result[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / 64


@PIPELINES
def test_coarse_dropout_blackens_whole_cells(apply):
    image = random_image((40, 60)) * 0.9 + 0.1
    result = apply("coarse_dropout", image, 0.1)
    cells = (result == 0).reshape(4, 10, 6, 10)
    assert np.array_equal(cells.all((1, 3)), cells.any((1, 3)))
    assert 0 < cells.mean() < 1
    assert np.array_equal(result[result > 0], image[result > 0])


def test_coarse_dropout_drops_a_quarter():
    shares = [1 - kept_pixels(0.05, (80, 120), np.random.default_rng(seed)).mean() for seed in range(200)]
    # 200 times 24 cells, five standard errors.
    assert abs(np.mean(shares) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4800)


def test_coarse_dropout_has_nine_cells_at_least():
    kept = [kept_pixels(0.005, (12, 30), np.random.default_rng(seed)) for seed in range(60)]
    changes = np.any([k[1:, 0] != k[:-1, 0] for k in kept], axis=0)
    assert np.flatnonzero(changes).tolist() == [3, 7]
    assert all(k.any() for k in kept)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("multiply", (0.83,)),
        ("sharpen", (0.7,)),
        ("edge_detect", (0.6,)),
        ("gaussian_blur", (0.4,)),
        ("gaussian_blur", (2.9,)),
        ("average_blur", (5.3,)),
        ("gaussian_noise", (0.2, 0.0)),
        ("add", (0.17,)),
        ("invert", ()),
        ("sigmoid_contrast", (1.1,)),
        ("linear_contrast", (1.15,)),
        ("emboss", (0.8,)),
    ],
)
def test_both_pipelines_agree(name, parameters):
    image = random_image()
    pair = [apply(name, image, *parameters) for apply in (by_albumentations, by_kornia)]
    np.testing.assert_allclose(*pair, atol=1e-5)
    assert np.abs(pair[0] - image).max() > 0.01


def test_both_pipelines_drop_the_same_cells_from_the_same_generator():
    image = random_image()
    kept = kept_pixels(0.2, image.shape, np.random.default_rng(7))
    assert np.array_equal(by_kornia("coarse_dropout", image, 0.2, seed=7), image * kept)
    leaf = leaves(augmenter_1())["coarse_dropout"]
    assert np.array_equal(leaf.apply(image, drawn=kept), image * kept)


def test_tiny_images_can_be_blurred():
    assert by_kornia("gaussian_blur", random_image((4, 5)), 3.0).shape == (4, 5)


# Draws: one of eleven, ranges, probability


def applied(pipeline, seed, image):
    """The names of the operations that ran in one call, with albumentations' record of their parameters."""
    named = leaves(pipeline)
    for leaf in named.values():
        leaf.params = {}
    as_augmenter(pipeline)(image, seed=seed)
    return {name: leaf.params for name, leaf in named.items() if leaf.params}


def parameter_of(name, params):
    match name:
        case "multiply":
            return float(params["multiplier"])
        case "sharpen":
            return -params["sharpening_matrix"][0, 0]
        case "emboss":
            return params["emboss_matrix"][1, 2]
        case "add":
            return float(params["noise_map"][0])
        case "edge_detect" | "average_blur" | "sigmoid_contrast" | "linear_contrast":
            return params["drawn"]
    return None


@pytest.fixture(scope="module")
def record():
    pipeline, image = augmenter_1(p=1.0), random_image((8, 8))
    return [applied(pipeline, seed, image) for seed in range(700)]


def test_augmenter_1_applies_exactly_one_of_eleven(record):
    assert {len(ran) for ran in record} == {1}
    counts = {name: sum(name in ran for ran in record) for name in NAMES}
    # 700 / 11 = 64 each, half for each blur, four standard deviations.
    assert all(
        abs(n - (32 if "blur" in name else 64)) < (22 if "blur" in name else 31) for name, n in counts.items()
    )


def test_augmenter_1_draws_from_the_whole_range_whichever_operation(record):
    # With one stream for each transform, the draw of the operation would fix the parameter to an eleventh of its range.
    for name in NAMES:
        drawn = [parameter_of(name, ran[name]) for ran in record if name in ran]
        if drawn[0] is not None:
            ((low, high),) = RANGES[name]
            assert low - 1e-6 <= min(drawn) < low + 0.2 * (high - low), name
            assert high - 0.2 * (high - low) < max(drawn) <= high + 1e-6, name


def test_augmenter_1_honours_p():
    pipeline, image = augmenter_1(p=0.5), random_image((8, 8))
    changed = sum(bool(applied(pipeline, seed, image)) for seed in range(400))
    assert 160 < changed < 240
    identity = as_augmenter(augmenter_1(p=0.0))
    assert all(np.array_equal(identity(image, seed=seed), image) for seed in range(30))


def test_kornia_1_draws_one_of_eleven_within_ranges():
    torch.manual_seed(0)
    draw = draw_intensity(22_000, p=1.0)
    for index, (name, ranges) in enumerate(RANGES.items()):
        drawn = draw.parameters[draw.operation == index]
        expected = 1000 if "blur" in name else 2000
        assert abs(len(drawn) - expected) < 5 * np.sqrt(expected), name
        for column, (low, high) in enumerate((*ranges, (0.0, 0.0), (0.0, 0.0))[:2]):
            assert low <= drawn[:, column].min() <= low + 0.02 * (high - low), name
            assert high - 0.02 * (high - low) <= drawn[:, column].max() <= high, name


def test_kornia_1_honours_p():
    torch.manual_seed(0)
    assert (draw_intensity(1000, p=0.0).operation == -1).all()
    assert 0.45 < (draw_intensity(1000, p=0.5).operation >= 0).float().mean() < 0.55
    images = torch.rand(6, 1, 8, 9)
    assert torch.equal(kornia_1(p=0.0)(images), images)


def test_p_must_be_a_probability():
    for pipeline in (augmenter_1, kornia_1):
        with pytest.raises(InputError, match=r"p: expected a probability in \[0, 1\], got 1.5"):
            pipeline(p=1.5)


# kornia_1: replay and grouping


def test_kornia_1_draws_then_applies_and_can_be_replayed():
    images = torch.rand(24, 1, 12, 16)
    torch.manual_seed(3)
    result = kornia_1(p=0.9)(images)
    torch.manual_seed(3)
    draw = draw_intensity(24, 0.9)
    before = torch.get_rng_state()
    assert torch.equal(apply_intensity(images, draw), result)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.shape == images.shape
    assert 0 <= result.min() <= result.max() <= 1


def test_kornia_1_treats_each_image_as_if_it_were_alone():
    images = torch.rand(24, 1, 12, 16)
    torch.manual_seed(5)
    draw = draw_intensity(24, 1.0)
    assert len(draw.operation.unique()) > 8
    alone = [
        apply_intensity(images[i : i + 1], IntensityDraw(*(part[i : i + 1] for part in draw)))
        for i in range(24)
    ]
    torch.testing.assert_close(apply_intensity(images, draw), torch.cat(alone), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "parameters"), [("gaussian_noise", (0.0, 0.2)), ("coarse_dropout", (0.5, 0.0))]
)
def test_kornia_1_seeds_each_image(name, parameters):
    draw = IntensityDraw(
        torch.full((3,), NAMES.index(name)), torch.tensor([parameters] * 3), torch.tensor([1, 2, 1])
    )
    first, second, third = apply_intensity(torch.full((3, 1, 12, 12), 0.5), draw)
    assert torch.equal(first, third)
    assert not torch.equal(first, second)


def test_kornia_1_computes_an_operation_only_on_the_images_that_drew_it(monkeypatch):
    computed = []
    apply = augmenters._apply
    monkeypatch.setattr(
        augmenters, "_apply", lambda name, *rest: computed.append(len(rest[0])) or apply(name, *rest)
    )
    draw = draw_intensity(30, 0.7)
    apply_intensity(torch.rand(30, 1, 12, 12), draw)
    assert sum(computed) == (draw.operation >= 0).sum()


@pytest.mark.gpu
def test_a_seed_means_the_same_on_each_device():
    images, draw = torch.rand(48, 1, 24, 32), draw_intensity(48, 1.0)
    # cuDNN may filter with ten bits of mantissa (TF32); sharpening sums weights of 17.
    result = apply_intensity(images.cuda(), draw).cpu()
    torch.testing.assert_close(result, apply_intensity(images, draw), atol=0.02, rtol=0)


# The two kinds of augmenter


def test_none_stays_none():
    assert as_augmenter(None) is None


def test_image_augmenter_is_deterministic_whatever_was_called_before():
    image = random_image()
    first, second = as_augmenter(augmenter_1()), as_augmenter(augmenter_1())
    forward = {seed: first(image, seed=seed) for seed in range(40)}
    backward = {seed: second(image, seed=seed) for seed in reversed(range(40))}
    assert all(np.array_equal(forward[seed], backward[seed]) for seed in range(40))
    assert len({result.tobytes() for result in forward.values()}) > 30


def test_image_augmenter_returns_a_new_clipped_float32_image():
    image, augmenter = random_image(), as_augmenter(augmenter_1())
    before = image.copy()
    for seed in range(60):
        result = augmenter(image, seed=seed)
        assert (result.dtype, result.shape, result.flags.c_contiguous) == (np.float32, image.shape, True)
        assert 0 <= result.min() <= result.max() <= 1
        assert not np.shares_memory(result, image)
    assert np.array_equal(image, before)


def noisy(image):
    return image + np.random.rand() + random.random() + torch.rand(()).item() - 1.5  # noqa: NPY002


def in_place(image):
    image *= 3
    image -= 1
    return np.asfortranarray(image, dtype=np.float64)


def test_function_is_deterministic_in_the_seed_and_leaves_the_global_generators():
    augmenter, image = as_augmenter(noisy), constant(0.5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    results = [augmenter(image, seed=seed)[0, 0] for seed in (1, 2, 1, 2**40)]
    assert results[0] == results[2]
    assert len(set(results)) == 3
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == states


def test_function_may_work_in_place_and_return_other_floats():
    image = random_image()
    result = as_augmenter(in_place)(image, seed=0)
    assert np.array_equal(image, random_image())
    assert (result.dtype, result.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_allclose(result, np.clip(3 * image - 1, 0, 1), atol=1e-6)


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, images):
        assert images.dtype == torch.float32
        return nn.functional.conv2d(images, self.factor.view(1, 1, 1, 1))


def test_batch_augmenter_clips_without_gradient_in_float32():
    images = torch.rand(3, 1, 8, 9, dtype=torch.float64).requires_grad_()
    augmenter = as_augmenter(Scale(2.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = augmenter(images)
    assert isinstance(augmenter, BatchAugmenter)
    assert (result.dtype, result.requires_grad) == (torch.float32, False)
    assert torch.equal(result, (2 * images.detach().float()).clamp(max=1))


@pytest.mark.parametrize(
    "build",
    [
        lambda: A.Compose([A.OneOf([A.CoarseDropout(p=1), A.GridDropout(p=1), A.PixelDropout(p=1)], p=1)]),
        lambda: A.Compose([A.Sequential([A.Blur(p=1), A.NoOp()], p=1), A.SomeOf([A.RandomGamma(p=1)], n=1)]),
        lambda: A.GaussianBlur(p=1),
        lambda: in_place,
    ],
)
def test_accepted_for_single_images(build):
    augmenter = as_augmenter(build())
    assert isinstance(augmenter, ImageAugmenter)
    result = augmenter(random_image(), seed=3)
    assert not np.array_equal(result, random_image())
    assert np.array_equal(result, augmenter(random_image(), seed=3))


@pytest.mark.parametrize(
    "build",
    [
        lambda: K.RandomGaussianBlur((3, 3), (1.0, 2.0), p=1.0),
        lambda: K.RandomErasing(p=1.0),
        lambda: K.AugmentationSequential(
            K.RandomGamma((0.5, 0.6), p=1.0), K.RandomInvert(p=1.0), data_keys=["input"]
        ),
        lambda: nn.Sequential(Scale(0.5), kornia_1()),
        lambda: v2.Compose([v2.GaussianBlur(3)]),
        lambda: Scale(0.5),
    ],
)
def test_accepted_for_batches(build):
    augmenter = as_augmenter(build())
    assert isinstance(augmenter, BatchAugmenter)
    images = torch.rand(4, 1, 24, 24)
    result = augmenter(images)
    assert result.shape == images.shape
    assert not torch.equal(result, images)


@pytest.mark.parametrize(
    ("build", "culprit"),
    [
        (lambda: A.HorizontalFlip(p=0.0), "HorizontalFlip"),
        (lambda: A.Compose([A.Blur(), A.OneOf([A.InvertImg(), A.Rotate(10)])]), "Rotate"),
        (lambda: A.Compose([A.Sequential([A.SomeOf([A.RandomCrop(4, 4)], n=1)])]), "RandomCrop"),
        (lambda: A.ElasticTransform(), "ElasticTransform"),
        (lambda: A.RandomGridShuffle(), "RandomGridShuffle"),
        (lambda: K.RandomHorizontalFlip(), "RandomHorizontalFlip"),
        (lambda: K.RandomElasticTransform(), "RandomElasticTransform"),
        (lambda: K.RandomThinPlateSpline(), "RandomThinPlateSpline"),
        (lambda: K.RandomMixUpV2(), "RandomMixUpV2"),
        (
            lambda: K.AugmentationSequential(K.RandomInvert(), K.RandomAffine(10.0), data_keys=["input"]),
            "RandomAffine",
        ),
        (lambda: nn.Sequential(nn.Sequential(K.RandomInvert(), K.RandomAffine(10.0))), "RandomAffine"),
        (lambda: K.auto.RandAugment(n=2, m=10), "Random"),
        (lambda: nn.Sequential(KG.Hflip()), "Hflip"),
        (lambda: v1.RandomRotation(5), "RandomRotation"),
        (lambda: v1.Compose([v1.ColorJitter(), v1.RandomApply([v1.RandomAffine(5)])]), "RandomAffine"),
        (lambda: v2.RandomRotation(5), "RandomRotation"),
        (
            lambda: v2.Compose([v2.RandomChoice([v2.GaussianBlur(3), v2.ElasticTransform()])]),
            "ElasticTransform",
        ),
        (lambda: nn.Sequential(v2.RandAugment()), "RandAugment"),
    ],
)
def test_spatial_transforms_are_refused(build, culprit):
    with pytest.raises(InputError, match=rf"augment\.moving: .* {culprit}\w* moves pixels"):
        as_augmenter(build(), name="augment.moving")


def test_all_geometry_of_torchvision_is_known():
    moving = {
        k
        for k, v in vars(v2).items()
        if getattr(v, "__module__", "").endswith(("_geometry", "_auto_augment"))
    }
    assert "RandomRotation" in moving
    assert moving <= augmenter_kinds._TORCHVISION
    assert all(hasattr(v2, name) for name in augmenter_kinds._TORCHVISION)


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda image: image[1:], r"\(5, 5\), got \(4, 5\)"),
        (lambda image: image[..., None], r"got \(5, 5, 1\)"),
        (lambda image: (255 * image).astype(np.uint8), "floats in .*, got ndarray of uint8"),
        (lambda image: torch.from_numpy(image), "got Tensor of torch.float32"),
        (lambda image: None, "got NoneType"),
        (lambda image: image * np.nan, "expected finite values"),
        (lambda image: image + np.inf, "expected finite values"),
        (A.ToTensorV2(p=1), "got Tensor of torch.float32"),
    ],
)
def test_wrong_images_are_refused(augment, message):
    with pytest.raises(InputError, match=rf"^augment\.reference: .*{message}"):
        as_augmenter(augment, name="augment.reference")(constant(0.5), seed=0)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.AvgPool2d(2), r"\(2, 1, 4, 4\), got \(2, 1, 2, 2\)"),
        (Scale(float("nan")), "expected finite values"),
        (Scale(float("inf")), "expected finite values"),
        (v2.ToDtype(torch.uint8, scale=True), "floats in .*, got Tensor of torch.uint8"),
    ],
)
def test_wrong_batches_are_refused(module, message):
    with pytest.raises(InputError, match=rf"^augment\.reference: .*{message}"):
        as_augmenter(module, name="augment.reference")(torch.full((2, 1, 4, 4), 0.5))


@pytest.mark.parametrize("wrong", [{"p": 0.99}, "augmenter_1", 0.5])
def test_objects_that_are_not_augmenters_are_refused(wrong):
    with pytest.raises(InputError, match="augment: expected null or a callable"):
        as_augmenter(wrong)


# Processes, configuration, imports


def test_image_augmenters_can_be_pickled():
    image = random_image()
    for augmenter in (as_augmenter(augmenter_1()), as_augmenter(noisy)):
        augmenter(image, seed=1)
        copy = pickle.loads(pickle.dumps(augmenter))
        for seed in range(40):
            assert np.array_equal(copy(image, seed=seed), augmenter(image, seed=seed))


def test_pickled_pipeline_continues_its_random_sequence():
    pipeline, image = augmenter_1(), random_image()
    copy = pickle.loads(pickle.dumps(pipeline))
    for _ in range(60):
        assert np.array_equal(copy(image=image)["image"], pipeline(image=image)["image"])


def test_batch_augmenters_can_be_pickled():
    augmenter, images = as_augmenter(kornia_1()), torch.rand(4, 1, 12, 12)
    results = []
    for each in (augmenter, pickle.loads(pickle.dumps(augmenter))):
        torch.manual_seed(1)
        results.append(each(images))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("choice", "moving", "reference"),
    [
        ("none", type(None), type(None)),
        ("augmenter_1", ImageAugmenter, type(None)),
        ("augmenter_1_both", ImageAugmenter, ImageAugmenter),
        ("kornia_1", BatchAugmenter, type(None)),
    ],
)
@pytest.mark.parametrize("convert", ["none", "all"])
def test_each_configuration(choice, moving, reference, convert):
    built = hydra.utils.instantiate(OmegaConf.load(CONF / f"{choice}.yaml"), _convert_=convert)
    assert set(built) == {"moving", "reference"}
    for key, kind in (("moving", moving), ("reference", reference)):
        augmenter = as_augmenter(built[key], name=f"augment.{key}")
        assert type(augmenter) is kind
        if isinstance(augmenter, ImageAugmenter):
            assert not np.array_equal(augmenter(random_image(), seed=0), random_image())
        elif isinstance(augmenter, BatchAugmenter):
            torch.manual_seed(0)
            images = torch.rand(8, 1, 12, 12)
            assert not torch.equal(augmenter(images), images)


def test_every_configuration_is_tested():
    assert {file.stem for file in CONF.glob("*.yaml")} == {
        "none",
        "augmenter_1",
        "augmenter_1_both",
        "kornia_1",
    }


def test_both_images_share_p_but_not_the_pipeline():
    config = OmegaConf.load(CONF / "augmenter_1_both.yaml")
    config.moving.p = 0.25
    built = hydra.utils.instantiate(config, _convert_="all")
    assert built["moving"] is not built["reference"]
    assert built["reference"].transforms[0].p == 0.25


def test_a_users_nested_configuration():
    blur = {"_target_": "albumentations.Blur", "p": 1}
    config = {
        "_target_": "albumentations.OneOf",
        "transforms": [blur, {"_target_": "albumentations.Rotate"}],
        "p": 1,
    }
    with pytest.raises(InputError, match="Rotate"):
        as_augmenter(hydra.utils.instantiate(config, _convert_="all"))
    config["transforms"].pop()
    augmenter = as_augmenter(hydra.utils.instantiate(config, _convert_="all"))
    assert augmenter(with_centre(0.0, 1.0), seed=0)[2, 2] < 0.5


@pytest.mark.parametrize("module", [augmenters, augmenter_kinds])
def test_slow_libraries_are_imported_only_when_used(module):
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {name.split(".")[0] for name in imported} & {"albumentations", "cv2", "kornia", "torchvision"}
