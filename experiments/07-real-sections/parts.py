"""The parts of the comparison: the measures of the results of each method."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from scipy import ndimage
from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.section_lists import ListedSection
from atlalign.data.demo import tissue_planes
from atlalign.errors import InputError
from atlalign.evaluation.measures import Regions, levels_of
from atlalign.geometry import compose, invert, jacobian_determinant, warp
from atlalign.metrics import mutual_information
from atlalign.registration.references import Reference
from methods import Found, Kept, placing
from pairs import (
    STATES,
    Pair,
    known_warp,
    labels_of,
    other_pair,
    real_pair,
    stained_pair,
    synthetic_pair,
    warped_pair,
)

_ABOVE_GROUND = 0.05

Row = dict[str, Any]


# --- measures ---------------------------------------------------------------------------------------------------------


def disagreement(plain: Tensor, warped: Tensor, known: Tensor) -> Tensor:
    """Return the disagreement (1, 2, H, W) of two registrations of one section.

    `plain` registers the section I, `warped` registers J(p) = I(p + known(p)). At q the latter shows J(q + warped(q)) =
    I(q + compose(known, warped)(q)). Perfect registrations therefore have compose(known, warped) = plain.
    """
    return compose(outer=known, inner=warped) - plain


def mean_um(dvf: Tensor, reference: Reference, where: Tensor | None = None) -> float:
    """Return the mean length of a field (1, 2, H, W) in µm over a mask (H, W), or over the reference's tissue."""
    in_um = dvf[0] * torch.tensor(reference.grid.pixel_um).view(2, 1, 1)
    return float(in_um.square().sum(0).sqrt()[reference.tissue if where is None else where].mean())


def tissue_of(section: Tensor) -> NDArray[np.bool_]:
    """Return the mask (H, W) of a placed section's (1, 1, H, W) tissue.

    Tissue is brighter than the background, 0, by a twentieth of the range; specks of less than 3×3 px are removed.
    Enclosed pixels are included: ventricles and unstained white matter count as tissue, as in the atlas.
    """
    bright = ndimage.binary_opening(section[0, 0].numpy() > _ABOVE_GROUND, np.ones((3, 3), bool))
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


# --- the parts --------------------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """The inputs of all parts.

    Attributes:
        atlas: At its own resolution.
        sections: The real ones.
        size: (H, W) of the images.
        n_planes: Number of planes of the atlas in parts (c) and (d).
        stain: (P', h, w), a stained volume in the atlas's box, for part (d).
        expression: Sections with gene expression alone, for part (e).
        other: Folder with a section of another species, for part (f).
        located: The real sections on planes that `atlalign locate` found, for part (g).
    """

    atlas: Atlas
    sections: Sequence[ListedSection]
    size: tuple[int, int]
    n_planes: int
    stain: Tensor | None = None
    expression: Sequence[ListedSection] = ()
    other: Path | None = None
    located: Sequence[ListedSection] = ()

    @property
    def parts(self) -> str:
        """The letters of the parts for which everything is there."""
        known = {
            "d": self.stain is not None,
            "e": len(self.expression) > 0,
            "f": self.other is not None,
            "g": len(self.located) > 0,
        }
        return "abc" + "".join(part for part, is_known in known.items() if is_known)

    def chosen_planes(self) -> list[int]:
        """Return the planes of parts (c) and (d), spread over those that show enough tissue."""
        planes = tissue_planes(self.atlas)
        places = np.linspace(0, len(planes) - 1, self.n_planes + 2).round().astype(int)[1:-1]
        return [int(plane) for plane in planes[places]]


def known_warps(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (a): yield, for each section and method, the disagreement of two registrations with the known warp."""
    yield from _under_known_warps(setting, setting.sections, names, find)


def expression(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (e): the same of sections with gene expression alone."""
    yield from _under_known_warps(setting, setting.expression, names, find)


def on_located_planes(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (g): the same as part (a) on planes that were located from the images alone."""
    yield from _under_known_warps(setting, setting.located, names, find)


def _under_known_warps(
    setting: Setting, sections: Sequence[ListedSection], names: Sequence[str], find: Kept
) -> Iterator[Row]:
    for listed in sections:
        try:
            pair = real_pair(setting.atlas, listed, setting.size)
        except InputError as error:  # beyond the atlas's ends
            print(f"left out {listed.path.name}: {error}", file=sys.stderr)
            continue
        known = known_warp(setting.size, listed.identity.image_id)
        bent = warped_pair(pair, known)
        for name in names:
            plain, warped = find(name, pair), find(name, bent)
            error_um = mean_um(disagreement(plain.dvf, warped.dvf, known), pair.reference)
            yield {"section": pair.name, "method": name, "error_um": error_um, **field_measures(warped)}


def as_they_are(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (b): yield, for each section and method, the fit of the registered section to the atlas."""
    for listed in setting.sections:
        ways = {placing(name) for name in names}
        pairs = {by: real_pair(setting.atlas, listed, setting.size, by) for by in ways}
        for name in names:
            pair = pairs[placing(name)]
            yield {"section": pair.name, "method": name, **_fit(pair, find(name, pair))}


def _fit(pair: Pair, found: Found) -> Row:
    registered = warp(pair.moving, found.dvf)
    return {
        "mutual_information": float(mutual_information(pair.reference.image, registered)),
        "tissue_dice": tissue_dice(pair, found.dvf),
        **field_measures(found),
    }


def synthetic(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (c): yield, for each plane and method, the distance to the true field and the Dice of regions."""
    atlas = setting.atlas
    levels = levels_of(atlas.ontology)
    for number, plane in enumerate(setting.chosen_planes()):
        true = known_warp(setting.size, 1000 + number)
        pair = synthetic_pair(atlas, plane, true, 1000 + number)
        regions = Regions(
            torch.from_numpy(labels_of(pair.reference))[None], true, levels, pair.reference.grid.pixel_um
        )
        for name in names:
            found = find(name, pair)
            overlaps = {
                key.replace("/", "_"): dice
                for key, dice in regions.measures(found.dvf).items()
                if key.startswith("dice")
            }
            error_um = mean_um(found.dvf - true, pair.reference)
            yield {
                "section": pair.name,
                "method": name,
                "error_um": error_um,
                **overlaps,
                **field_measures(found),
            }


def stained(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (d): yield, for each plane, state and method, the distance to the true field over the tissue shown."""
    assert setting.stain is not None
    for number, plane in enumerate(setting.chosen_planes()):
        true = known_warp(setting.size, 2000 + number)
        for state in STATES:
            pair, shown = stained_pair(setting.atlas, setting.stain, plane, state, true, 2000 + number)
            for name in names:
                found = find(name, pair)
                error_um = mean_um(found.dvf - true, pair.reference, shown[0, 0] > 0)
                yield {
                    "section": f"plane-{plane}",
                    "state": state,
                    "method": name,
                    "error_um": error_um,
                    **field_measures(found),
                }


def other(setting: Setting, names: Sequence[str], find: Kept) -> Iterator[Row]:
    """Part (f): yield mutual information and tissue Dice of a section of another species; it is looked at."""
    assert setting.other is not None
    pair = other_pair(setting.other, setting.size[1])
    for name in names:
        yield {"section": pair.name, "method": name, **_fit(pair, find(name, pair))}


PARTS: Mapping[str, tuple[str, Callable[[Setting, Sequence[str], Kept], Iterator[Row]]]] = {
    "a": ("Real sections under known warps", known_warps),
    "b": ("Real sections as they are", as_they_are),
    "c": ("Planes of the atlas in synthetic contrasts", synthetic),
    "d": ("Planes of a stained volume under known fields", stained),
    "e": ("Sections with gene expression alone under known warps", expression),
    "f": ("A section of another species", other),
    "g": ("Real sections under known warps, on located planes", on_located_planes),
}


def measured(setting: Setting, parts: Sequence[str], find: Kept) -> dict[str, list[Row]]:
    """Return the rows of each part; sections without anchoring are measured in part (b) only."""
    results: dict[str, list[Row]] = {}
    with Progress() as progress:
        for part in sorted(parts):
            names = [name for name in find.methods if part == "b" or name != "identity"]
            title, measure = PARTS[part]
            rows = progress.track(
                measure(setting, names, find),
                total=len(names) * _n_pairs(setting, part),
                description=f"({part}) {title}",
            )
            results[part] = list(rows)
    return results


def _n_pairs(setting: Setting, part: str) -> int:
    by_part = {
        "c": setting.n_planes,
        "d": setting.n_planes * len(STATES),
        "e": len(setting.expression),
        "f": 1,
        "g": len(setting.located),
    }
    return by_part.get(part, len(setting.sections))
