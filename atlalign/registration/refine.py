"""Refinement at test time: some steps of optimisation of the field on the very pair of images."""

import torch
from torch import Tensor

from atlalign.geometry import compose, integrate, limit_steepness, resize, warp
from atlalign.losses.dvf import grad
from atlalign.losses.image import ncc

_GRID_PX = 4  # between the velocity's points: finer ones would only be smoothed again
_WINDOW_PX = 9
_STEP_PX = 0.3


def refine(reference: Tensor, moving: Tensor, dvf: Tensor, *, steps: int, smoothness: float = 3.0) -> Tensor:
    """Return the field (1, 2, H, W) in pixels after `steps` steps of Adam on what it leaves.

    A stationary velocity field on a coarse grid is integrated and composed with `dvf`, so that nothing folds that did
    not fold before. It is moved to where squared local correlation is largest, which does not ask which of the images
    is brighter (Cachier et al., *Iconic feature based nonrigid registration: the PASHA algorithm*, CVIU 2003; Avants
    et al., *Symmetric diffeomorphic image registration with cross-correlation*, MedIA 2008), against `smoothness` times
    the mean square of its derivatives. The best of all steps is returned, which may be the start.

    Args:
        reference: (1, 1, H, W) in [0, 1].
        moving: (1, 1, H, W) in [0, 1].
        dvf: The field to start from.
        steps: How many; 50 are good for what a network leaves.
        smoothness: More keeps closer to `dvf`.
    """
    shape = (int(dvf.shape[-2]), int(dvf.shape[-1]))
    grid = (max(2, shape[0] // _GRID_PX), max(2, shape[1] // _GRID_PX))
    with torch.inference_mode(False), torch.enable_grad():
        reference, moving, start = (tensor.detach().clone() for tensor in (reference, moving, dvf))
        coarse = torch.zeros(1, 2, *grid, device=dvf.device, requires_grad=True)
        optimizer = torch.optim.Adam([coarse], lr=_STEP_PX / _GRID_PX)
        best, lowest = start, float("inf")
        for _ in range(steps + 1):
            velocity = resize(coarse, shape)
            refined = compose(start, integrate(limit_steepness(velocity)))
            roughness = grad(torch.zeros_like(velocity), velocity, penalty="l2")
            loss = ncc(reference, warp(moving, refined), window=_WINDOW_PX) + smoothness * roughness
            if loss.item() < lowest:
                best, lowest = refined.detach(), loss.item()
            (coarse.grad,) = torch.autograd.grad(loss, coarse)
            optimizer.step()
    return best
