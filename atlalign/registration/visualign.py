"""Export of registrations to VisuAlign: the plane of each section, and markers that give its deformation."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign import __version__
from atlalign.atlas.planes import Anchoring, Plane, Points, apply_affine, invert_affine
from atlalign.atlas.targets import Target
from atlalign.errors import InputError
from atlalign.io.files import written_whole
from atlalign.registration.record import RECORD
from atlalign.registration.region_growth import region_growth
from atlalign.registration.transform import SectionTransform

MARKER_ERROR_UM = 25.0
"""The largest permitted error of VisuAlign's interpolation between markers: one voxel of its atlas."""
MARKERS_AT_MOST = 400
"""The largest number of markers: the time of VisuAlign's triangulation grows with its square."""

_ALLEN = Target()
_log = logging.getLogger(__name__)

_PULL = 0.3  # of a marker to the pair that it was chosen for, relative to that of each pair on its triangles
_RIM_UM = 100.0
_CANDIDATES = 256  # along the longer side of the section
_LEAST_PAIRS = 60  # in regions whose areas are preserved
_AREA_UM = 1e5  # the error of one pair that counts as much as an error of all of a region's area
_CORNERS = np.array([[-0.1, -0.1], [1.1, -0.1], [-0.1, 1.1], [1.1, 1.1]])


def visualign_slice(
    transform: SectionTransform,
    filename: str,
    number: int,
    *,
    anchoring: Anchoring | None = None,
    tissue: NDArray[np.bool_] | None = None,
    labels: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Return a section's entry in VisuAlign's JSON: a linear anchoring, and markers for the remaining deformation.

    A marker (x, y, x′, y′) moves the atlas point that the anchoring puts at (x, y) to (x′, y′); both are in pixels of
    the image, from the corner of its first pixel. VisuAlign interpolates linearly in the Delaunay triangles of all
    (x′, y′) and four fixed points outside the image's corners. Markers are added where the error is largest, until it
    is at most `MARKER_ERROR_UM` everywhere or there are `MARKERS_AT_MOST` markers. QuickNII uses the anchoring alone.
    A small number of markers follows the deformation only roughly, but large regions keep their areas.

    The entry's anchoring is in voxels of `GRID`; `write_visualign` converts it to voxels of the atlas.

    Args:
        transform: The map of a section that is registered to a plane of an atlas.
        filename: The image's name.
        number: The section's number in its series.
        anchoring: The section's own anchoring in the reference plane; None fits an anchoring to the transform.
        tissue: A mask (h, w) of the reference, at any resolution; markers lie inside it. None means everywhere.
        labels: Region ids (h, w) of the reference, at any resolution.

    Raises:
        InputError: If the reference is not a plane of an atlas, or does not overlap the section.
    """
    if transform.plane is None:
        raise InputError(f"{filename}: expected a plane of an atlas for VisuAlign, found a reference image")
    pixels, points_mm = _pairs(transform, tissue)
    if anchoring is None:
        anchoring = _fitted(pixels, points_mm, transform.plane, transform.section.shape, filename)
    anchoring = Anchoring(anchoring.vectors, transform.section.shape)  # a list may refer to a smaller scan
    in_plane_um = transform.plane.to_atlas(points_mm)[:, anchoring.axes]
    chosen = _needed(pixels, in_plane_um, anchoring)
    growth = [] if labels is None else _growth_per_um(labels, points_mm, transform, anchoring)
    places_um = _least_squares(pixels, in_plane_um, chosen, anchoring, growth)
    overlay = apply_affine(anchoring.um_to_pixel(), places_um)
    markers = np.hstack([overlay, pixels[chosen]]) + 0.5
    height, width = transform.section.shape
    return {
        "filename": filename,
        "nr": number,
        "width": width,
        "height": height,
        "anchoring": anchoring.to_json(),
        "markers": markers.round(3).tolist(),
    }


def write_visualign(path: Path, slices: Sequence[Mapping[str, Any]], target: Target = _ALLEN) -> None:
    """Write entries of `visualign_slice` to a file that VisuAlign and QuickNII can open.

    Args:
        path: The file.
        slices: The entries.
        target: The atlas to which the sections are registered; its voxels are the unit of the file's anchorings.
    """
    series = {
        "name": "",
        "aligner": f"atlalign {__version__}",
        **target.to_json(),
        "slices": [_in_voxels(entry, target) for entry in slices],
    }
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(series, ensure_ascii=False) + "\n", encoding="utf-8")


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write VisuAlign's file of sections, given their records.

    A file names one atlas. If the sections are registered to several atlases, only those of the most common one are
    written.
    """
    targets = [Target.of_head(record, RECORD) for record in records]
    target, number = Counter(targets).most_common(1)[0]
    if number < len(records):
        _log.warning(
            "%s: the file names one atlas, %s: it leaves out %d sections that are registered to another one: give each "
            "atlas its own --out",
            *(path, target.name, len(records) - number),
        )
    slices = [record["visualign"] for record, own in zip(records, targets, strict=True) if own == target]
    write_visualign(path, _numbered(slices), target)


def _numbered(slices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return VisuAlign's entries by number; duplicate numbers are replaced, since calls without a list count from 1."""
    if len({entry["nr"] for entry in slices}) == len(slices):
        return sorted(slices, key=lambda entry: int(entry["nr"]))
    return [{**entry, "nr": number} for number, entry in enumerate(slices, start=1)]


def _in_voxels(entry: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """Return an entry with its anchoring in the voxels of an atlas."""
    vectors = np.array(entry["anchoring"], np.float64).reshape(3, 3)
    anchoring = Anchoring(vectors, (int(entry["height"]), int(entry["width"])))
    return {**entry, "anchoring": target.vectors(anchoring).ravel().tolist()}


def _pairs(transform: SectionTransform, tissue: NDArray[np.bool_] | None) -> tuple[Points, Points]:
    """Return points (N, 2) all over the section in its pixels, and their positions in the reference in mm.

    They are placed irregularly, because the Delaunay triangles of four points on a circle are ambiguous.
    """
    height, width = transform.section.shape
    spacing = max(height, width) / _CANDIDATES
    rows, columns = (max(2, round(size / spacing)) for size in (height, width))
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    shares = (cells + np.random.default_rng(0).uniform(0, 1, cells.shape)) / (columns, rows)
    pixels = shares * (width, height) - 0.5
    points_mm = transform.to_reference(pixels)
    grid = transform.forward.grid if tissue is None else transform.forward.grid.with_shape(_shape(tissue))
    x, y = np.rint(grid.to_pixels(points_mm)).astype(int).T
    if tissue is not None:
        tissue = _with_rim(tissue, round(_RIM_UM / min(grid.pixel_um)))
    kept = (x >= 0) & (y >= 0) & (x < grid.shape[1]) & (y < grid.shape[0])
    if tissue is not None:
        kept[kept] = tissue[y[kept], x[kept]]
    return pixels[kept], points_mm[kept]


def _with_rim(tissue: NDArray[np.bool_], rim_px: int) -> NDArray[np.bool_]:
    """Return tissue that is a few pixels wider, so that no triangle reaches from the outside into the tissue."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(tissue, iterations=rim_px)) if rim_px else tissue


def _shape(image: NDArray[Any]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _fitted(pixels: Points, points_mm: Points, plane: Plane, shape: tuple[int, int], name: str) -> Anchoring:
    """Return the anchoring whose affine map is closest to the transform."""
    if len(pixels) < 3:
        raise InputError(
            f"{name}: expected a section that overlaps its reference for VisuAlign, found no overlap"
        )
    design = np.column_stack([pixels, np.ones(len(pixels))])
    matrix = np.linalg.lstsq(design, points_mm)[0].T
    return Anchoring.of_plane(plane, np.asarray(matrix, np.float64), shape)


def _needed(pixels: Points, in_plane_um: Points, anchoring: Anchoring) -> NDArray[np.intp]:
    """Return the indices of the pairs that VisuAlign needs as markers."""
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import Delaunay

    corners, corners_um = _fixed_corners(anchoring)
    chosen = np.zeros(0, np.intp)
    while len(chosen) < MARKERS_AT_MOST:
        triangles = Delaunay(np.vstack([corners, pixels[chosen]]))
        interpolate = LinearNDInterpolator(triangles, np.vstack([corners_um, in_plane_um[chosen]]))
        error_um = np.linalg.norm(interpolate(pixels) - in_plane_um, axis=1)
        worst = _worst_of_each(triangles.find_simplex(pixels), error_um)
        worst = worst[error_um[worst] > MARKER_ERROR_UM]
        if not len(worst):
            break
        chosen = np.concatenate([chosen, worst[: MARKERS_AT_MOST - len(chosen)]])
    return chosen


def _growth_per_um(
    labels: NDArray[Any], points_mm: Points, transform: SectionTransform, anchoring: Anchoring
) -> list[Points]:
    """Return for each large region (N, 2): its relative growth per µm that each pair moves."""
    grid = transform.forward.grid.with_shape(_shape(labels))
    um_per_pixel = abs(np.linalg.det(anchoring.um_to_pixel()[:, :2])) ** -0.5
    spacing_um = max(transform.section.shape) / _CANDIDATES * um_per_pixel
    at, spacing_px = grid.to_pixels(points_mm), spacing_um / min(grid.pixel_um)
    return [found / grid.pixel_um for found in region_growth(labels, at, spacing_px, _LEAST_PAIRS)]


def _least_squares(
    pixels: Points,
    in_plane_um: Points,
    chosen: NDArray[np.intp],
    anchoring: Anchoring,
    growth: Sequence[Points],
) -> Points:
    """Return the positions (M, 2) of the chosen pairs at which VisuAlign's error over all pairs and areas is smallest.

    Triangles through the pairs themselves would cut all curves on the same side, so that regions gain or lose area.
    """
    from scipy.sparse import csr_array
    from scipy.spatial import Delaunay

    if not len(chosen):
        return in_plane_um[chosen]
    corners, corners_um = _fixed_corners(anchoring)
    triangles = Delaunay(np.vstack([corners, pixels[chosen]]))
    triangle = triangles.find_simplex(pixels)
    transform = triangles.transform[triangle]
    first = np.einsum("nij,nj->ni", transform[:, :2], pixels - transform[:, 2])
    shares = np.column_stack([first, 1 - first.sum(axis=1)])
    rows = np.repeat(np.arange(len(pixels)), 3)
    columns = triangles.simplices[triangle].ravel()
    matrix = csr_array((shares.ravel(), (rows, columns)), shape=(len(pixels), len(corners) + len(chosen)))
    fixed, free = matrix[:, : len(corners)], matrix[:, len(corners) :]
    start = in_plane_um[chosen]
    left = in_plane_um - fixed @ corners_um - free @ start
    # Markers that few pairs depend on stay near their own pair.
    normal = (free.T @ free).toarray() + _PULL**2 * np.eye(len(chosen))
    of_regions = _AREA_UM * np.array([(free.T @ region).T.ravel() for region in growth]).reshape(
        -1, 2 * len(chosen)
    )
    areas = _AREA_UM * np.array([(region * left).sum() for region in growth])
    both = np.kron(np.eye(2), normal) + of_regions.T @ of_regions  # of ML, then of DV
    wanted = (free.T @ left).T.ravel() + of_regions.T @ areas
    moves: Points = np.linalg.solve(both, wanted).reshape(2, -1).T
    return start + moves


def _fixed_corners(anchoring: Anchoring) -> tuple[Points, Points]:
    """Return the four points outside the image that VisuAlign keeps fixed, in pixels and in µm on the plane."""
    height, width = anchoring.size
    corners = _CORNERS * (width, height) - 0.5
    return corners, apply_affine(invert_affine(anchoring.um_to_pixel()), corners)


def _worst_of_each(triangle: NDArray[np.int32], error: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the index of the point with the largest error in each triangle, in descending order of error."""
    order = np.argsort(-error)
    _, first = np.unique(triangle[order], return_index=True)
    return order[np.sort(first)]
