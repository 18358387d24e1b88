"""Measure `atlalign locate` on images with known planes; see README.md."""

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
from atlalign.errors import InputError
from atlalign.io.files import fingerprint
from atlalign.localization import Located, Locator, locate, write_located
from atlalign.localization.fit import Lie
from atlalign.localization.located import judged
from atlalign.localization.locator import Looked
from atlalign.localization.search import peak
from atlalign.registration.jobs import Job
from inputs import (
    Known,
    cut_otherwise,
    halved,
    nissl,
    no_sections,
    out_of_order,
    parallel,
    pixel_to_mm,
    real,
    synthetic,
    turned,
)

Row = dict[str, Any]

_FAR_UM = 300.0
_MEASURES = ("error_um", "error_deg", "likeness", "strain", "proposed_error_um")
_MEASURES += ("tilt_deg", "other_um", "elsewhere_um", "alone_um", "placed_um", "side", "neighbours")


class Part(NamedTuple):
    """One part of the measurement.

    Attributes:
        draw: Writes images into a folder and returns their planes.
        independent: Whether each image is located alone.
        spacing_um: Distance between section numbers, if it is given.
    """

    draw: Callable[[Path], Sequence[Known]]
    independent: bool = True
    spacing_um: float | None = None


class RememberingLocator(Locator):
    """A locator that looks once at each image, however many parts show it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.looks: dict[str, Looked | InputError] = {}

    def look(self, job: Job) -> Looked:
        """Return what an image shows, perhaps as seen before."""
        key = fingerprint(job.path)
        if key not in self.looks:
            try:
                self.looks[key] = super().look(job)
            except InputError as error:
                self.looks[key] = error
        found = self.looks[key]
        if isinstance(found, InputError):
            raise found
        return found


def measured(part: Part, locator: RememberingLocator, folder: Path) -> list[Row]:
    """Return the error of each image's plane, and write the located anchorings."""
    known = part.draw(folder)
    start = time.process_time()
    jobs = [Job(one.path) for one in known]
    found = locate(jobs, locator, independent=part.independent, section_spacing_um=part.spacing_um)
    seconds = (time.process_time() - start) / len(known)
    write_located(folder / "located.json", found, Target())
    return [_row(one, located, locator, seconds) for one, located in zip(known, found, strict=True)]


def _row(known: Known, located: Located, locator: RememberingLocator, seconds: float) -> Row:
    measures = {name: getattr(located, name) for name in _MEASURES}
    row: Row = {"name": known.path.name, "number": known.number, "seconds": seconds, **measures}
    row |= {"flag": located.flag, "reason": located.reason, "side_correct": located.side == known.side}
    row |= {"true_um": None, "found_um": None, "error_um_true": None, "angle_deg": None}
    if known.matrix is not None:
        row["true_um"] = 1000 * float((known.matrix @ (*known.centre, 1.0))[0])
    if located.anchoring is None:
        return row
    matrix = pixel_to_mm(located.anchoring)
    row["found_um"] = 1000 * float((matrix @ (*known.centre, 1.0))[0])
    if known.matrix is None:
        return row
    cosine = abs(float(_normal(matrix) @ _normal(known.matrix)))
    off = np.degrees(np.arctan(_slopes(matrix)) - np.arctan(_slopes(known.matrix)))
    return {
        **row,
        "off_um": row["found_um"] - row["true_um"],
        "off_deg": off.tolist(),
        "angle_deg": float(np.degrees(np.arccos(min(1.0, cosine)))),
        "likeliest_off_um": _likeliest_um(known, locator),
    }


def judged_again(row: Row) -> Row:
    """Return a row with the flag that its measures have by the limits of the code that is there."""
    if row["found_um"] is None:
        return row
    located = Located(Job(Path(row["name"])), "", row["number"], **{name: row[name] for name in _MEASURES})
    located = judged(located)
    return {**row, "flag": located.flag, "reason": located.reason}


def _likeliest_um(known: Known, locator: RememberingLocator) -> float | None:
    """Return how far behind the known plane the parallel one is that the section, as it is anchored, is most like."""
    looked = locator.looks[fingerprint(known.path)]
    if not known.number or isinstance(looked, InputError) or known.matrix is None:
        return None
    search = looked.search
    lie = search.fitter.straightened(Lie.of(known.matrix, search.frame))
    lie = search.fitter.straightened(lie)
    away_mm = np.arange(-0.75, 0.76, 0.15)
    likeness = search.fitter.likeness(lie, lie.plane + np.outer(away_mm, (1.0, 0.0, 0.0)))
    return 1000 * peak(away_mm, likeness)


def _slopes(matrix: Matrix) -> Matrix:
    """Return the slopes along ML and DV of a plane of which an image's pixels lie at (AP, DV, ML)."""
    return np.asarray(np.linalg.solve(matrix[[2, 1]][:, :2].T, matrix[0, :2]))


def _normal(matrix: Matrix) -> Matrix:
    normal = np.cross(matrix[:, 0], matrix[:, 1])
    return normal / np.linalg.norm(normal)


def summary(rows: Sequence[Row]) -> Row:
    """Return the summary numbers; sections that fit nowhere count as not located, not as errors of 0."""
    known = [row for row in rows if row.get("off_um") is not None]
    errors = np.abs([row["off_um"] for row in known])
    angles = np.array([row["angle_deg"] for row in known])
    flags = [row["flag"] for row in rows]
    found: Row = {
        "sections": len(rows),
        "located": sum(row["found_um"] is not None for row in rows),
        "median_um": _percentile(errors, 50),
        "nine_in_ten_um": _percentile(errors, 90),
        "worst_um": _percentile(errors, 100),
        "median_deg": _percentile(angles, 50),
        "nine_in_ten_deg": _percentile(angles, 90),
        "sides_correct": sum(row["side_correct"] for row in known),
        **{flag: flags.count(flag) for flag in ("pass", "look", "fail")},
        **_flagged(known),
        **_within(known),
        "seconds": round(rows[0]["seconds"], 2),
    }
    likeliest = [row["off_um"] - row["likeliest_off_um"] for row in known if row.get("likeliest_off_um")]
    return found | {"median_from_likeliest_um": _percentile(np.abs(likeliest), 50)}


def _flagged(known: Sequence[Row]) -> Row:
    """Return of how many sections that are off the flag says so, and of how many that are not."""
    far = [row["flag"] for row in known if abs(row["off_um"]) > _FAR_UM]
    near = [row["flag"] for row in known if abs(row["off_um"]) <= _FAR_UM]
    name = f"over_{_FAR_UM:.0f}_um"
    return {
        name: len(far),
        f"{name}_pass": far.count("pass"),
        "others_flagged": len(near) - near.count("pass"),
    }


def _within(known: Sequence[Row]) -> Row:
    """Return the shares of positions and tilts within one and two of the stated standard deviations."""
    um = np.array([abs(row["off_um"]) / row["error_um"] for row in known])
    deg = np.array([np.abs(row["off_deg"]) / row["error_deg"] for row in known])
    return {
        f"{kind}_within_{times}": round(float((ratio <= times).mean()), 2) if len(known) else None
        for kind, ratio in (("um", um), ("deg", deg))
        for times in (1, 2)
    }


def _percentile(values: np.ndarray, percent: float) -> float | None:
    return round(float(np.percentile(values, percent)), 1) if len(values) else None


def from_own_line(rows: Sequence[Row]) -> Row:
    """Return the deviations of positions from their own regression line over section numbers, and the spacing found."""
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
    parser.add_argument("--others", type=Path, nargs="+", help="images of other species")
    parser.add_argument("--locator", type=Path, help="a network; that of the package by default")
    parser.add_argument(
        "--only", choices=("even", "odd"), help="every second section: choices are made on even ones"
    )
    parser.add_argument("--parts", nargs="+", help="some of the parts")
    parser.add_argument(
        "--again", action="store_true", help="judge the rows in --out by the limits that are there"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    atlas = file_atlas(options.atlas)
    locator = RememberingLocator(atlas, network=options.locator)
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
        "stained, with exchanged numbers, as a series": Part(
            lambda folder: out_of_order(stained, folder), independent=False
        ),
        "stained and turned, each alone": Part(lambda folder: list(turned(stained, folder))),
        "halves, each alone": Part(lambda folder: list(halved(stained, folder))),
        "expression, as a series": Part(expression_series, independent=False),
        "expression, as a series, spacing given": Part(expression_series, False, 25.0),
        "expression, each alone": Part(expression_series),
        "a series of parallel planes, Nissl": Part(
            lambda folder: parallel(atlas, options.atlas, 12, folder, 3000 + seed), independent=False
        ),
        "parallel planes, Nissl, each alone": Part(
            lambda folder: parallel(atlas, options.atlas, 12, folder, 3000 + seed)
        ),
        "sagittal planes, synthetic contrast": Part(
            lambda folder: cut_otherwise(atlas, "ML", round(20 * share), folder, 4000 + seed)
        ),
        "horizontal planes, synthetic contrast": Part(
            lambda folder: cut_otherwise(atlas, "DV", round(10 * share), folder, 5000 + seed)
        ),
        "no sections, and parts of some": Part(lambda folder: no_sections(stained, folder)),
        "other species": Part(lambda _: [Known(path, None, (0.0, 0.0)) for path in options.others or ()]),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name, part in parts.items():
        if options.parts and not any(wanted in name for wanted in options.parts):
            continue
        folder = options.out / name.replace(", ", "-").replace(" ", "_")
        folder.mkdir(exist_ok=True)
        if options.again and not (folder / "rows.json").exists():
            continue
        if options.again:
            rows = [judged_again(row) for row in json.loads((folder / "rows.json").read_text())]
        else:
            rows = measured(part, locator, folder)
        if not rows:
            continue
        rows.sort(key=lambda row: (row["number"], row["true_um"] or 0))
        found = summary(rows)
        if rows[0]["number"] and rows[0]["true_um"]:
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
