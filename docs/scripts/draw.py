"""Draws the pictures of the pages that need nothing but the package: `python docs/scripts/draw.py`."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from torch import Tensor

from atlalign.atlas.atlas import phantom_atlas
from atlalign import DisplacementField
from atlalign.geometry import warp
from atlalign.losses import ALL_DVF_LOSSES, ALL_IMAGE_LOSSES, VDClipper

PICTURES = Path(__file__).parents[1] / "pictures"
SHAPE = (160, 228)
OF_IMAGES = ("mae", "mse", "ncc_5", "ncc_9", "ncc_12", "ncc_20", "pearson", "psnr", "ssim")
OF_FIELDS = ("mae", "mse", "mse_po", "vector_distance", "vdclip2", "vdclip3", "grad", "jacobian", "jacobian_distance")


def vdclipper() -> None:
    """Draw VDClipper's value over the distance between truth and prediction, as the class computes it."""
    distances_px = torch.linspace(0, 30, 61)
    truth = torch.zeros(1, 2, 4, 4)
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    for power in (1, 2, 3):
        loss = VDClipper(threshold=20, power=power)
        shifts = [truth + torch.tensor([d, 0.0]).view(1, 2, 1, 1) for d in distances_px]
        axes.plot(distances_px, [float(loss(truth, shift)) for shift in shifts], label=f"power {power}")
    axes.axvline(20, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="vector distance (px)", ylabel="loss", title="VDClipper(threshold=20, power)")
    axes.legend()
    figure.savefig(PICTURES / "vdclipper.png", dpi=110)


def losses_of_images() -> None:
    """Draw each image loss between a section of the phantom and its copy, shifted to the right."""
    section = phantom_atlas(image_shape=SHAPE, spacing_um=100).section(6500)[None]
    shifts_px = torch.arange(0, 31, 1.0)
    moved = [warp(section, torch.tensor([px, 0.0]).view(1, 2, 1, 1).expand(1, 2, *SHAPE)) for px in shifts_px]
    curves = {key: [float(ALL_IMAGE_LOSSES[key](section, image)) for image in moved] for key in OF_IMAGES}
    _draw(curves, shifts_px, "shift (px)", PICTURES / "losses_images.png")


def losses_of_fields() -> None:
    """Draw each field loss as a smooth random field grows away from the truth, which is zero."""
    field = DisplacementField.generate(SHAPE, "smooth", seed=1).dvf[None]
    field = field / field.square().sum(dim=1).sqrt().mean()
    errors_px = torch.linspace(0, 30, 31)
    fields = [field * px for px in errors_px]
    curves = {key: [float(ALL_DVF_LOSSES[key](0 * field, grown)) for grown in fields] for key in OF_FIELDS}
    _draw(curves, errors_px, "mean error (px)", PICTURES / "losses_fields.png")


def _draw(curves: dict[str, list[float]], x: Tensor, label: str, path: Path) -> None:
    figure, axes = plt.subplots(3, 3, figsize=(8, 6), layout="constrained", sharex=True)
    for panel, (key, values) in zip(axes.flat, curves.items(), strict=True):
        panel.plot(x, values)
        panel.set_title(key, fontsize=9)
        panel.tick_params(labelsize=7)
    for panel in axes[-1]:
        panel.set_xlabel(label, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


DRAWN: Iterable[Callable[[], None]] = (vdclipper, losses_of_images, losses_of_fields)

if __name__ == "__main__":
    for draw in DRAWN:
        draw()
