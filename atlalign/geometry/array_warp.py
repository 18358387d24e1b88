"""Images as arrays under a field: any data type, and a choice of borders."""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlalign.errors import unknown_name
from atlalign.geometry.dvf import PaddingMode, SamplingMode, grid_shape, identity_grid, warp

Interpolation = Literal["linear", "nearest", "cubic"]
BorderMode = Literal["constant", "replicate", "reflect", "reflect_101"]
_MODES: dict[str, SamplingMode] = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
_PADDINGS: dict[str, PaddingMode] = {
    "constant": "zeros",
    "replicate": "border",
    "reflect": "border",  # after the coordinates themselves were reflected
    "reflect_101": "reflection",
}
# Half a pixel outside the image, cubic interpolation needs this many pixels beyond the border.
_CUBIC_REACH_PX = 2


def warp_array(
    image: NDArray[Any], dvf: Tensor, *, interpolation: Interpolation, border_mode: BorderMode
) -> NDArray[Any]:
    """Return an image (H, W) under a field (1, 2, H, W), in the same data type; see `DisplacementField.warp`.

    Raises:
        InputError: If a name is unknown.
    """
    if interpolation not in _MODES:
        raise unknown_name("interpolation", interpolation, _MODES)
    if border_mode not in _PADDINGS:
        raise unknown_name("border mode", border_mode, _PADDINGS)
    # Wide integers need the precision of float64.
    values = image.astype(np.result_type(image.dtype, np.float32))
    dvf, margin = (_reflected(dvf), _CUBIC_REACH_PX) if border_mode == "reflect" else (dvf, 0)
    padded = torch.from_numpy(np.pad(values, margin, mode="symmetric"))[None, None]
    warped = warp(
        padded,
        F.pad(dvf.to(padded.dtype), [margin] * 4),
        mode=_MODES[interpolation],
        padding_mode=_PADDINGS[border_mode],
    )
    height, width = image.shape
    warped = warped[0, 0, margin : margin + height, margin : margin + width]
    return _cast(warped.numpy(), image.dtype)


def _reflected(dvf: Tensor) -> Tensor:
    """Return a field with source positions mirrored into the image at the outer edge of the outermost pixels."""
    height, width = grid_shape(dvf)
    grid = identity_grid((height, width), dvf.dtype, dvf.device)
    size = torch.tensor([width, height]).view(1, 2, 1, 1)
    target = (grid + dvf + 0.5).remainder(2 * size)
    return torch.minimum(target, 2 * size - target) - 0.5 - grid


def _cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the values in another data type; for integers they are rounded, and cubic overshoots are clipped."""
    if dtype.kind not in "iub":
        return values.astype(dtype)
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.round().clip(*limits).astype(dtype)
