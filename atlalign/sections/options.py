"""The options of separating slides, declared once for Python and for `atlalign sections`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from atlalign.declarations import Option, number_or_name
from atlalign.errors import InputError, check_finite_numbers
from atlalign.io.pixels import Background

Order = Literal["rows", "columns", "serpentine", "serpentine-columns"]
"""Row by row from the top left, column by column, or with every second row or column backwards."""

Upright = Literal["brain", "symmetry", "no"]
"""By a network that knows the mouse brain, by the midline alone, or left as they lie."""


@dataclass(frozen=True)
class SectionsOptions:
    """How sections are found and written."""

    order: Annotated[
        Order,
        Option(
            "order of the sections on a slide: row by row from the top left, column by column, or with every second "
            "row or column backwards (default: %(default)s)"
        ),
    ] = "rows"
    pixel_size_um: Annotated[
        float | None, Option("pixel size of the slides in µm; overrides the files' metadata", "UM")
    ] = None
    background: Annotated[Background, Option("brightness of the empty slide (default: %(default)s)")] = "auto"
    z: Annotated[
        int | str | None,
        Option(
            "plane of z-stacks, counted from 0; max takes the brightest value of all planes (fluorescence), best the "
            "sharpest plane",
            "N|max|best",
            kind=number_or_name,
        ),
    ] = None
    upright: Annotated[
        Upright,
        Option(
            "how sections are turned upright: by the network that knows the mouse brain; by their symmetry, which does "
            "not say which end is up; or not at all, so that no pixel is interpolated (default: %(default)s)"
        ),
    ] = "brain"
    overwrite: Annotated[bool, Option("find all sections anew, and discard the list with its changes")] = (
        False
    )

    def __post_init__(self) -> None:
        if self.pixel_size_um is not None:
            check_finite_numbers({"pixel_size_um": self.pixel_size_um}, {"pixel_size_um": 1e-3})
        if isinstance(self.z, str) and self.z not in ("max", "best"):
            raise InputError(f"z: expected the number of a plane, max or best, got {self.z}")
