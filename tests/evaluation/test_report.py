"""The report of an evaluation is correct, complete, and works in a browser without a network."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from atlalign import pages, plots
from atlalign.evaluation.means_table import print_table
from atlalign.evaluation.report import section_view, write
from atlalign.evaluation.summary import METRICS, Row, summarize

DISTANCE = "displacement/distance_um"
DESCRIPTION = {
    "model": "runs/<x>/best.ckpt",
    "data": "my.h5",
    "split": "val",
    "n_samples": 4,
    "n_sections": 3,
    "atlas": "phantom",
    "image_shape": [40, 60],
    "pixel_um": [25.0, 25.0],
    "versions": {"atlalign": "0.1"},
}


def row(
    sample: int, image_id: int, value: float, dataset_id: int = 1, method: str = "network", **others
) -> Row:
    measures = {DISTANCE: value, "regions/dice": 0.5, "regions/dice/depth_1": 0.75, **others}
    return Row(sample, image_id, dataset_id, 1000 * sample, method, measures)


ROWS = [
    row(0, 10, 1.0),
    row(1, 10, 3.0),  # a copy of the same section
    row(2, 11, 6.0, dataset_id=2),
    row(3, 12, 10.0, dataset_id=2, **{"landmarks/tre_um": 80.0}),
]


def summary_of(rows, metric: str = DISTANCE, dataset: str = "all", **options):
    (found,) = [s for s in summarize(rows, **options) if (s.metric, s.dataset) == (metric, dataset)]
    return found


def test_copies_of_a_section_count_once():
    assert summary_of(ROWS).mean == pytest.approx((2 + 6 + 10) / 3)
    assert summary_of(ROWS).n_sections == 3
    assert summary_of(ROWS, dataset="1").mean == 2
    assert summary_of(ROWS, dataset="2").mean == 8


def test_r2_is_weighted_by_the_variance_of_the_true_field():
    """A field that hardly varies counts hardly, however bad its ratio: (9 · 0.9 − 1 · 8 + 2 · 0.5) / (9 + 1 + 2)."""
    rows = [
        row(n, section, 1.0, **{"displacement/r2": r2, "displacement/variance_px2": variance})
        for n, (section, r2, variance) in enumerate(
            [(1, 0.9, 9.0), (2, -8.0, 1.0), (3, 0.5, 2.0), (3, math.nan, 0.0)]
        )
    ]
    found = summary_of(rows, "displacement/r2")
    assert found.mean == pytest.approx((8.1 - 8 + 1) / 12)
    assert (found.low, found.high) == pytest.approx((-8, 0.9))


def test_copies_do_not_narrow_the_interval():
    sections = [row(i, i, float(value)) for i, value in enumerate([1, 5, 9, 4, 7, 2])]
    copies = [r._replace(sample=100 + 10 * r.sample + i) for r in sections for i in range(8)]
    alone, copied = summary_of(sections), summary_of(copies)
    assert (alone.low, alone.high) == (copied.low, copied.high)
    assert 1 < alone.low < alone.mean < alone.high < 9


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        found = summary_of([row(i, i, v) for i, v in enumerate(rng.normal(3, 1, 40))], n_resamples=500)
        covered += found.low <= 3 <= found.high
    assert 88 <= covered <= 99  # 95 expected; the bootstrap of 40 is a little short


def test_one_section_has_no_interval():
    found = summary_of(ROWS[:2])
    assert found.mean == 2
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_undefined_values_are_left_out_and_counted():
    rows = [row(0, 1, 4.0), row(1, 2, math.nan), row(2, 3, 8.0)]
    assert summary_of(rows) == summary_of([rows[0], rows[2]])
    assert summary_of(rows).n_sections == 2
    assert not [s for s in summarize([row(0, 1, math.nan)]) if s.metric == DISTANCE]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = [*ROWS, row(4, 13, 7.0, method="<i>identity", **{"regions/hd95_um": math.nan})]
    write(folder, DESCRIPTION, rows, summarize(rows), [flat_view()])
    return folder


def flat_view() -> pages.View:
    """A black reference, a white registered image, and an outline down the middle of both."""
    labels = torch.ones(40, 60, dtype=torch.int64)
    labels[:, 30:] = 2
    images = {
        "reference": torch.zeros(40, 60),
        "moving": torch.ones(40, 60) / 2,
        "registered": torch.ones(40, 60),
    }
    return section_view("sample 0", "0 → 0 px", images, labels, {"error (px)": 0.5})


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_every_number(written):
    rows = table(written / "metrics.csv")
    assert [float(r[DISTANCE]) for r in rows] == [1, 3, 6, 10, 7]
    assert rows[4]["regions/hd95_um"] == ""
    assert [r["landmarks/tre_um"] for r in rows] == ["", "", "", "80", ""]
    assert rows[2]["dataset_id"] == "2"
    key = {"dataset": "all", "method": "network", "metric": DISTANCE}
    (summary,) = [r for r in table(written / "summary.csv") if r.items() >= key.items()]
    content = json.loads((written / "summary.json").read_text())
    assert content["versions"] == {"atlalign": "0.1"}
    leaf = content["summary"]["all"]["network"][DISTANCE]
    assert (leaf["mean"], leaf["n_sections"]) == (6, 3)
    assert float(summary["mean"]) == leaf["mean"]
    assert float(summary["low"]) == pytest.approx(leaf["low"], rel=1e-5)
    assert content["summary"]["1"]["network"][DISTANCE] == {
        "mean": 2,
        "low": None,
        "high": None,
        "n_sections": 1,
    }
    assert "NaN" not in (written / "summary.json").read_text()


def test_the_page_shows_the_tables_and_escapes_names(written):
    page = (written / "report.html").read_text()
    assert "6.00 [" in page
    assert "(of 1)" in page  # landmarks of one section only
    assert (
        "nan"
        not in re.sub(r"<svg.*?</svg>|<script.*?</script>|base64,[^\"]*", "", page, flags=re.DOTALL).lower()
    )
    assert "runs/&lt;x&gt;/best.ckpt" in page
    assert "<i>identity" not in page
    assert "By data set" in page
    assert "Dice of regions, depth 1" in page


def test_the_page_names_nothing_to_load(written):
    page = (written / "report.html").read_text()
    assert "default-src 'none'" in page  # the browser would refuse it
    assert all(uri.startswith("data:") for uri in re.findall(r'(?:src|href)="(?!#)([^"]*)"', page))
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|<iframe|<object", page)


def test_the_printed_table_is_not_cut_by_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_table(summarize([*ROWS, *(r._replace(method=f"method {i}") for i in range(4) for r in ROWS)]))
    lines = capsys.readouterr().out.splitlines()
    assert METRICS[DISTANCE] in "".join(lines)
    assert len({len(line) for line in lines if "│" in line}) == 1
    assert not any("…" in line for line in lines)


def test_a_narrow_terminal_shows_intervals_below_their_means(capsys, monkeypatch):
    others = [r._replace(method=name) for name in ("identity", "affine") for r in ROWS]
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("TERM", "xterm")
    print_table(summarize([*ROWS, *others]))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 80
    start = next(n for n, line in enumerate(lines) if "vector distance (µm)" in line)
    assert "6.00" in lines[start]
    assert lines[start + 1].count("[2.00, 10.0]") == 3


def test_the_best_affine_fit_is_not_called_a_method(capsys, tmp_path):
    rows = [*ROWS, *(r._replace(method="affine") for r in ROWS)]
    print_table(summarize(rows))
    write(tmp_path, DESCRIPTION, rows, summarize(rows), [])
    assert "affine (best)" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    assert len(re.findall(r"<th[^>]*>affine \(best\)</th>", page)) >= 2
    assert not re.search(r">affine<", page)
    assert {r["method"] for r in table(tmp_path / "summary.csv")} == {"network", "affine"}


def test_single_data_set_has_no_separate_summary():
    assert {s.dataset for s in summarize(ROWS)} == {"all", "1", "2"}
    assert {s.dataset for s in summarize(ROWS[:2])} == {"all"}


def test_charts_show_the_numbers():
    points = {"network": [(1.0, 30.0), (2.5, 10.0)], "identity": [(1.0, 50.0), (2.5, 70.0)]}
    (axes,) = plots.position_figure(points, label="error").axes
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.lines} == {
        name: [list(point) for point in of_method] for name, of_method in points.items()
    }
    (axes,) = plots.distribution_figure({"one": [1.0, 2.0, 9.0], "two": [4.0]}, label="error").axes
    dots = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[1, 2, 9], [4]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    (axes,) = plots.level_figure([1, 2], {"one": [0.9, 0.5]}, xlabel="depth", label="Dice").axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.9], [2, 0.5]]


def test_a_chart_takes_the_colours_of_the_page_and_is_always_the_same():
    first, second = (
        plots.figure_svg(plots.level_figure([1, 2], {"one": [0.9, 0.5]}, xlabel="depth", label="a<b"))
        for _ in "ab"
    )
    assert first == second
    assert first.startswith("<svg")
    assert "currentColor" in first
    assert "a&lt;b" in first
    assert "#010203" not in first
