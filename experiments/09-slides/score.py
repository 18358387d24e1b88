"""Finds the sections on synthetic slides, and checks number, order and turn against the truth."""

import argparse
import time
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.io.scenes import array_scene
from atlalign.recognition.judge import BrainJudge
from atlalign.sections.finding import Turning, View, find_on_view
from atlalign.sections.outlines import filled
from atlalign.sections.small_copy import small_copy
from slides import PIXEL_UM, Slide, make_slide, recipes

_MOST, _PART = 0.8, 0.05  # as a fraction of a section
_UPRIGHT_DEG = 20.0
_UNCLEAR = ("not turned", "which end")


class Score(NamedTuple):
    """The result for the sections of one slide.

    Attributes:
        once: Sections of which exactly one found section covers most.
        split: Sections that were found in several parts.
        merged: Sections that were found together with others, except for the close pair.
        missed: Sections that were not found.
        extra: Found where there is none.
        close_merged: The close pair was found as one section.
        in_order: Sections that were found alone are in the right order.
        upright: Sections found alone whose turn is within 20° of the right one, with the right end up.
        unclear: Sections of which the list says that their turn is not known.
        turn_deg: The largest error of the turn in degrees.
        seconds: Of one core.
    """

    once: int
    split: int
    merged: int
    missed: int
    extra: int
    close_merged: bool
    in_order: bool
    upright: int
    unclear: int
    turn_deg: float
    seconds: float


def score(slide: Slide, order: str, turning: Turning) -> Score:
    start = time.process_time()
    scene = array_scene(slide.image, is_color=True, pixel_um=(PIXEL_UM, PIXEL_UM))
    copy = small_copy(scene, PIXEL_UM)
    found = find_on_view(View(copy, PIXEL_UM), slide="slide", order=order, turning=turning)
    found = [section for section in found if section.kept]
    seconds = time.process_time() - start
    shares = np.array([_shares(filled(section.outline, slide.truth.shape), slide.truth) for section in found])
    shares = shares.reshape(len(found), slide.truth.max())
    owners = [set(np.flatnonzero(row > _PART) + 1) for row in shares]
    close = set(slide.close)
    firsts = [min(owner) for owner in owners if len(owner) == 1]
    errors = [
        abs((section.turn - slide.turns[min(owner) - 1] + 180) % 360 - 180)
        for section, owner in zip(found, owners, strict=True)
        if len(owner) == 1
    ]
    return Score(
        once=sum((column > _MOST).sum() == 1 and (column > _PART).sum() == 1 for column in shares.T)
        - sum(len(owner) for owner in owners if len(owner) > 1),
        split=sum((column > _PART).sum() > 1 for column in shares.T),
        merged=sum(len(owner) > 1 and owner != close for owner in owners),
        missed=sum(not (column > _PART).any() for column in shares.T),
        extra=sum(not owner for owner in owners),
        close_merged=close in owners,
        in_order=firsts == sorted(firsts),
        upright=sum(error <= _UPRIGHT_DEG for error in errors),
        unclear=sum(section.note.startswith(_UNCLEAR) for section in found),
        turn_deg=max(errors, default=0.0),
        seconds=seconds,
    )


def _shares(mask: NDArray[np.bool_], truth: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the share of each section inside a mask."""
    sizes = np.bincount(truth.ravel())[1:]
    return np.bincount(truth[mask], minlength=len(sizes) + 1)[1:] / sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--hemispheres", action="store_true", help="each section is two halves")
    options = parser.parse_args()
    turning = Turning(judge=BrainJudge())
    columns = ("seed", "sections", *Score._fields)
    print("| " + " | ".join(name.replace("_", " ") for name in columns) + " |")
    print("|---" * len(columns) + "|")
    for seed in options.seeds:
        recipe = replace(recipes(seed), hemispheres=options.hemispheres)
        result = score(make_slide(recipe, seed), recipe.order, turning)
        cells = (_cell(value) for value in (seed, recipe.count, *result))
        print("| " + " | ".join(cells) + " |", flush=True)


def _cell(value: float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
