"""Makes slides: real sections, shuffled and turned, with dust, a label, bubbles, a torn section and a close pair."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

PIXEL_UM = 25.0
_SECTION_UM = 12.5  # of a pixel in the section images
_CLEAR = 0.97  # brighter pixels are background in these images
_ORDERS = ("rows", "columns", "serpentine")


@dataclass(frozen=True)
class Recipe:
    """The properties of a slide.

    Attributes:
        count: Number of sections.
        fluorescent: Bright tissue on a dark background with haze.
        hemispheres: Each section is two halves, up to 1 mm apart.
        torn: Number of sections torn in two, 0.3 to 0.7 mm apart.
        close: Two neighbours are 0.1 mm apart.
        touching: Two neighbours overlap a little.
        dust: Number of specks.
        label: Add a paper label with text at the left.
        bubbles: Number of outlines of bubbles.
        coverslip: Show the edges of a coverslip.
        turns: The largest turn of a section in degrees.
        order: rows, columns or serpentine.
    """

    count: int = 6
    fluorescent: bool = False
    hemispheres: bool = False
    torn: int = 1
    close: bool = True
    touching: bool = False
    dust: int = 25
    label: bool = True
    bubbles: int = 2
    coverslip: bool = True
    turns: float = 180.0
    order: str = "rows"


class Slide(NamedTuple):
    """A slide and its truth.

    Attributes:
        image: (h, w, 3) uint8.
        truth: (h, w), each section's place in the order, from 1; 0 outside of sections.
        turns: The counter-clockwise turns in degrees that make the sections upright.
        close: The places of two sections that nearly touch or overlap; empty if there are none.
    """

    image: NDArray[np.uint8]
    truth: NDArray[np.int32]
    turns: list[float]
    close: tuple[int, ...]


def sections(parity: int) -> list[NDArray[np.float32]]:
    """Return every second real section as (h, w, 3), the fraction of absorbed light, at `PIXEL_UM`."""
    folder = Path(os.environ["ATLALIGN_TEST_DATA"]) / "sections"
    names = [entry["filename"] for entry in json.loads((folder / "sections.json").read_text())["slices"]]
    return [_section(folder / name) for name in sorted(names)[parity::2]]


def _section(path: Path) -> NDArray[np.float32]:
    image = Image.open(path).convert("RGB")
    factor = PIXEL_UM / _SECTION_UM
    image = image.resize((round(image.width / factor), round(image.height / factor)), Image.Resampling.BOX)
    return 1 - np.asarray(image, np.float32) / 255


def make_slide(recipe: Recipe, seed: int) -> Slide:
    """Return a slide of sections of the seed's parity."""
    random = np.random.default_rng(seed)
    pool = sections(seed % 2)
    drawn = [pool[k] for k in (list(random.permutation(len(pool))) * 2)[: recipe.count]]
    torn = set(random.permutation(recipe.count)[: recipe.torn].tolist())
    turns = random.uniform(-recipe.turns, recipe.turns, recipe.count)
    pieces = []
    for place, (section, turn) in enumerate(zip(drawn, turns, strict=True)):
        if recipe.hemispheres:
            section = _halved(section, random)
        elif place in torn:
            section = _torn(section, random)
        pieces.append(_turned(section, -turn))
    slide = _Canvas(recipe, pieces, random)
    return slide.finished(list(turns))


def _tissue(section: NDArray[np.float32]) -> NDArray[np.bool_]:
    mask = section.max(axis=-1) > 1 - _CLEAR
    return np.asarray(ndimage.binary_opening(mask, np.ones((2, 2))))


def _padded(section: NDArray[np.float32], by: int) -> NDArray[np.float32]:
    return np.pad(section, ((by, by), (by, by), (0, 0)))


def _halved(section: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return the section cut at its midline, with its halves apart."""
    section = _padded(section, 40)
    middle = round(np.nonzero(_tissue(section))[1].mean())
    return _apart(section, np.arange(section.shape[1])[None, :] < middle, (1.0, 0.0), random, (0.2, 1.0))


def _torn(section: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Return the section torn along a ragged line that leaves 15 to 35 % on one side."""
    section = _padded(section, 40)
    angle = random.uniform(0, 2 * np.pi)
    direction = (float(np.cos(angle)), float(np.sin(angle)))
    y, x = np.indices(section.shape[:2])
    along = x * direction[0] + y * direction[1]
    along = along + 8 * ndimage.gaussian_filter(random.standard_normal(along.shape), 6) / 0.05
    where = np.quantile(along[_tissue(section)], random.uniform(0.15, 0.35))
    return _apart(section, along < where, direction, random, (0.3, 0.7))


def _apart(
    section: NDArray[np.float32],
    first: NDArray[np.bool_],
    direction: tuple[float, float],
    random: np.random.Generator,
    gap_mm: tuple[float, float],
) -> NDArray[np.float32]:
    gap = random.uniform(*gap_mm) * 1000 / PIXEL_UM
    shift = (-direction[1] * gap, -direction[0] * gap, 0)
    turn = random.uniform(-4, 4)
    moved = ndimage.rotate(section * first[..., None], turn, reshape=False, order=1)
    moved = ndimage.shift(moved, shift, order=1)
    return np.maximum(section * ~first[..., None], moved)


def _turned(section: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    turned = ndimage.rotate(section, degrees, order=1)
    rows, columns = np.nonzero(_tissue(turned))
    return np.asarray(turned[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])


class _Canvas:
    """Sections on a grid of rows and columns."""

    def __init__(
        self, recipe: Recipe, pieces: list[NDArray[np.float32]], random: np.random.Generator
    ) -> None:
        self.recipe, self.random = recipe, random
        self.rows = 1 if recipe.count <= 4 else 2 if recipe.count <= 8 else 3
        self.columns = -(-recipe.count // self.rows)
        self.left = 640 if recipe.label else 60
        places = self._places()
        at = [(row * self.columns + column) for row, column in places]
        heights = [
            max((p.shape[0] for p, k in zip(pieces, at, strict=True) if k // self.columns == row), default=0)
            for row in range(self.rows)
        ]
        widths = [
            max((p.shape[1] for p, k in zip(pieces, at, strict=True) if k % self.columns == column))
            for column in range(self.columns)
        ]
        gap = 50
        shape = (sum(heights) + (self.rows + 1) * gap + 60, self.left + sum(widths) + self.columns * gap + 60)
        self.tissue = np.zeros((*shape, 3), np.float32)
        self.truth = np.zeros(shape, np.int32)
        close = self._close(places)
        for number, (piece, (row, column)) in enumerate(zip(pieces, places, strict=True), start=1):
            slack = (heights[row] - piece.shape[0], widths[column] - piece.shape[1])
            top = 40 + sum(heights[:row]) + row * gap + round(slack[0] * random.uniform(0.3, 0.7))
            left = (
                self.left + sum(widths[:column]) + column * gap + round(slack[1] * random.uniform(0.2, 0.8))
            )
            before = self.truth == close[0] if close and number == close[1] else None
            self._put(piece, number, top, left, before)
        self.close = close

    def _places(self) -> list[tuple[int, int]]:
        """Return the row and column of each section in the order of the slide."""
        if self.recipe.order == "columns":
            found = [(row, column) for column in range(self.columns) for row in range(self.rows)]
        else:
            found = [(row, column) for row in range(self.rows) for column in range(self.columns)]
        if self.recipe.order == "serpentine":
            found = [(row, self.columns - 1 - column if row % 2 else column) for row, column in found]
        return found[: self.recipe.count]

    def _close(self, places: list[tuple[int, int]]) -> tuple[int, ...]:
        if not (self.recipe.close or self.recipe.touching):
            return ()
        pairs = [
            (a, b)
            for a, first in enumerate(places, 1)
            for b, second in enumerate(places, 1)
            if first[0] == second[0] and second[1] == first[1] + 1
        ]
        # The second section of the pair must be drawn after the first.
        pairs = [(a, b) for a, b in pairs if a < b]
        return pairs[self.random.integers(len(pairs))] if pairs else ()

    def _put(
        self, piece: NDArray[np.float32], number: int, top: int, left: int, before: NDArray[np.bool_] | None
    ) -> None:
        mask = _tissue(piece)
        if before is not None:
            left = self._moved(mask, top, left, before)
        area = (slice(top, top + piece.shape[0]), slice(left, left + piece.shape[1]))
        self.tissue[area] = np.maximum(self.tissue[area], piece)
        self.truth[area][mask] = number

    def _moved(self, mask: NDArray[np.bool_], top: int, left: int, before: NDArray[np.bool_]) -> int:
        """Return the left edge at which a piece nearly touches another, or slightly overlaps it."""
        wanted = -3 if self.recipe.touching else 4
        gaps = []
        for row in np.flatnonzero(mask.any(axis=1)):
            others = np.flatnonzero(before[top + row])
            if len(others):
                gaps.append(left + int(np.flatnonzero(mask[row])[0]) - int(others[-1]))
        return left - (min(gaps) - wanted) if gaps else left

    def finished(self, turns: list[float]) -> Slide:
        shape = self.truth.shape
        light = np.array([0.93, 0.92, 0.90]) * self._shade(shape)[..., None]
        image = light * (1 - self.tissue)
        if self.recipe.fluorescent:
            glow = self.tissue.mean(axis=-1)
            haze = ndimage.gaussian_filter(glow, 12) * 0.2 + ndimage.gaussian_filter(glow, 60) * 0.1
            image = np.repeat((0.06 * self._shade(shape) + 0.8 * glow + haze)[..., None], 3, axis=-1)
        image = self._with_dirt(image)
        image = image + self.random.normal(0, 0.008, shape)[..., None]
        return Slide((image.clip(0, 1) * 255).astype(np.uint8), self.truth, turns, self.close)

    def _shade(self, shape: tuple[int, int]) -> NDArray[Any]:
        y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
        a, b, c = self.random.uniform(-0.04, 0.04, 3)
        return 1 + a * x + b * y + c * x * x

    def _with_dirt(self, image: NDArray[Any]) -> NDArray[Any]:
        """Draw label, bubbles, coverslip and dust, all outside of the sections."""
        drawn = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8))
        pen = ImageDraw.Draw(drawn)
        height, width = self.truth.shape
        far = ndimage.distance_transform_edt(self.truth == 0)
        dark = not self.recipe.fluorescent
        ink = (40, 40, 50) if dark else (230, 230, 230)
        if self.recipe.label and dark:
            pen.rectangle((20, 30, 540, height - 30), fill=(214, 212, 190), outline=(120, 120, 110))
            for line in range(5):
                pen.text((60, 60 + 70 * line), f"Mouse 17  AB{line}  2021", fill=(20, 20, 20), font_size=48)
        if self.recipe.coverslip:
            shade = (170, 170, 165) if dark else (40, 40, 40)
            edges = (570, 12, width - 12, height - 12)
            pen.rectangle(edges, outline=shade, width=2)
        for _ in range(self.recipe.bubbles):
            y, x = self._free(far, 60)
            radius = int(min(self.random.integers(20, 60), far[y, x] - 4))
            shade = (150, 150, 145) if dark else (60, 60, 60)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=shade, width=3)
        for _ in range(self.recipe.dust):
            y, x = self._free(far, 16)
            a, b = self.random.integers(1, 12, 2)
            pen.ellipse((x - a, y - b, x + a, y + b), fill=ink)
        return np.asarray(drawn, np.float64) / 255

    def _free(self, far: NDArray[Any], distance: float) -> tuple[int, int]:
        distance = min(distance, float(far[:, 580:].max()) - 2)
        rows, columns = np.nonzero(far > distance)
        inside = columns > 580 if (columns > 580).any() else columns >= 0
        k = self.random.integers(inside.sum())
        return int(rows[inside][k]), int(columns[inside][k])


def recipes(seed: int) -> Recipe:
    """Return the recipe of one of the twelve slides: 4 to 12 sections, every third slide fluorescent."""
    which = seed // 2 % 12
    return Recipe(
        count=4 + which % 9,
        fluorescent=which % 3 == 2,
        touching=which % 4 == 3,
        order=_ORDERS[which % 3],
    )
