"""Generated data sets: originals under known random deformations, written as a valid h5 file that says how.

Each sample's numbers come from the seed and its own number alone, whatever process makes it. The samples of an original
are one part, written whole into `<out>.partial`; when all parts are there they are copied into one file, which then
appears under its name. So the same command goes on after a crash and ends with the same bytes. One run at a time writes
there: it holds a lock, which ends with its process.
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
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from atlalign.arguments import build, check_kinds_of
from atlalign.atlas.atlas import PHANTOM, Atlas
from atlalign.data import schema
from atlalign.errors import InputError, check_numbers, check_processes, check_size
from atlalign.geometry import compose, invert, jacobian_determinant, stays_inside, warp
from atlalign.io.files import LockedError, fingerprint_of, give_name, lock, written_whole
from atlalign.synthesis.deformations import Deformation, RejectedError
from atlalign.synthesis.sources import Source, Start, warp_on_slide
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
_BYTES_A_PIXEL = 9  # of a stored sample: its image and two fields
_LARGEST_RESIDUAL_PX = 0.1
_SAMPLES_SHOWN = 6


class UnfinishedError(InputError):
    """Something stopped the work; the same command goes on from there."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides the samples; each process has a copy.

    Attributes:
        source: The originals.
        deformation: Draws the fields.
        per_original: The number of samples of each original.
        max_trials: A sample is left out when that many draws were rejected.
        max_corrupted_pixels: A draw is rejected when as many pixels of either field fold.
        max_difference: A draw is rejected when the new image, warped back, differs from the registered one by more in
            the mean: interpolating twice blurs, the more the smaller and the rougher the image is.
        seed: Decides all that is random.
    """

    source: Source
    deformation: Deformation
    per_original: int
    max_trials: int
    max_corrupted_pixels: int
    max_difference: float
    seed: int


class Sample(NamedTuple):
    """One sample as it is stored: uint8 (H, W) and two float16 (H, W, 2)."""

    img: NDArray[np.uint8]
    deltas_xy: NDArray[np.float16]
    inv_deltas_xy: NDArray[np.float16]


def generate(config: "DictConfig") -> Path:
    """Write the data set that `conf/generate.yaml` describes, a figure of samples beside it, and return its path.

    Raises:
        InputError: If something in the configuration or the input is wrong, then nothing is left behind; or if another
            run is writing there.
        UnfinishedError: If the disk is full or a process was killed; the same command goes on.
    """
    _check_values(config)
    out = Path(config.out).expanduser()
    _check_free(out)
    request = _request(config)
    recipe = _build_recipe(config)
    check_size("per_original", (recipe.per_original, *recipe.source.image_shape), _BYTES_A_PIXEL)
    atlas = _atlas_to_show(config)
    with _only_run(out):
        _check_free(out)  # another run may have ended in the meantime
        counts = _make(recipe, out, request, config.workers, atlas)
    _print_report(counts, out)
    return out


def _check_values(config: "DictConfig") -> None:
    """Check what is no argument of anything that is built."""
    check_kinds_of(config, _KINDS)
    check_numbers(config, _LEAST)
    check_processes("workers", config.workers)


def _make(recipe: Recipe, out: Path, request: dict[str, Any], workers: int, atlas: Atlas | None) -> "Counts":
    """Write what is missing of the data set, and give it its name."""
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


# --- one sample -------------------------------------------------------------------------------------------------------


def sample_generator(seed: int, number: int) -> torch.Generator:
    """Return the generator of one sample, independent of all others."""
    state = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def make_sample(recipe: Recipe, original: int, number: int) -> tuple[Sample | None, Counter[str]]:
    """Return the first draw that is kept, None if there is none, and how many were rejected for which reason."""
    generator = sample_generator(recipe.seed, number)
    start = recipe.source.start(original, generator)
    rejected: Counter[str] = Counter()
    for _ in range(recipe.max_trials):
        try:
            inverse = recipe.deformation(start.drawn_on, start.before, generator)
            limits = recipe.max_corrupted_pixels, recipe.max_difference
            return deform(start, inverse, *limits), rejected
        except RejectedError as reason:
            rejected[str(reason)] += 1
    return None, rejected


def deform(
    start: Start, inverse: Tensor, max_corrupted_pixels: int = 500, max_difference: float = 0.01
) -> Sample:
    """Return the registered image R seen through `inverse`, `img(q) = R(q + inverse(q))`, with both fields.

    R is `start.moving` warped by `start.dvf`, and is not itself interpolated: `img` is the moving image warped once by
    `compose(start.dvf, inverse)`. Both image and `deltas_xy` come from the inverse field as it is stored.

    Raises:
        RejectedError: If a field is not finite or folds in `max_corrupted_pixels` pixels; if a composition of the two
            is further than 0.1 px from the identity where both points are inside and neither field folds near; or if
            `img` warped by `deltas_xy` differs from R by more than `max_difference` in the mean.
    """
    inverse = inverse.half().float()
    inverse_folds = _folds(inverse, max_corrupted_pixels)
    dvf = invert(inverse, tolerance_px=0.01).half().float()
    dvf_folds = _folds(dvf, max_corrupted_pixels)
    if (
        _largest_residual(dvf, inverse, dvf_folds, inverse_folds) > _LARGEST_RESIDUAL_PX
        or _largest_residual(inverse, dvf, inverse_folds, dvf_folds) > _LARGEST_RESIDUAL_PX
    ):
        raise RejectedError("the fields do not invert each other")
    image = (warp_on_slide(start.moving, compose(start.dvf, inverse)) * 255).round()
    if _difference(warp(image / 255, dvf), start, dvf) > max_difference:
        raise RejectedError("the registered image does not come back")
    return Sample(image[0, 0].byte().numpy(), _channels_last(dvf), _channels_last(inverse))


@lru_cache(maxsize=2)
def registered_image(start: Start) -> Tensor:
    """Return the registered image (1, 1, H, W) that samples of this start are made of; do not change it in place."""
    # Samples of an annotated original share its starts, and tensors are told apart by identity.
    return warp_on_slide(start.moving, start.dvf)


def _folds(dvf: Tensor, max_corrupted_pixels: int) -> Tensor:
    """Return where (B, H, W) a field folds that may."""
    # Not-a-number is both of its own extremes; to ask each pixel takes eight times as long.
    if not bool(torch.stack(dvf.aminmax()).isfinite().all()):
        raise RejectedError("a field is not finite")
    folds = jacobian_determinant(dvf) <= 0
    if int(folds.sum()) >= max_corrupted_pixels:
        raise RejectedError("a field folds")
    return folds


def _largest_residual(outer: Tensor, inner: Tensor, outer_folds: Tensor, inner_folds: Tensor) -> float:
    """Return the largest |compose(outer, inner)| in pixels over points that stay inside, away from folds."""
    counted = stays_inside(inner)
    if bool(outer_folds.any()) or bool(inner_folds.any()):
        counted &= ~(_near(inner_folds) | _landing_near(outer_folds, inner))
    squared = compose(outer, inner).square().sum(dim=1) * counted
    return float(squared.amax().sqrt())


def _near(mask: Tensor, radius_px: int = 2) -> Tensor:
    return F.max_pool2d(mask[:, None].float(), 2 * radius_px + 1, stride=1, padding=radius_px)[:, 0] > 0


def _landing_near(mask: Tensor, dvf: Tensor) -> Tensor:
    """Return where (B, H, W) q + dvf(q) lies near the mask (B, H, W)."""
    return warp(_near(mask)[:, None].byte(), dvf, mode="nearest")[:, 0] > 0


def _difference(image: Tensor, start: Start, dvf: Tensor) -> float:
    """Return the mean |image − registered image| where both are seen."""
    seen = stays_inside(dvf) & stays_inside(start.dvf)
    difference = (image - registered_image(start)).abs()[:, 0]
    return float((difference * seen).sum() / seen.sum().clamp(min=1))


def _channels_last(dvf: Tensor) -> NDArray[np.float16]:
    array: NDArray[np.float16] = dvf[0].permute(1, 2, 0).half().numpy()
    return array


# --- parts ------------------------------------------------------------------------------------------------------------


def make_part(recipe: Recipe, original: int, partial: Path) -> None:
    """Write all samples of an original as one small data set; it appears complete or not at all."""
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
    """Make the parts of `originals`, in this process if `workers` is 0, and yield each when it is there."""
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
    """Let torch compute on one thread, as each process that makes samples does."""
    # Another number of threads may add in another order, and so change the last bits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _pool(recipe: Recipe, partial: Path, workers: int) -> Executor:
    # A process forked after torch has run threads may hang; a fork server imports torch once for all workers.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        multiprocessing.set_forkserver_preload([__name__])
    return ProcessPoolExecutor(workers, context, _start_worker, (recipe, partial))


_work: tuple[Recipe, Path]


def _start_worker(recipe: Recipe, partial: Path) -> None:
    global _work
    _work = recipe, partial
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Without this, the workers of a killed process would wait for work for ever.
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
    """How many samples were wanted and kept, and how many draws were rejected for which reason."""

    wanted: int
    kept: int
    rejected: Counter[str]

    @property
    def left_out(self) -> int:
        """The samples of which no draw was kept."""
        return self.wanted - self.kept


def _publish(
    recipe: Recipe, partial: Path, out: Path, request: dict[str, Any], atlas: Atlas | None
) -> Counts:
    """Assemble the file and its figure, and give both their names."""
    paths = [_part(partial, original) for original in range(len(recipe.source))]
    counts = _count(paths, len(paths) * recipe.per_original)
    if not counts.kept:
        reasons = ", ".join(f"{reason} ({n})" for reason, n in counts.rejected.most_common())
        raise InputError(f"no sample was kept, every draw was rejected: {reasons}")
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
    """Copy the parts into one file, compressed as they are, and return the samples' numbers."""
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
    """Draw some samples beside planes of the atlas; without one, beside the images that come back."""
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
    """Return the atlas that sections are shown beside; None for those of an atlas, and instead of the phantom."""
    target = str(config.atlas._target_)
    if "atlas" in config.source or target.endswith(f".{PHANTOM}_atlas"):
        return None
    atlas: Atlas = build(config.atlas, with_annotation=False)
    return atlas


def _plane(atlas: Atlas, position_um: int) -> Tensor:
    """Return the plane (1, 1, H, W) at a position, the last one where the atlas ends before."""
    return atlas.section(min(float(position_um), atlas.extent_um))[None]


# --- what may go wrong ------------------------------------------------------------------------------------------------


def _check_free(out: Path) -> None:
    if out.suffix not in (".h5", ".hdf5"):
        raise InputError(f"out: expected a name that ends in .h5, got '{out}'")
    if out.exists():
        _remove_leftovers(out)
        raise InputError(f"out: {out} exists already: name another file, or remove it")
    if figure_path(out).exists() and not _partial(out).exists():
        raise InputError(
            f"out: the figure {figure_path(out)} exists already: name another file, or remove it"
        )


def _remove_leftovers(out: Path) -> None:
    """Remove the parts of a finished file, which a run leaves that is stopped right before its end."""
    with suppress(OSError, KeyError, ValueError), h5py.File(out, "r") as file:
        started = json.loads((_partial(out) / "request.json").read_text())
        if started["config"] == json.loads(file.attrs["config"]):
            shutil.rmtree(_partial(out), ignore_errors=True)


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Keep other runs, of any machine that sees the folder, from writing the same data set.

    Raises:
        InputError: If another run does, or the folder cannot be written.
    """
    try:
        with lock(out):
            yield
    except LockedError as error:
        raise InputError(
            f"out: another run, {error.holder}, is writing {out}: wait for it, or name another file"
        ) from error


def _request(config: "DictConfig") -> dict[str, Any]:
    """Return what decides the file's bytes: the configuration, seed and versions."""
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(config, resolve=True)
    decisive = {k: v for k, v in settings.items() if k not in ("out", "workers", "atlas")}
    return {"config": decisive, "seed": config.seed, "versions": versions(OF_DATA_SETS)}


def _open_partial(out: Path, request: dict[str, Any], files: list[Path]) -> Path:
    """Return the folder of parts: a new one, or that of the same request and of the same files.

    Raises:
        InputError: If there is one of another request, or it cannot be written.
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
        with suppress(OSError):  # the folder is kept that others wrote to
            partial.rmdir()
        raise InputError(f"out: {error}") from error
    except ValueError as error:
        raise InputError(
            f"out: expected {note} as an earlier run wrote it, found it damaged: remove {partial}"
        ) from error
    if started != json.loads(json.dumps(asked)):
        different = ", ".join(_differences(started, asked))
        raise InputError(
            f"out: {partial} is the unfinished file of another command ({different} differ): give that command again, "
            "name another file, or remove the folder"
        )
    return partial


def _file_states(settings: Any) -> list[list[Any]]:
    """Return name, size and time of every file that the configuration names, and of those in folders it names."""
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
    # HDF5 does not end well on a full disk, so that it is better asked before.
    if shutil.disk_usage(folder).free < 1.05 * size + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _sentences_about(out: Path) -> Iterator[None]:
    """Turn what the machine may do to us into sentences."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full" if full else f"reading or writing failed ({error})"
        raise UnfinishedError(f"{out}: {what}; when that is mended, the same command goes on") from error
    except BrokenProcessPool as error:
        raise UnfinishedError(
            f"{out}: a worker was killed, perhaps for its memory; the same command goes on"
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
