"""Which section each point of a table belongs to, by the names that other programs give to images."""

import csv
from pathlib import Path

import pytest

from atlalign.cli import main
from tests.registration.test_carry import maps, save

FILES = {"brain_s1": "Mouse 12 s1.png", "brain_s2": "Mouse 12 s2.ome.tif", "brain_s3": "slide.czi"}
SCENES = {"brain_s3": "ScanRegion1"}


@pytest.fixture
def results(tmp_path) -> Path:
    for name, file in FILES.items():
        folder = tmp_path / "all" / name
        folder.parent.mkdir(exist_ok=True)
        save(maps(), folder, {"settings": {"file": file, "scene": SCENES.get(name)}})
    return tmp_path / "all"


def transform(folder: Path, column: str, *names: str) -> int:
    source = folder.parent / "cells.csv" if folder.name == "all" else folder.parent.parent / "cells.csv"
    rows = [f"{70 + place},80,{name}" for place, name in enumerate(names)]
    source.write_text("\n".join([f"x,y,{column}", *rows]) + "\n", encoding="utf-8")
    out = source.with_name("out.csv")
    return main(["transform", str(source), "--with", str(folder), "--to", "reference", "--out", str(out)])


def written(results: Path) -> list[dict[str, str]]:
    with (results.parent / "out.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "column", ["Image", "image_name", "Filename", "file name", "FileName_DNA", "section", "Label"]
)
def test_rows_of_another_image_are_refused(results, capsys, column):
    assert transform(results / "brain_s1", column, "Mouse 12 s1.png", "Mouse 12 s2.ome.tif") == 1
    said = capsys.readouterr().err
    assert (
        f"line 3, {column.lower()}: expected points of brain_s1, found points of 'Mouse 12 s2.ome.tif'"
        in said
    )
    assert str(results) in said  # the folder to give instead
    assert transform(results / "brain_s1", column, "Mouse 12 s1.png", "other.png") == 1
    assert "'other.png'" in (said := capsys.readouterr().err)
    assert f"{results}," not in said
    assert not (results.parent / "out.csv").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("Mouse 12 s1.png", "Mouse 12 s1", "MOUSE 12 S1.PNG", "Mouse 12 s1.czi", "brain_s1", "Brain_S1"),
        *(r"C:\data\Mouse 12 s1.png", "/data/Mouse 12 s1.png", "file:///data/Mouse%2012%20s1.png"),
    ],
)
def test_a_section_is_known_by_its_folder_and_by_its_image(results, name):
    assert transform(results / "brain_s1", "Image", name) == 0
    (row,) = written(results)
    assert (row["Image"], row["section"]) == (name, "brain_s1")


@pytest.mark.parametrize(
    "name", ["slide.czi - ScanRegion1", "slide - ScanRegion1", "ScanRegion1", "slide.czi"]
)
def test_a_section_is_known_by_its_scene(results, capsys, name):
    assert transform(results, "Image", name, "Mouse 12 s2") == 0
    assert "2 points, in 2 sections" in capsys.readouterr().out
    assert [row["section"] for row in written(results)] == ["brain_s3", "brain_s2"]


def test_another_scene_of_the_same_file_is_another_image(results, capsys):
    assert transform(results / "brain_s3", "Image", "slide.czi - ScanRegion0") == 1
    assert "'slide.czi - ScanRegion0'" in capsys.readouterr().err


def test_points_of_several_images_go_by_their_sections(results):
    assert transform(results, "Image", "Mouse 12 s2.ome.tif", "Mouse 12 s1", "Mouse 12 s2") == 0
    found = written(results)
    assert [row["section"] for row in found] == ["brain_s2", "brain_s1", "brain_s2"]
    assert all(row["region_id"] for row in found)


def test_a_name_of_two_sections_is_refused(results, capsys):
    save(maps(), results / "other", {"settings": {"file": "Mouse 12 s1.tif", "scene": None}})
    assert transform(results, "Image", "Mouse 12 s1") == 1
    assert "'Mouse 12 s1', which may mean brain_s1 or other" in capsys.readouterr().err
    assert transform(results, "Image", "Mouse 12 s1.tif") == 0
    assert [row["section"] for row in written(results)] == ["other"]


def test_the_column_of_sections_is_asked_for(results, capsys):
    assert transform(results, "Area", "3") == 1
    said = capsys.readouterr().err
    assert "expected a column section (or Image)" in said
    assert "'Area'" in said


def test_a_near_name_is_suggested(results, capsys):
    assert transform(results, "section", "brain_s11") == 1
    assert "found 'brain_s11': did you mean brain_s1?" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["ImageNumber", "timestep"])
def test_several_numbered_images_are_refused(results, capsys, column):
    assert transform(results / "brain_s1", column, "1", "1") == 0
    (results.parent / "out.csv").unlink()
    assert transform(results / "brain_s1", column, "1", "2") == 1
    assert (
        f"line 3, {column.lower()}: expected points of one image, found images '1' and '2'"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("cells", [("1", "2"), ("tumor", ""), ("", "")])
def test_labels_of_cells_are_no_images(results, cells):
    assert transform(results / "brain_s1", "label", *cells) == 0


def test_an_imagej_label_names_image_and_roi(results, capsys):
    assert transform(results, "Label", "Mouse 12 s1.png:0001-0020", "Mouse 12 s2.ome.tif:7") == 0
    assert [row["section"] for row in written(results)] == ["brain_s1", "brain_s2"]
    (results.parent / "out.csv").unlink()
    assert transform(results / "brain_s1", "Label", "Mouse 12 s1.png:1", "Mouse 12 s2.ome.tif:7") == 1
    assert "'Mouse 12 s2.ome.tif'" in capsys.readouterr().err


def test_transform_says_that_a_section_was_rejected(results, capsys):
    path = results / "corrections" / "brain_s1" / "review.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"verdict": "rejected", "note": ""}')
    assert transform(results / "brain_s1", "Image", "brain_s1") == 0
    assert "brain_s1 was rejected in review" in capsys.readouterr().out
    (results.parent / "out.csv").unlink()
    assert transform(results, "Image", "brain_s1", "brain_s2") == 0
    assert "rejected in review: brain_s1," in capsys.readouterr().out
    (results.parent / "out.csv").unlink()
    assert transform(results, "Image", "brain_s2") == 0
    assert "rejected" not in capsys.readouterr().out.replace(str(results.parent), "")
