"""How far registrations err when something is wrong with image or position, and how they are flagged.

`python -m tests.registration.what_passes` writes this page, SITUATIONS.md, from the sections and the atlas in the
folder that `ATLALIGN_TEST_DATA` names. The limits of the flags were chosen on sections with even numbers; the table
shows REPORTED.

There is no true registration of these sections. The error is the mean distance, over tissue, between two places in the
image to which registrations by the same network take a point of the plane: the registration of the changed image, and
that of the untouched image on its likeliest plane. So it says how far the change leads astray, not how good the
untouched result is. On another plane, points at the same ML and DV are compared: the distance between the planes comes
on top.

The likeliest plane is parallel to that of the section's anchoring, where the registered section is most like the atlas.
Anchorings are automatic and off themselves: along AP, likeliest planes lie 0 to 160 µm before them in the front half of
this brain, and 220 to 270 µm behind them in seven sections in a row at its back. Errors against the anchored plane, as
an earlier form of this page had them, counted a registration on a better plane as wrong.

"Wrongly passed" counts the results with the flag `pass` and an error above 150 µm.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from atlalign.atlas.planes import Anchoring, Matrix, Points, apply_affine, invert_affine
from atlalign.errors import InputError
from atlalign.io.images import read_image
from atlalign.registration import Job, Recipe, atlas_recipe, find_jobs, register_section
from atlalign.registration.quality import Quality, judge
from tests.registration.situations import BRIGHT

LARGEST_ERROR_UM = 150.0
"""No registration that errs by more may pass."""

REPORTED = (3, 7, 11, 15)
"""The sections of the table, none of which limits were chosen on."""

TURNS = (5, 12, 25, 90, 180, -20)
GROUNDS = (
    "grey 0.6", "tinted", "vignetting", "uneven light", "black frame", "black frame, vignetting", "black corners, 20°",
    "missing tiles", "offset", "noise",
)  # fmt: skip
OTHER_PLANES_UM = (-2000, -1000, -500, -250, 250, 500, 1000, 2000)

Image = NDArray[np.uint8]

_COLUMNS = (
    "situation", "placed by", "sections", "mean error, µm", "largest, µm", "pass", "look", "fail", "refused",
    "largest that passes, µm", "wrongly passed",
)  # fmt: skip


class Case(NamedTuple):
    """A section in a situation.

    Attributes:
        situation: What is wrong.
        placing: anchoring, scale or fit.
        pixels: The image.
        moved: (2, 3), which takes pixels of the untouched image to those of this one.
        options: What of `Options` differs.
        job: What of the job differs.
        hemisphere: The half of the atlas.
        kept: Where, among the points that are compared, the image still shows tissue.
        has_truth: Whether there is a right result at all.
    """

    situation: str
    placing: str
    pixels: Image
    moved: Matrix = np.eye(2, 3)
    options: Mapping[str, Any] = MappingProxyType({})
    job: Mapping[str, Any] = MappingProxyType({})
    hemisphere: Any = None
    kept: NDArray[np.bool_] | None = None
    has_truth: bool = True


class Truth(NamedTuple):
    """The untouched section on its likeliest plane: the job, points of the plane in mm, and in pixels of the image."""

    job: Job
    pixels: Image
    points_mm: Points
    points_px: Points
    pixel_um: Points
    middle_mm: float


class Result(NamedTuple):
    """The error of a case in µm (infinite: no truth) and the values of `Quality`; both None if it is refused."""

    situation: str
    placing: str
    error_um: float | None
    quality: dict[str, Any] | None

    @property
    def flag(self) -> str:
        """The flag by today's limits."""
        return "refused" if self.quality is None else judge(Quality(**self.quality))[0]


class Row(NamedTuple):
    """The errors of one situation in µm, a section each (NaN: refused; infinite: no truth), and the flags."""

    situation: str
    placing: str
    errors_um: list[float]
    flags: list[str]

    @property
    def wrongly_passed(self) -> int:
        """How many pass that err by more than they may."""
        return sum(
            flag == "pass" and not error <= LARGEST_ERROR_UM
            for error, flag in zip(self.errors_um, self.flags, strict=True)
        )


def slide_color(pixels: Image) -> NDArray[Any]:
    """Return the median of an image's border."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return np.asarray(np.median(border, axis=0)).astype(np.uint8)


def turned_image(pixels: Image, degrees: float) -> tuple[Image, Matrix]:
    """Return an image (h, w, 3) turned counter-clockwise, on a larger slide, and the map (2, 3) of its pixels."""
    height, width = pixels.shape[:2]
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    linear = np.array([[cosine, sine], [-sine, cosine]])
    size = np.ceil(np.abs(linear) @ (width, height) - 1e-6).astype(int)
    moved = np.column_stack([linear, (size - 1) / 2 - linear @ ((width - 1) / 2, (height - 1) / 2)])
    back = invert_affine(moved)[::-1][:, [1, 0, 2]]  # (row, column)
    shape = (size[1], size[0])
    channels = [
        affine_transform(pixels[..., k], back[:, :2], back[:, 2], output_shape=shape, order=1, cval=int(fill))
        for k, fill in enumerate(slide_color(pixels))
    ]
    return np.stack(channels, axis=-1), moved


def true_section(job: Job, recipe: Recipe) -> Truth:
    """Return where the points of its likeliest plane lie in an untouched section."""
    found = register_section(job, recipe)
    for _ in range(3):
        job = moved(job, found.registered.quality.plane_offset_um)
        found = register_section(job, recipe)
    grid, transform = found.reference.grid, found.registered.transform
    y, x = np.nonzero(found.reference.tissue.numpy())
    points_mm = grid.to_mm(np.stack([x, y], axis=1)[::7].astype(np.float64))
    pixel_um = np.array(found.placement.pixel_um)
    return Truth(
        job, found.image.pixels, points_mm, transform.to_section(points_mm), pixel_um, transform.midline_mm
    )


def moved(job: Job, distance_um: float) -> Job:
    """Return the job on a plane further back, parallel to its own."""
    assert job.anchoring is not None
    assert job.position_um is not None
    vectors = job.anchoring.vectors.copy()
    vectors[0, 1] -= distance_um / 25
    anchoring = Anchoring(vectors, job.anchoring.size)
    return job._replace(position_um=job.position_um + distance_um, anchoring=anchoring)


def cases(listed: Job, truth: Truth, neighbour: Image) -> Iterator[Case]:
    """Yield a section in all situations; `listed` has the anchoring of its list."""
    for placing in ("anchoring", "fit"):
        there = {"position_um": listed.position_um, "anchoring": listed.anchoring}
        yield case(truth, "untouched, on its anchored plane", placing, job=there)
    yield from grounds_and_turns(truth)
    yield from wrong_words(truth)
    yield from halves(truth)
    yield from damages(truth, neighbour)


def placed(truth: Truth, placing: str) -> dict[str, dict[str, Any]]:
    """Return the options and the change of the job for a way of placing; these sections are mirrored."""
    if placing == "anchoring":
        return {"options": {}, "job": {}}
    pixel_um = float(np.sqrt(truth.pixel_um.prod())) if placing == "scale" else None
    return {"options": {"mirrored": True, "pixel_size_um": pixel_um}, "job": {"anchoring": None}}


def case(truth: Truth, situation: str, placing: str, pixels: Image | None = None, **rest: Any) -> Case:
    """Return a case with what its placing needs."""
    needed = placed(truth, placing)
    options, job = needed["options"] | rest.pop("options", {}), rest.pop("job", {}) | needed["job"]
    image = truth.pixels if pixels is None else pixels
    return Case(situation, placing, image, options=options, job=job, **rest)


def grounds_and_turns(truth: Truth) -> Iterator[Case]:
    """Yield what the microscope and the slide do."""
    for placing in ("anchoring", "scale", "fit"):
        yield case(truth, "untouched", placing)
    for name in GROUNDS:
        changed = (BRIGHT[name](truth.pixels / 255.0).clip(0, 1) * 255).round().astype(np.uint8)
        yield case(truth, name, "fit", changed)
    for degrees in TURNS:
        pixels, moved = turned_image(truth.pixels, degrees)
        for placing in ("scale", "fit"):
            yield case(truth, f"turned by {degrees}°", placing, pixels, moved=moved)


def wrong_words(truth: Truth) -> Iterator[Case]:
    """Yield untouched images of which something wrong is said."""
    pixel_um = float(np.sqrt(truth.pixel_um.prod()))
    for degrees in (12, 25, 180):
        yield case(truth, f"--turn {degrees} of an upright one", "fit", options={"turn": float(degrees)})
    for factor in (0.04, 0.5, 0.8, 1.25, 2, 25):
        yield case(truth, f"pixel size × {factor}", "scale", options={"pixel_size_um": pixel_um * factor})
    assert truth.job.position_um is not None
    for distance_um in (*OTHER_PLANES_UM, 4000 if truth.job.position_um < 7000 else -4000):
        there = moved(truth.job, distance_um)
        where = "4000 µm off" if abs(distance_um) == 4000 else f"plane {distance_um:+d} µm"
        for placing in ("anchoring", "fit"):
            change = {"position_um": there.position_um, "anchoring": there.anchoring}
            yield case(truth, where, placing, job=change)


def halves(truth: Truth) -> Iterator[Case]:
    """Yield half a section, and what may be said wrongly of it."""
    left = truth.points_mm[:, 0] < truth.middle_mm
    half = truth.pixels.copy()
    half[:, : int(truth.points_px[left, 0].min())] = slide_color(half)
    rest: dict[str, Any] = {"kept": left}
    for placing in ("scale", "fit"):
        yield case(truth, "left half", placing, half, hemisphere="left", **rest)
        wrong = {"mirrored": False}
        yield case(truth, "left half, mirrored", placing, half, hemisphere="left", options=wrong, **rest)
        yield case(truth, "left half called right", placing, half, hemisphere="right", **rest)
        yield case(truth, "left half called whole", placing, half, **rest)
        yield case(truth, "whole called left half", placing, hemisphere="left", **rest)


def damages(truth: Truth, neighbour: Image) -> Iterator[Case]:
    """Yield torn sections, what lies beside them, and slides without any."""
    slide = slide_color(truth.pixels)
    x, y = truth.points_px.T
    rows, columns = np.indices(truth.pixels.shape[:2])
    right, top = np.percentile(x, 70), np.percentile(y, 40)
    pieces = {"a corner missing": columns * 1.0 > right, "a third missing": columns > right}
    pieces["a corner missing"] &= rows < top
    kept = {"a corner missing": ~((x > right) & (y < top)), "a third missing": x <= right}
    dust, blank = dusty(truth.pixels.shape, slide), np.full_like(truth.pixels, slide)
    split = int(np.percentile(x, 55))
    gap = np.full((len(blank), 25, 3), slide, np.uint8)
    torn = np.concatenate([truth.pixels[:, :split], gap, truth.pixels[:, split:]], axis=1)
    for placing in ("scale", "fit"):
        for name, gone in pieces.items():
            damaged = np.where(gone[..., None], slide, truth.pixels)
            yield case(truth, name, placing, damaged, kept=kept[name])
        yield case(truth, "tear of 0.3 mm", placing, torn, kept=x < split)
        yield case(truth, "dust beside it", placing, np.minimum(truth.pixels, dust))
        yield case(truth, "dust alone", placing, dust, has_truth=False)
        two = np.concatenate([truth.pixels, fitted(neighbour, truth.pixels)], axis=1)
        yield case(truth, "two sections", placing, two)


def dusty(shape: tuple[int, ...], slide: NDArray[Any]) -> Image:
    """Return a slide with 40 specks and some noise."""
    random = np.random.default_rng(0)
    image = np.full(shape, slide, np.float64)
    rows, columns = np.indices(shape[:2])
    for _ in range(40):
        x, y, radius = random.uniform(0, shape[1]), random.uniform(0, shape[0]), random.uniform(2, 12)
        image[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] = random.integers(60, 160)
    return (image + random.normal(0, 3, shape)).clip(0, 255).astype(np.uint8)


def fitted(image: Image, like: Image) -> Image:
    """Return an image cut or padded to another one's height."""
    height = len(like)
    padding = max(0, height - len(image))
    return np.pad(image, ((0, padding), (0, 0), (0, 0)), mode="edge")[:height]


def measured(case: Case, truth: Truth, recipe: Recipe) -> Result:
    """Return how the registration of a case goes."""
    recipe = replace(recipe, options=replace(recipe.options, hemisphere=case.hemisphere, **case.options))
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{truth.job.name}.tif"
        tifffile.imwrite(path, case.pixels, photometric="rgb")
        try:
            found = register_section(truth.job._replace(path=path, **case.job), recipe)
        except InputError:
            return Result(case.situation, case.placing, None, None)
    expected = apply_affine(case.moved, truth.points_px)
    difference = (found.registered.transform.to_section(truth.points_mm) - expected) * truth.pixel_um
    kept = slice(None) if case.kept is None else case.kept
    error_um = float(np.linalg.norm(difference, axis=1)[kept].mean()) if case.has_truth else np.inf
    return Result(case.situation, case.placing, error_um, asdict(found.registered.quality))


def remembered(path: Path | None, compute: Callable[[], Result]) -> Result:
    """Return the result that a file keeps, or compute and keep it."""
    if path is None:
        return compute()
    if not path.exists():
        path.write_text(json.dumps(compute()._asdict()), encoding="utf-8")
    return Result(**json.loads(path.read_text(encoding="utf-8")))


def measure(data: Path, numbers: Sequence[int], memory: Path | None = None) -> list[Row]:
    """Return the rows of the table for some of the sections; a folder for memory lets a later call resume."""
    recipe = atlas_recipe(data / "allen_ccf_25um.h5")
    jobs = find_jobs([data / "sections"])
    rows: dict[tuple[str, str], Row] = {}
    for number in numbers:
        job = jobs[number]
        truth = true_section(job, recipe)
        neighbour = np.asarray(read_image(jobs[number - 1].path).pixels)
        for case in cases(job, truth, neighbour):
            key = (case.situation, case.placing)
            path = memory and memory / f"{number:02d} {case.situation}, {case.placing}.json"
            result = remembered(path, partial(measured, case, truth, recipe))
            row = rows.setdefault(key, Row(*key, [], []))
            row.errors_um.append(np.nan if result.error_um is None else result.error_um)
            row.flags.append(result.flag)
    return list(rows.values())


def cells(row: Row) -> list[str]:
    """Return a row of the table."""
    known = [error for error in row.errors_um if np.isfinite(error)]
    passing = [error for error, flag in zip(row.errors_um, row.flags, strict=True) if flag == "pass"]
    return [
        row.situation,
        row.placing,
        str(len(row.flags)),
        f"{np.mean(known):.0f}" if known else "",
        f"{max(known):.0f}" if known else "",
        *(str(row.flags.count(flag)) for flag in ("pass", "look", "fail", "refused")),
        f"{max(passing):.0f}" if passing else "",
        str(row.wrongly_passed),
    ]


def markdown(rows: Sequence[Row], reported: str = "some") -> str:
    """Return the page; `reported` says which sections it shows."""
    wrong = sum(
        flag != "refused" and not error <= LARGEST_ERROR_UM
        for row in rows
        for error, flag in zip(row.errors_um, row.flags, strict=True)
    )
    passed = sum(row.wrongly_passed for row in rows)
    count = f"Of {wrong} results that err by more, or show no section, {passed} passed."
    lines = [_COLUMNS, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    text = (__doc__ or "").replace("REPORTED", reported).strip()
    return (
        "\n".join(["# How far registrations err, and what passes", "", text, "", count, "", *padded]) + "\n"
    )


def main() -> None:
    """Write the page.

    The first argument chooses sections, as in 1,5,9; the second one is a folder that keeps each result, so that an
    interrupted run resumes.
    """
    numbers = [int(part) for part in sys.argv[1].split(",")] if len(sys.argv) > 1 else REPORTED
    memory = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if memory is not None:
        memory.mkdir(parents=True, exist_ok=True)
    rows = measure(Path(os.environ["ATLALIGN_TEST_DATA"]), numbers, memory)
    page = markdown(rows, ", ".join(map(str, numbers)))
    Path(__file__).with_name("SITUATIONS.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
