"""Random deformations: one function draws the parameters and another applies them, so draws can be replayed.

`RANDOM_FIELDS` has every kind under its name. Lengths are fractions of the image's width W in pixels, and angles are in
radians. Only names that end in `px`, and the points that `ControlPoints` holds, are in pixels.

A generator on the CPU draws the parameters, which are then moved to the device. The same seed gives the same parameters
on every device, and fields that agree up to rounding.
"""

from atlalign.geometry.random_fields.affine import Affine, AffineDraw, draw_affine_simple
from atlalign.geometry.random_fields.affine_smooth import AffineSmooth, AffineSmoothDraw
from atlalign.geometry.random_fields.kinds import FieldPair, InvertibleField, RandomField
from atlalign.geometry.random_fields.smooth import Smooth, SmoothDraw, draw_velocity, smooth_field
from atlalign.geometry.random_fields.stretching import (
    Anchor,
    ControlPoints,
    EdgeStretching,
    Stretching,
    TooFewEdgesError,
    control_points,
    draw_control_points,
    draw_edge_stretching,
    edges,
)
from atlalign.geometry.random_fields.table import INVERTIBLE_FIELDS, RANDOM_FIELDS, Mix, invertible_field

__all__ = [
    "INVERTIBLE_FIELDS",
    "RANDOM_FIELDS",
    "Affine",
    "AffineDraw",
    "AffineSmooth",
    "AffineSmoothDraw",
    "Anchor",
    "ControlPoints",
    "EdgeStretching",
    "FieldPair",
    "InvertibleField",
    "Mix",
    "RandomField",
    "Smooth",
    "SmoothDraw",
    "Stretching",
    "TooFewEdgesError",
    "control_points",
    "draw_affine_simple",
    "draw_control_points",
    "draw_edge_stretching",
    "draw_velocity",
    "edges",
    "invertible_field",
    "smooth_field",
]
