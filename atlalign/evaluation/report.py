"""The files of an evaluation: measures and means as tables and JSON, and a self-contained page."""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from atlalign import pages, plots
from atlalign.evaluation.means_table import mean_cell, measured_metrics, methods_in, title_of
from atlalign.evaluation.summary import ALL, METRICS, Row, Summary
from atlalign.io.tables import write_table

_ABOUT_RESULTS = (
    "Samples that show the same section are averaged before the mean; intervals come from a bootstrap over sections. "
    "“–” means not measured or not defined. “affine (best)” is the affine map nearest to the true field, which no real "
    "method knows. Dice, IoU and HD95 are means over regions without the background."
)
_ABOUT_SECTIONS = (
    "Drag over an image, or use the arrow keys, to wipe from one picture to the other; the bar changes all sections at "
    "once. Outlines come from the atlas plane: they fit the reference, and should fit the registered image."
)

_HEADLINES = ("displacement/distance_um", "regions/dice")
_DEPTH = "/depth_"


def write(
    folder: Path,
    description: Mapping[str, Any],
    rows: Sequence[Row],
    summaries: Sequence[Summary],
    views: Sequence[pages.View],
) -> None:
    """Write metrics.csv, summary.csv, summary.json and report.html.

    Args:
        folder: An existing folder.
        description: Plain data that describe the evaluation, including `model`, `data` and `versions`.
        rows: The measures of each sample and method.
        summaries: Their means.
        views: The sections to show.
    """
    _write_rows(folder / "metrics.csv", rows)
    write_table(folder / "summary.csv", Summary._fields, summaries)
    content = {**description, "confidence": 0.95, "summary": _nested(summaries)}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    (folder / "report.html").write_text(render(description, rows, summaries, views), encoding="utf-8")


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.measures))
    cells = ([*row[:-1], *(row.measures.get(metric) for metric in metrics)] for row in rows)
    write_table(path, [*Row._fields[:-1], *metrics], cells)


def _nested(summaries: Iterable[Summary]) -> dict[str, Any]:
    """Return the summaries, nested by data set, method and measure; None replaces a missing bound."""
    tree: dict[str, Any] = {}
    for dataset, method, metric, *bounds, n_sections in summaries:
        numbers = [None if math.isnan(value) else value for value in bounds]
        leaf = dict(zip(("mean", "low", "high"), numbers, strict=True))
        tree.setdefault(dataset, {}).setdefault(method, {})[metric] = {**leaf, "n_sections": n_sections}
    return tree


# --- the page ---------------------------------------------------------------------------------------------------------


def render(
    description: Mapping[str, Any],
    rows: Sequence[Row],
    summaries: Sequence[Summary],
    views: Sequence[pages.View],
) -> str:
    """Return the page with tables, charts, and a viewer for each section."""
    details = [table for table in (_depth_table(summaries), *_dataset_tables(summaries)) if table.groups[0]]
    blocks: list[pages.Block] = [
        pages.Facts(_facts(description)),
        pages.Heading("Results"),
        _results_table(summaries),
        pages.Text(_ABOUT_RESULTS),
        *details,
        pages.Heading("Errors"),
        pages.Charts(dict(_charts(rows, summaries))),
        pages.Heading("Sections"),
        pages.Text(_ABOUT_SECTIONS),
        pages.Views(views, left="reference", right="registered", order="error, worst first"),
    ]
    versions = ", ".join(f"{name} {number}" for name, number in description["versions"].items())
    return pages.render_page("Registration, measured", blocks, note=versions)


def section_view(
    title: str, caption: str, images: Mapping[str, Tensor], labels: Tensor | None, values: Mapping[str, float]
) -> pages.View:
    """Return the data that the page's viewer needs to show one section.

    Args:
        title: Its name.
        caption: A sentence about it.
        images: Images (H, W) in [0, 1] by name, on one grid.
        labels: Region ids (H, W) of the reference, outlined over every image; None for no outlines.
        values: Numbers by name; readers can sort the sections by them.
    """
    height, width = next(iter(images.values())).shape
    return pages.View(
        title=title,
        caption=caption,
        images={name: pages.picture_uri(_in_8_bits(image)) for name, image in images.items()},
        shape=(height, width),
        outlines="" if labels is None else pages.outline_path(labels.numpy()),
        values=values,
    )


def _in_8_bits(image: Tensor) -> NDArray[np.uint8]:
    return (image.detach().cpu().float().clamp(0, 1) * 255).round().byte().numpy()


def _facts(description: Mapping[str, Any]) -> dict[str, str]:
    """Return a description of the evaluation in words."""
    size = "×".join(map(str, description["image_shape"]))
    x, y = description["pixel_um"]
    numbers = f"{description['n_samples']} samples of {description['n_sections']} sections"
    return {
        "network": description["model"],
        "data": f"{description['data']} ({description['split']}: {numbers})",
        "atlas": f"{description['atlas']}, {size} pixels of {x:.1f} × {y:.1f} µm",
    }


def _results_table(summaries: Sequence[Summary]) -> pages.Table:
    groups: dict[str, list[str]] = defaultdict(list)
    for metric in measured_metrics(METRICS, summaries):
        groups[metric.partition("/")[0]].append(metric)
    methods = methods_in(summaries)
    cells = _cells(summaries, ALL)
    rows = [
        [pages.TableRow(METRICS[metric], [cells(metric, method) for method in methods]) for metric in group]
        for group in groups.values()
    ]
    columns = [*map(title_of, methods)]
    return pages.Table("Means over sections, with 95 % confidence intervals", columns, rows)


def _depth_table(summaries: Sequence[Summary]) -> pages.Table:
    metrics = dict.fromkeys(s.metric for s in summaries if _DEPTH in s.metric)
    methods, cells = methods_in(summaries), _cells(summaries, ALL)
    rows = [
        pages.TableRow(
            f"{METRICS[name]}, depth {depth}", [cells(f"{name}{_DEPTH}{depth}", method) for method in methods]
        )
        for name in METRICS
        for depth in (
            metric.removeprefix(name + _DEPTH) for metric in metrics if metric.startswith(name + _DEPTH)
        )
    ]
    return pages.Table("Regions by depth in the ontology", [*map(title_of, methods)], [rows], is_folded=True)


def _dataset_tables(summaries: Sequence[Summary]) -> Iterator[pages.Table]:
    datasets = [name for name in dict.fromkeys(s.dataset for s in summaries) if name != ALL]
    methods = methods_in(summaries)
    for metric in measured_metrics(_HEADLINES, summaries) if len(datasets) > 1 else []:
        rows = [
            pages.TableRow(
                f"data set {name}", [_cells(summaries, name)(metric, method) for method in methods]
            )
            for name in datasets
        ]
        yield pages.Table(
            f"By data set: {METRICS[metric]}", [*map(title_of, methods)], [rows], is_folded=True
        )


def _cells(summaries: Sequence[Summary], dataset: str) -> Callable[[str, str], str]:
    """Return a function from measure and method to a table cell, which counts its sections if some are missing."""
    found = {(s.metric, s.method): s for s in summaries if s.dataset == dataset}
    most = max(s.n_sections for s in found.values())

    def cell(metric: str, method: str) -> str:
        summary = found.get((metric, method))
        few = f" (of {summary.n_sections})" if summary is not None and summary.n_sections < most else ""
        return mean_cell(summary) + few

    return cell


def _charts(rows: Sequence[Row], summaries: Sequence[Summary]) -> Iterator[tuple[str, str]]:
    methods, metric = methods_in(summaries), "displacement/distance_um"
    label = METRICS[metric]
    points = {
        title_of(name): [(r.position_um / 1000, r.measures[metric]) for r in rows if r.method == name]
        for name in methods
    }
    distances = {name: [distance for _, distance in of_method] for name, of_method in points.items()}
    yield "Each sample", plots.figure_svg(plots.distribution_figure(distances, label=label))
    yield "From front to back", plots.figure_svg(plots.position_figure(points, label=label))
    dice = {(s.method, s.metric): s.mean for s in summaries if s.dataset == ALL}
    of_depth = "regions/dice" + _DEPTH
    depths = [int(m.removeprefix(of_depth)) for n, m in dice if n == methods[0] and m.startswith(of_depth)]
    if depths:
        curves = {title_of(name): [dice[name, f"{of_depth}{depth}"] for depth in depths] for name in methods}
        figure = plots.level_figure(depths, curves, xlabel="depth in the ontology", label="Dice of regions")
        yield "By depth", plots.figure_svg(figure)
