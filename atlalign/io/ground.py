"""The background of an image: which pixels show no tissue, and how bright the slide is at each pixel.

The *ground* of an image is the background around the tissue: the slide in bright field, haze or a camera's offset in
fluorescence. It is found on a thumbnail, from the image alone, in four steps:

1. Areas that no microscope saw are excluded: a frame, or the corners of a turned canvas. Such a *void* is a piece of
   one value at the image's border, with straight edges and an even ground beyond them.
2. Along the remaining rim, the ground is the quadratic surface that fits most pixels. Tissue that touches the
   rim does not fit it. The surface follows vignetting and uneven light; an even ground is a constant. If nearly all of
   the rim is ground, the surface may be of fourth order.
3. The ground is bright if the tissue is darker than this surface, and dark if it is brighter. The brightness of the
   ground itself does not matter.
4. In a section with solid tissue, two kinds of objects are *foreign* and excluded as well: small spots and pieces that
   are much brighter than this tissue (dust, paper labels), and thin pieces apart from it (outlines of bubbles).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from atlalign.io.pixels import Background, Floats, Mask

_THUMBNAIL_PX = 256  # its longer side is at most this long
RIM_PX = 3  # of the thumbnail
_BLURRED_PX = 2  # of the thumbnail: the edge of a void is a mixture
_STRAIGHT = 0.6  # 1 for the outline of a rectangle; others reached at most 0.45
_LARGEST_VOID = 0.65  # of the area; around an image turned by 45° it is 0.5
_SOLID_SHARE = 0.02  # of the longer side: tissue that contains a square of this side is solid
_MUCH_BRIGHTER = 2.5  # times the brightest solid tissue; thin cell layers reached at most 2.0
_NEARLY_ALL = 0.95  # of the rim
WHITE_PERCENTILE = 99.9  # the percentile of tissue that becomes 1: hot pixels and dust are brighter
_NOISE = 0.2  # of the variance is common to neighbours; in noise 0.11, in gene expression at least 0.24
_EVEN_NOISE = 2.0  # the standard deviation of noise over the one that its median difference implies
# Differences of intensity, as fractions of the thumbnail's range.
_SAME = 0.01  # pixels of a void differ by less
_TEXTURE = 0.03  # ground varies by less from pixel to pixel
_OFF_GROUND = 0.05  # pixels that differ by more from the ground are tissue
_EVEN = 0.02  # a ground that varies by less along the rim is a constant
_FIT_SCALES = (0.3, 0.15, 0.08, 0.04, 0.02, 0.02, 0.02)  # of the weights, from step to step


class Ground(NamedTuple):
    """Ground of an image (h, w).

    Attributes:
        coefficients: (6,) or (15,), of the first terms in `_POWERS`, with x and y from -1 to 1 between the outermost
            pixels' centres.
        level: The median of the ground along the rim.
        is_bright: Tissue is darker than the ground.
        clarity: 1 if the whole rim shows ground and tissue differs from it in one direction; 0 if overridden.
        has_tissue: Something differs from the ground, beyond pure noise.
        seen: (h', w'), the pixels of the thumbnail that show ground.
        void: (h', w'), the pixels of the thumbnail that show nothing.
        foreign: (h', w'), the pixels of the thumbnail that show dust and similar objects.
        factor: Each pixel of the thumbnail is the mean of `factor`² pixels of the image.
    """

    coefficients: Floats
    level: float
    is_bright: bool
    clarity: float
    has_tissue: bool
    seen: Mask
    void: Mask
    foreign: Mask
    factor: int

    @property
    def is_nothing(self) -> bool:
        """Whether the image already shows bright tissue on a background of 0."""
        return not (self.is_bright or self.coefficients.any() or self.void.any())

    def surface(self, shape: tuple[int, int]) -> Tensor:
        """Return the brightness of the ground at each pixel (h, w) of the image."""
        if not self.coefficients[1:].any():
            return torch.full(shape, float(self.coefficients[0]))
        of_powers = torch.zeros(5, 5)
        for (of_x, of_y), coefficient in zip(_POWERS, self.coefficients.tolist(), strict=False):
            of_powers[of_y, of_x] = coefficient
        y, x = (torch.linspace(-1, 1, size)[:, None] ** torch.arange(5) for size in shape)
        return y @ of_powers @ x.T

    def in_full(self, mask: Mask, shape: tuple[int, int]) -> Tensor:
        """Return a mask of the thumbnail, enlarged to the image (h, w)."""
        rows, columns = (
            np.minimum(np.arange(size) // self.factor, thumbnail_size - 1)
            for size, thumbnail_size in zip(shape, mask.shape, strict=True)
        )
        return torch.from_numpy(mask[np.ix_(rows, columns)])


def find_ground(image: Tensor, background: Background = "auto") -> Ground:
    """Return the ground of a grey image (h, w), in any units.

    Args:
        image: The section on its slide.
        background: bright or dark overrides detection. If it contradicts the rim, the brightest or darkest pixels of
            the image are taken as ground instead of the rim.
    """
    thumbnail, factor = _thumbnail(image)
    scale = _range(thumbnail)
    void = _find_void(thumbnail, scale)
    rim = _grown(void | _border(thumbnail.shape), RIM_PX - 1) & ~void
    coefficients = _fit(thumbnail, rim, ~void, scale)
    residual = thumbnail - _terms(thumbnail.shape, len(coefficients)) @ coefficients
    side = _one_sidedness(residual[~void] / scale)
    is_bright = side < 0
    seen = ~void & (np.abs(residual) <= _OFF_GROUND * scale)
    clarity = abs(side) * float(seen[rim].mean())
    if background != "auto" and is_bright != (background == "bright"):
        is_bright, clarity = not is_bright, 0.0
        level = float(
            np.percentile(thumbnail[~void], WHITE_PERCENTILE if is_bright else 100 - WHITE_PERCENTILE)
        )
        coefficients = level * np.eye(_QUADRATIC)[0]
        residual = thumbnail - level
        seen = ~void & (np.abs(residual) <= _OFF_GROUND * scale)
    level = float(np.median(thumbnail[seen])) if seen.any() else float(coefficients[0])
    off_ground = ~seen & ~void
    has_tissue = bool(off_ground.any()) and not _is_noise(np.where(void, 0, residual))
    foreign = _foreign(np.abs(residual), off_ground)
    return Ground(coefficients, level, is_bright, clarity, has_tissue, seen, void, foreign, factor)


def _is_noise(residual: Floats) -> bool:
    """Return whether differences from the ground (N, M) are pure noise: neighbours differ, and no pixel stands out."""
    variance = float(residual.var())
    common = float(ndimage.uniform_filter(residual, 3).var())
    typical = 1.4826 * float(np.median(np.abs(residual - np.median(residual))))
    return common <= _NOISE * variance and variance <= (_EVEN_NOISE * typical) ** 2


def _thumbnail(image: Tensor) -> tuple[Floats, int]:
    factor = thumbnail_factor(image.shape)
    means = torch.nn.functional.avg_pool2d(image[None].float(), factor)[0]
    return means.double().numpy(), factor


def thumbnail_factor(shape: Sequence[int]) -> int:
    """Return the number of image pixels, along each axis, that one pixel of the thumbnail covers."""
    height, width = shape[:2]
    return max(1, min(-(-max(height, width) // _THUMBNAIL_PX), min(height, width) // 2))


def _range(image: Floats) -> float:
    """Return the range of an image's intensities without outliers, or 1 if all intensities are equal."""
    low, high = np.percentile(image, [0.5, 99.5])
    return float(high - low) or float(np.ptp(image)) or 1.0


def _border(shape: tuple[int, ...]) -> Mask:
    border = np.ones(shape, dtype=bool)
    border[1:-1, 1:-1] = False
    return border


def _grown(mask: Mask, by_px: int) -> Mask:
    grown: Mask = ndimage.binary_dilation(mask, np.ones((3, 3), bool), iterations=by_px) if by_px else mask
    return grown


def _find_void(image: Floats, scale: float) -> Mask:
    """Return the mask of pixels that show nothing, including the mixed pixels at their edges."""
    void = np.zeros(image.shape, dtype=bool)
    for value in _frequent_at_border(image, scale):
        piece = _at_border(np.abs(image - value) <= _SAME * scale)
        if (
            piece.mean() <= _LARGEST_VOID
            and _straightness(piece) >= _STRAIGHT
            and _is_beside_ground(piece, value, image, scale)
        ):
            void |= piece
    return _grown(void, _BLURRED_PX)


def _frequent_at_border(image: Floats, scale: float) -> list[float]:
    """Return the most frequent values along the image's border, at most four."""
    border = image[_border(image.shape)]
    bins = np.round((border - border.min()) / (_SAME * scale)).astype(int)
    names, counts = np.unique(bins, return_counts=True)
    frequent = names[np.argsort(-counts)[:4]]
    return [float(np.median(border[bins == name])) for name in frequent]


def _at_border(mask: Mask) -> Mask:
    """Return the connected pieces of a mask that touch the image's border."""
    pieces, _ = ndimage.label(mask)
    touching = np.unique(pieces[_border(mask.shape)])
    kept: Mask = np.isin(pieces, touching[touching > 0])
    return kept


def _straightness(mask: Mask) -> float:
    """Return 1 if a mask's outline has two perpendicular directions, 0 if all directions are equally frequent."""
    along_y, along_x = np.gradient(ndimage.gaussian_filter(mask.astype(float), 2, mode="nearest"))
    normals = along_x + 1j * along_y
    lengths = np.abs(normals)
    sloping = lengths > 1e-6
    # The fourth power maps directions that differ by 90° to the same one.
    turned = normals[sloping] ** 4 / lengths[sloping] ** 3
    return float(np.abs(turned.sum()) / max(float(lengths.sum()), 1e-6))


def _is_beside_ground(piece: Mask, value: float, image: Floats, scale: float) -> bool:
    """Return whether an even ground lies along a piece of one value, and something else beyond it."""
    near = _grown(piece, _BLURRED_PX)
    ring = _grown(near, RIM_PX) & ~near
    if not ring.any():
        return False
    contrast = np.abs(image - value)[ring] / scale
    low, high = np.percentile(contrast, [25, 90])
    mean = ndimage.uniform_filter(image, 3)
    variance = ndimage.uniform_filter(image**2, 3) - mean**2
    is_flat = variance[ring] < (_TEXTURE * scale) ** 2
    is_other = np.abs(image - np.median(image[ring]))[~near] > 2 * _OFF_GROUND * scale
    return bool(low > _OFF_GROUND and low > high / 2 and is_flat.mean() > 0.5 and is_other.mean() > 0.01)


def _foreign(strength: Floats, off_ground: Mask) -> Mask:
    """Return the mask of foreign objects among the pixels off the ground; empty if tissue is not solid.

    Scattered cells are an example of such tissue.

    Args:
        strength: (h, w), each pixel's difference from the ground.
        off_ground: (h, w).
    """
    side_px = max(2, round(_SOLID_SHARE * max(strength.shape)))
    solid = ndimage.binary_opening(off_ground, np.ones((side_px, side_px), dtype=bool))
    if solid.sum() <= off_ground.sum() / 2:
        return np.zeros(strength.shape, dtype=bool)
    pieces, _ = ndimage.label(solid)
    sizes = np.bincount(pieces[solid])
    of_largest = solid & (sizes >= sizes.max() / 2)[pieces]
    brightest = np.percentile(
        ndimage.grey_opening(strength, size=(side_px, side_px))[of_largest], WHITE_PERCENTILE
    )
    glaring = off_ground & (strength > _MUCH_BRIGHTER * brightest)
    pieces, count = ndimage.label(off_ground & ~glaring, np.ones((3, 3)))
    is_thin: Mask = (np.bincount(pieces[solid & ~glaring], minlength=count + 1) == 0)[pieces] & (pieces > 0)
    return is_thin | _grown(glaring, 1)


_POWERS = [
    (order - of_y, of_y) for order in range(5) for of_y in range(order + 1)
]  # of x and y, by their sum
_QUADRATIC, _QUARTIC = 6, 15  # number of terms of these polynomials in x and y


def _terms(shape: tuple[int, ...], count: int) -> Floats:
    """Return the products of powers of x and y (h, w, count) at each pixel: 1, x, y, x² and so on."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return np.stack([x**of_x * y**of_y for of_x, of_y in _POWERS[:count]], axis=-1)


def _fit(image: Floats, rim: Mask, valid: Mask, scale: float) -> Floats:
    """Return the coefficients of the surface that fits most of the rim and has tissue on one side only.

    If tissue fills most of the rim, a surface through the tissue also fits many pixels, but it has ground on one side
    and other tissue on the other.
    """
    terms = _terms(image.shape, _QUADRATIC)
    of_rim, values = terms[rim], image[rim]

    def score(coefficients: Floats) -> float:
        agreeing = np.abs(values - of_rim @ coefficients) <= _OFF_GROUND * scale
        return float(agreeing.mean()) * abs(_one_sidedness((image - terms @ coefficients)[valid] / scale))

    everything = _least_squares(of_rim, values)
    levels = np.percentile(values, [50, 5, 25, 75, 95])[:, None] * np.eye(_QUADRATIC)[0]
    found = [_robust(of_rim, values, scale, everything, _FIT_SCALES)]
    found += [_robust(of_rim, values, scale, level, _FIT_SCALES[1:]) for level in levels]
    best = max(found, key=lambda coefficients: round(score(coefficients), 3))  # the first of equals
    agreeing = np.abs(values - of_rim @ best) <= _OFF_GROUND * scale
    if np.ptp(of_rim @ best) > _EVEN * scale or not agreeing.any():
        return _uneven(image, best, rim, valid, scale)
    constant: Floats = np.median(values[agreeing]) * np.eye(_QUADRATIC)[0]
    return constant


def _uneven(image: Floats, coefficients: Floats, rim: Mask, valid: Mask, scale: float) -> Floats:
    """Return a surface fitted to all ground of the image, because a fit to the rim alone is only rough.

    It is of fourth order if such a surface fits nearly all of the rim, and clearly more of it than a quadratic one.
    """
    quadratic = _refit(image, _terms(image.shape, _QUADRATIC), coefficients, valid, scale)
    terms = _terms(image.shape, _QUARTIC)
    start = np.pad(quadratic, (0, _QUARTIC - _QUADRATIC))
    near = rim | (valid & (np.abs(image - terms @ start) <= _OFF_GROUND * scale))
    quartic = _robust(terms[near], image[near], scale, start, _FIT_SCALES[1:])
    quartic = _refit(image, terms, quartic, valid, scale)

    def agreeing(coefficients: Floats, by: float) -> float:
        return float((np.abs(image - terms @ coefficients)[rim] <= by * scale).mean())

    better = agreeing(quartic, _EVEN) - agreeing(start, _EVEN)
    return quartic if agreeing(quartic, _OFF_GROUND) >= _NEARLY_ALL and better > _EVEN else quadratic


def _refit(image: Floats, terms: Floats, coefficients: Floats, valid: Mask, scale: float) -> Floats:
    for _ in range(3):
        seen = valid & (np.abs(image - terms @ coefficients) <= _OFF_GROUND * scale)
        coefficients = _robust(terms[seen], image[seen], scale, coefficients, _FIT_SCALES[-2:])
    return coefficients


def _robust(terms: Floats, values: Floats, scale: float, start: Floats, widths: tuple[float, ...]) -> Floats:
    """Return a robust fit: each step gives less weight to values far from the fit (Geman & McClure's weights)."""
    coefficients = start
    for width in widths:
        weights: Floats = 1 / (1 + ((values - terms @ coefficients) / (width * scale)) ** 2)
        coefficients = _least_squares(terms * weights[:, None], values * weights)
    return coefficients


def _least_squares(terms: NDArray[Any], values: NDArray[Any]) -> Floats:
    found: Floats = np.linalg.lstsq(terms, values, rcond=None)[0]
    return found


def _one_sidedness(residual: Floats) -> float:
    """Return 1 if everything off the ground is brighter, -1 if everything is darker, 0 if both occur equally."""
    off = residual[np.abs(residual) > _OFF_GROUND]
    return float(off.sum() / max(float(np.abs(off).sum()), 1e-6))
