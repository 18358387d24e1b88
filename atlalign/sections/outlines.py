"""Outlines of sections: polygons in pixels of the slide, from masks and back, and cut by a line."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Ring = NDArray[np.float64]
"""A polygon, (N, 2) as (x, y)."""
Outline = tuple[Ring, ...]
"""The polygons around the parts of a section; their holes are filled."""
Line = tuple[float, float, float, float]
"""x and y of two points."""

_LEAST_CORNERS = 3
_TOLERANCE_PX = 0.4  # of the labels


def outline_of(mask: NDArray[np.bool_], scale: NDArray[np.float64], *, margin_px: int) -> Outline:
    """Return the outline of a mask.

    Args:
        mask: (h, w).
        scale: The number of image pixels per pixel of the mask, along x and y.
        margin_px: The distance of the outline outside the mask, in pixels of the mask.
    """
    from contourpy import contour_generator

    padded = np.pad(mask, margin_px + 1)
    if margin_px:
        padded = ndimage.binary_dilation(padded, iterations=margin_px)
    lines = contour_generator(z=padded.astype(float)).lines(0.5)
    rings = (_simplified(np.asarray(line)) for line in lines if _is_outer(np.asarray(line)))
    return tuple(scale * (ring - margin_px - 1 + 0.5) - 0.5 for ring in rings if len(ring) >= _LEAST_CORNERS)


def _is_outer(ring: Ring) -> bool:
    """Return whether a ring encloses tissue rather than a hole; contourpy draws holes in the other direction."""
    return _signed_area(ring) > 0


def _signed_area(ring: Ring) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def _simplified(ring: Ring) -> Ring:
    """Return a closed ring without the corners that nearly lie on the line between their neighbours."""
    ring = ring[:-1] if np.array_equal(ring[0], ring[-1]) else ring
    if len(ring) <= 2 * _LEAST_CORNERS:
        return ring
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    halves = ring[: far + 1], np.concatenate([ring[far:], ring[:1]])
    return np.concatenate([_thinned(half)[:-1] for half in halves])


def _thinned(line: Ring) -> Ring:
    """Return a line without corners within the tolerance (Douglas & Peucker)."""
    kept = np.zeros(len(line), bool)
    kept[[0, -1]] = True
    open_parts = [(0, len(line) - 1)]
    while open_parts:
        start, stop = open_parts.pop()
        if stop - start < 2:
            continue
        along = line[stop] - line[start]
        between = line[start + 1 : stop] - line[start]
        length = float(np.hypot(*along))
        off = np.abs(between @ np.array([-along[1], along[0]])) / length if length else np.hypot(*between.T)
        if off.max() > _TOLERANCE_PX:
            middle = start + 1 + int(off.argmax())
            kept[middle] = True
            open_parts += [(start, middle), (middle, stop)]
    return line[kept]


def filled(outline: Sequence[Ring], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask (h, w) of the inside of an outline in pixels."""
    image = Image.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(image)
    for ring in outline:
        pen.polygon([(float(x), float(y)) for x, y in ring], fill=1)
    return np.asarray(image, bool)


def bounds(outline: Outline) -> tuple[float, float, float, float]:
    """Return the box around an outline: left, top, right, bottom."""
    points = np.concatenate(outline)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def centre(outline: Outline) -> tuple[float, float]:
    """Return the centre of the box around an outline."""
    left, top, right, bottom = bounds(outline)
    return (left + right) / 2, (top + bottom) / 2


def cut_by(outline: Outline, line: Line) -> tuple[Outline, Outline]:
    """Return the parts of an outline on both sides of the straight line through two points; one may be empty."""
    x1, y1, x2, y2 = line
    normal = np.array([y2 - y1, x1 - x2])
    sides = []
    for sign in (1.0, -1.0):
        halves = (_clipped(ring, sign * normal, np.array([x1, y1])) for ring in outline)
        sides.append(tuple(half for half in halves if len(half) >= _LEAST_CORNERS))
    return sides[0], sides[1]


def _clipped(ring: Ring, normal: NDArray[Any], origin: NDArray[Any]) -> Ring:
    """Return the part of a polygon in the half plane that a normal points to (Sutherland & Hodgman)."""
    height = (ring - origin) @ normal
    corners: list[NDArray[Any]] = []
    for k, (point, own) in enumerate(zip(ring, height, strict=True)):
        before, other = ring[k - 1], height[k - 1]
        if (own >= 0) != (other >= 0):
            corners.append(before + (point - before) * other / (other - own))
        if own >= 0:
            corners.append(point)
    return np.array(corners).reshape(-1, 2)
