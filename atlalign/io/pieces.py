"""Pieces of tissue on a slide, and which of them belong to one section.

An image of a slide may show one section or many, and each may have come apart: two hemispheres, a cerebellum beside its
brain stem, a torn corner. Neighbours may touch. The pieces are found on a small copy of the image, in four steps:

1. Tissue is what differs from the ground by a share of the typical difference, and then, piece by piece, by a share of
   that piece's own: haze between bright sections is no tissue. An opening removes thin lines: coverslip edges, hairs,
   outlines of bubbles.
2. A piece with a narrow neck is cut there.
3. Pieces that are small, thin or rectangular are left out: dust, bubbles, labels.
4. Two pieces are parts of one section if they *face* each other, at a small distance along a long front. The outlines
   of whole sections are convex, and near each other only around one point.
"""

from collections.abc import Iterable
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, KDTree

from atlalign.io.images import LUMA
from atlalign.io.intensity import Ground, find_ground
from atlalign.io.pixels import Background

_Mask = NDArray[np.bool_]
_Floats = NDArray[np.float64]
Reason = Literal["small", "thin", "rectangular"]

WORKING_UM = 40.0
"""The size of the pixels on which pieces are found."""
_ASSUMED_MM = 40.0  # the longer side of an image without a pixel size
_LARGEST_MM = 400.0  # of an image's longer side; else its pixel size is wrong
_LEAST_PX = 32  # of an image's shorter side: a smaller copy shows nothing
_LARGEST_PX = 3000

# Step 1: tissue. Shares of differences from the ground.
_NOISE = 5.0  # standard deviations
_OF_RANGE, _OF_TYPICAL = 0.03, 0.15
_OF_OWN = (0.3, 0.35)  # one for each time that pieces are found anew
_SOLID = 0.8  # of the tissue is wider than two lines; else only cells or layers of it are seen
_LINE_UM = 75.0  # half the width of a line that is no tissue
_HOLES = 0.5  # more of a piece than this is not filled: the outline of a bubble stays one

_SAME_GROUND = (
    0.1  # of the range: the most frequent brightness differs by less from the ground along the border
)
_FIT_WIDTHS = (0.08, 0.04, 0.02, 0.02, 0.02)  # of the range, from step to step
_FIT_STEP = 4  # of so many pixels, one takes part

# Step 2: necks.
_NECK = 0.42  # of the width of the narrower part
_PART = 0.12  # of the piece's area: a smaller part is not cut off


# Step 3: what is left out. A main piece makes a section; others only belong to one.
_LEAST_MM2, _LEAST_WIDTH_MM = 0.8, 0.6
_LEAST_SHARE = 0.02  # of the largest piece's area
_LEAST_THICKNESS = 0.3  # width over the root of the area; a disc has 1.13
_LEAST_THICKNESS_IF_SMALL, _SMALL = 0.45, 0.25  # small: as a share of the largest piece's area
_RECTANGULAR = 0.93  # of the smallest rectangle around it
_SPECK_MM2 = 0.02

# Step 4: joining.
# Lengths are shares of the root of the smaller area, gaps of the geometric mean of both roots.
_NEAR = 0.2  # this much further away than the gap still faces
_REACH = 0.3
_FRONT, _FRONT_PER_GAP = 0.6, 1.5  # two parts of a section that is no larger than others
_LARGER = 1.25  # times the median area of large pieces
_FRONT_IF_LARGER, _FRONT_IF_LARGER_PER_GAP = 1.0, 1.0
_LARGE = 0.4  # of the largest piece
_ATTACHED_MM = 0.4  # from a section to small pieces of it
# Several sections in an image that should show one.
_WHOLE = 0.3  # of the largest area: less may be a part of it
_SHORT = 0.85  # a shorter front is one between two sections


class LeftOut(NamedTuple):
    """A piece that is no section.

    Attributes:
        reason: Why not.
        mask: (h, w) of its box.
        box: Where that lies in the labels.
    """

    reason: Reason
    mask: _Mask
    box: tuple[slice, slice]


class Found(NamedTuple):
    """Sections on a slide.

    Attributes:
        labels: (h, w), 0 where there is no section, and the number of the section from 1 elsewhere.
        left_out: Pieces that are no sections, the largest first.
        strength: (h, w), how far each pixel differs from the slide; 1 is the least that counts as tissue.
        unit_mm: The size of a pixel of the labels; assumed if the image's is not known.
        is_solid: Most of the tissue is seen, not only scattered cells or thin layers of it.
    """

    labels: NDArray[np.int32]
    left_out: list[LeftOut]
    strength: NDArray[np.float64]
    unit_mm: float
    is_solid: bool

    @property
    def number(self) -> int:
        """How many sections there are."""
        return int(self.labels.max(initial=0))


class _Piece(NamedTuple):
    """A connected piece of tissue: its mask within its box, its area and the widest disc in it, in pixels."""

    mask: _Mask
    box: tuple[slice, slice]
    area: float
    width: float

    @property
    def rim(self) -> _Floats:
        """Return the pixels (N, 2) along its outline as (row, column)."""
        padded = np.pad(self.mask, 1)
        rim = padded & ~ndimage.binary_erosion(padded)
        corner = np.array([side.start or 0 for side in self.box], float)
        return np.asarray(np.argwhere(rim) - 1 + corner)


def find_sections(
    image: NDArray[Any],
    *,
    is_color: bool,
    pixel_um: float | None = None,
    background: Background = "auto",
) -> Found:
    """Return the sections in an image of a slide.

    Args:
        image: (h, w), or (h, w, c).
        is_color: The channels are red, green and blue.
        pixel_um: The size of a pixel; None if it is not known.
        background: Brightness of the slide; auto detects it.
    """
    unit_mm, factor = _scale(image.shape, pixel_um)
    small = _shrunk(image, factor)
    strength = _strength(small, background, is_color=is_color)
    tissue = strength > 1
    radius = max(1, round(_LINE_UM / 1000 / unit_mm))
    is_solid = _is_solid(tissue, radius)
    labels = _refined(strength, tissue, radius)
    pieces = [part for piece in _pieces(labels) for part in _cut_at_necks(piece)]
    kept, left_out = _sorted_out(pieces, unit_mm)
    groups = _joined([piece for piece in kept if _is_main(piece, kept, unit_mm)])
    numbered = np.zeros(tissue.shape, np.int32)
    for number, group in enumerate(groups, 1):
        for piece in group:
            numbered[piece.box][piece.mask] = number
    mains = {id(piece) for group in groups for piece in group}
    small_ones = [piece for piece in kept if id(piece) not in mains]
    left_out += _attached(numbered, small_ones, _ATTACHED_MM / unit_mm)
    _grow(numbered, tissue, 2 * radius)
    left_out.sort(key=lambda piece: -int(piece.mask.sum()))
    return Found(numbered, left_out, strength, unit_mm, is_solid)


def several_sections(image: NDArray[Any], *, is_color: bool, pixel_um: float | None = None) -> int:
    """Return how many sections an image clearly shows; 1 where its pieces may be the parts of one.

    Parts of one section face each other along a long front, however far apart they are.

    Args:
        image: (h, w), or (h, w, c).
        is_color: The channels are red, green and blue.
        pixel_um: The size of a pixel; None if it is not known.
    """
    found = find_sections(image, is_color=is_color, pixel_um=pixel_um)
    if not found.is_solid:
        return 1
    masks = [_piece(found.labels == number, np.s_[:, :]) for number in range(1, found.number + 1)]
    large = [piece for piece in masks if piece.area >= _WHOLE * max(mask.area for mask in masks)]
    pairs = combinations(large, 2)
    return len(large) if any(_front(one, other) < _SHORT for one, other in pairs) else 1


def _front(one: _Piece, other: _Piece) -> float:
    """Return the length along which two pieces face each other, however far apart, over the smaller area's root."""
    small, large = sorted((one, other), key=lambda piece: piece.area)
    distances = np.asarray(KDTree(large.rim).query(small.rim)[0])
    root = float(np.sqrt(small.area))
    return float((distances <= distances.min() + _NEAR * root).sum()) / root


def _scale(shape: tuple[int, ...], pixel_um: float | None) -> tuple[float, float]:
    """Return the size of the pixels to work on in mm, and how many of the image's they are."""
    longer = max(shape[:2])
    if pixel_um is None or longer * pixel_um / 1000 > _LARGEST_MM:
        pixel_um = 1000 * _ASSUMED_MM / longer
    factor = max(1.0, min(WORKING_UM / pixel_um, min(shape[:2]) / _LEAST_PX), longer / _LARGEST_PX)
    return factor * pixel_um / 1000, factor


def _shrunk(image: NDArray[Any], factor: float) -> NDArray[np.float32]:
    """Return means of the image (h, w, c) over blocks of about `factor` pixels."""
    channels = image if image.ndim == 3 else image[..., None]
    tensor = torch.from_numpy(np.ascontiguousarray(channels, np.float32)).permute(2, 0, 1)[None]
    shape = [max(2, round(size / factor)) for size in image.shape[:2]]
    shrunk = torch.nn.functional.interpolate(tensor, size=shape, mode="area")
    return shrunk[0].permute(1, 2, 0).numpy()


# --- tissue -----------------------------------------------------------------------------------------------------------


def _strength(image: NDArray[np.float32], background: Background, *, is_color: bool) -> _Floats:
    """Return how far (h, w) each pixel differs from the ground, with 1 for the least that counts as tissue."""
    if is_color:
        ground = find_ground(torch.from_numpy(image @ LUMA), background)
        # One channel at least is dark where any stain is, or bright where any dye is.
        image = image.min(axis=2, keepdims=True) if ground.is_bright else image.max(axis=2, keepdims=True)
        background = "bright" if ground.is_bright else "dark"
    of_channels = [_channel_strength(channel, background) for channel in np.moveaxis(image, 2, 0)]
    strength: _Floats = np.max(of_channels, axis=0)
    return strength


def _channel_strength(channel: NDArray[np.float32], background: Background) -> _Floats:
    tensor = torch.from_numpy(channel)
    ground = find_ground(tensor, background)
    shape = (channel.shape[0], channel.shape[1])
    surface = _surface(channel, ground)
    difference = 1 - channel / surface if ground.is_bright else channel - surface
    smooth = ndimage.gaussian_filter(difference, 0.7)
    smooth[ground.in_full(ground.void, shape).numpy()] = 0
    seen = smooth[ground.in_full(ground.seen, shape).numpy()]
    noise = 1.4826 * float(np.median(np.abs(seen - np.median(seen)))) if seen.size else 0.0
    least = max(_NOISE * noise, _OF_RANGE * float(np.percentile(smooth, 99.5)), 1e-9)
    tissue = smooth[smooth > least]
    if tissue.size:
        least = max(least, _OF_TYPICAL * float(np.median(tissue)))
    strength: _Floats = smooth / least
    return strength


def _surface(channel: NDArray[np.float32], ground: Ground) -> _Floats:
    """Return how bright (h, w) the slide is at each pixel.

    A label may lie along much of the image's border, from which `find_ground` knows the ground. The most frequent
    brightness is that of the slide, and the surface is fitted again to the pixels near it.
    """
    known = ground.surface((channel.shape[0], channel.shape[1])).double().numpy()
    low, high = np.percentile(channel, [0.5, 99.5])
    scale = float(high - low) or 1.0
    counts, edges = np.histogram(
        channel[~ground.in_full(ground.void, channel.shape[:2]).numpy()], 64, (low, low + scale)
    )
    mode = float(edges[counts.argmax()] + (edges[1] - edges[0]) / 2)
    if abs(mode - ground.level) > _SAME_GROUND * scale:
        return known
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in channel.shape), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    few = (slice(None, None, _FIT_STEP),) * 2
    coefficients = np.array([mode, 0, 0, 0, 0, 0])
    for width in _FIT_WIDTHS:
        off = (channel[few] - terms[few] @ coefficients) / (width * scale)
        weights = 1 / (1 + off**2)
        found = np.linalg.lstsq(
            (terms[few] * weights[..., None]).reshape(-1, 6), (channel[few] * weights).ravel()
        )
        coefficients = found[0]
    fitted: _Floats = terms @ coefficients
    return fitted


def _is_solid(tissue: _Mask, radius: int) -> bool:
    return bool((_opened(tissue, 2 * radius) > 0).sum() > _SOLID * tissue.sum())


def _refined(strength: _Floats, tissue: _Mask, radius: int) -> NDArray[np.int32]:
    """Return pieces (h, w) of tissue without lines, and without what is much fainter than most of the piece."""
    for share in _OF_OWN:
        labels = _opened(tissue, radius)
        typical = np.asarray(ndimage.median(strength, labels, np.arange(labels.max() + 1)))
        typical[0] = np.inf
        tissue = (labels > 0) & (strength > share * typical[labels])
    return _opened(tissue, radius)


def _opened(mask: _Mask, radius: int) -> NDArray[np.int32]:
    disc = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), radius)
    labels, _ = ndimage.label(ndimage.binary_opening(mask, disc))
    return np.asarray(labels, np.int32)


def _pieces(labels: NDArray[np.int32]) -> list[_Piece]:
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        box = (rows, columns)
        own = labels[box] == number
        filled = ndimage.binary_fill_holes(own)
        found.append(_piece(filled if filled.sum() * _HOLES <= own.sum() else own, box))
    return found


def _piece(mask: _Mask, box: tuple[slice, slice]) -> _Piece:
    width = 2 * float(ndimage.distance_transform_edt(np.pad(mask, 1)).max())
    return _Piece(mask, box, float(mask.sum()), width)


# --- necks ------------------------------------------------------------------------------------------------------------


def _cut_at_necks(piece: _Piece) -> list[_Piece]:
    """Return the parts of a piece between which it is narrow, or the piece itself."""
    inside = ndimage.distance_transform_edt(np.pad(piece.mask, 1))[1:-1, 1:-1]
    for radius in np.arange(1.0, _NECK * piece.width / 2, 2.0):
        found, count = ndimage.label(inside > radius)
        parts = np.asarray(found, np.int32)
        if count < 2:
            continue
        nearest = ndimage.distance_transform_edt(parts == 0, return_distances=False, return_indices=True)
        parts = np.where(piece.mask, parts[tuple(nearest)], 0).astype(np.int32)
        areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        large = np.flatnonzero(areas >= _PART * piece.area) + 1
        widths = [2 * float(inside[parts == part].max()) for part in large]
        if len(large) > 1 and 2 * radius <= _NECK * min(widths):
            return [part for mask in _divided(parts, large) for part in _cut_at_necks(_within(piece, mask))]
    return [piece]


def _divided(parts: NDArray[np.int32], large: Iterable[int]) -> list[_Mask]:
    """Return a mask for each large part; small ones go to the nearest."""
    kept = np.where(np.isin(parts, list(large)), parts, 0)
    nearest = ndimage.distance_transform_edt(kept == 0, return_distances=False, return_indices=True)
    assigned = np.where(parts > 0, kept[tuple(nearest)], 0)
    return [assigned == part for part in large]


def _within(piece: _Piece, mask: _Mask) -> _Piece:
    """Return a part of a piece in its own box."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    rows, columns = (
        slice(inner.start + outer.start, inner.stop + outer.start)
        for inner, outer in zip(box, piece.box, strict=True)
    )
    return _piece(mask[box], (rows, columns))


# --- what is no section -----------------------------------------------------------------------------------------------


def _sorted_out(pieces: list[_Piece], unit_mm: float) -> tuple[list[_Piece], list[LeftOut]]:
    """Return the pieces that may be tissue, and the others; specks are in neither."""
    kept, left_out = [], []
    for piece in pieces:
        reason = _reason(piece, unit_mm)
        if reason is not None:
            left_out.append(LeftOut(reason, piece.mask, piece.box))
        elif piece.area * unit_mm**2 >= _SPECK_MM2:
            kept.append(piece)
    return kept, left_out


def _reason(piece: _Piece, unit_mm: float) -> Reason | None:
    """Return why a piece of some size cannot be tissue."""
    if piece.area * unit_mm**2 < _LEAST_MM2:
        return None
    if piece.width < _LEAST_THICKNESS * piece.area**0.5:
        return "thin"
    return "rectangular" if _rectangularity(piece.mask) > _RECTANGULAR else None


def _rectangularity(mask: _Mask) -> float:
    """Return the share of the smallest rectangle around a mask that it covers."""
    points = np.argwhere(mask ^ ndimage.binary_erosion(mask)).astype(float)
    hull = points[ConvexHull(points).vertices]
    angles = np.deg2rad(np.arange(0, 90, 2))
    axes = np.stack([np.cos(angles), np.sin(angles)]), np.stack([-np.sin(angles), np.cos(angles)])
    sides = [np.ptp(hull @ axis, axis=0) + 1 for axis in axes]
    return float(mask.sum() / (sides[0] * sides[1]).min())


def _is_main(piece: _Piece, pieces: list[_Piece], unit_mm: float) -> bool:
    """Return whether a piece may be a section; letters and lines of a pen are thinner than a small one."""
    largest = max(other.area for other in pieces)
    if piece.area < max(_LEAST_MM2 / unit_mm**2, _LEAST_SHARE * largest):
        return False
    is_thick = piece.width >= _LEAST_THICKNESS_IF_SMALL * piece.area**0.5
    return piece.width * unit_mm >= _LEAST_WIDTH_MM and (is_thick or piece.area >= _SMALL * largest)


# --- joining ----------------------------------------------------------------------------------------------------------


def _joined(pieces: list[_Piece]) -> list[list[_Piece]]:
    """Return the pieces in groups, each of one section."""
    groups = [[place] for place in range(len(pieces))]
    rims = [piece.rim for piece in pieces]
    trees = [KDTree(rim) for rim in rims]
    far = [[np.full(len(rim), np.inf) for _ in pieces] for rim in rims]
    for one, rim in enumerate(rims):
        for other, tree in enumerate(trees):
            reach = 2 * _reach(pieces[one].area, pieces[other].area)
            if one != other:
                far[one][other] = np.asarray(tree.query(rim, distance_upper_bound=reach)[0])
    areas = [piece.area for piece in pieces]
    while (best := _best_pair(groups, areas, far)) is not None:
        one, other = best
        groups[one] += groups.pop(other)
    return [[pieces[place] for place in group] for group in groups]


def _reach(area: float, other: float) -> float:
    return float(_REACH * (area * other) ** 0.25)


def _best_pair(
    groups: list[list[int]], areas: list[float], far: list[list[_Floats]]
) -> tuple[int, int] | None:
    """Return the places of the two groups, in ascending order, that most clearly belong to one section."""
    usual = float(np.median([area for area in areas if area >= _LARGE * max(areas)])) if areas else 0.0
    scores = {
        (one, other): _belonging(groups[one], groups[other], areas, far, usual)
        for one in range(len(groups))
        for other in range(one + 1, len(groups))
    }
    best = max(scores, key=lambda pair: scores[pair], default=None)
    return best if best is not None and scores[best] >= 0 else None


def _belonging(
    one: list[int], other: list[int], areas: list[float], far: list[list[_Floats]], usual: float
) -> float:
    """Return by how much the front along which two groups face each other is longer than expected of two sections."""
    small, large = sorted((one, other), key=lambda group: sum(areas[place] for place in group))
    sizes = [sum(areas[place] for place in group) for group in (small, large)]
    distances = np.concatenate([np.min([far[place][to] for to in large], axis=0) for place in small])
    gap = float(distances.min())
    if gap > _reach(*sizes):
        return -np.inf
    root = float(np.sqrt(sizes[0]))
    front = float((distances <= gap + _NEAR * root).sum()) / root
    share = gap / float(np.sqrt(np.sqrt(sizes[0] * sizes[1])))
    is_larger = sum(sizes) > _LARGER * usual
    least = (
        _FRONT_IF_LARGER + _FRONT_IF_LARGER_PER_GAP * share if is_larger else _FRONT + _FRONT_PER_GAP * share
    )
    return front - least


def _attached(numbered: NDArray[np.int32], pieces: list[_Piece], reach: float) -> list[LeftOut]:
    """Give small pieces the number of a section nearby; return the others."""
    if not pieces:
        return []
    far, nearest = ndimage.distance_transform_edt(numbered == 0, return_indices=True)
    numbers = numbered[tuple(nearest)]
    left_out = []
    for piece in pieces:
        distances = np.where(piece.mask, far[piece.box], np.inf)
        closest = np.unravel_index(distances.argmin(), distances.shape)
        if distances[closest] <= reach and numbered.any():
            numbered[piece.box][piece.mask] = numbers[piece.box][closest]
        else:
            left_out.append(LeftOut("small", piece.mask, piece.box))
    return left_out


def _grow(numbered: NDArray[np.int32], tissue: _Mask, by_px: int) -> None:
    """Give tissue that an opening has taken off a section back to it."""
    far, nearest = ndimage.distance_transform_edt(numbered == 0, return_indices=True)
    near = (far <= by_px) & tissue
    numbered[near] = numbered[tuple(nearest)][near]
