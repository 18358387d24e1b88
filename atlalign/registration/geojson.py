"""Shapes in QuPath's GeoJSON, whose coordinates start at the corner of the first pixel.

QuPath's (0.5, 0.5) is the centre of the first pixel, (0, 0) everywhere else in this package.
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
        before: Their points (N, 2) before, including those inserted into long edges.
        after: The same points where they are now.
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

    Shapes are those of features, and of QuPath's nuclei and child objects. An ellipse of QuPath becomes a polygon.
    Long straight edges get points in between, because a field bends them. A third number of a position stays, and
    where points are inserted it is interpolated. Bounding boxes follow the shapes.

    Args:
        content: A FeatureCollection, a feature, a geometry, or a list of them, as `json` reads it.
        move: Maps points (N, 2), in pixels from the centre of the first one.
        longest_edge: The greatest length of an edge, in pixels.
        check: Raises an error if it refuses the document's own points (N, 2), in the same pixels.

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


def outlines(labels: NDArray[Any], regions: Mapping[int, RegionName]) -> dict[str, Any]:
    """Return the outlines of a label image as a FeatureCollection: one annotation per region, with holes.

    Outlines run along the edges of pixels and cut their corners.

    Args:
        labels: (h, w) integers, 0 for none.
        regions: Their names and colours; other labels are named by their number.
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
    """Positions (N, 2 or more) that follow one another, and their place in the document."""

    parent: Any
    key: Any
    positions: Points
    kind: str


def _geometries(content: Any) -> Iterator[dict[str, Any]]:
    """Yield the geometries in a document, which hold coordinates."""
    for found in _objects(content):
        if found["type"] in _NESTING:
            yield found


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """Yield all features, geometries and collections in a document, the outer ones first."""
    if isinstance(content, list):
        members = content
    else:
        members = _members(content)
        yield content
    for member in members:
        yield from _objects(member)


def _members(content: Any) -> list[Any]:
    """Return the features and geometries directly in an object of GeoJSON."""
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "Feature":
        return _of_feature(content)
    if kind in ("FeatureCollection", "GeometryCollection"):
        return _list_in(content, "features" if kind == "FeatureCollection" else "geometries")
    if not isinstance(kind, str) or kind not in _NESTING:
        raise InputError(f"expected GeoJSON, found {_start(content)} in place of a feature or geometry")
    return []


def _of_feature(feature: dict[str, Any]) -> list[Any]:
    properties = feature.get("properties")
    if not isinstance(properties, dict | None):
        raise InputError(f"expected GeoJSON, found {_start(properties)} in place of an object of properties")
    geometries = [feature[key] for key in ("geometry", "nucleusGeometry") if feature.get(key) is not None]
    nested = [key for key in _CHILDREN if properties and properties.get(key) is not None]
    return [*geometries, *(child for key in nested for child in _list_in(properties, key))]


def _list_in(content: Any, key: str) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise InputError(f"expected GeoJSON, found {_start(content.get(key))} in place of a list of {key}")
    members: list[Any] = content[key]
    return members


def _lines(geometry: dict[str, Any]) -> Iterator[_Line]:
    """Yield the lines of a geometry; a geometry may be empty."""
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
    """Yield where in nested lists the lists of positions stand."""
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
    """Return the beginning of a part of a document for a message, however deep it is nested."""
    try:
        return repr(str(found)[:40])
    except RecursionError:
        return "deeply nested lists"


# --- all lines at once ------------------------------------------------------------------------------------------------


def _stacked(lines: Sequence[_Line]) -> Points:
    """Return the positions of all lines (N, k); where some have fewer numbers than others, zeros follow."""
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
    """Return positions (M, k) with others in between so that no edge is too long, and each line's number of them."""
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
    """Put positions in place of those of lines."""
    start = 0
    for line, size in zip(lines, sizes.tolist(), strict=True):
        positions = points[start : start + size, : line.positions.shape[1]].tolist()
        line.parent[line.key] = positions[0] if line.kind == "Point" else positions
        start += size


def _update_boxes(content: Any) -> None:
    """Compute the bounding boxes in a document anew; an object without positions has none."""
    for found in [found for found in _objects(content) if isinstance(found.get("bbox"), list)]:
        positions = [line.positions for geometry in _geometries(found) for line in _lines(geometry)]
        if not positions:
            del found["bbox"]
            continue
        n_axes = 3 if len(found["bbox"]) == 6 and all(own.shape[1] > 2 for own in positions) else 2
        points = np.concatenate([own[:, :n_axes] for own in positions])
        found["bbox"] = [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]
