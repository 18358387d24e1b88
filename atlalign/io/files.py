"""Atomic files and folders, and locks that hold across processes and machines."""

import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from filelock import BaseFileLock, FileLock, SoftFileLease, Timeout

from atlalign.errors import InputError, system_refusal

IMAGE_FOLDER = ".zarr"
"""The endings of folders that are one image each, and count as files."""

_UNFINISHED = ".unfinished"
_ABANDONED_S = 24 * 3600  # nothing that is being written stays unchanged for a day
_LEASE_S = 60  # a machine that has not renewed its lease for this long has lost it
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary names and locks need some of them

_log = logging.getLogger(__name__)


class WriteError(InputError, OSError):
    """A file or folder cannot be written; the message says why, and `errno` gives programs the reason."""


class LockedError(InputError):
    """Another process holds a lock.

    Attributes:
        holder: A description of the process, for messages.
    """

    holder = "another process"


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name; a file written there replaces `path` at the end, and an error leaves nothing behind.

    The name keeps the ending of `path`, in lower case, because some writers choose the format by it. The data reaches
    the disk before the file gets its final name: after a crash of the machine, the file is either old or new, never
    empty. If the block writes no file, as in all but one of several training processes, nothing happens.

    Raises:
        WriteError: If the system refuses, for lack of space or permission.
    """
    with _temporary(path) as unfinished:
        yield unfinished
        if unfinished.exists():
            give_name(unfinished, path)


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write plain data atomically as JSON in UTF-8; lone surrogates, which UTF-8 cannot encode, are escaped.

    Raises:
        WriteError: As in `written_whole`.
    """
    text = json.dumps(content, ensure_ascii=False, indent=indent) + "\n"
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")


def give_name(unfinished: Path, path: Path) -> None:
    """Replace `path` with a finished file, after its content has reached the disk."""
    _sync(unfinished)
    unfinished.replace(path)
    _sync(path.parent)


@contextmanager
def folder_written_whole(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `path` at the end; errors leave nothing behind.

    Args:
        path: The folder.
        replace: Replace a file or folder that already has this name.

    Raises:
        WriteError: If the system refuses, for lack of space or permission, or because the name is taken.
    """
    with _temporary(path) as unfinished, _temporary(path) as former:
        unfinished.mkdir()
        yield unfinished
        for part in (*unfinished.rglob("*"), unfinished):
            _sync(part)
        if replace and (path.exists() or path.is_symlink()):
            path.rename(former)
        unfinished.rename(path)
        _sync(path.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which is deleted at the end with all its contents.

    Raises:
        WriteError: If the system refuses, for lack of space or permission.
    """
    with _temporary(path) as folder:
        folder.mkdir()
        yield folder


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a unique name beside `path`; a file or folder that still has this name at the end is deleted."""
    owner = f"{_machine()}-{os.getpid()}-{uuid4().hex[:8]}"
    unfinished = path.with_name(f"{_UNFINISHED}-{owner}-{path.name.lower()[-24:]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        yield unfinished
    except (
        WriteError
    ) as error:  # perhaps about a file in a temporary folder, whose name means nothing to a user
        refusal = WriteError(str(error).replace(str(unfinished), str(path)))
        refusal.errno = error.errno
        raise refusal from error
    except OSError as error:
        raise _refusal(path, error) from error
    finally:
        _remove(unfinished)


def _refusal(path: Path, error: OSError) -> WriteError:
    refusal = WriteError(system_refusal(error, path, action="written"))
    refusal.errno = error.errno
    return refusal


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if path.is_dir():
        with suppress(OSError):  # Windows and some network file systems cannot do this
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@cache
def _remove_leftovers(folder: Path) -> None:
    """Delete the temporary files and folders of killed processes, once per process."""
    for path in folder.glob(f"{_UNFINISHED}-*-*-*"):
        with suppress(OSError, ValueError):
            _, machine, process, _ = path.name.split("-", 3)
            ended = machine == _machine() and not _is_running(int(process))
            if ended or time.time() - path.stat().st_mtime > _ABANDONED_S:
                _remove(path)


def _is_running(process: int) -> bool:
    """Return whether a process on this machine is running, or may be."""
    if os.name == "posix":  # on other systems, this call would end the process
        with suppress(PermissionError):
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                return False
    return True


@cache
def _machine() -> str:
    """Return a short name for the machine or container in which this process's number is valid."""
    namespace = Path("/proc/self/ns/pid")  # containers may share the name of a machine
    number = namespace.stat().st_ino if namespace.exists() else 0
    return hashlib.sha256(f"{socket.gethostname()} {number}".encode(errors="replace")).hexdigest()[:8]


def file_name(text: str) -> str:
    """Return a name for a file or folder that is valid on any file system and not hidden.

    A long name is cut, and hexadecimal digits that depend on the whole name are appended.
    """
    name = storable(text)
    name = f"%2E{name[1:]}" if name.startswith(".") else name or "%"
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    start = name.encode()[: _LONGEST_NAME - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def storable(text: str) -> str:
    """Return a file's name as text that any file can store.

    A byte that is not valid text, as in names from other systems, becomes `%` and two hexadecimal digits.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_digits(letter) if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    return text


def _digits(surrogate: str) -> str:
    code = ord(surrogate)
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"%u{code:04X}"


def itk_name(path: Path) -> str:
    """Return a file's name for ITK, which would crash on a name that is not valid text.

    Raises:
        InputError: If the name is not valid text.
    """
    name = storable(str(path))
    if name != str(path):
        raise InputError(
            f"{name}: expected a name in valid text, found invalid bytes (shown after %): rename the file"
        )
    return name


# --- locks ------------------------------------------------------------------------------------------------------------


@contextmanager
def lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Keep out all other processes that request the same lock, on any machine.

    Two mechanisms work together. A lock of the operating system ends with its process, even if the process is killed. A
    lease file beside it names the holder, which renews it while running. The lease also holds where machines cannot see
    each other's locks, as on some network file systems. The lease of a process that died on another machine ends after
    a minute.

    Args:
        path: The file or folder to lock, which need not exist; the lock is `.NAME.lock` beside it.
        wait: Wait for the holder instead of raising an error.

    Raises:
        LockedError: If another process holds the lock.
        WriteError: If the folder of `path` cannot be written.
    """
    name = file_name(path.name)
    own, note = (path.with_name(f".{name}.{ending}") for ending in ("lock", "lease"))
    lease = SoftFileLease(note, lease_duration=_LEASE_S)
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            own.touch()  # if the system refuses this, FileLock would wait as for another holder
            _hold_system_lock(held, own, wait=wait)
            # The holder of a remaining lease is dead, or on a machine whose locks are not visible here.
            lease.acquire(timeout=-1 if wait else 1.25 * _LEASE_S)
        except Timeout as error:
            raise _locked(path, lease) from error
        except OSError as error:
            raise _refusal(path, error) from error
        held.callback(lease.release)
        yield


def _hold_system_lock(held: ExitStack, path: Path, *, wait: bool) -> None:
    """Hold a lock of the operating system until `held` ends, if the file system supports locks."""
    system = FileLock(path, fallback_to_soft=False)
    try:
        system.acquire(timeout=-1 if wait else 0)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        path.unlink(missing_ok=True)
    else:
        held.callback(_release, system)


def _release(system: BaseFileLock) -> None:
    # Delete the file before releasing the lock; afterwards it might belong to the next holder.
    with suppress(OSError):
        Path(system.lock_file).unlink()
    system.release()


def _locked(path: Path, lease: SoftFileLease) -> LockedError:
    owner = lease.owner
    holder = f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else LockedError.holder
    error = LockedError(f"{path}: {holder} is working on it: wait until it ends")
    error.holder = holder
    return error


# --- content ----------------------------------------------------------------------------------------------------------


def is_file(path: Path) -> bool:
    """Return whether the path is a file, or a folder that is one image; False for names that are too long."""
    try:
        return path.is_file() or (path.suffix.lower() == IMAGE_FOLDER and path.is_dir())
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether the path is a folder that is not one image; False for names that are too long."""
    try:
        return path.is_dir() and path.suffix.lower() != IMAGE_FOLDER
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
    """Return the SHA-256 of arrays, including their types and shapes, and of plain data."""
    total = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray):
            total.update(f"{value.dtype.str} {value.shape} ".encode())
            total.update(np.ascontiguousarray(value).data)
        else:
            total.update(f"{value!r} ".encode())
    return total.hexdigest()
