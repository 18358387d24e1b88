"""Registrations of real and of synthetic sections side by side: classical methods, and ours.

Three parts: (a) real sections and the same under a known warp: do the two registrations agree with it? (b) The real
sections as they are. (c) Planes of the atlas in synthetic contrasts under known fields.

All methods register the same two images on the same grid, placed by the same anchoring. Found fields are kept in
OUT/fields, named by what they were made from, so that a run that was stopped goes on where it stopped.
"""

import argparse
import csv
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from scipy import ndimage
from torch import Tensor

from atlalign.data.atlas import Atlas, file_atlas
from atlalign.data.contrast import apply_contrast, draw_contrast
from atlalign.data.dataset import RegistrationBatch
from atlalign.data.demo import tissue_planes
from atlalign.data.images import read_image
from atlalign.data.sections import ListedSection, Plane, read_list
from atlalign.errors import InputError, unknown_name
from atlalign.evaluation.measures import Regions
from atlalign.evaluation.methods import baseline
from atlalign.files import fingerprint, written_whole
from atlalign.geometry import compose, identity_grid, invert, jacobian_determinant, smooth_field, warp
from atlalign.metrics import mutual_information
from atlalign.models import SHIPPED_MODEL, load_model, read_origin
from atlalign.networks.memory_format import fastest_memory_format
from atlalign.registration.placement import (
    Placing,
    Reference,
    Section,
    atlas_reference,
    place,
    placed_image,
    read_section,
)
from atlalign.registration.register import register

METHODS = {
    "identity": "not anchored",
    "anchoring": "anchoring only",
    "ants_affine": "ANTs affine",
    "ants_syn": "ANTs SyN",
    "ants_syncc": "ANTs SyN, cross-correlation",
    "elastix": "elastix affine + B-spline",
    "ours": "ours",
    "ours_refined": "ours, refined",
    "ours_refined_smooth": "ours, refined smoothly",
}
YARDSTICK = "ants_syn"
_MEAN_WARP = 10 / 456  # of the width, over the image
_WARP_SPACING = 0.25  # of the width
_ABOVE_SLIDE = 0.05
TABLES = "tables.md"
_SHOWN_DEPTHS = (1, 3, 5, 7)
_SHOWN_SECTIONS = 6
_TILE_PX = 300

Row = dict[str, Any]


# --- pairs of images --------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two images on one grid.

    Attributes:
        name: Of the section, and what has been done to it.
        reference: The plane of the atlas, (1, 1, H, W) among others.
        moving: The placed section (1, 1, H, W), bright on dark.
    """

    name: str
    reference: Reference
    moving: Tensor


class Found(NamedTuple):
    """A field (1, 2, H, W) in pixels of the pair's grid, and the time that it took."""

    dvf: Tensor
    seconds: float


Method = Callable[[Pair], Found]


def real_pair(atlas: Atlas, listed: ListedSection, size: tuple[int, int], by: Placing = "auto") -> Pair:
    """Return a section as it lies on its plane."""
    anchoring, origin_um = listed.anchoring, atlas.origin_um
    plane = (
        Plane.at(listed.identity.position_um, origin_um) if anchoring is None else anchoring.plane(origin_um)
    )
    reference = atlas_reference(atlas, plane, size)
    section = read_section(read_image(listed.path), size, name=listed.path.name)
    placement = place(section, reference, by=by, anchoring=anchoring if by == "auto" else None)
    return Pair(listed.path.stem, reference, placed_image(section, placement, size))


def placing(method: str) -> Placing:
    """Return how a method's sections are placed: one stands for what is given without an anchoring."""
    return "stretch" if method == "identity" else "auto"


def known_warp(size: tuple[int, int], seed: int) -> Tensor:
    """Return a smooth field (1, 2, H, W) without folds, of 10 px in the mean at a width of 456 px."""
    return smooth_field(
        1, size, mean_fraction=_MEAN_WARP, largest_fraction=_MEAN_WARP, spacing=_WARP_SPACING,
        generator=torch.Generator().manual_seed(seed),
    ).dvf  # fmt: skip


def warped_pair(pair: Pair, known: Tensor) -> Pair:
    """Return the pair with its section warped."""
    return pair._replace(name=f"{pair.name}-warped", moving=warp(pair.moving, known))


def synthetic_pair(atlas: Atlas, plane: int, true: Tensor, seed: int) -> Pair:
    """Return a plane of the atlas and the same in another contrast, which the field `true` registers."""
    size = (int(true.shape[-2]), int(true.shape[-1]))
    middle_um = (plane + 0.5) * atlas.spacing_um
    reference = atlas_reference(atlas, Plane.at(middle_um, atlas.origin_um), size)
    labels = torch.from_numpy(labels_of(reference)).long()[None, None]
    generator = torch.Generator().manual_seed(seed)
    contrast = draw_contrast(labels, p_bright=0.0, generator=generator)
    section = apply_contrast(reference.image, labels, contrast)
    return Pair(f"plane-{plane}", reference, warp(section, invert(true)))


def labels_of(reference: Reference) -> NDArray[Any]:
    """Return the region ids (H, W) on the grid of the reference's image: those of the nearest pixels."""
    assert reference.labels is not None  # `main` sees to that
    sizes = zip(reference.labels.shape, reference.grid.shape, strict=True)
    rows, columns = (np.linspace(0, old - 1, new).round().astype(int) for old, new in sizes)
    labels: NDArray[Any] = reference.labels[rows[:, None], columns]
    return labels


# --- methods ----------------------------------------------------------------------------------------------------------


def nothing(pair: Pair) -> Found:
    """Leave a section where it lies."""
    return Found(torch.zeros(1, 2, *pair.reference.grid.shape), 0.0)


def classical(name: str) -> Method:
    """Return a baseline of `evaluate.py`."""
    method = baseline(name)

    def run(pair: Pair) -> Found:
        unknown = torch.zeros(1, 2, *pair.reference.grid.shape)
        ids = [torch.zeros(1)] * 3
        found = method(RegistrationBatch(pair.reference.image, pair.moving, pair.moving, unknown, None, *ids))
        assert found.seconds is not None
        return Found(found.dvf, found.seconds)

    return run


def ours(atlas: Atlas, model: Path, refinement_steps: int, smoothness: float = 0.01) -> Method:
    """Return what `atlalign register` does with a section, at the size of the model's own images.

    The time is that of all of `register`: the network both ways, the field, its inverse and the measures of quality.
    """
    shape = read_origin(model).image_shape
    if shape is None:
        raise InputError(f"{model} does not tell the size of its images")
    network = load_model(model).to(memory_format=fastest_memory_format(torch.device("cpu")))

    def run(pair: Pair) -> Found:
        plane, grid = pair.reference.plane, pair.reference.grid
        assert plane is not None
        reference = atlas_reference(atlas, plane, shape)
        section = Section(pair.moving[0, 0], 1, grid.shape, grid.pixel_um, "dark")
        placement = place(section, reference, by="stretch")
        started = time.perf_counter()
        found = register(
            network,
            reference,
            section,
            placement,
            refinement_steps=refinement_steps,
            refinement_smoothness=smoothness,
        )
        seconds = time.perf_counter() - started
        pixels = identity_grid(grid.shape, torch.float64, torch.device("cpu"))[0].flatten(1).T.numpy()
        moved = found.transform.to_section(grid.to_mm(pixels)) - pixels
        return Found(torch.from_numpy(moved.T.reshape(1, 2, *grid.shape)).float(), seconds)

    return run


def make_methods(names: Sequence[str], atlas: Atlas, model: Path, steps: int) -> dict[str, Method]:
    """Return the methods of these names, in the order of `METHODS`."""
    makers: dict[str, Callable[[], Method]] = {
        "identity": lambda: nothing,
        "anchoring": lambda: nothing,
        "ours": partial(ours, atlas, model, 0),
        "ours_refined": partial(ours, atlas, model, steps),
        "ours_refined_smooth": partial(ours, atlas, model, steps, 0.1),
    }
    for name in names:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    return {name: makers.get(name, partial(classical, name))() for name in METHODS if name in names}


class Kept:
    """Methods whose fields are kept in a folder, by the images and what else they were made from.

    Args:
        methods: By name.
        folder: For the fields.
        made_with: What a method's fields depend on besides the images.
        again: Methods whose former fields are not to be taken.
    """

    def __init__(
        self, methods: Mapping[str, Method], folder: Path, made_with: Mapping[str, str], again: Sequence[str]
    ) -> None:
        self.methods = methods
        self.folder = folder
        self.made_with = made_with
        self.again = set(again)
        self._made: set[Path] = set()

    def __call__(self, name: str, pair: Pair) -> Found:
        """Return what a method finds, or has found."""
        path = self._path(name, pair)
        if not path.exists() or (name in self.again and path not in self._made):
            found = self.methods[name](pair)
            with written_whole(path) as unfinished:
                np.savez_compressed(unfinished, dvf=found.dvf.numpy(), seconds=found.seconds)
            self._made.add(path)
        with np.load(path) as kept:
            return Found(torch.from_numpy(kept["dvf"]), float(kept["seconds"]))

    def _path(self, name: str, pair: Pair) -> Path:
        of_all = hashlib.sha256(self.made_with.get(name, "").encode())
        for image in (pair.reference.image, pair.moving):
            of_all.update(image.contiguous().numpy().tobytes())
        return self.folder / f"{pair.name}-{name}-{of_all.hexdigest()[:12]}.npz"


# --- measures ---------------------------------------------------------------------------------------------------------


def disagreement(plain: Tensor, warped: Tensor, known: Tensor) -> Tensor:
    """Return by how much (1, 2, H, W) two registrations disagree about one section.

    `plain` registers the section I, `warped` registers J(p) = I(p + known(p)). What the latter shows at q is
    J(q + warped(q)) = I(q + compose(known, warped)(q)), so that perfect registrations have compose(known, warped) =
    plain.
    """
    return compose(outer=known, inner=warped) - plain


def mean_um(dvf: Tensor, reference: Reference) -> float:
    """Return the mean length of a field (1, 2, H, W) in µm over the reference's tissue."""
    in_um = dvf[0] * torch.tensor(reference.grid.pixel_um).view(2, 1, 1)
    return float(in_um.square().sum(0).sqrt()[reference.tissue].mean())


def tissue_of(section: Tensor) -> NDArray[np.bool_]:
    """Return where (H, W) a placed section (1, 1, H, W) shows tissue.

    That is what is brighter than the slide, the median of the image's border, by a twentieth of the range, without
    specks of less than 3×3 px, and what lies within: ventricles and white matter that took no stain count as tissue,
    as they do in the atlas.
    """
    image = section[0, 0].numpy()
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    bright = ndimage.binary_opening(image > np.median(border) + _ABOVE_SLIDE, np.ones((3, 3), bool))
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(bright)
    return filled


def tissue_dice(pair: Pair, dvf: Tensor) -> float:
    """Return the Dice of the section's tissue and that of the atlas, warped to the section by the field's inverse."""
    atlas = pair.reference.tissue[None, None].float()
    in_section = warp(atlas, invert(dvf), mode="nearest")[0, 0].numpy() > 0
    section = tissue_of(pair.moving)
    return float(2 * (section & in_section).sum() / (section.sum() + in_section.sum()))


def field_measures(found: Found) -> Row:
    """Return the share of the plane that folds, and the time."""
    folds = float((jacobian_determinant(found.dvf) <= 0).float().mean())
    return {"folds": folds, "seconds": found.seconds}


# --- the three parts --------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """What the parts are made from.

    Attributes:
        atlas: At its own resolution.
        sections: The real ones.
        size: (H, W) of the images.
        n_planes: How many planes of the atlas part (c) takes.
    """

    atlas: Atlas
    sections: Sequence[ListedSection]
    size: tuple[int, int]
    n_planes: int


def known_warps(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (a): yield, for each section and method, how far two registrations disagree with the known warp."""
    for listed in setting.sections:
        pair = real_pair(setting.atlas, listed, setting.size)
        known = known_warp(setting.size, listed.identity.image_id)
        bent = warped_pair(pair, known)
        for name in names:
            plain, warped = find(name, pair), find(name, bent)
            error_um = mean_um(disagreement(plain.dvf, warped.dvf, known), pair.reference)
            yield {"section": pair.name, "method": name, "error_um": error_um, **field_measures(warped)}


def as_they_are(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (b): yield, for each section and method, how well the registered section fits the atlas."""
    for listed in setting.sections:
        ways = {placing(name) for name in names}
        pairs = {by: real_pair(setting.atlas, listed, setting.size, by) for by in ways}
        for name in names:
            pair = pairs[placing(name)]
            found = find(name, pair)
            registered = warp(pair.moving, found.dvf)
            yield {
                "section": pair.name,
                "method": name,
                "mutual_information": float(mutual_information(pair.reference.image, registered)),
                "tissue_dice": tissue_dice(pair, found.dvf),
                **field_measures(found),
            }


def depths(atlas: Atlas) -> dict[str, Callable[[NDArray[Any]], NDArray[Any]]]:
    """Return what ids count as: themselves, and the region at each depth of the ontology, by a measure's ending."""
    levels: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {"": lambda ids: ids}
    if atlas.ontology is not None:
        for depth in range(1, atlas.ontology.depth + 1):
            levels[f"_depth_{depth}"] = partial(atlas.ontology.at_depth, depth=depth)
    return levels


def synthetic(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (c): yield, for each plane and method, the distance to the true field and the Dice of regions."""
    atlas = setting.atlas
    levels = depths(atlas)
    planes = tissue_planes(atlas)
    chosen = planes[np.linspace(0, len(planes) - 1, setting.n_planes + 2).round().astype(int)[1:-1]]
    for number, plane in enumerate(chosen.tolist()):
        true = known_warp(setting.size, 1000 + number)
        pair = synthetic_pair(atlas, plane, true, 1000 + number)
        regions = Regions(
            torch.from_numpy(labels_of(pair.reference))[None], true, levels, pair.reference.grid.pixel_um
        )
        for name in names:
            found = find(name, pair)
            overlaps = {key: n for key, n in regions.measures(found.dvf).items() if key.startswith("dice")}
            error_um = mean_um(found.dvf - true, pair.reference)
            yield {
                "section": pair.name,
                "method": name,
                "error_um": error_um,
                **overlaps,
                **field_measures(found),
            }


# --- tables -----------------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown whose columns line up, the first to the left, the others to the right."""
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
    """Return the values of one method, by section; NaN where there is none."""
    return np.array([row.get(key, math.nan) for row in rows if row["method"] == method], np.float64)


def n_above(rows: Sequence[Row], method: str, key: str) -> int:
    """Return for how many sections a method is above SyN."""
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


class Mark(NamedTuple):
    """What is wanted, what was measured, and whether that is met; None if it was not measured."""

    what: str
    wanted: str
    measured: str
    is_met: bool | None


def marks(results: Mapping[str, Sequence[Row]]) -> list[Mark]:
    """Return how each of our methods does beside what is wanted."""
    return [mark for name in ("ours", "ours_refined") for mark in _marks_of(name, results)]


def _marks_of(method: str, results: Mapping[str, Sequence[Row]]) -> Iterator[Mark]:
    title, limit_s = METHODS[method], {"ours": 0.5, "ours_refined": 10.0}[method]

    def known(part: str, *methods: str) -> bool:
        return part in results and set(methods) <= set(methods_in(results[part]))

    if known("a", method, YARDSTICK):
        error, syn = (float(column(results["a"], m, "error_um").mean()) for m in (method, YARDSTICK))
        yield Mark(
            f"{title}: disagreement",
            f"≤ {syn / 2:.0f} µm, half of SyN's",
            f"{error:.0f} µm",
            error <= syn / 2,
        )
    for key, what in (("mutual_information", "mutual information"), ("tissue_dice", "tissue Dice")):
        if known("b", method, YARDSTICK):
            rows = results["b"]
            n = len(column(rows, method, key))
            wanted, above = math.ceil(n * 15 / 18), n_above(rows, method, key)
            yield Mark(
                f"{title}: {what} above SyN's", f"≥ {wanted} of {n}", f"{above} of {n}", above >= wanted
            )
    if known("b", method):
        seconds = float(np.median(column(results["b"], method, "seconds")))
        yield Mark(f"{title}: time, median", f"< {limit_s:g} s", f"{seconds:.2f} s", seconds < limit_s)
    folds = [row["folds"] for rows in results.values() for row in rows if row["method"] == method]
    if folds:
        yield Mark(
            f"{title}: registrations that fold",
            "0",
            f"{sum(f > 0 for f in folds)} of {len(folds)}",
            not any(folds),
        )


def table_of_marks(found: Sequence[Mark]) -> str:
    lines = [[m.what, m.wanted, m.measured, "yes" if m.is_met else "no"] for m in found]
    return markdown(["mark", "wanted", "measured", "met"], lines)


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw_errors(rows: Sequence[Row], path: Path) -> None:
    """Draw the mean error of each section, a column a method."""
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
    """Draw some of the sections, a row each, with the atlas's outlines as each method puts them."""
    from PIL import Image, ImageDraw

    sections = spread(setting.sections, _SHOWN_SECTIONS)
    height = round(_TILE_PX * setting.size[0] / setting.size[1])
    lefts = range(0, _TILE_PX * len(names), _TILE_PX)
    picture = Image.new("RGB", (_TILE_PX * len(names), height * len(sections)))
    for row, listed in enumerate(sections):
        for left, name in zip(lefts, names, strict=True):
            pair = real_pair(setting.atlas, listed, setting.size, placing(name))
            tile = Image.fromarray(with_outlines(pair, find(name, pair).dvf, setting.atlas))
            picture.paste(tile.resize((_TILE_PX, height), Image.Resampling.LANCZOS), (left, row * height))
    draw = ImageDraw.Draw(picture)
    for left, name in zip(lefts, names, strict=True):
        draw.text((left + 6, 4), METHODS[name], fill="white")
    picture.save(path, quality=80)


def with_outlines(pair: Pair, dvf: Tensor, atlas: Atlas, depth: int = 5) -> NDArray[np.uint8]:
    """Return the section (H, W, 3) with the outlines of the atlas's regions, by the inverse of a field."""
    ids = labels_of(pair.reference)
    if atlas.ontology is not None:
        ids = atlas.ontology.at_depth(ids, depth)
    labels = warp(torch.from_numpy(ids)[None, None], invert(dvf), mode="nearest")[0, 0].numpy()
    image = (pair.moving[0, 0].numpy()[..., None].repeat(3, -1) * 255).round().astype(np.uint8)
    lines = np.zeros(labels.shape, bool)
    lines[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines[:-1] |= labels[:-1] != labels[1:]
    image[lines] = (255, 190, 0)
    return image


# --- the command ------------------------------------------------------------------------------------------------------


def spread(sections: Sequence[ListedSection], n: int) -> list[ListedSection]:
    """Return n sections, spread evenly over all."""
    places = np.linspace(0, len(sections) - 1, min(n, len(sections))).round().astype(int)
    return [sections[place] for place in places.tolist()]


PARTS: Mapping[str, tuple[str, Callable[[Setting, Sequence[str], Kept], Iterator[Row]]]] = {
    "a": ("Real sections under known warps", known_warps),
    "b": ("Real sections as they are", as_they_are),
    "c": ("Planes of the atlas in synthetic contrasts", synthetic),
}


def tables(results: Mapping[str, Sequence[Row]]) -> str:
    """Return all tables, one below the other."""
    makers = {"a": (table_a, table_a_sections), "b": (table_b,), "c": (table_c,)}
    texts = [
        f"## ({part}) {PARTS[part][0]}\n\n" + "\n".join(make(rows) for make in makers[part])
        for part, rows in results.items()
    ]
    return "\n".join([*texts, "## Marks\n\n" + table_of_marks(marks(results))])


def grids(setting: Setting, options: argparse.Namespace, model: Path) -> str:
    """Return a sentence on the sizes at which methods work, for what stands below it."""
    (height, width), shape = setting.size, read_origin(model).image_shape
    own = "" if shape is None else f" Our network sees {shape[0]}×{shape[1]} px of them."
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    return (
        f"Images of {height}×{width} px for all methods, which all measures are taken at.{own} Refinement takes "
        f"{options.steps} steps. Times are medians on {threads}.\n\n"
    )


def compare(options: argparse.Namespace) -> None:
    atlas = file_atlas(options.atlas, spacing_um=options.spacing_um, ontology_path=options.ontology)
    if atlas.annotation is None:
        raise InputError(f"{options.atlas}: expected an atlas with an annotation, found none")
    if min(options.only, options.planes, options.threads, *options.size) < 1:
        raise InputError("expected --only, --planes, --threads and --size of at least 1")
    sections = spread(read_list(options.sections), options.only)
    setting = Setting(atlas, sections, tuple(options.size), options.planes)
    torch.set_num_threads(options.threads)
    model = options.model or SHIPPED_MODEL
    weights = fingerprint(model)
    find = Kept(
        make_methods(options.methods, atlas, model, options.steps),
        options.out / "fields",
        {"ours": weights}
        | dict.fromkeys(("ours_refined", "ours_refined_smooth"), f"{weights} {options.steps}"),
        options.again,
    )
    results = measured(setting, options.parts, find)
    write_results(options.out, setting, results, find)
    text = grids(setting, options, model) + tables(results)
    with written_whole(options.out / TABLES) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    about = {name: getattr(options, name) for name in ("size", "threads", "steps")} | {"model": weights}
    content = {**about, "results": results, "marks": [mark._asdict() for mark in marks(results)]}
    with written_whole(options.out / "results.json") as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(text)


def measured(setting: Setting, parts: Sequence[str], find: Kept) -> dict[str, list[Row]]:
    """Return the rows of each part; what is not anchored is measured in part (b) alone."""
    results: dict[str, list[Row]] = {}
    with Progress() as progress:
        for part in sorted(parts):
            names = [name for name in find.methods if part == "b" or name != "identity"]
            total = len(names) * (setting.n_planes if part == "c" else len(setting.sections))
            title, measure = PARTS[part]
            rows = progress.track(measure(setting, names, find), total=total, description=f"({part}) {title}")
            results[part] = list(rows)
    return results


def write_results(out: Path, setting: Setting, results: Mapping[str, Sequence[Row]], find: Kept) -> None:
    """Write rows and pictures of each part."""
    for part, rows in results.items():
        with written_whole(out / f"{part}.csv") as unfinished:
            write_rows(unfinished, rows)
        if part != "b":
            draw_errors(rows, out / f"{part}.png")
    if "b" in results:
        draw_sections(setting, list(find.methods), find, out / "b.jpg")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--atlas", type=Path, required=True, help="an h5 file with template and annotation")
    add("--spacing-um", type=float, default=25.0, help="the size of its voxels (default: %(default)s)")
    add("--sections", type=Path, required=True, help="the list of sections (.json of QuickNII or DeepSlice)")
    add("--ontology", type=Path, help="a table of the regions: Dice by depth")
    add("--out", type=Path, required=True, help="the folder to write")
    add("--model", type=Path, help="a model file (default: the one that ships)")
    add("--steps", type=int, default=80, help="of refinement (default: %(default)s)")
    add("--size", type=int, nargs=2, default=[320, 456], metavar=("H", "W"), help="(default: 320 456)")
    add("--only", type=int, metavar="N", default=sys.maxsize, help="so many sections, spread over the list")
    add("--planes", type=int, default=12, help="of the atlas, in part (c) (default: %(default)s)")
    add("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=", ".join(METHODS))
    add("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="(default: all)")
    add("--again", nargs="+", default=[], metavar="NAME", help="methods to run again: their code has changed")
    add("--threads", type=int, default=2, help="of PyTorch, ANTs and elastix (default: %(default)s)")
    try:
        compare(parser.parse_args(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
