"""Refinement at test time: a few steps that optimise the field for one pair of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.geometry import compose, integrate, limit_steepness, resize, sample, warp

_GRID_PX = 2  # between grid points of the velocity; detail of a finer grid would be smoothed away
_BINS = 32
_BLUR_BINS = 0.5  # the standard deviation of the blur of the joint histogram
_WINDOW_PX = 2.0  # the standard deviation of the windows of local correlation
_FLAT = 1e-3  # windows with a much lower variance show only noise or background
_OFF_GROUND = 0.05  # brighter pixels are tissue
_PIECE = 0.025  # as a share of the width: torn-off pieces are wider than the error of a network
_FIRST_SMOOTHNESS = 0.2  # as a share of the width
_STEP = 0.06  # the largest movement of a point in one step, as a share of the smoothness
_MOMENTUM = 0.7
_ROUNDING = 1e-6  # a smaller decrease of the loss does not count
_SQUARINGS = 5  # for movements of up to 16 points of the grid
_NEGLIGIBLE = 1e-6  # as a share of a Gaussian's height; smaller numbers only slow down products


def refine(
    reference: Tensor,
    moving: Tensor,
    dvf: Tensor,
    *,
    steps: int,
    smoothness: float = 0.1,
    expected_error: float = 0.05,
    ignored: Tensor | None = None,
) -> Tensor:
    """Return a field (1, 2, H, W) in pixels, refined from `dvf` by `steps` steps of optimisation.

    The refinement is a stationary velocity field, which is integrated and composed with `dvf`, so it adds no folds. It
    maximises the sum of mutual information (in nats) and squared local correlation. Both are averaged over the two
    directions: the moving image warped to the reference, and the reference warped to the moving image by the inverse
    (Avants et al., *Symmetric diffeomorphic image registration with cross-correlation*, MedIA 2008). Neither measure
    depends on which image is brighter.

    The field is regularised by smoothing each gradient with a Gaussian, which becomes narrower from step to step (Beg
    et al., *Computing large deformation metric mappings via geodesic flows of diffeomorphisms*, IJCV 2005). The
    function returns the best of all steps, which may be the start.

    Movement away from `dvf` has a cost, because images of a wrong plane or with missing parts can be made alike in many
    wrong ways. A network's field is closer to the truth than most of these.

    Where tissue is missing in one image, the images are not compared; otherwise the surrounding tissue would be pulled
    over the gap.

    Args:
        reference: (1, 1, H, W) in [0, 1], tissue on a background of 0.
        moving: The same for the moving image.
        dvf: The field to start from.
        steps: The number of steps; 40 are enough after a network.
        smoothness: The standard deviation of the last step's Gaussian as a share of the width, up to 0.2. At 0.1,
            deformations stay smooth. At 0.01, they follow borders; this looks better and is often worse inside.
        expected_error: The root mean square of movements whose cost equals one unit of likeness, as a share of the
            width; `inf` makes movements free.
        ignored: (1, 1, H, W), above 0 where the moving image must not be compared; None to compare it everywhere.
    """
    with torch.inference_mode(False), torch.enable_grad():
        start = dvf.detach().clone()
        images = torch.cat([reference, warp(moving, dvf, padding_mode="border")]).detach().clone()
        weights = _comparable(images)
        if ignored is not None:
            hidden = (warp(ignored, dvf) > 0).float()
            weights = weights * (1 - _grown(hidden, round(2 * _WINDOW_PX)))
        velocity = best = _nothing(start)
        direction, lowest = torch.zeros_like(velocity), float("inf")
        for step in range(steps + 1):
            loss, gradient = _loss_and_gradient(images, weights, velocity, expected_error)
            if loss < lowest - _ROUNDING:
                best, lowest = velocity, loss
            width = _FIRST_SMOOTHNESS * (smoothness / _FIRST_SMOOTHNESS) ** (step / max(1, steps))
            width_points = width * velocity.shape[-1]
            direction = _MOMENTUM * direction - (1 - _MOMENTUM) * _smooth_unit(gradient, width_points)
            velocity = velocity + _STEP * width_points * direction
        return compose(start, _field(best, start))


def _comparable(images: Tensor) -> Tensor:
    """Return a mask of where images (2, 1, H, W) can be compared: 0 around tissue that only one of them has."""
    radius = max(1, round(_PIECE * images.shape[-1]))
    tissue = _grown(-_grown(-(images > _OFF_GROUND).float(), 1), 1)  # without specks
    only_there = tissue.flip(0) * (1 - _grown(tissue, radius))
    return 1 - _grown(only_there, radius).amax(0, keepdim=True)


def _grown(mask: Tensor, radius: int) -> Tensor:
    """Return the maximum over squares that reach `radius` pixels to each side."""
    along_y = F.max_pool2d(mask, (2 * radius + 1, 1), 1, (radius, 0))
    return F.max_pool2d(along_y, (1, 2 * radius + 1), 1, (0, radius))


def _nothing(dvf: Tensor) -> Tensor:
    """Return a velocity of 0 for a field (1, 2, H, W), on a coarser grid."""
    height, width = (max(2, size // _GRID_PX) for size in dvf.shape[-2:])
    return dvf.new_zeros(1, 2, height, width)


def _field(velocity: Tensor, like: Tensor) -> Tensor:
    """Integrate velocities and return the fields on the grid of an image or a field."""
    return resize(integrate(limit_steepness(velocity), _SQUARINGS), (like.shape[-2], like.shape[-1]))


def _loss_and_gradient(
    images: Tensor, weights: Tensor, velocity: Tensor, expected_error: float
) -> tuple[float, Tensor]:
    """Return the cost minus the likeness of two images (2, 1, H, W), each warped to the other, and the gradient."""
    velocity = velocity.detach().requires_grad_()
    fields = _field(torch.cat([velocity, -velocity]), images)
    warped = warp(images.flip(0), fields, padding_mode="border")
    mutual_information = [_mutual_information(*pair, weights) for pair in zip(images, warped, strict=True)]
    likeness = torch.stack(mutual_information).mean() + _mean(local_correlation(images, warped), weights)
    price = (velocity / (expected_error * velocity.shape[-1])).square().sum(1).mean()
    loss = price - likeness
    (gradient,) = torch.autograd.grad(loss, velocity)
    return loss.item(), gradient


def _mutual_information(fixed: Tensor, warped: Tensor, weights: Tensor) -> Tensor:
    """Return the mutual information in nats of weighted images (1, H, W), differentiable in the second.

    It is the mean of log p(f, w) / (p(f) p(w)), where p is a blurred histogram of the pixels. p is treated as constant:
    its own change adds only the change of its sum, which is 0, to the gradient (Viola & Wells, *Alignment by
    maximization of mutual information*, IJCV 1997).
    """
    bins = torch.stack([warped.flatten(), fixed.flatten()], dim=-1) * (_BINS - 1)  # x, y in the table
    with torch.no_grad():
        place = bins.round().long().clamp(0, _BINS - 1)
        counts = torch.bincount(place[:, 1] * _BINS + place[:, 0], weights.flatten(), minlength=_BINS**2)
        blur = _gaussian(_BINS, _BLUR_BINS, fixed)
        of_both = blur @ counts.view(_BINS, _BINS) @ blur.T
        of_both = of_both / of_both.sum()
        # The blur reaches every bin that a pixel may interpolate from, so shares of 0 are never used.
        shares = (of_both, of_both.sum(1, keepdim=True), of_both.sum(0, keepdim=True))
        of_both, of_fixed, of_warped = (share.clamp_min(torch.finfo(share.dtype).tiny) for share in shares)
        table = of_both.log() - of_fixed.log() - of_warped.log()
    return _mean(sample(table[None, None], bins[None, None], padding_mode="border").view_as(weights), weights)


def local_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared correlation (B, 1, H, W) of two images around each pixel; 0 where one of them is flat."""
    windows = (_gaussian(size, _WINDOW_PX, first) for size in first.shape[-2:])
    along_y, along_x = (window / window.sum(1, keepdim=True) for window in windows)

    def around(image: Tensor) -> Tensor:
        return along_y @ image @ along_x.mT

    mean_first, mean_second = around(first), around(second)
    first_variance = (around(first * first) - mean_first.square()).clamp_min(0)
    second_variance = (around(second * second) - mean_second.square()).clamp_min(0)
    covariance = around(first * second) - mean_first * mean_second
    return covariance.square() / ((first_variance + _FLAT) * (second_variance + _FLAT))


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean of values (B, 1, H, W) weighted by (1, 1, H, W); 0 if all weights are 0."""
    return (values * weights).mean() / weights.mean().clamp_min(torch.finfo(weights.dtype).tiny)


def _smooth_unit(gradient: Tensor, sigma: float) -> Tensor:
    """Smooth a gradient (1, 2, h, w) by a Gaussian of `sigma` points, and scale its longest vector to 1; 0 stays 0."""
    along_y, along_x = (_gaussian(size, sigma, gradient) for size in gradient.shape[-2:])
    smooth = along_y @ gradient @ along_x
    longest = smooth.square().sum(1).amax().sqrt()
    return smooth / longest.clamp_min(torch.finfo(smooth.dtype).tiny)


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return the matrix (size, size) that smooths values along a line by a Gaussian, with 1 on its diagonal."""
    points = torch.arange(size, device=like.device, dtype=like.dtype)
    heights = torch.exp(-((points[:, None] - points) ** 2) / (2 * sigma**2))
    return torch.where(heights < _NEGLIGIBLE, 0, heights)
