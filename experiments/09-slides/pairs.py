"""Makes images of one section, whole or in parts, and of several sections, from the real sections."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.spatial import KDTree

from slides import PIXEL_UM

Plane = NDArray[np.float32]
"""A section (h, w): bright tissue on a ground of 0, in [0, 1]."""

_STEPS = {"sections": 2, "ish": 6}
"""The folders, and the step from one section to the next that is used."""

_EMPTY = 0.03  # darker pixels are no tissue
_SMOOTH_PX = 3.0
_MARGIN_PX = 30


class Case(NamedTuple):
    """An image and the number of its sections.

    Attributes:
        kind: What it shows.
        stain: The folder of its sections, or "mixed".
        pixels: (h, w) uint8.
        count: The number of sections.
    """

    kind: str
    stain: str
    pixels: NDArray[np.uint8]
    count: int


def planes(stain: str) -> list[Plane]:
    """Return the real sections of a folder, in the order of their names."""
    folder = Path(os.environ["ATLALIGN_TEST_DATA"]) / stain
    slices = sorted(json.loads((folder / "sections.json").read_text())["slices"], key=lambda s: s["filename"])
    return [_plane(folder / entry["filename"], entry) for entry in slices]


def _plane(path: Path, entry: dict[str, Any]) -> Plane:
    image = Image.open(path).convert("RGB")
    voxels = float(np.linalg.norm(entry["anchoring"][3:6]))
    width = round(voxels * 25 / PIXEL_UM)
    image = image.resize((width, round(width * image.height / image.width)), Image.Resampling.BOX)
    pixels = np.asarray(image, np.float32) / 255
    plane = 1 - pixels.min(axis=-1) if pixels.mean() > 0.5 else pixels.max(axis=-1)
    plane = np.where(plane > _EMPTY, plane, 0)
    return _cropped(plane / np.percentile(plane[plane > 0], 99)).clip(0, 1)


def _tissue(plane: Plane) -> NDArray[np.bool_]:
    return np.asarray(ndimage.gaussian_filter(plane, _SMOOTH_PX) > _EMPTY / 2)


def _cropped(plane: NDArray[Any], by: int = 0) -> Plane:
    rows, columns = np.nonzero(_tissue(plane))
    inside = plane[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.pad(inside, by).astype(np.float32)


def turned(plane: Plane, degrees: float) -> Plane:
    """Return a section turned counter-clockwise."""
    return _cropped(ndimage.rotate(plane, degrees, order=1))


# --- one section ------------------------------------------------------------------------------------------------------


def half(plane: Plane, random: np.random.Generator) -> Plane:
    """Return one hemisphere."""
    middle = _middle(plane)
    return _cropped(plane[:, :middle] if random.random() < 0.5 else plane[:, middle:])


def _middle(plane: Plane) -> int:
    return round(float(np.nonzero(_tissue(plane))[1].mean()))


def apart(plane: Plane, first: NDArray[np.bool_], angle: float, gap_mm: float, turn: float) -> Plane:
    """Return a section with one part moved away by a gap in the direction of an angle, and turned a little."""
    by = round(gap_mm * 1000 / PIXEL_UM) + 60
    plane, first = np.pad(plane, by), np.pad(first, by)
    shift = gap_mm * 1000 / PIXEL_UM * np.array([np.sin(angle), np.cos(angle)])
    moved = ndimage.rotate(plane * first, turn, reshape=False, order=1)
    return _cropped(np.maximum(plane * ~first, ndimage.shift(moved, shift, order=1)))


def hemispheres(plane: Plane, random: np.random.Generator, gap_mm: tuple[float, float] = (0.2, 1.0)) -> Plane:
    """Return a section whose hemispheres lie apart."""
    first = np.broadcast_to(np.arange(plane.shape[1]) < _middle(plane), plane.shape)
    return apart(plane, first, np.pi, random.uniform(*gap_mm), random.uniform(-4, 4))


def torn(plane: Plane, random: np.random.Generator) -> Plane:
    """Return a section torn along a ragged line that leaves 15 to 45 % on one side."""
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.indices(plane.shape)
    rough = 160 * ndimage.gaussian_filter(random.standard_normal(plane.shape), 6)
    along = -x * np.cos(angle) - y * np.sin(angle) + rough
    first = along < np.quantile(along[_tissue(plane)], random.uniform(0.15, 0.45))
    return apart(plane, first, angle, random.uniform(0.3, 1.0), random.uniform(-6, 6))


def upper_part(plane: Plane, random: np.random.Generator) -> Plane:
    """Return a section whose upper part, such as a cerebellum or a cortex, is detached."""
    y = np.indices(plane.shape)[0]
    first = y < np.quantile(y[_tissue(plane)], random.uniform(0.25, 0.5))
    return apart(plane, first, -np.pi / 2, random.uniform(0.3, 1.5), random.uniform(-6, 6))


def crumbs(plane: Plane, random: np.random.Generator) -> Plane:
    """Return a section with twelve crumbs of 0.2 to 0.8 mm around it."""
    image = np.pad(plane, 80)
    far = ndimage.distance_transform_edt(~_tissue(image))
    y, x = np.indices(image.shape)
    for _ in range(12):
        rows, columns = np.nonzero(far > 20)
        k = random.integers(len(rows))
        radius = random.uniform(0.1, 0.4) * 1000 / PIXEL_UM
        disc = np.hypot(y - rows[k], x - columns[k]) < radius
        image[disc] = random.uniform(0.3, 1)
    return image


PARTS: dict[str, Callable[[Plane, np.random.Generator], Plane]] = {
    "whole": lambda plane, _: plane,
    "half": half,
    "hemispheres 0.2 to 1 mm apart": hemispheres,
    "hemispheres 1 to 4 mm apart": lambda plane, random: hemispheres(plane, random, (1.0, 4.0)),
    "torn": torn,
    "upper part detached": upper_part,
    "with crumbs": crumbs,
}


# --- several sections -------------------------------------------------------------------------------------------------


def beside(plane: Plane, other: Plane, degrees: float, gap_mm: float) -> Plane:
    """Return two sections: the other one lies in a direction from the first, clockwise from the right, at a gap."""
    direction = np.array([np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))])
    centred = (np.array(plane.shape) - other.shape) / 2
    tree, rim = KDTree(_rim(plane)), _rim(other) + centred
    far = np.arange(sum(plane.shape) + sum(other.shape) + gap_mm * 1000 / PIXEL_UM, 0, -2)
    # The outermost place that is too near lies just inside the wanted one.
    near = (ahead for ahead in far if tree.query(rim + ahead * direction)[0].min() * PIXEL_UM / 1000 < gap_mm)
    top, left = np.round(centred + (next(near, 0.0) + 2) * direction).astype(int)
    above, before = max(0, -top), max(0, -left)
    shape = np.maximum(np.add(plane.shape, (above, before)), np.add(other.shape, (max(top, 0), max(left, 0))))
    canvas = np.zeros(shape, np.float32)
    canvas[above:, before:][: plane.shape[0], : plane.shape[1]] = plane
    area = canvas[max(top, 0) :, max(left, 0) :][: other.shape[0], : other.shape[1]]
    np.maximum(area, other, out=area)
    return _cropped(canvas)


def _rim(plane: Plane) -> NDArray[np.float64]:
    mask = np.pad(_tissue(plane), 1)
    return np.argwhere(mask & ~ndimage.binary_erosion(mask)) - 1.0


_WHERE = {"side by side": 0.0, "stacked": 90.0, "diagonal": 45.0}


def several(
    plane: Plane, others: list[Plane], random: np.random.Generator
) -> Iterator[tuple[str, Plane, int]]:
    """Yield images of a section with others: pairs in all directions, and rows and groups of three or four."""
    one, two, three = (turned(other, random.uniform(-15, 15)) for other in others)
    for where, degrees in _WHERE.items():
        yield where, beside(plane, one, degrees, random.uniform(0.15, 3.0)), 2
    free = turned(others[1], random.uniform(-180, 180))
    yield "turned freely", beside(plane, free, random.uniform(0, 360), random.uniform(0.15, 3.0)), 2
    small = ndimage.zoom(two, random.uniform(0.6, 0.8), order=1)
    yield "of different size", beside(plane, small, random.uniform(0, 360), random.uniform(0.15, 3.0)), 2
    sides = [section[:, : _middle(section)] for section in (plane, others[0])]
    halves = beside(_cropped(sides[0]), turned(_cropped(sides[1]), random.uniform(-15, 15)), 0, 1.0)
    yield "the same half of two", halves, 2
    row = beside(beside(plane, one, 0, random.uniform(0.2, 2)), two, 0, random.uniform(0.2, 2))
    yield "three in a row", row, 3
    square = beside(
        beside(plane, one, 0, random.uniform(0.2, 2)), beside(two, three, 0, random.uniform(0.2, 2)), 90, 0.5
    )
    yield "four in a square", square, 4


# --- images -----------------------------------------------------------------------------------------------------------


def drawn(plane: Plane, *, bright: bool, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return an image on a bright ground, or on a dark one with haze, with noise."""
    plane = np.pad(plane, _MARGIN_PX)
    if bright:
        image = 0.92 * (1 - 0.9 * plane)
    else:
        haze = ndimage.gaussian_filter(plane, 12) * 0.1 + ndimage.gaussian_filter(plane, 60) * 0.05
        image = 0.05 + 0.8 * plane + haze
    image = image + random.normal(0, 0.008, image.shape)
    return np.asarray((image.clip(0, 1) * 255).astype(np.uint8))


def cases(parity: int) -> Iterator[Case]:
    """Yield the images made of sections of a parity: stained ones, gene expression, and one of each."""
    pools = {stain: planes(stain) for stain in _STEPS}
    for stain, pool in pools.items():
        for place in range(parity, len(pool), _STEPS[stain]):
            random = np.random.default_rng((place, stain == "ish"))
            bright = stain == "sections" and place // 2 % 3 != 2
            for kind, made in PARTS.items():
                image = made(pool[place], random)
                yield Case(kind, stain, drawn(image, bright=bright, random=random), 1)
            random = np.random.default_rng((place, stain == "ish", 1))
            others = [pool[(place + 2 * step) % (len(pool) // 2 * 2)] for step in (1, 2, 3)]
            for kind, image, count in several(pool[place], others, random):
                yield Case(kind, stain, drawn(image, bright=bright, random=random), count)
    for place in range(parity, len(pools["sections"]), 2):
        random = np.random.default_rng((place, 2))
        expressed = pools["ish"][(2 * place + parity) % (len(pools["ish"]) // 2 * 2)]
        image = beside(
            0.7 * pools["sections"][place], expressed, random.uniform(0, 360), random.uniform(0.15, 3.0)
        )
        yield Case("of different stains", "mixed", drawn(image, bright=False, random=random), 2)
