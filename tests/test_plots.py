"""Pictures show what they claim to: read back from the figure's parts."""

import ast
from pathlib import Path

import numpy as np
import torch
from matplotlib.collections import LineCollection

from atlalign import plots
from atlalign.plots import Panel, draw_grid, overlay, registration_figure, section_overlay


def test_overlay_is_grey_where_images_agree_and_coloured_where_not():
    reference, other = torch.tensor([[0.5, 1.0, 0.0]]), torch.tensor([[0.5, 0.0, 1.0]])
    rgb = overlay(reference, other)
    assert rgb[0].tolist() == [[0.5, 0.5, 0.5], [1, 0, 1], [0, 1, 0]]  # grey, magenta, green


def test_the_section_overlay_outlines_regions_at_the_left_and_shows_before_and_after_at_the_right():
    image = np.full((64, 96), 200, np.uint8)
    white, black = torch.ones(32, 48), torch.zeros(32, 48)

    def halves(shape):
        return np.indices(shape)[1] < shape[1] // 2

    picture = section_overlay(image, white, black, white, halves)
    height, width = picture.shape[:2]
    thumbnail_width = height * 96 // 64
    assert (height, width) == (640, 2 * thumbnail_width - 480)
    section = picture[:, :thumbnail_width]
    is_outline = (section == [255, 200, 0]).all(axis=-1)
    assert is_outline[:, thumbnail_width // 2 - 1].all()
    assert is_outline.sum() == height
    assert (section[~is_outline] == 200).all()
    before, after = picture[100, -100], picture[-100, -100]
    assert (before.tolist(), after.tolist()) == ([255, 0, 255], [255, 255, 255])
    assert (section_overlay(image, white, black, white, lambda shape: None)[:, :thumbnail_width] == 200).all()


def test_matplotlib_is_imported_only_to_draw():
    """Registering sections uses `overlay` and would wait a second for matplotlib."""
    modules = [
        node.module
        for path in Path(plots.__file__).parent.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
    ]
    assert "atlalign.geometry" in modules
    assert not any(module.startswith("matplotlib") for module in modules)


def panel(**replace) -> Panel:
    image = torch.rand(24, 36)
    dvf = torch.stack([torch.full((24, 36), 3.0), torch.full((24, 36), -2.0)])
    return Panel(**{"reference": image, "moving": image, "registered": image, "dvf": dvf, **replace})


def test_the_grid_is_displaced_by_the_field():
    axes = registration_figure([panel()]).axes[5]
    axes.clear()
    draw_grid(axes, panel().dvf)
    (lines,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    first = lines.get_segments()[0]
    np.testing.assert_allclose(first[0], [3, -2])  # pixel (0, 0) lies at (3, −2) in the moving image
    np.testing.assert_allclose(first[-1], [38, -2])


def test_a_row_shows_the_error_before_and_after():
    true = panel().dvf + torch.tensor([0.0, 1.0]).view(2, 1, 1)
    figure = registration_figure([panel(true_dvf=true, title="image 7, 500 µm"), panel()])
    assert figure.axes[0].get_ylabel() == "image 7, 500 µm"
    assert figure.axes[6].get_xlabel() == f"{10**0.5:.1f} → 1.0 px"  # |(3, −1)| and |(0, 1)|
    shown = figure.axes[6].images[0].get_array()
    assert shown.shape == (24, 36)
    np.testing.assert_allclose(shown, 1)
    assert not figure.axes[13].axison  # without a truth there is no error to show
    assert len(registration_figure([panel()]).axes) == 6
