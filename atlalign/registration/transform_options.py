"""The options of `atlalign transform`, declared once for Python and for the command."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from atlalign.declarations import Option
from atlalign.errors import check_finite_numbers
from atlalign.io.reading import ChannelChoice, PageNumber, SceneChoice, ZPlane

Destination = Literal["reference", "section"]
Unit = Literal["px", "um"]


def _number_or_path(text: str) -> float | Path:
    try:
        return float(text)
    except ValueError:
        return Path(text)


@dataclass(frozen=True)
class TransformOptions:
    """The options for mapping a file between a section and its reference.

    Attributes:
        to: Map to the reference or to the section.
    """

    to: Destination
    labels: Annotated[bool, Option("the image holds region ids: use nearest-neighbour interpolation")] = False
    scene: SceneChoice = None
    channel: ChannelChoice = None
    page: PageNumber = None
    z: ZPlane = None
    output_um: Annotated[
        float | None,
        Option("pixel size in µm of the image to write (default: that of the registration's images)", "UM"),
    ] = None
    unit: Annotated[Unit | None, Option("unit of the columns x and y (default: px)")] = None
    off_plane_um: Annotated[
        float | None,
        Option(
            "largest distance in µm of atlas points from the section's plane; points farther away get no x and y "
            "(default: 100)",
            "UM",
        ),
    ] = None
    scale: Annotated[
        float | Path | None,
        Option(
            "section coordinates are pixels of an image N times as wide and high as the registered one, such as the "
            "full scan; give N, or that image",
            "N|IMAGE",
            kind=_number_or_path,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.off_plane_um is not None:
            check_finite_numbers({"off_plane_um": self.off_plane_um}, {"off_plane_um": 0.0})
        if self.output_um is not None:
            check_finite_numbers({"output_um": self.output_um}, {"output_um": 1e-3})
