"""A section of a slide: its outline on the slide, and the orientation of its own image."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from atlalign.io.scenes import Shape
from atlalign.sections.outlines import Outline, Ring, bounds


class Section(NamedTuple):
    """A section of a slide.

    Attributes:
        filename: The name of its image.
        slide: The name of the slide's file.
        scene: The scene of the slide, from 0.
        outline: The outline in pixels of the scene.
        turn: The turn of its image relative to the slide, counter-clockwise in degrees.
        flipped: Whether its image is also mirrored, left to right, after the turn.
        kept: Whether it gets an image, which can then be registered.
        left_out: Why the piece was rejected, such as "small"; empty for sections.
        needs_turn: Whether its upright direction must still be found.
        note: Remarks for the user.
        cells: The other cells of its row in the list.
        is_written: Whether its image is up to date.
    """

    filename: str
    slide: str
    scene: int
    outline: Outline
    turn: float = 0.0
    flipped: bool = False
    kept: bool = True
    left_out: str = ""
    needs_turn: bool = False
    note: str = ""
    cells: Mapping[str, str] = MappingProxyType({})
    is_written: bool = False

    @property
    def label(self) -> str:
        """The number of the section, by which users refer to it."""
        return self.filename.removesuffix(ENDING).rpartition("_s")[2].lstrip("0")

    def turned(self, degrees: float, *, mirrored: bool = False) -> "Section":
        """Return the section with its image turned further, counter-clockwise, and then mirrored."""
        turn = self.turn - degrees if self.flipped else self.turn + degrees
        turn = (turn + 180) % 360 - 180
        if turn == self.turn and not mirrored:
            return self
        return self._replace(turn=turn, flipped=self.flipped != mirrored, is_written=False)


ENDING = ".ome.tif"
"""The ending of the names of section images."""


def section_name(slide: str, number: str) -> str:
    """Return the name of a section's image.

    Args:
        slide: The name of the slide without its ending.
        number: The number, followed by letters that distinguish the parts of a section, if any.
    """
    digits = number.rstrip("abcdefghijklmnopqrstuvwxyz")
    return f"{slide}_s{int(digits):03d}{number[len(digits) :]}{ENDING}"


class Frame(NamedTuple):
    """The pixels of a section's image.

    Attributes:
        shape: (h, w).
        matrix: (2, 3), maps pixels (x, y) of the image to pixels of the slide.
        is_exact: Whether each pixel of the image is a pixel of the slide.
    """

    shape: Shape
    matrix: Ring
    is_exact: bool

    def to_image(self, ring: Ring) -> Ring:
        """Return points (N, 2) of the slide in pixels of the image."""
        moved: Ring = (ring - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T
        return moved


def frame_of(section: Section, margin_px: float) -> Frame:
    """Return the pixels of a section's image, with a margin around its outline.

    The pixel size is that of the slide; turns by multiples of 90° need no interpolation.
    """
    angle = math.radians(section.turn)
    cosine, sine = math.cos(angle), math.sin(angle)
    clockwise = np.array([[cosine, -sine], [sine, cosine]])
    linear = clockwise @ np.diag([-1.0 if section.flipped else 1.0, 1.0])
    is_exact = section.turn % 90 == 0
    linear = np.round(linear) if is_exact else linear
    upright = tuple(ring @ np.linalg.inv(linear).T for ring in section.outline)
    left, top, right, bottom = bounds(upright)
    origin = np.floor([left - margin_px, top - margin_px])
    width, height = np.ceil([right + margin_px, bottom + margin_px]) - origin + 1
    matrix = np.column_stack([linear, linear @ origin])
    return Frame((int(height), int(width)), matrix, is_exact)
