"""Where sections lie in the atlas: planes and anchorings, by hand and against the atlas's own definition."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from atlalign.atlas.planes import GRID, Anchoring, Plane, apply_affine, homogeneous, invert_affine
from atlalign.atlas.quint import COMPONENTS
from atlalign.atlas.section_lists import ListedSection, find_list, read_list, unused_positions
from atlalign.errors import InputError

# Right to left at one voxel a pixel, as DeepSlice gives it: x falls with s, z falls with t; centre at y = 264.5.
UPRIGHT = np.array([[456, 264.5, 320], [-456, 0, 0], [0, 0, -320]], dtype=np.float64)
TILTED = UPRIGHT + np.array([[0, 20, 3], [7, -30, 5], [-4, 12, 6]])


def test_a_plane_adds_its_origin_and_its_tilt():
    plane = Plane.at(5000, (12.5, 25.0), per_x=0.1, per_y=-0.2)
    assert plane.to_atlas(np.array([[0.0, 0.0], [2.0, 1.0]])).tolist() == [
        [5000, 25, 12.5],
        [5000, 1025, 2012.5],
    ]
    oblique = plane.to_atlas(np.array([[2.0, 0.0], [0.0, 1.0]]))
    assert oblique[:, 0].tolist() == [5200, 4800]


def test_points_go_to_a_plane_along_ap():
    plane = Plane.at(5000, (12.5, 25.0), per_x=0.1, per_y=-0.2)
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


def test_anchoring_survives_a_round_trip_through_its_plane():
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
        ([100, 90, 0], [0, 0, -100], "coronal"),
        ([100, 0, 0], [0, 100, 5], "horizontal"),
    ],
)
def test_a_plane_has_the_kind_of_the_axis_that_it_cuts_across(u, v, kind):
    anchoring = Anchoring(np.array([[0, 0, 0], u, v], np.float64), (10, 10))
    assert anchoring.kind == anchoring.plane((12.5, 12.5)).kind == kind


@pytest.mark.parametrize(
    ("u", "v"),
    [([2, 300, -40], [1, -30, -310]), ([300, 40, 3], [20, 310, -4]), ([300, 40, 3], [20, 4, -310])],
)
def test_pixels_of_an_image_lie_in_its_plane_of_any_kind(u, v):
    anchoring = Anchoring(np.array([[90, 80, 300], u, v], np.float64), (300, 400))
    plane = anchoring.plane((12.5, 37.5))
    pixels = np.array([[0.0, 0.0], [399.0, 0.0], [17.0, 250.0]])
    atlas_um = apply_affine(anchoring.share_to_um, (pixels + 0.5) / (400, 300))
    points_mm, distance = plane.from_atlas(atlas_um)
    assert distance == pytest.approx(0, abs=1e-6)
    assert plane.to_atlas(points_mm) == pytest.approx(atlas_um)
    assert plane.matrix[plane.axes].tolist() == [[1000, 0, 12.5], [0, 1000, 37.5]]
    assert apply_affine(anchoring.um_to_pixel(), atlas_um[:, plane.axes]) == pytest.approx(pixels)
    assert plane.moved(100).from_atlas(atlas_um)[1] == pytest.approx(-100)


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


def test_markers_of_visualign_are_read(tmp_path, caplog):
    markers = [[1, 2, 3.5, 4], [-5, 6, 7, 8]]
    path = write(tmp_path / "list.json", entry(UPRIGHT), {**entry(UPRIGHT), "markers": markers})
    plain, marked = read_list(path)
    assert (plain.markers, marked.markers) == ((), ((1, 2, 3.5, 4), (-5, 6, 7, 8)))
    assert "markers" not in caplog.text


@pytest.mark.parametrize(
    ("markers", "said"),
    [
        ({"x": 1}, "markers: expected a list"),
        ([[1, 2, 3]], r"markers[0]: expected four numbers (x, y, x, y), found 3"),
        ([[1, 2, 3, 4], [1, 2, 3, "x"]], "markers[1]: expected a number, found 'x'"),
        ([[1, 2, 3, float("nan")]], "markers[0]: expected a number"),
    ],
)
def test_invalid_markers_are_reported_for_their_section(tmp_path, markers, said):
    path = write(tmp_path / "list.json", entry(UPRIGHT), {**entry(UPRIGHT), "markers": markers})
    good, bad = read_list(path)
    assert good.problem == ""
    assert said in bad.problem


def test_markers_that_a_registration_wrote_are_announced(tmp_path, caplog):
    """Such markers bind the next registration to the earlier one."""
    marked = {**entry(UPRIGHT), "markers": [[1, 2, 3, 4]]}
    read_list(write(tmp_path / "list.json", marked, aligner="atlalign 0.1.0"))
    assert "markers from an earlier registration (in 1 section)" in caplog.text


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
        ({"slices": {"a": 1}}, "expected a list of sections, an object with slices .*, found an object"),
        ({"slices": []}, "found no section"),
        (
            {"slices": [entry(UPRIGHT)], "target": "WHS_SD_Rat_39um.cutlas"},
            "found the target 'WHS_SD_Rat_39um",
        ),
        ([1, 2], "expected a list of sections, an object with slices .*, found a list"),
        (None, "expected a list of sections, an object with slices .*, found none"),
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


SIZE = "expected the width and height of the anchored image in pixels"


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
def test_deepslice_table_equals_its_json(tmp_path, nr):
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
    """A bad row is named by its line in a spreadsheet, which also counts blank lines."""
    (tmp_path / "l.csv").write_text(f"filename,p,image_id\nb.png,5000,0\n\n{row}\nc.png,6000,7\n")
    first, found, last = read_list(tmp_path / "l.csv")
    assert (found.path.name, found.problem) == (name, problem)
    assert first.problem == last.problem == ""


def test_windows_backslashes_are_resolved_if_the_file_exists(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.png").touch()
    (tmp_path / "l.csv").write_text("filename,p\nsub\\a.png,1\nsub\\b.png,2\n")
    found, missing = read_list(tmp_path / "l.csv")
    assert found.path == tmp_path / "sub" / "a.png"
    assert missing.path == tmp_path / "sub" / "b.png"


@pytest.mark.parametrize("name", ["l.csv", "l.json"])
def test_unknown_encoding_gives_a_readable_error(tmp_path, name):
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


XML = """<?xml version='1.0' encoding='{encoding}'?>
<series first='1' last='9' name='made up' {more}>
  <slice filename='{name}' nr='4' width='40' height='30' anchoring='{anchoring}'/>
  <slice filename='b.png' nr='5' width='40' height='30'/>
</series>
"""


def write_xml(path: Path, name: str = "a.png", *, more: str = "", encoding: str = "UTF-8") -> Path:
    query = "&amp;".join(f"{key}={value}" for key, value in zip(COMPONENTS, TILTED.ravel(), strict=True))
    text = XML.format(name=name, more=more, encoding=encoding, anchoring=query)
    path.write_bytes(text.encode(encoding))
    return path


def same_place(found: ListedSection, known: ListedSection) -> bool:
    assert (found.path, found.identity, found.problem) == (known.path, known.identity, "")
    assert (found.position_um, found.anchoring.size) == (known.position_um, known.anchoring.size)
    return bool((found.anchoring.vectors == known.anchoring.vectors).all())


@pytest.mark.parametrize("ending", ["xml", "XML"])
def test_xml_equals_json(tmp_path, ending):
    (known,) = read_list(write(tmp_path / "l.json", entry(TILTED)))
    found, unplaced = read_list(write_xml(tmp_path / f"l.{ending}"))
    assert same_place(found, known)
    assert (unplaced.path.name, unplaced.identity.image_id) == ("b.png", 5)
    assert unplaced.problem == "anchoring: expected nine numbers, found none"


@pytest.mark.parametrize("more", ["xmlns:first='4' xmlns:name='x/y' xmlns=''", "xmlns='http://a.example/b'"])
def test_xml_of_deepslice_abuses_namespaces(tmp_path, more):
    assert read_list(write_xml(tmp_path / "l.xml", more=more))[0].problem == ""


def test_names_in_xml_may_have_a_prefix(tmp_path):
    path = tmp_path / "l.xml"
    path.write_text("<q:series xmlns:q='http://a.example'><q:slice filename='a.png'/></q:series>")
    assert [section.path.name for section in read_list(path)] == ["a.png"]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16", "windows-1252", "ISO-8859-1"])
def test_xml_is_read_in_the_encoding_that_it_declares(tmp_path, encoding):
    path = write_xml(tmp_path / "l.xml", "Süd.png", encoding=encoding)
    assert read_list(path)[0].path == tmp_path / "Süd.png"


def test_numbers_that_an_anchoring_in_xml_lacks_are_named(tmp_path):
    path = write_xml(tmp_path / "l.xml")
    path.write_text(path.read_text().replace("vz=", "vw="))
    assert read_list(path)[0].problem == "anchoring: expected a number, found none"


def deep(n: int) -> str:
    return '{"slices":' + "[" * n + "]" * n + "}"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("l.json", deep(100_000), "nested too deeply"),
        ("l.waln", deep(100_000), "nested too deeply"),
        ("l.json", "", "JSON"),
        ("l.xml", "", "XML"),
        ("l.xml", "<series><slice", "XML"),
        ("l.xml", "<series/>", "found no section"),
        ("l.xml", "<svg/>", "element 'series', found 'svg'"),
        ("l.xml", "<?xml version='1.0' encoding='klingon'?><series/>", "XML"),
        ("l.xml", "<series target='WHS_SD_rat_39um.cutlas'/>", "target 'WHS_SD_rat_39um.cutlas'"),
        ("l.xml", "<!DOCTYPE series SYSTEM 'file:///etc/passwd'><series/>", "DOCTYPE"),
        ("l.xml", '<!DOCTYPE s [<!ENTITY a "b">]><series><slice filename="&a;"/></series>', "DOCTYPE"),
        ("l.waln", '{"atlas":"WHS_SD_Rat_v4_39um","sections":[]}', "target 'WHS_SD_Rat_v4_39um'"),
        ("l.waln", '{"sections":[]}', "found no section"),
        ("l.json", '{"target":"KimLabDevCCFv001_P56_25um","slices":[]}', "target 'KimLabDevCCFv001_P56_25um'"),
        ("l.json", '{"target":["a"],"slices":[]}', "target a list"),
        ("l.json", '{"target-resolution":[512,1024,512],"slices":[]}', r"found \[512, 1024, 512\]"),
        ("l.csv", "", "expected the columns filename"),
        ("l.csv", "filename,p\n", "found no section"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_used_gives_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}: .*{sentence}"):
        read_list(tmp_path / name)


@pytest.mark.parametrize(
    "target",
    [
        "ABA_Mouse_CCFv3_2017_25um.cutlas",
        "ABA_Mouse_CCFv3_2015_25um",
        "allen_mouse_25um",
        "atlases/ABA_Mouse_CCFv3_2017_25um",
        r"C:\QuickNII\ABA_Mouse_CCFv3_2017_25um.cutlas",
        "",
    ],
)
def test_the_allen_atlas_has_several_names(tmp_path, target):
    assert read_list(write(tmp_path / "l.json", entry(UPRIGHT), target=target))[0].problem == ""


@pytest.mark.parametrize(
    "target",
    [
        *("demba_allen_seg_dev_mouse_p28_25um", "KimLab_allen_mouse_25um", "ABA_Human_25um"),
        *("ABA_Mouse_CCFv2_2012_25um", "ABA_Mouse_CCFv3_2017_125um", "ABA_Mouse_CCFv3_2017_10um.cutlas"),
        r"ABA_Mouse_25um\WHS_Rat_39um",
    ],
)
def test_atlases_that_only_sound_like_the_allen_mouse_atlas_are_refused(tmp_path, target):
    with pytest.raises(InputError, match=re.escape(f"found the target '{target}'")):
        read_list(write(tmp_path / "l.json", entry(UPRIGHT), target=target))


def test_empty_rows_and_comments_are_skipped(tmp_path, caplog):
    (tmp_path / "#c.png").touch()
    rows = "filename,p\na.png,6500\n,\n#b.png,6600\n#c.png,6700\n,\n"
    (tmp_path / "l.csv").write_text(rows, encoding="utf-8")
    names = [section.path.name for section in read_list(tmp_path / "l.csv")]
    assert names == ["a.png", "#c.png"]
    assert "1 row," in caplog.text
    assert "#b.png" in caplog.text


@pytest.mark.parametrize("ending", ["waln", "wwrp", "json"])
def test_webalign_equals_quicknii(tmp_path, caplog, ending):
    (known,) = read_list(write(tmp_path / "known.json", entry(TILTED)))
    (tmp_path / "a.png").touch()
    section = {"filename": "m3/a.dzip", "snr": 4, "width": 40, "height": 30, "format": "jpg"}
    placed = section | {"ouv": TILTED.ravel().tolist(), "markers": [[1, 2, 3, 4]]}
    series = {
        "atlas": "ABA_Mouse_CCFv3_2017_25um",
        "sections": [placed, section | {"filename": "no.dzip"}, 3],
    }
    (tmp_path / f"l.{ending}").write_text(json.dumps(series))
    found, unplaced, bad = read_list(tmp_path / f"l.{ending}")
    assert same_place(found, known)
    assert (found.missing, bad.path.name) == ("", "sections[2]")
    assert unplaced.problem == "anchoring: expected nine numbers, found none"
    assert unplaced.missing == f"no such file in {tmp_path}"
    assert found.markers == ((1, 2, 3, 4),)


def test_zoomable_copy_refers_to_the_image_of_the_same_name(tmp_path):
    for name in ("a.png", "b.tif", "b.png", "c.tif", "c.json", "d.dzip"):
        (tmp_path / name).touch()
    names = ["a.dzip", "b.dzip", "c.tif.dzip", "d.dzip"]
    entries = [{"filename": name, "ouv": TILTED.ravel().tolist()} for name in names]
    (tmp_path / "l.waln").write_text(json.dumps({"sections": entries}))
    a, b, c, d = read_list(tmp_path / "l.waln")
    assert (a.path.name, a.missing, c.path.name, c.missing) == ("a.png", "", "c.tif", "")
    assert "; found b.png, b.tif instead" in b.missing
    assert d.missing == f"no such file in {tmp_path}"


@pytest.mark.parametrize(
    "name", ["\ud800.png", "a\0.png", "x" * 252 + ".png", "C:\\x\\" + "ü" * 130, "/", " "]
)
def test_a_name_that_no_file_can_have_fails_its_entry_alone(tmp_path, name):
    bad, good = read_list(write(tmp_path / "l.json", entry(UPRIGHT, filename=name), entry(UPRIGHT)))
    assert bad.path == tmp_path / "slices[0]"
    assert bad.problem.startswith("expected a filename")
    assert bad.problem == bad.missing
    assert bad.problem.isprintable()
    assert good.problem == ""


def test_the_files_of_deepslice_agree_with_one_another(test_data):
    def placed(name: str) -> dict[str, np.ndarray]:
        sections = read_list(test_data / "quint" / name)
        assert all(not section.problem for section in sections)
        return {section.path.name: section.anchoring.vectors for section in sections}

    first = placed("GLTa.csv")
    assert placed("GLTa.xml").keys() == first.keys()
    assert all((placed("GLTa.xml")[name] == first[name]).all() for name in list(first)[::10])
    second = placed("MyResults.csv")
    assert (second.keys(), len(second)) == (first.keys(), len(first))
    assert all((placed("MyResults.json")[name] == second[name]).all() for name in list(second)[::10])
    # The XML is of another run: close to the first version, and not to its neighbours.
    older = placed("MyResults.xml")
    assert max(np.abs(older[name] - first[name]).max() for name in first) < 2


def test_a_folder_has_one_list_or_several_forms_of_one(tmp_path):
    table = "Filenames,ox,oy,oz,ux,uy,uz,vx,vy,vz,width,height,nr\n"
    row = f"a.png,{','.join(map(str, TILTED.ravel()))},40,30,4\nb.png,1,,,,,,,,,40,30,5\n"
    (tmp_path / "brain.csv").write_text(table + row)
    assert find_list(tmp_path) == tmp_path / "brain.csv"
    write(tmp_path / "brain.json", entry(TILTED), entry(UPRIGHT, filename="b.png", anchoring=[]))
    write_xml(tmp_path / "brain.xml")
    assert find_list(tmp_path) == tmp_path / "brain.json"
    (tmp_path / "notes.txt").touch()
    (tmp_path / "places.tsv").write_text("filename\tp\n")
    assert find_list(tmp_path) == tmp_path / "brain.json"
    (tmp_path / "other.csv").write_text("filename,p\n")
    with pytest.raises(InputError, match=r"found brain\.csv, brain\.json, brain\.xml, other\.csv"):
        find_list(tmp_path)


@pytest.mark.parametrize(
    "changed", [entry(TILTED + 1), entry(TILTED, filename="c.png"), entry(TILTED, anchoring=None)]
)
def test_forms_of_one_list_that_differ_are_not_one_list(tmp_path, changed):
    write(tmp_path / "brain.json", changed, entry(UPRIGHT, filename="b.png", anchoring=None))
    write_xml(tmp_path / "brain.xml")
    with pytest.raises(InputError, match=r"found brain\.json and brain\.xml, which differ in [ac]\.png"):
        find_list(tmp_path)


def test_a_list_that_another_format_contradicts_is_read_with_a_warning(tmp_path, caplog):
    write(tmp_path / "brain.json", entry(TILTED), entry(UPRIGHT, filename="b.png", anchoring=None))
    write_xml(tmp_path / "brain.xml")
    (tmp_path / "brain.csv").write_text("x,y\n1,2\n")  # cells of the same brain
    read_list(tmp_path / "brain.xml")
    assert not caplog.records
    write(tmp_path / "brain.json", entry(TILTED + 1), entry(UPRIGHT, filename="b.png", anchoring=None))
    found = read_list(tmp_path / "brain.xml")
    assert found[0].anchoring is not None
    assert (found[0].anchoring.vectors == TILTED).all()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "brain.json" in caplog.text
    assert "1 section differently" in caplog.text
    assert "a.png" in caplog.text


def test_xml_of_another_run_gives_a_warning(test_data, caplog):
    read_list(test_data / "quint" / "MyResults.xml")
    assert "MyResults.json" in caplog.text
    assert "MyResults.csv" in caplog.text
    caplog.clear()
    read_list(test_data / "quint" / "GLTa.xml")
    assert not caplog.records


def test_other_files_do_not_hide_the_list_of_a_folder(tmp_path):
    (tmp_path / "positions.csv").write_text("filename,p\na.png,5000\n")
    (tmp_path / "cells.csv").write_text("x,y\n1,2\n")
    (tmp_path / "shapes.json").write_text('{"type": "FeatureCollection"}')
    (tmp_path / "._positions.csv").write_bytes(b"\0\5\x16\7filename")
    (tmp_path / ".hidden.json").write_text('{"slices": []}')
    (tmp_path / "desktop.ini").touch()
    (tmp_path / "__MACOSX").mkdir()
    assert find_list(tmp_path) == tmp_path / "positions.csv"
    (tmp_path / "positions.csv").unlink()
    with pytest.raises(InputError, match=r"found cells\.csv, shapes\.json"):
        find_list(tmp_path)


def test_a_list_in_utf_16_is_found_and_read(tmp_path):
    (tmp_path / "l.txt").write_text("filename\tp\nSüd.png\t6500,5\n", encoding="utf-16")
    (tmp_path / "m.txt").write_text("notes", encoding="utf-16")
    (section,) = read_list(find_list(tmp_path))
    assert (section.path.name, section.position_um) == ("Süd.png", 6500.5)


@pytest.mark.parametrize(
    "name",
    [
        "C:\\Users\\lab\\a.png", "\\\\server\\share\\a.png", "/Volumes/Data/a.png", "DeepSlice_scaledImages/a.png",
        "file:///C:/Users/lab/a.png", "A.PNG", "../a.png", "d:a.png/../a.png",
    ],
)  # fmt: skip
def test_image_beside_its_list_is_found_with_a_warning(tmp_path, caplog, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").touch()
    (section,) = read_list(write(tmp_path / "in" / "l.json", entry(UPRIGHT, filename=name)))
    assert (section.path, section.missing) == (tmp_path / "in" / "a.png", "")
    assert "found in another folder or under another spelling: 1 image," in caplog.text


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("M\u00e4use.png", "Ma\u0308use.png"),
        ("Ma\u0308use.png", "M\u00e4use.png"),
        ("my%20image.png", "my image.png"),
        ("a.png ", "a.png"),
        ("./a.png", "a.png"),
        ("sub\\b c.png", "sub/b c.png"),
    ],
)
def test_a_name_in_another_notation_is_the_same_name(tmp_path, caplog, name, file):
    (tmp_path / "sub").mkdir()
    (tmp_path / file).touch()
    (section,) = read_list(write(tmp_path / "l.json", entry(UPRIGHT, filename=name)))
    assert (section.path, section.missing) == (tmp_path / file, "")
    assert not caplog.records


def test_a_url_and_an_absolute_name_of_this_computer_are_taken_as_they_are(tmp_path):
    for folder in (tmp_path / "scans", tmp_path / "far off"):
        folder.mkdir()
        (folder / "a.png").touch()
    file = tmp_path / "far off" / "a.png"
    names = [str(file), file.as_uri()]
    path = write(tmp_path / "l.json", *(entry(UPRIGHT, filename=name) for name in names))
    assert [section.path for section in read_list(path)] == [file, file]
    (scan,) = read_list(write(path, entry(UPRIGHT, filename=str(file))), tmp_path / "scans")
    assert scan.path == tmp_path / "scans" / "a.png"


def test_the_name_as_it_is_written_comes_first(tmp_path):
    for name in ("a%20b.png", "a b.png", "A.png", "a.png", "C:\\a.png"):
        (tmp_path / name).touch()
    path = write(
        tmp_path / "l.json", *(entry(UPRIGHT, filename=n) for n in ("a%20b.png", "a.png", "C:\\a.png"))
    )
    assert [section.path.name for section in read_list(path)] == ["a%20b.png", "a.png", "C:\\a.png"]


def test_of_two_files_that_differ_in_their_accents_alone_the_named_one_is_taken(tmp_path):
    files = ["M\u00e4use.png", "Ma\u0308use.png"]
    for file in files:
        (tmp_path / file).touch()
    path = write(tmp_path / "l.json", *(entry(UPRIGHT, filename=f"C:\\x\\{file}") for file in files))
    assert [(section.path.name, section.missing) for section in read_list(path)] == [(f, "") for f in files]


def test_file_that_matches_two_names_belongs_to_neither(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").touch()
    names = ["left/a.png", "right\\a.png", "b.png", "B.png"]
    first, second, exact, other = read_list(
        write(tmp_path / "l.json", *(entry(UPRIGHT, filename=name) for name in names))
    )
    assert "'right\\a.png'" in first.missing
    assert "'left/a.png'" in second.missing
    assert exact.missing == ""
    assert "'b.png'" in other.missing


def test_upper_and_lower_case_are_not_guessed_between_two_files(tmp_path):
    for name in ("A.png", "a.PNG"):
        (tmp_path / name).touch()
    names = ["a.png", "C:\\x\\A.png"]
    neither, exact = read_list(write(tmp_path / "l.json", *(entry(UPRIGHT, filename=name) for name in names)))
    assert neither.missing.startswith(f"no such file in {tmp_path}")
    assert (exact.path, exact.missing) == (tmp_path / "A.png", "")


def test_an_image_of_another_ending_is_named_and_not_taken(tmp_path):
    for name in ("a.tif", "a.csv", "b.tif"):
        (tmp_path / name).touch()
    (section,) = read_list(write(tmp_path / "l.json", entry(UPRIGHT, filename="C:\\x\\a.png")))
    assert section.path == tmp_path / "a.png"
    assert section.missing.startswith(f"no such file in {tmp_path}, nor 'C:\\x\\a.png'; found a.tif instead")


def test_images_may_lie_in_another_folder_than_their_list(tmp_path):
    (tmp_path / "scans").mkdir()
    for folder in (tmp_path, tmp_path / "scans"):
        (folder / "a.png").touch()
    path = write(tmp_path / "l.json", entry(UPRIGHT))
    assert read_list(path)[0].path == tmp_path / "a.png"
    assert read_list(path, tmp_path / "scans")[0].path == tmp_path / "scans" / "a.png"


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("pos.csv", "Image name,Position (mm)\na.png,5\n", ["Position (mm)"]),
        ("pos.tsv", "image\tAP\na.png\t5\n", ["AP"]),
        ("pos.csv", "image;p\na.png;5000\n", ["p"]),
        ("pos.txt", "image,bregma\na.png,-1.5\n", ["bregma"]),
        ("cells.csv", "Image,Centroid X µm,Centroid Y µm\na.png,5,5\n", None),
        ("cells.csv", "ap_um,dv_um,ml_um\n1,2,3\n", None),
        ("registrations.csv", "section,flag,reason,position_um\na,pass,,5000\n", None),
        ("notes.txt", "The position of the electrode is unknown.\n", None),
        ("list.csv", "filename,p\na.png,5\n", None),
        ("._pos.csv", "Image name,Position (mm)\na.png,5\n", None),
    ],
)
def test_tables_with_positions_that_are_no_list_are_found(tmp_path, name, content, columns):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert unused_positions(tmp_path) == ([] if columns is None else [(tmp_path / name, columns)])
