"""Intensities of a section: which of its pixels are ground, and the section as bright tissue on a ground of 0.

*Ground* is what surrounds the tissue: the slide in bright field, haze or a camera's offset in fluorescence. It is found
on a thumbnail, from the image alone, in four steps:

1. What no microscope saw is left out: a frame, or the corners of a turned canvas. Such a *void* is a piece of one value
   at the image's border, with straight edges and an even ground beyond them.
2. Along the rim of what remains, the ground is the quadratic surface that most pixels agree with. Tissue that touches
   the rim does not agree. The surface follows vignetting and uneven light; an even ground is a constant. Where nearly
   all of the rim is ground, the surface may be of fourth order.
3. The ground is bright where the tissue is darker than this surface, and dark where it is brighter. How bright the
   ground itself is does not matter.
4. Of a section with solid tissue, two kinds of things are *foreign*, and left out as well: small spots and pieces that
   are much brighter than this tissue (dust, paper labels), and thin pieces apart from it (outlines of bubbles).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from atlalign.errors import InputError
from atlalign.io.images import LUMA, shrink_to_grey
from atlalign.io.pixels import Background

_Floats = NDArray[np.float64]
_Mask = NDArray[np.bool_]

_THUMBNAIL_PX = 256  # its longer side is at most this long
_RIM_PX = 3  # of the thumbnail
_BLURRED_PX = 2  # of the thumbnail: the edge of a void is a mixture
_STRAIGHT = (
    0.6  # 1 for the outline of a rectangle; at most 0.45 was seen for outlines that are not all straight
)
_LARGEST_VOID = 0.65  # of the area; around an image turned by 45° it is 0.5
_DARKEST_COLOR = 0.1  # of the brightest channel of a slide: a channel without light would be all noise
_SOLID_SHARE = 0.02  # of the longer side: tissue that a square of this side fits into is solid
_MUCH_BRIGHTER = 2.5  # times the brightest solid tissue; at most 2.0 was seen of cell layers that are thin
_NOISE = 4.0  # standard deviations of the ground's noise: less is no tissue
_CLEAR = (
    0.5  # at least 0.7 was seen of sections that touch two borders, at most 0.33 of those that fill the image
)
_NEARLY_ALL = 0.95  # of the rim
_WHITE = 99.9  # the percentile of tissue that becomes 1: above are hot pixels and dust

# Differences of intensity, as shares of the thumbnail's range.
_SAME = 0.01  # pixels of a void differ by less
_TEXTURE = 0.03  # ground varies by less from pixel to pixel
_OFF_GROUND = 0.05  # what differs by more from the ground is tissue
_EVEN = 0.02  # a ground that varies by less along the rim is a constant
_FIT_SCALES = (0.3, 0.15, 0.08, 0.04, 0.02, 0.02, 0.02)  # of the weights, from step to step


class Ground(NamedTuple):
    """The ground of an image (h, w).

    Attributes:
        coefficients: (6,) or (15,), of the first terms in `_POWERS`, with x and y from -1 to 1 between the outermost
            pixels' centres.
        level: The median of the ground along the rim.
        is_bright: Tissue is darker than the ground.
        clarity: 1 if all of the rim shows ground, and all that is off it is on one side; 0 if the user denies it.
        has_tissue: Something differs from the ground.
        seen: (h', w'), the pixels of the thumbnail that show ground.
        void: (h', w'), the pixels of the thumbnail that show nothing.
        foreign: (h', w'), the pixels of the thumbnail that show dust and the like.
        factor: Each pixel of the thumbnail is the mean of `factor`² pixels of the image.
    """

    coefficients: _Floats
    level: float
    is_bright: bool
    clarity: float
    has_tissue: bool
    seen: _Mask
    void: _Mask
    foreign: _Mask
    factor: int

    @property
    def is_nothing(self) -> bool:
        """Whether the image shows bright tissue on a ground of 0 already."""
        return not (self.is_bright or self.coefficients.any() or self.void.any())

    def surface(self, shape: tuple[int, int]) -> Tensor:
        """Return how bright the ground is at each pixel (h, w) of the image."""
        if not self.coefficients[1:].any():
            return torch.full(shape, float(self.coefficients[0]))
        of_powers = torch.zeros(5, 5)
        for (of_x, of_y), coefficient in zip(_POWERS, self.coefficients.tolist(), strict=False):
            of_powers[of_y, of_x] = coefficient
        y, x = (torch.linspace(-1, 1, size)[:, None] ** torch.arange(5) for size in shape)
        return y @ of_powers @ x.T

    def in_full(self, mask: _Mask, shape: tuple[int, int]) -> Tensor:
        """Return a mask of the thumbnail as one (h, w) of the image."""
        rows, columns = (
            np.minimum(np.arange(size) // self.factor, thumbnail_size - 1)
            for size, thumbnail_size in zip(shape, mask.shape, strict=True)
        )
        return torch.from_numpy(mask[np.ix_(rows, columns)])


class Tissue(NamedTuple):
    """A section as bright tissue on a ground of 0.

    Attributes:
        image: (h, w) in [0, 1].
        background: What the ground was before: bright or dark.
    """

    image: Tensor
    background: Background


def tissue_of(
    pixels: NDArray[Any], *, factor: int = 1, background: Background = "auto", name: str = "section"
) -> Tissue:
    """Return the section in an image, whatever the depth, exposure and colour of the image and its slide.

    Args:
        pixels: (h, w) or (h, w, 3).
        factor: As `shrink_to_grey` has it.
        background: Brightness of the slide; auto detects it.
        name: For messages.

    Raises:
        InputError: If the image shows nothing but ground, or too little ground to detect what it is.
    """
    grey = shrink_to_grey(pixels, factor, _white_balance(pixels, background))
    if float(grey.max() - grey.min()) == 0:
        raise InputError(f"{name}: expected a section, but every pixel is {float(grey[0, 0]):g}")
    ground = find_ground(grey, background)
    tissue = _without(grey, ground)
    if not tissue.image.any():
        raise InputError(f"{name}: expected a section, found an even ground and nothing on it")
    if background == "auto" and ground.clarity < _CLEAR:
        raise InputError(
            f"{name}: expected bare ground along the image's border, found tissue along most of it: crop the image "
            "less, or say whether the ground is bright or dark (--background)"
        )
    return tissue


def on_dark_ground(grey: Tensor, background: Background = "auto") -> Tissue:
    """Return the section in an image (h, w) in grey, in whatever units; all 0 if there is none.

    The 99.9th percentile of its tissue becomes 1.
    """
    return _without(grey, find_ground(grey, background))


def _without(grey: Tensor, ground: Ground) -> Tissue:
    image = without_ground(grey, ground) * ground.has_tissue
    return Tissue(to_unit_range(image) if image.any() else image, "bright" if ground.is_bright else "dark")


def _white_balance(pixels: NDArray[Any], background: Background) -> NDArray[np.float32]:
    """Return the weights of channels in grey that make a bright slide colourless; of a dark one those of `LUMA`."""
    if pixels.ndim == 2:
        return LUMA
    small, ground = _small_with_ground(pixels, background)
    if not ground.is_bright:
        return LUMA
    color = _color(small, ground).astype(np.float32)
    gains = float(color @ LUMA) / color.clip(max(float(color.max()) * _DARKEST_COLOR, 1e-6))
    return (LUMA * gains).astype(np.float32)


def slide_color(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the brightness or colour of the slide of an image (h, w) or (h, w, 3): the median of its ground."""
    small, ground = _small_with_ground(pixels, "auto")
    return _color(small, ground).astype(pixels.dtype)


def hide(pixels: NDArray[Any], mask: _Mask, background: Background = "auto") -> NDArray[Any]:
    """Return an image with the slide's colour in place of masked pixels, whatever these show.

    Args:
        pixels: (h, w) or (h, w, 3).
        mask: (h, w).
        background: Brightness of the slide; auto detects it.
    """
    hidden = pixels.copy()
    width = _RIM_PX * _thumbnail_factor(pixels.shape)
    rim = np.ones(mask.shape, np.bool_)
    rim[width:-width, width:-width] = False
    shown = rim & ~mask if (rim & ~mask).any() else ~mask
    if not shown.any():
        return np.zeros_like(pixels)
    hidden[mask] = np.median(pixels[shown], axis=0).astype(pixels.dtype)
    small, ground = _small_with_ground(hidden, background)
    hidden[mask] = _color(small, ground).astype(pixels.dtype)
    return hidden


def _small_with_ground(pixels: NDArray[Any], background: Background) -> tuple[NDArray[Any], Ground]:
    """Return an image at the size of a thumbnail, and its ground."""
    step = _thumbnail_factor(pixels.shape)
    small = pixels[::step, ::step]
    return small, find_ground(shrink_to_grey(small), background)


def _color(small: NDArray[Any], ground: Ground) -> NDArray[Any]:
    rows, columns = ground.seen.shape
    return np.asarray(np.median(small[:rows, :columns][ground.seen], axis=0))


def find_ground(image: Tensor, background: Background = "auto") -> Ground:
    """Return the ground of an image (h, w) in grey, in whatever units.

    Args:
        image: The section on its slide.
        background: bright or dark overrides what is detected. If the rim shows the opposite, the rim is not ground,
            and the brightest or darkest pixels of the image are.
    """
    thumbnail, factor = _thumbnail(image)
    scale = _range(thumbnail)
    void = _find_void(thumbnail, scale)
    rim = _grown(void | _border(thumbnail.shape), _RIM_PX - 1) & ~void
    coefficients = _fit(thumbnail, rim, ~void, scale)
    residual = thumbnail - _terms(thumbnail.shape, len(coefficients)) @ coefficients
    side = _one_sidedness(residual[~void] / scale)
    is_bright = side < 0
    seen = ~void & (np.abs(residual) <= _OFF_GROUND * scale)
    clarity = abs(side) * float(seen[rim].mean())
    if background != "auto" and is_bright != (background == "bright"):
        is_bright, clarity = not is_bright, 0.0
        level = float(np.percentile(thumbnail[~void], _WHITE if is_bright else 100 - _WHITE))
        coefficients = level * np.eye(_QUADRATIC)[0]
        residual = thumbnail - level
        seen = ~void & (np.abs(residual) <= _OFF_GROUND * scale)
    level = float(np.median(thumbnail[seen])) if seen.any() else float(coefficients[0])
    off_ground = ~seen & ~void
    foreign = _foreign(np.abs(residual), off_ground)
    return Ground(
        coefficients, level, is_bright, clarity, bool(off_ground.any()), seen, void, foreign, factor
    )


def _thumbnail(image: Tensor) -> tuple[_Floats, int]:
    factor = _thumbnail_factor(image.shape)
    means = torch.nn.functional.avg_pool2d(image[None].float(), factor)[0]
    return means.double().numpy(), factor


def _thumbnail_factor(shape: Sequence[int]) -> int:
    height, width = shape[:2]
    return max(1, min(-(-max(height, width) // _THUMBNAIL_PX), min(height, width) // 2))


def _range(image: _Floats) -> float:
    """Return the range of an image's intensities without outliers, where there is any."""
    low, high = np.percentile(image, [0.5, 99.5])
    return float(high - low) or float(np.ptp(image)) or 1.0


def _border(shape: tuple[int, ...]) -> _Mask:
    border = np.ones(shape, dtype=bool)
    border[1:-1, 1:-1] = False
    return border


def _grown(mask: _Mask, by_px: int) -> _Mask:
    grown: _Mask = ndimage.binary_dilation(mask, np.ones((3, 3), bool), iterations=by_px) if by_px else mask
    return grown


# --- void -------------------------------------------------------------------------------------------------------------


def _find_void(image: _Floats, scale: float) -> _Mask:
    """Return which pixels show nothing, with those at the edge of such pieces, which show a mixture."""
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


def _frequent_at_border(image: _Floats, scale: float) -> list[float]:
    """Return the values that most of the border's pixels have, at most four."""
    border = image[_border(image.shape)]
    bins = np.round((border - border.min()) / (_SAME * scale)).astype(int)
    names, counts = np.unique(bins, return_counts=True)
    frequent = names[np.argsort(-counts)[:4]]
    return [float(np.median(border[bins == name])) for name in frequent]


def _at_border(mask: _Mask) -> _Mask:
    """Return the connected pieces of a mask that touch the image's border."""
    pieces, _ = ndimage.label(mask)
    touching = np.unique(pieces[_border(mask.shape)])
    kept: _Mask = np.isin(pieces, touching[touching > 0])
    return kept


def _straightness(mask: _Mask) -> float:
    """Return 1 if a mask's outline has two directions at right angles to each other, 0 if it has all alike."""
    along_y, along_x = np.gradient(ndimage.gaussian_filter(mask.astype(float), 2, mode="nearest"))
    normals = along_x + 1j * along_y
    lengths = np.abs(normals)
    sloping = lengths > 1e-6
    # The fourth power takes directions that differ by 90° to the same one.
    turned = normals[sloping] ** 4 / lengths[sloping] ** 3
    return float(np.abs(turned.sum()) / max(float(lengths.sum()), 1e-6))


def _is_beside_ground(piece: _Mask, value: float, image: _Floats, scale: float) -> bool:
    """Return whether an even ground lies along a piece of one value, and something else beyond it."""
    near = _grown(piece, _BLURRED_PX)
    ring = _grown(near, _RIM_PX) & ~near
    if not ring.any():
        return False
    contrast = np.abs(image - value)[ring] / scale
    low, high = np.percentile(contrast, [25, 90])
    mean = ndimage.uniform_filter(image, 3)
    variance = ndimage.uniform_filter(image**2, 3) - mean**2
    is_flat = variance[ring] < (_TEXTURE * scale) ** 2
    is_other = np.abs(image - np.median(image[ring]))[~near] > 2 * _OFF_GROUND * scale
    return bool(low > _OFF_GROUND and low > high / 2 and is_flat.mean() > 0.5 and is_other.mean() > 0.01)


def _foreign(strength: _Floats, off_ground: _Mask) -> _Mask:
    """Return what of the pixels off the ground is no tissue; nothing where tissue is not solid, as of scattered cells.

    Args:
        strength: (h, w), how far off the ground each pixel is.
        off_ground: (h, w).
    """
    side_px = max(2, round(_SOLID_SHARE * max(strength.shape)))
    solid = ndimage.binary_opening(off_ground, np.ones((side_px, side_px), dtype=bool))
    if solid.sum() <= off_ground.sum() / 2:
        return np.zeros(strength.shape, dtype=bool)
    pieces, _ = ndimage.label(solid)
    sizes = np.bincount(pieces[solid])
    of_largest = solid & (sizes >= sizes.max() / 2)[pieces]
    brightest = np.percentile(ndimage.grey_opening(strength, size=(side_px, side_px))[of_largest], _WHITE)
    glaring = off_ground & (strength > _MUCH_BRIGHTER * brightest)
    pieces, count = ndimage.label(off_ground & ~glaring, np.ones((3, 3)))
    is_thin: _Mask = (np.bincount(pieces[solid & ~glaring], minlength=count + 1) == 0)[pieces] & (pieces > 0)
    return is_thin | _grown(glaring, 1)


# --- surface ----------------------------------------------------------------------------------------------------------


_POWERS = [
    (order - of_y, of_y) for order in range(5) for of_y in range(order + 1)
]  # of x and y, by their sum
_QUADRATIC, _QUARTIC = 6, 15  # number of terms of these polynomials in x and y


def _terms(shape: tuple[int, ...], count: int) -> _Floats:
    """Return the products of powers of x and y (h, w, count) at each pixel: 1, x, y, x² and so on."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    return np.stack([x**of_x * y**of_y for of_x, of_y in _POWERS[:count]], axis=-1)


def _fit(image: _Floats, rim: _Mask, valid: _Mask, scale: float) -> _Floats:
    """Return the coefficients of the surface that most of the rim agrees with, and that tissue lies on one side of.

    Tissue that fills most of the rim is a surface that many agree with, but ground and other tissue lie on both sides.
    """
    terms = _terms(image.shape, _QUADRATIC)
    of_rim, values = terms[rim], image[rim]

    def score(coefficients: _Floats) -> float:
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
    constant: _Floats = np.median(values[agreeing]) * np.eye(_QUADRATIC)[0]
    return constant


def _uneven(image: _Floats, coefficients: _Floats, rim: _Mask, valid: _Mask, scale: float) -> _Floats:
    """Return the fit to all ground of the image, which the rim alone gives away only roughly.

    It is of fourth order if nearly all of the rim agrees with it, and clearly more than with the quadratic one.
    """
    quadratic = _refit(image, _terms(image.shape, _QUADRATIC), coefficients, valid, scale)
    terms = _terms(image.shape, _QUARTIC)
    start = np.pad(quadratic, (0, _QUARTIC - _QUADRATIC))
    near = rim | (valid & (np.abs(image - terms @ start) <= _OFF_GROUND * scale))
    quartic = _robust(terms[near], image[near], scale, start, _FIT_SCALES[1:])
    quartic = _refit(image, terms, quartic, valid, scale)

    def agreeing(coefficients: _Floats, by: float) -> float:
        return float((np.abs(image - terms @ coefficients)[rim] <= by * scale).mean())

    better = agreeing(quartic, _EVEN) - agreeing(start, _EVEN)
    return quartic if agreeing(quartic, _OFF_GROUND) >= _NEARLY_ALL and better > _EVEN else quadratic


def _refit(image: _Floats, terms: _Floats, coefficients: _Floats, valid: _Mask, scale: float) -> _Floats:
    for _ in range(3):
        seen = valid & (np.abs(image - terms @ coefficients) <= _OFF_GROUND * scale)
        coefficients = _robust(terms[seen], image[seen], scale, coefficients, _FIT_SCALES[-2:])
    return coefficients


def _robust(
    terms: _Floats, values: _Floats, scale: float, start: _Floats, widths: tuple[float, ...]
) -> _Floats:
    """Return the fit to the values that lie near it: each step looks less far (Geman & McClure's weights)."""
    coefficients = start
    for width in widths:
        weights: _Floats = 1 / (1 + ((values - terms @ coefficients) / (width * scale)) ** 2)
        coefficients = _least_squares(terms * weights[:, None], values * weights)
    return coefficients


def _least_squares(terms: NDArray[Any], values: NDArray[Any]) -> _Floats:
    found: _Floats = np.linalg.lstsq(terms, values, rcond=None)[0]
    return found


def _one_sidedness(residual: _Floats) -> float:
    """Return 1 if all that is off the ground is brighter, -1 if all is darker, 0 if both are alike."""
    off = residual[np.abs(residual) > _OFF_GROUND]
    return float(off.sum() / max(float(np.abs(off).sum()), 1e-6))


# --- what is made of it -----------------------------------------------------------------------------------------------


def without_ground(image: Tensor, ground: Ground) -> Tensor:
    """Return an image (h, w) as bright tissue on a ground of 0, in no particular unit.

    Of a bright ground that is the share of its light that is missing, of a dark one the light that is added. The
    ground's noise, whose mean would be haze, is taken off as well.
    """
    shape = (int(image.shape[0]), int(image.shape[1]))
    surface = ground.surface(shape)
    tissue = 1 - image / surface if ground.is_bright else image - surface
    seen = ground.in_full(ground.seen, shape)
    noise = 1.4826 * float(tissue[seen].abs().median()) if ground.clarity and seen.any() else 0.0
    nothing = (seen & (tissue < _NOISE * noise)) | ground.in_full(ground.void | ground.foreign, shape)
    return tissue.clamp_min(0).masked_fill(nothing, 0)


def to_unit_range(image: Tensor, name: str = "image") -> Tensor:
    """Return an image (h, w) in [0, 1]: the 99.9th percentile of what is above 0 becomes 1.

    Raises:
        InputError: If no intensity is above 0.
    """
    positive = image[image > 0]
    if not len(positive):
        raise InputError(f"{name}: expected finite intensities, some above 0")
    return (image / float(np.percentile(positive.numpy(), _WHITE))).clamp(0, 1)
