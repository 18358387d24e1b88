"""VisuAlign's file of a registration: the plane of each section, and markers that give its deformation."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign import __version__
from atlalign.atlas.planes import Anchoring, Plane, Points, apply_affine, invert_affine
from atlalign.errors import InputError
from atlalign.io.files import written_whole
from atlalign.registration.transform import SectionTransform

MARKER_ERROR_UM = 25.0
"""How far VisuAlign's interpolation between markers may be off: a voxel of its atlas."""
MARKERS_AT_MOST = 400
"""VisuAlign's triangulation takes time with the square of their number."""

_TARGET = "ABA_Mouse_CCFv3_2017_25um.cutlas"
_CANDIDATES = 128  # along the longer side of the section
_CORNERS = np.array([[-0.1, -0.1], [1.1, -0.1], [-0.1, 1.1], [1.1, 1.1]])

# --- areas of regions -------------------------------------------------------------------------------------------------


# --- VisuAlign and QuickNII -------------------------------------------------------------------------------------------


def visualign_slice(
    transform: SectionTransform,
    filename: str,
    number: int,
    *,
    anchoring: Anchoring | None = None,
    tissue: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Return a section's entry in VisuAlign's JSON: a linear anchoring, and markers for what it leaves.

    A marker (x, y, x′, y′) says that what the anchoring puts at (x, y) of the image lies at (x′, y′) of it, in pixels
    from the corner of the first one. VisuAlign interpolates linearly in the Delaunay triangles of all (x′, y′) and of
    four fixed points beyond the image's corners. Markers are added where that is most wrong, until it reproduces the
    inverse transform to `MARKER_ERROR_UM`, or there are `MARKERS_AT_MOST` of them. QuickNII takes the anchoring alone.

    Args:
        transform: With a plane of the Allen atlas.
        filename: The image's name.
        number: The section's number in its series.
        anchoring: One in that plane, as the section came with; None fits one to the transform.
        tissue: (h, w), of any size that covers the reference's frame; None takes all of it.

    Raises:
        InputError: If the reference is no plane of an atlas, or none of it lies in the section.
    """
    if transform.plane is None:
        raise InputError(f"{filename}: expected a plane of an atlas for VisuAlign, found another reference")
    pixels, points_mm = _pairs(transform, tissue)
    if anchoring is None:
        anchoring = _fitted(pixels, points_mm, transform.plane, transform.section.shape, filename)
    ml_dv_um = transform.plane.to_atlas(points_mm)[:, [2, 1]]
    chosen = _needed(pixels, ml_dv_um, anchoring)
    markers = np.hstack([apply_affine(anchoring.um_to_pixel(), ml_dv_um[chosen]), pixels[chosen]]) + 0.5
    height, width = transform.section.shape
    return {
        "filename": filename,
        "nr": number,
        "width": width,
        "height": height,
        "anchoring": anchoring.to_json(),
        "markers": markers.round(3).tolist(),
    }


def write_visualign(path: Path, slices: Sequence[Mapping[str, Any]]) -> None:
    """Write entries of `visualign_slice` as a file that VisuAlign and QuickNII open."""
    series = {"name": "", "target": _TARGET, "aligner": f"atlalign {__version__}", "slices": list(slices)}
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(series, ensure_ascii=False) + "\n", encoding="utf-8")


def _pairs(transform: SectionTransform, tissue: NDArray[np.bool_] | None) -> tuple[Points, Points]:
    """Return points (N, 2) all over the section, in its pixels, and where they lie in the reference, in mm.

    They are scattered: four on one circle would leave it open which triangles VisuAlign makes of them.
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
    kept = (x >= 0) & (y >= 0) & (x < grid.shape[1]) & (y < grid.shape[0])
    if tissue is not None:
        kept[kept] = tissue[y[kept], x[kept]]
    return pixels[kept], points_mm[kept]


def _shape(image: NDArray[Any]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _fitted(pixels: Points, points_mm: Points, plane: Plane, shape: tuple[int, int], name: str) -> Anchoring:
    """Return the anchoring whose affine map is closest to the transform."""
    if len(pixels) < 3:
        raise InputError(f"{name}: expected some of the reference in the section for VisuAlign, found none")
    design = np.column_stack([pixels, np.ones(len(pixels))])
    matrix = np.linalg.lstsq(design, points_mm)[0].T
    return Anchoring.of_plane(plane, np.asarray(matrix, np.float64), shape)


def _needed(pixels: Points, ml_dv_um: Points, anchoring: Anchoring) -> NDArray[np.intp]:
    """Return which of the pairs VisuAlign needs as markers."""
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import Delaunay

    height, width = anchoring.size
    corners = _CORNERS * (width, height) - 0.5
    corners_um = apply_affine(invert_affine(anchoring.um_to_pixel()), corners)
    chosen = np.zeros(0, np.intp)
    while len(chosen) < MARKERS_AT_MOST:
        triangles = Delaunay(np.vstack([corners, pixels[chosen]]))
        interpolate = LinearNDInterpolator(triangles, np.vstack([corners_um, ml_dv_um[chosen]]))
        error_um = np.linalg.norm(interpolate(pixels) - ml_dv_um, axis=1)
        worst = _worst_of_each(triangles.find_simplex(pixels), error_um)
        worst = worst[error_um[worst] > MARKER_ERROR_UM]
        if not len(worst):
            break
        chosen = np.concatenate([chosen, worst[: MARKERS_AT_MOST - len(chosen)]])
    return chosen


def _worst_of_each(triangle: NDArray[np.int32], error: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return which point of each triangle has the largest error, the largest first."""
    order = np.argsort(-error)
    _, first = np.unique(triangle[order], return_index=True)
    return order[np.sort(first)]
