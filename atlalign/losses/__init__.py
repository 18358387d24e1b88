"""Losses: `loss(y_true, y_pred)` is a scalar tensor, lower is better; the ALL_… tables hold every loss by key."""

from atlalign.losses.combine import (
    ALL_DVF_LOSSES,
    ALL_IMAGE_LOSSES,
    ALL_REGULARITY_LOSSES,
    DVF2IMG,
    LossRegistry,
    Mixer,
    RegistrationLoss,
    UnknownLossError,
)
from atlalign.losses.dvf import (
    Grad,
    VDClipper,
    grad,
    jacobian,
    jacobian_distance,
    mse_po,
    vdclip,
    vector_distance,
)
from atlalign.losses.image import NCC, mae, mse, ncc, pearson, psnr, ssim
from atlalign.losses.perceptual import Backbone, PerceptualLoss
from atlalign.losses.regularity import gradicon, inverse_consistency

__all__ = [
    "ALL_DVF_LOSSES",
    "ALL_IMAGE_LOSSES",
    "ALL_REGULARITY_LOSSES",
    "DVF2IMG",
    "NCC",
    "Backbone",
    "Grad",
    "LossRegistry",
    "Mixer",
    "PerceptualLoss",
    "RegistrationLoss",
    "UnknownLossError",
    "VDClipper",
    "grad",
    "gradicon",
    "inverse_consistency",
    "jacobian",
    "jacobian_distance",
    "mae",
    "mse",
    "mse_po",
    "ncc",
    "pearson",
    "psnr",
    "ssim",
    "vdclip",
    "vector_distance",
]
