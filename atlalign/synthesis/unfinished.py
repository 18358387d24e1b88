"""The folder of an unfinished data set: the command that writes it, and the errors that may interrupt it."""

import errno
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from atlalign.errors import InputError
from atlalign.io.files import LockedError, lock, written_whole
from atlalign.synthesis.assembly import figure_path
from atlalign.versions import OF_DATA_SETS, versions

if TYPE_CHECKING:
    from omegaconf import DictConfig


class UnfinishedError(InputError):
    """An error stopped the work; the same command resumes it."""


def check_free(out: Path) -> None:
    """Check that neither the data set nor its figure exists yet.

    Raises:
        InputError: If one of them exists, or the data set's name does not end in .h5 or .hdf5.
    """
    if out.suffix not in (".h5", ".hdf5"):
        raise InputError(f"out: expected a name that ends in .h5 or .hdf5, got '{out}'")
    if out.exists():
        _remove_leftovers(out)
        raise InputError(
            f"out: expected a new file, but {out} already exists: choose another name or delete it"
        )
    if figure_path(out).exists() and not _partial(out).exists():
        raise InputError(
            f"out: expected a new figure, but {figure_path(out)} already exists: choose another name or delete it"
        )


def _remove_leftovers(out: Path) -> None:
    """Delete the parts of a finished file that a run left behind because it was stopped just before its end."""
    with suppress(OSError, KeyError, ValueError), h5py.File(out, "r") as file:
        started = json.loads((_partial(out) / "request.json").read_text())
        if started["config"] == json.loads(file.attrs["config"]):
            shutil.rmtree(_partial(out), ignore_errors=True)


def _partial(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


@contextmanager
def only_run(out: Path) -> Iterator[None]:
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


def settings_of(config: "DictConfig") -> dict[str, Any]:
    """Return the settings that determine the file's bytes: configuration, seed and package versions."""
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.to_container(config, resolve=True)
    decisive = {k: v for k, v in settings.items() if k not in ("out", "workers", "atlas")}
    return {"config": decisive, "seed": config.seed, "versions": versions(OF_DATA_SETS)}


def open_partial(out: Path, request: dict[str, Any], files: list[Path]) -> Path:
    """Return the folder of parts: a new one, or that of an earlier run with the same settings and files.

    Raises:
        InputError: If the folder belongs to a run with other settings, or cannot be written.
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
            f"out: expected the settings of an earlier run in {note}, found a damaged file: delete {partial}"
        ) from error
    if started != json.loads(json.dumps(asked)):
        different = ", ".join(_differences(started, asked))
        raise InputError(
            f"out: {partial} holds the unfinished data set of another command ({different} differ): repeat that, "
            "choose another name, or delete the folder"
        )
    return partial


def _file_states(settings: Any) -> list[list[Any]]:
    """Return the name, size and time of each file that the settings name, or that lies in a folder they name."""
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


@contextmanager
def sentences_about(out: Path) -> Iterator[None]:
    """Turn errors of the operating system into sentences for the user."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full" if full else f"reading or writing failed ({error})"
        raise UnfinishedError(f"{out}: {what}: fix this and repeat the command to resume") from error
    except BrokenProcessPool as error:
        raise UnfinishedError(
            f"{out}: a worker was killed, perhaps for lack of memory: repeat the command to resume"
        ) from error
    except RuntimeError as error:
        # HDF5 cannot close a file that it could not write, and this second error would hide the first one.
        refusal = re.search(r"errno = \d+, error message = '(.*?)'", str(error))
        if refusal is None:
            raise
        raise UnfinishedError(
            f"{out}: writing failed ({refusal[1]}): fix this and repeat the command to resume"
        ) from error
