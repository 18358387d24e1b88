"""Slides: image files of every kind, opened without their pixels, and read in parts at any level of a pyramid.

A *slide* is a file. It holds one or several *scenes*: images without common pixels, such as the areas that a scanner
was set to scan. A scene has *levels* (itself and smaller copies), *channels*, and planes of a z-stack. All pixels are
returned upright, as viewers show them, and without opacity.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.pixels import PixelSize, check_index

_log = logging.getLogger(__name__)

Shape = tuple[int, int]
"""(h, w) in pixels."""

Focus = int | Literal["max", "best"]
"""The choice from a z-stack: one plane, the brightest value at each pixel, or the sharpest plane."""

_SHARPNESS_PX = 2**22  # the sharpest plane is determined at a level of at least this size, if there is one


class Channel(NamedTuple):
    """The meaning of a channel.

    Attributes:
        name: The name in the file; empty if unnamed.
        color: Red, green and blue, 0 to 255, in which viewers show it; None if the file does not say.
    """

    name: str = ""
    color: tuple[int, int, int] | None = None


class Block(NamedTuple):
    """A rectangle of one plane at one level, in pixels of that level; `bottom` and `right` are not part of it."""

    level: int
    top: int
    bottom: int
    left: int
    right: int
    channel: int
    z: int


@dataclass(frozen=True, eq=False)
class Scene:
    """One image of a slide.

    Attributes:
        name: The name in the file; empty if unnamed.
        levels: The (h, w) of the image and of its smaller copies, largest first.
        channels: The meaning of each channel. A colour image has one channel, which is in colour.
        is_color: Whether each channel is an image in red, green and blue.
        dtype: The data type of the pixels.
        pixel_um: The pixel size at level 0; None if the file lacks it.
        z_count: The number of planes of a z-stack.
        t_count: The number of points in time, of which the first is read.
        block: Reads a block: (h, w), or (h, w, 3) in colour.
        check: Raises an `InputError` if some of the scene's pixels are missing.
    """

    name: str
    levels: tuple[Shape, ...]
    channels: tuple[Channel, ...]
    is_color: bool
    dtype: np.dtype[Any]
    pixel_um: PixelSize | None
    block: Callable[[Block], NDArray[Any]]
    check: Callable[[], None] = lambda: None
    z_count: int = 1
    t_count: int = 1

    @property
    def shape(self) -> Shape:
        """The (h, w) of the image."""
        return self.levels[0]

    @property
    def pixels(self) -> NDArray[Any]:
        """All pixels of the first channel and plane, (h, w) or in colour (h, w, 3), read anew on each access."""
        return self.read()

    def scale(self, level: int) -> tuple[float, float]:
        """Return the number of image pixels that one pixel of a level covers along x and y.

        The outer edges at the left and the top coincide: pixel k of the level lies at `scale·(k + ½) − ½`. Most
        programs halve images and drop or add a last row, so a whole number is used if it explains the level's size.
        """
        (height, width), (rows, columns) = self.shape, self.levels[level]
        return _ratio(width, columns), _ratio(height, rows)

    def level_of(self, pixels: int) -> int:
        """Return the smallest level with at least `least` pixels; the image itself if it has fewer."""
        large = [k for k, (height, width) in enumerate(self.levels) if height * width >= pixels]
        return max(large, default=0)

    def level_at(self, scale: float) -> int:
        """Return the smallest level whose pixels cover at most `scale` pixels of the image along x and y."""
        return max((k for k in range(len(self.levels)) if max(self.scale(k)) <= scale), default=0)

    def read(
        self,
        level: int = 0,
        rows: slice = slice(None),
        columns: slice = slice(None),
        *,
        channel: int = 0,
        z: int = 0,
    ) -> NDArray[Any]:
        """Return pixels of one plane, (h, w) or in colour (h, w, 3); only the tiles that show them are read.

        Args:
            level: The level; 0 is the image itself.
            rows: First row and end, as in an array slice.
            columns: First column and end.
            channel: The channel, from 0.
            z: The plane of a z-stack, from 0.

        Raises:
            InputError: If there is no such plane, or its pixels are damaged.
        """
        check_index("channel", channel, len(self.channels))
        check_index("plane (--z)", z, self.z_count)
        height, width = self.levels[level]
        top, bottom, _ = rows.indices(height)
        left, right, _ = columns.indices(width)
        return self.block(Block(level, top, max(top, bottom), left, max(left, right), channel, z))

    def of_channel(self, channel: int | str) -> "Scene":
        """Return the scene with one channel only, chosen by number or name; in a colour image, one of its colours.

        Raises:
            InputError: If there is no such channel.
        """
        if self.is_color and len(self.channels) == 1:
            number = _chosen("channel", channel, ("red", "green", "blue"))
            return replace(
                self,
                channels=(Channel(),),
                is_color=False,
                block=lambda block: self.block(block)[..., number],
            )
        number = _chosen("channel", channel, [channel.name for channel in self.channels])
        return replace(
            self,
            channels=self.channels[number : number + 1],
            block=lambda block: self.block(block._replace(channel=number)),
        )

    def each_channel(self) -> list["Scene"]:
        """Return one scene per channel; a colour image is one."""
        if len(self.channels) == 1:
            return [self]
        return [self.of_channel(number) for number in range(len(self.channels))]

    def in_focus(self, z: Focus | str) -> "Scene":
        """Return the scene with its z-stack reduced to one plane.

        Raises:
            InputError: If there is no such plane.
        """
        if z == "max":
            return replace(self, z_count=1, block=self._brightest)
        if isinstance(z, str) and z != "best" and not z.strip().isdecimal():
            raise InputError(f"expected a number, max or best for the plane of a z-stack (--z), got '{z}'")
        number = self._sharpest() if z == "best" else int(z)
        check_index("plane (--z)", number, self.z_count)
        return replace(self, z_count=1, block=lambda block: self.block(block._replace(z=number)))

    def _brightest(self, block: Block) -> NDArray[Any]:
        brightest = self.block(block._replace(z=0))
        for z in range(1, self.z_count):
            brightest = np.maximum(brightest, self.block(block._replace(z=z)))
        return brightest

    def _sharpest(self) -> int:
        """Return the plane with the largest differences between neighbouring pixels, relative to its brightness."""
        level, channels = self.level_of(_SHARPNESS_PX), range(len(self.channels))

        def sharpness(z: int) -> float:
            return sum(self._sharpness(level, channel, z) for channel in channels)

        return max(range(self.z_count), key=sharpness)

    def _sharpness(self, level: int, channel: int, z: int) -> float:
        pixels = self.read(level, channel=channel, z=z).astype(np.float32)
        steps = (np.square(np.diff(pixels, axis=axis)).mean() for axis in (0, 1))
        return float(sum(steps) / max(float(np.square(pixels).mean()), 1e-12))


class Slide(NamedTuple):
    """An image file.

    Attributes:
        path: The file.
        scenes: Its images, without a scanner's pictures of the label and of the whole slide.
    """

    path: Path
    scenes: tuple[Scene, ...]

    def scene(self, chosen: int | str | None = None) -> Scene:
        """Return a scene by its number or its name; None selects the largest, with a warning if there are others.

        Raises:
            InputError: If there is no such scene.
        """
        if chosen is not None:
            return self.scenes[_chosen("scene", chosen, [scene.name for scene in self.scenes])]
        largest = max(self.scenes, key=lambda scene: math.prod(scene.shape))
        if len(self.scenes) > 1:
            _log.warning(
                "%s: read scene %d, the largest of %d (%s); choose another with --scene, or separate the sections "
                "of all scenes with `atlalign sections`",
                self.path.name,
                self.scenes.index(largest),
                len(self.scenes),
                _listed(self.scenes),
            )
        return largest


def array_scene(
    array: NDArray[Any], *, is_color: bool, pixel_um: PixelSize | None = None, name: str = ""
) -> Scene:
    """Return the scene of an image in memory, (h, w) or (h, w, channels); the first three may be its colours."""
    planes = array if array.ndim == 3 else array[..., None]

    def block(part: Block) -> NDArray[Any]:
        chosen = slice(0, 3) if is_color else part.channel
        return planes[part.top : part.bottom, part.left : part.right, chosen]

    channels = (Channel(),) * (1 if is_color else planes.shape[2])
    shape = (planes.shape[0], planes.shape[1])
    return Scene(name, (shape,), channels, is_color, planes.dtype, pixel_um, block)


def _listed(scenes: Sequence[Scene]) -> str:
    """Return the numbers, names and sizes of scenes, at most four."""
    said = [
        f"{number}: {scene.name + ', ' if scene.name else ''}{scene.shape[0]}×{scene.shape[1]} px"
        for number, scene in enumerate(scenes[:4])
    ]
    return "; ".join(said) + ("; …" if len(scenes) > 4 else "")


def _chosen(what: str, chosen: int | str, names: Sequence[str]) -> int:
    """Return the number of a channel or scene, given as a number or by its name in any letter case.

    Raises:
        InputError: If no channel or scene, or more than one, has this name.
    """
    text = str(chosen).strip()
    if text.lstrip("-").isdecimal() and (
        isinstance(chosen, int) or text not in names or int(text) < len(names)
    ):
        check_index(what, int(text), len(names))
        return int(text)
    same = [k for k, name in enumerate(names) if name == text]
    same = same or [k for k, name in enumerate(names) if name.casefold() == text.casefold()]
    if len(same) == 1:
        return same[0]
    known = ", ".join(f"{k} {name}".strip() for k, name in enumerate(names))
    found = f"{len(same)} of them" if same else "none"
    raise InputError(
        f"expected the number or name of a {what}, found {found} called '{text}': there are {known}"
    )


def _ratio(size: int, small: int) -> float:
    """Return the number of pixels that one pixel of a smaller copy covers."""
    whole = round(size / small)
    return float(whole) if small in (size // whole, -(-size // whole)) else size / small
