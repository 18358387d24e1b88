"""Geometry of displacement fields: pure tensor functions without state."""

from atlalign.geometry.dvf import (
    affine_to_dvf,
    compose,
    identity_grid,
    integrate,
    invert,
    jacobian,
    jacobian_determinant,
    resize,
    warp,
    warp_points,
)

__all__ = [
    "affine_to_dvf",
    "compose",
    "identity_grid",
    "integrate",
    "invert",
    "jacobian",
    "jacobian_determinant",
    "resize",
    "warp",
    "warp_points",
]
