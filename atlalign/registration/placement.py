"""The initial placement of a section on its reference plane, for any size and orientation."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.planes import Anchoring, Matrix, apply_affine, homogeneous, invert_affine
from atlalign.errors import InputError
from atlalign.geometry import identity_grid, sample
from atlalign.io.images import ImageFile, shrink_to_grey
from atlalign.io.intensity import hide, tissue_of
from atlalign.io.pixels import Background, PixelSize
from atlalign.io.scenes import Scene
from atlalign.io.views import Overview, overview
from atlalign.registration.grid import Grid
from atlalign.registration.ignored import NOTHING, Ignored
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options, Placing
from atlalign.registration.references import Reference, bright_tissue, in_words

# The section is shrunk to at least this many times the network's resolution before it is sampled.
_OVERSAMPLING = 2
# The ratio of the image's area to the reference's. A wrong unit exceeds these bounds and would produce a huge
# registered image.
_LEAST_SHARE, _LARGEST_SHARE = 0.01, 100.0
_LARGEST_ASPECT = 10.0
# In pixels, and the share of a Gaussian that must lie on visible pixels.
_SIGMAS, _ENOUGH = (2, 4, 8, 16, 32, 64, 128), 0.15


# --- the section ------------------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """A section's image, ready for placement.

    Attributes:
        grey: (h', w') in [0, 1], bright tissue on a ground of 0.
        scale: The number of image pixels that one pixel of `grey` covers, along x and y: pixel k lies at `scale·(k + ½)
            − ½`.
        shape: The image's (h, w).
        pixel_um: The pixel size of the image, if known.
        background: The brightness of the slide in the image.
        ignored: 1 where (h // factor, w // factor) tissue is ignored, and 0 elsewhere; None if none is.
    """

    grey: Tensor
    scale: tuple[float, float]
    shape: tuple[int, int]
    pixel_um: PixelSize | None
    background: Background
    ignored: Tensor | None = None

    @property
    def to_grey(self) -> Matrix:
        """The map (2, 3) from pixels of the image to those of `grey`."""
        x, y = self.scale
        return np.array([[1 / x, 0, (1 / x - 1) / 2], [0, 1 / y, (1 / y - 1) / 2]])


def read_section(
    image: Scene | ImageFile,
    image_shape: tuple[int, int],
    *,
    background: Background = "auto",
    name: str = "section",
    ignored: Ignored = NOTHING,
) -> Section:
    """Return an image in grey, with bright tissue on a ground of 0.

    Args:
        image: In grey or colour; from a pyramid, the smallest sufficient level is read.
        image_shape: The network's (H, W), which limits the resolution that is kept.
        background: Brightness of the slide; auto detects it.
        name: For messages.
        ignored: Tissue to replace by its surroundings.

    Raises:
        InputError: If the image shows nothing.
    """
    scene = image.scene if isinstance(image, ImageFile) else image
    view, factor = _view(scene, image_shape)
    if not ignored:
        grey, found = tissue_of(view.pixels, factor=factor, background=background, name=name)
        return _section(grey, view, factor, scene, found)
    mask = ignored.on((view.pixels.shape[0], view.pixels.shape[1]), scene.shape)
    visible = hide(view.pixels, mask, background)
    grey, found = tissue_of(visible, factor=factor, background=background, name=name)
    hidden = (shrink_to_grey(mask.astype(np.uint8), factor) > 0).float()
    return _section(_from_around(grey, hidden), view, factor, scene, found)._replace(ignored=hidden)


def _from_around(grey: Tensor, hidden: Tensor) -> Tensor:
    """Return an image (h, w) with hidden parts filled from their surroundings; a hole would attract its rim.

    Each hidden pixel takes the mean of the visible ones under the narrowest Gaussian that reaches enough of them.
    """
    from scipy.ndimage import gaussian_filter

    visible = 1 - hidden.numpy()
    filled = grey.numpy() * visible
    missing = visible == 0
    for sigma in _SIGMAS:
        weight = gaussian_filter(visible, sigma)
        near = missing & (weight > _ENOUGH)
        filled[near] = (gaussian_filter(grey.numpy() * visible, sigma)[near] / weight[near]).astype(
            np.float32
        )
        missing &= ~near
    return torch.from_numpy(filled)


def unread_section(image: Scene, image_shape: tuple[int, int]) -> Section:
    """Return an image in grey, scaled from its darkest to its brightest pixel, without looking for tissue."""
    view, factor = _view(image, image_shape)
    grey = shrink_to_grey(view.pixels, factor)
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-6)
    return _section(grey, view, factor, image, "auto")


def _view(scene: Scene, image_shape: tuple[int, int]) -> tuple[Overview, int]:
    """Return the image at a sufficient level for the network's (H, W), and the factor by which to shrink that level."""
    view = overview(scene, (_OVERSAMPLING * image_shape[0], _OVERSAMPLING * image_shape[1]))
    height, width = view.pixels.shape[:2]
    return view, max(1, min(height // image_shape[0], width // image_shape[1]) // _OVERSAMPLING)


def _section(grey: Tensor, view: Overview, factor: int, scene: Scene, background: Background) -> Section:
    scale = (view.scale[0] * factor, view.scale[1] * factor)
    return Section(grey, scale, scene.shape, scene.pixel_um, background)


# --- placement --------------------------------------------------------------------------------------------------------


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
        mirrored: The image shows the right side of the reference at its left; in an atlas, the left of the brain is
            left.
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
    """Return the place of a section that its job and the options ask for."""
    return place(
        section,
        reference,
        by=options.place,
        anchoring=job.anchoring,
        pixel_size_um=options.pixel_size_um,
        mirrored=options.mirrored,
        turn=options.turn or 0.0,
    )


def turned(placement: Placement, reference: Reference, degrees: float) -> Placement:
    """Return the placement of the section turned counter-clockwise about the centre of the reference's tissue.

    The turn is counter-clockwise in the section's own image; on the reference, a mirrored section turns the other way.
    """
    is_mirrored = np.linalg.det(placement.matrix[:, :2]) < 0
    about = _about_tissue(placement, reference, _clockwise(-degrees if is_mirrored else degrees))
    return about._replace(turn=placement.turn + degrees)


def flipped(placement: Placement, reference: Reference) -> Placement:
    """Return the placement of the section mirrored, left to right, about the centre of the reference's tissue."""
    return _about_tissue(placement, reference, np.diag([-1.0, 1.0]))


def _about_tissue(placement: Placement, reference: Reference, of_um: Matrix) -> Placement:
    """Return the placement after a linear map (2, 2) of the reference's µm."""
    pixel_um = np.array(reference.grid.pixel_um)
    linear = of_um * pixel_um / pixel_um[:, None]
    centre, _ = _moments(reference.tissue, np.ones(2))
    about = np.column_stack([linear, centre - linear @ centre])
    return placement._replace(matrix=placement.matrix @ homogeneous(about))


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
    to_um = reference.plane.matrix[[2, 1]] @ homogeneous(np.column_stack([mm, (0, 0)]))
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
        raise InputError("expected tissue, found none")
    points = torch.stack([x, y], dim=1).double().numpy()
    covariance = np.cov((points * pixel).T)
    return points.mean(axis=0), float(np.linalg.det(covariance) ** 0.25)


def _implied_pixel_um(matrix: Matrix, grid: Grid) -> PixelSize:
    """Return the section's pixel size that follows from the reference's."""
    to_um = np.diag(grid.pixel_um) @ np.linalg.inv(matrix[:, :2])
    x, y = np.linalg.norm(to_um, axis=0)
    return float(x), float(y)


def antialiased(section: Section, placement: Placement) -> Section:
    """Return a section without the detail that its placement loses; other places at the same scale need no more."""
    return section._replace(grey=_antialiased(section.grey, _pixels_per_pixel(section, placement)))


def placed_image(section: Section, placement: Placement, shape: tuple[int, int]) -> Tensor:
    """Return the section (1, 1, H, W) placed on the reference; beyond its border there is background."""
    return sampled_image(antialiased(section, placement), placement, shape)


def sampled_image(section: Section, placement: Placement, shape: tuple[int, int]) -> Tensor:
    """Return `placed_image` of a section that is already antialiased."""
    matrix = _to_grey(section, placement)
    target = identity_grid(shape, torch.float64, section.grey.device)[0].permute(1, 2, 0)
    points = target @ torch.from_numpy(matrix[:, :2]).T + torch.from_numpy(matrix[:, 2])
    return sample(section.grey[None, None], points[None].float())


def placed_ignored(section: Section, placement: Placement, shape: tuple[int, int]) -> Tensor | None:
    """Return the ignored tissue (1, 1, H, W) on the reference, above 0 where there is any, or None."""
    if section.ignored is None:
        return None
    return sampled_image(section._replace(grey=section.ignored), placement, shape)


def _to_grey(section: Section, placement: Placement) -> Matrix:
    """Return the map (2, 3) from pixels of the reference to those of `section.grey`."""
    return section.to_grey @ homogeneous(placement.matrix)


def _pixels_per_pixel(section: Section, placement: Placement) -> float:
    return float(np.sqrt(abs(np.linalg.det(_to_grey(section, placement)[:, :2]))))


def _antialiased(image: Tensor, factor: float) -> Tensor:
    """Return an image (h, w) without the detail that is lost when only each `factor`-th pixel is sampled."""
    if factor <= 1:
        return image
    from scipy.ndimage import gaussian_filter

    sigma = max((factor - 1) / 2, 0.001)
    radius = max(1, int(np.ceil(3 * sigma)))
    return torch.from_numpy(gaussian_filter(image.numpy(), sigma, mode="nearest", radius=radius))
