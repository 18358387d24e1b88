"""Paired measurements: two things are timed alternately in one run, so that a busy machine slows both down equally."""

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
    """The size of a benchmark; the tests of the benchmarks use smaller values.

    Attributes:
        shape: (H, W) of images and fields.
        repeats: Number of turns of each row.
        patience_s: Time after which no turn starts, except the first three.
        block_s: A faster call is repeated within a turn until it takes about this long.
        matrix: Rows of the square matrices whose product measures the machine's peak rate.
        samples: Number of samples in the h5 file.
        sections: Number of sections to register.
        section_shape: (H, W) of these sections.
        steps: Training steps in a turn; with fewer steps, the load changes less within a turn.
        planes: Number of planes of the whole atlas.
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
    """The result of each turn in seconds (or bytes), for the measured call and its reference."""

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
    """The result of a row: its number, the turns that it comes from, and a remark."""

    value: float
    turns: Turns
    note: str = ""


class NotMeasuredError(Exception):
    """The machine lacks something that a row needs; the message names it."""


class Wanted(NamedTuple):
    """The target of a row's number, or no target if the number is only reported."""

    sign: Literal["≤", "≥", ""]
    bound: float
    unit: str

    def is_met_by(self, value: float) -> bool | None:
        """Return whether `value` meets the target; None if there is no target."""
        if not self.sign:
            return None
        return value <= self.bound if self.sign == "≤" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.sign} {self.shown(self.bound)}" if self.sign else "stated"

    def shown(self, value: float) -> str:
        """Return a number as shown in tables."""
        return f"{100 * value:.3g} %" if self.unit == "%" else f"{value:.2f} {self.unit}"


def in_turns(ours: Work, other: Work, size: Size, *, block_s: float | None = None) -> Turns:
    """Run both calls alternately and return the seconds per call in each turn.

    Args:
        ours: The measured call.
        other: The reference call.
        size: The number of turns.
        block_s: Overrides the size's `block_s`; 0 for one call per turn.
    """
    works = (ours, other)
    calls = [_calls(work, size.block_s if block_s is None else block_s) for work in works]
    turns = Turns([], [])
    for turn in turn_numbers(size):
        # Each call is the first in half of the turns.
        for which in (0, 1) if turn % 2 else (1, 0):
            turns[which].append(seconds(works[which], calls[which]) / calls[which])
    return turns


def turn_numbers(size: Size) -> Iterator[int]:
    """Yield the number of each turn until there are enough turns or the time is over."""
    start = perf_counter()
    for turn in range(size.repeats):
        if turn >= _FEWEST_TURNS and perf_counter() - start > size.patience_s:
            return
        yield turn


def _calls(work: Work, block_s: float) -> int:
    seconds(work)  # the first calls allocate, import and choose algorithms
    return max(1, round(block_s / seconds(work))) if block_s else 1


def seconds(work: Work, calls: int = 1) -> float:
    """Return the time of this many calls."""
    finish_device()
    start = perf_counter()
    for _ in range(calls):
        work()
    finish_device()
    return perf_counter() - start


def finish_device() -> None:
    """Wait until a GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a temporary folder."""
    with TemporaryDirectory(prefix="atlalign-bench-") as folder:
        yield Path(folder)


def describe_machine() -> dict[str, Any]:
    """Return the machine and versions as plain data, without names of persons or folders."""
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
    """Return the mean number of processes that ran or waited in the last minute, if the system reports it."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
