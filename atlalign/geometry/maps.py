"""Affine and projective maps: matrices from simple parameters, their inverses and their fields."""

from typing import NamedTuple

import torch
from torch import Tensor

from atlalign.errors import InputError
from atlalign.geometry.dvf import affine_to_dvf, identity_grid


class AffineSimple(NamedTuple):
    """The parameters of affine maps, one value (B,) for each map.

    Fields map backward: scale 2 shrinks the content, and a positive rotation turns it counter-clockwise on the screen.

    Attributes:
        scale_x: Scale along x.
        scale_y: Scale along y.
        rotation: Rotation in radians.
        translation_x: Translation along x in pixels.
        translation_y: Translation along y in pixels.
        shear: Shear in radians.
    """

    scale_x: Tensor
    scale_y: Tensor
    rotation: Tensor
    translation_x: Tensor
    translation_y: Tensor
    shear: Tensor


def affine_simple_matrix(
    parameters: AffineSimple, shape: tuple[int, int], *, apply_centering: bool = True
) -> Tensor:
    """Return the matrices (B, 2, 3) on absolute pixel coordinates.

    The linear part is [[sx cos r, −sy sin(r + s)], [sx sin r, sy cos(r + s)]] with rotation r and shear s.

    Args:
        parameters: The parameters of the maps.
        shape: (H, W).
        apply_centering: Scale, rotate and shear about the image's centre; otherwise about pixel (0, 0).
    """
    scale_x, scale_y, rotation, translation_x, translation_y, shear = (value.double() for value in parameters)
    sheared = rotation + shear
    row_x = torch.stack([scale_x * rotation.cos(), -scale_y * sheared.sin()], dim=-1)
    row_y = torch.stack([scale_x * rotation.sin(), scale_y * sheared.cos()], dim=-1)
    linear = torch.stack([row_x, row_y], dim=-2)
    translation = torch.stack([translation_x, translation_y], dim=-1)
    if apply_centering:
        centre = _centre(shape, linear.device)
        translation = translation + centre - linear @ centre
    matrix = torch.cat([linear, translation[..., None]], dim=-1)
    return matrix.to(parameters.scale_x.dtype)


def affine_simple(
    parameters: AffineSimple, shape: tuple[int, int], *, apply_centering: bool = True
) -> Tensor:
    """Return the fields (B, 2, H, W) of the maps of `affine_simple_matrix`."""
    return affine_to_dvf(affine_simple_matrix(parameters, shape, apply_centering=apply_centering), shape)


def invert_affine(matrix: Tensor) -> Tensor:
    """Return the matrices (B, 2, 3) of the inverse maps in the same precision; not finite where a map is singular."""
    # Written out because ONNX has no inverse, and autocast would compute matrix products in reduced precision.
    a, b, x = matrix[:, 0].unbind(dim=1)
    c, d, y = matrix[:, 1].unbind(dim=1)
    adjugate = torch.stack([d, -b, b * y - d * x, -c, a, c * x - a * y], dim=1)
    return adjugate.view(-1, 2, 3) / (a * d - b * c)[:, None, None]


def _centre(shape: tuple[int, int], device: torch.device) -> Tensor:
    return torch.tensor([(shape[1] - 1) / 2, (shape[0] - 1) / 2], dtype=torch.float64, device=device)


def projective(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the field of projective maps: `dvf(x, y) = (u, v) / w − (x, y)` with (u, v, w) = matrix · (x, y, 1).

    Args:
        matrix: (B, 3, 3) on absolute pixel coordinates around (0, 0).
        shape: (H, W) of the field.

    Raises:
        InputError: If `matrix` is not (B, 3, 3), or the line at infinity crosses the grid.
    """
    if matrix.ndim != 3 or tuple(matrix.shape[1:]) != (3, 3):
        raise InputError(f"matrix: expected (B, 3, 3), got {tuple(matrix.shape)}")
    grid = identity_grid(shape, torch.float64, matrix.device)[0]
    mapped = (
        torch.einsum("bij,jhw->bihw", matrix[:, :, :2].double(), grid) + matrix.double()[:, :, 2, None, None]
    )
    depth = mapped[:, 2:]
    if bool((depth * depth[:, :, :1, :1] <= 0).any()):
        raise InputError(f"matrix: expected a projective map without a horizon on the grid of {tuple(shape)}")
    return (mapped[:, :2] / depth - grid).to(matrix.dtype)
