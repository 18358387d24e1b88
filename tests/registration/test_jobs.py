"""Jobs: the images given as files, in folders or in lists, each once and under a unique name."""

import json
import re
from pathlib import Path

import pytest

from atlalign.errors import InputError
from atlalign.registration import Job, find_jobs

ANCHORING = [456, 264.5, 320, -456, 0, 0, 0, 0, -320]


@pytest.fixture
def sections(tmp_path) -> Path:
    """A folder of three images, whose content does not matter, and their list."""
    folder = tmp_path / "sections"
    touch(folder, "a.png", "b.tif", "c.jpg")
    (folder / "list.csv").write_text("filename,p\na.png,4000\nb.tif,6000\nc.jpg,8000\n")
    return folder


def touch(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def write_slices(path: Path, *names: str, anchoring: object = ANCHORING) -> Path:
    slices = [{"filename": name, "width": 40, "height": 30, "anchoring": anchoring} for name in names]
    path.write_text(json.dumps({"slices": slices}))
    return path


def names(jobs: list[Job]) -> list[str]:
    return [job.name for job in jobs]


def test_files_folders_and_lists_give_jobs(sections):
    assert names(find_jobs([sections])) == ["a", "b", "c"]
    assert [job.position_um for job in find_jobs([sections])] == [4000, 6000, 8000]
    assert [job.position_um for job in find_jobs([sections], position_um=700)] == [700, 700, 700]
    assert [job.position_um for job in find_jobs([sections], listed=False)] == [None] * 3
    assert names(find_jobs([Path("x.ome.tif")], position_um=100)) == ["x"]


def test_inputs_without_images_are_reported(sections, tmp_path):
    with pytest.raises(InputError, match="position_um cannot be combined"):
        find_jobs([sections / "list.csv"], position_um=700)
    with pytest.raises(InputError, match="found none in"):
        find_jobs([tmp_path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found none in"):
        find_jobs([tmp_path / "empty"], listed=False)
    (tmp_path / "x.xlsx").touch()
    for name, sentence in (
        ("x.xlsx", "save it as CSV"),
        ("nothing", "no such file or folder"),
        ("x" * 999, "no such"),
    ):
        for position_um in (None, 700):
            with pytest.raises(InputError, match=rf"{name}: .*{sentence}"):
                find_jobs([tmp_path / name], position_um=position_um)


@pytest.mark.parametrize("name", ["x.bmp", "x.jp2", "x.svs", "x"])
def test_a_file_of_any_ending_may_be_an_image(tmp_path, name):
    (path,) = touch(tmp_path, name)
    assert find_jobs([path], position_um=700) == [Job(path, 700)]


def test_position_in_mm_is_detected(sections):
    with pytest.raises(
        InputError, match=r"^position_um: expected a position in µm .*, got 6\.7: is that mm\?"
    ):
        find_jobs([sections / "a.png"], position_um=6.7)
    (sections / "list.csv").write_text("filename,p\na.png,7.2\n")
    (job,) = find_jobs([sections])
    assert re.match(r"line 2, p: expected a position in µm .*, got 7\.2: is that mm\?", job.problem)


def test_system_files_in_a_folder_are_skipped(sections):
    touch(
        sections,
        "._a.png",
        ".hidden.tif",
        "Thumbs.db",
        "desktop.ini",
        ".DS_Store",
        "._list.csv",
        "._list.json",
    )
    touch(sections / "__MACOSX", "._a.png")
    touch(sections / "stack.tif", "1.png")  # a folder
    assert names(find_jobs([sections])) == ["a", "b", "c"]
    assert names(find_jobs([sections], position_um=700)) == ["a", "b", "c"]


def test_tables_of_results_do_not_hide_the_list_of_their_folder(sections):
    (sections / "registrations.csv").write_text("section,flag,reason,position_um,file\na,pass,,4000,a.png\n")
    (sections / "visualign.json").write_text(
        '{"name": "", "target": "", "aligner": "atlalign 1.0", "slices": []}'
    )
    assert [job.position_um for job in find_jobs([sections])] == [4000, 6000, 8000]


def test_a_hidden_image_has_a_folder_of_results_that_shows(tmp_path):
    """Hidden folders have no row in the table of all."""
    paths = touch(tmp_path, ".a.png", "..b.ome.tif", "...png")
    assert names(find_jobs(paths, position_um=700)) == ["a", "b", "section"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["s1.png", "s1.tif"], ["s1_png", "s1_tif"]),
        (["s1.tif", "s1.ome.tif"], ["s1_tif", "s1_ome_tif"]),
        (["x/s1.png", "y/s1.png"], ["x_s1", "y_s1"]),
        (["x/s1.png", "y/s1.png", "y/s1.tif"], ["x_s1_png", "y_s1_png", "y_s1_tif"]),
        (["x/raw/s1.png", "y/raw/s1.png"], ["x_raw_s1", "y_raw_s1"]),
        (["S1.png", "s1.png", "t.png"], ["S1_1", "s1_2", "t"]),
        (["S\u00fcd.png", "su\u0308d.tif"], ["S\u00fcd_png", "su\u0308d_tif"]),
        ([".s1.png", "s1.png"], ["s1_1", "s1_2"]),
        (["s1.png", "s1.tif", "S1_png.jpg", "x/s2.png"], ["IN_s1_png", "IN_s1_tif", "S1_png", "s2"]),
        (["s1", "s1.png"], ["s1", "s1_png"]),
    ],
)  # fmt: skip
def test_images_of_one_name_have_results_of_different_names(tmp_path, files, expected):
    """Also where upper and lower case, or the composition of accents, make no difference."""
    for file in files:
        touch((tmp_path / "IN" / file).parent, Path(file).name)
    found = names(find_jobs([tmp_path / "IN" / file for file in files], position_um=700))
    assert found == expected


def test_images_of_one_name_in_a_list_have_results_of_different_names(tmp_path):
    touch(tmp_path / "x", "s1.png")
    touch(tmp_path, "s1.tif")
    listing = write_slices(tmp_path / "l.json", "x/s1.png", "s1.tif", "x/no.png")
    jobs = find_jobs([listing])
    assert names(jobs) == ["s1_png", "s1_tif", "no"]
    assert [bool(job.problem) for job in jobs] == [False, False, True]


def test_one_image_that_is_named_twice_counts_once(sections, caplog):
    assert names(find_jobs([sections, sections / "a.png"], position_um=300)) == ["a", "b", "c"]
    assert "such as" in caplog.text
    assert names(find_jobs([sections / "list.csv", sections / ".." / "sections"])) == ["a", "b", "c"]
    (sections / "list.csv").write_text("filename,p\na.png,4000\nb.tif,6000\na.png,4000.0\n./a.png,4000\n")
    assert names(find_jobs([sections])) == ["a", "b"]


@pytest.mark.parametrize("again", ["a.png,4001,", "a.png,4000,yes", "a.png,far,"])
def test_an_image_that_is_named_twice_in_different_ways_fails_alone(sections, again):
    (sections / "list.csv").write_text(f"filename,p,mirrored\na.png,4000,\nb.tif,6000,\n{again}\n")
    a, b = find_jobs([sections])
    assert a.problem.startswith("named 2 times, with different positions")
    assert (b.problem, b.position_um) == ("", 6000)


def test_anchorings_of_one_image_are_compared(sections):
    one, same = (write_slices(sections / name, "a.png") for name in ("1.json", "2.json"))
    other = write_slices(sections / "3.json", "a.png", anchoring=[455, *ANCHORING[1:]])
    (job,) = find_jobs([one, same])
    assert job.problem == ""
    assert job.anchoring is not None
    assert find_jobs([one, other])[0].problem.startswith("named 2 times")


def test_the_images_of_a_list_may_lie_in_another_folder(sections, tmp_path, caplog):
    listing = write_slices(tmp_path / "elsewhere.json", "a.png", "C:\\lab\\b.tif", "d.png")
    a, b, d = find_jobs([listing], images=sections)
    assert (a.path, b.path) == (sections / "a.png", sections / "b.tif")
    assert (a.problem, b.problem, d.problem) == ("", "", f"no such file in {sections}")
    assert not caplog.messages[1:]
    assert all(job.problem for job in find_jobs([listing]))
    assert "give their folder with images" in caplog.text
    with pytest.raises(InputError, match=r"^images: expected the folder"):
        find_jobs([listing], images=sections / "a.png")


def test_missing_image_fails_alone_with_a_reference_image(tmp_path):
    touch(tmp_path, "a.png", "b.tif")
    listing = write_slices(tmp_path / "l.json", "a.png", "b.png", anchoring=None)
    a, b = find_jobs([listing], listed=True)
    # What has no anchoring is located.
    assert (a.problem, a.position_um, b.problem.partition(";")[0]) == (
        "",
        None,
        f"no such file in {tmp_path}",
    )
    (tmp_path / "l.csv").write_text("filename,p\na.png,far\nb.png,4000\n")
    a, b = find_jobs([tmp_path / "l.csv"], listed=False)
    assert a.problem == ""
    assert "b.tif" in b.problem


def test_unreadable_images_of_a_folder_are_reported(sections, caplog):
    touch(sections, "d.czi", "e.LIF", "f.lsm", "._g.czi", "notes.docx")
    assert names(find_jobs([sections], position_um=7000)) == ["a", "b", "c", "d", "f"]
    assert "e.LIF" in caplog.text
    assert "d.czi" not in caplog.text


def test_unknown_columns_are_reported(sections, caplog):
    rows = "filename,p,Pixel_size,mirrored,notes,empty\na.png,4000,0.65,yes,,\nb.tif,6000,0.65,,torn,\n"
    (sections / "list.csv").write_text(rows)
    assert [dict(job.options) for job in find_jobs([sections])] == [{"mirrored": True}, {}]
    assert "not used: the columns 'pixel_size', 'notes';" in caplog.text
    assert "pixel_size_um" in caplog.text


def test_deepslice_columns_give_no_warning(test_data, caplog):
    find_jobs([test_data / "quint" / "GLTa.csv"])
    assert "not used" not in caplog.text


def test_a_list_says_which_half_of_the_brain_each_section_shows(sections):
    rows = "filename,p,hemisphere\na.png,4000,Left\nb.tif,6000,\nc.jpg,8000,both\n"
    (sections / "list.csv").write_text(rows)
    a, b, c = find_jobs([sections])
    assert (dict(a.options), dict(b.options)) == ({"hemisphere": "left"}, {})
    assert "hemisphere" in c.problem
    assert "both" in c.problem


def test_a_table_of_positions_that_is_no_list_is_named(tmp_path, caplog):
    (image,) = touch(tmp_path / "t1", "a.png")
    (tmp_path / "t1" / "pos.csv").write_text("Image name,Position (mm)\na.png,5\n")
    touch(tmp_path / "t1", "pos.xlsx", "~$pos.xlsx")
    assert [job.path for job in find_jobs([tmp_path / "t1"])] == [image]
    first, second = caplog.messages
    assert re.search(r"pos\.csv: not used.*filename.*'Position \(mm\)'", first)
    assert re.search(r"[^$]pos\.xlsx: not used", second)
    caplog.clear()
    find_jobs([tmp_path / "t1"], position_um=5000)  # the table is not needed
    assert not caplog.messages
