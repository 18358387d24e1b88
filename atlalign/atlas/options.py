"""The options that choose an atlas, declared once for several commands."""

from dataclasses import dataclass
from typing import Annotated

from atlalign.declarations import Option


@dataclass(frozen=True)
class AtlasOptions:
    """An atlas by name, or a file and the information that it lacks; the fields are arguments of `open_atlas`."""

    atlas: Annotated[
        str | None, Option("the atlas: allen (downloaded once), phantom, or an atlas file (default: allen)")
    ] = None
    annotation: Annotated[
        str | None, Option("file with the region ids, if the atlas file does not hold them", "FILE")
    ] = None
    spacing_um: Annotated[
        float | None,
        Option(
            "voxel size of an atlas file in µm (default: the value in the file, or 25 if it has none)", "UM"
        ),
    ] = None
    axes: Annotated[
        str | None,
        Option(
            "directions of an atlas file's axes, in the order of the file (of the header in .nrrd, .nii and .mha: an "
            "array AP,DV,ML that SimpleITK wrote is ML,DV,AP): AP or PA (front to back or back to front), DV or VD "
            "(top to bottom or bottom to top), and LR (also ML) or RL (left to right or right to left) "
            "(default: the value in the file, or AP,DV,ML)",
            "AP,DV,ML",
        ),
    ] = None
