"""How rows are measured: two things in turns in one run, so that a busy machine slows both down alike."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch

Work = Callable[[], object]

_FEWEST_TURNS = 3


@dataclass(frozen=True)
class Size:
    """How large and how often; the tests of the benchmarks take less of everything.

    Attributes:
        shape: (H, W) of images and fields.
        repeats: Turns of each row …
        patience_s: … or as many, but at least three, as it can begin within this time.
        block_s: What takes less is repeated within a turn until it takes about so long.
        matrix: Rows of the square matrices whose product tells what the machine can do.
        samples: In the h5 file.
        sections: To register.
        section_shape: (H, W) of these.
        steps: Training steps in a turn: the fewer, the less the load changes within it.
        planes: Of the whole atlas.
    """

    shape: tuple[int, int] = (320, 456)
    repeats: int = 7
    patience_s: float = 20.0
    block_s: float = 0.2
    matrix: int = 2048
    samples: int = 32
    sections: int = 18
    section_shape: tuple[int, int] = (670, 1024)
    steps: int = 1
    planes: int = 528


class Turns(NamedTuple):
    """What each turn found, in seconds (or bytes), for what is measured and for what it is compared with."""

    ours: list[float]
    other: list[float]

    def times_as_long(self) -> float:
        """Return the median of ours / other."""
        return median(ours / other for ours, other in zip(*self, strict=True))

    def times_as_fast(self) -> float:
        """Return the median of other / ours."""
        return median(other / ours for ours, other in zip(*self, strict=True))

    def longer_by(self) -> float:
        """Return the median of ours − other."""
        return median(ours - other for ours, other in zip(*self, strict=True))


class Measured(NamedTuple):
    """What a row found: the number that is wanted to be small or large, what it comes from, and a remark."""

    value: float
    turns: Turns
    note: str = ""


class NotMeasuredError(Exception):
    """The machine lacks what a row needs; the message says what."""


class Wanted(NamedTuple):
    """The bound of a row's number; None where the number is only stated."""

    sign: Literal["≤", "≥", ""]
    bound: float
    unit: str

    def is_met_by(self, value: float) -> bool | None:
        """Return whether `value` is within the bound; None where there is no bound."""
        if not self.sign:
            return None
        return value <= self.bound if self.sign == "≤" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.shown(self.bound)}" if self.sign else "stated"

    def shown(self, value: float) -> str:
        """Return a number as tables show it."""
        return f"{100 * value:.3g} %" if self.unit == "%" else f"{value:.2f} {self.unit}"


def in_turns(ours: Work, other: Work, size: Size, *, block_s: float | None = None) -> Turns:
    """Run both alternately and return the seconds that a call took in each turn.

    Args:
        ours: What is measured.
        other: What it is compared with.
        size: How often.
        block_s: In place of the size's own; 0 for one call a turn.
    """
    works = (ours, other)
    calls = [_calls(work, size.block_s if block_s is None else block_s) for work in works]
    turns = Turns([], [])
    for turn in turn_numbers(size):
        # Each is the first one in half of the turns.
        for which in (0, 1) if turn % 2 else (1, 0):
            turns[which].append(seconds(works[which], calls[which]) / calls[which])
    return turns


def turn_numbers(size: Size) -> Iterator[int]:
    """Yield the number of each turn, until there were enough or time is up."""
    start = perf_counter()
    for turn in range(size.repeats):
        if turn >= _FEWEST_TURNS and perf_counter() - start > size.patience_s:
            return
        yield turn


def _calls(work: Work, block_s: float) -> int:
    seconds(work)  # first calls allocate, import and choose algorithms
    return max(1, round(block_s / seconds(work))) if block_s else 1


def seconds(work: Work, calls: int = 1) -> float:
    """Return how long so many calls take."""
    finish_device()
    start = perf_counter()
    for _ in range(calls):
        work()
    finish_device()
    return perf_counter() - start


def finish_device() -> None:
    """Wait until a GPU has done what it was asked for; there need not be one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="atlalign-bench-") as folder:
        yield Path(folder)


def describe_machine() -> dict[str, Any]:
    """Return, as plain data, where and with what versions this runs; nothing of it names a person or a folder."""
    from atlalign.training.record import describe_run, gpu_names

    run = describe_run()
    return {
        "started": run["started"],
        "commits": [f"{state['commit']}{' (changed)' * state['changed']}" for state in run["git"]],
        "versions": run["versions"],
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpu_names(),
        "load_before": load(),
    }


def load() -> float | None:
    """Return how many processes ran or waited on average over the last minute, where the system tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
