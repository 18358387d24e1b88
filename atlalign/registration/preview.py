"""What a section's registration looks like at a glance: small pictures and outlines, kept beside its results."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.images import read_image, read_labels
from atlalign.io.intensity import slide_color
from atlalign.pages import outline_path, picture_uri
from atlalign.registration.transform import LABELS, Grid, SectionTransform, warp_in_bands

PREVIEW, TEMPLATE, SECTION = "preview.json", "template", "section"
"""The file of a preview, and the names of its pictures."""

_WIDTH_PX = 400
_WHITE = 99.9  # percentile of brightness: a few pixels may be brighter than white


class Preview(NamedTuple):
    """Pictures of a registered section on one grid of the reference.

    Attributes:
        shape: The grid's (H, W).
        images: Data URIs by name: `TEMPLATE` and `SECTION`, the latter registered.
        outlines: The borders of the reference's regions, as an SVG path on that grid.
    """

    shape: tuple[int, int]
    images: dict[str, str]
    outlines: str

    def write(self, folder: Path) -> None:
        """Write the preview into a section's folder."""
        (folder / PREVIEW).write_text(json.dumps(self._asdict()) + "\n", encoding="utf-8")


def preview_of(
    transform: SectionTransform,
    pixels: NDArray[Any],
    template: NDArray[np.uint8],
    labels: NDArray[Any] | None,
) -> Preview:
    """Return the preview of a section.

    Args:
        transform: Of the section.
        pixels: The section (h, w) or (h, w, 3).
        template: The reference in 8 bits, of any size that covers its frame.
        labels: The reference's labels, likewise.
    """
    grid = _grid_of(transform)
    return Preview(
        grid.shape,
        {
            TEMPLATE: picture_uri(resized(template, grid.shape)),
            SECTION: picture_uri(_registered(transform, pixels, grid)),
        },
        "" if labels is None else outline_path(nearest(labels, grid.shape)),
    )


def read_preview(folder: Path) -> Preview:
    """Return the preview in a section's folder, made from the results if an older version has written these.

    Raises:
        InputError: If it cannot be read.
    """
    if not (folder / PREVIEW).exists():
        return _from_results(folder)
    try:
        found = json.loads((folder / PREVIEW).read_text(encoding="utf-8"))
        return Preview(tuple(found["shape"]), dict(found["images"]), found["outlines"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / PREVIEW}: expected a preview, cannot read it ({error})") from error


def _from_results(folder: Path) -> Preview:
    transform = SectionTransform.load(folder)
    shape = _grid_of(transform).shape
    registered, template = (read_image(folder / f"{name}.tif").pixels for name in ("registered", "reference"))
    labels = read_labels(folder / LABELS) if (folder / LABELS).exists() else None
    return Preview(
        shape,
        {
            TEMPLATE: picture_uri(resized(in_8_bits(template), shape)),
            SECTION: picture_uri(resized(in_8_bits(strided(registered, shape[0])), shape)),
        },
        "" if labels is None else outline_path(nearest(labels, shape)),
    )


def _grid_of(transform: SectionTransform) -> Grid:
    grid = transform.forward.grid
    height = (grid.shape[0] - 1) * grid.pixel_um[1] / ((grid.shape[1] - 1) * grid.pixel_um[0]) * _WIDTH_PX
    return grid.with_shape((max(2, round(height)), _WIDTH_PX))


def _registered(transform: SectionTransform, pixels: NDArray[Any], grid: Grid) -> NDArray[np.uint8]:
    """Return the registered section on a coarse grid, from a section that is no finer."""
    finest = max(min(transform.section.pixel_um), min(grid.pixel_um))
    shape = transform.section.finer(finest).shape
    small = resized(in_8_bits(strided(pixels, shape[0])), shape)
    source = transform.section.with_shape(shape)
    return np.concatenate(
        list(warp_in_bands(small, source, transform.forward, grid, fill=slide_color(small)))
    )


def strided(pixels: NDArray[Any], height: int) -> NDArray[Any]:
    """Return every n-th pixel of an image, at least twice as many as `height` wants: averaging would need memory."""
    step = max(1, math.floor(pixels.shape[0] / (2 * height)))
    return pixels[::step, ::step]


def in_8_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image in 8 bits; a dark one, or one of another type, as bright as its brightest pixels allow."""
    white = float(np.percentile(pixels, _WHITE))
    if pixels.dtype == np.uint8 and white >= 128:
        return pixels
    scaled = pixels.astype(np.float32) / max(white, 1e-6)
    return np.asarray(scaled.clip(0, 1) * 255).round().astype(np.uint8)


def resized(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image (h, w) or (h, w, 3) of another size, corners aligned."""
    planar = torch.from_numpy(np.ascontiguousarray(image.reshape(*image.shape[:2], -1))).permute(2, 0, 1)[
        None
    ]
    # Not `resize_images`: its wide Gaussian takes ten times as long, for a picture to look at.
    scaled = F.interpolate(planar, shape, mode="bilinear", align_corners=True, antialias=True)
    return np.asarray(scaled[0].permute(1, 2, 0)).reshape(*shape, *image.shape[2:])


def nearest(labels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return labels (h, w) at another size, corners aligned."""
    rows, columns = (
        np.linspace(0, old - 1, new).round().astype(int) for old, new in zip(labels.shape, shape, strict=True)
    )
    return np.asarray(labels[rows[:, None], columns])
