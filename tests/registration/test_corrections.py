"""Corrections by the user: files that round-trip, points that are honoured, tissue that is ignored."""

import csv
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import Delaunay
from torch import nn

from atlalign.atlas.planes import Anchoring
from atlalign.errors import InputError
from atlalign.geometry import smooth_field
from atlalign.io.images import ImageFile
from atlalign.networks.layers import Registration
from atlalign.registration import Job, Options, atlas_recipe, find_jobs, register_batch, register_section
from atlalign.registration.carried_points import transform_table
from atlalign.registration.corrections import (
    Correction,
    correction_folder,
    read_correction,
    shown_correction,
    write_correction,
)
from atlalign.registration.ignored import Ignored
from atlalign.registration.network import TrainedNetwork
from atlalign.registration.placed_field import affine_of
from atlalign.registration.points import PointPairs, folded_share, honoured, load_without_points
from atlalign.registration.record import read_record
from atlalign.registration.section import read_section
from atlalign.registration.transform import SectionTransform
from atlalign.registration.transform_options import TransformOptions

SHAPE = (80, 114)
SIZE = (200, 300)  # of the sections' images
OBLIQUE = np.array([[-20.0, 290, 340], [480, 40, 30], [20, -30, -350]])  # 5° and 5°, turned by 4°
UPRIGHT = np.array([[-10.0, 280, 330], [470, 0, 0], [0, 0, -340]])


class Field(nn.Module):
    """Returns one smooth field whatever it sees, and keeps the images."""

    def __init__(self) -> None:
        super().__init__()
        drawn = smooth_field(1, SHAPE, generator=torch.Generator().manual_seed(1)).dvf
        self.dvf = drawn / drawn.abs().max() * 3
        self.seen: list[torch.Tensor] = []

    def forward(self, reference, moving):
        self.seen.append(moving.clone())
        return Registration(moving, self.dvf)


@pytest.fixture(scope="module")
def phantom():
    return atlas_recipe("phantom", model="none", image_shape=SHAPE)


@pytest.fixture
def by_network(phantom):
    return replace(phantom, network=TrainedNetwork(Field(), SHAPE, {"model": "field"}))


@pytest.fixture
def blank(tmp_path) -> Path:
    """An image that shows nothing, and a list that anchors it."""
    folder = tmp_path / "sections"
    folder.mkdir()
    tifffile.imwrite(folder / "a.tif", np.full(SIZE, 255, np.uint8))
    return folder


@pytest.fixture
def section(tmp_path) -> Path:
    """An image with a bright piece of tissue on dark ground."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    tissue = ((y - 100) / 70) ** 2 + ((x - 150) / 110) ** 2 < 1
    grey = np.where(tissue, 120 + 60 * np.sin(x / 9) * np.cos(y / 7), 0)
    (tmp_path / "sections").mkdir()
    tifffile.imwrite(tmp_path / "sections" / "a.tif", grey.astype(np.uint8))
    return tmp_path / "sections"


def listed(folder: Path, anchoring: np.ndarray = UPRIGHT, markers: list | None = None) -> list[Job]:
    """Return the jobs of a list that VisuAlign wrote for a thumbnail of half the width and height."""
    entry = {"filename": "a.tif", "nr": 1, "width": SIZE[1] // 2, "height": SIZE[0] // 2}
    entry |= {"anchoring": anchoring.ravel().tolist(), "markers": markers or []}
    (folder / "list.json").write_text(json.dumps({"slices": [entry]}))
    return find_jobs([folder / "list.json"])


def row(out: Path) -> dict[str, str]:
    with (out / "registrations.csv").open() as file:
        (found,) = csv.DictReader(file)
    return found


def drawn_markers(number: int, distance: float) -> np.ndarray:
    random = np.random.default_rng(3)
    image = random.uniform(0.2, 0.8, (number, 2)) * (SIZE[1] / 2, SIZE[0] / 2)
    return np.hstack([image + random.normal(0, distance, image.shape), image])


# --- files ------------------------------------------------------------------------------------------------------------

PAIRS = PointPairs(np.array([[3000.2, 2100.5], [5000, 4000]]), np.array([[70.5, 60.0], [200, 99]]))
RING = np.array([[10.0, 10], [60, 10], [60, 50], [10, 10]])
MASK = np.zeros((20, 30), np.bool_)
MASK[2:9, 3:11] = True


def same(first: Correction, second: Correction) -> bool:
    plain = [
        (
            None if found.anchoring is None else (found.anchoring.to_json(), found.anchoring.size),
            found.moves_plane,
            found.points.reference_um.round(1).tolist(),
            found.points.on(SIZE).section.round(3).tolist(),
            found.ignored.on(SIZE, SIZE).tolist(),
            found.verdict,
            found.note,
            found.hemisphere,
        )
        for found in (first, second)
    ]
    return plain[0] == plain[1]


@pytest.mark.parametrize(
    "correction",
    [
        Correction(),
        Correction(verdict="rejected", note="zerrissen; „é“ = 1,5"),
        Correction(Anchoring(OBLIQUE, SIZE), moves_plane=True),
        Correction(Anchoring(OBLIQUE, SIZE), points=PAIRS, note="only a note"),
        Correction(points=PAIRS),  # of a reference image
        Correction(hemisphere="left"),
        Correction(verdict="unsure", hemisphere="whole"),
        Correction(ignored=Ignored(MASK)),
        Correction(ignored=Ignored(MASK, ((RING, RING / 2), (RING + 100,)))),
    ],
)
def test_corrections_are_read_back(tmp_path, correction):
    write_correction(tmp_path, "a.b", correction, size=SIZE)
    assert same(read_correction(tmp_path, "a.b"), correction)
    write_correction(tmp_path, "a.b", Correction(), size=SIZE)
    assert same(read_correction(tmp_path, "a.b"), Correction())
    assert list(correction_folder(tmp_path, "a.b").iterdir()) == []


def test_the_plane_and_the_points_are_a_file_of_visualign(tmp_path):
    """A marker is the place on the overlay, then the one in the image, from the corner of the first pixel."""
    anchoring = Anchoring(UPRIGHT, SIZE)
    pairs = PointPairs(
        np.array([[25 * (-10 + 470 / 2), 25 * (320 - 330 + 340 / 4)]]), np.array([[9.5, 19.5]])
    )
    write_correction(
        tmp_path, "a", Correction(anchoring, points=pairs), size=SIZE, filename="a.tif", number=7
    )
    (entry,) = json.loads((correction_folder(tmp_path, "a") / "visualign.json").read_text())["slices"]
    assert entry["markers"] == [pytest.approx([150, 50, 10, 20], abs=1e-3)]
    assert (entry["filename"], entry["nr"], entry["width"], entry["height"]) == ("a.tif", 7, 300, 200)
    assert entry["anchoring"] == anchoring.to_json()


def test_a_mask_may_be_drawn_in_qupath_or_painted(tmp_path):
    folder = correction_folder(tmp_path, "a")
    folder.mkdir(parents=True)
    hole = [[20, 20], [30, 20], [30, 30], [20, 30], [20, 20]]
    square = [[10, 10], [40, 10], [40, 40], [10, 40], [10, 10]]
    shape = {"type": "Polygon", "coordinates": [square, hole]}
    (folder / "ignored.geojson").write_text(
        json.dumps({"type": "Feature", "geometry": shape, "properties": {}})
    )
    found = read_correction(tmp_path, "a").ignored.on(SIZE, SIZE)
    assert found.sum() == pytest.approx(30**2 - 10**2, rel=0.1)
    assert found[15, 15]
    assert not found[25, 25]
    assert not found[15, 45]
    tifffile_mask = np.zeros((100, 150), np.uint8)
    tifffile_mask[50:, 75:] = 3
    tifffile.imwrite(folder / "ignored.png", tifffile_mask)  # the content tells the format
    assert (read_correction(tmp_path, "a").ignored.on(SIZE, SIZE) & ~found).sum() == SIZE[0] * SIZE[1] // 4


def test_a_mask_of_another_image_is_refused():
    with pytest.raises(InputError, match="100×100 px"):
        Ignored(np.ones((100, 100), np.bool_)).on(SIZE, SIZE)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "review.json",
            '{"verdict": "fine"}',
            "verdict: expected accepted, rejected, unsure or null, found 'fine'",
        ),
        ("review.json", '{"verdict": null, "note": 3}', "note: expected text"),
        ("review.json", '{"hemisphere": "both"}', "hemisphere: expected whole, left, right or null"),
        ("review.json", "{", "cannot be read as JSON"),
        ("visualign.json", '{"slices": []}', "one slice"),
        ("visualign.json", '{"slices": [{"anchoring": [1]}]}', "anchoring: expected nine numbers"),
        ("visualign.json", '{"slices": [{"points_um": [[1, 2]]}]}', r"points_um\[0\]: expected four numbers"),
        ("ignored.geojson", '{"type": "Point", "coordinates": [1, 2]}', "expected polygons, found a Point"),
        ("ignored.png", "no image", "ignored.png"),
    ],
)
def test_a_damaged_file_fails_its_section_and_says_why(tmp_path, blank, phantom, name, content, said):
    out = tmp_path / "out"
    folder = correction_folder(out, "a")
    folder.mkdir(parents=True)
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=said):
        read_correction(out, "a")
    (outcome,) = register_batch(listed(blank), phantom, out)
    assert name in outcome.error
    assert (folder / name).read_text() == content


def test_edits_are_whole_at_any_moment(tmp_path):
    """A reader beside a writer sees the former state or the next one."""
    states = [
        Correction(Anchoring(OBLIQUE, SIZE), moves_plane=True, points=PAIRS, note=str(i)) for i in range(30)
    ]
    write_correction(tmp_path, "a", states[0], size=SIZE)

    def write() -> None:
        for state in states:
            write_correction(tmp_path, "a", state, size=SIZE)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        assert len(read_correction(tmp_path, "a").points) == 2
    writer.join()
    assert read_correction(tmp_path, "a").note == "29"


def test_a_verdict_must_be_known():
    with pytest.raises(InputError, match="unknown verdict"):
        Correction(verdict="good")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="moves_plane"):
        Correction(moves_plane=True)


# --- without a network, as VisuAlign ----------------------------------------------------------------------------------


def seen_by_visualign(pixels: np.ndarray, anchoring: np.ndarray, markers: np.ndarray) -> np.ndarray:
    """Return where (AP, DV, ML) in µm VisuAlign sees places, in pixels from the corner of the list's image."""
    size = np.array([SIZE[1] / 2, SIZE[0] / 2])
    corners = np.array([[-0.1, -0.1], [1.1, -0.1], [-0.1, 1.1], [1.1, 1.1]]) * size
    triangles = Delaunay(np.vstack([corners, markers[:, 2:]]))
    s, t = (LinearNDInterpolator(triangles, np.vstack([corners, markers[:, :2]]))(pixels) / size).T[..., None]
    x, y, z = (anchoring[0] + s * anchoring[1] + t * anchoring[2]).T
    return 25 * np.stack([528 - y, 320 - z, x], axis=1)


@pytest.mark.parametrize(
    "anchoring", [UPRIGHT, OBLIQUE, OBLIQUE * [[1], [1], [-1]] + [[0, -30, -350], [0] * 3, [0] * 3]]
)
def test_without_a_network_markers_act_as_in_visualign(tmp_path, blank, phantom, anchoring):
    """Also on oblique planes and upside down; the image shows nothing, and is larger than that of the list."""
    markers = drawn_markers(9, 2.5)
    (outcome,) = register_batch(listed(blank, anchoring, markers.tolist()), phantom, tmp_path / "out")
    assert not outcome.error
    transform = SectionTransform.load(tmp_path / "out" / "a")
    y, x = np.mgrid[5 : SIZE[0] : 7, 5 : SIZE[1] : 7]
    pixels = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    expected = seen_by_visualign((pixels + 0.5) / 2, anchoring, markers)
    distance_um = np.linalg.norm(transform.to_atlas(pixels) - expected, axis=1)
    assert np.quantile(distance_um, 0.98) < 25  # a pixel of VisuAlign's maps; kinks are rounded
    assert distance_um.mean() < 3
    at_markers = transform.to_atlas(2 * markers[:, 2:] - 0.5)
    size = np.array([SIZE[1] / 2, SIZE[0] / 2])
    s, t = (markers[:, :2] / size).T[..., None]
    o = (anchoring[0] + s * anchoring[1] + t * anchoring[2]) * 25
    assert at_markers[:, 2] == pytest.approx(o[:, 0], abs=50)  # half a pixel of the field
    assert at_markers[:, 0] == pytest.approx(25 * 528 - o[:, 1], abs=50)
    assert row(tmp_path / "out")["points"] == "9"
    (entry,) = json.loads((tmp_path / "out" / "visualign.json").read_text())["slices"]
    assert np.array(entry["markers"]) == pytest.approx(2 * markers, abs=1e-3)  # of the larger image
    assert row(tmp_path / "out")["flag"] == "pass"


def _turned(anchoring: np.ndarray) -> np.ndarray:
    """Return the anchoring of an image that lies on its side."""
    o, u, v = anchoring
    return np.array([o + u, v, -u])


_DRAWN = drawn_markers(8, 2.5)
_BESIDE = np.array([[-6.0, 50, -4, 48], [75, 108, 77, 106], [158, -7, 156, -8]])  # of an image of 150×100 px
_FAR = np.array([[-40.0, 40, -36, 42], [190, 60, 187, 62]])  # beyond VisuAlign's corners
_ON_A_LINE = np.array([[41.0, 52, 40, 50], [73, 51, 75, 50], [111, 48, 110, 50], [30, 20, 30, 20]])


@pytest.mark.parametrize(
    "anchoring",
    [OBLIQUE, OBLIQUE * [[1], [-1], [1]] + [OBLIQUE[1], [0] * 3, [0] * 3], _turned(OBLIQUE)],
    ids=["oblique", "mirrored", "on its side"],
)
@pytest.mark.parametrize(
    "markers",
    [
        np.vstack([_DRAWN, _BESIDE]),
        np.vstack([_DRAWN, _FAR]),
        np.vstack([_DRAWN, _DRAWN[:2]]),
        _ON_A_LINE,
        _ON_A_LINE[:3],
        _DRAWN[:1],
    ],
    ids=["beside the image", "far beside it", "set twice", "three on a line", "all on a line", "one"],
)
def test_odd_markers_act_as_in_visualign(blank, phantom, anchoring, markers):
    (job,) = listed(blank, anchoring, markers.tolist())
    transform = register_section(job, phantom).registered.transform
    y, x = np.mgrid[: SIZE[0] : 7, : SIZE[1] : 7]
    pixels = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    expected = seen_by_visualign((pixels + 0.5) / 2, anchoring, markers)
    _, u, v = 25 * anchoring / [[1], [SIZE[1] / 2], [SIZE[0] / 2]]
    pixel_um = min(np.linalg.norm(u), np.linalg.norm(v))  # of the list's image
    distance_um = np.linalg.norm(transform.to_atlas(pixels) - expected, axis=1)
    assert np.quantile(distance_um, 0.98) < pixel_um
    assert distance_um.mean() < 0.1 * pixel_um


def test_without_a_network_a_section_needs_a_place(blank, phantom, tmp_path):
    job = Job(blank / "a.tif", 6000.0)
    (outcome,) = register_batch([job], phantom, tmp_path / "out")
    assert "expected an anchoring" in outcome.error
    fitted = replace(phantom, options=Options(place="fit"))  # asks what the image shows
    with pytest.raises(InputError, match="--place"):
        register_section(listed(blank)[0], fitted)
    with pytest.raises(InputError, match="--refine"):
        register_section(listed(blank)[0], replace(phantom, options=Options(refine=5)))
    assert (
        register_section(job, replace(phantom, options=Options(place="stretch"))).registered.quality.folding
        == 0
    )


def test_markers_that_turn_triangles_over_are_reported(tmp_path, blank, phantom):
    crossed = [[40.0, 50, 100, 50], [100, 50, 40, 50], [70, 30, 70, 30], [70, 80, 70, 80]]
    list(register_batch(listed(blank, UPRIGHT, crossed), phantom, tmp_path / "out"))
    found = row(tmp_path / "out")
    assert float(found["folding"]) > 0.01
    assert (found["flag"], found["folding_by_points"]) == ("fail", found["folding"])
    assert "because of points" in found["reason"]


def test_visualigns_own_maps_are_reproduced(test_data, tmp_path):
    """Each pixel of a map has a pixel of the same region beside it; of 98 % at least, as outlines differ by a pixel."""
    names = sorted(path.name for path in (test_data / "visualign").glob("*.png"))
    recipe = atlas_recipe(test_data / "allen_ccf_25um.h5", model="none")
    jobs = find_jobs([test_data / "visualign" / "nonlinear.json"])
    assert [job.path.name for job in jobs] == names
    with (test_data / "visualign" / "labels.csv").open() as file:
        ids = np.array([int(line["idx"]) for line in csv.DictReader(file)])
    for job in jobs[1::3]:  # with markers
        found = register_section(job, recipe)
        assert found.reference.labels is not None
        labels = np.concatenate(list(found.registered.transform.label(found.reference.labels)))
        content = (test_data / "visualign" / f"{job.path.stem}_nl.flat").read_bytes()
        width, height = np.frombuffer(content[1:9], ">i4")
        expected = ids[np.frombuffer(content[9:], f">u{content[0]}").reshape(height, width)]
        rows, columns = (
            np.arange(n) * size // n for n, size in zip((height, width), labels.shape, strict=True)
        )
        ours = np.pad(labels[np.ix_(rows, columns)], 1, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(ours, (3, 3))
        assert (windows == expected[..., None, None]).any(axis=(2, 3)).mean() > 0.98
        assert (ours[1:-1, 1:-1] == expected).mean() > 0.93


# --- on a network's field ---------------------------------------------------------------------------------------------


def at_points(transform: SectionTransform, pairs: PointPairs) -> np.ndarray:
    """Return how far each place in the reference lands from its place in the section, in pixels of the field."""
    pixels = (
        transform.to_section(pairs.reference_mm(transform.plane)) - pairs.on(transform.section.shape).section
    )
    matrix = affine_of(transform)
    return np.linalg.norm(pixels @ np.linalg.inv(matrix[:, :2]).T, axis=1)


def test_points_are_honoured_on_the_networks_field(tmp_path, section, by_network):
    markers = drawn_markers(6, 4.0)
    plain = register_section(listed(section)[0], by_network).registered
    (job,) = listed(section, markers=markers.tolist())
    found = register_section(job, by_network).registered
    assert at_points(plain.transform, job.points).max() > 2
    assert at_points(found.transform, job.points).max() < 0.5
    back = found.transform.to_reference(job.points.on(SIZE).section)
    assert found.transform.forward.grid.to_pixels(back - job.points.reference_mm(found.transform.plane)) == (
        pytest.approx(0, abs=0.5)
    )
    assert (found.quality.folding, found.quality.folding_by_points) == (0, 0)
    assert found.without_points is not None
    assert torch.equal(found.without_points.forward.mm, plain.transform.forward.mm)


def test_dragging_in_the_page_equals_the_batch(tmp_path, section, by_network):
    (job,) = listed(section, markers=drawn_markers(4, 3.0).tolist())
    list(register_batch([job], by_network, tmp_path / "out"))
    folder = tmp_path / "out" / "a"
    base = load_without_points(folder)
    live = honoured(base, shown_correction(tmp_path / "out", "a").points, by_network=True)
    kept = SectionTransform.load(folder)
    assert (live.forward.mm - kept.forward.mm).abs().max() < 1e-3
    assert (live.inverse.mm - kept.inverse.mm).abs().max() < 1e-3


def test_points_that_cross_are_reported(tmp_path, section, by_network):
    crossed = [[60.0, 50, 85, 50], [80, 50, 65, 50]]
    (outcome,) = register_batch(listed(section, markers=crossed), by_network, tmp_path / "out")
    assert float(outcome.row["folding_by_points"]) > 0
    assert outcome.row["flag"] != "pass"
    assert "because of points" in outcome.row["reason"]


def test_two_places_for_one_fail_the_section_alone(tmp_path, section, by_network):
    jobs = listed(section, markers=[[60.0, 50, 85, 50], [60, 50, 40, 50]])
    shutil.copy(section / "a.tif", section / "b.tif")
    good = Job(section / "b.tif", jobs[0].position_um, anchoring=jobs[0].anchoring)
    bad, fine = register_batch([*jobs, good], by_network, tmp_path / "out")
    assert "points 1 and 2" in bad.error
    assert not fine.error


# --- again and again --------------------------------------------------------------------------------------------------


def test_corrections_survive_and_are_applied_again(tmp_path, section, by_network):
    """A changed correction needs no --overwrite, an unchanged one no work, and --overwrite leaves corrections alone."""
    out, jobs = tmp_path / "out", listed(section)

    def again(**options) -> tuple[bool, SectionTransform]:
        (outcome,) = register_batch(jobs, by_network, out, **options)
        assert not outcome.error
        return outcome.is_new, SectionTransform.load(out / "a")

    again()
    shown = shown_correction(out, "a")
    assert shown.anchoring.to_json() == pytest.approx(UPRIGHT.ravel())
    pairs = PointPairs(np.array([[5500.0, 4000]]), np.array([[160.0, 110]]))
    write_correction(out, "a", replace(shown, points=pairs), size=SIZE)
    is_new, corrected = again()
    assert is_new
    assert at_points(corrected, pairs).max() < 0.5
    assert not again()[0]
    write_correction(out, "a", replace(read_correction(out, "a"), verdict="accepted", note="good"), size=SIZE)
    assert not again()[0]  # a verdict changes no result
    assert (row(out)["verdict"], row(out)["note"], row(out)["points"]) == ("accepted", "good", "1")
    again(overwrite=True)
    assert len(read_correction(out, "a").points) == 1
    assert at_points(SectionTransform.load(out / "a"), pairs).max() < 0.5
    write_correction(out, "a", replace(read_correction(out, "a"), points=PointPairs.none()), size=SIZE)
    assert again()[0]
    assert not (out / "a" / "without_points.nii.gz").exists()


def test_a_corrected_plane_takes_the_place_of_the_lists(tmp_path, section, by_network):
    out, jobs = tmp_path / "out", listed(section)
    list(register_batch(jobs, by_network, out))
    moved = Anchoring(UPRIGHT - [[0, 40, 0], [0, 0, 0], [0, 0, 0]], SIZE)  # 1 mm further back
    write_correction(out, "a", Correction(moved, moves_plane=True), size=SIZE)
    (outcome,) = register_batch(jobs, by_network, out)
    assert outcome.row["position_um"] == jobs[0].position_um + 1000
    assert SectionTransform.load(out / "a").plane.matrix[0, 2] == pytest.approx(jobs[0].position_um + 1000)


@pytest.mark.parametrize(("option", "corrected"), [(None, "right"), ("left", "right"), ("left", "whole")])
def test_a_corrected_half_takes_the_place_of_the_options(tmp_path, section, by_network, option, corrected):
    out, jobs = tmp_path / "out", listed(section)
    recipe = replace(by_network, options=Options(hemisphere=option))

    def shows() -> tuple[bool, bool]:
        """Register, and return whether the result shows the left of the atlas, and the right."""
        (outcome,) = register_batch(jobs, recipe, out)
        assert not outcome.error
        labels = tifffile.imread(out / "a" / "reference_labels.tif")
        middle = labels.shape[1] // 2
        return bool(labels[:, : middle - 1].any()), bool(labels[:, middle + 1 :].any())

    assert shows() == (True, option is None)
    write_correction(out, "a", Correction(hemisphere=corrected), size=SIZE)
    assert shows() == (corrected == "whole", True)
    record = read_record(out / "a")
    assert record["settings"]["hemisphere"] == option  # what the options say stays known
    assert record["settings"]["correction"]["hemisphere"] == corrected
    (again,) = register_batch(jobs, recipe, out)
    assert not again.is_new
    (out / "corrections" / "a" / "review.json").unlink()
    assert shows() == (True, option is None)


def test_points_removed_in_the_page_stay_removed(tmp_path, section, by_network):
    """Those of the list are shown first; without any, the list's do not come back."""
    out, jobs = tmp_path / "out", listed(section, markers=drawn_markers(3, 3.0).tolist())
    list(register_batch(jobs, by_network, out))
    shown = shown_correction(out, "a")
    assert shown.points.on(SIZE).section == pytest.approx(jobs[0].points.on(SIZE).section, abs=1e-2)
    write_correction(out, "a", replace(shown, points=PointPairs.none()), size=SIZE)
    list(register_batch(jobs, by_network, out))
    assert row(out)["points"] == "0"


def test_a_section_cannot_take_the_name_of_the_corrections(tmp_path, section, by_network):
    (section / "a.tif").rename(section / "corrections.tif")
    job = listed(section)[0]._replace(path=section / "corrections.tif", problem="", label="")
    (outcome,) = register_batch([job], by_network, tmp_path / "out")
    assert "corrections" in outcome.error


# --- ignored tissue ---------------------------------------------------------------------------------------------------


def painted(section: Path, value: int) -> None:
    image = tifffile.imread(section / "a.tif")
    image[60:90, 100:140] = value
    tifffile.imwrite(section / "a.tif", image)


def test_ignored_tissue_does_not_influence_the_registration(section, by_network):
    """Neither what the network sees, nor any measure, depends on pixels under the mask."""
    mask = np.zeros(SIZE, np.bool_)
    mask[58:92, 98:142] = True
    job = listed(section)[0]._replace(ignored=Ignored(mask))
    found = []
    for value in (0, 255):
        painted(section, value)
        by_network.network.module.seen.clear()
        quality = register_section(job, replace(by_network, options=Options(refine=3))).registered.quality
        found.append((quality, torch.cat(by_network.network.module.seen)))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    unmasked = register_section(job._replace(ignored=Ignored()), by_network).registered.quality
    assert unmasked.likeness != found[0][0].likeness


def test_ignored_tissue_has_no_area_and_no_points(tmp_path, section, by_network):
    out, jobs = tmp_path / "out", listed(section)
    list(register_batch(jobs, by_network, out))
    labels = tifffile.imread(out / "a" / "labels.tif")
    mask = np.zeros(SIZE, np.bool_)
    mask[90:120, 130:180] = True
    assert (labels[mask] > 0).all()
    write_correction(out, "a", Correction(ignored=Ignored(mask)), size=SIZE)
    (outcome,) = register_batch(jobs, by_network, out)
    assert outcome.is_new
    after = tifffile.imread(out / "a" / "labels.tif")
    assert not after[mask].any()
    with (out / "a" / "regions.csv").open() as file:
        assert sum(int(line["pixels"]) for line in csv.DictReader(file)) == (after > 0).sum()
    (tmp_path / "points.csv").write_text("x,y\n150,100\n100,100\n")
    transform_table(
        tmp_path / "points.csv", out / "a", tmp_path / "moved.csv", TransformOptions(to="reference")
    )
    with (tmp_path / "moved.csv").open() as file:
        inside, outside = csv.DictReader(file)
    assert (inside["region_id"], int(outside["region_id"]) > 0) == ("0", True)
    assert read_record(out / "a")["settings"]["correction"]["ignored_sha256"]


def test_folding_is_seen_whatever_the_orientation(phantom, blank):
    (job,) = listed(blank, OBLIQUE * [[1], [-1], [1]] + [[480, 40, 30], [0] * 3, [0] * 3])
    base = register_section(job, phantom).registered.transform
    assert folded_share(base, affine_of(base)) == 0


def test_ignored_tissue_looks_like_its_surroundings():
    """A hole in even tissue would pull its rim: it is filled; beyond the tissue there is ground."""
    pixels = np.zeros(SIZE, np.uint8)
    pixels[40:160, 50:250] = 200
    mask = np.zeros(SIZE, np.bool_)
    mask[80:120, 100:160] = True
    mask[170:190, 20:60] = True
    pixels[mask] = 255
    image = ImageFile(pixels, None)
    found = read_section(image, SHAPE, ignored=Ignored(mask))
    assert found.scale == (1, 1)
    assert found.grey[85:115, 105:155].min() == pytest.approx(float(found.grey[60, 60]), abs=0.01)
    assert found.grey[172:188, 22:58].max() < 0.1
    assert found.ignored is not None
    assert found.ignored.numpy().astype(bool).tolist() == mask.tolist()
