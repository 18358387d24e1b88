"""Users' mistakes, reported as one clear sentence instead of a traceback."""

import errno
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from textwrap import shorten
from typing import Any

from atlalign.console import say
from atlalign.hydra_messages import hydra_sentence, near, unknown

MOST_PROCESSES = 1024
"""The largest number of processes that a setting may request: more than any machine has cores, few enough to start."""

LARGEST_BYTES = 2**33
"""The largest size of an array in memory: twice the Allen atlas at 10 µm, with 32 bits per voxel."""

# Errors with which the system refuses access, for lack of space, permission or a folder.
_SYSTEM_ERRORS = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EFBIG",
        "EDQUOT",
        "EROFS",
        "EACCES",
        "EPERM",
        "ENOTDIR",
        "EISDIR",
        "EEXIST",
        "ENAMETOOLONG",
        "EIO",
    )
    if hasattr(errno, name)
}

OF_FIELD, OF_NETWORK = 8, 256
"""Bytes per pixel: a displacement field has two float32; a network holds at least 64 channels at image size."""

# The name of Lightning's error stands for the class, because importing Lightning takes seconds.
_LIGHTNINGS = "MisconfigurationException"


class InputError(ValueError):
    """A user's mistake; the message says what was expected, what was found and where."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a `name` that is not in `known`, with near matches and all known names."""
    return InputError(unknown(kind, name, known))


def missing_file(name: str, path: Path) -> InputError:
    """Return the error for a setting whose file does not exist, with near matches in its folder."""
    there = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = near(path.name, there)
    return InputError(f"{name}: there is no file {path}{f'.{hint}' * bool(hint)}")


def check_numbers(given: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Check that each named value is a number ≥ its minimum, and a whole number where the minimum in `least` is an int.

    Raises:
        InputError: If a value is invalid; the first one is named.
    """
    for name, lowest in least.items():
        value, whole = given[name], isinstance(lowest, int)
        kind: Any = Integral if whole else Real  # these include NumPy's numbers, and also true and false
        if isinstance(value, bool) or not isinstance(value, kind) or value != value:
            raise InputError(f"{name}: expected a {'whole ' * whole}number, got {value}")
        if not value >= lowest:
            raise InputError(f"{name}: expected at least {lowest:g}, got {value}")


def check_finite_numbers(given: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Check the same as `check_numbers` does, and that each number is finite.

    Raises:
        InputError: If a value is invalid; the first one is named.
    """
    check_numbers(given, least)
    for name in least:
        if abs(given[name]) == math.inf:  # unlike math.isfinite, this accepts whole numbers of any size
            raise InputError(f"{name}: expected a finite number, got {given[name]}")


def check_range(values: Sequence[float], *, name: str, lowest: float, highest: float) -> None:
    """Raise an InputError unless `values` are two ascending numbers in [lowest, highest]."""
    given: Any = values
    number: Any = Real
    ends = list(given) if isinstance(given, Sequence) else []
    two = len(ends) == 2 and all(isinstance(end, number) for end in ends)
    if not two or not lowest <= ends[0] <= ends[1] <= highest:
        raise InputError(
            f"{name}: expected [from, to] with {lowest:g} ≤ from ≤ to ≤ {highest:g}, got {ends or values}"
        )


def check_probabilities(where: str, **probabilities: float) -> None:
    """Raise an InputError unless all values are numbers in [0, 1]."""
    number: Any = Real
    for name, p in probabilities.items():
        if not isinstance(p, number) or not 0 <= p <= 1:
            raise InputError(f"{where}.{name}: expected a probability in [0, 1], got {p}")


def checked_shape(
    name: str, shape: Any, least: int = 2, *, bytes_a_pixel: float = OF_FIELD
) -> tuple[int, int]:
    """Return a grid's (H, W) as a tuple, from any kind of list.

    Raises:
        InputError: If it is not two whole numbers, each at least `least`, or memory cannot hold the grid.
    """
    sizes = tuple(shape) if isinstance(shape, Iterable) and not isinstance(shape, str) else ()
    whole: Any = Integral
    if len(sizes) != 2 or not all(isinstance(size, whole) and size >= least for size in sizes):
        raise InputError(
            f"{name}: expected (H, W), whole numbers of at least {least} px, got {sizes or shape}"
        )
    check_size(name, sizes, bytes_a_pixel)
    return int(sizes[0]), int(sizes[1])


def check_size(name: str, shape: Iterable[int], bytes_each: float = 1) -> None:
    """Check that memory can hold an array of this shape, before it is allocated.

    Args:
        name: The file or setting that has this shape.
        shape: The sizes of its axes.
        bytes_each: The number of bytes per element, including all data that are derived from it.

    Raises:
        InputError: If it takes more than `LARGEST_BYTES`.
    """
    sizes = [int(size) for size in shape]
    if math.prod(sizes) > LARGEST_BYTES / bytes_each:
        raise InputError(
            f"{name}: expected at most {LARGEST_BYTES / 2**30:g} GiB in memory, found a size of "
            f"{shorten('×'.join(map(str, sizes)), 80)} with {bytes_each:g} bytes per element"
        )


def check_processes(name: str, number: int) -> None:
    """Check that a machine can start this many processes.

    Raises:
        InputError: If there are more than `MOST_PROCESSES`.
    """
    if number > MOST_PROCESSES:
        raise InputError(f"{name}: expected at most {MOST_PROCESSES} processes, got {number}")


def check_booleans(given: Mapping[str, Any], *names: str) -> None:
    """Check that each named value is true, false or null: any word would count as true.

    Raises:
        InputError: If a value is invalid; the first one is named.
    """
    for name in names:
        if not isinstance(given[name], bool | None):
            raise InputError(f"{name}: expected true or false, got {given[name]}")


@contextmanager
def mistakes_in(name: str) -> Iterator[None]:
    """Turn any error in the block into an `InputError` about the setting `name`, unless it already has a sentence."""
    try:
        yield
    except Exception as error:
        mistake = next((cause for cause in _chain(error) if isinstance(cause, InputError)), None)
        if mistake is not None:  # Hydra wraps errors of the objects that it builds
            raise mistake from None
        if sentence(error) and type(error).__name__ != _LIGHTNINGS:
            raise
        raise InputError(f"{name}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return `error` as one short line: the sentence of a user's mistake, or the name and message of another error."""
    return shorten(sentence(error) or f"{type(error).__name__}: {error}", 300)


def reason_of(error: BaseException) -> str:
    """Return the message of another package's error on one line, or the error's class if it has no message."""
    said = " ".join(str(error).split())
    return said or ("not enough memory" if isinstance(error, MemoryError) else type(error).__name__)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print a user's mistake as one sentence and exit with 1, or with 130 on Ctrl-C; other errors show their traceback.

    This is meant for scripts under `hydra.main`, whose own report hides the sentence in a traceback. With
    HYDRA_FULL_ERROR=1 in the environment, every error shows its traceback.
    """
    wanted = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise the error instead of printing it
    try:
        yield
    except Exception as error:
        message = _last_words(error) if wanted == "0" else None
        if message is None or isinstance(error, BrokenPipeError):
            raise
        say(f"error: {message}", error=True)
        sys.exit(1)
    except KeyboardInterrupt:
        if wanted != "0":
            raise
        say("interrupted", error=True)
        sys.exit(130)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = wanted


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """End the program silently when its output is no longer read, as in `… --help | head -1`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise, the interpreter would flush the remaining output on exit, and fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)


@contextmanager
def warnings_from_threads() -> Iterator[None]:
    """Show system errors in a library's thread, such as a logger's, as one line instead of a traceback."""
    former = threading.excepthook

    def show(failure: threading.ExceptHookArgs) -> None:
        refused = failure.exc_value
        if isinstance(refused, OSError) and refused.errno in _SYSTEM_ERRORS:
            say(f"warning: a log cannot be written: {system_refusal(refused)}", error=True)
        else:
            former(failure)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = former


def _last_words(error: Exception) -> str | None:
    """Return the sentence of an error that ends the program.

    A missing file or folder also counts as a user's mistake here, because Hydra raises this error if it cannot create a
    run's folder.
    """
    missing = next((cause for cause in _chain(error) if isinstance(cause, FileNotFoundError)), None)
    return sentence(error) or (system_refusal(missing) if missing else None)


def sentence(error: BaseException) -> str | None:
    """Return the sentence for the user about the first known mistake in the chain of causes, or None."""
    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, InputError):
            return str(cause)
    if (said := hydra_sentence(causes)) is not None:
        return said
    parts = [str(cause) for cause in causes if type(cause).__name__ == _LIGHTNINGS]
    parts = parts or [
        system_refusal(cause)
        for cause in causes
        if isinstance(cause, OSError) and cause.errno in _SYSTEM_ERRORS
    ]
    return "\n".join(dict.fromkeys(parts)) or None


def system_refusal(error: OSError, path: Path | None = None, *, action: str = "used") -> str:
    """Return a message that says which file or folder cannot be used, and why.

    Args:
        error: The system's error.
        path: The file or folder; None for the one that the error names.
        action: The action that failed, such as "written".
    """
    place = path or (Path(error.filename) if error.filename else None)
    reason = str(error.strerror or error)
    if isinstance(error, FileExistsError | NotADirectoryError) and place and not place.parent.is_dir():
        reason = f"{place.parent} is not a folder"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        reason += ": free some space there, or choose another place"
    return f"{place} cannot be {action}: {reason}" if place else reason


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
