"""Draws the curve of README's section on losses: `python docs/scripts/draw.py`."""

from pathlib import Path

import torch
from matplotlib import pyplot as plt

from atlalign.losses import VDClipper

HERE = Path(__file__).parents[1] / "pictures"


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
    figure.savefig(HERE / "vdclipper.png", dpi=110)


if __name__ == "__main__":
    vdclipper()
