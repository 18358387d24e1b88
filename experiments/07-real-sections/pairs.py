"""Pairs of images to register: real sections on their planes, the same warped, and planes in other contrasts."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import Plane
from atlalign.atlas.section_lists import ListedSection
from atlalign.geometry import invert, smooth_field, warp
from atlalign.io.images import read_image, read_labels, resize_images
from atlalign.registration.options import Placing, Side
from atlalign.registration.placed_image import placed_image
from atlalign.registration.placement import place
from atlalign.registration.references import Reference, atlas_reference, image_reference
from atlalign.registration.section import read_section
from atlalign.synthesis.contrast import apply_contrast, draw_contrast
from atlalign.synthesis.damage import draw_damage, missing

_MEAN_WARP = 10 / 456  # as a fraction of the width, over the image
_WARP_SPACING = 0.25  # of the width
_WHITE = 99.9  # the percentile of a stain's tissue that becomes 1, as in sections that are read from files
_MIDLINE = 0.5  # of the width

STATES = ("whole", "damaged", "half", "100 µm off", "200 µm off")
"""The states of the planes of a stained volume in part (d)."""


class Pair(NamedTuple):
    """Two images on one grid.

    Attributes:
        name: The section, and how it was changed.
        reference: The plane of the atlas; its image is (1, 1, H, W).
        moving: The placed section (1, 1, H, W), bright on dark.
        reference_at: Returns the reference at another size (H, W).
    """

    name: str
    reference: Reference
    moving: Tensor
    reference_at: Callable[[tuple[int, int]], Reference]


def real_pair(atlas: Atlas, listed: ListedSection, size: tuple[int, int], by: Placing = "auto") -> Pair:
    """Return a section on its plane."""
    anchoring, origin_um = listed.anchoring, atlas.origin_um
    plane = (
        Plane.at(listed.identity.position_um, origin_um) if anchoring is None else anchoring.plane(origin_um)
    )
    cut = partial(atlas_reference, atlas, plane)
    reference = cut(size)
    section = read_section(read_image(listed.path), size, name=listed.path.name)
    placement = place(section, reference, by=by, anchoring=anchoring if by == "auto" else None)
    return Pair(listed.path.stem, reference, placed_image(section, placement, size), cut)


def known_warp(size: tuple[int, int], seed: int) -> Tensor:
    """Return a smooth field (1, 2, H, W) without folds, with a mean displacement of 10 px at a width of 456 px."""
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
    cut = partial(atlas_reference, atlas, _plane_at(atlas, plane))
    reference = cut(size)
    labels = torch.from_numpy(labels_of(reference)).long()[None, None]
    generator = torch.Generator().manual_seed(seed)
    contrast = draw_contrast(labels, p_bright=0.0, generator=generator)
    section = apply_contrast(reference.image, labels, contrast)
    return Pair(f"plane-{plane}", reference, warp(section, invert(true)), cut)


def _plane_at(atlas: Atlas, plane: int) -> Plane:
    return Plane.at((plane + 0.5) * atlas.spacing_um, atlas.origin_um)


def read_stain(path: Path, dataset: str) -> Tensor:
    """Return a stained volume (P', h, w) that fills the box of an atlas, with coarser voxels."""
    with h5py.File(path) as file:
        return torch.from_numpy(np.asarray(file[dataset], np.float32))


class StainedPair(NamedTuple):
    """A plane of the atlas, and a plane of a stained volume under a known field.

    Attributes:
        pair: Both images.
        shown: (1, 1, H, W), 1 where the reference shows tissue that the section shows as well.
    """

    pair: Pair
    shown: Tensor


def stained_pair(atlas: Atlas, stain: Tensor, plane: int, state: str, true: Tensor, seed: int) -> StainedPair:
    """Return a plane of the atlas and the same place of a stained volume, which the field `true` registers.

    Args:
        atlas: At its own resolution.
        stain: (P', h, w), a volume in the same box.
        plane: Of the atlas.
        state: One of `STATES`: damaged sections have holes, tears and a lost border; sections off their planes lie up
            to so far in front of or behind them.
        true: (1, 2, H, W).
        seed: Of damage, side and direction.
    """
    size = (int(true.shape[-2]), int(true.shape[-1]))
    generator = torch.Generator().manual_seed(seed)
    is_first = bool(torch.rand(1, generator=generator) < _MIDLINE)
    side: Side | None = None if state != "half" else "left" if is_first else "right"
    off_um = float(state.split()[0]) * (1 if is_first else -1) if state.endswith("off") else 0.0

    def cut(shape: tuple[int, int]) -> Reference:
        return atlas_reference(atlas, _plane_at(atlas, plane), shape).half(side)

    reference = cut(size)
    position_um = (plane + 0.5) * atlas.spacing_um + off_um
    section = resize_images(_stained(stain, position_um / atlas.extent_um, atlas.image_shape), size)[None]
    lost = torch.zeros_like(section, dtype=torch.bool)
    if state == "damaged":
        damage = draw_damage(
            section, p_holes=1, p_tears=1, p_cut=1, cut_share=(0.1, 0.3), generator=generator
        )
        lost = missing(damage, size)
    if side is not None:
        columns = torch.arange(size[1]) / (size[1] - 1)
        lost = lost | ((columns > _MIDLINE) if side == "left" else (columns < _MIDLINE))
    shown = (~lost & reference.tissue).float()
    moving = warp(section.masked_fill(lost, 0), invert(true))
    return StainedPair(Pair(f"stain-{plane}-{state}", reference, moving, cut), shown)


def _stained(stain: Tensor, share: float, size: tuple[int, int]) -> Tensor:
    """Return the plane (1, H, W) of a volume at a share of its length, interpolated linearly."""
    place = min(max(share * len(stain) - 0.5, 0.0), len(stain) - 1.001)
    before = int(place)
    coarse = torch.lerp(stain[before], stain[before + 1], place - before)[None, None]
    fine = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    white = float(np.percentile(fine[fine > 0].numpy(), _WHITE))
    return (fine[0] / white).clamp(0, 1)


def other_pair(folder: Path, width: int, pixel_um: float = 39.0) -> Pair:
    """Return a section of another species and its plane of another atlas, one fitted to the other.

    Args:
        folder: With section.tif, plane.tif and plane_labels.tif.
        width: Of the grid; its height follows from the plane's proportions.
        pixel_um: Of the plane.
    """
    plane, labels = read_image(folder / "plane.tif"), read_labels(folder / "plane_labels.tif")
    size = (round(width * plane.pixels.shape[0] / plane.pixels.shape[1]), width)

    def cut(shape: tuple[int, int]) -> Reference:
        return image_reference(plane, labels, shape, pixel_um=pixel_um, name="plane.tif")

    reference = cut(size)
    section = read_section(read_image(folder / "section.tif"), size, name="section.tif")
    placement = place(section, reference, by="fit")
    return Pair(folder.name, reference, placed_image(section, placement, size), cut)


def labels_of(reference: Reference) -> NDArray[Any]:
    """Return the region ids (H, W) on the grid of the reference's image, taken from the nearest pixels."""
    assert reference.labels is not None  # checked in `main`
    sizes = zip(reference.labels.shape, reference.grid.shape, strict=True)
    rows, columns = (np.linspace(0, old - 1, new).round().astype(int) for old, new in sizes)
    labels: NDArray[Any] = reference.labels[rows[:, None], columns]
    return labels


def spread(sections: Sequence[ListedSection], n: int) -> list[ListedSection]:
    """Return n sections, spread evenly over all of them."""
    places = np.linspace(0, len(sections) - 1, min(n, len(sections))).round().astype(int)
    return [sections[place] for place in places.tolist()]
