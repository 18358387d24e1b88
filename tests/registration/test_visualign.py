"""Exports against hand-counted areas, VisuAlign's way of reading them, and what ANTs makes of the transforms."""

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import Delaunay

from atlalign.atlas.ontology import Ontology, Region
from atlalign.atlas.planes import Anchoring, Plane, apply_affine
from atlalign.atlas.section_lists import read_list
from atlalign.errors import InputError
from atlalign.geometry import smooth_field
from atlalign.registration.displacement import Displacement
from atlalign.registration.grid import Grid
from atlalign.registration.record import FORWARD, INVERSE
from atlalign.registration.region_growth import region_growth
from atlalign.registration.regions import RegionAreas, read_regions, write_regions
from atlalign.registration.transform import SectionTransform
from atlalign.registration.visualign import MARKER_ERROR_UM, MARKERS_AT_MOST, visualign_slice, write_visualign

ONTOLOGY = Ontology(
    [
        Region(997, "root", "root", (997,), (255, 255, 255)),
        Region(8, "grey", "Basic cell groups, and regions", (997, 8), (191, 218, 227)),
    ]
)
REFERENCE = Grid((320, 456), (25.0, 25.0))
SECTION = Grid((900, 1200), (9.0, 10.0))
PLANE = Plane.at(5000, (12.5, 12.5), per_x=0.05, per_y=-0.02)


# --- areas of regions -------------------------------------------------------------------------------------------------


def test_areas_match_a_manual_count(tmp_path):
    labels = np.array([[0, 997, 997, 8], [8, 8, 8, 0], [614454277, 8, 8, 8]], np.uint32)
    areas = RegionAreas((2000.0, 500.0))
    bands = list(areas.counted([labels[:2], labels[2:]]))
    assert (np.concatenate(bands) == labels).all()
    write_regions(tmp_path / "regions.csv", areas, ONTOLOGY, known=[8, 7, 997])
    assert (tmp_path / "regions.csv").read_text().splitlines() == [
        "id,acronym,name,color,area_mm2,pixels,share,parent_id,area_with_parts_mm2",
        "997,root,root,#ffffff,2,2,0.2,,9",
        '8,grey,"Basic cell groups, and regions",#bfdae3,7,7,0.7,997,7',
        "614454277,,,,1,1,0.1,,1",
        "7,,,,0,0,0,,0",
    ]


DEEPER = Ontology(
    [
        *ONTOLOGY,
        Region(567, "CH", "Cerebrum", (997, 8, 567), (176, 240, 255)),
        Region(688, "CTX", "Cerebral cortex", (997, 8, 567, 688), (176, 255, 184)),
        Region(623, "CNU", "Cerebral nuclei", (997, 8, 567, 623), (152, 214, 249)),
    ]
)


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_regions_have_the_areas_of_their_parts_and_of_both_sides(tmp_path):
    """The cerebrum, which has one pixel of its own, and what is above it, which has none."""
    labels = np.array([[688, 688, 623, 567], [0, 688, 623, 5], [0, 0, 0, 0]])
    is_left = np.array([[True, True, False, False], [True, False, False, False], [False] * 4])
    areas = RegionAreas((1000.0, 2000.0))
    bands = areas.counted_by_side(zip(np.split(labels, 3), np.split(is_left, 3), strict=True))
    assert (np.concatenate(list(bands)) == labels).all()
    write_regions(tmp_path / "regions.csv", areas, DEEPER)
    table = read(tmp_path / "regions.csv")
    names = [
        "area_mm2", "left_mm2", "right_mm2",
        "area_with_parts_mm2", "left_with_parts_mm2", "right_with_parts_mm2", "parent_id",
    ]  # fmt: skip
    assert {i: [row[name] for name in names] for i, row in table.items()} == {
        "997": ["0", "0", "0", "12", "4", "8", ""],
        "8": ["0", "0", "0", "12", "4", "8", "997"],
        "567": ["2", "0", "2", "12", "4", "8", "8"],
        "688": ["6", "4", "2", "6", "4", "2", "567"],
        "623": ["4", "0", "4", "4", "0", "4", "567"],
        "5": ["2", "0", "2", "2", "0", "2", ""],
    }
    assert list(table) == ["997", "8", "567", "688", "623", "5"]
    parents = {i: region.parent_id for i, region in read_regions(tmp_path / "regions.csv").items()}
    assert parents == {997: 0, 8: 997, 567: 8, 688: 567, 623: 567, 5: 0}


@pytest.mark.parametrize("ontology", [None, Ontology([Region(8, "a", "b", (8,), (1, 2, 3))])])
def test_parent_regions_are_left_out_without_a_tree(tmp_path, ontology):
    areas = RegionAreas((1.0, 1.0))
    list(areas.counted([np.array([[8, 7]])]))
    write_regions(tmp_path / "regions.csv", areas, ontology)
    (first, *_) = read(tmp_path / "regions.csv").values()
    assert list(first) == ["id", "acronym", "name", "color", "area_mm2", "pixels", "share"]
    assert read_regions(tmp_path / "regions.csv")[7].parent_id is None


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_areas_do_not_depend_on_bands(rows):
    labels = np.random.default_rng(0).choice([0, 3, 5, 2**40], (64, 31))
    areas = RegionAreas((1.0, 1.0))
    list(areas.counted(np.array_split(labels, range(rows, 64, rows))))
    ids, pixels = np.unique(labels[labels > 0], return_counts=True)
    assert areas.pixels == dict(zip(ids.tolist(), pixels.tolist(), strict=True))


def test_table_of_regions_is_read_back(tmp_path):
    areas = RegionAreas((1.0, 1.0))
    list(areas.counted([np.array([[8, 997, 5]])]))
    write_regions(tmp_path / "regions.csv", areas, ONTOLOGY)
    regions = read_regions(tmp_path / "regions.csv")
    assert regions[8] == ("grey", "Basic cell groups, and regions", (191, 218, 227), 997)
    assert regions[5] == ("", "", None, 0)
    (tmp_path / "other.csv").write_text("x,y\n1,2\n")
    for name, sentence in [("other.csv", "columns id, acronym, name, color"), ("none.csv", "cannot be read")]:
        with pytest.raises(InputError, match=sentence):
            read_regions(tmp_path / name)


def test_a_region_without_a_color_has_an_empty_cell(tmp_path):
    write_regions(
        tmp_path / "regions.csv",
        RegionAreas((1.0, 1.0)),
        Ontology([Region(8, "a", "b", (8,), None)]),
        known=[8],
    )
    assert (tmp_path / "regions.csv").read_text().splitlines()[1:] == ["8,a,b,,0,0,0"]
    assert read_regions(tmp_path / "regions.csv")[8] == ("a", "b", None, None)


def test_no_region_at_all_is_a_table_of_zeros(tmp_path):
    write_regions(tmp_path / "regions.csv", RegionAreas((1.0, 1.0)), None, known=[8])
    assert (tmp_path / "regions.csv").read_text().splitlines()[1:] == ["8,,,,0,0,0"]


# --- VisuAlign and QuickNII -------------------------------------------------------------------------------------------


def turned(degrees: float, *, mirrored: bool) -> np.ndarray:
    """Return the map (2, 3) from the section's mm to the reference's: about their centres, 10 % larger."""
    angle = np.deg2rad(degrees)
    matrix = 1.1 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        matrix = matrix @ np.diag([-1, 1])
    section, reference = (
        np.array(grid.to_mm(np.array([[grid.shape[1], grid.shape[0]]])))[0] / 2
        for grid in (SECTION, REFERENCE)
    )
    return np.column_stack([matrix, reference - matrix @ section])


def affine_and_field(affine: np.ndarray, field_mm: float) -> SectionTransform:
    """Return a transform whose inverse is an affine map and then a smooth displacement of at most `field_mm`."""
    grid = SECTION.with_shape((150, 200))
    y, x = np.mgrid[:150, :200]
    points = grid.to_mm(np.stack([x, y], axis=-1).reshape(-1, 2).astype(float))
    shift = (apply_affine(affine, points) - points).T.reshape(2, 150, 200)
    drawn = smooth_field(1, grid.shape, spacing=0.4, generator=torch.Generator().manual_seed(3)).dvf[0]
    mm = torch.from_numpy(shift) + drawn * field_mm / drawn.norm(dim=0).max()
    # Only the inverse is exported.
    nothing = Displacement(REFERENCE, torch.zeros(2, *REFERENCE.shape))
    return SectionTransform(nothing, Displacement(grid, mm.float()), SECTION, PLANE)


def read_by_visualign(entry: dict, pixels: np.ndarray) -> np.ndarray:
    """Return where (AP, DV, ML) in µm VisuAlign sees pixels (x, y) of an image, from its JSON alone."""
    size = np.array([entry["width"], entry["height"]])
    corners = np.array([[-0.1, -0.1], [1.1, -0.1], [-0.1, 1.1], [1.1, 1.1]]) * size
    markers = np.array(entry["markers"]).reshape(-1, 4)
    linear = LinearNDInterpolator(
        Delaunay(np.vstack([corners, markers[:, 2:]])), np.vstack([corners, markers[:, :2]])
    )(pixels + 0.5)
    o, u, v = np.array(entry["anchoring"]).reshape(3, 3)
    s, t = (linear / size).T[..., None]
    x, y, z = (o + s * u + t * v).T
    return 25 * np.stack([528 - y, 320 - z, x], axis=1)


def error_um(entry: dict, transform: SectionTransform) -> np.ndarray:
    """Return how far VisuAlign is off at random places that lie in the reference."""
    pixels = np.random.default_rng(1).uniform(0, 1, (5000, 2)) * (SECTION.shape[1] - 1, SECTION.shape[0] - 1)
    points = transform.to_reference(pixels)
    x, y = REFERENCE.to_pixels(points).T
    inside = (x >= 0) & (x <= REFERENCE.shape[1] - 1) & (y >= 0) & (y <= REFERENCE.shape[0] - 1)
    assert inside.sum() > 1000
    found = read_by_visualign(entry, pixels) - PLANE.to_atlas(points)
    return np.linalg.norm(found, axis=1)[inside]


@pytest.mark.parametrize(("degrees", "mirrored"), [(0, False), (0, True), (90, False), (-25, True)])
@pytest.mark.parametrize("field_mm", [0.3, 2.0])
def test_visualign_matches_the_inverse_transform(degrees, mirrored, field_mm):
    transform = affine_and_field(turned(degrees, mirrored=mirrored), field_mm)
    entry = visualign_slice(transform, "a.png", 7)
    error = error_um(entry, transform)
    assert 3 < len(entry["markers"]) < MARKERS_AT_MOST
    assert error.mean() < MARKER_ERROR_UM / 2
    # Between the places that were looked at, it is a little more.
    assert error.max() < 1.4 * MARKER_ERROR_UM
    assert error_um({**entry, "markers": []}, transform).max() > 3 * MARKER_ERROR_UM


def test_an_affine_transform_needs_no_marker():
    transform = affine_and_field(turned(30, mirrored=True), 0.0)
    entry = visualign_slice(transform, "a.png", 7)
    assert entry["markers"] == []
    assert error_um(entry, transform).max() < 0.1


def test_the_anchoring_that_a_section_came_with_stays():
    """Markers then also say how far that anchoring was off, here 0.5 mm."""
    transform = affine_and_field(turned(0, mirrored=False), 0.3)
    fitted = np.array(visualign_slice(transform, "a.png", 7)["anchoring"]).reshape(3, 3)
    shifted = Anchoring(fitted + np.array([[20, 0, 0], [0, 0, 0], [0, 0, 0]]), SECTION.shape)
    # Back onto the plane, from which a shift along ML leads away.
    shifted = Anchoring(shifted.vectors - [[0, 20 * 0.05, 0], [0] * 3, [0] * 3], SECTION.shape)
    entry = visualign_slice(transform, "a.png", 7, anchoring=shifted)
    assert entry["anchoring"] == shifted.to_json()
    assert error_um(entry, transform).max() < 1.4 * MARKER_ERROR_UM


def test_a_list_of_thumbnails_has_the_markers_of_full_scans():
    transform = affine_and_field(turned(0, mirrored=False), 0.3)
    fitted = np.array(visualign_slice(transform, "a.png", 7)["anchoring"]).reshape(3, 3)
    small = Anchoring(fitted, (SECTION.shape[0] // 4, SECTION.shape[1] // 4))
    entry = visualign_slice(transform, "a.png", 7, anchoring=small)
    assert error_um(entry, transform).max() < 1.4 * MARKER_ERROR_UM


def test_markers_lie_in_tissue_alone():
    transform = affine_and_field(turned(0, mirrored=False), 2.0)
    tissue = np.zeros((16, 23), np.bool_)
    tissue[4:12, 6:17] = True
    entry = visualign_slice(transform, "a.png", 7, tissue=tissue)
    assert 3 < len(entry["markers"]) < len(visualign_slice(transform, "a.png", 7)["markers"])
    seen = transform.to_reference(np.array(entry["markers"])[:, 2:] - 0.5)
    x, y = np.rint(REFERENCE.with_shape((16, 23)).to_pixels(seen)).astype(int).T
    assert tissue[y, x].all()


def test_a_series_for_visualign_is_read_as_a_list_of_sections(tmp_path):
    transform = affine_and_field(turned(10, mirrored=True), 0.3)
    write_visualign(tmp_path / "visualign.json", [visualign_slice(transform, "é.png", 7)])
    series = json.loads((tmp_path / "visualign.json").read_text(encoding="utf-8"))
    assert series["target"] == "ABA_Mouse_CCFv3_2017_25um.cutlas"
    (listed,) = read_list(tmp_path / "visualign.json")
    assert (listed.path.name, listed.identity.image_id) == ("é.png", 7)
    assert listed.anchoring.size == SECTION.shape
    assert listed.anchoring.tilt == pytest.approx((0.05, -0.02))


def test_deformations_that_visualign_cannot_show_are_reported():
    transform = affine_and_field(turned(0, mirrored=False), 0.0)
    elsewhere = SectionTransform(transform.forward, transform.inverse, SECTION, None)
    with pytest.raises(InputError, match=r"a\.png: expected a plane"):
        visualign_slice(elsewhere, "a.png", 0)
    with pytest.raises(InputError, match=r"a\.png: .*overlap"):
        visualign_slice(transform, "a.png", 0, tissue=np.zeros((4, 4), np.bool_))


def brain() -> np.ndarray:
    """Regions 1 to 4 (456, 320) of QuickNII's voxels, ML from the left and DV from the bottom: layers around a core."""
    ml, dv = np.mgrid[:456, :320]
    radius = np.hypot((ml - 228) / 180, (dv - 160) / 120)
    layers = np.select([radius < 0.4, radius < 0.7, radius < 1], [1, 2, 3], 0)
    return np.where((layers == 3) & (ml > 228), 4, layers).astype(np.uint8)


def areas_by_pynutil(entry: dict, volume: np.ndarray) -> dict[int, float]:
    """Return the pixels of each region as PyNutil counts them: on a map of the atlas's resolution, pixel by pixel.

    This is the computation of PyNutil 0.6 (`atlas_map.get_region_areas`): places are those of the pixels' corners.
    """
    o, u, v = np.array(entry["anchoring"]).reshape(3, 3)
    width, height = (int(np.linalg.norm(side)) + 1 for side in (u, v))
    size = np.array([entry["width"], entry["height"]])
    rows, columns = np.mgrid[:height, :width]
    cells = np.stack([columns.ravel(), rows.ravel()], axis=1)
    voxels = np.floor(o + cells[:, :1] / width * u + cells[:, 1:] / height * v).astype(int)
    inside = ((voxels >= 0) & (voxels < volume.shape)).all(axis=1)
    overlay = np.zeros(len(cells), np.int64)
    overlay[inside] = volume[tuple(voxels[inside].T)]
    corners = np.array([[-0.1, -0.1], [1.1, -0.1], [-0.1, 1.1], [1.1, 1.1]]) * size
    markers = np.vstack([np.hstack([corners, corners]), np.array(entry["markers"]).reshape(-1, 4)])
    seen = LinearNDInterpolator(Delaunay(markers[:, 2:]), markers[:, :2])(cells * size / (width, height))
    x, y = (seen * (width, height) / size).astype(int).T
    inside = (seen >= 0).all(axis=1) & (x < width) & (y < height)
    ids, pixels = np.unique(overlay.reshape(height, width)[y[inside], x[inside]], return_counts=True)
    return dict(zip(ids.tolist(), (pixels * size.prod() / width / height).tolist(), strict=True))


@pytest.mark.parametrize(("degrees", "mirrored"), [(0, False), (-25, True)])
def test_pynutil_finds_the_areas_of_our_table(degrees, mirrored):
    transform = affine_and_field(turned(degrees, mirrored=mirrored), 0.5)
    labels = brain().T[::-1]  # DV from the top, ML from the left
    volume = np.broadcast_to(brain()[:, None], (456, 528, 320))
    areas = RegionAreas(SECTION.pixel_um)
    list(areas.counted(transform.label(labels)))
    entry = visualign_slice(transform, "a.png", 7, tissue=labels > 0)
    theirs = areas_by_pynutil(entry, volume)
    assert {i: theirs[i] for i in areas.pixels} == pytest.approx(dict(areas.pixels), rel=0.01)
    assert areas_by_pynutil({**entry, "markers": []}, volume) != pytest.approx(theirs, rel=0.01)


def test_few_markers_keep_the_areas_of_regions(monkeypatch):
    """25 markers cannot follow the field, but regions are as large in VisuAlign as in our table."""
    monkeypatch.setattr("atlalign.registration.visualign.MARKERS_AT_MOST", 25)
    transform = affine_and_field(turned(15, mirrored=True), 0.6)
    labels = brain().T[::-1]
    volume = np.broadcast_to(brain()[:, None], (456, 528, 320))
    areas = RegionAreas(SECTION.pixel_um)
    list(areas.counted(transform.label(labels)))

    def errors(**known) -> np.ndarray:
        entry = visualign_slice(transform, "a.png", 7, tissue=labels > 0, **known)
        theirs = areas_by_pynutil(entry, volume)
        return np.array([abs(theirs[i] / pixels - 1) for i, pixels in areas.pixels.items()])

    assert errors().max() > 0.012
    assert errors(labels=labels).max() < 0.006


def test_a_region_grows_by_the_points_that_cross_its_border():
    """Of points 4 pixels apart, 20 lie on each column: a quarter of them crosses a straight border for each pixel."""
    labels = np.where(np.arange(100) < 60, 7, 9) * np.ones((80, 1), int)
    y, x = np.mgrid[2:80:4, 2:100:4]
    at = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    left, right = region_growth(labels, at, 4.0, 10)
    assert left.sum(axis=0) == pytest.approx([-5 / 300, 0], rel=0.02, abs=1e-6)
    assert right.sum(axis=0) == pytest.approx([5 / 200, 0], rel=0.02, abs=1e-6)
    assert not left[x.ravel() < 40].any()
    assert len(region_growth(labels, at, 4.0, 250)) == 1
    assert region_growth(np.zeros((80, 100), int), at, 4.0, 1) == []


def test_pynutil_itself_finds_them():
    atlas_map = pytest.importorskip("PyNutil.processing.atlas_map")
    alignment = pytest.importorskip("PyNutil.processing.adapters")
    transform = affine_and_field(turned(-25, mirrored=True), 0.5)
    volume = np.broadcast_to(brain()[:, None], (456, 528, 320))
    entry = visualign_slice(transform, "a_s007.png", 7, tissue=brain().T[::-1] > 0)
    with TemporaryDirectory() as folder:
        write_visualign(Path(folder) / "visualign.json", [entry])
        (found,) = alignment.read_alignment(str(Path(folder) / "visualign.json")).slices
    table, _ = atlas_map.get_region_areas(None, entry["width"], entry["height"], found, volume, None)
    theirs = dict(zip(table["idx"].astype(int).tolist(), table["region_area"].tolist(), strict=True))
    ours = areas_by_pynutil(entry, volume)
    ours.pop(0)
    assert {i: theirs[i] for i in ours} == pytest.approx(ours, rel=1e-3)


# --- ITK and ANTs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> SectionTransform:
    """Two smooth maps, which move by some mm and unequally in x and y, on grids of their own."""

    def field(grid: Grid, seed: int, x: float, y: float) -> Displacement:
        drawn = smooth_field(1, grid.shape, generator=torch.Generator().manual_seed(seed)).dvf[0]
        return Displacement(grid, (0.1 * drawn + torch.tensor([x, y]).view(2, 1, 1)).float())

    section = Grid((90, 70), (40.0, 50.0))
    return SectionTransform(
        field(Grid((24, 40), (100.0, 120.0)), 1, -0.4, 0.3),
        field(section.with_shape((30, 24)), 2, 0.5, -0.2),
        section,
        None,
    )


def test_ants_makes_the_same_image_and_points_of_the_files(pair, tmp_path):
    ants = pytest.importorskip("ants")
    pandas = pytest.importorskip("pandas")
    pair.save(tmp_path, {})
    image = np.random.default_rng(0).uniform(10, 250, pair.section.shape).astype(np.float32)

    def held(array: np.ndarray, grid: Grid) -> object:
        return ants.from_numpy(array.T.copy(), spacing=[size / 1000 for size in grid.pixel_um])

    fixed = held(np.zeros(pair.reference.shape, np.float32), pair.reference)
    theirs = ants.apply_transforms(fixed, held(image, pair.section), [str(tmp_path / FORWARD)])
    ours = np.concatenate(list(pair.register(image)))
    assert np.abs(ours - theirs.numpy().T).max() < 0.01
    labels = np.random.default_rng(0).integers(1, 200, pair.forward.grid.shape).astype(np.float32)
    theirs = ants.apply_transforms(
        held(np.zeros(pair.section.shape, np.float32), pair.section),
        held(labels, pair.forward.grid),
        [str(tmp_path / INVERSE)],
        interpolator="nearestNeighbor",
    )
    assert (np.concatenate(list(pair.label(labels))) == theirs.numpy().T).mean() > 0.999
    pixels = np.random.default_rng(0).uniform(0, 1, (50, 2)) * (69, 89)
    table = pandas.DataFrame(pair.section.to_mm(pixels), columns=["x", "y"])
    moved = ants.apply_transforms_to_points(2, table, [str(tmp_path / INVERSE)])
    assert np.abs(moved[["x", "y"]].to_numpy() - pair.to_reference(pixels)).max() < 1e-5


# --- real sections ----------------------------------------------------------------------------------------------------


def test_real_anchorings_survive_a_round_trip_through_their_planes(test_data: Path):
    """Without a field the fitted anchoring is the section's own."""
    for listed in read_list(test_data / "sections" / "sections.json")[::6]:
        anchoring = listed.anchoring
        plane = anchoring.plane((12.5, 12.5))
        pixel_to_mm = np.linalg.inv(plane.matrix[[2, 1]][:, :2]) @ (
            anchoring.share_to_um[[2, 1]] @ np.diag([*(1 / np.array(anchoring.size[::-1])), 1])
            - np.column_stack([np.zeros((2, 2)), plane.matrix[[2, 1], 2]])
        )
        section = Grid(anchoring.size, (12.0, 12.0))
        grid = section.with_shape((60, 80))
        y, x = np.mgrid[:60, :80]
        pixels = section.to_pixels(grid.to_mm(np.stack([x, y], axis=-1).reshape(-1, 2).astype(float)))
        shift = apply_affine(pixel_to_mm, pixels + 0.5) - section.to_mm(pixels)
        inverse = Displacement(grid, torch.from_numpy(shift.T.reshape(2, 60, 80)).float())
        nothing = Displacement(REFERENCE, torch.zeros(2, *REFERENCE.shape))
        entry = visualign_slice(SectionTransform(nothing, inverse, section, plane), listed.path.name, 1)
        assert entry["markers"] == []
        assert entry["anchoring"] == pytest.approx(anchoring.to_json(), abs=0.02)
