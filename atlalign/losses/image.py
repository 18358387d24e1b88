"""Losses between images: `loss(y_true, y_pred)` of two (B, 1, H, W) tensors in [0, 1] is a scalar, lower is better.

All but `mae` and `mse` also serve for fields, component by component (`atlalign.losses.DVF2IMG`). Only their constants
assume the range [0, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlalign.errors import InputError

SSIM_WINDOW_PX = 11
_LOWEST_MSE = 1e-10
_LOWEST_VARIANCE = 1e-10
_NCC_EPSILON = 1e-5


def as_pair(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors in their common precision, at least float32: half precision is too coarse for variances.

    Raises:
        ValueError: If they are not two tensors (B, C, H, W) of one shape; broadcasting would hide the mistake.
    """
    if y_true.shape != y_pred.shape or y_true.ndim != 4:
        shapes = f"{tuple(y_true.shape)} and {tuple(y_pred.shape)}"
        raise ValueError(f"loss: expected y_true and y_pred of one shape (B, C, H, W), got {shapes}")
    common = torch.promote_types(torch.promote_types(y_true.dtype, y_pred.dtype), torch.float32)
    return y_true.to(common), y_pred.to(common)


def mae(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    return F.l1_loss(*as_pair(y_true, y_pred))


def mse(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return the mean squared difference."""
    return F.mse_loss(*as_pair(y_true, y_pred))


def ncc(y_true: Tensor, y_pred: Tensor, *, window: int = 9) -> Tensor:
    """Return −mean(cross² / (var_true · var_pred + 1e-5)) over square windows around each pixel, in [−1, 0].

    A window of constant intensity counts 0, so an image compared with itself gives −1 only if no window is flat. A
    section whose flat background fills a quarter of the windows gives −0.75 at best.

    cross = Σ(I−Ī)(J−J̄) and var = Σ(I−Ī)² are plain sums over `window`² pixels. Beyond the border the images are zero;
    an even window reaches (window−1)//2 pixels before and window//2 after its pixel.

    Example:
        >>> image = torch.rand(1, 1, 64, 64)
        >>> round(ncc(image, image / 2, window=9).item(), 2)  # the contrast does not matter
        -1.0
        >>> image[..., :32] = 0  # a flat background
        >>> round(ncc(image, image, window=9).item(), 1)
        -0.6
    """
    y_true, y_pred = as_pair(y_true, y_pred)
    true, pred = (_pad_for_sums(image, window) for image in (y_true, y_pred))
    # Separate calls, so that autograd does not differentiate the truth.
    sum_true, sum_true2 = _window_sums(window, true, true**2)
    sum_pred, sum_pred2, sum_both = _window_sums(window, pred, pred**2, true * pred)
    cross = sum_both - sum_true * sum_pred / window**2
    # Rounding can make the variance of a flat window, and so the denominator, negative.
    var_true = (sum_true2 - sum_true**2 / window**2).clamp_min(0)
    var_pred = (sum_pred2 - sum_pred**2 / window**2).clamp_min(0)
    return -(cross**2 / (var_true * var_pred + _NCC_EPSILON)).mean().to(y_pred.dtype)


def _pad_for_sums(image: Tensor, window: int) -> Tensor:
    """Return the image in float64, padded with zeros so that there is one window for each pixel.

    In float32 the sums of a flat window cancel to noise far above the formula's 1e-5, and single windows reach ratios
    of thousands. float64 takes no longer; Apple's GPUs, which lack it, compute in float32.
    """
    before, after = (window - 1) // 2, window // 2
    dtype = torch.float32 if image.device.type == "mps" else torch.float64
    return F.pad(image.to(dtype), (before, after, before, after))


def _window_sums(window: int, *images: Tensor) -> tuple[Tensor, ...]:
    """Return each image's sums over all windows that lie within it."""
    rows = F.avg_pool2d(torch.cat(images), (1, window), stride=1, divisor_override=1)
    sums = F.avg_pool2d(rows, (window, 1), stride=1, divisor_override=1)
    return sums.chunk(len(images))


class NCC(nn.Module):
    """Local normalised cross-correlation, `ncc`, with square windows of `window` pixels a side.

    Example:
        >>> image, other = torch.rand(2, 1, 1, 64, 64)
        >>> bool(NCC(window=9)(image, image) < NCC(window=9)(image, other))
        True
    """

    def __init__(self, window: int = 9) -> None:
        super().__init__()
        if window < 2:
            raise InputError(f"NCC: expected a window of at least 2 pixels, got {window}")
        self.window = window

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss of two (B, C, H, W) tensors."""
        return ncc(y_true, y_pred, window=self.window)

    def extra_repr(self) -> str:
        """Return the hyperparameters for `repr`."""
        return f"window={self.window}"


def pearson(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return 1 − r², where r is Pearson's correlation over all pixels of the batch; 1 if either is constant."""
    y_true, y_pred = (image - image.mean() for image in as_pair(y_true, y_pred))
    covariance = (y_true * y_pred).mean()
    # A floor, not an added constant: it affects only images whose standard deviation is below 1e-5.
    var_true = y_true.square().mean().clamp_min(_LOWEST_VARIANCE)
    var_pred = y_pred.square().mean().clamp_min(_LOWEST_VARIANCE)
    return 1 - covariance.square() / (var_true * var_pred)


def psnr(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return the mean over the batch of −PSNR in dB at peak 1; the MSE is at least 1e-10, so −100 is the best value."""
    y_true, y_pred = as_pair(y_true, y_pred)
    mean_squares = (y_true - y_pred).square().mean(dim=(1, 2, 3))
    return (10 * mean_squares.clamp_min(_LOWEST_MSE).log10()).mean()


def ssim(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return −SSIM at peak 1, over Gaussian 11×11 windows of sigma 1.5 px that lie within the image.

    Wang et al., *Image quality assessment: from error visibility to structural similarity*, IEEE TIP 2004.

    Raises:
        ValueError: If a side is shorter than 11 pixels.
    """
    from kornia.metrics import ssim as ssim_map  # imported here: slow, and few losses need it

    y_true, y_pred = as_pair(y_true, y_pred)
    if min(y_true.shape[-2:]) < SSIM_WINDOW_PX:
        size = "×".join(str(side) for side in y_true.shape[-2:])
        raise ValueError(f"ssim: expected images of at least {SSIM_WINDOW_PX}×{SSIM_WINDOW_PX}, got {size}")
    with torch.autocast(y_pred.device.type, enabled=False):  # kornia disables it itself only since 0.9
        similarity: Tensor = ssim_map(y_true, y_pred, SSIM_WINDOW_PX, max_val=1.0, eps=0.0, padding="valid")
    return -similarity.mean()
