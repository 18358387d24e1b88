"""The form of the h5 files: the required arrays, the checks of a file, and the creation of a new file."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np
import platformdirs
from numpy.typing import NDArray

from atlalign.errors import LARGEST_BYTES, InputError, check_finite_numbers, check_size, reason_of
from atlalign.io.h5 import find_dataset

log = logging.getLogger(__name__)

ATLAS_EXTENT_UM = 13200.0
SMALLEST_SIDE_PX = 32
_BYTES_A_CHUNK = 64 * 2**20
_SAMPLES_DOUBTED = 16
_LEAST_DOUBTED_PX = 0.5
_LARGEST_ID = 2**63 - 1
_LARGEST_COMPRESSION = 1100  # gzip makes constant data about 1000 times smaller
_UNREADABLE = (
    OSError,
    RuntimeError,
    KeyError,
    TypeError,
    ValueError,
    UnicodeError,
)  # errors that h5py raises on damaged files
_CHECKS = 2  # increase it when checks are added, so that files are checked again


class ArraySpec(NamedTuple):
    """One array of the file: its shape and its dtype."""

    per_sample: str
    dtype: str


CONTRACT = {
    "img": ArraySpec("(n, H, W)", "uint8"),
    "deltas_xy": ArraySpec("(n, H, W, 2)", "float16"),
    "inv_deltas_xy": ArraySpec("(n, H, W, 2)", "float16"),
    "p": ArraySpec("(n,)", "integer"),
    "image_id": ArraySpec("(n,)", "integer"),
    "dataset_id": ArraySpec("(n,)", "integer"),
}


class FileSummary(NamedTuple):
    """The size of a valid file."""

    n_samples: int
    image_shape: tuple[int, int]


def structure_problems(path: str | Path) -> list[str]:
    """Return the problems of the file's arrays: presence, shape, dtype and length. It is fast for any file size."""
    opened = _open_problem(Path(path))
    if opened:
        return [opened]
    try:
        with h5py.File(path, "r") as file:
            arrays, problems = _arrays(file)
            problems += [f"{name}: not part of the contract" for name in file if name not in CONTRACT]
            problems += [p for name, array in arrays.items() for p in _array_problems(name, array)]
            return problems + _agreement_problems(arrays)
    except _UNREADABLE as error:
        return [f"cannot be read: {reason_of(error)}"]


def extent_of(path: str | Path) -> float:
    """Return the extent of a file's atlas in µm: that of the Allen atlas, unless the file gives another.

    Raises:
        InputError: If the given extent is not a number above 0.
    """
    with h5py.File(path, "r") as file:
        extent = _attribute(file, "extent_um", ATLAS_EXTENT_UM)
    return _checked_extent(f"{path}: attribute extent_um", extent)


def content_problems(path: str | Path, extent_um: float) -> Iterator[str]:
    """Yield the problems of the values in a file with a valid structure; this reads the whole file.

    Args:
        path: The h5 file.
        extent_um: Positions `p` must lie in [0, extent_um].
    """
    with h5py.File(path, "r") as file:
        for name in ("img", "deltas_xy", "inv_deltas_xy"):
            unreadable, not_finite = _bad_samples(file[name])
            if unreadable:
                yield f"{name}: cannot be read, the file is damaged in {_listing('sample', unreadable)}"
            if not_finite:
                yield f"{name}: expected finite values, found NaN or infinity in {_listing('sample', not_finite)}"
        for name in ("image_id", "dataset_id"):
            ids = np.asarray(file[name])
            if (ids > _LARGEST_ID).any():
                yield f"{name}: expected at most {_LARGEST_ID}, found {ids.max()}"
        positions = np.asarray(file["p"])
        outside = np.flatnonzero((positions < 0) | (positions > extent_um))
        if outside.size:
            values = ", ".join(str(positions[i]) for i in outside[:5])
            yield (
                f"p: expected positions in [0, {extent_um:g}] µm, found {values} in "
                f"{_listing('sample', outside.tolist())}"
            )


def atlas_of(path: Path) -> str:
    """Return the name of the atlas that the file's sections come from; empty if the file does not name it."""
    with h5py.File(path, "r") as file:
        named = (_attribute(file, name) for name in ("origin", "atlas"))
        return next((name for name in named if isinstance(name, str) and name), "")


def doubts(path: str | Path) -> list[str]:
    """Return doubtful contents of a valid file; the fields of up to 16 samples are examined.

    Inverse fields are judged by the median over the pixels that stay inside the image, because the inverse fields of
    the Keras package are wrong only at the border.
    """
    with h5py.File(path, "r") as file:
        images = np.unique(file["image_id"])
        chosen = np.unique(np.linspace(0, len(file["p"]) - 1, _SAMPLES_DOUBTED).round().astype(int)).tolist()
        found: dict[str, list[int]] = {}
        for sample in chosen:
            for doubt in _doubts_about_fields(file["deltas_xy"][sample], file["inv_deltas_xy"][sample]):
                found.setdefault(doubt, []).append(sample)
    alone = [f"image_id: all samples are of image {images[0]}, so none can be held out for validation"]
    return alone * (len(images) == 1) + [f"{doubt} in {_listing('sample', s)}" for doubt, s in found.items()]


def summarize(path: str | Path) -> FileSummary:
    """Return the number of samples and the image shape of a file with a valid structure."""
    with h5py.File(path, "r") as file:
        n, height, width = file["img"].shape
        return FileSummary(int(n), (int(height), int(width)))


def validate(path: str | Path, extent_um: float | None = None) -> FileSummary:
    """Check structure and contents, even of a file that has passed before, and log a warning for doubtful contents.

    Args:
        path: The h5 file.
        extent_um: Positions `p` must lie in [0, extent_um]; None stands for the extent of the file's atlas.

    Raises:
        InputError: If the file is invalid; the message lists every problem, one per line.
    """
    extent_um = _extent_in(path, extent_um)
    if problems := list(_read_errors_as_problems(path, extent_um)):
        raise invalid_file(path, problems)
    for doubt in doubts(path):
        log.warning("%s: %s", path, doubt)
    return summarize(path)


def check_once(path: str | Path, extent_um: float | None = None) -> FileSummary:
    """Check like `validate`, but skip the contents of a file that has passed before and has the same size and time."""
    extent_um = _extent_in(path, extent_um)
    marker = _passed_marker(Path(path), extent_um)
    if not marker.exists():
        validate(path, extent_um)
        _leave(marker, path)
    return summarize(path)


def _extent_in(path: str | Path, extent_um: float | None) -> float:
    """Return the extent of positions after checking the file's structure."""
    if problems := structure_problems(path):
        raise invalid_file(path, problems)
    return extent_of(path) if extent_um is None else _checked_extent("extent_um", extent_um)


def invalid_file(path: str | Path, problems: list[str]) -> InputError:
    """Return the error that lists the problems of a file."""
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return InputError(f"{path} is not a valid atlalign data set:\n{lines}")


def create(
    path: str | Path | IO[bytes], n_samples: int, image_shape: tuple[int, int], **attributes: Any
) -> h5py.File:
    """Create a file with the required arrays, which the caller fills; `attributes` record its origin.

    One sample is one chunk, so random access reads nothing else. Samples are byte-shuffled and compressed with gzip at
    its fastest (benchmarks/storage.py). Equal samples give equal bytes. With LZF they would not, because it starts from
    an uninitialised hash table (`INIT_HTAB 0` in h5py's lzfP.h).

    Raises:
        InputError: If the images are too small for a valid file; no file is created.
    """
    height, width = image_shape
    if min(height, width) < SMALLEST_SIDE_PX:
        raise InputError(
            f"data.image_shape: expected sides of at least {SMALLEST_SIDE_PX} px, got {height}×{width}"
        )
    file = h5py.File(path, "x")
    shapes = {"img": (height, width), "deltas_xy": (height, width, 2), "inv_deltas_xy": (height, width, 2)}
    for name, spec in CONTRACT.items():
        shape = shapes.get(name, ())
        dtype = "int64" if spec.dtype == "integer" else spec.dtype
        options = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 1, "shuffle": True}
        file.create_dataset(name, (n_samples, *shape), dtype, **(options if shape and n_samples else {}))
    for name, value in attributes.items():
        file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)
    return file


def _open_problem(path: Path) -> str | None:
    if not path.exists():
        return "no such file"
    if path.is_dir():
        return "expected an h5 file, found a folder"
    if path.stat().st_size == 0:
        return "the file is empty"
    try:
        h5py.File(path, "r").close()
    except OSError as error:
        if "truncated" in str(error):
            return f"expected a whole file, found it truncated to {path.stat().st_size} bytes: copy or write it again"
        if "signature not found" in str(error):
            return "not an h5 file"
        return f"cannot be opened: {reason_of(error)}"
    return None


def _arrays(file: h5py.File) -> tuple[dict[str, h5py.Dataset], list[str]]:
    """Return the required arrays whose values are stored in the file, and the problems of the others."""
    arrays: dict[str, h5py.Dataset] = {}
    problems: list[str] = []
    for name, spec in CONTRACT.items():
        try:
            found = find_dataset(file, name)
        except InputError as error:
            problems.append(f"{name}: {error}")
            continue
        if found is not None:
            arrays[name] = found
        elif name in file:
            problems.append(f"{name}: expected an array, found a group or a link that leads nowhere")
        else:
            problems.append(f"{name}: missing, expected {spec.per_sample} {spec.dtype}")
    return arrays, problems


def _array_problems(name: str, array: h5py.Dataset) -> list[str]:
    spec = CONTRACT[name]
    problems = []
    n_dimensions = spec.per_sample.count(",") + (spec.per_sample != "(n,)")
    last_wrong = spec.per_sample.endswith("2)") and array.shape[-1:] != (2,)
    if array.ndim != n_dimensions or last_wrong:
        problems.append(f"{name}: expected shape {spec.per_sample}, found {array.shape}")
    integer = spec.dtype == "integer" and np.issubdtype(array.dtype, np.integer)
    if not integer and array.dtype != spec.dtype:
        problems.append(f"{name}: expected dtype {spec.dtype}, found {array.dtype}")
    return [*problems, *_size_problems(name, array)]


def _size_problems(name: str, array: h5py.Dataset) -> Iterator[str]:
    """Yield a problem if an array is implausibly large, either per sample or compared with its bytes in the file."""
    in_memory = array.shape[1:] if array.ndim > 1 else array.shape
    try:
        check_size(name, in_memory, array.dtype.itemsize)
    except InputError as error:
        yield str(error)
    declared, stored = array.size * array.dtype.itemsize, array.id.get_storage_size()
    if declared > max(LARGEST_BYTES, _LARGEST_COMPRESSION * stored):
        yield f"{name}: expected {declared:,} bytes of values, as its shape {array.shape} says, found {stored:,}"


def _agreement_problems(arrays: dict[str, h5py.Dataset]) -> list[str]:
    problems = []
    lengths = {name: int(array.shape[0]) for name, array in arrays.items() if array.ndim}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{name} {length}" for name, length in lengths.items())
        problems.append(f"lengths differ: {listing}")
    elif lengths and not any(lengths.values()):
        problems.append("the file holds no samples")
    sizes = {name: tuple(arrays[name].shape[1:3]) for name in arrays if arrays[name].ndim >= 3}
    if len(set(sizes.values())) > 1:
        listing = ", ".join(f"{name} {'×'.join(map(str, size))}" for name, size in sizes.items())
        problems.append(f"image sizes differ: {listing}")
    elif sizes and min(next(iter(sizes.values()))) < SMALLEST_SIDE_PX:
        size = "×".join(map(str, next(iter(sizes.values()))))
        problems.append(f"expected images of at least {SMALLEST_SIDE_PX} px per side, found {size}")
    return problems


def _read_errors_as_problems(path: str | Path, extent_um: float) -> Iterator[str]:
    try:
        yield from content_problems(path, extent_um)
    except _UNREADABLE as error:
        yield f"cannot be read to its end: {reason_of(error)}"


def _attribute(file: h5py.File, name: str, default: Any = None) -> Any:
    """Return an attribute of the file; one that cannot be read is None."""
    try:
        return file.attrs.get(name, default)
    except _UNREADABLE:
        return None


def _checked_extent(name: str, value: Any) -> float:
    check_finite_numbers({name: value}, {name: 0.0})
    if not value:
        raise InputError(f"{name}: expected a number above 0, got {value}")
    return float(value)


def _bad_samples(array: h5py.Dataset) -> tuple[list[int], list[int]]:
    """Return the samples that cannot be read, and the samples with NaN or infinity."""
    step = max(1, _BYTES_A_CHUNK // (prod(array.shape[1:]) * array.dtype.itemsize))
    unreadable: list[int] = []
    not_finite: list[int] = []
    for start in range(0, array.shape[0], step):
        try:
            not_finite += _not_finite(array, start, start + step)
        except OSError:
            for sample in range(start, min(start + step, array.shape[0])):
                try:
                    not_finite += _not_finite(array, sample, sample + 1)
                except OSError:
                    unreadable.append(sample)
    return unreadable, not_finite


def _not_finite(array: h5py.Dataset, start: int, stop: int) -> list[int]:
    values = array[start:stop]
    if array.dtype.kind != "f":
        return []
    finite = np.isfinite(values).reshape(len(values), -1).all(1)
    return [start + int(place) for place in np.flatnonzero(~finite)]


def _doubts_about_fields(deltas_xy: NDArray[np.float16], inv_deltas_xy: NDArray[np.float16]) -> Iterator[str]:
    import torch

    from atlalign.geometry import compose, stays_inside

    dvf, inverse = (
        torch.from_numpy(field).float().permute(2, 0, 1)[None] for field in (deltas_xy, inv_deltas_xy)
    )
    for name, field in (("deltas_xy", dvf), ("inv_deltas_xy", inverse)):
        if stays_inside(field).float().mean() < 0.5:
            yield f"{name}: most displacements point outside the image"
    inside = stays_inside(dvf)[0]
    if inside.any():
        left, whole = (
            float(field[0].square().sum(0).sqrt()[inside].median()) for field in (compose(inverse, dvf), dvf)
        )
        if left > max(_LEAST_DOUBTED_PX, whole / 2):
            yield "inv_deltas_xy: expected the inverse of deltas_xy, found another field"


def _listing(noun: str, numbers: list[int], at_most: int = 10) -> str:
    shown = ", ".join(map(str, numbers[:at_most]))
    more = f" and {len(numbers) - at_most} more" if len(numbers) > at_most else ""
    return f"{noun}{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _passed_marker(path: Path, extent_um: float) -> Path:
    status = path.stat()
    key = f"{_CHECKS}|{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{extent_um:g}"
    name = hashlib.sha256(key.encode()).hexdigest()
    return Path(platformdirs.user_cache_dir("atlalign")) / "checked" / name


def _leave(marker: Path, path: str | Path) -> None:
    # If the marker cannot be written, the file is checked again next time.
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(os.fspath(path))
    except OSError:
        return
