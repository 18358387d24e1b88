"""The tutorials work: every file that they show, every command that they name, in their order."""

import csv
import json
import time
import webbrowser
from dataclasses import fields, replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from atlalign.cli.review import registrar_of
from atlalign.registration.quality import DERIVED, Quality
from atlalign.review.folder import ReviewFolder, result_anchoring
from atlalign.review.plane_settings import PlaneSettings
from tests.test_site import described
from tests.tutorials import TUTORIALS, follow


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> Path:
    """The folder of a reader who has followed the first tutorial."""
    folder = tmp_path_factory.mktemp("counts")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        follow("counts")
    return folder


def test_images_become_counts(counted, monkeypatch):
    monkeypatch.chdir(counted)
    whole = next(row for row in rows("counts.csv") if row["acronym"] == "root")
    assert whole["points_with_parts"] == "400"
    assert 180 < float(whole["area_with_parts_mm2"]) < 280
    flags = {row["section"]: row["flag"] for row in rows("registered/registrations.csv")}
    assert flags.pop("brain_s280") == "look"
    assert list(flags.values()) == ["pass"] * 4


TOLERANCES = {
    "points": 1.5, "points_with_parts": 1.5, "area_with_parts_mm2": 1.0, "points_with_parts_per_mm2": 0.05,
}  # fmt: skip


def test_the_page_shows_the_counts_that_come(counted):
    """Within the few points at borders that may fall on either side."""
    shown = {line[0]: line[2:] for line in shown_rows("counts") if line[0] != "acronym"}
    found = {row["acronym"]: row for row in rows(str(counted / "counts.csv"))}
    columns = ("points", "points_with_parts", "area_with_parts_mm2", "points_with_parts_per_mm2")
    assert len(shown) >= 4
    for acronym, cells in shown.items():
        for cell, column in zip(cells, columns, strict=True):
            assert float(found[acronym][column]) == pytest.approx(
                float(cell), rel=0.03, abs=TOLERANCES[column]
            ), acronym


def shown_rows(name: str) -> list[list[str]]:
    """Return the cells of the tables on a page."""
    lines = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [line for line in cells if set(line[0]) != {"-"}]


def test_the_page_on_files_has_every_column_that_was_written(counted):
    results = counted / "registered"
    assert set(rows(str(results / "brain_s240" / "regions.csv"))[0]) == described("regions.csv")
    assert set(rows(str(counted / "counts.csv"))[0]) == described("counts.csv")
    added = set(rows(str(counted / "cells_in_atlas.csv"))[0]) - set(rows(str(counted / "cells.csv"))[0])
    assert added | {"section"} == described("Tables of points")  # the tutorial's cells name their section
    keys = set(json.loads((results / "brain_s240" / "transform.json").read_text()))
    assert keys == described("transform.json") | {entry.name for entry in fields(Quality)} | set(DERIVED)


def test_a_section_is_corrected(counted, monkeypatch):
    """The page writes the plane that a person sets, and registers the section again."""
    monkeypatch.chdir(counted)
    monkeypatch.setattr(webbrowser, "open", lambda address: True)

    def by_hand(server):
        folder, name = ReviewFolder(Path("registered")), "brain_s280"
        former = result_anchoring(folder.record(name))
        plane = replace(PlaneSettings.of(former), position_um=7000.0).anchoring(former)
        saved = folder.load(name)
        corrected = replace(saved.correction, anchoring=plane, moves_plane=True)
        folder.save(name, corrected, saved.revision)
        registrar = registrar_of(Path("registered"))
        registrar.ask(name)
        while registrar.states[name] in ("waiting", "at work"):
            time.sleep(0.05)
        assert registrar.states[name] == "done"

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", by_hand)
    follow("correct")
    row = next(row for row in rows("registered/registrations.csv") if row["section"] == "brain_s280")
    assert (row["flag"], float(row["position_um"])) == ("pass", pytest.approx(7000, abs=5))
    assert rows("corrected_counts.csv") != rows("counts.csv")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "sweep", "extend"])
def test_networks_are_trained(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    follow(name, extra=("trainer.limit_train_batches=2", "trainer.limit_val_batches=1"))
    assert list(tmp_path.glob("runs/**/best.ckpt"))
    for table in tmp_path.glob("evaluation*/metrics.csv"):
        columns = {name.partition("/depth_")[0] for name in rows(str(table))[0]}
        assert columns == described("metrics.csv and summary.csv") - {"regions/dice/depth_3"}
