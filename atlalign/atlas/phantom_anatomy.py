"""The anatomy of the phantom: its regions, and the ellipses that are painted one over the other.

The centres, radii and tilts of the ellipses are interpolated along the anterior-posterior axis (AP). Lengths are in mm
on a frame of 13.2 (AP, from the front) × 8 (DV, downwards) × 11.4 (ML), that of the Allen atlas, with the midline at
x = 0. The numbers are drawn by hand, roughly as a mouse brain looks. They contain no data of any atlas, and nothing
should be measured on them.
"""

import colorsys
from dataclasses import dataclass

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

_Curve = tuple[float, ...] | float
Layer = tuple[float, int, float]


@dataclass(frozen=True)
class Shape:
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
    layers: tuple[Layer, ...]
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
SHAPES: dict[str, Shape] = {
    "olfactory bulb": Shape(
        ap=(0.1, 0.5, 1.2, 2.0, 2.8, 3.5, 4.0),
        x=(0.7, 0.7, 0.75, 0.8, 0.85, 0.9, 0.9),
        y=(4.2, 4.2, 4.2, 4.5, 5.2, 5.6, 5.8),
        radius_x=(0.0, 0.62, 0.76, 0.8, 0.85, 0.9, 0.0),
        radius_y=(0.0, 1.1, 1.65, 1.55, 1.1, 0.7, 0.0),
        tilt=(0.0, 4.0, 4.0, 4.0, 8.0, 8.0, 8.0),
        layers=((0.0, 1, 0.72), (0.16, 1, 0.4), (0.34, 1, 0.8), (0.4, 2, 0.56), (0.62, 2, 0.38)),
    ),
    "cerebral hemisphere": Shape(
        ap=(1.7, 2.2, 2.8, 3.5, 4.4, 5.4, 6.4, 7.2, 8.0, 8.7, 9.4, 10.0, 10.6),
        x=(0.75, 0.8, 0.95, 1.1, 1.3, 1.55, 1.75, 1.95, 2.2, 2.45, 2.75, 3.0, 3.2),
        y=(2.9, 2.9, 3.3, 3.9, 4.1, 4.1, 4.0, 3.9, 3.8, 3.6, 3.4, 3.2, 3.0),
        radius_x=(0.0, 0.9, 1.5, 2.15, 2.7, 2.95, 3.0, 2.9, 2.65, 2.25, 1.7, 1.15, 0.0),
        radius_y=(0.0, 0.95, 1.6, 2.45, 2.95, 3.15, 3.3, 3.3, 3.15, 2.95, 2.65, 2.1, 0.0),
        tilt=(0.0, 0.0, 0.0, 0.0, -4.0, -8.0, -14.0, -18.0, -22.0, -26.0, -30.0, -30.0, -30.0),
        layers=((0.0, 3, 0.66), (0.16, 4, 0.52), (0.5, 5, 0.6), (0.95, 6, 0.22), (1.12, 7, 0.5)),
        midline_gap=0.04,
    ),
    "the region below the corpus callosum, which forms its rim": Shape(
        ap=(4.0, 4.6, 5.4, 6.4, 7.4, 8.0, 8.5),
        y=(4.1, 4.6, 4.6, 4.5, 4.5, 4.5, 4.6),
        radius_x=(0.0, 1.7, 2.6, 2.9, 2.9, 2.4, 0.0),
        radius_y=(0.0, 1.6, 2.1, 2.4, 2.5, 2.3, 0.0),
        layers=((0.0, 6, 0.22), (0.18, 7, 0.5)),
    ),
    "amygdala": Shape(
        ap=(3.8, 4.6, 5.8, 7.2, 8.2),
        x=(1.5, 1.6, 2.2, 2.8, 3.0),
        y=(6.0, 6.1, 6.1, 6.0, 5.8),
        radius_x=(0.0, 1.5, 1.8, 1.2, 0.0),
        radius_y=(0.0, 0.8, 0.9, 0.95, 0.0),
        tilt=(0.0, -10.0, -14.0, -10.0, 0.0),
        layers=((0.0, 7, 0.54),),
        inside=True,
    ),
    "caudoputamen": Shape(
        ap=(3.7, 4.5, 5.4, 6.3, 7.2, 7.6),
        x=(1.6, 1.75, 2.15, 2.75, 3.2, 3.3),
        y=(4.1, 4.1, 4.0, 4.2, 4.5, 4.7),
        radius_x=(0.0, 0.95, 1.15, 0.8, 0.45, 0.0),
        radius_y=(0.0, 1.35, 1.45, 1.35, 0.9, 0.0),
        tilt=(0.0, 10.0, 0.0, -18.0, -24.0, -24.0),
        layers=((0.0, 8, 0.56), (0.3, 8, 0.64)),
        inside=True,
    ),
    "hippocampus": Shape(
        ap=(6.1, 6.6, 7.3, 8.0, 8.7, 9.3, 9.9),
        x=(0.6, 1.05, 1.6, 2.0, 2.3, 2.65, 2.9),
        y=(2.6, 2.8, 3.2, 3.8, 4.0, 3.8, 3.6),
        radius_x=(0.0, 1.15, 1.75, 1.9, 1.6, 1.1, 0.0),
        radius_y=(0.0, 0.55, 0.95, 1.7, 2.1, 1.7, 0.0),
        tilt=(0.0, 10.0, 24.0, 20.0, -12.0, -26.0, -30.0),
        layers=((0.0, 6, 0.24), (0.08, 13, 0.52), (0.28, 13, 0.88), (0.36, 13, 0.44)),
        inside=True,
    ),
    "dentate": Shape(
        ap=(6.5, 6.9, 7.5, 8.1, 8.7, 9.2, 9.5),
        x=(0.7, 0.95, 1.35, 1.9, 2.35, 2.7, 2.8),
        y=(2.9, 3.0, 3.3, 3.8, 3.9, 3.8, 3.7),
        radius_x=(0.0, 0.75, 1.05, 1.2, 0.85, 0.5, 0.0),
        radius_y=(0.0, 0.32, 0.48, 0.95, 1.35, 1.0, 0.0),
        tilt=(10.0, 12.0, 24.0, 30.0, -12.0, -26.0, -26.0),
        layers=((0.0, 14, 0.4), (0.14, 14, 0.9), (0.22, 14, 0.5)),
        inside=True,
    ),
    "septum": Shape(
        ap=(4.4, 4.9, 5.6, 6.2),
        y=(4.2, 4.1, 3.9, 3.4),
        radius_x=(0.0, 0.55, 0.75, 0.0),
        radius_y=(0.0, 1.15, 1.15, 0.0),
        layers=((0.0, 9, 0.5), (0.25, 9, 0.6)),
        inside=True,
    ),
    "lateral ventricle": Shape(
        ap=(4.2, 4.9, 5.6, 6.2, 6.7),
        x=(0.8, 0.85, 1.0, 1.4, 1.9),
        y=(3.8, 3.7, 3.3, 3.0, 3.0),
        radius_x=(0.0, 0.17, 0.22, 0.16, 0.0),
        radius_y=(0.0, 0.75, 0.75, 0.8, 0.0),
        tilt=(10.0, 14.0, 30.0, 60.0, 60.0),
        layers=((0.0, 11, 0.05),),
        inside=True,
    ),
    "thalamus": Shape(
        ap=(5.8, 6.4, 7.2, 7.9, 8.5),
        y=(4.5, 4.4, 4.5, 4.5, 4.5),
        radius_x=(0.0, 1.6, 2.25, 2.1, 0.0),
        radius_y=(0.0, 1.15, 1.3, 1.3, 0.0),
        layers=((0.0, 6, 0.28), (0.1, 15, 0.58), (0.6, 15, 0.49)),
    ),
    "hypothalamus": Shape(
        ap=(5.0, 5.7, 6.6, 7.6, 8.4, 8.9),
        y=6.1,
        radius_x=(0.0, 1.1, 1.6, 1.6, 1.4, 0.0),
        radius_y=(0.0, 0.95, 1.25, 1.2, 0.9, 0.0),
        layers=((0.0, 16, 0.44), (0.3, 16, 0.54)),
    ),
    "anterior commissure": Shape(
        ap=(3.0, 4.0, 5.0, 5.3, 5.6),
        x=(1.1, 1.1, 0.95, 0.55, 0.0),
        y=(5.3, 5.4, 5.4, 5.3, 5.2),
        radius_x=(0.0, 0.2, 0.24, 0.65, 0.0),
        radius_y=(0.0, 0.28, 0.22, 0.14, 0.0),
        layers=((0.0, 10, 0.2),),
        inside=True,
    ),
    "tegmentum": Shape(
        ap=(7.7, 8.3, 9.0, 9.8, 10.6, 11.3),
        y=(4.6, 4.6, 4.6, 4.5, 4.4, 4.4),
        radius_x=(0.0, 2.0, 2.35, 2.25, 1.9, 0.0),
        radius_y=(0.0, 1.5, 1.8, 1.8, 1.5, 0.0),
        layers=((0.0, 17, 0.44), (0.6, 17, 0.5), (1.0, 17, 0.42)),
    ),
    "pons": Shape(
        ap=(8.2, 9.0, 9.8, 10.8, 11.6, 12.4, 13.0, 13.6),
        y=(6.2, 6.1, 5.8, 5.9, 6.0, 6.1, 6.1, 6.1),
        radius_x=(0.0, 1.9, 2.35, 2.45, 2.25, 1.9, 1.6, 0.0),
        radius_y=(0.0, 1.15, 1.65, 1.65, 1.45, 1.2, 1.0, 0.0),
        layers=((0.0, 22, 0.36), (0.2, 22, 0.48), (0.9, 22, 0.55)),
    ),
    "colliculus": Shape(
        ap=(7.8, 8.4, 9.2, 9.9, 10.6, 11.1),
        x=(0.7, 0.75, 0.8, 0.85, 0.9, 0.9),
        y=(3.4, 3.1, 2.8, 2.6, 2.5, 2.5),
        radius_x=(0.0, 1.1, 1.25, 1.15, 0.95, 0.0),
        radius_y=(0.0, 0.85, 1.1, 1.05, 0.85, 0.0),
        tilt=(0.0, 12.0, 12.0, 0.0, 0.0, 0.0),
        layers=((0.0, 17, 0.66), (0.3, 17, 0.46), (0.42, 17, 0.58)),
    ),
    "periaqueductal grey": Shape(
        ap=(7.9, 8.5, 9.6, 10.6),
        y=(3.8, 3.6, 3.6, 3.9),
        radius_x=(0.0, 0.6, 0.85, 0.0),
        radius_y=(0.0, 0.65, 0.8, 0.0),
        layers=((0.0, 17, 0.6),),
        inside=True,
    ),
    "third ventricle": Shape(
        ap=(5.5, 6.2, 7.6, 8.2),
        y=(5.6, 5.5, 5.6, 5.8),
        radius_x=(0.0, 0.11, 0.11, 0.0),
        radius_y=(0.0, 1.4, 1.3, 0.0),
        layers=((0.0, 12, 0.06),),
        inside=True,
    ),
    "aqueduct": Shape(
        ap=(8.1, 8.6, 9.8, 10.4, 10.7),
        y=(3.6, 3.5, 3.5, 3.8, 4.0),
        radius_x=(0.0, 0.16, 0.28, 0.2, 0.0),
        radius_y=(0.0, 0.26, 0.38, 0.24, 0.0),
        layers=((0.0, 18, 0.05),),
        inside=True,
    ),
    "flocculus": Shape(
        ap=(10.3, 11.0, 11.7, 12.2),
        x=(3.0, 3.1, 3.1, 3.0),
        y=(5.3, 5.4, 5.3, 5.2),
        radius_x=(0.0, 0.65, 0.55, 0.0),
        radius_y=(0.0, 0.85, 0.75, 0.0),
        tilt=(0.0, -10.0, -10.0, 0.0),
        layers=_FOLIA,
        clefts=(5, 0.14),
    ),
    "cerebellar hemisphere": Shape(
        ap=(10.0, 10.6, 11.3, 12.0, 12.6, 13.1, 13.4),
        x=(2.2, 1.9, 1.7, 1.6, 1.4, 1.1, 1.0),
        y=(3.7, 3.5, 3.3, 3.3, 3.4, 3.5, 3.5),
        radius_x=(0.0, 1.3, 1.7, 1.65, 1.4, 0.95, 0.0),
        radius_y=(0.0, 1.7, 2.2, 2.2, 1.9, 1.3, 0.0),
        tilt=(-60.0, -60.0, -60.0, -65.0, -70.0, -70.0, -70.0),
        layers=_FOLIA,
        clefts=(9, 0.16),
    ),
    "vermis": Shape(
        ap=(10.1, 10.8, 11.5, 12.2, 12.8, 13.2, 13.5),
        y=(3.0, 2.9, 2.9, 3.1, 3.3, 3.4, 3.4),
        radius_x=(0.0, 1.2, 1.15, 1.15, 1.0, 0.8, 0.0),
        radius_y=(0.0, 1.0, 1.6, 1.65, 1.3, 0.9, 0.0),
        layers=_FOLIA,
        clefts=(8, 0.14),
    ),
    "fourth ventricle": Shape(
        ap=(10.5, 11.1, 12.1, 12.7),
        y=(4.6, 4.7, 4.9, 5.0),
        radius_x=(0.0, 0.7, 0.85, 0.0),
        radius_y=(0.0, 0.17, 0.15, 0.0),
        layers=((0.0, 23, 0.05),),
        inside=True,
    ),
}
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
