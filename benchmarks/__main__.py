"""Measures the rows of the table: `python -m benchmarks [ROW …]`; benchmarks/README.md explains the rows."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import fields, gpu, loading, networks, programs
from benchmarks.measure import (
    Measured,
    NotMeasuredError,
    Size,
    Wanted,
    describe_machine,
    load,
    seconds,
)


class Row(NamedTuple):
    """One row of the table: the measurement, its reference and its target."""

    what: str
    against: str
    wanted: Wanted
    measure: Callable[[Size], Measured]


def _at_most(bound: float, unit: str = "×") -> Wanted:
    return Wanted("≤", bound, unit)


def _at_least(bound: float, unit: str = "%") -> Wanted:
    return Wanted("≥", bound, unit)


_STATED = Wanted("", 0.0, "×")
_PEAK = "its multiply-adds at the rate of a matrix product"

ROWS: dict[str, Row] = {
    "warp": Row("warp, forward and backward, batch 8", "bare grid_sample", _at_most(1.25), networks.warping),
    "compose": Row(
        "compose, forward and backward, batch 8", "bare grid_sample", _at_most(1.25), networks.composing
    ),
    "step": Row("local training step, batch 4", _PEAK, _at_least(0.5), networks.training_step),
    "inference": Row("local inference, batch 1", _PEAK, _at_least(0.85), networks.inference),
    "h5": Row("h5 to batch, one process", "h5py and float32", _at_least(0.8), loading.reading),
    "augmenter_1": Row(
        "the same with augmenter_1", "that and albumentations", _at_least(0.8), loading.augmenting
    ),
    "training": Row(
        "training with data loading", "training on one batch", _at_least(0.95), loading.training_loop
    ),
    "inverse": Row("inverse of a field", "scattered-data inverse", _at_least(20, "×"), fields.inverting),
    "generation": Row(
        "a generated sample", "scattered inverses, rbf per pixel", _at_least(20, "×"), fields.generating
    ),
    "online": Row("a batch of data=online", "local training step", _at_most(0.1, "%"), fields.online),
    "register": Row(
        "atlalign register, 18 sections", "its passes of the network", _at_most(2.0), programs.registering
    ),
    "register_large": Row(
        "the same, local network, 320×456",
        "its passes of the network",
        _at_most(2.0),
        programs.registering_large,
    ),
    "start_cli": Row("atlalign --help", "bare interpreter", _at_most(0.3, "s more"), programs.starting_cli),
    "start_train": Row(
        "python train.py --help", "import torch", _at_most(1.0, "s more"), programs.starting_training
    ),
    "memory": Row("memory of training, whole atlas", "imports and arrays", _at_most(1.3), programs.memory),
}
GPU_ROWS: dict[str, Row] = {
    "gpu_copy": Row(
        "local step, bf16, compiled, batch 32", "its bytes at the copy rate", _STATED, gpu.against_copy
    ),
    "gpu_eager": Row("the same", "float32, eager", _STATED, gpu.against_eager),
    "gpu_training": Row(
        "the same with data loading", "training on one batch", _at_least(0.95), gpu.training_loop
    ),
    "gpu_online": Row("the same with data=online", "training on one batch", _at_least(0.9), gpu.online),
}


def measured(row: Row, size: Size) -> dict[str, Any]:
    """Return a row's result as plain data, or the reason why it could not be measured."""
    known: dict[str, Any] = {"what": row.what, "against": row.against, "wanted": str(row.wanted)}
    found: list[Measured] = []
    try:
        duration_s = seconds(lambda: found.append(row.measure(size)))
    except NotMeasuredError as reason:
        return {**known, "value": None, "is_met": None, "note": str(reason)}
    value, turns, note = found[0]
    return {
        **known,
        "value": value,
        "shown": row.wanted.shown(value),
        "is_met": row.wanted.is_met_by(value),
        "note": note,
        "turns": turns._asdict(),
        "duration_s": round(duration_s, 1),
        "load_after": load(),
    }


def table(results: dict[str, dict[str, Any]]) -> Table:
    """Return the results as a table."""
    drawn = Table(title="benchmarks", title_justify="left")
    for column in ("row", "what", "against", "found", "wanted", "met?", ""):
        drawn.add_column(column, justify="right" if column in ("found", "wanted") else "left")
    for name, result in results.items():
        met = {True: "yes", False: "no", None: ""}[result["is_met"]]
        shown = result.get("shown", "not measured")
        drawn.add_row(name, result["what"], result["against"], shown, result["wanted"], met, result["note"])
    return drawn


def main() -> None:
    """Measure, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = {**ROWS, **GPU_ROWS}
    parser.add_argument(
        "rows", metavar="ROW", nargs="*", help=f"of {', '.join(known)} (default: all of a CPU)"
    )
    parser.add_argument("--gpu", action="store_true", help="measure the GPU rows")
    parser.add_argument("--repeats", type=int, default=Size.repeats, help="number of turns per row")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="the JSON file to write")
    options = parser.parse_args()
    unknown = sorted(set(options.rows) - set(known))
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; known rows are {', '.join(known)}")
    console = Console(width=None if Console().is_terminal else 160)
    machine = describe_machine()
    results = {}
    for name in options.rows or (GPU_ROWS if options.gpu else ROWS):
        with console.status(f"measuring {name}"):
            results[name] = measured(known[name], Size(repeats=options.repeats))
    console.print(table(results))
    machine["load_after"] = load()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "rows": results}, indent=2) + "\n")
    console.print(f"written: {options.out}")


if __name__ == "__main__":
    main()
