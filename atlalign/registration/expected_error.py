"""The expected error of a registration at each place, derived from how much it changes with the view of the section.

The network also registers two views of the section, turned slightly either way and slightly scaled, and the reference
to the section. Where these registrations disagree, the network is uncertain. The calibration converts disagreement to
an error in µm: half of the errors are smaller (experiments/07-real-sections/expected_error.py). Systematic errors,
which occur in every view, do not show, so the result is a lower bound.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from atlalign.geometry import affine_to_dvf, compose, warp
from atlalign.registration.attempt import network_field
from atlalign.registration.references import Reference
from atlalign.registration.registered import lengths_um

_VIEWS = ((6.0, 1.05), (-6.0, 0.95))  # degrees, scale
_SMOOTH_UM = 500.0  # the standard deviation of the Gaussian; single pixels carry little information
_FLOOR_UM = 5.0  # smaller disagreements count as equal
_WHOLE = 1e-3  # of the Gaussian's weight; farther from tissue nothing is known


class Calibration(NamedTuple):
    """log(error + 5 µm) as a linear function of log(disagreement + 5 µm).

    Attributes:
        constant: The constant term.
        of_views: The factor of the disagreement between views.
        of_return: The factor of the distance between a point and the place that it returns to.
    """

    constant: float
    of_views: float
    of_return: float

    def error_um(self, views_um: NDArray[Any], return_um: NDArray[Any]) -> NDArray[np.float32]:
        """Return the error in µm for these disagreements in µm."""
        views, there_and_back = (np.log(np.asarray(um) + _FLOOR_UM) for um in (views_um, return_um))
        log_error = self.constant + self.of_views * views + self.of_return * there_and_back
        return np.maximum(np.exp(log_error) - _FLOOR_UM, 0).astype(np.float32)


SHIPPED: Mapping[str, Calibration] = {
    "338aaffca39857b4826416c121b8b8c01f39ae4c3c002957d674bd15fa04fa38": Calibration(
        constant=0.567, of_views=0.572, of_return=0.227
    ),
}
"""The calibration of the network that comes with the package, by the SHA-256 of its file.

Fitted on the even sections of parts (a), (c) and (d) by `python experiments/07-real-sections/expected_error.py
--atlas $ATLALIGN_TEST_DATA/allen_ccf_25um.h5 --sections $ATLALIGN_TEST_DATA/sections/sections.json`. Other networks
have no calibration.
"""


def one_sided(network: nn.Module) -> nn.Module:
    """Return a network with the same weights that does not also register mirrored images; it takes half the time."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied: nn.Module = copy.deepcopy(network, shared)
    for module in copied.modules():
        if getattr(module, "mirrored", False):
            vars(module).update(mirrored=False)
    return copied


@torch.inference_mode()
def disagreements_um(
    network: nn.Module, reference: Reference, placed: Tensor, dvf: Tensor, return_um: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the network's disagreement between views, and on the way to the section and back, smoothed over tissue.

    Args:
        network: The result of `one_sided`.
        reference: The reference at the network's size.
        placed: (1, 1, H, W), the section before the network.
        dvf: (1, 2, H, W), the network's field.
        return_um: (H, W), the distance between a point and the place that it returns to when mapped to the section and
            back; NaN if it is unknown.
    """
    views = affine_to_dvf(_about_the_centre(reference.grid.shape), reference.grid.shape)
    seen = warp(placed.expand(len(views), -1, -1, -1), views)
    found = network_field(network, reference.image.expand_as(seen), seen)
    apart = compose(outer=views, inner=found) - dvf
    views_um = (
        torch.stack([lengths_um(field[None], reference.grid) for field in apart]).square().mean(0).sqrt()
    )
    return _smooth(views_um, reference), _smooth(return_um, reference)


def _about_the_centre(shape: tuple[int, int]) -> Tensor:
    """Return the views as matrices (N, 2, 3) of pixels, which keep the centre fixed."""
    centre = torch.tensor([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    matrices = []
    for degrees, scale in _VIEWS:
        angle = torch.tensor(degrees).deg2rad()
        linear = scale * torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
        matrices.append(torch.cat([linear, (centre - linear @ centre)[:, None]], dim=1))
    return torch.stack(matrices)


def _smooth(um: Tensor, reference: Reference) -> NDArray[np.float32]:
    """Return the local mean (H, W) over tissue; NaN where no tissue is near."""
    x_um, y_um = reference.grid.pixel_um
    sigma = (_SMOOTH_UM / y_um, _SMOOTH_UM / x_um)
    weights = (reference.tissue & um.isfinite()).numpy().astype(np.float32)
    total = gaussian_filter(um.nan_to_num().numpy() * weights, sigma)
    weight = gaussian_filter(weights, sigma)
    smooth: NDArray[np.float32] = np.where(weight > _WHOLE, total / np.maximum(weight, _WHOLE), np.nan)
    return smooth


def expected_error_um(
    network: nn.Module,
    calibration: Calibration,
    reference: Reference,
    placed: Tensor,
    dvf: Tensor,
    return_um: Tensor,
) -> NDArray[np.float32]:
    """Return the expected error (H, W) in µm on the reference's tissue; NaN elsewhere. See `disagreements_um`."""
    error_um = calibration.error_um(*disagreements_um(network, reference, placed, dvf, return_um))
    return np.where(reference.tissue.numpy(), error_um, np.float32(np.nan))
