"""Draws the pictures of the pages that need nothing but the package: `python docs/scripts/draw.py [NAME …]`."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch
from phantom_cases import bright_field, fluorescence, half, section_at
from PIL import Image
from torch import Tensor

from atlalign import DisplacementField
from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.phantom import phantom_volume
from atlalign.geometry import affine_to_dvf, compose, invert, warp, warp_points
from atlalign.losses import ALL_DVF_LOSSES, ALL_IMAGE_LOSSES, VDClipper
from atlalign.registration import Options, atlas_recipe, find_jobs, register_section

PICTURES = Path(__file__).parents[1] / "pictures"
SHAPE = (160, 228)
RED, BLUE = "#d81b60", "#1565c0"
LABEL = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
OF_IMAGES = ("mae", "mse", "ncc_5", "ncc_9", "ncc_12", "ncc_20", "pearson", "psnr", "ssim")
OF_FIELDS = (
    "mae",
    "mse",
    "mse_po",
    "vector_distance",
    "vdclip2",
    "vdclip3",
    "grad",
    "jacobian",
    "jacobian_distance",
)


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


def orientations() -> None:
    """Draw how a section may lie in its image, each with the option that says so."""
    section = section_at(8000)
    upright = bright_field(section)
    shown = {
        "upright, seen from behind\nno option": upright,
        "mirrored, seen from in front\n--mirrored": upright[:, ::-1],
        "on its side\nno option: found (or --turn 90)": np.rot90(upright, -1),
        "upside down\nno option: found (or --turn 180)": np.rot90(upright, 2),
        "the left half alone\n--hemisphere left": bright_field(half(section)),
        "bright on dark\nno option: found (or --background dark)": fluorescence(section),
    }
    letters = {0: "LR", 1: "RL", 2: "LR", 3: "RL", 4: "L", 5: "LR"}
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.4), layout="constrained")
    for number, (panel, (title, image)) in enumerate(zip(axes.flat, shown.items(), strict=True)):
        panel.imshow(image, cmap="gray", vmin=0, vmax=255)
        panel.set_title(title, fontsize=9)
        panel.set(xticks=[], yticks=[], aspect="equal")
        height, width = image.shape[:2]
        for share, letter in zip((0.27, 0.73), letters[number], strict=False):
            x, y = (0.5, share) if height > width else (share, 0.5)
            panel.text(x * width, y * height, letter, color=RED, fontsize=16, weight="bold", ha="center")
    figure.savefig(PICTURES / "orientations.png", dpi=110)
    plt.close(figure)


def frames() -> None:
    """Draw the three frames, with one point in each of them, on an atlas file with voxels of 100 µm."""
    atlas = phantom_atlas(image_shape=(200, 285), spacing_um=100)
    section, position_um = section_at(6000), 6000
    with TemporaryDirectory() as folder:
        Image.fromarray(bright_field(section)).save(Path(folder) / "s.png")
        template, annotation = phantom_volume(shape=(132, 80, 114), seed=0)
        with h5py.File(Path(folder) / "atlas.h5", "w") as file:
            file["template"], file["annotation"] = template, annotation
            file.attrs["spacing_um"] = 100.0
        recipe = atlas_recipe(str(Path(folder) / "atlas.h5"), options=Options(turn=0))
        (job,) = find_jobs([Path(folder) / "s.png"], position_um=position_um)
        transform = register_section(job, recipe).registered.transform
    pixel = np.array([[400.0, 150.0]])
    (mm,), ((ap, dv, ml),) = transform.to_reference(pixel), transform.to_atlas(pixel)
    grid = transform.forward.grid
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
    axes[0].imshow(bright_field(section))
    axes[0].set(title="section", xlabel="x (pixels)", ylabel="y (pixels)")
    right, bottom = grid.to_mm(np.array([[grid.shape[1] - 0.5, grid.shape[0] - 0.5]]))[0]
    axes[1].imshow(atlas.section(position_um)[0], cmap="gray", extent=(0, right, bottom, 0))
    axes[1].set(title="reference: the plane", xlabel="x (mm)", ylabel="y (mm)")
    side = atlas.template[:, :, atlas.template.shape[2] // 2 + 30].T
    axes[2].imshow(side, cmap="gray", extent=(0, 13200, 8000, 0))
    axes[2].set(
        title="atlas, from the side", xlabel="ap_um: front to back (µm)", ylabel="dv_um: top to bottom (µm)"
    )
    axes[2].axvline(position_um, color="#ffc107", linewidth=1)
    texts = (
        f"({pixel[0, 0]:.0f}, {pixel[0, 1]:.0f})",
        f"({mm[0]:.2f}, {mm[1]:.2f})",
        f"ap_um {ap:.0f}\ndv_um {dv:.0f}\nml_um {ml:.0f}",
    )
    for panel, (x, y), text in zip(axes, (pixel[0], mm, (ap, dv)), texts, strict=True):
        panel.plot(x, y, "o", color=RED, markersize=6)
        panel.annotate(text, (x, y), (10, 10), textcoords="offset points", color=RED, bbox=LABEL)
    figure.savefig(PICTURES / "frames.png", dpi=100, bbox_inches="tight")
    plt.close(figure)


def directions() -> None:
    """Draw the direction of a field, and the order in which two of them move an image and a point."""
    reference = phantom_atlas(image_shape=SHAPE, spacing_um=100).section(6500)[None]
    matrix = torch.tensor([[[0.93, 0.2, 2.0], [-0.17, 0.95, 26.0]]])
    outer = affine_to_dvf(matrix, SHAPE)
    inner = DisplacementField.generate(SHAPE, "smooth", seed=3, mean_fraction=0.025).dvf[None]
    moving = warp(reference, invert(compose(outer, inner)))
    between = warp(moving, outer)
    point = torch.tensor([[[165.0, 60.0]]])
    halfway, end = warp_points(point, inner), warp_points(point, compose(outer, inner))
    figure, axes = plt.subplots(2, 3, figsize=(12, 5.4))
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.94, wspace=0.42, hspace=0.16)
    shown = (
        (moving, end, "moving image", "q + dvf(q)"),
        (None, end, "", ""),
        (reference, point, "reference, registered image", "q"),
        (moving, end, "moving image", "p + outer(p)"),
        (between, halfway, "warp(moving, outer)", "p = q + inner(q)"),
        (warp(between, inner), point, "warp(warp(moving, outer), inner)", "q"),
    )
    for panel, (image, place, title, text) in zip(axes.flat, shown, strict=True):
        panel.axis("off")
        if image is not None:
            panel.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
            panel.set_title(title, fontsize=10)
            _marked(panel, (float(place[0, 0, 0]), float(place[0, 0, 1])), text)
    for left, right, name in (
        (axes[0, 0], axes[0, 2], "dvf"),
        (axes[1, 0], axes[1, 1], "outer"),
        (axes[1, 1], axes[1, 2], "inner"),
    ):
        _arrow(left, right, 0.07, BLUE, f"warp by {name}")
        _arrow(right, left, -0.07, RED, f"+ {name}")
    figure.savefig(PICTURES / "directions.png", dpi=100)
    plt.close(figure)


def _marked(panel: Axes, place: tuple[float, float], text: str) -> None:
    """Mark a point of a panel."""
    panel.plot(*place, "o", color=RED, markersize=6)
    panel.annotate(
        text, place, (0, 8), textcoords="offset points", ha="center", color=RED, fontsize=9, bbox=LABEL
    )


def _arrow(start: Axes, end: Axes, lift: float, color: str, text: str) -> None:
    """Draw an arrow from one panel to another, in the gap between them, with a text above it."""
    figure, is_right = start.figure, start.get_position().x0 < end.get_position().x0
    left, right = sorted((start.get_position(), end.get_position()), key=lambda box: box.x0)
    y = (left.y0 + left.y1) / 2 + lift
    ends = [(left.x1 + 0.008, y), (right.x0 - 0.008, y)]
    tail, head = ends if is_right else ends[::-1]
    figure.add_artist(
        FancyArrowPatch(tail, head, arrowstyle="-|>", mutation_scale=14, color=color, linewidth=1.6)
    )
    figure.text((tail[0] + head[0]) / 2, y + 0.012, text, ha="center", va="bottom", color=color, fontsize=9)


STEPS = (
    ("image, list,\nfolder, slide", "#eceff1"),
    ("Job", "#e3f2fd"),
    ("Located\n(no position given)", "#f3e5f5"),
    ("Section\nbright on dark", "#e3f2fd"),
    ("Placement\naffine map", "#e3f2fd"),
    ("Registered\nfield, quality", "#e8f5e9"),
    ("Outcome\nfolder, row", "#eceff1"),
)
BETWEEN = ("find_jobs", "locate", "read_section", "place", "network,\nrefine, points", "write")


def pipeline() -> None:
    """Draw the steps of one section through the code."""
    figure, axes = plt.subplots(figsize=(12, 1.25), layout="constrained")
    axes.set(xlim=(0, len(STEPS) * 2), ylim=(0.3, 1.6))
    axes.axis("off")
    boxes = []
    for number, (text, color) in enumerate(STEPS):
        box = {"boxstyle": "round,pad=0.45", "facecolor": color, "edgecolor": "0.5"}
        if text.startswith("Located"):  # a step that most sections skip
            box["linestyle"] = "--"
        written = axes.text(2 * number + 0.9, 0.8, text, ha="center", va="center", fontsize=9.5, bbox=box)
        boxes.append(written)
    figure.canvas.draw()
    to_data = axes.transData.inverted()
    patches = filter(None, (box.get_bbox_patch() for box in boxes))
    edges = [patch.get_window_extent().transformed(to_data) for patch in patches]
    for text, left, right in zip(BETWEEN, edges, edges[1:], strict=False):
        axes.annotate(
            "", (right.x0 - 0.03, 0.8), (left.x1 + 0.03, 0.8), arrowprops={"arrowstyle": "->", "color": "0.4"}
        )
        middle = (left.x1 + right.x0) / 2
        axes.text(middle, 1.3, text, ha="center", va="center", fontsize=8, color="0.35", style="italic")
    figure.savefig(PICTURES / "pipeline.png", dpi=110)
    plt.close(figure)


DRAWN: Iterable[Callable[[], None]] = (
    vdclipper,
    losses_of_images,
    losses_of_fields,
    orientations,
    frames,
    directions,
    pipeline,
)

if __name__ == "__main__":
    for draw in DRAWN:
        if not sys.argv[1:] or draw.__name__ in sys.argv[1:]:
            draw()
