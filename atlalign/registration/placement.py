"""The initial placement of a section on its reference plane, for any size and orientation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.planes import Anchoring, Matrix, apply_affine, homogeneous, invert_affine
from atlalign.errors import InputError
from atlalign.io.pixels import PixelSize
from atlalign.registration.grid import Grid
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options, Placing
from atlalign.registration.references import Reference, bright_tissue, in_words
from atlalign.registration.section import Section

# The ratio of the image's area to the reference's. A pixel size in a wrong unit exceeds these bounds; it would produce
# a huge registered image.
_LEAST_SHARE, _LARGEST_SHARE = 0.01, 100.0
_LARGEST_ASPECT = 10.0


class Placement(NamedTuple):
    """The position of a section on its reference before the network moves it.

    Attributes:
        matrix: (2, 3), maps pixels of the reference grid to pixels of the section's image.
        pixel_um: The section's pixel size.
        pixel_size_from: The source of the pixel size: file, user, or the kind of placement that implies it.
        placed_by: anchoring, scale, fit or stretch.
        turn: The turn of the image, counter-clockwise in degrees, beyond the turn in an anchoring.
    """

    matrix: Matrix
    pixel_um: PixelSize
    pixel_size_from: str
    placed_by: Placing
    turn: float = 0.0


def place(
    section: Section,
    reference: Reference,
    *,
    by: Placing = "auto",
    anchoring: Anchoring | None = None,
    pixel_size_um: float | None = None,
    mirrored: bool = False,
    turn: float = 0.0,
) -> Placement:
    """Place a section on its reference.

    Args:
        section: The image.
        reference: The reference.
        by: anchoring: as the anchoring defines; scale: at the scale given by the pixel size, with the centres of tissue
            aligned; fit: the same, at the scale at which both tissues have the same extent; stretch: corner to corner;
            auto: the first of anchoring, scale and fit that is possible.
        anchoring: The anchoring of the image, or of a smaller or larger scan of it.
        pixel_size_um: The section's pixel size; None means the value in the file.
        mirrored: Whether the image shows the right side of the reference on its left. An atlas shows the left side of
            the brain on the left.
        turn: The counter-clockwise turn in degrees that makes the image upright.

    Raises:
        InputError: If `by` needs information that is missing, the image shows no tissue, its pixel size is implausible,
            or its proportions differ from those of the anchored image.
    """
    known = section.pixel_um if pixel_size_um is None else (pixel_size_um, pixel_size_um)
    if known is not None:
        _check_size(known, section.shape, reference.grid, "--pixel-size-um")
    if by == "auto":
        by = "anchoring" if anchoring is not None else "fit" if known is None else "scale"
    if by == "anchoring":
        if mirrored or turn:
            raise InputError(
                "--mirrored and --turn cannot be combined with an anchoring, which already defines the orientation"
            )
        matrix = _anchored(section, reference, anchoring)
        _check_size(_implied_pixel_um(matrix, reference.grid), section.shape, reference.grid, "anchoring")
    elif by == "stretch":
        matrix = _stretched(section.shape, reference.grid.shape, _turned(section.shape, mirrored, turn))
    else:
        matrix = _centred(section, reference, _size_um(section, reference, by, known), mirrored, turn)
    if known is not None:
        return Placement(matrix, known, "file" if pixel_size_um is None else "user", by, turn)
    return Placement(matrix, _implied_pixel_um(matrix, reference.grid), by, by, turn)


def place_job(section: Section, reference: Reference, job: Job, options: Options) -> Placement:
    """Return the placement of a section, as its job and the options define it."""
    return place(
        section,
        reference,
        by=options.place,
        anchoring=job.anchoring,
        pixel_size_um=options.pixel_size_um,
        mirrored=options.mirrored,
        turn=options.turn or 0.0,
    )


def turned(placement: Placement, reference: Reference, *degrees: float) -> list[Placement]:
    """Return a section's placements after counter-clockwise turns about the centre of the reference's tissue.

    The turns are counter-clockwise in the section's own image; on the reference, a mirrored section turns the other
    way.
    """
    is_mirrored = np.linalg.det(placement.matrix[:, :2]) < 0
    about = _about_tissue(reference, [_clockwise(-angle if is_mirrored else angle) for angle in degrees])
    return [
        placement._replace(matrix=placement.matrix @ matrix, turn=placement.turn + angle)
        for matrix, angle in zip(about, degrees, strict=True)
    ]


def flipped(placement: Placement, reference: Reference) -> Placement:
    """Return the placement of the section mirrored, left to right, about the centre of the reference's tissue."""
    [about] = _about_tissue(reference, [np.diag([-1.0, 1.0])])
    return placement._replace(matrix=placement.matrix @ about)


def at_size(placement: Placement, old: tuple[int, int], new: tuple[int, int]) -> Placement:
    """Return the same placement for another size (H, W) of the reference; the corners stay aligned."""
    along_y, along_x = ((before - 1) / (after - 1) for before, after in zip(old, new, strict=True))
    return placement._replace(matrix=placement.matrix * (along_x, along_y, 1.0))


def _about_tissue(reference: Reference, of_um: Sequence[Matrix]) -> list[Matrix]:
    """Return linear maps (2, 2) of the reference's µm as maps (3, 3) of its pixels that keep its tissue's centre."""
    pixel_um = np.array(reference.grid.pixel_um)
    centre, _ = _moments(reference.tissue, np.ones(2))
    linear = [matrix * pixel_um / pixel_um[:, None] for matrix in of_um]
    return [homogeneous(np.column_stack([matrix, centre - matrix @ centre])) for matrix in linear]


def _clockwise(degrees: float) -> Matrix:
    """Return the matrix (2, 2) that turns points (x, y) clockwise, with y pointing down."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def _check_size(pixel_um: PixelSize, shape: tuple[int, int], reference: Grid, source: str) -> None:
    """Raise an error unless the size of an image (h, w) with this pixel size, from `source`, suits the reference."""
    share = (
        math.prod(shape) * math.prod(pixel_um) / math.prod(reference.shape) / math.prod(reference.pixel_um)
    )
    plausible = min(pixel_um) > 0 and max(pixel_um) <= _LARGEST_ASPECT * min(pixel_um)
    if not (plausible and _LEAST_SHARE <= share <= _LARGEST_SHARE):
        raise InputError(
            f"expected a pixel size ({source}) at which the image covers {_LEAST_SHARE:g} to {_LARGEST_SHARE:g} times "
            f"the reference's area, with no side over {_LARGEST_ASPECT:g} times the other, got {in_words(pixel_um)}"
        )


def _anchored(section: Section, reference: Reference, anchoring: Anchoring | None) -> Matrix:
    if anchoring is None or reference.plane is None:
        raise InputError("--place anchoring: expected an anchored section and an atlas")
    mm = reference.grid.to_mm(np.eye(2))
    to_um = reference.plane.matrix[reference.plane.axes] @ homogeneous(np.column_stack([mm, (0, 0)]))
    return anchoring.on(section.shape).um_to_pixel() @ homogeneous(to_um)


def _turned(shape: tuple[int, int], mirrored: bool, turn: float) -> Matrix:
    """Return the map (2, 3) from pixels of the upright image to pixels of the image (h, w), turned by n · 90°."""
    if turn % 90:
        raise InputError(f"--turn: expected a multiple of 90° with --place stretch, got {turn:g}")
    matrix = homogeneous(np.eye(2, 3))
    height, width = shape
    for _ in range(round(turn / 90) % 4):
        # Pixel (x, y) of the turned image comes from (w − 1 − y, x).
        matrix = matrix @ np.array([[0, -1, width - 1], [1, 0, 0], [0, 0, 1.0]])
        height, width = width, height
    if mirrored:
        matrix = matrix @ np.array([[-1, 0, width - 1], [0, 1, 0], [0, 0, 1.0]])
    return matrix[:2]


def _stretched(shape: tuple[int, int], onto: tuple[int, int], turned: Matrix) -> Matrix:
    """Return the placement, corner to corner, of a section; `turned` maps its upright image to the image."""
    height, width = shape if turned[0, 0] else shape[::-1]
    scale = np.array([width - 1, height - 1]) / (np.array(onto[::-1]) - 1)
    return turned @ homogeneous(np.column_stack([np.diag(scale), (0, 0)]))


def _size_um(section: Section, reference: Reference, by: Placing, pixel_um: PixelSize | None) -> PixelSize:
    """Return the section's pixel size: the known one, or the size at which both tissues have the same extent."""
    if by == "fit":
        _, spread = _moments(bright_tissue(section.grey), np.array(section.scale))
        _, spread_um = _moments(reference.tissue, np.array(reference.grid.pixel_um))
        size = spread_um / spread
        return size, size
    if pixel_um is None:
        raise InputError(
            "--place scale: expected the section's pixel size, but the file has none: set --pixel-size-um"
        )
    return pixel_um


def _centred(
    section: Section, reference: Reference, pixel_um: PixelSize, mirrored: bool, turn: float
) -> Matrix:
    """Return the placement with the centres of both tissues aligned."""
    centre, _ = _moments(bright_tissue(section.grey), np.ones(2))
    centre = apply_affine(invert_affine(section.to_grey), centre[None])[0]
    reference_centre, _ = _moments(reference.tissue, np.ones(2))
    mirror = np.diag([-1.0 if mirrored else 1.0, 1.0])
    linear = _clockwise(turn) @ mirror * reference.grid.pixel_um / np.array(pixel_um)[:, None]
    return np.column_stack([linear, centre - linear @ reference_centre])


def _moments(mask: Tensor, pixel: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the centre (x, y) of a mask in pixels, and its extent, the geometric mean of both axes' spread."""
    y, x = torch.nonzero(mask, as_tuple=True)
    if len(x) < 3:
        raise InputError("expected tissue in the image, found none")
    points = torch.stack([x, y], dim=1).double().numpy()
    covariance = np.cov((points * pixel).T)
    return points.mean(axis=0), float(np.linalg.det(covariance) ** 0.25)


def _implied_pixel_um(matrix: Matrix, grid: Grid) -> PixelSize:
    """Return the section's pixel size that follows from the reference's."""
    to_um = np.diag(grid.pixel_um) @ np.linalg.inv(matrix[:, :2])
    x, y = np.linalg.norm(to_um, axis=0)
    return float(x), float(y)
