"""Shapes as QuPath exchanges them: GeoJSON whose coordinates start at the corner of the first pixel.

QuPath's (0.5, 0.5) is the centre of the first pixel, (0, 0) everywhere else in this package.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Points
from atlalign.errors import InputError
from atlalign.registration.regions import RegionName

_NESTING = {
    "Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3,
}  # fmt: skip
_SCATTERED = ("Point", "MultiPoint")
_CHILDREN = ("childObjects", "children")


class Moved(NamedTuple):
    """How much was moved.

    Attributes:
        shapes: The number of geometries.
        before: Their points (N, 2) before, with those that were put between them.
        after: The same points where they are now.
    """

    shapes: int
    before: Points
    after: Points


def move_shapes(content: Any, move: Callable[[Points], Points], *, longest_edge: float) -> Moved:
    """Move all shapes of a GeoJSON document, in place; everything else in it stays as it is.

    Shapes are those of features, and of QuPath's nuclei and child objects. What QuPath draws as an ellipse becomes a
    polygon. Straight edges get points in between, for a field bends them.

    Args:
        content: A FeatureCollection, a feature, a geometry, or a list of them, as `json` reads it.
        move: Takes points (N, 2), in pixels from the centre of the first one, to where they belong.
        longest_edge: So long may an edge be, in pixels, without a point in between.

    Raises:
        InputError: If it is no GeoJSON, or a position is not two numbers.
    """
    geometries = list(_geometries(content))
    lines = [line for geometry in geometries for line in _lines(geometry, longest_edge)]
    before = np.concatenate([np.zeros((0, 2)), *(line.points for line in lines)]) - 0.5
    after = move(before)
    start = 0
    for line in lines:
        positions = (after[start : start + len(line.points)] + 0.5).round(3).tolist()
        line.parent[line.key] = positions[0] if line.is_single else positions
        start += len(line.points)
    for geometry in geometries:
        geometry.pop("isEllipse", None)
    return Moved(len(geometries), before, after)


def outlines(labels: NDArray[Any], regions: Mapping[int, RegionName]) -> dict[str, Any]:
    """Return the outlines of a label image as a FeatureCollection, each region an annotation with its parts and holes.

    Outlines run along the edges of pixels and cut their corners.

    Args:
        labels: (h, w) integers, 0 for none.
        regions: What they are called, and their colours; others have their number as name.
    """
    from scipy.ndimage import find_objects

    ids, place = np.unique(labels, return_inverse=True)
    boxes = find_objects(place.reshape(labels.shape) + 1)
    features = [
        _outlined(labels, int(region_id), (rows, columns), regions.get(int(region_id)))
        for region_id, (rows, columns) in zip(ids, boxes, strict=True)
        if region_id != 0
    ]
    return {"type": "FeatureCollection", "features": features}


def _outlined(
    labels: NDArray[Any], region_id: int, box: tuple[slice, slice], region: RegionName | None
) -> dict[str, Any]:
    """Return the feature of a region that lies in a box of the image."""
    from contourpy import FillType, contour_generator

    mask = np.pad(labels[box] == region_id, 1).astype(np.float64)
    filled: Any = contour_generator(z=mask, fill_type=FillType.OuterOffset).filled(0.5, 2)
    # The box's first pixel is the second of the mask, and its centre half a pixel from its corner.
    origin = np.array([box[1].start, box[0].start]) - 0.5
    parts = [
        [ring.tolist() for ring in np.split(points + origin, ends[1:-1])]
        for points, ends in zip(*filled, strict=True)
    ]
    return {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": parts},
        "properties": _annotation(region_id, region),
    }


def _annotation(region_id: int, region: RegionName | None) -> dict[str, Any]:
    """Return properties as QuPath reads them."""
    region = region or RegionName()
    classification: dict[str, Any] = {"name": region.acronym or str(region_id)}
    if region.color is not None:
        classification["color"] = list(region.color)
    return {
        "objectType": "annotation",
        "name": region.name or str(region_id),
        "classification": classification,
        "metadata": {"region_id": str(region_id)},
    }


# --- nested documents -------------------------------------------------------------------------------------------------


class _Line(NamedTuple):
    """Positions that follow one another, and where they stand in the document."""

    parent: Any
    key: Any
    points: Points
    is_single: bool


def _geometries(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the geometries in a document, which hold coordinates."""
    if isinstance(content, list):
        for entry in content:
            yield from _geometries(entry)
        return
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "Feature":
        yield from _of_feature(content)
    elif kind == "FeatureCollection":
        yield from _geometries(content.get("features"))
    elif kind == "GeometryCollection":
        yield from _geometries(content.get("geometries"))
    elif kind in _NESTING:
        yield content
    else:
        raise InputError(f"expected GeoJSON, found {str(content)[:40]!r} in place of a feature or geometry")


def _of_feature(feature: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for key in ("geometry", "nucleusGeometry"):
        if feature.get(key) is not None:
            yield from _geometries(feature[key])
    properties = feature.get("properties") or {}
    for key in _CHILDREN:
        yield from _geometries(properties.get(key) or [])


def _lines(geometry: dict[str, Any], longest_edge: float) -> Iterator[_Line]:
    kind, nested = geometry["type"], geometry.get("coordinates")
    if kind == "Point":
        yield _Line(geometry, "coordinates", _positions([nested]), is_single=True)
        return
    if not isinstance(nested, list):
        raise _no_positions(nested)
    for parent, key in _places(geometry, "coordinates", _NESTING[kind]):
        points = _positions(parent[key])
        yield _Line(
            parent, key, points if kind in _SCATTERED else _densified(points, longest_edge), is_single=False
        )


def _places(parent: Any, key: Any, nesting: int) -> Iterator[tuple[Any, Any]]:
    """Yield where in nested lists the lists of positions stand."""
    if nesting == 1:
        yield parent, key
        return
    if not isinstance(parent[key], list):
        raise _no_positions(parent[key])
    for place in range(len(parent[key])):
        yield from _places(parent[key], place, nesting - 1)


def _positions(coordinates: Any) -> Points:
    try:
        points = np.array(coordinates, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise _no_positions(coordinates) from error
    if points.size and (points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all()):
        raise _no_positions(coordinates)
    return points.reshape(-1, 2)


def _no_positions(found: Any) -> InputError:
    return InputError(f"expected positions (x, y) of two numbers each, found {str(found)[:40]!r}")


def _densified(points: Points, longest_edge: float) -> Points:
    """Return a line (N, 2) with points in between, so that none of its edges is longer than given."""
    if len(points) < 2:
        return points
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if lengths.max() <= longest_edge:
        return points
    pieces = np.maximum(1, np.ceil(lengths / longest_edge)).astype(int)
    # The place along the line, where point i of the old one is at i.
    place = np.concatenate([np.arange(n) / n + i for i, n in enumerate(pieces)] + [[len(points) - 1.0]])
    old = np.arange(len(points))
    return np.column_stack([np.interp(place, old, points[:, axis]) for axis in (0, 1)])
