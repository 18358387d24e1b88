"""The axes of an atlas file: the direction of each, from the user, the header, or the look of the brain.

An axis is named after its start and its end: AP runs from anterior to posterior, VD from ventral to dorsal, RL from
right to left; ML is another name for LR. A file's axes are three such names in the file's order.

A header's axes are not always true. The Allen Institute's own NRRD files are stored as AP,DV,ML, but their headers say
left-posterior-superior with an identity matrix. So do files whose writers did not know the axes. A header is trusted
alone only if its matrix exchanges axes, which nobody writes by default; otherwise the look of the brain decides.

Only a whole mouse brain can be recognised by its look. The left of any brain mirrors its right. ML must therefore be
the axis along which the two halves mirror each other best.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from atlalign.atlas.phantom import phantom_volume
from atlalign.declarations import atlas_option
from atlalign.errors import InputError

Axes = tuple[str, str, str]
"""Names of the directions of a file's axes, in its order."""

DEFAULT: Axes = ("AP", "DV", "LR")
"""The order in `Atlas`, and in a file without information."""

_PLACES = {"AP": (0, 1), "PA": (0, -1), "DV": (1, 1), "VD": (1, -1), "LR": (2, 1), "RL": (2, -1)}
_TOWARDS = {"L": "RL", "R": "LR", "A": "PA", "P": "AP", "S": "VD", "I": "DV"}
_OF_LPS = (("RL", "LR"), ("AP", "PA"), ("VD", "DV"))
_UNWRITTEN = (np.eye(3), np.diag([-1.0, -1.0, 1.0]))  # of ITK's writers; of an identity in NIfTI
_OBLIQUE = 0.02

_COMPARED = (32, 20, 28)
_LEAST_LIKENESS, _LEAST_DIFFERENCE = 0.7, 0.02
# Left and right correlate by 0.98 or more in the atlases that were measured; dorsal and ventral by 0.94 at most, in
# front of the thalamus.
_MIRRORED, _LESS_MIRRORED = 0.95, 0.05


def parse_axes(given: str | Sequence[str]) -> Axes:
    """Return the axes that a user names, such as AP,DV,ML, as text or as a list.

    Raises:
        InputError: If they do not name each of the three axes once.
    """
    text = given if isinstance(given, str) else ",".join(map(str, given))
    names = [name.strip().upper() for name in text.split(",")]
    first, *others = ["LR" if name == "ML" else name for name in names]
    if {_PLACES[n][0] for n in (first, *others) if n in _PLACES} == {0, 1, 2} and len(others) == 2:
        return first, others[0], others[1]
    if len(names) == 1 and len(first) == 3 and all(letter in _TOWARDS for letter in first):
        ends = [_TOWARDS[letter] for letter in first]
        raise InputError(
            f"axes: expected three directions such as AP,DV,ML, got '{text}', which has two meanings: use "
            f"{','.join(end[::-1] for end in ends)} for BrainGlobe's, {','.join(ends)} for that of NIfTI tools"
        )
    raise InputError(
        f"axes: expected AP or PA, DV or VD, and ML, LR or RL, in the file's order, got '{text}'"
    )


def header_axes(direction: NDArray[np.float64], source: str) -> Axes:
    """Return the axes that correspond to the directions in a header, see `Header`.

    Raises:
        InputError: If they are oblique.
    """
    strongest = np.abs(direction).argmax(axis=0)
    straight = np.eye(3)[:, strongest]
    if sorted(strongest) != [0, 1, 2] or not np.allclose(np.abs(direction), straight, atol=_OBLIQUE):
        raise InputError(
            f"{source}: expected axes along those of the brain, found oblique ones in the header: resample the "
            f"volume, or give its axes as they are stored, such as {atlas_option('axes', 'AP,DV,ML')}"
        )
    first, second, third = (_OF_LPS[row][int(direction[row, j] < 0)] for j, row in enumerate(strongest))
    return first, second, third


def choose_axes(
    volume: NDArray[np.float32],
    direction: NDArray[np.float64] | None,
    source: str,
    lengths: tuple[float, ...] | None = None,
) -> Axes:
    """Return the axes of a volume for which the user has not named them.

    The header's order is taken if it cannot be a writer's default, or if the volume looks like a brain in this order.

    Args:
        volume: In the file's order, of any resolution.
        direction: The direction in the header, see `Header`, or None.
        source: For messages.
        lengths: The lengths of the axes in any unit; error messages suggest the longest as AP. None uses the shape.

    Raises:
        InputError: If the axes are oblique, the volume looks like a brain in another order, or its left does not mirror
            its right while the halves along another axis mirror each other.
    """
    likeness = brain_likeness(volume)
    likely = max(likeness, key=likeness.__getitem__, default=None)
    written = DEFAULT if direction is None else header_axes(direction, source)
    is_diagonal = direction is not None and np.allclose(np.abs(direction), np.eye(3), atol=_OBLIQUE)
    chosen = DEFAULT if is_diagonal and likely != _sideless(written) else written
    known = direction is None or not is_diagonal or any(np.allclose(direction, d) for d in _UNWRITTEN)
    if likely is None and not known:
        raise InputError(
            f"{source}: the header says {','.join(written)}, as many do without knowing it: give "
            f"{atlas_option('axes', ','.join(written))} if it is right, or {atlas_option('axes', 'AP,DV,ML')}"
        )
    if likely is not None and likeness[likely] > likeness[_sideless(chosen)] + _LEAST_DIFFERENCE:
        like = _written(_least_reversed(likeness))
        raise InputError(
            f"{source}: expected a brain with the axes {_written(chosen)}, found one that looks like {like}: "
            f"give the volume's axes, such as {atlas_option('axes', like)}"
        )
    if (mirrored := better_mirrored(volume, chosen)) is not None:
        options = [_with_mirrored(mirrored, lengths or volume.shape)]
        if direction is not None and written[mirrored] in ("LR", "RL"):
            options.append(written)
        raise InputError(
            f"{source}: expected the axes {_written(chosen)}, found left and right halves that mirror each other along "
            f"axis {mirrored + 1}, not along axis {ml_place(chosen) + 1}: give the volume's axes, such as "
            f"{' or '.join(atlas_option('axes', _written(axes)) for axes in options)}"
        )
    return chosen


def _least_reversed(likeness: Mapping[Axes, float]) -> Axes:
    """Return the likeliest axes; of about equally likely ones, those with the fewest reversed directions."""
    least = max(likeness.values()) - _LEAST_DIFFERENCE
    return min(
        (axes for axes in likeness if likeness[axes] >= least),
        key=lambda axes: (sum(_PLACES[name][1] < 0 for name in axes), -likeness[axes]),
    )


def better_mirrored(volume: NDArray[np.float32], axes: Axes) -> int | None:
    """Return the axis along which a volume's halves mirror each other clearly better than along ML, or None."""
    symmetry = mirror_symmetry(volume)
    best = max(range(3), key=symmetry.__getitem__)
    # If several axes are equally likely, take the first: ITK's writers put an array's last axis there.
    first = next(axis for axis in range(3) if symmetry[axis] > symmetry[best] - _LESS_MIRRORED)
    is_clear = symmetry[best] >= _MIRRORED and symmetry[ml_place(axes)] < symmetry[best] - _LESS_MIRRORED
    return first if is_clear else None


def ml_place(axes: Axes) -> int:
    """Return the index of the file's axis that runs between left and right."""
    return next(place for place, name in enumerate(axes) if name in ("LR", "RL"))


def _with_mirrored(mirrored: int, lengths: Sequence[float]) -> Axes:
    """Return axes in which `mirrored` is ML, and the longer of the others is AP."""
    longer = max((axis for axis in range(3) if axis != mirrored), key=lengths.__getitem__)
    first, second, third = (
        "LR" if axis == mirrored else "AP" if axis == longer else "DV" for axis in range(3)
    )
    return first, second, third


def oriented(array: Any, axes: Axes) -> Any:
    """Return a volume with the axes (AP, DV, LR); an h5 dataset is read only if its axes differ."""
    if axes == DEFAULT:
        return array
    order = np.argsort([_PLACES[name][0] for name in axes])
    turned = np.transpose(array[...], order)
    return turned[tuple(slice(None, None, _PLACES[axes[axis]][1]) for axis in order)]


def reordered(values: tuple[float, float, float], axes: Axes) -> tuple[float, float, float]:
    """Return the values of the axes, given in the file's order, in the order (AP, DV, LR)."""
    ap, dv, ml = (values[axis] for axis in np.argsort([_PLACES[name][0] for name in axes]))
    return ap, dv, ml


# --- the look of the brain --------------------------------------------------------------------------------------------


def brain_likeness(volume: NDArray[np.float32]) -> Mapping[Axes, float]:
    """Return the agreement of a volume with a mouse brain for each possible set of axes; empty if no set agrees.

    The measure is the correlation with the phantom after both have been fitted into one box. It cannot distinguish left
    from right, and does not work for half a brain or for a brain that is incomplete along AP.
    """
    if min(volume.shape) < 8 or not volume.max() > volume.min():
        return {}
    phantom, found = _phantom(), dict[Axes, float]()
    for ap, dv in itertools.product(("AP", "PA"), ("DV", "VD")):
        for first, second, third in itertools.permutations((ap, dv, "LR")):
            fitted = _fitted(oriented(volume, (first, second, third)))
            found[first, second, third] = float(np.corrcoef(fitted.ravel(), phantom.ravel())[0, 1])
    return found if max(found.values()) >= _LEAST_LIKENESS else {}


def mirror_symmetry(volume: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return, for each axis, the correlation of a volume's tissue with its mirror image along this axis.

    It is 0 along all axes if the volume is empty or too small to tell.
    """
    if min(volume.shape) < 8 or not volume.max() > volume.min():
        return 0.0, 0.0, 0.0
    fitted = _fitted(volume)
    if not fitted.max() > fitted.min():
        return 0.0, 0.0, 0.0
    first, second, third = (
        float(np.corrcoef(fitted.ravel(), np.flip(fitted, axis).ravel())[0, 1]) for axis in range(3)
    )
    return first, second, third


def brain_length(volume: NDArray[np.float32]) -> float:
    """Return the fraction of the first axis that the brain occupies."""
    box = _box(volume)[0]
    return float(box.stop - box.start) / len(volume)


@lru_cache(maxsize=1)
def _phantom() -> NDArray[np.float32]:
    volume, _ = phantom_volume(shape=(66, 40, 57), seed=0)
    return _fitted(volume.astype(np.float32))


def _fitted(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the content of the brain's box, averaged onto a grid of one size."""
    inside = torch.from_numpy(np.ascontiguousarray(volume[_box(volume)]))[None, None]
    return np.asarray(F.interpolate(inside, _COMPARED, mode="area")[0, 0])


def _box(volume: NDArray[np.float32]) -> tuple[slice, slice, slice]:
    """Return, along each axis, the range of planes that show more than specks of tissue."""
    tissue = volume > 0.1 * np.percentile(volume, 99)
    ends = []
    for others in ((1, 2), (0, 2), (0, 1)):
        shown = np.flatnonzero(tissue.mean(axis=others) > 0.005)
        ends.append(slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(0, 1))
    ap, dv, ml = ends
    return ap, dv, ml


def _sideless(axes: Axes) -> Axes:
    first, second, third = ("LR" if name == "RL" else name for name in axes)
    return first, second, third


def _written(axes: Axes) -> str:
    return ",".join(axes).replace("LR", "ML")
