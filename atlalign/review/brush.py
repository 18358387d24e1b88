"""Areas that the user paints with a round brush."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from atlalign.atlas.planes import Points

_PIXELS_PER_RADIUS = 24
_LONGEST_PX = 4000
_SHRINK = 4  # averaging makes the edge smooth


def stroke_area(stroke: Points, radius: float) -> tuple[Points, ...]:
    """Return the outline and the holes of a stroke; a single point is a disc.

    Args:
        stroke: (N, 2), the path of the brush's centre.
        radius: The radius of the brush.
    """
    from contourpy import FillType, contour_generator

    first, last = stroke.min(axis=0) - 2 * radius, stroke.max(axis=0) + 2 * radius
    scale = min(_PIXELS_PER_RADIUS / radius, _LONGEST_PX / float((last - first).max()))
    width, height = np.ceil((last - first) * scale).astype(int) + _SHRINK
    picture = Image.new("L", (int(width), int(height)))
    draw = ImageDraw.Draw(picture)
    points = ((stroke - first) * scale).tolist()
    thick = radius * scale - 0.5  # Pillow's ellipse includes the pixels on its edge
    draw.line([(x, y) for x, y in points], fill=255, width=round(2 * thick + 1))
    for x, y in points:
        draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=255)
    small = np.asarray(picture.reduce(_SHRINK))
    lines: Any = contour_generator(z=small, fill_type=FillType.OuterOffset)
    polygons, offsets = lines.filled(127.5, np.inf)
    largest = max(range(len(polygons)), key=lambda n: len(polygons[n]))
    rings = np.split(np.asarray(polygons[largest]), np.asarray(offsets[largest])[1:-1].astype(int))
    drawn = [_SHRINK * ring + (_SHRINK - 1) / 2 for ring in rings]
    return tuple(np.asarray(ring / scale + first, np.float64).round(2) for ring in drawn)
