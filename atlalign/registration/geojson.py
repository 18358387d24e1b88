"""Shapes in QuPath's GeoJSON, whose coordinates start at the corner of the first pixel.

The centre of the first pixel is (0.5, 0.5) in QuPath and (0, 0) everywhere else in this package.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """The points of moved shapes.

    Attributes:
        shapes: The number of geometries.
        before: Their original points (N, 2), with the points inserted into long edges.
        after: The same points after the move.
    """

    shapes: int
    before: Points
    after: Points


def move_shapes(
    content: Any,
    move: Callable[[Points], Points],
    *,
    longest_edge: float,
    check: Callable[[Points], None] = lambda points: None,
) -> Moved:
    """Move all shapes of a GeoJSON document in place; everything else stays unchanged.

    Shapes are the geometries of features and of QuPath's nuclei and child objects. A QuPath ellipse becomes a polygon.
    Long straight edges get intermediate points, because a field bends them. A third coordinate is kept, and
    interpolated for intermediate points. Bounding boxes are updated.

    Args:
        content: A FeatureCollection, a feature, a geometry, or a list of these, as the module `json` reads it.
        move: Maps points (N, 2) in pixels; (0, 0) is the centre of the first pixel.
        longest_edge: The largest length of an edge in pixels.
        check: Raises an error if the document's own points (N, 2), in the same pixels, are invalid.

    Raises:
        InputError: If the document is not GeoJSON, or a position is not two or three numbers.
    """
    geometries = list(_geometries(content))
    lines = [line for geometry in geometries for line in _lines(geometry)]
    points = _stacked(lines)
    check(points[:, :2] - 0.5)
    points, sizes = _densified(points, lines, longest_edge)
    before = points[:, :2] - 0.5
    after = move(before)
    points[:, :2] = (after + 0.5).round(3)
    _replace(lines, points, sizes)
    for geometry in geometries:
        geometry.pop("isEllipse", None)
    _update_boxes(content)
    return Moved(len(geometries), before, after)


def rings(content: Any) -> Iterator[tuple[Points, ...]]:
    """Yield the polygons of a GeoJSON document: their outlines and holes (N, 2), in pixels from the image's corner.

    Raises:
        InputError: If the document is not GeoJSON, or has shapes other than polygons.
    """
    for geometry in _geometries(content):
        lines = list(_lines(geometry))
        if geometry["type"] not in ("Polygon", "MultiPolygon"):
            raise InputError(f"expected polygons, found a {geometry['type']}")
        parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
        own = iter(lines)
        for part in parts:
            yield tuple(next(own).positions[:, :2] for ring in part if ring)


def outlines(labels: NDArray[Any], regions: Mapping[int, RegionName]) -> dict[str, Any]:
    """Return the outlines of a label image as a FeatureCollection: one annotation per region, with holes.

    Outlines follow the edges of pixels and cut the corners.

    Args:
        labels: (h, w) integers; 0 is background.
        regions: Names and colours by label; the name of any other label is its number.
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
    """Return the feature of a region, given its bounding box in the image."""
    from contourpy import FillType, contour_generator

    mask = np.pad(labels[box] == region_id, 1).astype(np.float64)
    filled: Any = contour_generator(z=mask, fill_type=FillType.OuterOffset).filled(0.5, 2)
    # The box's first pixel is the mask's second, and the centre of a pixel is half a pixel from its corner.
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
    """Return the properties of a region in the form that QuPath reads."""
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
    """Consecutive positions (N, 2 or more), and their place in the document."""

    parent: Any
    key: Any
    positions: Points
    kind: str


def _geometries(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the geometries with coordinates in a document."""
    for found in _objects(content):
        if found["type"] in _NESTING:
            yield found


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """Yield all features, geometries and collections in a document, outer ones first."""
    if isinstance(content, list):
        members = content
    else:
        members = _members(content)
        yield content
    for member in members:
        yield from _objects(member)


def _members(content: Any) -> list[Any]:
    """Return the features and geometries directly inside a GeoJSON object."""
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "Feature":
        return _of_feature(content)
    if kind in ("FeatureCollection", "GeometryCollection"):
        return _list_in(content, "features" if kind == "FeatureCollection" else "geometries")
    if not isinstance(kind, str) or kind not in _NESTING:
        raise InputError(f"expected GeoJSON, found {_start(content)} instead of a feature or geometry")
    return []


def _of_feature(feature: dict[str, Any]) -> list[Any]:
    properties = feature.get("properties")
    if not isinstance(properties, dict | None):
        raise InputError(f"expected GeoJSON, found {_start(properties)} instead of an object with properties")
    geometries = [feature[key] for key in ("geometry", "nucleusGeometry") if feature.get(key) is not None]
    nested = [key for key in _CHILDREN if properties and properties.get(key) is not None]
    return [*geometries, *(child for key in nested for child in _list_in(properties, key))]


def _list_in(content: Any, key: str) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise InputError(f"expected GeoJSON, found {_start(content.get(key))} instead of a list of {key}")
    members: list[Any] = content[key]
    return members


def _lines(geometry: dict[str, Any]) -> Iterator[_Line]:
    """Yield the lines of a geometry, which may be empty."""
    kind, coordinates = geometry["type"], geometry.get("coordinates")
    if not isinstance(coordinates, list):
        raise _no_positions(coordinates)
    if kind == "Point":
        if coordinates:
            yield _Line(geometry, "coordinates", _positions([coordinates]), kind)
        return
    for parent, key in _places(geometry, "coordinates", _NESTING[kind]):
        yield _Line(parent, key, _positions(parent[key]), kind)


def _places(parent: Any, key: Any, nesting: int) -> Iterator[tuple[Any, Any]]:
    """Yield the places of lists of positions within nested lists, as pairs of parent and key."""
    if not isinstance(parent[key], list):
        raise _no_positions(parent[key])
    if nesting == 1:
        if parent[key]:
            yield parent, key
        return
    for place in range(len(parent[key])):
        yield from _places(parent[key], place, nesting - 1)


def _positions(coordinates: list[Any]) -> Points:
    try:
        points = np.array(coordinates)
    except ValueError as error:
        raise _no_positions(coordinates) from error
    is_numeric = points.dtype.kind in "iuf" and points.ndim == 2 and points.shape[1] >= 2
    if not is_numeric or not np.isfinite(points).all():
        raise _no_positions(coordinates)
    return points.astype(np.float64)


def _no_positions(found: Any) -> InputError:
    return InputError(f"expected positions (x, y) or (x, y, z) of finite numbers, found {_start(found)}")


def _start(found: Any) -> str:
    """Return the beginning of a part of a document for an error message, even if the part is deeply nested."""
    try:
        return repr(str(found)[:40])
    except RecursionError:
        return "deeply nested lists"


# --- all lines at once ------------------------------------------------------------------------------------------------


def _stacked(lines: Sequence[_Line]) -> Points:
    """Return the positions of all lines (N, k); positions with fewer than k numbers are padded with zeros."""
    n_axes = max((line.positions.shape[1] for line in lines), default=2)
    points = np.zeros((sum(len(line.positions) for line in lines), n_axes))
    start = 0
    for line in lines:
        n_points, n_own = line.positions.shape
        points[start : start + n_points, :n_own] = line.positions
        start += n_points
    return points


def _densified(
    points: Points, lines: Sequence[_Line], longest_edge: float
) -> tuple[Points, NDArray[np.int64]]:
    """Return positions (M, k) with intermediate ones so that no edge is too long, and the number in each line."""
    sizes = np.array([len(line.positions) for line in lines], np.int64)
    if not len(points):
        return points, sizes
    ends = np.cumsum(sizes)
    edges = np.diff(points, axis=0, append=points[-1:])
    edges[ends - 1] = 0
    is_scattered = np.repeat([line.kind in _SCATTERED for line in lines], sizes)
    lengths = np.where(is_scattered, 0, np.linalg.norm(edges[:, :2], axis=1))
    pieces = np.maximum(1, np.ceil(lengths / longest_edge)).astype(np.int64)
    first = np.cumsum(pieces) - pieces
    share = (np.arange(pieces.sum()) - np.repeat(first, pieces)) / np.repeat(pieces, pieces)
    dense = np.repeat(points, pieces, axis=0) + share[:, None] * np.repeat(edges, pieces, axis=0)
    return dense, np.add.reduceat(pieces, ends - sizes)


def _replace(lines: Sequence[_Line], points: Points, sizes: NDArray[np.int64]) -> None:
    """Replace the positions of lines in the document."""
    start = 0
    for line, size in zip(lines, sizes.tolist(), strict=True):
        positions = points[start : start + size, : line.positions.shape[1]].tolist()
        line.parent[line.key] = positions[0] if line.kind == "Point" else positions
        start += size


def _update_boxes(content: Any) -> None:
    """Recompute the bounding boxes in a document; an object without positions loses its box."""
    for found in [found for found in _objects(content) if isinstance(found.get("bbox"), list)]:
        positions = [line.positions for geometry in _geometries(found) for line in _lines(geometry)]
        if not positions:
            del found["bbox"]
            continue
        n_axes = 3 if len(found["bbox"]) == 6 and all(own.shape[1] > 2 for own in positions) else 2
        points = np.concatenate([own[:, :n_axes] for own in positions])
        found["bbox"] = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
