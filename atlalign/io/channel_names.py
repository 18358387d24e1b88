"""Reads the names and colours of channels from the TIFF metadata of various programs."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from atlalign.io.pixel_sizes import ome_pixels
from atlalign.io.scenes import Channel

Color = tuple[int, int, int]


def tiff_channels(file: Any, page: Any, path: Path, image: int | None, count: int) -> tuple[Channel, ...]:
    """Return the channels of an image; names and colours that the file lacks stay empty.

    Args:
        file: The `TiffFile`.
        page: The first page of the image.
        path: The path of the file.
        image: The number of the image in the file.
        count: The number of channels.
    """
    for source in (_ome, _imagej, _qptiff):
        found = source(file, page, path, image) if image is not None else []
        if len(found) == count:
            return tuple(found)
    return (Channel(),) * count


def ome_color(value: str | None) -> Color | None:
    """Return the colour that OME stores as one signed 32-bit number: red, green, blue and opacity."""
    try:
        red, green, blue, _ = struct.pack(">i", int(value or ""))
    except (ValueError, struct.error):
        return None
    return red, green, blue


def _ome(file: Any, page: Any, path: Path, image: int | None) -> list[Channel]:
    try:
        pixels = ome_pixels(file, page, path, image)
    except ValueError:  # the reader of pixel sizes reports it
        return []
    channels = [] if pixels is None else pixels.findall("{*}Channel")
    return [Channel(channel.get("Name", ""), ome_color(channel.get("Color"))) for channel in channels]


def _imagej(file: Any, page: Any, path: Path, image: int | None) -> list[Channel]:
    """Return the channels of a hyperstack: the brightest colour of each lookup table, and the slices' labels."""
    said = file.imagej_metadata or {}
    count = int(said.get("channels", 1))
    tables, labels = said.get("LUTs", []), said.get("Labels", [])
    if count == 1 or not (tables or labels):
        return []
    colors = [_brightest(table) for table in tables] if len(tables) == count else [None] * count
    names = [str(label) for label in labels] if len(labels) == count else [""] * count
    return [Channel(name, color) for name, color in zip(names, colors, strict=True)]


def _brightest(table: Any) -> Color:
    red, green, blue = (int(value) for value in table[:, -1])
    return red, green, blue


def _qptiff(file: Any, page: Any, path: Path, image: int | None) -> list[Channel]:
    """Return the channels of a PerkinElmer or Akoya file, in which each page describes its own channel."""
    if not file.is_qpi or image is None:
        return []
    return [_of_page(str(plane.description)) for plane in file.series[image].pages]


def _of_page(description: str) -> Channel:
    try:
        root = ElementTree.fromstring(description)
    except ElementTree.ParseError:
        return Channel()
    numbers = [part.strip() for part in (root.findtext("Color") or "").split(",")]
    name = root.findtext("Biomarker") or root.findtext("Name") or ""
    return Channel(name, _color(numbers))


def _color(numbers: Sequence[str]) -> Color | None:
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        return None
    red, green, blue = (min(255, int(number)) for number in numbers)
    return red, green, blue


def czi_colors(metadata: str) -> list[Color | None]:
    """Return the channel colours of a CZI file, in the order of the channels; empty if it has none."""
    try:
        root = ElementTree.fromstring(metadata)
    except ElementTree.ParseError:
        return []
    channels = root.findall("./Metadata/DisplaySetting/Channels/Channel")
    return [hexadecimal_color(channel.findtext("Color") or "") for channel in channels]


def hexadecimal_color(text: str) -> Color | None:
    """Return the colour of a string #AARRGGBB or #RRGGBB."""
    digits = text.strip().lstrip("#")[-6:]
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        return None
    return red, green, blue
