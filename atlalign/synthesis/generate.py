"""Generated data sets: originals under known random deformations, written as an h5 file that records its settings.

A sample depends only on the seed and its own number, not on the process that makes it. The samples of an original are
one part, written whole into `<out>.partial`. Finished parts are copied into one file, which then appears under its
name. So the same command resumes after a crash and gives the same bytes. A lock, which ends with its process, keeps
other runs from writing the same file.
"""

import errno
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from io import BytesIO
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from atlalign.arguments import build, check_kinds_of
from atlalign.atlas.atlas import PHANTOM, Atlas
from atlalign.data import schema
from atlalign.errors import InputError, check_numbers, check_processes, check_size
from atlalign.geometry import warp
from atlalign.io.files import LockedError, fingerprint_of, give_name, lock, written_whole
from atlalign.synthesis.samples import Recipe, make_sample, registered_image, sample_generator
from atlalign.versions import OF_DATA_SETS, versions

if TYPE_CHECKING:
    from omegaconf import DictConfig

_log = logging.getLogger(__name__)

_LEAST = {
    "per_original": 1,
    "max_trials": 1,
    "max_corrupted_pixels": 1,
    "max_difference": 0.0,
    "seed": 0,
    "workers": 0,
}
_KINDS: Mapping[str, Any] = {
    "out": str,
    "per_original": int,
    "max_trials": int,
    "max_corrupted_pixels": int,
    "max_difference": float,
    "seed": int,
    "workers": int,
}
_COUNTED = ("numbers", "rejected")  # attributes of a part
_BYTES_A_PIXEL = 9  # per stored sample: its image and two fields
_SAMPLES_SHOWN = 6


class UnfinishedError(InputError):
    """Something stopped the work; the same command resumes it."""


def generate(config: "DictConfig") -> Path:
    """Write the data set of `conf/generate.yaml` and a figure of samples beside it, and return the file's path.

    Raises:
        InputError: If the configuration or the input is wrong, in which case no file is left, or if another run is
            writing the file.
        UnfinishedError: If the disk is full or a process was killed; the same command resumes the work.
    """
    _check_values(config)
    out = Path(config.out).expanduser()
    _check_free(out)
    request = _request(config)
    recipe = _build_recipe(config)
    check_size("per_original", (recipe.per_original, *recipe.source.image_shape), _BYTES_A_PIXEL)
    atlas = _atlas_to_show(config)
    with _only_run(out):
        _check_free(out)  # another run may have finished in the meantime
        counts = _make(recipe, out, request, config.workers, atlas)
    _print_report(counts, out)
    return out


def _check_values(config: "DictConfig") -> None:
    """Check the settings that are not arguments of any target."""
    check_kinds_of(config, _KINDS)
    check_numbers(config, _LEAST)
    check_processes("workers", config.workers)


def _make(recipe: Recipe, out: Path, request: dict[str, Any], workers: int, atlas: Atlas | None) -> "Counts":
    """Write the missing parts of the data set, and give the file its name."""
    partial = _open_partial(out, request, recipe.source.files)
    try:
        with _sentences_about(out):
            _write_parts(recipe, partial, workers)
            return _publish(recipe, partial, out, request, atlas)
    except Exception as error:
        mistaken = isinstance(error, InputError) and not isinstance(error, UnfinishedError)
        if mistaken or not any(partial.glob("part-*.h5")):
            shutil.rmtree(partial, ignore_errors=True)
        raise


# --- parts ------------------------------------------------------------------------------------------------------------


def make_part(recipe: Recipe, original: int, partial: Path) -> None:
    """Write all samples of an original as one small data set, which appears complete or not at all."""
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
    with written_whole(_part(partial, original)) as unfinished:
        unfinished.write_bytes(content.getbuffer())


def _part(partial: Path, original: int) -> Path:
    return partial / f"part-{original:06d}.h5"


def _write_parts(recipe: Recipe, partial: Path, workers: int) -> None:
    n_originals = len(recipe.source)
    missing = [original for original in range(n_originals) if not _is_whole(_part(partial, original))]
    parts = _made(recipe, partial, missing, workers)
    done = n_originals - len(missing)
    for _ in track(parts, description="generating", total=n_originals, completed=done):
        pass


def _is_whole(path: Path) -> bool:
    """Return whether a part of an earlier run is there and can be used; a damaged one is removed, to be made again."""
    if not path.exists():
        return False
    try:
        with h5py.File(path, "r") as part:
            is_same = bool(part.attrs["fingerprint"] == _fingerprint(part))
    except Exception:  # a damaged file may raise anything
        is_same = False
    if not is_same:
        _log.warning("%s is damaged, and is made again", path)
        path.unlink()
    return is_same


def _fingerprint(part: h5py.File) -> str:
    return fingerprint_of(
        *map(str, map(part.attrs.get, _COUNTED)), *(part[name][:] for name in schema.CONTRACT)
    )


def _made(recipe: Recipe, partial: Path, originals: list[int], workers: int) -> Iterator[int]:
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
    # Another number of threads may sum in another order and change the last bits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pool(recipe: Recipe, partial: Path, workers: int) -> Executor:
    # A process forked after torch has started threads may hang; a fork server imports torch once for all workers.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        multiprocessing.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, context, _start_worker, (recipe, partial))


_work: tuple[Recipe, Path]


def _start_worker(recipe: Recipe, partial: Path) -> None:
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


# --- from parts to the file -------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """The number of samples wanted and kept, and of rejected draws by reason."""

    wanted: int
    kept: int
    rejected: Counter[str]

    @property
    def left_out(self) -> int:
        """The number of samples without an accepted draw."""
        return self.wanted - self.kept


def _publish(
    recipe: Recipe, partial: Path, out: Path, request: dict[str, Any], atlas: Atlas | None
) -> Counts:
    """Assemble the file and its figure, and give both their final names."""
    paths = [_part(partial, original) for original in range(len(recipe.source))]
    counts = _count(paths, len(paths) * recipe.per_original)
    if not counts.kept:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in counts.rejected.most_common())
        raise InputError(
            f"deformation: expected fields that pass the checks, but every draw was rejected: {reasons}"
        )
    _require_space(partial, sum(path.stat().st_size for path in paths))
    origin = {
        **request,
        "extent_um": float(recipe.source.extent_um),
        "origin": recipe.source.origin,
        "wanted": counts.wanted,
        "left_out": counts.left_out,
        "rejected": dict(counts.rejected),
    }
    assembled, figure = partial / "assembled.h5", partial / "samples.png"
    assembled.unlink(missing_ok=True)
    numbers = _assemble(paths, assembled, counts.kept, recipe.source.image_shape, origin)
    _draw_samples(recipe, assembled, numbers, figure, atlas)
    give_name(figure, figure_path(out))
    give_name(assembled, out)
    shutil.rmtree(partial, ignore_errors=True)
    return counts


def figure_path(out: Path) -> Path:
    """Return where the figure of samples lies."""
    return out.with_suffix(".png")


def _count(paths: list[Path], wanted: int) -> Counts:
    kept, rejected = 0, Counter[str]()
    for path in paths:
        with h5py.File(path, "r") as part:
            kept += len(part["p"])
            rejected.update(json.loads(part.attrs["rejected"]))
    return Counts(wanted, kept, Counter(dict(sorted(rejected.items()))))


def _assemble(
    paths: list[Path], assembled: Path, n: int, image_shape: tuple[int, int], origin: dict[str, Any]
) -> list[int]:
    """Copy the compressed parts into one file, and return the samples' numbers."""
    numbers: list[int] = []
    with schema.create(assembled, n, image_shape, **origin) as file:
        for path in paths:
            with h5py.File(path, "r") as part:
                _append(part, file, len(numbers))
                numbers += json.loads(part.attrs["numbers"])
    return numbers


def _append(part: h5py.File, file: h5py.File, start: int) -> None:
    n = len(part["p"])
    for name in schema.CONTRACT:
        if part[name].ndim == 1:
            file[name][start : start + n] = part[name][:]
            continue
        rest = (0,) * (part[name].ndim - 1)
        for place in range(n):
            mask, chunk = part[name].id.read_direct_chunk((place, *rest))
            file[name].id.write_direct_chunk((start + place, *rest), chunk, mask)


def _draw_samples(
    recipe: Recipe, assembled: Path, numbers: list[int], figure: Path, atlas: Atlas | None
) -> None:
    """Draw some samples beside planes of the atlas; without an atlas, beside their registered images."""
    from atlalign.plots import Panel, registration_figure

    panels = []
    with h5py.File(assembled, "r") as file:
        for place in np.unique(np.linspace(0, len(numbers) - 1, _SAMPLES_SHOWN).round().astype(int)):
            number = numbers[place]
            start = recipe.source.start(number // recipe.per_original, sample_generator(recipe.seed, number))
            image = torch.from_numpy(file["img"][place]).float()[None, None] / 255
            dvf = torch.from_numpy(file["deltas_xy"][place]).float().permute(2, 0, 1)[None]
            title = f"image {file['image_id'][place]}\np = {file['p'][place]} µm"
            reference = registered_image(start) if atlas is None else _plane(atlas, file["p"][place])
            panels.append(Panel(reference[0, 0], image[0, 0], warp(image, dvf)[0, 0], dvf[0], title=title))
    registration_figure(panels).savefig(figure, format="png")


def _atlas_to_show(config: "DictConfig") -> Atlas | None:
    """Return the atlas for the figure; None if the source is an atlas, or the atlas is the phantom."""
    target = str(config.atlas._target_)
    if "atlas" in config.source or target.endswith(f".{PHANTOM}_atlas"):
        return None
    atlas: Atlas = build(config.atlas, with_annotation=False)
    return atlas


def _plane(atlas: Atlas, position_um: int) -> Tensor:
    """Return the plane (1, 1, H, W) at a position, or the last one if the atlas ends before it."""
    return atlas.section(min(float(position_um), atlas.extent_um))[None]


# --- errors -----------------------------------------------------------------------------------------------------------


def _check_free(out: Path) -> None:
    if out.suffix not in (".h5", ".hdf5"):
        raise InputError(f"out: expected a name that ends in .h5 or .hdf5, got '{out}'")
    if out.exists():
        _remove_leftovers(out)
        raise InputError(
            f"out: expected a new file, but {out} exists already: choose another name or remove it"
        )
    if figure_path(out).exists() and not _partial(out).exists():
        raise InputError(
            f"out: expected a new figure, but {figure_path(out)} exists already: choose another name or remove it"
        )


def _remove_leftovers(out: Path) -> None:
    """Remove the parts of a finished file, which a run that was stopped just before its end left behind."""
    with suppress(OSError, KeyError, ValueError), h5py.File(out, "r") as file:
        started = json.loads((_partial(out) / "request.json").read_text())
        if started["config"] == json.loads(file.attrs["config"]):
            shutil.rmtree(_partial(out), ignore_errors=True)


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Keep other runs, on any machine that sees the folder, from writing the same data set.

    Raises:
        InputError: If another run is writing it, or the folder cannot be written.
    """
    try:
        with lock(out):
            yield
    except LockedError as error:
        raise InputError(
            f"out: another run, {error.holder}, is writing {out}: wait for it, or choose another name"
        ) from error


def _request(config: "DictConfig") -> dict[str, Any]:
    """Return the settings that decide the file's bytes: configuration, seed and versions."""
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(config, resolve=True)
    decisive = {k: v for k, v in settings.items() if k not in ("out", "workers", "atlas")}
    return {"config": decisive, "seed": config.seed, "versions": versions(OF_DATA_SETS)}


def _open_partial(out: Path, request: dict[str, Any], files: list[Path]) -> Path:
    """Return the folder of parts: a new one, or the existing one of the same request and files.

    Raises:
        InputError: If the folder belongs to another request, or cannot be written.
    """
    partial = _partial(out)
    note = partial / "request.json"
    asked = {**request, "files": _file_states([request["config"], *map(str, files)])}
    try:
        if not note.exists():
            with written_whole(note) as unfinished:
                unfinished.write_text(json.dumps(asked))
        started = json.loads(note.read_text())
    except OSError as error:
        with suppress(OSError):  # a folder that others wrote to is not empty and stays
            partial.rmdir()
        raise InputError(f"out: {error}") from error
    except ValueError as error:
        raise InputError(
            f"out: expected the note of an earlier run, found {note} damaged: remove {partial}"
        ) from error
    if started != json.loads(json.dumps(asked)):
        different = ", ".join(_differences(started, asked))
        raise InputError(
            f"out: {partial} is the unfinished file of another command ({different} differ): repeat that command, "
            "choose another name, or remove the folder"
        )
    return partial


def _file_states(settings: Any) -> list[list[Any]]:
    """Return name, size and time of every file that the settings name, including the files in named folders."""
    if isinstance(settings, dict | list):
        values = settings.values() if isinstance(settings, dict) else settings
        return [state for value in values for state in _file_states(value)]
    path = Path(settings).expanduser() if isinstance(settings, str) else None
    if path is None or not path.exists():
        return []
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _differences(one: Any, other: Any, name: str = "") -> list[str]:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [name.removeprefix("config.")]
    keys = [*one, *(key for key in other if key not in one)]
    return [d for k in keys for d in _differences(one.get(k), other.get(k), f"{name}.{k}" if name else k)]


def _require_space(folder: Path, size: int) -> None:
    # HDF5 fails badly on a full disk, so check the space first.
    if shutil.disk_usage(folder).free < 1.05 * size + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _sentences_about(out: Path) -> Iterator[None]:
    """Turn failures of the machine into sentences."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full" if full else f"reading or writing failed ({error})"
        raise UnfinishedError(f"{out}: {what}: fix this and repeat the command to resume") from error
    except BrokenProcessPool as error:
        raise UnfinishedError(
            f"{out}: a worker was killed, perhaps for its memory: repeat the command to resume"
        ) from error


def _build_recipe(config: "DictConfig") -> Recipe:
    from hydra.errors import InstantiationException

    try:
        parts = {name: build(config[name]) for name in ("source", "deformation")}
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    names = ("per_original", "max_trials", "max_corrupted_pixels", "max_difference", "seed")
    return Recipe(**parts, **{name: config[name] for name in names})


def _print_report(counts: Counts, out: Path) -> None:
    table = Table(title=str(out), title_justify="left")
    table.add_column("")
    table.add_column("number", justify="right")
    table.add_row("samples wanted", str(counts.wanted))
    table.add_row("samples kept", str(counts.kept))
    table.add_row("samples left out", str(counts.left_out))
    for reason, number in counts.rejected.items():
        table.add_row(f"draws rejected: {reason}", str(number))
    console = Console()
    console.print(table)
    console.print(f"samples are shown in [bold]{figure_path(out)}[/bold]")
