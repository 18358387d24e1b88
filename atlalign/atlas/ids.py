"""Region ids: whole numbers ≥ 0, where 0 means no region; they stay exact from the atlas to the tables."""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError

_log = logging.getLogger(__name__)
_LARGEST = 2**63 - 1


def checked_ids(values: NDArray[Any], source: str) -> NDArray[Any]:
    """Return ids as integers, even if they are stored as whole numbers in a floating-point type.

    Args:
        values: Ids of any shape.
        source: For messages.

    Raises:
        InputError: If a value is not an id, or floating-point numbers are too large to be exact.
    """
    kind = values.dtype.kind
    if kind not in "uif":
        raise InputError(f"{source}: expected integer ids, got {values.dtype}")
    # Up to this number, the type can hold every whole number; NaN compares false.
    largest = 2 ** (np.finfo(values.dtype).nmant + 1) if kind == "f" else _LARGEST
    wrong = ~((values >= 0) & (values <= largest))
    if kind == "f":
        wrong |= values != np.floor(values)
    if wrong.any():
        raise InputError(
            f"{source}: expected integer ids from 0 to {largest}, found {values[wrong][0]} in {wrong.sum()} voxels of "
            f"{values.dtype}: renumber them, or store them as integers"
        )
    if values.size and values.max() >= 2**32:
        _log.warning(
            "%s: holds ids of 2³² and more; label images keep them with 64 bits, which QuPath and Fiji do not open: "
            "give QuPath the outlines of the regions (`atlalign transform` with --labels and --out NAME.geojson), or "
            "renumber the ids",
            source,
        )
    return values.astype(np.int64) if kind == "f" else values


def stored_type(ids: NDArray[Any]) -> np.dtype[Any]:
    """Return the type in which files store ids: uint32, which most programs read, or uint64 for larger ids."""
    return np.dtype(np.uint32 if not ids.size or ids.max() < 2**32 else np.uint64)
