"""Opens the formats of slide scanners and microscopes that need the optional package slideio."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.channel_names import Color, czi_colors
from atlalign.io.pixels import PixelSize
from atlalign.io.scenes import Block, Channel, Scene, Shape

_DRIVERS = {".czi": "CZI", ".zvi": "ZVI", ".vsi": "VSI", ".dcm": "DCM", ".afi": "AFI"}
SLIDE_ENDINGS = tuple(_DRIVERS)
"""The file name endings of the formats that slideio reads and tifffile does not."""

_EXTRA = "pip install 'atlalign-torch[slides]'"
_MADE_UP = re.compile(r"\(s:.*\)$")  # slideio appends it to the names of scenes
_OF_COLOR = re.compile(r"(?P<channel>.*):[123]")  # slideio's names for red, green and blue of one channel


def slideio_driver(path: Path, start: bytes) -> str | None:
    """Return slideio's name for the format of a file with these first bytes; None for other formats."""
    if start.startswith(b"ZISRAWFILE"):
        return "CZI"
    if start[128:132] == b"DICM":
        return "DCM"
    return _DRIVERS.get(path.suffix.lower())


def slideio_scenes(path: Path, driver: str) -> list[Scene]:
    """Return the scenes of a slide.

    Raises:
        InputError: If slideio is not installed, or cannot read the file.
    """
    try:
        import slideio
    except ImportError as error:
        raise InputError(f"expected the package slideio, which reads {driver} files: {_EXTRA}") from error
    slideio.set_log_level("FATAL")
    with _plain_errors(driver):
        slide = slideio.open_slide(str(path), driver)
        scenes = [slide.get_scene(number) for number in range(slide.num_scenes)]
    if not scenes:
        raise InputError("expected an image, found none in the file")
    colors = czi_colors(slide.raw_metadata) if driver == "CZI" else []
    return [_scene(scene, colors, driver) for scene in scenes]


@contextmanager
def _plain_errors(driver: str) -> Iterator[None]:
    """Turn slideio's errors, which quote lines of its source, into a sentence."""
    try:
        yield
    except RuntimeError as error:
        if "Unsupported compression" in str(error):
            raise InputError(
                f"expected a compression that slideio reads (none, JPEG or JPEG XR), found another in this {driver} "
                "file, such as Zstandard: save it with another compression, or export it as OME-TIFF"
            ) from error
        reason = re.sub(r"^.*?\.(cpp|hpp):\d+:\s*", "", str(error))
        raise InputError(f"a damaged {driver} file, or a kind that slideio cannot read ({reason})") from error


def _scene(scene: Any, colors: Sequence[Color | None], driver: str) -> Scene:
    types = {np.dtype(scene.get_channel_data_type(channel)) for channel in range(scene.num_channels)}
    if len(types) > 1:
        raise InputError(f"expected channels of one data type, found {', '.join(sorted(map(str, types)))}")
    names = [scene.get_channel_name(channel) for channel in range(scene.num_channels)]
    is_color = _are_colors(names)
    # CZI stores blue, green, red, and slideio returns what is stored.
    of_color = [2, 1, 0] if driver == "CZI" else [0, 1, 2]
    shown = colors if len(colors) == len(names) else [None] * len(names)
    channels = [Channel(name, color) for name, color in zip(names, shown, strict=True)]

    def block(part: Block) -> NDArray[Any]:
        level, top, bottom, left, right, channel, z = part
        rect = (left, top, right - left, bottom - top)
        wanted = of_color if is_color else [channel]
        if 0 in rect[2:]:
            return np.zeros((rect[3], rect[2], 3) if is_color else (rect[3], rect[2]), next(iter(types)))
        with _plain_errors(driver):
            return np.asarray(scene.read_block_from_level(level, rect, (0, 0), wanted, (z, z + 1), (0, 1)))

    return Scene(
        name=_MADE_UP.sub("", scene.name),
        levels=_levels(scene),
        channels=(Channel(),) if is_color else tuple(channels),
        is_color=is_color,
        dtype=next(iter(types)),
        pixel_um=_pixel_um(scene.resolution),
        block=block,
        z_count=max(1, scene.num_z_slices),
        t_count=max(1, scene.num_t_frames),
    )


def _are_colors(names: Sequence[str]) -> bool:
    """Return whether three channels are red, green and blue: unnamed, named so, or parts of one channel."""
    parts = [_OF_COLOR.fullmatch(name) for name in names]
    is_one = all(parts) and len({part["channel"] for part in parts if part}) == 1
    called = [name.casefold() for name in names]
    return len(names) == 3 and (is_one or not any(names) or called == ["red", "green", "blue"])


def _levels(scene: Any) -> tuple[Shape, ...]:
    sizes = [scene.get_zoom_level_info(level).size for level in range(scene.num_zoom_levels)]
    return tuple((int(size.height), int(size.width)) for size in sizes)


def _pixel_um(resolution: tuple[float, float]) -> PixelSize | None:
    x, y = (1e6 * size for size in resolution)
    return (x, y) if min(x, y) > 0 else None
