"""Refinement at test time: some steps of optimisation of the field on the very pair of images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from atlalign.geometry import compose, integrate, limit_steepness, resize, warp

_GRID_PX = 4  # between the velocity's points: finer ones would only be smoothed again
_WINDOW_PX = 9
_FLAT = 1e-3  # a window whose variance is far below says nothing: noise and the slide
_SMOOTHNESS = (0.3, 0.1)  # the first and the last step's, as shares of the width
_STEP = 0.04  # how far the point that moves most goes, as a share of the smoothness
_MOMENTUM = 0.7
_ROUNDING = 1e-6  # a loss that is lower by less is not lower


def refine(reference: Tensor, moving: Tensor, dvf: Tensor, *, steps: int) -> Tensor:
    """Return the field (1, 2, H, W) in pixels after `steps` steps of optimisation of what it leaves.

    A stationary velocity field is integrated and composed with `dvf`, so that nothing folds that did not fold before.
    It ascends the squared local correlation, which does not ask which of the images is brighter, of the reference with
    the moving image and, by the inverse, of the moving image with the reference (Avants et al., *Symmetric
    diffeomorphic image registration with cross-correlation*, MedIA 2008). What regularises it is that gradients are
    taken in a space of smooth fields (Beg et al., *Computing large deformation metric mappings via geodesic flows of
    diffeomorphisms*, IJCV 2005): a Gaussian smooths them, very wide at first and narrower from step to step. The best
    of all steps is returned, which may be the start.

    Args:
        reference: (1, 1, H, W) in [0, 1].
        moving: (1, 1, H, W) in [0, 1].
        dvf: The field to start from.
        steps: How many; 50 are good for what a network leaves.
    """
    with torch.inference_mode(False), torch.enable_grad():
        start = dvf.detach().clone()
        images = torch.cat([reference, warp(moving, dvf, padding_mode="border")]).detach().clone()
        velocity = best = _nothing(start)
        direction, lowest = torch.zeros_like(velocity), float("inf")
        for step in range(steps + 1):
            loss, gradient = _loss_and_gradient(images, velocity)
            if loss < lowest - _ROUNDING:
                best, lowest = velocity, loss
            width = _SMOOTHNESS[0] * (_SMOOTHNESS[1] / _SMOOTHNESS[0]) ** (step / max(1, steps))
            width_points = width * velocity.shape[-1]
            direction = _MOMENTUM * direction - (1 - _MOMENTUM) * _smooth_unit(gradient, width_points)
            velocity = velocity + _STEP * width_points * direction
        return compose(start, _field(best, start))


def _nothing(dvf: Tensor) -> Tensor:
    """Return the velocity 0 on its grid, which is coarser than that of a field (1, 2, H, W)."""
    height, width = (max(2, size // _GRID_PX) for size in dvf.shape[-2:])
    return dvf.new_zeros(1, 2, height, width)


def _field(velocity: Tensor, like: Tensor) -> Tensor:
    """Return the fields of velocities on the grid of an image or a field."""
    return resize(integrate(limit_steepness(velocity)), (like.shape[-2], like.shape[-1]))


def _loss_and_gradient(images: Tensor, velocity: Tensor) -> tuple[float, Tensor]:
    """Return how unlike two images (2, 1, H, W) are, and its gradient; each of them is warped to the other."""
    velocity = velocity.detach().requires_grad_()
    fields = _field(torch.cat([velocity, -velocity]), images)
    loss = -_local_correlation(images, warp(images.flip(0), fields, padding_mode="border")).mean()
    (gradient,) = torch.autograd.grad(loss, velocity)
    return loss.item(), gradient


def _local_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return (B, H, W), the squared correlation of images (B, 1, H, W) around each pixel: 0 where one is flat."""
    products = torch.cat([first, second, first * first, second * second, first * second], dim=1)
    for window in ((1, _WINDOW_PX), (_WINDOW_PX, 1)):
        around = (window[0] // 2, window[1] // 2)
        products = F.avg_pool2d(products, window, stride=1, padding=around, count_include_pad=False)
    of_first, of_second, *of_products = products.unbind(1)
    first_variance = (of_products[0] - of_first.square()).clamp_min(0)
    second_variance = (of_products[1] - of_second.square()).clamp_min(0)
    covariance = of_products[2] - of_first * of_second
    return covariance.square() / ((first_variance + _FLAT) * (second_variance + _FLAT))


def _smooth_unit(gradient: Tensor, sigma: float) -> Tensor:
    """Return a gradient (1, 2, h, w) under a Gaussian of `sigma` points, its longest vector 1; zeros stay zeros."""
    along_y, along_x = (_gaussian(size, sigma, gradient) for size in gradient.shape[-2:])
    smooth = along_y @ gradient @ along_x
    longest = smooth.square().sum(1).amax().sqrt()
    return smooth / longest.clamp_min(torch.finfo(smooth.dtype).tiny)


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """Return the matrix (size, size) that smooths points along a line."""
    points = torch.arange(size, device=like.device, dtype=like.dtype)
    return torch.exp(-((points[:, None] - points) ** 2) / (2 * sigma**2))
