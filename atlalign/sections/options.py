"""The options for separating slides, declared once for Python and for `atlalign sections`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from atlalign.declarations import Option
from atlalign.errors import check_finite_numbers
from atlalign.io.reading import PixelSizeUm, SlideBackground, ZPlane, check_z

Order = Literal["rows", "columns", "serpentine", "serpentine-columns"]
"""Row by row from the top left, column by column, or with every second row or column backwards."""

Upright = Literal["brain", "symmetry", "no"]
"""The method that turns sections upright: a network that knows the mouse brain, the midline alone, or none."""


@dataclass(frozen=True)
class SectionsOptions:
    """The options for finding and writing sections."""

    order: Annotated[
        Order,
        Option(
            "order of the sections on a slide: row by row from the top left, column by column, or either of these with "
            "every second row or column reversed (default: %(default)s)"
        ),
    ] = "rows"
    pixel_size_um: PixelSizeUm = None
    background: SlideBackground = "auto"
    z: ZPlane = None
    upright: Annotated[
        Upright,
        Option(
            "how sections are turned upright: by the network that knows the mouse brain; by their symmetry, which does "
            "not show which end is up; or not at all, so that no pixel is interpolated (default: %(default)s)"
        ),
    ] = "brain"
    overwrite: Annotated[bool, Option("find all sections again, and discard the list with its changes")] = (
        False
    )

    def __post_init__(self) -> None:
        if self.pixel_size_um is not None:
            check_finite_numbers({"pixel_size_um": self.pixel_size_um}, {"pixel_size_um": 1e-3})
        check_z(self.z)
