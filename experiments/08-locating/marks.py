"""Measure `atlalign locate` on images whose place is known; see README.md."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from atlalign.atlas.atlas import file_atlas
from atlalign.atlas.planes import Matrix
from atlalign.atlas.section_lists import ListedSection, read_list
from atlalign.atlas.targets import Target
from atlalign.localization import Located, Locator, locate, write_located
from atlalign.registration.jobs import Job
from inputs import Known, halved, nissl, pixel_to_mm, real, synthetic, turned

Row = dict[str, Any]


class Part(NamedTuple):
    """What is measured.

    Attributes:
        draw: Writes images into a folder and returns their places.
        independent: Whether each is located alone.
        spacing_um: Between section numbers, if the series is told.
    """

    draw: Callable[[Path], Sequence[Known]]
    independent: bool = True
    spacing_um: float | None = None


def measured(part: Part, locator: Locator, folder: Path) -> list[Row]:
    """Return how far each image is located from its place; the anchorings found are written."""
    known = part.draw(folder)
    start = time.process_time()
    jobs = [Job(one.path) for one in known]
    found = locate(jobs, locator, independent=part.independent, section_spacing_um=part.spacing_um)
    seconds = (time.process_time() - start) / len(known)
    write_located(folder / "located.json", found, Target())
    return [_row(one, located, seconds) for one, located in zip(known, found, strict=True)]


def _row(known: Known, located: Located, seconds: float) -> Row:
    row: Row = {
        "number": known.number,
        "true_um": 1000 * float((known.matrix @ (*known.centre, 1.0))[0]),
        "flag": located.flag,
        "reason": located.reason,
        "side_correct": located.side == known.side,
        "error_expected_um": located.error_um,
        "seconds": seconds,
    }
    if located.anchoring is None:
        return {**row, "found_um": None, "error_um": None, "angle_deg": None}
    matrix = pixel_to_mm(located.anchoring)
    found_um = 1000 * float((matrix @ (*known.centre, 1.0))[0])
    cosine = abs(float(_normal(matrix) @ _normal(known.matrix)))
    return {
        **row,
        "found_um": found_um,
        "error_um": abs(found_um - row["true_um"]),
        "angle_deg": float(np.degrees(np.arccos(min(1.0, cosine)))),
    }


def _normal(matrix: Matrix) -> Matrix:
    normal = np.cross(matrix[:, 0], matrix[:, 1])
    return normal / np.linalg.norm(normal)


def summary(rows: Sequence[Row]) -> Row:
    """Return the numbers of the marks; sections that fit nowhere count as not located, not as 0."""
    errors = np.array([row["error_um"] for row in rows if row["error_um"] is not None])
    angles = np.array([row["angle_deg"] for row in rows if row["angle_deg"] is not None])
    flagged = np.array([row["flag"] != "pass" for row in rows if row["error_um"] is not None])
    large = errors > 300
    return {
        "sections": len(rows),
        "located": len(errors),
        "median_um": _percentile(errors, 50),
        "nine_in_ten_um": _percentile(errors, 90),
        "worst_um": _percentile(errors, 100),
        "median_deg": _percentile(angles, 50),
        "sides_correct": sum(row["side_correct"] for row in rows),
        "over_300_um": int(large.sum()),
        "of_these_flagged": int((large & flagged).sum()),
        "flagged": int(flagged.sum()),
        "seconds": round(rows[0]["seconds"], 2),
    }


def _percentile(values: np.ndarray, percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 1) if len(values) else None


def from_own_line(rows: Sequence[Row]) -> Row:
    """Return how far positions lie from their own best line over section numbers, and the spacing found."""
    from scipy.stats import theilslopes

    known = [(row["number"], row["found_um"]) for row in rows if row["found_um"] is not None]
    number, found = np.array(known, float).T
    slope, offset, *_ = theilslopes(found, number)
    away = np.abs(found - offset - slope * number)
    return {
        "from_own_line_um": round(float(np.median(away)), 1),
        "spacing_um_a_number": round(float(slope), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--atlas", type=Path, required=True, help="with template, annotation and nissl_100um")
    parser.add_argument("--sections", type=Path, required=True, help="list of stained sections")
    parser.add_argument(
        "--expression", type=Path, required=True, help="list of sections of gene expression alone"
    )
    parser.add_argument("--locator", type=Path, help="a network; that of the package by default")
    parser.add_argument(
        "--only", choices=("even", "odd"), help="every second section: choices are made on even ones"
    )
    parser.add_argument("--parts", nargs="+", help="some of the parts")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    atlas = file_atlas(options.atlas)
    locator = Locator(atlas, network=options.locator)
    stained, expression = (
        _half(read_list(path), options.only) for path in (options.sections, options.expression)
    )
    share = 0.5 if options.only else 1.0
    seed = {"even": 1, "odd": 2, None: 3}[options.only]

    def stained_series(folder: Path) -> list[Known]:
        return list(real(stained, folder))

    def expression_series(folder: Path) -> list[Known]:
        return list(real(expression, folder))

    parts = {
        "stained, each alone": Part(stained_series),
        "stained, as a series": Part(stained_series, independent=False),
        "stained, as a series, spacing given": Part(stained_series, False, 50.0),
        "oblique planes, synthetic contrast": Part(
            lambda folder: synthetic(atlas, round(40 * share), folder, 1000 + seed)
        ),
        "oblique planes, Nissl": Part(
            lambda folder: nissl(atlas, options.atlas, round(20 * share), folder, 2000 + seed)
        ),
        "stained and turned, each alone": Part(lambda folder: list(turned(stained, folder))),
        "halves, each alone": Part(lambda folder: list(halved(stained, folder))),
        "expression, as a series": Part(expression_series, independent=False),
        "expression, as a series, spacing given": Part(expression_series, False, 25.0),
        "expression, each alone": Part(expression_series),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, part in parts.items():
        if options.parts and not any(wanted in name for wanted in options.parts):
            continue
        folder = options.out / name.replace(", ", "-").replace(" ", "_")
        folder.mkdir(exist_ok=True)
        rows = measured(part, locator, folder)
        rows.sort(key=lambda row: (row["number"], row["true_um"]))
        found = summary(rows)
        if rows[0]["number"]:
            found |= from_own_line(rows)
        results[name] = found
        (folder / "rows.json").write_text(json.dumps(rows, indent=1))
        print(name, json.dumps(found), flush=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1))
    (options.out / "table.md").write_text(_table(results))


def _half(sections: Sequence[ListedSection], only: str | None) -> list[ListedSection]:
    """Return every second section, counted from 0, or all of them."""
    return list(sections[{"even": slice(0, None, 2), "odd": slice(1, None, 2), None: slice(None)}[only]])


def _table(results: dict[str, Row]) -> str:
    columns = list(dict.fromkeys(key for found in results.values() for key in found))
    lines = [f"| | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for name, found in results.items():
        lines.append(f"| {name} | {' | '.join(str(found.get(key, '')) for key in columns)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
