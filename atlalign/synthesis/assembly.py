"""Assembly of finished parts into one file, with a figure of samples beside it."""

import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.data import schema
from atlalign.errors import InputError
from atlalign.geometry import warp
from atlalign.io.files import give_name
from atlalign.synthesis.parts import part_path
from atlalign.synthesis.samples import SampleRecipe, registered_image, sample_generator

if TYPE_CHECKING:
    pass

_SAMPLES_SHOWN = 6


class Counts(NamedTuple):
    """The numbers of requested and kept samples, and the number of rejected draws for each reason."""

    wanted: int
    kept: int
    rejected: Counter[str]

    @property
    def left_out(self) -> int:
        """The number of samples without an accepted draw."""
        return self.wanted - self.kept


def publish(
    recipe: SampleRecipe, partial: Path, out: Path, request: dict[str, Any], atlas: Atlas | None
) -> Counts:
    """Assemble the file and its figure, and give both their final names."""
    paths = [part_path(partial, original) for original in range(len(recipe.source))]
    counts = _count(paths, len(paths) * recipe.per_original)
    if not counts.kept:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in counts.rejected.most_common())
        raise InputError(
            f"deformation: expected fields that pass the checks, but every draw was rejected: {reasons}"
        )
    _require_space(partial, sum(path.stat().st_size for path in paths))
    origin = {
        **request,
        "extent_um": float(recipe.source.extent_um),
        "origin": recipe.source.origin,
        "wanted": counts.wanted,
        "left_out": counts.left_out,
        "rejected": dict(counts.rejected),
    }
    assembled, figure = partial / "assembled.h5", partial / "samples.png"
    assembled.unlink(missing_ok=True)
    try:
        numbers = _assemble(paths, assembled, counts.kept, recipe.source.image_shape, origin)
        _draw_samples(recipe, assembled, numbers, figure, atlas)
    except BaseException:
        assembled.unlink(missing_ok=True)  # as large as all parts together, and useless
        raise
    give_name(figure, figure_path(out))
    give_name(assembled, out)
    shutil.rmtree(partial, ignore_errors=True)
    return counts


def figure_path(out: Path) -> Path:
    """Return the path of the figure of samples."""
    return out.with_suffix(".png")


def _count(paths: list[Path], wanted: int) -> Counts:
    kept, rejected = 0, Counter[str]()
    for path in paths:
        with h5py.File(path, "r") as part:
            kept += len(part["p"])
            rejected.update(json.loads(part.attrs["rejected"]))
    return Counts(wanted, kept, Counter(dict(sorted(rejected.items()))))


def _assemble(
    paths: list[Path], assembled: Path, n: int, image_shape: tuple[int, int], origin: dict[str, Any]
) -> list[int]:
    """Copy the compressed parts into one file, and return the numbers of its samples."""
    numbers: list[int] = []
    with schema.create(assembled, n, image_shape, **origin) as file:
        for path in paths:
            with h5py.File(path, "r") as part:
                _append(part, file, len(numbers))
                numbers += json.loads(part.attrs["numbers"])
    return numbers


def _append(part: h5py.File, file: h5py.File, start: int) -> None:
    n = len(part["p"])
    for name in schema.CONTRACT:
        if part[name].ndim == 1:
            file[name][start : start + n] = part[name][:]
            continue
        rest = (0,) * (part[name].ndim - 1)
        for place in range(n):
            mask, chunk = part[name].id.read_direct_chunk((place, *rest))
            file[name].id.write_direct_chunk((start + place, *rest), chunk, mask)


def _draw_samples(
    recipe: SampleRecipe, assembled: Path, numbers: list[int], figure: Path, atlas: Atlas | None
) -> None:
    """Draw some samples beside planes of the atlas; without an atlas, beside their registered images."""
    from atlalign.plots import Panel, registration_figure

    panels = []
    with h5py.File(assembled, "r") as file:
        for place in np.unique(np.linspace(0, len(numbers) - 1, _SAMPLES_SHOWN).round().astype(int)):
            number = numbers[place]
            start = recipe.source.start(number // recipe.per_original, sample_generator(recipe.seed, number))
            image = torch.from_numpy(file["img"][place]).float()[None, None] / 255
            dvf = torch.from_numpy(file["deltas_xy"][place]).float().permute(2, 0, 1)[None]
            title = f"image {file['image_id'][place]}\np = {file['p'][place]} µm"
            reference = registered_image(start) if atlas is None else _plane(atlas, file["p"][place])
            panels.append(Panel(reference[0, 0], image[0, 0], warp(image, dvf)[0, 0], dvf[0], title=title))
    registration_figure(panels).savefig(figure, format="png")


def _plane(atlas: Atlas, position_um: int) -> Tensor:
    """Return the plane (1, 1, H, W) at a position, or the last one if the atlas ends before it."""
    return atlas.section(min(float(position_um), atlas.extent_um))[None]


def _require_space(folder: Path, size: int) -> None:
    # HDF5 may crash on a full disk, so check the free space first.
    if shutil.disk_usage(folder).free < 1.05 * size + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
