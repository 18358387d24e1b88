"""Points by region: numbers and densities that can be worked out by hand."""

import csv
import re
from pathlib import Path

import pytest

from atlalign.cli import main
from atlalign.registration.record import RECORD_FORMAT, write_record

TREE = {1: ("root", ""), 2: ("grey", "1"), 3: ("leaf", "2"), 4: ("fibres", "1")}


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def section(
    folder: Path, areas: dict[int, tuple[float, float]], *, with_sides: bool = True, **record: object
) -> Path:
    """Write what of a registered section is counted: the left and the right area of each region."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder, {"format": RECORD_FORMAT, **record})
    columns = "area_mm2,left_mm2,right_mm2" if with_sides else "area_mm2"
    rows = []
    for i, (left, right) in areas.items():
        acronym, parent = TREE[i]
        mm2 = f"{left + right:g},{left:g},{right:g}" if with_sides else f"{left + right:g}"
        rows.append(f"{i},{acronym},the {acronym},,{mm2},{parent}")
    write(folder / "regions.csv", f"id,acronym,name,color,{columns},parent_id", *rows)
    return folder


@pytest.fixture
def sections(tmp_path) -> Path:
    section(tmp_path / "all" / "s1", {1: (0, 0), 2: (1, 1), 3: (2, 0), 4: (0, 0)})
    section(tmp_path / "all" / "s2", {1: (0, 0), 2: (0, 2), 3: (0, 4)})
    return tmp_path / "all"


@pytest.fixture
def cells(tmp_path) -> Path:
    """Three left and two right in the leaf, one left in the grey, two that do not count."""
    return write(
        tmp_path / "cells.csv", "x,region_id,hemisphere", "1,3,left", "2,3,left", "3,3,left", "4,3,right", "5,3,right",
        "6,2,left", "7,0,left", "8,,",
    )  # fmt: skip


def count(*arguments: object) -> int:
    return main(["count", *map(str, arguments)])


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["acronym"]: row for row in csv.DictReader(file)}


def test_points_and_densities_of_regions_and_of_all_their_parts(cells, sections, tmp_path, capsys):
    assert count(cells, "--with", sections, "--out", tmp_path / "counts.csv") == 0
    assert "counts.csv: 6 points in 2 regions of 2 sections" in capsys.readouterr().out
    found = rows(tmp_path / "counts.csv")
    assert list(found) == ["root", "grey", "leaf", "fibres"]
    own = (
        "points",
        "area_mm2",
        "points_per_mm2",
        "left_points",
        "left_mm2",
        "right_points",
        "right_points_per_mm2",
    )
    assert [found["leaf"][name] for name in own] == ["5", "6", "0.833333", "3", "2", "2", "0.5"]
    assert [found["root"][name] for name in own] == ["0", "0", "", "0", "0", "0", ""]
    whole = (
        "points_with_parts", "area_with_parts_mm2", "points_with_parts_per_mm2", "left_points_with_parts",
        "left_with_parts_mm2", "right_points_with_parts_per_mm2",
    )  # fmt: skip
    assert [found["grey"][name] for name in whole] == ["6", "10", "0.6", "4", "3", "0.285714"]
    assert [found["root"][name] for name in whole] == [found["grey"][name] for name in whole]
    assert [found["fibres"][name] for name in whole] == ["0", "0", "", "0", "0", ""]
    assert [found[name]["parent_id"] for name in found] == ["", "1", "2", "1"]


def test_sections_of_two_atlases_do_not_add_up(cells, sections, tmp_path, capsys):
    for name, atlas in (("s1", "a"), ("s2", "a"), ("s3", "b")):
        settings = {"reference": f"atlas {atlas}", "reference_sha256": atlas}
        section(sections / name, {3: (1, 1)}, position_um=5000.0, settings=settings)
    assert count(cells, "--with", sections, "--out", tmp_path / "out.csv") == 1
    assert "one atlas" in (printed := capsys.readouterr().err)
    assert "atlas a" in printed
    assert "atlas b" in printed
    for name in ("s1", "s2", "s3"):  # reference images have no position, and each section may have its own
        section(sections / name, {2: (1, 1), 3: (1, 1)}, settings={"reference_sha256": name})
    assert count(cells, "--with", sections, "--out", tmp_path / "out.csv") == 0


def test_tables_add_up_and_a_section_counts_once(cells, sections, tmp_path):
    (tmp_path / "link").symlink_to(sections)
    folders = (sections / "s1", sections, tmp_path / "link", sections / "s2")
    more = write(tmp_path / "more.csv", cells.read_text())
    assert count(cells, more, "--with", *folders, "--out", tmp_path / "counts.csv") == 0
    leaf = rows(tmp_path / "counts.csv")["leaf"]
    assert (leaf["points"], leaf["area_mm2"]) == ("10", "6")


def test_values_missing_from_one_table_are_left_out(cells, sections, tmp_path):
    section(sections / "s3", {2: (1, 1)}, with_sides=False)
    assert count(cells, "--with", sections, "--out", tmp_path / "counts.csv") == 0
    grey = rows(tmp_path / "counts.csv")["grey"]
    assert grey["area_mm2"] == "6"
    assert not [name for name in grey if name.startswith(("left", "right"))]
    (sections / "s4").mkdir()
    write_record(sections / "s4", {"format": RECORD_FORMAT})
    write(sections / "s4" / "regions.csv", "id,acronym,name,color,area_mm2", "2,grey,grey,,4")
    assert count(cells, "--with", sections, "--out", tmp_path / "old.csv") == 0
    grey = rows(tmp_path / "old.csv")["grey"]
    assert (grey["points"], grey["area_mm2"], grey["points_per_mm2"]) == ("1", "10", "0.1")
    assert not {"parent_id", "points_with_parts"} & set(grey)


def test_names_of_sections_match_as_they_were_marked_and_missing_regions_do_not_count(tmp_path, monkeypatch):
    section(tmp_path / "all" / "=s1", {1: (1, 1)})
    table = ["section,region_id,Area,area", "'=s1,1.0,2,3", "=s1,1,2,3", "'=s1,NA,2,3", "'=s1,0,2,3"]
    source = write(tmp_path / "cells.csv", *table)
    monkeypatch.setattr("atlalign.io.tables.read_parts.__kwdefaults__", {"n_rows": 1})
    assert count(source, "--with", tmp_path / "all", "--out", tmp_path / "counts.csv") == 0
    assert rows(tmp_path / "counts.csv")["root"]["points"] == "2"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("region_id\n77\n", "line 2, region_id: .*found 77"),
        ("region_id\nx\n", "line 2, region_id: expected a number, found 'x'"),
        ("region_id,hemisphere\n3,left\n3,both\n", "line 3, hemisphere: .*found 'both'"),
        ("section,region_id\ns1,3\ns9,0\n", "line 3, section: .*found 's9'"),
    ],
)
def test_a_table_of_something_else_is_refused(sections, tmp_path, capsys, table, sentence):
    source = write(tmp_path / "other.csv", table.rstrip())
    assert count(source, "--with", sections, "--out", tmp_path / "counts.csv") == 1
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "counts.csv").exists()


def test_sides_count_in_upper_case(sections, tmp_path):
    source = write(tmp_path / "cells.csv", "region_id,hemisphere", "3,Left", "3,RIGHT", "3,NA")
    assert count(source, "--with", sections, "--out", tmp_path / "counts.csv") == 0
    leaf = rows(tmp_path / "counts.csv")["leaf"]
    assert [leaf[f"{side}points"] for side in ("", "left_", "right_")] == ["3", "1", "1"]


def test_a_table_that_is_named_twice_does_not_count_twice(cells, sections, tmp_path, capsys):
    (tmp_path / "link.csv").symlink_to(cells)
    assert count(cells, tmp_path / "link.csv", "--with", sections, "--out", tmp_path / "counts.csv") == 1
    assert f"{cells}: expected each table once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ("2,grey,grey,,-1,0,-1,", "line 3, area_mm2: .*'-1'"),
        ("2,grey,grey,,nan,0,0,", "line 3, area_mm2: .*'nan'"),
        ("3,leaf,leaf,,1,1,0,", "line 3, id: .*3 again"),
        ("2.5,grey,grey,,1,1,0,", "line 3, id: .*'2.5'"),
        ("2,grey,grey,red,1,1,0,", "line 3, color: .*'red'"),
        ("2,grey,grey,,1,1,0,x", "line 3, parent_id: .*'x'"),
        ("2,GREY,grey,,1,1,0,", "id 2: .*one atlas"),
    ],
)
def test_a_damaged_table_of_regions_is_refused(cells, sections, tmp_path, capsys, row, found):
    header = "id,acronym,name,color,area_mm2,left_mm2,right_mm2,parent_id"
    write(sections / "s2" / "regions.csv", header, "3.0,leaf,leaf,,1,1,0,", row)
    assert count(cells, "--with", sections, "--out", tmp_path / "counts.csv") == 1
    assert re.search(found, capsys.readouterr().err)
    assert not (tmp_path / "counts.csv").exists()


def test_existing_files_and_foreign_folders_are_refused(cells, sections, tmp_path, capsys):
    out = write(tmp_path / "counts.csv", "mine")
    assert count(cells, "--with", sections, "--out", out) == 1
    assert out.read_text() == "mine\n"
    assert count(cells, "--with", sections, "--out", out, "--overwrite") == 0
    assert count(cells, "--with", tmp_path / "nowhere", "--out", tmp_path / "b.csv") == 1
    assert "expected a section's folder" in capsys.readouterr().err
