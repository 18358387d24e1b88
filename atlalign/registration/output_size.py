"""The pixel size of written images."""

import math

from atlalign.errors import InputError
from atlalign.io.pixels import log
from atlalign.registration.placement import Placement
from atlalign.registration.references import Reference
from atlalign.registration.section import Section

LARGEST_DEFAULT_PX = 2**27
"""Larger images are written with larger pixels unless the user sets a pixel size."""
_LARGEST_PX = 10**11  # more pixels are a mistake, even if the disk could hold them


def output_pixel_um(
    wanted: float | None, section: Section, reference: Reference, placement: Placement, name: str
) -> float | None:
    """Return the pixel size of the images to write; None means the pixel size of the section's image.

    Raises:
        InputError: If the images would be too large.
    """
    own_um = min(*placement.pixel_um, *reference.grid.pixel_um)
    largest = max(math.prod(section.shape), math.prod(reference.grid.finer(own_um).shape))
    if wanted is None and largest <= LARGEST_DEFAULT_PX:
        return None
    output_um = wanted or own_um * math.sqrt(largest / LARGEST_DEFAULT_PX)
    if wanted is None:
        log.warning(
            "%s: images are written with pixels of %.3g µm, because at %.3g µm they would have %.0f megapixels "
            "(set another size with --output-um)",
            name,
            output_um,
            own_um,
            largest / 1e6,
        )
    elif math.prod(reference.grid.finer(wanted).shape) > _LARGEST_PX:
        raise InputError(
            f"{name}: --output-um: expected a registered image of at most {_LARGEST_PX:.0e} pixels, got {wanted:g} µm"
        )
    return output_um
