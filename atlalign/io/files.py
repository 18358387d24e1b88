"""Files that are there whole, or not at all."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from atlalign.errors import InputError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name, whose file replaces `path` at the end; nothing is left on errors.

    The name has the same ending in lower case, which not every writer knows otherwise.

    Where the block writes no file, as in all but one of several training processes, nothing happens.

    Raises:
        InputError: If the system does not let the file be written, for want of space or of rights.
    """
    unfinished = path.with_name(f".{os.getpid()}.{path.name.lower()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        if unfinished.exists():
            unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def is_file(path: Path) -> bool:
    """Return whether there is such a file; no name is too long to ask."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder; no name is too long to ask."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's content, or of all files in a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()


def fingerprint_of(*values: Any) -> str:
    """Return the SHA-256 of arrays, their types and shapes included, and of plain data."""
    total = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            total.update(f"{value.dtype.str} {value.shape} ".encode())
            total.update(np.ascontiguousarray(value).data)
        else:
            total.update(f"{value!r} ".encode())
    return total.hexdigest()
