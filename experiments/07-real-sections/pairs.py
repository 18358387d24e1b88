"""Pairs of images to register: real sections on their planes, the same warped, and planes in other contrasts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import Plane
from atlalign.atlas.section_lists import ListedSection
from atlalign.geometry import invert, smooth_field, warp
from atlalign.io.images import read_image
from atlalign.registration.options import Placing
from atlalign.registration.placement import place, placed_image, read_section
from atlalign.registration.references import Reference, atlas_reference
from atlalign.synthesis.contrast import apply_contrast, draw_contrast

_MEAN_WARP = 10 / 456  # of the width, over the image
_WARP_SPACING = 0.25  # of the width


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


def spread(sections: Sequence[ListedSection], n: int) -> list[ListedSection]:
    """Return n sections, spread evenly over all."""
    places = np.linspace(0, len(sections) - 1, min(n, len(sections))).round().astype(int)
    return [sections[place] for place in places.tolist()]
