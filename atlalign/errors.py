"""Errors that a user may cause: one clear sentence in place of a traceback."""

import errno
import math
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from numbers import Integral, Real
from textwrap import shorten
from typing import Any

from atlalign.console import say

# What brings Hydra's optional launchers.
_LAUNCHERS = {
    "hydra/launcher/joblib": "atlalign-torch[cluster]",
    "hydra/launcher/submitit_local": "atlalign-torch[cluster]",
    "hydra/launcher/submitit_slurm": "atlalign-torch[cluster]",
    "hydra/launcher/ray": "hydra-ray-launcher",
}

MOST_PROCESSES = 1024
"""How many processes a setting may ask for: more than any machine has cores, and few enough to start."""

LARGEST_BYTES = 2**33
"""The size of the largest array that a file may hold, in memory: twice the Allen atlas at 10 µm, 32 bits a voxel."""

# What the system refuses for want of space, rights or a folder, whatever the program does.
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
"""Bytes a pixel: a displacement field has two float32; a network holds 64 channels and more of its images' size."""

# Of Lightning, whose import takes seconds.
_LIGHTNINGS = "MisconfigurationException"


class InputError(ValueError):
    """Something that the user gave is wrong; the message says what was expected, what came and where."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a `name` that is none of `known`: near matches, and all that exist."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return InputError(f"unknown {kind} '{name}'.{hint} There are: {', '.join(names) or 'none'}")


def check_numbers(given: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Check that what is given by these names are numbers of at least so much, whole ones where `least` has an int.

    Raises:
        InputError: At the first that is not.
    """
    for name, lowest in least.items():
        value, whole = given[name], isinstance(lowest, int)
        kind: Any = Integral if whole else Real  # numpy's numbers are these, too, and so are true and false
        if isinstance(value, bool) or not isinstance(value, kind) or value != value:
            raise InputError(f"{name}: expected a {'whole ' * whole}number, got {value}")
        if not value >= lowest:
            raise InputError(f"{name}: expected at least {lowest:g}, got {value}")


def check_finite_numbers(given: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Check the same as `check_numbers`, and that the numbers are finite.

    Raises:
        InputError: At the first that is not.
    """
    check_numbers(given, least)
    for name in least:
        if abs(given[name]) == math.inf:  # which takes whole numbers of any size
            raise InputError(f"{name}: expected a finite number, got {given[name]}")


def checked_shape(
    name: str, shape: Any, least: int = 2, *, bytes_a_pixel: float = OF_FIELD
) -> tuple[int, int]:
    """Return a grid's (H, W) as a tuple, whatever kind of list it comes as.

    Raises:
        InputError: If it is not two whole numbers of pixels, each at least so many, or memory cannot hold the grid.
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
    """Check that an array of this shape can be held in memory, before anything allocates it.

    Args:
        name: What has this shape: a file, or a setting.
        shape: The sizes of its axes.
        bytes_each: How many bytes an element takes, with all that is made from it.

    Raises:
        InputError: If it takes more than `LARGEST_BYTES`.
    """
    sizes = [int(size) for size in shape]
    if math.prod(sizes) > LARGEST_BYTES / bytes_each:
        raise InputError(
            f"{name}: expected at most {LARGEST_BYTES / 2**30:g} GiB in memory, found a size of "
            f"{shorten('×'.join(map(str, sizes)), 80)} with {bytes_each:g} bytes each"
        )


def check_processes(name: str, number: int) -> None:
    """Check that a machine can start this many processes.

    Raises:
        InputError: If they are more than `MOST_PROCESSES`.
    """
    if number > MOST_PROCESSES:
        raise InputError(f"{name}: expected at most {MOST_PROCESSES} processes, got {number}")


def check_booleans(given: Mapping[str, Any], *names: str) -> None:
    """Check that what is given by these names is true, false or left open: any word would count as true.

    Raises:
        InputError: At the first that is not.
    """
    for name in names:
        if not isinstance(given[name], bool | None):
            raise InputError(f"{name}: expected true or false, got {given[name]}")


@contextmanager
def mistakes_in(name: str) -> Iterator[None]:
    """Turn any error inside into a sentence on what the user gave under `name`, unless it has one already."""
    try:
        yield
    except Exception as error:
        mistake = next((cause for cause in _chain(error) if isinstance(cause, InputError)), None)
        if mistake is not None:  # Hydra wraps what happens in the objects that it builds
            raise mistake from None
        if sentence(error) and type(error).__name__ != _LIGHTNINGS:
            raise
        raise InputError(f"{name}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return `error` in one short line: the sentence of a user's mistake, or what other errors are called and say."""
    return shorten(sentence(error) or f"{type(error).__name__}: {error}", 300)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Print a user's mistake as its sentence and exit with 1, with 130 on Ctrl-C; let all else show its traceback.

    For scripts under `hydra.main`, whose own report hides the sentence in a traceback. With HYDRA_FULL_ERROR=1 in
    the environment every error shows its traceback.
    """
    wanted = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print
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
    """End the program without a word where nobody reads its output any more, as in `… --help | head -1`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Or the interpreter would write what is left at its end, and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)


@contextmanager
def warnings_from_threads() -> Iterator[None]:
    """Show what the system refuses to a library's thread, such as a logger's, as one line and not as a traceback."""
    former = threading.excepthook

    def show(failure: threading.ExceptHookArgs) -> None:
        if getattr(failure.exc_value, "errno", None) in _SYSTEM_ERRORS:
            say(f"warning: a log cannot be written: {_of_system(failure.exc_value)}", error=True)
        else:
            former(failure)

    threading.excepthook = show
    try:
        yield
    finally:
        threading.excepthook = former


def _last_words(error: Exception) -> str | None:
    """Return the sentence of an error that ends the program.

    Here a missing file or folder is a mistake, too: Hydra fails so where it cannot create the folder of a run.
    """
    missing = next((cause for cause in _chain(error) if isinstance(cause, FileNotFoundError)), None)
    return sentence(error) or (_of_system(missing) if missing else None)


def sentence(error: BaseException) -> str | None:
    """Return what to tell the user, from the first known mistake in the chain of causes; None where there is none."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, InputError):
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.missing_cfg_file in _LAUNCHERS:
            group, name = cause.missing_cfg_file.rsplit("/", 1)
            return f"{group}={name} is not installed: pip install '{_LAUNCHERS[cause.missing_cfg_file]}'"
        if str(cause).startswith("Config group override must be a string or a list"):
            return (
                "a group: expected the name of one of its options, such as augment=none or logger=none, got null or a "
                "number; --help lists them, and callbacks.NAME=null switches one callback off"
            )
    parts = [str(c).strip() for c in causes if isinstance(c, HydraException | OmegaConfBaseException)]
    for cause in causes:
        if isinstance(cause, OmegaConfBaseException) and isinstance(cause.parent_node, DictConfig):
            known = [str(key) for key in cause.parent_node]
            if str(cause.key) not in known:
                parts.append(str(unknown_name("key", str(cause.key), known)))
    parts = parts or [str(cause) for cause in causes if type(cause).__name__ == _LIGHTNINGS]
    parts = parts or [
        _of_system(cause) for cause in causes if getattr(cause, "errno", None) in _SYSTEM_ERRORS
    ]
    return "\n".join(dict.fromkeys(parts)) or None


def _of_system(error: Any) -> str:
    """Return what the system refused, and where."""
    place = f"{error.filename}: " if error.filename else ""
    is_full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    return f"{place}{error.strerror}: {'make room there, or ' * is_full}name another place"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
