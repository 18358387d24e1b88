"""The options for reading image files, declared once for several commands."""

from typing import Annotated

from atlalign.declarations import Option, number_or_name
from atlalign.errors import InputError
from atlalign.io.pixels import Background

PixelSizeUm = Annotated[
    float | None, Option("pixel size of the images in µm; overrides the files' metadata", "UM")
]
SlideBackground = Annotated[Background, Option("brightness of the empty slide (default: %(default)s)")]
SceneChoice = Annotated[
    int | str | None,
    Option(
        "scene of a slide that has several: its number from 0, or its name", "N|NAME", kind=number_or_name
    ),
]
ChannelChoice = Annotated[
    int | str | None,
    Option("channel of a multichannel image: its number from 0, or its name", "N|NAME", kind=number_or_name),
]
PageNumber = Annotated[int | None, Option("page of a multipage TIFF file, counted from 0", "N")]
ZPlane = Annotated[
    int | str | None,
    Option(
        "plane of a z-stack: its number from 0, max for the brightest value of all planes (fluorescence), or best for "
        "the sharpest plane",
        "N|max|best",
        kind=number_or_name,
    ),
]


def check_z(z: int | str | None) -> None:
    """Check the choice of a plane.

    Raises:
        InputError: If it is a name other than max and best.
    """
    if isinstance(z, str) and z not in ("max", "best"):
        raise InputError(f"z: expected the number of a plane, max or best, got {z}")
