"""The options of a registration, declared once for Python, for `atlalign register` and for lists of sections."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from atlalign.declarations import Option, declarations
from atlalign.errors import InputError, check_finite_numbers, check_numbers, unknown_name
from atlalign.io.reading import (
    ChannelChoice,
    PageNumber,
    PixelSizeUm,
    SceneChoice,
    SlideBackground,
    ZPlane,
    check_z,
)
from atlalign.registration.quality import LIMITS, Limit

Placing = Literal["auto", "anchoring", "scale", "fit", "stretch"]
Side = Literal["left", "right"]


@dataclass(frozen=True)
class ReadingOptions:
    """The options for reading the image of a section."""

    pixel_size_um: PixelSizeUm = None
    background: SlideBackground = "auto"
    scene: SceneChoice = None
    channel: ChannelChoice = None
    page: PageNumber = None
    z: ZPlane = None
    one_section: Annotated[
        bool, Option("the image shows one section, even if its pieces look like several sections")
    ] = False

    def __post_init__(self) -> None:
        check_z(self.z)


@dataclass(frozen=True)
class Options(ReadingOptions):
    """The settings of a registration; a list of sections may set most of them for each section.

    Attributes:
        limits: The quality limits that differ from `LIMITS`; after construction, all limits.
    """

    place: Annotated[
        Placing,
        Option(
            "initial placement: by the anchoring, at the scale given by the pixel size, fitted to the extent of the "
            "tissue, or stretched corner to corner (default: auto, the first of anchoring, scale and fit that is "
            "possible)"
        ),
    ] = "auto"
    mirrored: Annotated[
        bool,
        Option(
            "the left side of each image shows the right side of the brain; cannot be combined with an anchoring, "
            "which already defines the orientation"
        ),
    ] = False
    turn: Annotated[
        float | None,
        Option(
            "counter-clockwise turn that makes the images upright, -360 to 360, applied after the orientation in their "
            "EXIF or TIFF tags; 0 leaves them as they are (default: estimated for each image without an anchoring)",
            "DEGREES",
        ),
    ] = None
    hemisphere: Annotated[
        Side | None,
        Option(
            "the sections show only this half of the brain, anywhere in the image; the left half is on the left of the "
            "reference"
        ),
    ] = None
    refine: Annotated[
        int,
        Option(
            "number of optimisation steps after the network; 40 make most sections more accurate and take twice the "
            "time (default: %(default)s)",
            "STEPS",
            is_column=False,
        ),
    ] = 0
    refine_smoothness: Annotated[
        float,
        Option(
            "smoothing in the last optimisation step, as a fraction of the image width, 0.005 to 0.2 (default: "
            "%(default)s); 0.01 follows borders more closely, but often makes the interior worse",
            "SHARE",
            is_column=False,
        ),
    ] = 0.1
    output_um: Annotated[
        float | None,
        Option(
            "pixel size in µm of the registered image and of the labels (default: that of the section's image, or for "
            "scans of more than 134 megapixels the size that gives 134 megapixels)",
            "UM",
        ),
    ] = None
    limits: Mapping[str, Limit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for declared in declarations(Options):
            value = getattr(self, declared.name)
            if declared.choices and value not in (declared.default, *declared.choices):
                raise unknown_name(declared.name, str(value), declared.choices)
        unknown = sorted(set(self.limits) - set(LIMITS))
        if unknown:
            raise unknown_name("measure", unknown[0], LIMITS)
        object.__setattr__(self, "limits", {**LIMITS, **self.limits})
        check_numbers({"refine": self.refine}, {"refine": 0})
        if self.turn is not None:
            check_numbers({"turn": self.turn}, {"turn": -360.0})
            if self.turn > 360:
                raise InputError(f"turn: expected -360° to 360°, got {self.turn:g}")
        if self.output_um is not None:
            check_finite_numbers({"output_um": self.output_um}, {"output_um": 1e-3})
        if not 0.005 <= self.refine_smoothness <= 0.2:
            raise InputError(f"refine_smoothness: expected 0.005 to 0.2, got {self.refine_smoothness:g}")


@dataclass(frozen=True)
class SeriesOptions:
    """The options for locating sections without a position; see `atlalign.localization`."""

    independent: Annotated[bool, Option("locate each section alone, not as part of a series")] = False
    section_spacing_um: Annotated[
        float | None,
        Option(
            "distance in µm between sections with consecutive numbers (default: the distance that fits best)",
            "UM",
        ),
    ] = None


@dataclass(frozen=True)
class LocatingOptions(SeriesOptions):
    """The options for locating sections without a position, with the network that proposes planes."""

    locator: Annotated[
        str | None,
        Option(
            "a network trained with `atlalign train experiment=locator` (default: the package's locator)",
            "FILE",
        ),
    ] = None


@dataclass(frozen=True)
class ReferenceImageOptions:
    """The options for an image that replaces the atlas; they are also arguments of `image_recipe`."""

    reference: Annotated[str | None, Option("register to this image instead of an atlas", "IMAGE")] = None
    reference_labels: Annotated[
        str | None, Option("label image with the region ids of the reference image", "IMAGE")
    ] = None
    reference_pixel_um: Annotated[
        float | None, Option("pixel size of the reference image in µm; overrides its metadata", "UM")
    ] = None
