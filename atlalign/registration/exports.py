"""What other programs read of a registration: areas of regions as CSV, and planes with markers for VisuAlign."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign import __version__
from atlalign.data.images import PixelSize
from atlalign.data.ontology import Ontology
from atlalign.data.sections import Anchoring, Plane, Points, apply_affine, invert_affine
from atlalign.data.tables import Table, read_table
from atlalign.errors import InputError
from atlalign.files import written_whole
from atlalign.registration.transform import SectionTransform

MARKER_ERROR_UM = 25.0
"""How far VisuAlign's interpolation between markers may be off: a voxel of its atlas."""
MARKERS_AT_MOST = 400
"""VisuAlign's triangulation takes time with the square of their number."""

_TARGET = "ABA_Mouse_CCFv3_2017_25um.cutlas"
_CANDIDATES = 128  # along the longer side of the section
_CORNERS = np.array([[-0.1, -0.1], [1.1, -0.1], [-0.1, 1.1], [1.1, 1.1]])

# --- areas of regions -------------------------------------------------------------------------------------------------

_Paths = dict[int, tuple[int, ...]]
"""The ids from the root down to a region, by the region's id."""


class RegionName(NamedTuple):
    """What a region is called.

    Attributes:
        acronym: Short name; empty if the ontology does not know the region.
        name: Full name.
        color: (r, g, b), each 0 to 255, or None.
        parent_id: Which region it is part of; 0 if of none, None if that is not known.
    """

    acronym: str = ""
    name: str = ""
    color: tuple[int, int, int] | None = None
    parent_id: int | None = None


class RegionAreas:
    """How many pixels each region has in a label image that is looked at band by band.

    Args:
        pixel_um: The size of a pixel.

    Attributes:
        pixels: How many each id has.
        left: How many of these lie left of the midline; None if that is not known.
    """

    def __init__(self, pixel_um: PixelSize) -> None:
        self.pixels: Counter[int] = Counter()
        self.left: Counter[int] | None = None
        self.pixel_mm2 = pixel_um[0] * pixel_um[1] / 1e6

    def counted(self, bands: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Yield bands of labels as they are, and count their pixels; 0 is no region."""
        for band in bands:
            self.pixels.update(_counts(band.ravel()))
            yield band

    def counted_by_side(
        self, bands: Iterable[tuple[NDArray[Any], NDArray[np.bool_]]]
    ) -> Iterator[NDArray[Any]]:
        """Yield bands of labels as `counted` does; each comes with where it lies left of the midline."""
        self.left = Counter()
        for band, is_left in bands:
            self.pixels.update(_counts(band.ravel()))
            self.left.update(_counts(band[is_left]))
            yield band


def _counts(labels: NDArray[Any]) -> dict[int, int]:
    """Return how often each label (N,) occurs but 0."""
    if not labels.size:
        return {}
    # Runs of one label: sorting these few takes a fraction of sorting all pixels.
    starts = np.concatenate([[0], np.flatnonzero(labels[1:] != labels[:-1]) + 1])
    lengths = np.diff(starts, append=labels.size)
    ids, place = np.unique(labels[starts], return_inverse=True)
    pixels = np.bincount(place, weights=lengths)
    return {int(i): int(n) for i, n in zip(ids, pixels, strict=True) if i != 0}


def write_regions(
    path: Path, areas: RegionAreas, ontology: Ontology | None, *, known: Iterable[int] = ()
) -> None:
    """Write a table of areas, the largest with all parts first.

    Its columns are id, acronym, name, color, and, of what the atlas gives to a region but to none of its parts,
    area_mm2, pixels and the share of all regions. Where sides were counted, left_mm2 and right_mm2 follow area_mm2.
    Where the ontology is a tree, there are parent_id and area_with_parts_mm2 as well, the latter also by side, and rows
    of all that regions are part of.

    Args:
        path: The CSV file.
        areas: What was counted.
        ontology: What the ids mean; those that it does not know have an empty name.
        known: Ids that have a row even if the section shows nothing of them.
    """
    paths = _paths({*areas.pixels, *(int(i) for i in known)}, ontology)
    whole = _with_parts(areas.pixels, paths)
    ids = sorted(paths, key=lambda i: (-whole[i], len(paths[i]), i))
    columns = _own_columns(ids, areas, ontology)
    if ontology is not None and ontology.depth:
        left = None if areas.left is None else _with_parts(areas.left, paths)
        columns["parent_id"] = [paths[i][-2] if len(paths[i]) > 1 else "" for i in ids]
        columns |= _area_columns("_with_parts", ids, whole, left, areas.pixel_mm2)
    with written_whole(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _paths(ids: Iterable[int], ontology: Ontology | None) -> _Paths:
    """Return the paths of regions and of all that they are part of."""
    ends = [(i,) if ontology is None or i not in ontology else ontology[i].path for i in ids]
    return {region_id: path[: depth + 1] for path in ends for depth, region_id in enumerate(path)}


def _with_parts(pixels: Counter[int], paths: _Paths) -> Counter[int]:
    """Return how many pixels regions have together with their parts."""
    total: Counter[int] = Counter()
    for region_id, count in pixels.items():
        total.update(dict.fromkeys(paths[region_id], count))
    return total


def _own_columns(ids: Sequence[int], areas: RegionAreas, ontology: Ontology | None) -> dict[str, list[Any]]:
    called = [_called(i, ontology) for i in ids]
    total = areas.pixels.total() or 1
    return {
        "id": list(ids),
        "acronym": [acronym for acronym, _, _ in called],
        "name": [name for _, name, _ in called],
        "color": [color for _, _, color in called],
        **_area_columns("", ids, areas.pixels, areas.left, areas.pixel_mm2),
        "pixels": [areas.pixels[i] for i in ids],
        "share": [f"{areas.pixels[i] / total:.6g}" for i in ids],
    }


def _area_columns(
    suffix: str, ids: Sequence[int], pixels: Counter[int], left: Counter[int] | None, pixel_mm2: float
) -> dict[str, list[Any]]:
    """Return columns of areas, and where it is known what lies left of the midline, of those of both sides."""
    sides = {} if left is None else {"left": left, "right": pixels - left}
    return {
        f"{what}{suffix}_mm2": [f"{count[i] * pixel_mm2:.6g}" for i in ids]
        for what, count in {"area": pixels, **sides}.items()
    }


def _called(region_id: int, ontology: Ontology | None) -> tuple[str, str, str]:
    if ontology is None or region_id not in ontology:
        return "", "", ""
    region = ontology[region_id]
    return region.acronym, region.name, f"#{bytes(region.color).hex()}" if region.color else ""


def read_regions(path: Path) -> dict[int, RegionName]:
    """Return what the regions in a file of `write_regions` are called, by id.

    Raises:
        InputError: If the file cannot be read, or is no such table.
    """
    return region_names(read_table(path))


def region_names(table: Table) -> dict[int, RegionName]:
    """Return what the regions in a table of `write_regions` are called, by id.

    Raises:
        InputError: If it is no such table.
    """
    try:
        return {int(row["id"]): _region_name(row) for _, row in table.records([])}
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{table.path}: expected a table of regions: {type(error).__name__} {error}"
        ) from error


def upwards(region_id: int, regions: Mapping[int, RegionName]) -> Iterator[int]:
    """Yield a region and all that it is part of, each once, whatever a damaged table says."""
    seen: set[int] = set()
    while region_id in regions and region_id not in seen:
        yield region_id
        seen.add(region_id)
        region_id = regions[region_id].parent_id or 0


def _region_name(row: Mapping[str, str]) -> RegionName:
    parent = row.get("parent_id")
    parent_id = None if parent is None else int(parent or 0)
    if not row["color"]:
        return RegionName(row["acronym"], row["name"], None, parent_id)
    red, green, blue = bytes.fromhex(row["color"].removeprefix("#"))
    return RegionName(row["acronym"], row["name"], (red, green, blue), parent_id)


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


def _worst_of_each(triangle: NDArray[np.int32], error: Points) -> NDArray[np.intp]:
    """Return which point of each triangle has the largest error, the largest first."""
    order = np.argsort(-error)
    _, first = np.unique(triangle[order], return_index=True)
    return order[np.sort(first)]
