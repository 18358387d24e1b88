"""Image losses against their formulas, written out in NumPy."""

import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from atlalign.errors import InputError
from atlalign.losses import ALL_IMAGE_LOSSES, NCC, mae, mse, ncc, pearson, psnr, ssim

KEYS = [key for key in ALL_IMAGE_LOSSES if not key.startswith("perceptual")]


def pair(shape=(2, 1, 21, 26), dtype=torch.float32):
    y_true, noise = torch.rand(2, *shape, dtype=dtype)
    return y_true, 0.6 * y_true + 0.4 * noise


def ncc_numpy(y_true, y_pred, window):
    """Two passes over each window of the zero-padded images, in float64."""
    border = ((window - 1) // 2, window // 2)
    ratios = []
    for pair_of_images in zip(y_true[:, 0].numpy(), y_pred[:, 0].numpy(), strict=True):
        padded = [np.pad(image.astype(np.float64), (border, border)) for image in pair_of_images]
        windows = [sliding_window_view(image, (window, window)) for image in padded]
        i, j = (w - w.mean((-2, -1), keepdims=True) for w in windows)
        cross, var_i, var_j = ((a * b).sum((-2, -1)) for a, b in ((i, j), (i, i), (j, j)))
        ratios.append(cross**2 / (var_i * var_j + 1e-5))
    return -np.mean(ratios)


def ssim_numpy(y_true, y_pred):
    offset = np.arange(11) - 5
    profile = np.exp(-(offset**2) / (2 * 1.5**2))
    kernel = np.outer(profile, profile) / profile.sum() ** 2

    def mean(image):
        return (sliding_window_view(image, (11, 11), axis=(2, 3)) * kernel).sum((-2, -1))

    x, y = y_true.double().numpy(), y_pred.double().numpy()
    var_x, var_y, cov = (
        mean(x * x) - mean(x) ** 2,
        mean(y * y) - mean(y) ** 2,
        mean(x * y) - mean(x) * mean(y),
    )
    luminance = (2 * mean(x) * mean(y) + 0.01**2) / (mean(x) ** 2 + mean(y) ** 2 + 0.01**2)
    structure = (2 * cov + 0.03**2) / (var_x + var_y + 0.03**2)
    return -np.mean(luminance * structure)


def pearson_numpy(y_true, y_pred):
    return 1 - np.corrcoef(y_true.double().flatten(), y_pred.double().flatten())[0, 1] ** 2


def psnr_numpy(y_true, y_pred):
    errors = [
        np.mean((a - b) ** 2) for a, b in zip(y_true.double().numpy(), y_pred.double().numpy(), strict=True)
    ]
    return -np.mean([10 * np.log10(1 / error) for error in errors])


FORMULAS = {
    "mae": lambda a, b: np.mean(np.abs(a.double().numpy() - b.double().numpy())),
    "mse": lambda a, b: np.mean((a.double().numpy() - b.double().numpy()) ** 2),
    "pearson": pearson_numpy,
    "psnr": psnr_numpy,
    "ssim": ssim_numpy,
    **{f"ncc_{window}": lambda a, b, window=window: ncc_numpy(a, b, window) for window in (5, 9, 12, 20)},
}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_its_formula(key):
    y_true, y_pred = pair()
    y_pred[1] *= 0.5  # a batch of unlike samples: a mean over samples is not one over the batch
    assert ALL_IMAGE_LOSSES[key](y_true, y_pred).item() == pytest.approx(
        FORMULAS[key](y_true, y_pred), rel=1e-5
    )


@pytest.mark.parametrize("key", KEYS)
def test_gradients_are_right_and_float64_stays(key):
    y_true, y_pred = pair((1, 1, 11, 12), torch.float64)
    loss = ALL_IMAGE_LOSSES[key]
    assert loss(y_true, y_pred).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, (y_true.requires_grad_(), y_pred.requires_grad_()))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(key, dtype):
    y_true, y_pred = (image.to(dtype) for image in pair())
    loss = ALL_IMAGE_LOSSES[key]
    expected = loss(y_true.float(), y_pred.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(y_true, y_pred), expected)
        torch.testing.assert_close(loss(y_true.float(), y_pred), expected)
        torch.testing.assert_close(loss(y_true.float(), y_pred.float()), expected)


@pytest.mark.parametrize("key", KEYS)
def test_different_shapes_are_not_broadcast(key):
    with pytest.raises(ValueError, match=r"one shape \(B, C, H, W\).*\(2, 1, 21, 26\) and \(1, 1, 21, 26\)"):
        ALL_IMAGE_LOSSES[key](torch.rand(2, 1, 21, 26), torch.rand(1, 1, 21, 26))


def test_mae_and_mse_by_hand():
    y_true, y_pred = torch.zeros(1, 1, 1, 4), torch.tensor([[[[0.0, 0.5, -1.0, 0.1]]]])
    assert mae(y_true, y_pred).item() == pytest.approx(0.4)
    assert mse(y_true, y_pred).item() == pytest.approx(1.26 / 4)


@pytest.mark.parametrize("window", [5, 9, 20])
@pytest.mark.parametrize(
    "size", [1, 6, 1e4], ids=["an image", "a field of 60 px, in tens", "a diverged field"]
)
def test_ncc_of_flat_patches_keeps_its_digits(window, size):
    """Sums over a flat window cancel: in float32 the loss is off by 2e-4 here at size 6, by 2e8 at size 1e4."""
    y_true = torch.where(torch.arange(80) < 50, 0.97, 0.1 * torch.rand(60, 80))
    y_pred = torch.rand(60, 80) * torch.logspace(-3, 0, 60)[:, None]  # any contrast times that of the patch
    y_true, y_pred = (size * image[None, None] for image in (y_true, y_pred))
    assert ncc(y_true, y_pred, window=window).item() == pytest.approx(
        ncc_numpy(y_true, y_pred, window), abs=1e-6
    )


def test_ncc_by_hand():
    """One 2×2 window reaches back to nothing and on by one pixel, so the last row and column see padding."""
    image = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    # The pixel lies in window (0, 0) only: cross = var = 1 − 1/4.
    assert ncc(image, image, window=2).item() == pytest.approx(-(0.75**2 / (0.75**2 + 1e-5)) / 4)


def test_ncc_of_equal_textured_images_is_minus_one_whatever_the_sign():
    y_true, _ = pair()
    assert ncc(y_true, y_true).item() == pytest.approx(-1, abs=1e-4)
    centred = y_true - 0.5
    assert ncc(centred, -centred).item() == pytest.approx(-1, abs=1e-4)


def test_pearson_of_a_line_and_of_a_constant():
    y_true, _ = pair()
    assert pearson(y_true, 0.3 - 0.2 * y_true).item() == pytest.approx(0, abs=1e-6)
    constant = torch.full_like(y_true, 0.3)
    assert pearson(constant, y_true).item() == pytest.approx(1)
    assert pearson(y_true, constant).item() == pytest.approx(1)
    assert pearson(constant, constant).item() == pytest.approx(1)


def test_psnr_by_hand():
    y_true = torch.full((2, 1, 8, 8), 0.5)
    y_pred = y_true.clone()
    assert psnr(y_true, y_pred).item() == pytest.approx(-100)
    y_pred[0] += 0.1
    assert psnr(y_true, y_pred).item() == pytest.approx((-20 - 100) / 2, rel=1e-5)


def test_ssim_of_equal_images_is_exactly_minus_one_even_if_black():
    assert ssim(torch.zeros(1, 1, 11, 11), torch.zeros(1, 1, 11, 11)).item() == -1
    y_true, _ = pair()
    assert ssim(y_true, y_true).item() == pytest.approx(-1, abs=1e-6)


def test_ssim_needs_a_whole_window():
    assert math.isfinite(ssim(*pair((1, 1, 11, 11))))
    with pytest.raises(ValueError, match="at least 11×11, got 10×30"):
        ssim(*pair((1, 1, 10, 30)))


def test_ncc_window_of_one_pixel_is_refused():
    with pytest.raises(InputError, match="window of at least 2 pixels, got 1"):
        NCC(1)
