"""The parts of a data set: all samples of one original, made by workers, each part written atomically."""

import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import torch

from atlalign.console import track
from atlalign.data import schema
from atlalign.io.files import fingerprint_of, written_whole
from atlalign.synthesis.samples import SampleRecipe, make_sample

if TYPE_CHECKING:
    pass

_log = logging.getLogger(__name__)
_COUNTED = ("numbers", "rejected")  # attributes of a part


def make_part(recipe: SampleRecipe, original: int, partial: Path) -> None:
    """Write all samples of an original as one small data set, atomically."""
    first = original * recipe.per_original
    numbers = range(first, first + recipe.per_original)
    made = {number: make_sample(recipe, original, number) for number in numbers}
    kept = {number: sample for number, (sample, _) in made.items() if sample is not None}
    rejected = sum((counter for _, counter in made.values()), Counter[str]())
    content = BytesIO()
    attributes = {"numbers": list(kept), "rejected": dict(rejected)}
    with schema.create(content, len(kept), recipe.source.image_shape, **attributes) as file:
        identity = recipe.source.identity(original)
        file["p"][:], file["image_id"][:], file["dataset_id"][:] = identity
        for place, sample in enumerate(kept.values()):
            for name, array in sample._asdict().items():
                file[name][place] = array
        file.attrs["fingerprint"] = _fingerprint(file)
    with written_whole(part_path(partial, original)) as unfinished:
        unfinished.write_bytes(content.getbuffer())


def part_path(partial: Path, original: int) -> Path:
    """Return the path of the part with an original's samples."""
    return partial / f"part-{original:06d}.h5"


def write_parts(recipe: SampleRecipe, partial: Path, workers: int) -> None:
    """Write the missing or damaged parts, and show the progress."""
    n_originals = len(recipe.source)
    missing = [original for original in range(n_originals) if not _is_whole(part_path(partial, original))]
    parts = _made(recipe, partial, missing, workers)
    done = n_originals - len(missing)
    for _ in track(parts, description="generating", total=n_originals, completed=done):
        pass


def _is_whole(path: Path) -> bool:
    """Return whether an earlier run has left an intact part; a damaged part is deleted and will be made again."""
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r") as part:
            is_same = bool(part.attrs["fingerprint"] == _fingerprint(part))
    except Exception:  # a damaged file may raise anything
        is_same = False
    if not is_same:
        _log.warning("%s is damaged and will be made again", path)
        path.unlink()
    return is_same


def _fingerprint(part: h5py.File) -> str:
    return fingerprint_of(
        *map(str, map(part.attrs.get, _COUNTED)), *(part[name][:] for name in schema.CONTRACT)
    )


def _made(recipe: SampleRecipe, partial: Path, originals: list[int], workers: int) -> Iterator[int]:
    """Make the parts of `originals`, in this process if `workers` is 0, and yield the number of each finished part."""
    if workers == 0 or not originals:
        with one_thread():
            for original in originals:
                make_part(recipe, original, partial)
                yield original
        return
    with _pool(recipe, partial, min(workers, len(originals))) as pool:
        try:
            yield from pool.map(_make_part_in_worker, originals)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def one_thread() -> Iterator[None]:
    """Restrict torch to one thread, as in each process that makes samples."""
    # A different number of threads may sum in a different order and change the last bits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pool(recipe: SampleRecipe, partial: Path, workers: int) -> Executor:
    # A process forked after torch has started threads may hang; a fork server imports torch once for all workers.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        multiprocessing.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, context, _start_worker, (recipe, partial))


_work: tuple[SampleRecipe, Path]


def _start_worker(recipe: SampleRecipe, partial: Path) -> None:
    global _work
    _work = recipe, partial
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Otherwise the workers of a killed process would wait forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _make_part_in_worker(original: int) -> int:
    recipe, partial = _work
    make_part(recipe, original, partial)
    return original
