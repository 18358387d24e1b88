"""The anatomy of the phantom: its regions, and the ellipses that are painted one over the other.

The centres, radii and tilts of the ellipses are interpolated along the anterior-posterior axis (AP). Lengths are in mm,
in the frame of the Allen atlas: 13.2 (AP, from the front) × 8 (DV, downwards) × 11.4 (ML), with the midline at x = 0.
The numbers were chosen by hand to look roughly like a mouse brain. They come from no atlas, and are not meant for
measurements.
"""

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.ontology import Ontology, Region

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

Layer = tuple[float, int, float]


@dataclass(frozen=True)
class Shape:
    """An ellipse in each half of the coronal planes, layered from its outline inwards.

    Attributes:
        curves: (6, keys), the rows of `_KEY_PLANES`. The shape is interpolated between its key planes and does not
            extend beyond them.
        layers: (depth below the outline at which the layer starts, label, brightness in [0, 1]).
        inside: Paint the shape only over existing tissue.
        clefts: (number, depth relative to the smaller radius) of the clefts that scallop the outline.
        midline_gap: Half the width of the fissure along the midline.
    """

    curves: NDArray[np.float64]
    layers: tuple[Layer, ...]
    inside: bool = False
    clefts: tuple[int, float] = (0, 0.0)
    midline_gap: float = 0.0


# Each shape has one row per key plane:
# its position along AP, the centre's distance x from the midline and its height y, downwards from the top,
# the radii along x and y before the tilt, and the tilt in degrees, positive where the lower end turns to the midline.
_KEY_PLANES = """
olfactory bulb
    0.1    0.7    4.2      0      0      0
    0.5    0.7    4.2   0.62    1.1      4
    1.2   0.75    4.2   0.76   1.65      4
      2    0.8    4.5    0.8   1.55      4
    2.8   0.85    5.2   0.85    1.1      8
    3.5    0.9    5.6    0.9    0.7      8
      4    0.9    5.8      0      0      8
cerebral hemisphere
    1.7   0.75    2.9      0      0      0
    2.2    0.8    2.9    0.9   0.95      0
    2.8   0.95    3.3    1.5    1.6      0
    3.5    1.1    3.9   2.15   2.45      0
    4.4    1.3    4.1    2.7   2.95     -4
    5.4   1.55    4.1   2.95   3.15     -8
    6.4   1.75      4      3    3.3    -14
    7.2   1.95    3.9    2.9    3.3    -18
      8    2.2    3.8   2.65   3.15    -22
    8.7   2.45    3.6   2.25   2.95    -26
    9.4   2.75    3.4    1.7   2.65    -30
     10      3    3.2   1.15    2.1    -30
   10.6    3.2      3      0      0    -30
the region below the corpus callosum, which forms its rim
      4      0    4.1      0      0      0
    4.6      0    4.6    1.7    1.6      0
    5.4      0    4.6    2.6    2.1      0
    6.4      0    4.5    2.9    2.4      0
    7.4      0    4.5    2.9    2.5      0
      8      0    4.5    2.4    2.3      0
    8.5      0    4.6      0      0      0
amygdala
    3.8    1.5      6      0      0      0
    4.6    1.6    6.1    1.5    0.8    -10
    5.8    2.2    6.1    1.8    0.9    -14
    7.2    2.8      6    1.2   0.95    -10
    8.2      3    5.8      0      0      0
caudoputamen
    3.7    1.6    4.1      0      0      0
    4.5   1.75    4.1   0.95   1.35     10
    5.4   2.15      4   1.15   1.45      0
    6.3   2.75    4.2    0.8   1.35    -18
    7.2    3.2    4.5   0.45    0.9    -24
    7.6    3.3    4.7      0      0    -24
hippocampus
    6.1    0.6    2.6      0      0      0
    6.6   1.05    2.8   1.15   0.55     10
    7.3    1.6    3.2   1.75   0.95     24
      8      2    3.8    1.9    1.7     20
    8.7    2.3      4    1.6    2.1    -12
    9.3   2.65    3.8    1.1    1.7    -26
    9.9    2.9    3.6      0      0    -30
dentate
    6.5    0.7    2.9      0      0     10
    6.9   0.95      3   0.75   0.32     12
    7.5   1.35    3.3   1.05   0.48     24
    8.1    1.9    3.8    1.2   0.95     30
    8.7   2.35    3.9   0.85   1.35    -12
    9.2    2.7    3.8    0.5      1    -26
    9.5    2.8    3.7      0      0    -26
septum
    4.4      0    4.2      0      0      0
    4.9      0    4.1   0.55   1.15      0
    5.6      0    3.9   0.75   1.15      0
    6.2      0    3.4      0      0      0
lateral ventricle
    4.2    0.8    3.8      0      0     10
    4.9   0.85    3.7   0.17   0.75     14
    5.6      1    3.3   0.22   0.75     30
    6.2    1.4      3   0.16    0.8     60
    6.7    1.9      3      0      0     60
thalamus
    5.8      0    4.5      0      0      0
    6.4      0    4.4    1.6   1.15      0
    7.2      0    4.5   2.25    1.3      0
    7.9      0    4.5    2.1    1.3      0
    8.5      0    4.5      0      0      0
hypothalamus
      5      0    6.1      0      0      0
    5.7      0    6.1    1.1   0.95      0
    6.6      0    6.1    1.6   1.25      0
    7.6      0    6.1    1.6    1.2      0
    8.4      0    6.1    1.4    0.9      0
    8.9      0    6.1      0      0      0
anterior commissure
      3    1.1    5.3      0      0      0
      4    1.1    5.4    0.2   0.28      0
      5   0.95    5.4   0.24   0.22      0
    5.3   0.55    5.3   0.65   0.14      0
    5.6      0    5.2      0      0      0
tegmentum
    7.7      0    4.6      0      0      0
    8.3      0    4.6      2    1.5      0
      9      0    4.6   2.35    1.8      0
    9.8      0    4.5   2.25    1.8      0
   10.6      0    4.4    1.9    1.5      0
   11.3      0    4.4      0      0      0
pons
    8.2      0    6.2      0      0      0
      9      0    6.1    1.9   1.15      0
    9.8      0    5.8   2.35   1.65      0
   10.8      0    5.9   2.45   1.65      0
   11.6      0      6   2.25   1.45      0
   12.4      0    6.1    1.9    1.2      0
     13      0    6.1    1.6      1      0
   13.6      0    6.1      0      0      0
colliculus
    7.8    0.7    3.4      0      0      0
    8.4   0.75    3.1    1.1   0.85     12
    9.2    0.8    2.8   1.25    1.1     12
    9.9   0.85    2.6   1.15   1.05      0
   10.6    0.9    2.5   0.95   0.85      0
   11.1    0.9    2.5      0      0      0
periaqueductal grey
    7.9      0    3.8      0      0      0
    8.5      0    3.6    0.6   0.65      0
    9.6      0    3.6   0.85    0.8      0
   10.6      0    3.9      0      0      0
third ventricle
    5.5      0    5.6      0      0      0
    6.2      0    5.5   0.11    1.4      0
    7.6      0    5.6   0.11    1.3      0
    8.2      0    5.8      0      0      0
aqueduct
    8.1      0    3.6      0      0      0
    8.6      0    3.5   0.16   0.26      0
    9.8      0    3.5   0.28   0.38      0
   10.4      0    3.8    0.2   0.24      0
   10.7      0      4      0      0      0
flocculus
   10.3      3    5.3      0      0      0
     11    3.1    5.4   0.65   0.85    -10
   11.7    3.1    5.3   0.55   0.75    -10
   12.2      3    5.2      0      0      0
cerebellar hemisphere
     10    2.2    3.7      0      0    -60
   10.6    1.9    3.5    1.3    1.7    -60
   11.3    1.7    3.3    1.7    2.2    -60
     12    1.6    3.3   1.65    2.2    -65
   12.6    1.4    3.4    1.4    1.9    -70
   13.1    1.1    3.5   0.95    1.3    -70
   13.4      1    3.5      0      0    -70
vermis
   10.1      0      3      0      0      0
   10.8      0    2.9    1.2      1      0
   11.5      0    2.9   1.15    1.6      0
   12.2      0    3.1   1.15   1.65      0
   12.8      0    3.3      1    1.3      0
   13.2      0    3.4    0.8    0.9      0
   13.5      0    3.4      0      0      0
fourth ventricle
   10.5      0    4.6      0      0      0
   11.1      0    4.7    0.7   0.17      0
   12.1      0    4.9   0.85   0.15      0
   12.7      0      5      0      0      0
"""
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
_PAINT: dict[str, dict[str, Any]] = {
    "olfactory bulb": {
        "layers": ((0.0, 1, 0.72), (0.16, 1, 0.4), (0.34, 1, 0.8), (0.4, 2, 0.56), (0.62, 2, 0.38))
    },
    "cerebral hemisphere": {
        "layers": ((0.0, 3, 0.66), (0.16, 4, 0.52), (0.5, 5, 0.6), (0.95, 6, 0.22), (1.12, 7, 0.5)),
        "midline_gap": 0.04,
    },
    "the region below the corpus callosum, which forms its rim": {"layers": ((0.0, 6, 0.22), (0.18, 7, 0.5))},
    "amygdala": {"layers": ((0.0, 7, 0.54),), "inside": True},
    "caudoputamen": {"layers": ((0.0, 8, 0.56), (0.3, 8, 0.64)), "inside": True},
    "hippocampus": {
        "layers": ((0.0, 6, 0.24), (0.08, 13, 0.52), (0.28, 13, 0.88), (0.36, 13, 0.44)),
        "inside": True,
    },
    "dentate": {"layers": ((0.0, 14, 0.4), (0.14, 14, 0.9), (0.22, 14, 0.5)), "inside": True},
    "septum": {"layers": ((0.0, 9, 0.5), (0.25, 9, 0.6)), "inside": True},
    "lateral ventricle": {"layers": ((0.0, 11, 0.05),), "inside": True},
    "thalamus": {"layers": ((0.0, 6, 0.28), (0.1, 15, 0.58), (0.6, 15, 0.49))},
    "hypothalamus": {"layers": ((0.0, 16, 0.44), (0.3, 16, 0.54))},
    "anterior commissure": {"layers": ((0.0, 10, 0.2),), "inside": True},
    "tegmentum": {"layers": ((0.0, 17, 0.44), (0.6, 17, 0.5), (1.0, 17, 0.42))},
    "pons": {"layers": ((0.0, 22, 0.36), (0.2, 22, 0.48), (0.9, 22, 0.55))},
    "colliculus": {"layers": ((0.0, 17, 0.66), (0.3, 17, 0.46), (0.42, 17, 0.58))},
    "periaqueductal grey": {"layers": ((0.0, 17, 0.6),), "inside": True},
    "third ventricle": {"layers": ((0.0, 12, 0.06),), "inside": True},
    "aqueduct": {"layers": ((0.0, 18, 0.05),), "inside": True},
    "flocculus": {"layers": _FOLIA, "clefts": (5, 0.14)},
    "cerebellar hemisphere": {"layers": _FOLIA, "clefts": (9, 0.16)},
    "vermis": {"layers": _FOLIA, "clefts": (8, 0.14)},
    "fourth ventricle": {"layers": ((0.0, 23, 0.05),), "inside": True},
}


def _curves() -> dict[str, NDArray[np.float64]]:
    """Return the curves (6, keys) of each shape, by the shape's name."""
    rows: dict[str, list[list[float]]] = {}
    for line in _KEY_PLANES.strip("\n").splitlines():
        if line[0].isalpha():
            rows[line] = planes = []
        else:
            planes.append([float(value) for value in line.split()])
    return {name: np.array(planes).T for name, planes in rows.items()}


SHAPES = {name: Shape(curves, **_PAINT[name]) for name, curves in _curves().items()}
"""In the order of painting."""


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
