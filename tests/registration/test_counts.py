"""Points by region: numbers and densities that can be worked out by hand."""

import csv
import json
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


# --- sections that a person rejected, or that are flagged -------------------------------------------------------------


def review(folder: Path, verdict: str) -> None:
    path = folder.parent / "corrections" / folder.name / "review.json"
    write(path, json.dumps({"verdict": verdict, "note": ""}))


@pytest.fixture
def located_cells(tmp_path) -> Path:
    """Two points in s1, one in s2, and one point of s2 that lies in no region."""
    return write(tmp_path / "located.csv", "section,region_id", "s1,3", "s1,2", "s2,3", "s2,0")


def test_a_rejected_section_is_left_out_with_its_area_and_points(located_cells, sections, tmp_path, capsys):
    review(sections / "s2", "rejected")
    assert count(located_cells, "--with", sections, "--out", tmp_path / "counts.csv") == 0
    said = capsys.readouterr().out
    assert "2 points in 2 regions of 1 section" in said
    assert re.search(r"rejected.*: 1 section, s2 \(1 point, 6 mm²\); --include-rejected", said)
    leaf = rows(tmp_path / "counts.csv")["leaf"]
    assert (leaf["points"], leaf["area_mm2"], leaf["points_per_mm2"]) == ("1", "2", "0.5")


def test_a_rejected_section_counts_on_request(located_cells, sections, tmp_path, capsys):
    review(sections / "s2", "rejected")
    command = (located_cells, "--with", sections, "--out", tmp_path / "counts.csv", "--include-rejected")
    assert count(*command) == 0
    said = capsys.readouterr().out
    assert "left out" not in said
    assert "counted although rejected in review: 1 section, s2" in said
    assert rows(tmp_path / "counts.csv")["leaf"]["points"] == "2"


@pytest.mark.parametrize("verdict", ["accepted", "unsure"])
def test_another_verdict_leaves_nothing_out(located_cells, sections, tmp_path, verdict):
    review(sections / "s2", verdict)
    assert count(located_cells, "--with", sections, "--out", tmp_path / "counts.csv") == 0
    assert rows(tmp_path / "counts.csv")["leaf"]["area_mm2"] == "6"


def test_points_that_name_no_section_cannot_be_left_out(cells, sections, tmp_path, capsys):
    review(sections / "s2", "rejected")
    assert count(cells, "--with", sections, "--out", tmp_path / "counts.csv") == 1
    assert "s2 must be left out" in capsys.readouterr().err
    assert not (tmp_path / "counts.csv").exists()


def test_nothing_is_counted_if_all_sections_are_rejected(located_cells, sections, tmp_path, capsys):
    for name in ("s1", "s2"):
        review(sections / name, "rejected")
    assert count(located_cells, "--with", sections, "--out", tmp_path / "counts.csv") == 1
    assert "all sections were rejected" in capsys.readouterr().err


def test_a_damaged_review_is_no_verdict(located_cells, sections, tmp_path, capsys):
    review(sections / "s2", "perhaps")
    assert count(located_cells, "--with", sections, "--out", tmp_path / "counts.csv") == 1
    assert "review.json, verdict" in capsys.readouterr().err


def test_flagged_sections_are_named(located_cells, sections, tmp_path, capsys):
    section(sections / "s2", {2: (0, 2), 3: (0, 4)}, flag="look")
    section(sections / "s3", {2: (0, 2), 3: (0, 4)}, flag="fail")
    section(sections / "s4", {2: (0, 2), 3: (0, 4)}, flag="pass")
    assert count(located_cells, "--with", sections, "--out", tmp_path / "counts.csv") == 0
    said = capsys.readouterr().out
    assert "flagged look: 1 section, s2\n" in said
    assert "flagged fail: 1 section, s3\n" in said


def test_sections_are_known_by_their_images(sections, tmp_path):
    section(sections / "s1", {2: (1, 1), 3: (2, 0)}, settings={"file": "Mouse 1.png"})
    source = write(tmp_path / "cells.csv", "Image,region_id", "Mouse 1.png,3", "mouse 1,3", "s2,3")
    assert count(source, "--with", sections, "--by", "section", "--out", tmp_path / "counts.csv") == 0
    found = by_section(tmp_path / "counts.csv")
    assert (found["s1", "leaf"]["points"], found["s2", "leaf"]["points"]) == ("2", "1")


# --- chosen regions, and sections one by one --------------------------------------------------------------------------


def by_section(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open() as file:
        return {(row["section"], row["acronym"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("wanted", ["grey", "2", "the grey", "GREY", "The Grey"])
def test_a_region_is_chosen_by_acronym_name_or_id_with_its_parts(cells, sections, tmp_path, capsys, wanted):
    assert count(cells, "--with", sections, "--regions", wanted, "--out", tmp_path / "counts.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("counts.csv: 1 region of 2 sections")
    assert [line.split() for line in lines[1:]] == [
        ["region", "points", "mm²", "points", "per", "mm²"],
        ["grey", "6", "10", "0.6"],
    ]
    found = rows(tmp_path / "counts.csv")
    assert list(found) == ["grey"]
    assert found["grey"]["points_with_parts_per_mm2"] == "0.6"


def test_regions_stand_in_the_order_asked_for_and_once(cells, sections, tmp_path, capsys):
    wanted = ("leaf", "root", "3")
    assert count(cells, "--with", sections, "--regions", *wanted, "--out", tmp_path / "counts.csv") == 0
    assert list(rows(tmp_path / "counts.csv")) == ["leaf", "root"]
    header, *lines = capsys.readouterr().out.splitlines()[1:]
    assert {len(line) for line in (header, *lines)} == {len(header)}


def test_an_unknown_region_gets_a_near_one(cells, sections, tmp_path, capsys):
    assert (
        count(cells, "--with", sections, "--regions", "grey", "leave", "--out", tmp_path / "counts.csv") == 1
    )
    assert "'leave': did you mean leaf" in capsys.readouterr().err
    assert not (tmp_path / "counts.csv").exists()


def test_each_section_has_its_rows(located_cells, sections, tmp_path):
    assert count(located_cells, "--with", sections, "--by", "section", "--out", tmp_path / "counts.csv") == 0
    found = by_section(tmp_path / "counts.csv")
    assert {name for name, _ in found} == {"s1", "s2"}
    assert ("s1", "fibres") not in found  # a region that the section does not show
    own = ("points", "area_mm2", "points_per_mm2", "points_with_parts", "points_with_parts_per_mm2")
    assert [found["s1", "grey"][name] for name in own] == ["1", "2", "0.5", "2", "0.5"]
    assert [found["s2", "grey"][name] for name in own] == ["0", "2", "0", "1", "0.166667"]
    assert found["s1", "leaf"]["points_per_mm2"] == "0.5"


def test_means_over_sections_are_shown(located_cells, sections, tmp_path, capsys):
    section(sections / "s3", {4: (1, 1)})
    command = (located_cells, "--with", sections, "--by", "section", "--regions", "grey", "fibres")
    assert count(*command, "--out", tmp_path / "counts.csv") == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    # The densities of grey are 2/4 and 1/6; the third section does not show it.
    assert shown == [
        ["grey", "3", "10", "0.3", "2", "0.3333", "0.2357"],
        ["fibres", "0", "2", "0", "1", "0", "–"],
    ]


def test_points_that_name_no_section_are_not_counted_by_section(cells, sections, tmp_path, capsys):
    assert count(cells, "--with", sections, "--by", "section", "--out", tmp_path / "counts.csv") == 1
    assert "expected a column section" in capsys.readouterr().err


def test_sections_of_one_name_are_not_told_apart(located_cells, sections, tmp_path, capsys):
    section(tmp_path / "other" / "s1", {2: (1, 1), 3: (1, 1)})
    folders = ("--with", sections, tmp_path / "other")
    assert count(located_cells, *folders, "--by", "section", "--out", tmp_path / "counts.csv") == 1
    assert "2 called s1" in capsys.readouterr().err
