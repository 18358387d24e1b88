"""Sections that do not fit their neighbours, and the plot of a series."""

import csv
from pathlib import Path

import numpy as np
import pytest

from atlalign.atlas.ontology import Ontology, Region
from atlalign.atlas.planes import Plane
from atlalign.registration.regions import RegionAreas, write_regions
from atlalign.registration.series import SectionAreas, jumps, large_regions, write_series

POSITIONS_UM = np.arange(4000.0, 8000, 400)
REGIONS = [1, 2, 3]


def smooth(position_um: float) -> dict[int, float]:
    """Areas as they change along the axis: one bell, one slope, one that begins midway."""
    z = (position_um - 6000) / 2000
    return {1: 20 * np.exp(-(z**2)), 2: 10 + 3 * z, 3: max(0.0, 4 * z)}


def drawn(wrong: dict[int, float]) -> list[SectionAreas]:
    """Return a series in which some sections have the areas of a place further back."""
    return [
        SectionAreas(f"s{i}", position, smooth(position + wrong.get(i, 0.0)))
        for i, position in enumerate(POSITIONS_UM)
    ]


def test_a_smooth_series_has_no_jumps():
    found = jumps(drawn({}), REGIONS)
    assert found[0] is found[-1] is None
    assert not any(jump.is_jump for jump in found[1:-1])
    assert max(jump.share for jump in found[1:-1]) < 0.05


@pytest.mark.parametrize("place", [1, 4, 8])
def test_a_section_on_a_wrong_plane_jumps_and_its_neighbours_do_not(place):
    found = jumps(drawn({place: 900.0}), REGIONS)
    assert [i for i, jump in enumerate(found) if jump and jump.is_jump] == [place]


def test_a_jump_names_the_region_that_differs_most():
    series = drawn({})
    series[5] = series[5]._replace(areas=series[5].areas | {2: 4.0})
    jump = jumps(series, REGIONS)[5]
    assert (jump.region, jump.found_mm2, jump.is_jump) == (2, 4.0, True)
    assert jump.expected_mm2 == pytest.approx(10, abs=0.1)
    assert jump.share == pytest.approx(6 / sum(smooth(6000).values()), rel=0.15)


def test_two_sections_at_one_position_are_compared():
    series = drawn({})
    series[5] = series[5]._replace(position_um=series[4].position_um)
    assert all(np.isfinite(jump.share) for jump in jumps(series, REGIONS) if jump)


def test_large_regions_do_not_overlap():
    """The root is split into its parts, a part without known parts stays."""
    parents = {1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    areas = {1: 10.0, 2: 8.0, 3: 2.0, 4: 5.0, 5: 3.0}
    assert large_regions([SectionAreas("a", 0, areas)], parents) == [4, 5, 3]
    assert large_regions([SectionAreas("a", 0, areas)], {}) == [1, 2, 4, 5, 3]


def written(out: Path, number: int) -> dict[str, dict]:
    ontology = Ontology(
        [Region(i, f"R{i}", f"region {i}", (9, i), (i * 60, 10, 10)) for i in (1, 2)]
        + [Region(9, "root", "all", (9,), (255, 255, 255))]
    )
    records = {}
    for i in range(number):
        (out / f"s{i}").mkdir(parents=True)
        areas = RegionAreas((1000.0, 1000.0))
        width = 30 if i == 3 else 10 + i
        list(areas.counted([np.repeat([1, 2], [width, 10])[None]]))
        write_regions(out / f"s{i}" / "regions.csv", areas, ontology)
        records[f"s{i}"] = {"position_um": 5000.0 + 100 * i}
    return records


def test_a_batch_has_a_table_and_a_plot(tmp_path):
    records = written(tmp_path, 8)
    write_series(tmp_path, records | {"image": {"position_um": None}})
    with (tmp_path / "series.csv").open() as file:
        rows = {row["section"]: row for row in csv.DictReader(file)}
    assert list(rows) == [f"s{i}" for i in range(8)]
    assert [name for name, row in rows.items() if row["is_jump"]] == ["s3"]
    assert (rows["s3"]["region"], rows["s3"]["found_mm2"]) == ("R1", "30")
    assert float(rows["s3"]["expected_mm2"]) == pytest.approx(13, abs=0.6)
    svg = (tmp_path / "series.svg").read_text()
    assert svg.startswith("<svg")
    assert all(text in svg for text in ("R1", "R2", "position from front to back"))


def test_sagittal_sections_have_no_place_in_a_series(tmp_path):
    records = written(tmp_path, 8)
    for name, across in zip(records, (0, 0, 2, 0, 1, 0, 0, 0), strict=True):
        plane = Plane.at(records[name]["position_um"], (12.5, 12.5), across=across)
        records[name]["plane"] = plane.matrix.tolist()
    write_series(tmp_path, records)
    with (tmp_path / "series.csv").open() as file:
        assert [row["section"] for row in csv.DictReader(file)] == ["s0", "s1", "s3", "s5", "s6", "s7"]


def test_few_sections_are_not_a_series(tmp_path):
    write_series(tmp_path, written(tmp_path, 4))
    assert not (tmp_path / "series.csv").exists()
