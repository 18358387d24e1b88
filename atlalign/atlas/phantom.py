"""A procedural mouse-like brain with labels, for users and tests without an atlas.

The shapes of `phantom_anatomy` are painted in each plane. The anatomy is symmetric; only the texture differs between
left and right.
"""

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.phantom_anatomy import EXTENT_MM, SHAPES, Layer, Shape
from atlalign.errors import InputError

_Value = TypeVar("_Value", np.float32, np.uint8)
_EDGE_MM = 0.06  # Width of the ramps of brightness at outlines and between layers.
_BEND_MM = 0.04  # Largest amplitude of each wave that bends the grid; there are four along each axis.
_TEXTURE = ((1.6, 0.05), (0.45, 0.05), (0.12, 0.05))  # (cell in mm, relative amplitude) of each octave.


def phantom_volume(*, shape: tuple[int, int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the template and the labels of one animal, both uint8 of `shape` (P, H, W); background is 0 in both.

    Plane i is the section in the middle of the i-th of P equal slabs of the 13.2 mm. In a plane the outermost pixel
    centres lie on the frame's edges, so the anatomy is the same at every size. The aspect ratio 320:456 does not
    distort it.

    Args:
        shape: (P, H, W).
        seed: Each seed gives another animal: shapes vary by a few per cent, and the texture is drawn anew.

    Raises:
        InputError: If there is no plane, a plane is smaller than 2×2, or the seed is negative.
    """
    if shape[0] < 1 or min(shape[1:]) < 2 or seed < 0:
        raise InputError(
            f"phantom: expected at least 1 plane of 2×2 and a seed ≥ 0, got {tuple(shape)} and {seed}"
        )
    animal = _Animal(np.random.default_rng(seed))
    template, labels = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
    for index in range(shape[0]):
        ap = (index + 0.5) / shape[0] * EXTENT_MM[0]
        template[index], labels[index] = animal.section(ap, shape[1:])
    return template, labels


class _Animal:
    """One random draw of the shapes' parameters, the bending of the grid and the texture."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._shapes = [(shape, _vary(shape, rng)) for shape in SHAPES.values()]
        self._frequency = rng.uniform(0.3, 2.2, (2, 4, 3))  # radians per mm along AP, y and x
        self._phase = rng.uniform(0, 2 * np.pi, (2, 4))
        self._amplitude = rng.uniform(-_BEND_MM, _BEND_MM, (2, 4))
        self._octaves = [(_lattice(cell, rng), amplitude) for cell, amplitude in _TEXTURE]

    def section(self, ap: float, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the template and the labels (H, W) of the section at `ap`."""
        x, y = self._half_grid(ap, shape)
        half_image, half_labels = np.zeros(x.shape, np.float32), np.zeros(x.shape, np.uint8)
        for painted, curves in self._shapes:
            _paint(painted, _at(curves, ap), x, y, half_image, half_labels)
        labels = _mirror(half_labels, shape[1])
        grey = _mirror(half_image, shape[1]) * self._texture(ap, shape) * 255
        # Tissue is at least 1, so that image and labels have the same background.
        return np.where(labels > 0, grey.round().clip(1, 255), 0).astype(np.uint8), labels

    def _half_grid(
        self, ap: float, shape: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return x and y over the right half of a plane, including the midline, bent by the animal's waves."""
        x = np.linspace(-0.5, 0.5, shape[1], dtype=np.float32)[shape[1] // 2 :] * EXTENT_MM[2]
        y = np.linspace(0, EXTENT_MM[1], shape[0], dtype=np.float32)
        # The midline stays straight, and outlines cross it without a kink: the shift in x is odd, that in y even.
        return x + np.tanh(x) * self._bend(0, ap, x, y), y[:, None] + self._bend(1, ap, x, y)

    def _bend(
        self, axis: int, ap: float, x: NDArray[np.float32], y: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the sum (H, W) of four waves, each a sine along AP and y times a cosine along x."""
        along_ap, along_y, along_x = self._frequency[axis].T[:, :, None]
        sines = np.sin(along_ap * ap + along_y * y + self._phase[axis][:, None])
        cosines = np.cos(along_x * x)
        shift: NDArray[np.float64] = (self._amplitude[axis][:, None] * sines).T @ cosines
        return shift.astype(np.float32)

    def _texture(self, ap: float, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return a factor (H, W) around 1: noise on lattices over the frame, linear along AP, cubic in the plane."""
        factor = torch.ones(1, 1, *shape)
        for lattice, amplitude in self._octaves:
            position = ap / EXTENT_MM[0] * (len(lattice) - 1)
            before = min(int(position), len(lattice) - 2)
            plane = torch.lerp(lattice[before], lattice[before + 1], position - before)[None, None]
            factor += amplitude * F.interpolate(plane, shape, mode="bicubic", align_corners=True)
        return factor[0, 0].numpy()


def _vary(shape: Shape, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the curves (6, keys) of a shape, slightly shifted, scaled and turned; shapes on the midline stay there.

    The rows are ap, x, y, both radii **squared**, which makes the ends round instead of pointed, and the tilt.
    """
    curves = shape.curves.copy()
    paired = curves[1] > 0
    shift_ap, shift_x, shift_y = rng.normal(0, 0.03, 3)
    curves[0] += shift_ap
    curves[1] += shift_x * paired
    curves[2] += shift_y
    curves[3:5] = (curves[3:5] * rng.normal(1, 0.02, (2, 1))) ** 2
    curves[5] += rng.normal(0, 1.5) * paired
    return curves


def _lattice(cell_mm: float, rng: np.random.Generator) -> Tensor:
    size = [round(extent / cell_mm) + 1 for extent in EXTENT_MM]
    return torch.from_numpy(rng.standard_normal(size, dtype=np.float32))


def _at(curves: NDArray[np.float64], ap: float) -> NDArray[np.float32]:
    """Return (x, y, radius_x, radius_y, tilt) at `ap`; the radii are 0 where the shape has ended."""
    if not curves[0, 0] < ap < curves[0, -1]:
        return np.zeros(5, np.float32)
    ellipse = np.array([np.interp(ap, curves[0], curve) for curve in curves[1:]], np.float32)
    ellipse[2:4] **= 0.5
    return ellipse


def _paint(
    shape: Shape,
    ellipse: NDArray[np.float32],
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    image: NDArray[np.float32],
    labels: NDArray[np.uint8],
) -> None:
    """Paint one shape over `image` and `labels`, in place."""
    window = _window(ellipse, x, y)
    if not ellipse[2:4].all() or not labels[window].size:
        return
    depth = _depth(shape, ellipse, x[window], y[window])
    if shape.inside:
        depth[labels[window] == 0] = -1
    label, brightness = _layered(shape.layers, depth)
    labels[window] = np.where(depth > 0, label, labels[window])
    # The ramp is centred on the outline, except next to the background, where it ends at the outline.
    weight = (depth / _EDGE_MM + 0.5 * shape.inside).clip(0, 1)
    image[window] += weight * (brightness - image[window])


def _window(
    ellipse: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]
) -> tuple[slice, slice]:
    """Return the rows and columns that the ellipse can reach; only these are computed."""
    # y within a row, and x within a column, vary at most by the bending.
    reach = ellipse[2:4].max() + 2 * 4 * _BEND_MM
    return _span(np.abs(y[:, 0] - ellipse[1]) < reach), _span(np.abs(x[0] - ellipse[0]) < reach)


def _span(chosen: NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(chosen)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0)


def _depth(
    shape: Shape, ellipse: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the depth in mm below the outline, negative outside: about (1 − r) / |∇r| for the relative radius r."""
    centre_x, centre_y, radius_x, radius_y, tilt = ellipse
    cos, sin = np.cos(np.deg2rad(tilt)), np.sin(np.deg2rad(tilt))
    a = (cos * (x - centre_x) + sin * (y - centre_y)) / radius_x
    b = (cos * (y - centre_y) - sin * (x - centre_x)) / radius_y
    r = np.sqrt(a * a + b * b)
    depth: NDArray[np.float32] = r * (1 - r) / (np.sqrt((a / radius_x) ** 2 + (b / radius_y) ** 2) + 1e-6)
    number, cleft = shape.clefts
    if number:
        depth -= cleft * min(radius_x, radius_y) * (1 - np.abs(np.cos(number / 2 * np.arctan2(a, b))))
    if shape.midline_gap:
        depth = np.minimum(depth, x - shape.midline_gap)
    return depth


def _layered(
    layers: tuple[Layer, ...], depth: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the label and the brightness at each depth; brightness changes gradually from layer to layer."""
    starts, labels, brightness = (np.array(column) for column in zip(*layers, strict=True))
    label = labels.astype(np.uint8)[np.searchsorted(starts[1:], depth, side="right")]
    ramps = (starts[1:, None] + [-_EDGE_MM / 2, _EDGE_MM / 2]).ravel()
    return label, np.interp(depth, [0, *ramps], [brightness[0], *np.repeat(brightness, 2)[1:-1]])


def _mirror(half: NDArray[_Value], width: int) -> NDArray[_Value]:
    """Return the whole plane, given its right `half`, which includes the middle column if there is one."""
    return np.concatenate([half[:, ::-1][:, : width // 2], half], axis=1)
