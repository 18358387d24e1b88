"""Finds the sections on synthetic slides, and counts those that are found once, split, merged or missed."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.io.pieces import find_sections
from slides import PIXEL_UM, Slide, make_slide, recipes

_MOST = 0.8  # of a section belongs to one that was found, and the other way round


class Score(NamedTuple):
    """What became of the sections of one slide."""

    once: int
    split: int
    merged: int
    missed: int
    extra: int
    close_merged: bool
    seconds: float


def score(slide: Slide) -> Score:
    start = time.process_time()
    found = find_sections(slide.image, is_color=True, pixel_um=PIXEL_UM)
    seconds = time.process_time() - start
    labels = _enlarged(found.labels, slide.truth.shape)
    common = np.zeros((slide.truth.max() + 1, labels.max() + 1), int)
    np.add.at(common, (slide.truth.ravel(), labels.ravel()), 1)
    of_truth = common[1:, 1:] / common[1:].sum(axis=1, keepdims=True)
    parts = [np.flatnonzero(row > 0.05) for row in of_truth]
    owners = [np.flatnonzero(column > 0.05) + 1 for column in of_truth.T]
    merged = [set(map(int, owner)) for owner in owners if len(owner) > 1]
    close = set(slide.close)
    return Score(
        once=sum(
            len(p) == 1 and row[p[0]] > _MOST and len(owners[p[0]]) == 1
            for p, row in zip(parts, of_truth, strict=True)
        ),
        split=sum(len(p) > 1 for p in parts),
        merged=sum(pair != close for pair in merged),
        missed=sum(len(p) == 0 for p in parts),
        extra=sum(len(owner) == 0 for owner in owners),
        close_merged=close in merged,
        seconds=seconds,
    )


def _enlarged(labels: NDArray[np.int32], shape: Sequence[int]) -> NDArray[np.int32]:
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--hemispheres", action="store_true")
    options = parser.parse_args()
    print("| seed | sections | once | split | merged | missed | extra | close pair merged | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        recipe = replace(recipes(seed), hemispheres=options.hemispheres)
        result = score(make_slide(recipe, seed))
        numbers = " | ".join(map(str, result[:5]))
        close = "yes" if result.close_merged else "no"
        print(
            f"| {seed} | {recipe.count} | {numbers} | {close} | {result.seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
