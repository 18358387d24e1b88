"""A registered section: the result of `register`, and measures of its final field."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.io.scenes import Scene
from atlalign.registration.grid import Grid
from atlalign.registration.placed_field import transform_of
from atlalign.registration.placement import Placement
from atlalign.registration.quality import Quality
from atlalign.registration.references import Reference
from atlalign.registration.section import Section
from atlalign.registration.transform import SectionTransform


class RegisteredSection(NamedTuple):
    """A section with its images, placement and registration.

    Attributes:
        image: The image file, from which all channels can be read at any resolution.
        channel: The registered channel.
        section: The registered channel as the network sees it.
        reference: The reference.
        placement: The placement on the reference before the network.
        registered: The result: `transform`, the images `placed` and `registered`, and `quality`; see `Registered`.
    """

    image: Scene
    channel: Scene
    section: Section
    reference: Reference
    placement: Placement
    registered: "Registered"


class Registered(NamedTuple):
    """A registered section.

    Attributes:
        transform: The map between the section's image and the reference.
        placed: (1, 1, H, W), the section before the network.
        registered: (1, 1, H, W), the section after the network.
        quality: The measures of its quality.
        return_um: (H, W), the distance between a point of the reference and the place that it returns to when the
            network also registers the reference to the section; NaN beyond the image. None without a network.
        without_points: The transform before it was adjusted to the user's points; None without points.
        expected_error_um: (H, W), NaN outside of tissue; None for a network without a calibration. See
            `expected_error.expected_error_um`.
    """

    transform: SectionTransform
    placed: Tensor
    registered: Tensor
    quality: Quality
    return_um: Tensor | None = None
    without_points: SectionTransform | None = None
    expected_error_um: NDArray[np.float32] | None = None


def displacement_measures(dvf: Tensor, reference: Reference) -> dict[str, Any]:
    """Return the measures of `Quality` that are lengths of the final field."""
    displacement = lengths_um(dvf, reference.grid)[reference.tissue]
    return {
        "displacement_mean_um": float(displacement.mean()),
        "displacement_max_um": float(displacement.max()) if len(displacement) else torch.nan,
    }


def section_transform(
    dvf: Tensor, placement: Placement, section: Section, reference: Reference
) -> SectionTransform:
    """Return the map between the reference and the section's image that a field at the reference's size represents."""
    image = Grid(section.shape, placement.pixel_um)
    return transform_of(dvf, placement.matrix, reference.grid, image, reference.plane)


def lengths_um(dvf: Tensor, grid: Grid) -> Tensor:
    """Return the lengths (H, W) in µm of the displacements of a field (1, 2, H, W) in pixels."""
    return (dvf[0] * torch.tensor(grid.pixel_um).view(2, 1, 1)).square().sum(dim=0).sqrt()
