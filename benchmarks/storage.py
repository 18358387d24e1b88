"""Times and sizes of several ways to store a generated data set: `python -m benchmarks.storage my.h5`.

A sample is the image, the field and its inverse. The samples of the file are copied into files with other storage
settings. Reading is random, one sample at a time, as in training, with the file in the system's cache.
"""

import argparse
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
_NAMES = ("img", "deltas_xy", "inv_deltas_xy")
WAYS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "one sample a chunk, not compressed": {"samples": 1},
    "lzf": {"samples": 1, "compression": "lzf"},
    "lzf, shuffled": {"samples": 1, "compression": "lzf", "shuffle": True},
    "gzip 1": {"samples": 1, "compression": "gzip", "compression_opts": 1},
    "gzip 1, shuffled (chosen)": {"samples": 1, "compression": "gzip", "compression_opts": 1, "shuffle": True},
    "gzip 4, shuffled": {"samples": 1, "compression": "gzip", "compression_opts": 4, "shuffle": True},
    "gzip 1, shuffled, 8 samples a chunk": {
        "samples": 8, "compression": "gzip", "compression_opts": 1, "shuffle": True,
    },
}  # fmt: skip


def write(path: Path, arrays: Arrays, options: dict[str, Any]) -> float:
    """Write the arrays and return the time in ms per sample."""
    filters = {key: value for key, value in options.items() if key != "samples"}
    start = perf_counter()
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            chunks = (min(options["samples"], len(array)), *array.shape[1:]) if "samples" in options else None
            file.create_dataset(name, data=array, chunks=chunks, **filters)
    return 1e3 * (perf_counter() - start) / len(arrays["img"])


def read(path: Path, order: NDArray[np.intp]) -> float:
    """Read image and field of the samples in this order and return the time in ms per sample."""
    start = perf_counter()
    with h5py.File(path, "r") as file:
        for place in order:
            _ = file["img"][place], file["deltas_xy"][place]
    return 1e3 * (perf_counter() - start) / len(order)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a data set, for example from generate.py")
    parser.add_argument("--samples", type=int, default=32, help="number of samples to use")
    arguments = parser.parse_args()
    with h5py.File(arguments.file, "r") as file:
        arrays = {name: file[name][: arguments.samples] for name in _NAMES}
    order = np.random.default_rng(0).permutation(len(arrays["img"]))
    height, width = arrays["img"].shape[1:]
    print(f"\n### {len(order)} samples of {height}×{width}\n")
    print("| stored | write (ms a sample) | read at random (ms a sample) | size (kB a sample) |")
    print("|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.h5"
        for name, options in WAYS.items():
            written, taken = write(path, arrays, options), read(path, order)
            print(f"| {name} | {written:.1f} | {taken:.1f} | {path.stat().st_size / len(order) / 1e3:.0f} |")


if __name__ == "__main__":
    main()
