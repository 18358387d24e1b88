"""The results of the comparison: rows, tables, targets and pictures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.ontology import Ontology
from atlalign.geometry import invert, warp
from atlalign.io.tables import write_table
from methods import METHODS, YARDSTICK, Kept, placing
from pairs import Pair, labels_of, other_pair, real_pair, spread
from parts import PARTS, Row, Setting

_SHOWN_DEPTHS = (1, 3, 5, 7)
_SHOWN_SECTIONS = 6
_TILE_PX = 300


def write_results(out: Path, setting: Setting, results: Mapping[str, Sequence[Row]], find: Kept) -> None:
    """Write rows and pictures of each part."""
    for part, rows in results.items():
        write_rows(out / f"{part}.csv", rows)
        if part in "aceg":
            draw_errors(rows, out / f"{part}.png")
    if "f" in results and setting.other is not None:
        draw_other(setting.other, setting.size[1], find, out / "f.jpg")
    if "b" in results:
        draw_sections(setting, list(find.methods), find, out / "b.jpg")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    write_table(path, rows[0], (row.values() for row in rows))


# --- tables -----------------------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Sequence[Row]]) -> str:
    """Return all tables, one below the other."""
    makers = {
        "a": (table_a, table_a_sections),
        "b": (table_b,),
        "c": (table_c,),
        "d": (table_d,),
        "e": (table_e, table_a_sections),
        "f": (table_f,),
        "g": (table_a, table_a_sections),
    }
    texts = [
        f"## ({part}) {PARTS[part][0]}\n\n" + "\n".join(make(rows) for make in makers[part])
        for part, rows in results.items()
    ]
    return "\n".join([*texts, "## Targets\n\n" + table_of_marks(marks(results))])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns, the first one to the left, the others to the right."""
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *others]) + " |"

    rule = (
        "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    )
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"


def column(rows: Sequence[Row], method: str, key: str) -> NDArray[np.float64]:
    """Return the values of one method by section; NaN if there is none."""
    return np.array([row.get(key, math.nan) for row in rows if row["method"] == method], np.float64)


def n_above(rows: Sequence[Row], method: str, key: str) -> int:
    """Return the number of sections in which a method exceeds SyN."""
    return int((column(rows, method, key) > column(rows, YARDSTICK, key)).sum())


def methods_in(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows))


def _seconds(rows: Sequence[Row], method: str) -> str:
    seconds = float(np.median(column(rows, method, "seconds")))
    return f"{seconds:.2f}" if seconds else ""


def _folds(rows: Sequence[Row], method: str) -> str:
    folds = column(rows, method, "folds")
    return f"{(folds > 0).sum()} ({folds.max():.2%})" if folds.any() else "0"


def table_a(rows: Sequence[Row]) -> str:
    def line(method: str) -> list[str]:
        error = column(rows, method, "error_um")
        numbers = (error.mean(), np.median(error), error.max())
        return [METHODS[method], *(f"{n:.0f}" for n in numbers), _folds(rows, method), _seconds(rows, method)]

    header = ["method", "mean µm", "median", "worst section", "sections that fold", "seconds"]
    return markdown(header, [line(method) for method in methods_in(rows)])


def table_a_sections(rows: Sequence[Row]) -> str:
    methods = methods_in(rows)
    sections = list(dict.fromkeys(row["section"] for row in rows))
    columns = [column(rows, method, "error_um") for method in methods]
    lines = [[name, *(f"{c[i]:.0f}" for c in columns)] for i, name in enumerate(sections)]
    return markdown(["section", *(METHODS[method] for method in methods)], lines)


def table_b(rows: Sequence[Row]) -> str:
    n = len({row["section"] for row in rows})
    compared = YARDSTICK in methods_in(rows)

    def line(method: str) -> list[str]:
        cells = [METHODS[method]]
        for key in ("mutual_information", "tissue_dice"):
            above = "" if not compared or method == YARDSTICK else f"{n_above(rows, method, key)} of {n}"
            cells += [f"{column(rows, method, key).mean():.3f}", above]
        return [*cells, _folds(rows, method), _seconds(rows, method)]

    header = [
        "method",
        "mutual information",
        "above SyN",
        "tissue Dice",
        "above SyN",
        "sections that fold",
        "seconds",
    ]
    return markdown(header, [line(method) for method in methods_in(rows)])


def table_c(rows: Sequence[Row]) -> str:
    depths = [f"_depth_{depth}" for depth in _SHOWN_DEPTHS if f"dice_depth_{depth}" in rows[0]]

    def line(method: str) -> list[str]:
        error = f"{column(rows, method, 'error_um').mean():.0f}"
        dice = [f"{np.nanmean(column(rows, method, f'dice{level}')):.3f}" for level in (*depths, "")]
        return [METHODS[method], error, *dice, _folds(rows, method), _seconds(rows, method)]

    shown = [f"Dice, depth {level.rpartition('_')[2]}" for level in depths]
    header = ["method", "mean µm", *shown, "Dice, all regions", "sections that fold", "seconds"]
    return markdown(header, [line(method) for method in methods_in(rows)])


def table_d(rows: Sequence[Row]) -> str:
    """Return the mean error of each method, a column a state, and its worst section."""
    states = list(dict.fromkeys(row["state"] for row in rows))

    def cell(method: str, state: str) -> str:
        error = column([row for row in rows if row["state"] == state], method, "error_um")
        return f"{error.mean():.0f} ({error.max():.0f})"

    def line(method: str) -> list[str]:
        cells = [cell(method, state) for state in states]
        return [METHODS[method], *cells, _folds(rows, method), _seconds(rows, method)]

    header = ["method: mean (worst) µm", *states, "sections that fold", "seconds"]
    return markdown(header, [line(method) for method in methods_in(rows)])


def table_e(rows: Sequence[Row]) -> str:
    """Return the table of part (a), with the number of sections that are better than their anchoring."""
    anchoring = column(rows, "anchoring", "error_um")

    def line(method: str) -> list[str]:
        error = column(rows, method, "error_um")
        numbers = (error.mean(), np.median(error), error.max())
        better = f"{(error < anchoring).sum()} of {len(error)}" if len(anchoring) else ""
        return [METHODS[method], *(f"{n:.0f}" for n in numbers), better, _folds(rows, method)]

    header = ["method", "mean µm", "median", "worst section", "better than anchoring", "sections that fold"]
    return markdown(header, [line(method) for method in methods_in(rows)])


def table_f(rows: Sequence[Row]) -> str:
    def line(method: str) -> list[str]:
        keys = ("mutual_information", "tissue_dice")
        return [METHODS[method], *(f"{column(rows, method, key).mean():.3f}" for key in keys)]

    return markdown(["method", "mutual information", "tissue Dice"], [line(m) for m in methods_in(rows)])


class Mark(NamedTuple):
    """A target, its measured value, and whether it is met; None if it was not measured."""

    what: str
    wanted: str
    measured: str
    is_met: bool | None


_LARGEST_UM = {"a": {"ours": (60.0, 200.0), "ours_refined": (55.0, 180.0)}}
_LARGEST_UM["g"] = _LARGEST_UM["a"]
_LARGEST_MEAN_UM = {"c": {"ours": 40.0, "ours_refined": 28.0}, "d": {"ours": 60.0, "ours_refined": 60.0}}
_LARGEST_S = {"ours": 0.4, "ours_refined": 3.0}
_MUCH_WORSE = 1.1
_MOST = 0.9


def marks(results: Mapping[str, Sequence[Row]]) -> list[Mark]:
    """Return each measure of our methods beside the wanted value."""
    found = [mark for name in ("ours", "ours_refined") for mark in _marks_of(name, results)]
    return found + list(_marks_of_refinement(results))


def _marks_of(method: str, results: Mapping[str, Sequence[Row]]) -> Iterator[Mark]:
    rows = {part: found for part, found in results.items() if method in methods_in(found)}
    for part, limits in _LARGEST_UM.items():
        if part in rows:
            error = column(rows[part], method, "error_um")
            mean, worst = limits[method]
            yield _at_most(f"({part}) {METHODS[method]}: mean", float(error.mean()), mean, " µm")
            yield _at_most(f"({part}) {METHODS[method]}: worst", float(error.max()), worst, " µm")
    for part, means in _LARGEST_MEAN_UM.items():
        if part in rows:
            error = column(rows[part], method, "error_um")
            yield _at_most(f"({part}) {METHODS[method]}: mean", float(error.mean()), means[method], " µm")
    if "d" in rows and YARDSTICK in methods_in(rows["d"]):
        ours, syn = (float(column(rows["d"], name, "error_um").mean()) for name in (method, YARDSTICK))
        yield _at_most(f"(d) {METHODS[method]}: share of SyN's error", ours / syn, 0.5, "")
    if "e" in rows and "anchoring" in methods_in(rows["e"]):
        error, anchored = (column(rows["e"], name, "error_um") for name in (method, "anchoring"))
        better = int((error < anchored).sum())
        wanted = math.ceil(_MOST * len(error))
        yield Mark(
            f"(e) {METHODS[method]}: better than anchoring",
            f"≥ {wanted}",
            f"{better} of {len(error)}",
            better >= wanted,
        )
    if "b" in rows:
        seconds = float(np.median(column(rows["b"], method, "seconds")))
        yield _at_most(f"{METHODS[method]}: time, median", seconds, _LARGEST_S[method], " s")
    folds = [row["folds"] for found in rows.values() for row in found if row["method"] == method]
    if folds:
        count = f"{sum(f > 0 for f in folds)} of {len(folds)}"
        yield Mark(f"{METHODS[method]}: registrations that fold", "0", count, not any(folds))


def _marks_of_refinement(results: Mapping[str, Sequence[Row]]) -> Iterator[Mark]:
    for part, rows in results.items():
        if part in "acdeg" and {"ours", "ours_refined"} <= set(methods_in(rows)):
            before, after = (column(rows, name, "error_um") for name in ("ours", "ours_refined"))
            worse = int((after > _MUCH_WORSE * before).sum())
            yield Mark(
                f"({part}) sections that refinement makes > 10 % worse",
                "0",
                f"{worse} of {len(after)}",
                worse == 0,
            )


def _at_most(what: str, value: float, largest: float, unit: str) -> Mark:
    digits = 0 if unit == " µm" else 2
    return Mark(what, f"≤ {largest:g}{unit}", f"{value:.{digits}f}{unit}", value <= largest)


def table_of_marks(found: Sequence[Mark]) -> str:
    lines = [[m.what, m.wanted, m.measured, "yes" if m.is_met else "no"] for m in found]
    return markdown(["target", "wanted", "measured", "met"], lines)


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw_errors(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean error of each section, one column per method."""
    from matplotlib.figure import Figure

    methods = methods_in(rows)
    errors = [column(rows, method, "error_um") for method in methods]
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.boxplot(errors, showfliers=False, widths=0.5, medianprops={"color": "black"})
    for position, values in enumerate(errors, 1):
        axes.plot(position + np.linspace(-0.15, 0.15, len(values)), values, "o", ms=3, alpha=0.6)
    axes.set_xticks(
        range(1, len(methods) + 1), [METHODS[m].replace(", ", ",\n") for m in methods], fontsize=8
    )
    axes.set_ylabel("µm over tissue, each point a section")
    axes.set_ylim(bottom=0)
    figure.savefig(path)


def draw_sections(setting: Setting, names: Sequence[str], find: Kept, path: Path) -> None:
    """Draw some of the sections, one row each, with the atlas's outlines from each method."""
    from PIL import Image, ImageDraw

    sections = spread(setting.sections, _SHOWN_SECTIONS)
    height = round(_TILE_PX * setting.size[0] / setting.size[1])
    lefts = range(0, _TILE_PX * len(names), _TILE_PX)
    picture = Image.new("RGB", (_TILE_PX * len(names), height * len(sections)))
    for row, listed in enumerate(sections):
        for left, name in zip(lefts, names, strict=True):
            pair = real_pair(setting.atlas, listed, setting.size, placing(name))
            tile = Image.fromarray(with_outlines(pair, find(name, pair).dvf, setting.atlas.ontology))
            picture.paste(tile.resize((_TILE_PX, height), Image.Resampling.LANCZOS), (left, row * height))
    draw = ImageDraw.Draw(picture)
    for left, name in zip(lefts, names, strict=True):
        draw.text((left + 6, 4), METHODS[name], fill="white")
    picture.save(path, quality=80)


def draw_other(folder: Path, width: int, find: Kept, path: Path) -> None:
    """Draw a section of another species with the outlines of its atlas's regions, a column a method."""
    from PIL import Image, ImageDraw

    pair = other_pair(folder, width)
    names = [name for name in find.methods if name != "identity"]
    tiles = [with_outlines(pair, find(name, pair).dvf, None) for name in names]
    picture = Image.fromarray(np.hstack(tiles))
    for place, name in enumerate(names):
        ImageDraw.Draw(picture).text((place * width + 6, 4), METHODS[name], fill="white")
    picture.save(path, quality=80)


def with_outlines(pair: Pair, dvf: Tensor, ontology: Ontology | None, depth: int = 5) -> NDArray[np.uint8]:
    """Return the section (H, W, 3) with the outlines of the atlas's regions, mapped by the inverse of a field."""
    ids = labels_of(pair.reference)
    if ontology is not None:
        ids = ontology.at_depth(ids, depth)
    labels = warp(torch.from_numpy(ids)[None, None], invert(dvf), mode="nearest")[0, 0].numpy()
    image = (pair.moving[0, 0].numpy()[..., None].repeat(3, -1) * 255).round().astype(np.uint8)
    lines = np.zeros(labels.shape, bool)
    lines[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines[:-1] |= labels[:-1] != labels[1:]
    image[lines] = (255, 190, 0)
    return image
