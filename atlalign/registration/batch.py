"""Batches of sections: each section's folder of results, and the table of all sections.

A section's folder is written atomically, so that a stopped batch resumes where it stopped. Several processes may share
a folder of results: each section is locked while one of them works on it.
"""

import errno
import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits

from atlalign import __version__
from atlalign.console import counted
from atlalign.errors import InputError
from atlalign.io.files import (
    LockedError,
    WriteError,
    file_name,
    is_file,
    is_folder,
    itk_name,
    lock,
    storable,
    written_whole,
)
from atlalign.pages import INDEX
from atlalign.registration import series
from atlalign.registration.batch_tables import (
    TABLE,
    VISUALIGN,
    check_tables,
    failed_row,
    table_row,
    write_tables,
)
from atlalign.registration.corrections import CORRECTIONS, corrected, read_correction
from atlalign.registration.displacement import prepare_itk
from atlalign.registration.earlier import earlier_record, settings_of
from atlalign.registration.failures import FAILURES, add_failure, remove_failure
from atlalign.registration.jobs import Job
from atlalign.registration.recipe import Recipe
from atlalign.registration.record import write_record
from atlalign.registration.section_folder import judged_record, register_into

LOG, CALLS = "errors.log", "calls.json"
"""Files beside the sections' folders: the log of tracebacks, and the calls of `atlalign register`."""

# These errors would affect every section; other system errors may affect one section alone.
_NOTHING_CAN_BE_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

_log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """The outcome of one section.

    Attributes:
        row: Its row of the table.
        is_new: Whether the section was registered by this call, not an earlier one.
        error: The reason why there is no result; empty if there is one.
    """

    row: dict[str, Any]
    is_new: bool = True
    error: str = ""


def register_batch(
    jobs: Sequence[Job], recipe: Recipe, out: str | Path, *, overwrite: bool = False, workers: int = 1
) -> Iterator[Outcome]:
    """Register sections and yield their outcomes in order; finished sections are not repeated.

    If a section cannot be registered, its outcome gives the reason, and the next section follows. Sections on which
    another process is working come last, when that process has finished or died. The tables list all sections in `out`,
    registered and failed, from any call.

    Args:
        jobs: The sections to register.
        recipe: The reference, the network and the options.
        out: The folder of results.
        overwrite: Replace results that were made with other settings.
        workers: The number of sections processed at a time, each with its share of torch's threads.

    Raises:
        InputError: If nothing can be written, as on a full disk.
    """
    out = Path(out)
    _check_writable(out)
    try:
        with _at_once(workers) as map_:
            first = map_(lambda job: _outcome(job, recipe, out, overwrite=overwrite), jobs)
            for job, outcome in _settled_first(zip(jobs, first, strict=True)):
                settled = outcome or _outcome(job, recipe, out, overwrite=overwrite, wait=True)
                assert settled is not None
                yield settled
    except BaseException:
        with suppress(WriteError):  # the first error says more
            write_tables(out)
        raise
    write_tables(out)


def _check_writable(out: Path) -> None:
    itk_name(out)
    check_tables(out)
    with written_whole(out / TABLE) as probe:
        probe.touch()
        probe.unlink()


def _settled_first(
    outcomes: Iterable[tuple[Job, Outcome | None]],
) -> Iterator[tuple[Job, Outcome | None]]:
    """Yield outcomes in order; from the first section that another process holds, wait until all were tried."""
    late: list[tuple[Job, Outcome | None]] = []
    for job, outcome in outcomes:
        if late or outcome is None:
            late.append((job, outcome))
        else:
            yield job, outcome
    if late:
        number = sum(outcome is None for _, outcome in late)
        _log.warning("waiting for %s that other processes are registering", counted(number, "section"))
    yield from late


@contextmanager
def _at_once(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a `map` that runs its calls in this many threads, which share torch's threads.

    Half of the work on a section uses only one thread, so this is faster than all threads on one section at a time.
    After an error, calls that have not started are cancelled, and running calls are awaited.
    """
    # scipy's BLAS would solve each small system of a triangulation with all threads, six times as slowly.
    with threadpool_limits(1, user_api="blas"):
        if workers == 1:
            yield map
            return
        prepare_itk()
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // workers))
        pool = ThreadPoolExecutor(workers)
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)


def _outcome(job: Job, recipe: Recipe, out: Path, *, overwrite: bool, wait: bool = False) -> Outcome | None:
    """Return the outcome of one section; None if another process is working on it and `wait` is false."""
    try:
        return _registered(job, recipe, out, overwrite=overwrite, wait=wait)
    except LockedError:
        return None
    except WriteError as error:
        if error.errno in _NOTHING_CAN_BE_WRITTEN:
            raise
        return _failed(out, job, str(error))
    except InputError as error:
        return _failed(out, job, str(error))
    except Exception as error:
        _write_traceback(out / LOG, job, error)
        kind = "MemoryError" if isinstance(error, MemoryError) else type(error).__name__
        return _failed(out, job, shorten(f"{kind}: {error} (unexpected; see {LOG})", 500))


def _registered(job: Job, recipe: Recipe, out: Path, *, overwrite: bool, wait: bool) -> Outcome:
    """Return the outcome of one section, from earlier results or a new registration; all its errors are raised."""
    _check_job(job)
    name, recipe = file_name(job.name), recipe.of(job)
    folder = out / name
    correction = read_correction(out, name)
    settings = settings_of(job, recipe, correction)
    job = corrected(job, correction)

    def found() -> Outcome | None:
        record = earlier_record(folder, settings, overwrite=overwrite)
        if record is None:
            return None
        judged = judged_record(record, job, recipe)
        if judged != record:
            write_record(folder, judged)
        return Outcome(table_row(out, name, judged), is_new=False)

    outcome = found()
    if outcome is None:
        with lock(folder, wait=wait):
            # Another process may have finished the section in the meantime.
            outcome = found() or Outcome(table_row(out, name, register_into(job, recipe, folder, settings)))
    remove_failure(out, name)
    return outcome


def _check_job(job: Job) -> None:
    if job.problem:
        raise InputError(job.problem)
    beside = (TABLE, VISUALIGN, LOG, CALLS, FAILURES, INDEX, CORRECTIONS, series.SERIES, series.SERIES_PLOT)
    if file_name(job.name) in beside:
        raise InputError(
            f"the folder of its results would be called {job.name}, which is reserved: rename the image"
        )
    if not is_file(job.path):
        what = "expected an image, found a folder of this name" if is_folder(job.path) else "no such file"
        raise InputError(f"{what} in {job.path.parent}")


def _failed(out: Path, job: Job, error: str) -> Outcome:
    image, name, error = storable(job.path.name), file_name(job.name), storable(error)
    error = error if error.startswith(image) else f"{shorten(image, 100)}: {error}"
    add_failure(out, name, job.path, error)
    return Outcome(failed_row(out, name, error, image), error=error)


def _write_traceback(path: Path, job: Job, error: Exception) -> None:
    """Append the traceback and the details of an error to the log; if that fails, the batch continues."""
    head = f"{datetime.now().astimezone().isoformat(timespec='seconds')} atlalign {__version__}: {job.path}"
    text = "\n".join([head, *traceback.format_exception(error), ""])
    with suppress(OSError), path.open("a", encoding="utf-8") as log:
        log.write(storable(text))
