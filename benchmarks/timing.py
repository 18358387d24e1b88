"""What the benchmarks share: two ways of doing the same, timed in turns in one run, and one table."""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """One thing done in two ways: medians in ms, and what else there is to say about each."""

    what: str
    ours_ms: float
    other: str
    other_ms: float
    note: str = ""


def in_turns(
    ours: Callable[[], object], other: Callable[[], object], *, repeats: int, inner: int = 5
) -> tuple[float, float]:
    """Return the medians in ms of both, run alternately, so that a busy machine slows both down alike.

    Args:
        ours: Run `inner` times in a row after each run of the other, since it is the faster one.
        other: What it is compared with.
        repeats: The number of turns.
        inner: Our runs in each turn.
    """
    ours()
    other()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        times[1].append(_milliseconds(other))
        times[0].extend(_milliseconds(ours) for _ in range(inner))
    return median(times[0]), median(times[1])


def print_table(title: str, rows: list[Row]) -> None:
    """Print the rows as a Markdown table, with how many times as long the other way takes."""
    print(
        f"\n### {title}\n\n| what | atlalign (ms) | compared with | (ms) | ratio | |\n|---|---:|---|---:|---:|---|"
    )
    for row in rows:
        ratio = row.other_ms / row.ours_ms
        print(
            f"| {row.what} | {row.ours_ms:.2f} | {row.other} | {row.other_ms:.1f} | {ratio:.1f} | {row.note} |"
        )


def _milliseconds(function: Callable[[], object]) -> float:
    _finish_device()
    start = perf_counter()
    function()
    _finish_device()
    return 1e3 * (perf_counter() - start)


def _finish_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
