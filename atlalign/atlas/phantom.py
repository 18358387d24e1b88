"""A procedural mouse-like brain with labels, for users and tests without an atlas.

The ellipses of a table are painted one over the other; their centres, radii and tilts are interpolated along the
anterior-posterior axis (AP). Lengths are in mm on a frame of 13.2 (AP, from the front) × 8 (DV, downwards) × 11.4 (ML),
that of the Allen atlas, with the midline at x = 0. The anatomy is symmetric; only the texture differs between left and
right. The numbers are drawn by hand, roughly as a mouse brain looks: no atlas's data is in here, and nothing should be
measured on it.
"""

import colorsys
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.ontology import Ontology, Region
from atlalign.errors import InputError

EXTENT_MM = (13.2, 8.0, 11.4)
"""The frame's size along AP, DV and ML."""

PHANTOM_REGIONS: dict[int, str] = {
    1: "olfactory bulb, outer layers",
    2: "olfactory bulb, granule cells",
    3: "cortex, layer 1",
    4: "cortex, layers 2 to 4",
    5: "cortex, layers 5 and 6",
    6: "white matter",
    7: "ventral forebrain",
    8: "caudoputamen",
    9: "septum",
    10: "anterior commissure",
    11: "lateral ventricle",
    12: "third ventricle",
    13: "hippocampus",
    14: "dentate gyrus",
    15: "thalamus",
    16: "hypothalamus",
    17: "midbrain",
    18: "aqueduct",
    19: "cerebellum, molecular layer",
    20: "cerebellum, granule cells",
    21: "cerebellum, white matter",
    22: "pons and medulla",
    23: "fourth ventricle",
}
"""The names of the labels; 0 is the background."""

_PARTS: tuple[tuple[str, str, dict[int, str]], ...] = (
    ("OB", "olfactory bulb", {1: "OBo", 2: "OBg"}),
    ("CTX", "cortex", {3: "L1", 4: "L2-4", 5: "L5-6"}),
    ("WM", "white matter", {6: "wm", 10: "aco", 21: "cbw"}),
    ("BF", "basal forebrain", {7: "VF", 8: "CP", 9: "SEP"}),
    ("VS", "ventricles", {11: "VL", 12: "V3", 18: "AQ", 23: "V4"}),
    ("HPF", "hippocampal formation", {13: "HIP", 14: "DG"}),
    ("IB", "interbrain", {15: "TH", 16: "HY"}),
    ("BS", "brain stem", {17: "MB", 22: "P-MY"}),
    ("CB", "cerebellum", {19: "CBm", 20: "CBg"}),
)
_ROOT_ID = 100  # the parts have the numbers that follow

VENTRICLES = (11, 12, 18, 23)
"""The labels of the cavities, which are dark in the template."""

_Curve = tuple[float, ...] | float
_Layer = tuple[float, int, float]
_Value = TypeVar("_Value", np.float32, np.uint8)


@dataclass(frozen=True)
class _Shape:
    """An ellipse in each half of the coronal planes, layered from its outline inwards.

    Attributes:
        ap: Positions of the key planes. The shape is interpolated between them and does not extend beyond them.
        x: Distance of the centre from the midline, one value for each key plane or one for all, as for y to tilt.
        y: Height of the centre, downwards from the top.
        radius_x: Radius along x, before the tilt.
        radius_y: Radius along y, before the tilt.
        tilt: In degrees; positive values turn the lower end towards the midline.
        layers: (depth below the outline at which the layer starts, label, brightness in [0, 1]).
        inside: Paint the shape only over existing tissue.
        clefts: (number, depth relative to the smaller radius) of the clefts that scallop the outline.
        midline_gap: Half the width of the fissure along the midline.
    """

    ap: tuple[float, ...]
    y: _Curve
    radius_x: _Curve
    radius_y: _Curve
    layers: tuple[_Layer, ...]
    x: _Curve = 0.0
    tilt: _Curve = 0.0
    inside: bool = False
    clefts: tuple[int, float] = (0, 0.0)
    midline_gap: float = 0.0


_FOLIUM = (
    (0.0, 19, 0.36),
    (0.06, 19, 0.52),
    (0.20, 20, 0.76),
    (0.34, 21, 0.36),
    (0.42, 20, 0.76),
    (0.56, 19, 0.52),
)
_FOLIA = (
    *_FOLIUM,
    *((depth + 0.7, label, brightness) for depth, label, brightness in _FOLIUM),
    (1.4, 21, 0.34),
)
_SHAPES: dict[str, _Shape] = {
    "olfactory bulb": _Shape(
        ap=(0.1, 0.5, 1.2, 2.0, 2.8, 3.5, 4.0),
        x=(0.7, 0.7, 0.75, 0.8, 0.85, 0.9, 0.9),
        y=(4.2, 4.2, 4.2, 4.5, 5.2, 5.6, 5.8),
        radius_x=(0.0, 0.62, 0.76, 0.8, 0.85, 0.9, 0.0),
        radius_y=(0.0, 1.1, 1.65, 1.55, 1.1, 0.7, 0.0),
        tilt=(0.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0),
        layers=((0.0, 1, 0.72), (0.16, 1, 0.4), (0.34, 1, 0.8), (0.4, 2, 0.56), (0.62, 2, 0.38)),
    ),
    "cerebral hemisphere": _Shape(
        ap=(1.7, 2.2, 2.8, 3.5, 4.4, 5.4, 6.4, 7.2, 8.0, 8.7, 9.4, 10.0, 10.6),
        x=(0.75, 0.8, 0.95, 1.1, 1.3, 1.55, 1.75, 1.95, 2.2, 2.45, 2.75, 3.0, 3.2),
        y=(2.9, 2.9, 3.3, 3.9, 4.1, 4.1, 4.0, 3.9, 3.8, 3.6, 3.4, 3.2, 3.0),
        radius_x=(0.0, 0.9, 1.5, 2.15, 2.7, 2.95, 3.0, 2.9, 2.65, 2.25, 1.7, 1.15, 0.0),
        radius_y=(0.0, 0.95, 1.6, 2.45, 2.95, 3.15, 3.3, 3.3, 3.15, 2.95, 2.65, 2.1, 0.0),
        tilt=(0.0, 0.0, 0.0, 0.0, -4.0, -8.0, -14.0, -18.0, -22.0, -26.0, -30.0, -30.0, -30.0),
        layers=((0.0, 3, 0.66), (0.16, 4, 0.52), (0.5, 5, 0.6), (0.95, 6, 0.22), (1.12, 7, 0.5)),
        midline_gap=0.04,
    ),
    "the region below the corpus callosum, which forms its rim": _Shape(
        ap=(4.0, 4.6, 5.4, 6.4, 7.4, 8.0, 8.5),
        y=(4.1, 4.6, 4.6, 4.5, 4.5, 4.5, 4.6),
        radius_x=(0.0, 1.7, 2.6, 2.9, 2.9, 2.4, 0.0),
        radius_y=(0.0, 1.6, 2.1, 2.4, 2.5, 2.3, 0.0),
        layers=((0.0, 6, 0.22), (0.18, 7, 0.5)),
    ),
    "amygdala": _Shape(
        ap=(3.8, 4.6, 5.8, 7.2, 8.2),
        x=(1.5, 1.6, 2.2, 2.8, 3.0),
        y=(6.0, 6.1, 6.1, 6.0, 5.8),
        radius_x=(0.0, 1.5, 1.8, 1.2, 0.0),
        radius_y=(0.0, 0.8, 0.9, 0.95, 0.0),
        tilt=(0.0, -10.0, -14.0, -10.0, 0.0),
        layers=((0.0, 7, 0.54),),
        inside=True,
    ),
    "caudoputamen": _Shape(
        ap=(3.7, 4.5, 5.4, 6.3, 7.2, 7.6),
        x=(1.6, 1.75, 2.15, 2.75, 3.2, 3.3),
        y=(4.1, 4.1, 4.0, 4.2, 4.5, 4.7),
        radius_x=(0.0, 0.95, 1.15, 0.8, 0.45, 0.0),
        radius_y=(0.0, 1.35, 1.45, 1.35, 0.9, 0.0),
        tilt=(0.0, 10.0, 0.0, -18.0, -24.0, -24.0),
        layers=((0.0, 8, 0.56), (0.3, 8, 0.64)),
        inside=True,
    ),
    "hippocampus": _Shape(
        ap=(6.1, 6.6, 7.3, 8.0, 8.7, 9.3, 9.9),
        x=(0.6, 1.05, 1.6, 2.0, 2.3, 2.65, 2.9),
        y=(2.6, 2.8, 3.2, 3.8, 4.0, 3.8, 3.6),
        radius_x=(0.0, 1.15, 1.75, 1.9, 1.6, 1.1, 0.0),
        radius_y=(0.0, 0.55, 0.95, 1.7, 2.1, 1.7, 0.0),
        tilt=(0.0, 10.0, 24.0, 20.0, -12.0, -26.0, -30.0),
        layers=((0.0, 6, 0.24), (0.08, 13, 0.52), (0.28, 13, 0.88), (0.36, 13, 0.44)),
        inside=True,
    ),
    "dentate": _Shape(
        ap=(6.5, 6.9, 7.5, 8.1, 8.7, 9.2, 9.5),
        x=(0.7, 0.95, 1.35, 1.9, 2.35, 2.7, 2.8),
        y=(2.9, 3.0, 3.3, 3.8, 3.9, 3.8, 3.7),
        radius_x=(0.0, 0.75, 1.05, 1.2, 0.85, 0.5, 0.0),
        radius_y=(0.0, 0.32, 0.48, 0.95, 1.35, 1.0, 0.0),
        tilt=(10.0, 12.0, 24.0, 30.0, -12.0, -26.0, -26.0),
        layers=((0.0, 14, 0.4), (0.14, 14, 0.9), (0.22, 14, 0.5)),
        inside=True,
    ),
    "septum": _Shape(
        ap=(4.4, 4.9, 5.6, 6.2),
        y=(4.2, 4.1, 3.9, 3.4),
        radius_x=(0.0, 0.55, 0.75, 0.0),
        radius_y=(0.0, 1.15, 1.15, 0.0),
        layers=((0.0, 9, 0.5), (0.25, 9, 0.6)),
        inside=True,
    ),
    "lateral ventricle": _Shape(
        ap=(4.2, 4.9, 5.6, 6.2, 6.7),
        x=(0.8, 0.85, 1.0, 1.4, 1.9),
        y=(3.8, 3.7, 3.3, 3.0, 3.0),
        radius_x=(0.0, 0.17, 0.22, 0.16, 0.0),
        radius_y=(0.0, 0.75, 0.75, 0.8, 0.0),
        tilt=(10.0, 14.0, 30.0, 60.0, 60.0),
        layers=((0.0, 11, 0.05),),
        inside=True,
    ),
    "thalamus": _Shape(
        ap=(5.8, 6.4, 7.2, 7.9, 8.5),
        y=(4.5, 4.4, 4.5, 4.5, 4.5),
        radius_x=(0.0, 1.6, 2.25, 2.1, 0.0),
        radius_y=(0.0, 1.15, 1.3, 1.3, 0.0),
        layers=((0.0, 6, 0.28), (0.1, 15, 0.58), (0.6, 15, 0.49)),
    ),
    "hypothalamus": _Shape(
        ap=(5.0, 5.7, 6.6, 7.6, 8.4, 8.9),
        y=6.1,
        radius_x=(0.0, 1.1, 1.6, 1.6, 1.4, 0.0),
        radius_y=(0.0, 0.95, 1.25, 1.2, 0.9, 0.0),
        layers=((0.0, 16, 0.44), (0.3, 16, 0.54)),
    ),
    "anterior commissure": _Shape(
        ap=(3.0, 4.0, 5.0, 5.3, 5.6),
        x=(1.1, 1.1, 0.95, 0.55, 0.0),
        y=(5.3, 5.4, 5.4, 5.3, 5.2),
        radius_x=(0.0, 0.2, 0.24, 0.65, 0.0),
        radius_y=(0.0, 0.28, 0.22, 0.14, 0.0),
        layers=((0.0, 10, 0.2),),
        inside=True,
    ),
    "tegmentum": _Shape(
        ap=(7.7, 8.3, 9.0, 9.8, 10.6, 11.3),
        y=(4.6, 4.6, 4.6, 4.5, 4.4, 4.4),
        radius_x=(0.0, 2.0, 2.35, 2.25, 1.9, 0.0),
        radius_y=(0.0, 1.5, 1.8, 1.8, 1.5, 0.0),
        layers=((0.0, 17, 0.44), (0.6, 17, 0.5), (1.0, 17, 0.42)),
    ),
    "pons": _Shape(
        ap=(8.2, 9.0, 9.8, 10.8, 11.6, 12.4, 13.0, 13.6),
        y=(6.2, 6.1, 5.8, 5.9, 6.0, 6.1, 6.1, 6.1),
        radius_x=(0.0, 1.9, 2.35, 2.45, 2.25, 1.9, 1.6, 0.0),
        radius_y=(0.0, 1.15, 1.65, 1.65, 1.45, 1.2, 1.0, 0.0),
        layers=((0.0, 22, 0.36), (0.2, 22, 0.48), (0.9, 22, 0.55)),
    ),
    "colliculus": _Shape(
        ap=(7.8, 8.4, 9.2, 9.9, 10.6, 11.1),
        x=(0.7, 0.75, 0.8, 0.85, 0.9, 0.9),
        y=(3.4, 3.1, 2.8, 2.6, 2.5, 2.5),
        radius_x=(0.0, 1.1, 1.25, 1.15, 0.95, 0.0),
        radius_y=(0.0, 0.85, 1.1, 1.05, 0.85, 0.0),
        tilt=(0.0, 12.0, 12.0, 0.0, 0.0, 0.0),
        layers=((0.0, 17, 0.66), (0.3, 17, 0.46), (0.42, 17, 0.58)),
    ),
    "periaqueductal grey": _Shape(
        ap=(7.9, 8.5, 9.6, 10.6),
        y=(3.8, 3.6, 3.6, 3.9),
        radius_x=(0.0, 0.6, 0.85, 0.0),
        radius_y=(0.0, 0.65, 0.8, 0.0),
        layers=((0.0, 17, 0.6),),
        inside=True,
    ),
    "third ventricle": _Shape(
        ap=(5.5, 6.2, 7.6, 8.2),
        y=(5.6, 5.5, 5.6, 5.8),
        radius_x=(0.0, 0.11, 0.11, 0.0),
        radius_y=(0.0, 1.4, 1.3, 0.0),
        layers=((0.0, 12, 0.06),),
        inside=True,
    ),
    "aqueduct": _Shape(
        ap=(8.1, 8.6, 9.8, 10.4, 10.7),
        y=(3.6, 3.5, 3.5, 3.8, 4.0),
        radius_x=(0.0, 0.16, 0.28, 0.2, 0.0),
        radius_y=(0.0, 0.26, 0.38, 0.24, 0.0),
        layers=((0.0, 18, 0.05),),
        inside=True,
    ),
    "flocculus": _Shape(
        ap=(10.3, 11.0, 11.7, 12.2),
        x=(3.0, 3.1, 3.1, 3.0),
        y=(5.3, 5.4, 5.3, 5.2),
        radius_x=(0.0, 0.65, 0.55, 0.0),
        radius_y=(0.0, 0.85, 0.75, 0.0),
        tilt=(0.0, -10.0, -10.0, 0.0),
        layers=_FOLIA,
        clefts=(5, 0.14),
    ),
    "cerebellar hemisphere": _Shape(
        ap=(10.0, 10.6, 11.3, 12.0, 12.6, 13.1, 13.4),
        x=(2.2, 1.9, 1.7, 1.6, 1.4, 1.1, 1.0),
        y=(3.7, 3.5, 3.3, 3.3, 3.4, 3.5, 3.5),
        radius_x=(0.0, 1.3, 1.7, 1.65, 1.4, 0.95, 0.0),
        radius_y=(0.0, 1.7, 2.2, 2.2, 1.9, 1.3, 0.0),
        tilt=(-60.0, -60.0, -60.0, -65.0, -70.0, -70.0, -70.0),
        layers=_FOLIA,
        clefts=(9, 0.16),
    ),
    "vermis": _Shape(
        ap=(10.1, 10.8, 11.5, 12.2, 12.8, 13.2, 13.5),
        y=(3.0, 2.9, 2.9, 3.1, 3.3, 3.4, 3.4),
        radius_x=(0.0, 1.2, 1.15, 1.15, 1.0, 0.8, 0.0),
        radius_y=(0.0, 1.0, 1.6, 1.65, 1.3, 0.9, 0.0),
        layers=_FOLIA,
        clefts=(8, 0.14),
    ),
    "fourth ventricle": _Shape(
        ap=(10.5, 11.1, 12.1, 12.7),
        y=(4.6, 4.7, 4.9, 5.0),
        radius_x=(0.0, 0.7, 0.85, 0.0),
        radius_y=(0.0, 0.17, 0.15, 0.0),
        layers=((0.0, 23, 0.05),),
        inside=True,
    ),
}
"""In the order of painting."""

_EDGE_MM = 0.06  # Width of the ramps of brightness at outlines and between layers.
_BEND_MM = 0.04  # Largest amplitude of each wave that bends the grid; there are four along each axis.
_TEXTURE = ((1.6, 0.05), (0.45, 0.05), (0.12, 0.05))  # (cell in mm, relative amplitude) of each octave.


def phantom_ontology() -> Ontology:
    """Return the phantom's regions as a tree: the brain, its parts, and `PHANTOM_REGIONS`."""
    regions = [Region(_ROOT_ID, "root", "brain", (_ROOT_ID,), (255, 255, 255))]
    for part_id, (acronym, name, members) in enumerate(_PARTS, _ROOT_ID + 1):
        path = (_ROOT_ID, part_id)
        hue = (part_id - _ROOT_ID) / (len(_PARTS) + 1)
        regions.append(Region(part_id, acronym, name, path, _color(hue, 0.4)))
        for place, (region_id, short) in enumerate(members.items(), 1):
            color = _color(hue, 0.4 + 0.6 * place / len(members))
            regions.append(Region(region_id, short, PHANTOM_REGIONS[region_id], (*path, region_id), color))
    return Ontology(regions)


def _color(hue: float, saturation: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def phantom_volume(*, shape: tuple[int, int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the template and the labels of one animal, both uint8 of `shape` (P, H, W); background is 0 in both.

    Plane i is the section in the middle of the i-th of P equal slabs of the 13.2 mm. In a plane the outermost pixel
    centres lie on the frame's edges, so the anatomy is the same at every size. The aspect ratio 320:456 does not
    distort it.

    Args:
        shape: (P, H, W).
        seed: Another seed is another animal: shapes vary by a few per cent, the texture is drawn anew.

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
        self._shapes = [(shape, _vary(shape, rng)) for shape in _SHAPES.values()]
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


def _vary(shape: _Shape, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the curves (6, keys) of a shape, slightly shifted, scaled and turned; shapes on the midline stay there.

    The rows are ap, x, y, both radii **squared**, which makes the ends round instead of pointed, and the tilt.
    """
    columns = (shape.ap, shape.x, shape.y, shape.radius_x, shape.radius_y, shape.tilt)
    curves = np.array(np.broadcast_arrays(*columns))
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
    shape: _Shape,
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
    # The ramp is centred on the outline, except against the background, where it ends on the outline.
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
    shape: _Shape, ellipse: NDArray[np.float32], x: NDArray[np.float32], y: NDArray[np.float32]
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
    layers: tuple[_Layer, ...], depth: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the label and the brightness at each depth, the latter with a ramp from each layer to the next."""
    starts, labels, brightness = (np.array(column) for column in zip(*layers, strict=True))
    label = labels.astype(np.uint8)[np.searchsorted(starts[1:], depth, side="right")]
    ramps = (starts[1:, None] + [-_EDGE_MM / 2, _EDGE_MM / 2]).ravel()
    return label, np.interp(depth, [0, *ramps], [brightness[0], *np.repeat(brightness, 2)[1:-1]])


def _mirror(half: NDArray[_Value], width: int) -> NDArray[_Value]:
    """Return the whole plane whose right side, including a middle column if there is one, is `half`."""
    return np.concatenate([half[:, ::-1][:, : width // 2], half], axis=1)
