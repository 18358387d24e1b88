"""A connected piece of tissue, and step 2: cut pieces at narrow necks."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from atlalign.io.pixels import Floats, Mask

_HOLES = 0.5  # holes larger than this fraction of a piece stay open, so that the outline of a bubble stays an outline
_NECK = 0.42  # of the width of the narrower part
_PART = 0.12  # of the piece's area: a smaller part is not cut off


class Piece(NamedTuple):
    """A connected piece of tissue: its mask within its box, its area and the widest disc in it, in pixels."""

    mask: Mask
    box: tuple[slice, slice]
    area: float
    width: float

    @property
    def rim(self) -> Floats:
        """Return the pixels (N, 2) along its outline as (row, column)."""
        padded = np.pad(self.mask, 1)
        rim = padded & ~ndimage.binary_erosion(padded)
        corner = np.array([side.start or 0 for side in self.box], float)
        return np.asarray(np.argwhere(rim) - 1 + corner)


def pieces_of(labels: NDArray[np.int32]) -> list[Piece]:
    """Return the labelled pieces of tissue, with their holes filled."""
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        box = (rows, columns)
        own = labels[box] == number
        filled = ndimage.binary_fill_holes(own)
        found.append(piece_of(filled if filled.sum() * _HOLES <= own.sum() else own, box))
    return found


def piece_of(mask: Mask, box: tuple[slice, slice]) -> Piece:
    """Return the piece of a mask within its box."""
    width = 2 * float(ndimage.distance_transform_edt(np.pad(mask, 1)).max())
    return Piece(mask, box, float(mask.sum()), width)


def cut_at_necks(piece: Piece) -> list[Piece]:
    """Return the parts of a piece on both sides of a narrow neck, or the piece itself."""
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
            return [part for mask in _divided(parts, large) for part in cut_at_necks(_within(piece, mask))]
    return [piece]


def _divided(parts: NDArray[np.int32], large: Iterable[int]) -> list[Mask]:
    """Return a mask for each large part; small parts go to the nearest one."""
    kept = np.where(np.isin(parts, list(large)), parts, 0)
    nearest = ndimage.distance_transform_edt(kept == 0, return_distances=False, return_indices=True)
    assigned = np.where(parts > 0, kept[tuple(nearest)], 0)
    return [assigned == part for part in large]


def _within(piece: Piece, mask: Mask) -> Piece:
    """Return a part of a piece in its own box."""
    (box,) = ndimage.find_objects(mask.astype(np.int8))
    rows, columns = (
        slice(inner.start + outer.start, inner.stop + outer.start)
        for inner, outer in zip(box, piece.box, strict=True)
    )
    return piece_of(mask[box], (rows, columns))
