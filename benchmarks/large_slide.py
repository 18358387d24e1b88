"""Registers a scan of 40,000 × 60,000 px, timed beside its network: `python -m benchmarks.large_slide FOLDER`, twice.

The scan shows a section of the built-in atlas in colour, as a pyramid of JPEG tiles like those of a slide scanner. The
first call writes the scan, which takes a minute or two; each further call registers it.
"""

import argparse
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from imagecodecs import jpeg8_encode
from numpy.typing import NDArray
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from atlalign.atlas.phantom import phantom_volume
from atlalign.cli import main as atlalign
from atlalign.networks import Registration

HEIGHT, WIDTH, LEVELS, TILE = 40_000, 60_000, 4, 512
WIDTH_UM = 12_000.0


def write_scan(path: Path) -> None:
    """Write the scan; each level has a quarter of the previous level's width and height."""
    small = _section()
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(LEVELS):
            scale = 4**level
            shape = (HEIGHT // scale, WIDTH // scale, 3)
            file.write(
                _tiles(small, shape),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(1e4 * WIDTH / WIDTH_UM / scale,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
                subifds=LEVELS - 1 if level == 0 else None,
                subfiletype=int(level > 0),
            )


def _section() -> NDArray[np.uint8]:
    """Return a stained section on a bright slide, (320, 480, 3)."""
    template, _ = phantom_volume(shape=(11, 320, 456), seed=0)
    plane = np.pad(template[5], ((0, 0), (12, 12))).astype(np.float32)
    stain = plane[..., None] / plane.max() * np.array([60, 120, 160], np.float32)
    return np.asarray((240 - stain).astype(np.uint8))


def _tiles(small: NDArray[np.uint8], shape: tuple[int, ...]) -> Iterator[bytes]:
    """Yield compressed tiles of the enlarged section, with one of four noise patterns."""
    grains = np.random.default_rng(0).integers(0, 12, (4, TILE, TILE, 1), dtype=np.uint8)
    encoded: dict[bytes, bytes] = {}  # most tiles show an even background
    lefts = range(0, shape[1], TILE)
    for number, (top, left) in enumerate((top, left) for top in range(0, shape[0], TILE) for left in lefts):
        rows, columns = (
            (np.arange(start, start + TILE) * n // size).clip(0, n - 1)
            for start, n, size in zip((top, left), small.shape, shape, strict=False)
        )
        parts = small[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        key = parts[0, 0].tobytes() + bytes([number % 4]) if np.ptp(parts) == 0 else b""
        if key not in encoded or not key:
            tile = small[np.ix_(rows, columns)] + grains[number % 4]
            encoded[key] = bytes(jpeg8_encode(tile, level=80, subsampling="420"))
        yield encoded[key]


def seconds_of_network(arguments: list[str]) -> tuple[float, float]:
    """Run `atlalign` and return the network's wall time and the CPU time during it."""
    starts: list[tuple[float, float]] = []  # the modules that are running, outermost first
    spent: list[tuple[float, float]] = []

    def begin(module: Any, given: Any) -> None:
        starts.append((time.perf_counter(), time.process_time()))

    def end(module: Any, given: Any, output: Any) -> None:
        start = starts.pop()
        if isinstance(output, Registration) and not starts:
            spent.append((time.perf_counter() - start[0], time.process_time() - start[1]))

    hooks = [register_module_forward_pre_hook(begin), register_module_forward_hook(end, always_call=True)]
    try:
        if atlalign(arguments):
            raise RuntimeError(f"atlalign {' '.join(arguments)} failed")
    finally:
        for hook in hooks:
            hook.remove()
    ran, worked = (sum(times) for times in zip(*spent, strict=True))
    return ran, worked


def main() -> None:
    """Write the scan if it is missing; otherwise register it, and print the time and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the scan (about 0.7 GB) and the results")
    parser.add_argument("--output-um", default="10", help="as in `atlalign register`")
    options = parser.parse_args()
    scan, out = options.folder / "scan.tif", options.folder / f"out-{options.output_um}"
    if not scan.exists():
        start = time.perf_counter()
        write_scan(scan)
        print(f"written: {scan}, {scan.stat().st_size / 1e9:.2f} GB, in {time.perf_counter() - start:.0f} s")
        return
    shutil.rmtree(out, ignore_errors=True)
    torch.set_num_threads(2)
    start, worked = time.perf_counter(), time.process_time()
    network, of_network = seconds_of_network(
        ["register", str(scan), "--atlas", "phantom", "--position", "6000", "--device", "cpu", "--overwrite",
         "--output-um", options.output_um, "--out", str(out)]
    )  # fmt: skip
    total, work = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"wall time {total - network:.1f} s without the network's {network:.1f} s; CPU time {work - of_network:.1f} s "
        f"without the network's {of_network:.1f} s; peak memory {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
