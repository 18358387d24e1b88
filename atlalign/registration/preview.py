"""The preview of a registered section."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign import plots
from atlalign.io.intensity import slide_color
from atlalign.pages import EXPECTED_ERROR, SECTION, TEMPLATE, Preview, outline_path, picture_uri
from atlalign.registration.bands import warp_in_bands
from atlalign.registration.grid import Grid
from atlalign.registration.transform import SectionTransform

_WIDTH_PX = 400


def preview_of(
    transform: SectionTransform,
    pixels: NDArray[Any],
    template: NDArray[np.uint8],
    labels: NDArray[Any] | None,
    error_um: NDArray[np.float32] | None = None,
) -> Preview:
    """Return the preview of a section.

    Args:
        transform: The section's transform.
        pixels: The section (h, w) or (h, w, 3).
        template: The reference in 8 bits, of any size that covers its frame; the page scales it.
        labels: The reference's labels, of any size that covers its frame.
        error_um: The expected error on the template's grid; None if it is unknown.
    """
    grid = _grid_of(transform)
    images = {TEMPLATE: picture_uri(template), SECTION: picture_uri(_registered(transform, pixels, grid))}
    if error_um is not None:
        images[EXPECTED_ERROR] = picture_uri(plots.error_map(error_um, template))
    return Preview(grid.shape, images, "" if labels is None else outline_path(_nearest(labels, grid.shape)))


def _grid_of(transform: SectionTransform) -> Grid:
    grid = transform.forward.grid
    height = (grid.shape[0] - 1) * grid.pixel_um[1] / ((grid.shape[1] - 1) * grid.pixel_um[0]) * _WIDTH_PX
    return grid.with_shape((max(2, round(height)), _WIDTH_PX))


def _registered(transform: SectionTransform, pixels: NDArray[Any], grid: Grid) -> NDArray[np.uint8]:
    """Return the section registered on a coarse grid, after reducing it to that resolution."""
    finest = max(min(transform.section.pixel_um), min(grid.pixel_um))
    small = plots.thumbnail(pixels, transform.section.finer(finest).shape[0])
    source = transform.section.with_shape((small.shape[0], small.shape[1]))
    fill = slide_color(small)
    return np.concatenate(list(warp_in_bands(small, source, transform.forward, grid, fill=fill)))


def _nearest(labels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return labels (h, w) resampled to another size, with aligned corners."""
    rows, columns = (
        np.linspace(0, old - 1, new).round().astype(int) for old, new in zip(labels.shape, shape, strict=True)
    )
    return np.asarray(labels[rows[:, None], columns])
