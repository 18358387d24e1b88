"""The results of an evaluation: means over sections, tables, and a self-contained page.

Samples that show one section (one `image_id`) are averaged before the mean over sections. Confidence intervals come
from a bootstrap over sections, since samples of one section are not independent. r² is pooled: its mean is weighted by
the variance of each true field; otherwise sections with tiny displacements would count as much as others.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from scipy.stats import bootstrap
from torch import Tensor

from atlalign import pages, plots
from atlalign.evaluation.measures import Measures
from atlalign.io.tables import write_table

NETWORK = "network"
"""The name of the evaluated network among the methods."""

METRICS = {
    "displacement/distance_px": "vector distance (px)",
    "displacement/distance_um": "vector distance (µm)",
    "displacement/angular_error_deg": "angular error (°)",
    "displacement/correlation": "correlation with the true field",
    "displacement/r2": "r² of the true field",
    "landmarks/tre_px": "landmark error TRE (px)",
    "landmarks/tre_um": "landmark error TRE (µm)",
    "landmarks/rtre": "relative landmark error rTRE",
    "regions/dice": "Dice of regions",
    "regions/iou": "IoU of regions",
    "regions/hd95_um": "HD95 of regions (µm)",
    "regions/lost": "share of regions lost or added",
    "reference/mse": "MSE to the reference",
    "reference/mae": "MAE to the reference",
    "reference/psnr": "PSNR to the reference (dB)",
    "reference/ssim": "SSIM with the reference",
    "reference/ncc": "NCC with the reference",
    "reference/mutual_information": "mutual information with the reference",
    "reference/perceptual": "perceptual distance to the reference",
    "truth/mse": "MSE to the true image",
    "truth/mae": "MAE to the true image",
    "truth/psnr": "PSNR to the true image (dB)",
    "truth/ssim": "SSIM with the true image",
    "truth/ncc": "NCC with the true image",
    "truth/mutual_information": "mutual information with the true image",
    "truth/perceptual": "perceptual distance to the true image",
    "regularity/folding": "share of pixels that fold",
    "regularity/log_jacobian_std": "spread of the log-Jacobian",
    "inverse/consistency_px": "inverse consistency (px)",
    "time/seconds": "time per section (s)",
}
"""The measures in the order of the tables. The true image is the moving image warped by the true field."""

_TITLES = {"affine": "affine (best)"}
"""Displayed names of methods; `affine` alone would hide that this one knows the truth."""

ALL = "all"
"""The name of all data sets together in a summary."""

_WEIGHTED_BY = {"displacement/r2": "displacement/variance_px2"}
"""Measures with weighted means, and the measure of the same sample that is their weight."""

# Characters of a measure's name on a narrow terminal.
_NARROW_LABEL = 22

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


class Row(NamedTuple):
    """The measures of one method on one sample."""

    sample: int
    image_id: int
    dataset_id: int
    position_um: int
    method: str
    measures: Measures


class Summary(NamedTuple):
    """The mean of a measure over sections; `low` and `high` bound it with 95 % confidence, NaN for a single section."""

    dataset: str
    method: str
    metric: str
    mean: float
    low: float
    high: float
    n_sections: int


# --- means ------------------------------------------------------------------------------------------------------------


def summarize(rows: Sequence[Row], *, n_resamples: int = 2000, seed: int = 0) -> list[Summary]:
    """Return the mean over sections for each measure and method, for all rows and for each of several data sets.

    A measure that no section defines has no summary.
    """
    by_dataset: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_dataset[str(row.dataset_id)].append(row)
    by_dataset = {ALL: list(rows), **(by_dataset if len(by_dataset) > 1 else {})}
    return [
        Summary(dataset, method, metric, *_interval(means, n_resamples, seed), len(means))
        for dataset, of_dataset in by_dataset.items()
        for (method, metric), means in _section_means(of_dataset).items()
    ]


def _section_means(rows: Iterable[Row]) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Return the section means by method and measure, without undefined values.

    Each is (sections, 2): the weighted value, and the weight.
    """
    pairs: dict[tuple[str, str], dict[int, list[tuple[float, float]]]]
    pairs = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for metric, value in row.measures.items():
            if not math.isnan(value):
                weight = row.measures[_WEIGHTED_BY[metric]] if metric in _WEIGHTED_BY else 1.0
                pairs[row.method, metric][row.image_id].append((weight * value, weight))
    return {key: np.array([np.mean(v, axis=0) for v in sections.values()]) for key, sections in pairs.items()}


def _interval(means: NDArray[np.float64], n_resamples: int, seed: int) -> tuple[float, float, float]:
    """Return the weighted mean, and its 95 % bounds by the percentile bootstrap."""
    values, weights = means.T
    mean = float(_weighted_mean(values, weights))
    if len(values) < 2:
        return mean, math.nan, math.nan
    found = bootstrap(
        (values, weights), _weighted_mean, n_resamples=n_resamples, method="percentile", paired=True, rng=seed
    )
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def _weighted_mean(values: NDArray[Any], weights: NDArray[Any], axis: int = -1) -> Any:
    return values.sum(axis) / weights.sum(axis)


# --- tables -----------------------------------------------------------------------------------------------------------


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
        description: Plain data on the evaluation, including `model`, `data` and `versions`.
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


def print_table(summaries: Sequence[Summary]) -> None:
    """Print the means of all data sets with their intervals, one column per method.

    On a narrow terminal intervals stand below their means. A table that is still too wide, or wider than a file's
    default width, is printed in full.
    """
    console = Console()
    table = _table_of_means(summaries)
    if console.is_terminal and _width(table) > console.width:
        table = _table_of_means(summaries, narrow=True)
    Console(width=max(console.width, _width(table))).print(table)


def _table_of_means(summaries: Sequence[Summary], *, narrow: bool = False) -> Table:
    methods = _methods(summaries)
    of_all = {(s.metric, s.method): s for s in summaries if s.dataset == ALL}
    look: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)} if narrow else {}
    table = Table(title="mean over sections [95 % confidence]", title_justify="left", **look)
    table.add_column("", max_width=_NARROW_LABEL if narrow else None, no_wrap=not narrow)
    for method in methods:
        table.add_column(_title(method), justify="right", no_wrap=True)
    for metric in _measured(METRICS, summaries):
        cells = (_cell(of_all.get((metric, method)), "\n" if narrow else " ") for method in methods)
        table.add_row(METRICS[metric], *cells)
    return table


def _width(table: Table) -> int:
    console = Console()
    return Measurement.get(console, console.options.update(width=1000), table).maximum


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.measures))
    cells = ([*row[:-1], *(row.measures.get(metric) for metric in metrics)] for row in rows)
    write_table(path, [*Row._fields[:-1], *metrics], cells)


def _nested(summaries: Iterable[Summary]) -> dict[str, Any]:
    """Return the summaries by data set, method and measure; None replaces a missing bound."""
    tree: dict[str, Any] = {}
    for dataset, method, metric, *bounds, n_sections in summaries:
        numbers = [None if math.isnan(value) else value for value in bounds]
        leaf = dict(zip(("mean", "low", "high"), numbers, strict=True))
        tree.setdefault(dataset, {}).setdefault(method, {})[metric] = {**leaf, "n_sections": n_sections}
    return tree


def _cell(summary: Summary | None, between: str = " ") -> str:
    if summary is None:
        return "–"
    if math.isnan(summary.low):
        return _short(summary.mean)
    return f"{_short(summary.mean)}{between}[{_short(summary.low)}, {_short(summary.high)}]"


def _short(value: float) -> str:
    """Return a number with three significant digits, or with all digits before the point."""
    if value == 0 or 100 <= abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.3g}" if 1e-4 <= abs(value) < 100 else f"{value:.1e}"


def _title(method: str) -> str:
    return _TITLES.get(method, method)


def _methods(summaries: Iterable[Summary]) -> list[str]:
    return list(dict.fromkeys(s.method for s in summaries))


def _measured(metrics: Iterable[str], summaries: Iterable[Summary]) -> list[str]:
    found = {s.metric for s in summaries}
    return [metric for metric in metrics if metric in found]


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
    """Return one section for the page.

    Args:
        title: Its name.
        caption: A sentence on it.
        images: Images (H, W) in [0, 1] by name, on one grid.
        labels: Region ids (H, W) of the reference, outlined over every image; None for no outlines.
        values: Numbers by name, by which sections can be sorted.
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
    for metric in _measured(METRICS, summaries):
        groups[metric.partition("/")[0]].append(metric)
    methods = _methods(summaries)
    cells = _cells(summaries, ALL)
    rows = [
        [pages.TableRow(METRICS[metric], [cells(metric, method) for method in methods]) for metric in group]
        for group in groups.values()
    ]
    columns = [*map(_title, methods)]
    return pages.Table("Means over sections, with 95 % confidence intervals", columns, rows)


def _depth_table(summaries: Sequence[Summary]) -> pages.Table:
    metrics = dict.fromkeys(s.metric for s in summaries if _DEPTH in s.metric)
    methods, cells = _methods(summaries), _cells(summaries, ALL)
    rows = [
        pages.TableRow(
            f"{METRICS[name]}, depth {depth}", [cells(f"{name}{_DEPTH}{depth}", method) for method in methods]
        )
        for name in METRICS
        for depth in (
            metric.removeprefix(name + _DEPTH) for metric in metrics if metric.startswith(name + _DEPTH)
        )
    ]
    return pages.Table("Regions by depth in the ontology", [*map(_title, methods)], [rows], is_folded=True)


def _dataset_tables(summaries: Sequence[Summary]) -> Iterator[pages.Table]:
    datasets = [name for name in dict.fromkeys(s.dataset for s in summaries) if name != ALL]
    methods = _methods(summaries)
    for metric in _measured(_HEADLINES, summaries) if len(datasets) > 1 else []:
        rows = [
            pages.TableRow(
                f"data set {name}", [_cells(summaries, name)(metric, method) for method in methods]
            )
            for name in datasets
        ]
        yield pages.Table(f"By data set: {METRICS[metric]}", [*map(_title, methods)], [rows], is_folded=True)


def _cells(summaries: Sequence[Summary], dataset: str) -> Callable[[str, str], str]:
    """Return a function from measure and method to a table cell, which counts the sections if some are missing."""
    found = {(s.metric, s.method): s for s in summaries if s.dataset == dataset}
    most = max(s.n_sections for s in found.values())

    def cell(metric: str, method: str) -> str:
        summary = found.get((metric, method))
        few = f" (of {summary.n_sections})" if summary is not None and summary.n_sections < most else ""
        return _cell(summary) + few

    return cell


def _charts(rows: Sequence[Row], summaries: Sequence[Summary]) -> Iterator[tuple[str, str]]:
    methods, metric = _methods(summaries), "displacement/distance_um"
    label = METRICS[metric]
    points = {
        _title(name): [(r.position_um / 1000, r.measures[metric]) for r in rows if r.method == name]
        for name in methods
    }
    distances = {name: [distance for _, distance in of_method] for name, of_method in points.items()}
    yield "Each sample", plots.figure_svg(plots.distribution_figure(distances, label=label))
    yield "From front to back", plots.figure_svg(plots.position_figure(points, label=label))
    dice = {(s.method, s.metric): s.mean for s in summaries if s.dataset == ALL}
    of_depth = "regions/dice" + _DEPTH
    depths = [int(m.removeprefix(of_depth)) for n, m in dice if n == methods[0] and m.startswith(of_depth)]
    if depths:
        curves = {_title(name): [dice[name, f"{of_depth}{depth}"] for depth in depths] for name in methods}
        figure = plots.level_figure(depths, curves, xlabel="depth in the ontology", label="Dice of regions")
        yield "By depth", plots.figure_svg(figure)
