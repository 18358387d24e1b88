"""Where sections lie in the atlas: planes and anchorings, by hand and against the atlas's own definition."""

import json
from pathlib import Path

import numpy as np
import pytest

from atlalign.atlas.planes import GRID, Anchoring, Plane, apply_affine, homogeneous, invert_affine
from atlalign.atlas.section_lists import find_list, read_list
from atlalign.errors import InputError

# Right to left at one voxel a pixel, as DeepSlice gives it: x falls with s, z falls with t; centre at y = 264.5.
UPRIGHT = np.array([[456, 264.5, 320], [-456, 0, 0], [0, 0, -320]], dtype=np.float64)
TILTED = UPRIGHT + np.array([[0, 20, 3], [7, -30, 5], [-4, 12, 6]])


def test_a_plane_adds_its_origin_and_its_tilt():
    plane = Plane.at(5000, (12.5, 25.0), per_ml=0.1, per_dv=-0.2)
    assert plane.to_atlas(np.array([[0.0, 0.0], [2.0, 1.0]])).tolist() == [
        [5000, 25, 12.5],
        [5000, 1025, 2012.5],
    ]
    oblique = plane.to_atlas(np.array([[2.0, 0.0], [0.0, 1.0]]))
    assert oblique[:, 0].tolist() == [5200, 4800]


def test_points_go_to_a_plane_along_ap():
    plane = Plane.at(5000, (12.5, 25.0), per_ml=0.1, per_dv=-0.2)
    points_mm = np.array([[1.0, 2.0], [5.0, 3.0]])
    behind = plane.to_atlas(points_mm) + np.array([[70, 0, 0], [-30, 0, 0]])
    mapped, distance = plane.from_atlas(behind)
    assert mapped == pytest.approx(points_mm)
    assert distance == pytest.approx([70, -30])


def test_an_anchoring_shows_the_voxels_that_its_definition_names():
    """The value at (s, t) is that of voxel (527 − ⌊y⌋, 319 − ⌊z⌋, ⌊x⌋) with (x, y, z) = o + s·u + t·v."""
    anchoring = Anchoring(TILTED, (300, 400))
    shares = np.random.default_rng(0).uniform(0, 1, (50, 2))
    x, y, z = (TILTED[0] + shares[:, :1] * TILTED[1] + shares[:, 1:] * TILTED[2]).T
    voxels = np.stack([GRID[0] - 1 - np.floor(y), GRID[1] - 1 - np.floor(z), np.floor(x)], axis=1)
    assert (np.floor(apply_affine(anchoring.share_to_um, shares) / 25) == voxels).all()


def test_pixels_of_an_image_lie_in_its_plane():
    anchoring = Anchoring(TILTED, (300, 400))
    plane = anchoring.plane((12.5, 12.5))
    pixels = np.array([[0.0, 0.0], [399.0, 0.0], [17.0, 250.0]])
    atlas_um = apply_affine(anchoring.share_to_um, (pixels + 0.5) / (400, 300))
    points_mm, distance = plane.from_atlas(atlas_um)
    assert distance == pytest.approx(0, abs=1e-6)
    assert plane.to_atlas(points_mm) == pytest.approx(atlas_um)
    assert apply_affine(anchoring.um_to_pixel(), atlas_um[:, [2, 1]]) == pytest.approx(pixels)


def test_an_anchoring_is_made_from_its_plane_and_comes_back():
    anchoring = Anchoring(TILTED, (300, 400))
    plane = anchoring.plane((12.5, 37.5))
    mm_to_um = np.column_stack([plane.matrix[[2, 1], :2], plane.matrix[[2, 1], 2]])
    pixel_to_mm = invert_affine(anchoring.um_to_pixel() @ homogeneous(mm_to_um))
    assert Anchoring.of_plane(plane, pixel_to_mm, (300, 400)).vectors == pytest.approx(TILTED)


@pytest.mark.parametrize(
    ("u", "v", "kind"),
    [
        ([0, 100, 0], [0, 0, -100], "sagittal"),
        ([10, 100, 0], [0, 0, -100], "sagittal"),
        ([90, 100, 0], [0, 0, -100], "sagittal"),
        ([100, 0, 0], [0, 100, 5], "horizontal"),
    ],
)
def test_sections_that_are_not_coronal_are_refused(u, v, kind):
    with pytest.raises(InputError, match=f"expected a coronal section, found a {kind} one"):
        Anchoring(np.array([[0, 0, 0], u, v], np.float64), (10, 10))
    almost = [100, 90, 0] if kind == "sagittal" else u
    Anchoring(np.array([[0, 0, 0], almost, [0, 0, -100]], np.float64), (10, 10))


@pytest.mark.parametrize("size", [(1, 10), (10, 0)])
def test_an_image_of_one_pixel_has_no_place(size):
    with pytest.raises(InputError, match=f"at least 2×2 px, found {size[0]}×{size[1]}"):
        Anchoring(UPRIGHT, size)


def entry(vectors: np.ndarray, **replaced) -> dict:
    numbers = vectors.ravel().tolist()
    return {"filename": "a.png", "width": 40, "height": 30, "nr": 4, "anchoring": numbers} | replaced


def write(path: Path, *slices: dict, **more) -> Path:
    path.write_text(json.dumps({"slices": slices} | more))
    return path


def test_the_position_is_that_of_the_plane_through_the_centre(tmp_path):
    tilted = UPRIGHT.copy()
    tilted[1:, 1] = 20, -10  # the centre comes 5 voxels further forward
    upright, leaning = read_list(write(tmp_path / "l.json", entry(UPRIGHT), entry(tilted)))
    assert upright.identity == (25 * (527 - 264), 4, 0)
    assert leaning.identity.position_um == 25 * (527 - 269)
    assert upright.anchoring.size == (30, 40)
    assert upright.path == tmp_path / "a.png"


def test_markers_of_visualign_are_not_left_out_in_silence(tmp_path, caplog):
    path = write(tmp_path / "list.json", entry(UPRIGHT), {**entry(UPRIGHT), "markers": [[1, 2, 3, 4]]})
    assert len(read_list(path)) == 2
    assert "the markers of 1 sections, made in VisuAlign, are not used" in caplog.text


def test_a_table_holds_positions(tmp_path):
    (tmp_path / "l.csv").write_text("filename,p,image_id\na.png,5000,\nsub/b.tif,6000.0,17\nc.png,7000,\n")
    first, second, third = read_list(tmp_path / "l.csv")
    assert first.identity == (5000, 0, 0)
    assert first.position_um == 5000
    assert second.identity == (6000, 17, 0)
    assert third.identity == (7000, 2, 0)
    assert (second.path, second.anchoring) == (tmp_path / "sub" / "b.tif", None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"slices": {"a": 1}}, "expected QuickNII's object with slices, found an object"),
        ({"slices": []}, "names no section"),
        (
            {"slices": [entry(UPRIGHT)], "target": "WHS_SD_Rat_39um.cutlas"},
            "found the target 'WHS_SD_Rat_39um",
        ),
        ([1, 2], "expected QuickNII's object with slices, found a list"),
        (None, "expected QuickNII's object with slices, found none"),
    ],
)
def test_a_bad_list_is_named(tmp_path, content, sentence):
    (tmp_path / "l.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        read_list(tmp_path / "l.json")


def test_a_section_without_a_place_does_not_stop_the_others(tmp_path):
    """QuickNII leaves out the anchoring of sections that have none yet."""
    entries = [entry(UPRIGHT), entry(UPRIGHT, anchoring=[1, 2]), entry(UPRIGHT * [1, 1, 0])]
    without = entry(UPRIGHT, nr=9)
    del without["anchoring"]
    good, short, edge_on, none = read_list(write(tmp_path / "l.json", *entries, without))
    assert (good.problem, good.identity.position_um) == ("", 25 * 263)
    assert short.problem == "anchoring: expected nine numbers, found 2"
    assert edge_on.problem.startswith("anchoring: expected u and v to span a plane")
    assert (none.problem, none.identity.image_id) == ("anchoring: expected nine numbers, found none", 9)


SIZE = "expected width and height of the image that was anchored, in pixels"


@pytest.mark.parametrize(
    ("replaced", "name", "problem"),
    [
        ({"nr": "s099"}, "a.png", "nr: expected a number, found 's099'"),
        ({"nr": 4.5}, "a.png", "nr: expected a whole number, found '4.5'"),
        ({"nr": 10**30}, "a.png", f"nr: expected a number of at most 64 bits, found '{10**30}'"),
        ({"anchoring": None}, "a.png", "anchoring: expected nine numbers, found none"),
        ({"anchoring": [[1, 2, 3]] * 9}, "a.png", "anchoring: expected a number, found a list"),
        ({"anchoring": [float("nan")] * 9}, "a.png", "anchoring: expected a number, found 'nan'"),
        ({"anchoring": [10**400] * 9}, "a.png", f"anchoring: expected a number of at most 64 bits, found '{10**39}…'"),
        ({"width": None}, "a.png", f"{SIZE}, found no width and 30"),
        ({"height": 0}, "a.png", f"{SIZE}, found 40 and no height"),
        ({"width": "wide"}, "a.png", "width: expected a number, found 'wide'"),
        ({"filename": ""}, "slices[1]", "expected a filename, found none"),
        ({"filename": 3}, "slices[1]", "expected a filename, found '3'"),
        (None, "slices[1]", "expected an object with a filename, found none"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_named_and_stops_no_other(tmp_path, replaced, name, problem):
    bad = None if replaced is None else entry(UPRIGHT, **replaced)
    first, found, last = read_list(write(tmp_path / "l.json", entry(UPRIGHT), bad, entry(UPRIGHT)))
    assert (found.path, found.problem) == (tmp_path / name, problem)
    assert first.problem == last.problem == ""


@pytest.mark.parametrize(("nr", "number"), [(None, 1), ("012", 12), (7.0, 7), (0, 0), (2**60 + 1, 2**60 + 1)])
def test_numbers_of_entries_keep_their_digits(tmp_path, nr, number):
    """Without one the entry's place counts."""
    _, found = read_list(write(tmp_path / "l.json", entry(UPRIGHT), entry(UPRIGHT, nr=nr)))
    assert (found.problem, found.identity.image_id) == ("", number)


@pytest.mark.parametrize("nr", ["nr", "Nr"])
def test_the_table_of_deepslice_says_what_its_json_says(tmp_path, nr):
    numbers = ",".join(map(str, TILTED.ravel()))
    header = f"Filenames,ox,oy,oz,ux,uy,uz,vx,vy,vz,width,height,{nr}"
    (tmp_path / "l.csv").write_text(f"{header}\na.png,{numbers},40,30.0,4\n,{numbers},40,30,4\n")
    found, nameless = read_list(tmp_path / "l.csv")
    (known,) = read_list(write(tmp_path / "l.json", entry(TILTED)))
    assert (found.path, found.identity, found.position_um) == (known.path, known.identity, known.position_um)
    assert (found.anchoring.vectors == known.anchoring.vectors).all()
    assert found.anchoring.size == known.anchoring.size
    assert (nameless.path.name, nameless.problem) == ("line 3", "expected a filename, found none")
    (tmp_path / "l.csv").write_text(f"{header.partition(',width')[0]}\na.png,{numbers}\n")
    with pytest.raises(
        InputError, match=r"expected the columns .*width, height, .*: use DeepSlice's \.json file"
    ):
        read_list(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("p", "position_um", "whole"), [("7217.5", 7217.5, 7217), ("6000.0", 6000, 6000), ("-0.5", -0.5, -1)]
)
def test_positions_may_be_fractions_which_identities_round_down(tmp_path, p, position_um, whole):
    (tmp_path / "l.csv").write_text(f"filename,p\na.png,{p}\n")
    (found,) = read_list(tmp_path / "l.csv")
    assert (found.position_um, found.identity.position_um) == (position_um, whole)


def test_ids_of_a_table_keep_their_digits(tmp_path):
    (tmp_path / "l.csv").write_text(f"filename,p,image_id,dataset_id\na.png,100,{2**60 + 1},{2**63 - 1}\n")
    (found,) = read_list(tmp_path / "l.csv")
    assert found.identity == (100, 2**60 + 1, 2**63 - 1)


@pytest.mark.parametrize(
    ("row", "name", "problem"),
    [
        ("a.png,front,1", "a.png", "line 4, p: expected a number, found 'front'"),
        ("a.png,,1", "a.png", "line 4, p: expected a number, found none"),
        ("a.png,nan,1", "a.png", "line 4, p: expected a number, found 'nan'"),
        ("a.png,1e999999999,1", "a.png", "line 4, p: expected a number of at most 64 bits, found '1e999999999'"),
        ("a.png,5000,1.5", "a.png", "line 4, image_id: expected a whole number, found '1.5'"),
        (f"a.png,100,{10**25}", "a.png", f"line 4, image_id: expected a number of at most 64 bits, found '{10**25}'"),
        (",5000,1", "line 4", "expected a filename, found none"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_and_stops_no_other(tmp_path, row, name, problem):
    """By its line in a spreadsheet, which counts those that are blank."""
    (tmp_path / "l.csv").write_text(f"filename,p,image_id\nb.png,5000,0\n\n{row}\nc.png,6000,7\n")
    first, found, last = read_list(tmp_path / "l.csv")
    assert (found.path.name, found.problem) == (name, problem)
    assert first.problem == last.problem == ""


def test_backslashes_of_windows_are_slashes_where_that_file_exists(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").touch()
    (tmp_path / "l.csv").write_text("filename,p\nsub\\a.png,1\nsub\\b.png,2\n")
    found, missing = read_list(tmp_path / "l.csv")
    assert found.path == tmp_path / "sub" / "a.png"
    assert missing.path == tmp_path / "sub\\b.png"


@pytest.mark.parametrize("name", ["l.csv", "l.json"])
def test_another_encoding_is_told_in_our_words(tmp_path, name):
    (tmp_path / name).write_bytes("filename,p\nSüd.png,5000\n".encode("latin-1"))
    with pytest.raises(InputError, match=rf"{name}: cannot be read as UTF-8 text: save it as \w+ UTF-8$"):
        read_list(tmp_path / name)


def test_the_real_list(test_data):
    sections = read_list(test_data / "sections" / "sections.json")
    assert len(sections) == 18
    assert all(section.path.is_file() for section in sections)
    positions = [section.identity.position_um for section in sections]
    assert positions == sorted(positions)


@pytest.mark.parametrize("name", ["brain.tsv", "brain.TXT"])
def test_a_list_with_tabs_is_found_and_read(tmp_path, name):
    (tmp_path / name).write_text("filename\tp\na, b.png\t6500.5\n")
    assert find_list(tmp_path) == tmp_path / name
    (section,) = read_list(tmp_path / name)
    assert (section.path, section.position_um) == (tmp_path / "a, b.png", 6500.5)


def test_a_folder_has_one_list_or_both_forms_of_one(tmp_path):
    (tmp_path / "brain.csv").touch()
    assert find_list(tmp_path) == tmp_path / "brain.csv"
    (tmp_path / "brain.json").touch()
    assert find_list(tmp_path) == tmp_path / "brain.json"
    (tmp_path / "notes.txt").touch()
    (tmp_path / "cells.tsv").touch()
    assert find_list(tmp_path) == tmp_path / "brain.json"
    (tmp_path / "other.csv").touch()
    with pytest.raises(InputError, match=r"found brain\.csv, brain\.json, other\.csv"):
        find_list(tmp_path)
