"""Batches of sections: each section's folder of results, and the table of all sections.

A section's folder is written atomically, so that a stopped batch resumes where it stopped. Several processes may share
a folder of results: each section is locked while one of them works on it.
"""

import errno
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from threadpoolctl import threadpool_limits

from atlalign import __version__
from atlalign.atlas.planes import Anchoring
from atlalign.declarations import flag
from atlalign.errors import InputError
from atlalign.io.files import (
    LockedError,
    WriteError,
    file_name,
    folder_written_whole,
    is_file,
    is_folder,
    itk_name,
    lock,
    storable,
    written_whole,
)
from atlalign.io.tables import write_table
from atlalign.pages import INDEX, write_index
from atlalign.registration import series, visualign
from atlalign.registration.corrections import (
    CORRECTION,
    CORRECTIONS,
    Correction,
    changes,
    corrected,
    read_correction,
    read_review,
)
from atlalign.registration.displacement import prepare_itk
from atlalign.registration.failures import FAILURES, add_failure, read_failures, remove_failure
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options
from atlalign.registration.points import WITHOUT_POINTS
from atlalign.registration.quality import Limit, Quality, judge
from atlalign.registration.recipe import Recipe
from atlalign.registration.record import FORWARD, INVERSE, RECORD, check_whole, read_record, write_record
from atlalign.registration.register import register_section
from atlalign.registration.section_files import SECTION_FILES, write_section_files

TABLE, VISUALIGN, LOG, CALLS = "registrations.csv", "visualign.json", "errors.log", "calls.json"
"""Files beside the sections' folders: the table, VisuAlign's file, the log of tracebacks, and the
calls of `atlalign register`."""

_RESULTS = {FORWARD, INVERSE, RECORD, WITHOUT_POINTS, *SECTION_FILES}
_WORTHLESS = {".DS_Store", "Thumbs.db"}  # files of file managers

_FLAGS = (*(entry.name for entry in fields(Options)), "image_shape")
_SAID = {
    **{name: flag(name) for name in _FLAGS},
    "file": "image",
    "bytes": "image",
    "modified_ns": "image",
    "position_um": "position",
    "model_sha256": "model",
    "reference_sha256": "reference",
}
"""Names of settings as the user knows them."""

# These errors would affect every section; other system errors may affect one section alone.
_NOTHING_CAN_BE_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

_log = logging.getLogger(__name__)

_HEAD_BYTES = 500
_OF_SERIES = ((series.SERIES, ",".join(series.COLUMNS[:3])), (series.SERIES_PLOT, "<svg"))


class Outcome(NamedTuple):
    """The outcome of one section.

    Attributes:
        row: Its row of the table.
        is_new: Whether the section was registered by this call, not an earlier one.
        error: Why there is no result, or nothing.
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
            _write_tables(out)
        raise
    _write_tables(out)


def _check_writable(out: Path) -> None:
    itk_name(out)
    _check_tables(out)
    with written_whole(out / TABLE) as probe:
        probe.touch()
        probe.unlink()


def _check_tables(out: Path) -> None:
    """Raise an error if a file of the user, or one saved by VisuAlign, would be replaced."""
    for name, words in (
        (TABLE, ",".join(_COLUMNS[:2])),
        (VISUALIGN, '"aligner": "atlalign '),
        (FAILURES, '"aligner": "atlalign '),
        (INDEX, 'content="atlalign"'),
        *_OF_SERIES,
    ):
        path = out / name
        if path.exists() and not (path.is_file() and words.encode() in path.read_bytes()[:_HEAD_BYTES]):
            raise InputError(
                f"{path} was not written by `atlalign register`, or has changed since: move it away, or choose "
                "another --out"
            )


def _settled_first(
    outcomes: Iterable[tuple[Job, Outcome | None]],
) -> Iterator[tuple[Job, Outcome | None]]:
    """Yield outcomes in order, but wait at the first section that another process works on until all were tried."""
    late: list[tuple[Job, Outcome | None]] = []
    for job, outcome in outcomes:
        if late or outcome is None:
            late.append((job, outcome))
        else:
            yield job, outcome
    if late:
        number = sum(outcome is None for _, outcome in late)
        _log.warning("%d sections are being registered by other processes: waiting for these", number)
    yield from late


@contextmanager
def _at_once(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yield a `map` that runs its calls in this many threads, which share torch's threads.

    Half of a section's work uses one thread only, so this is faster than all threads on one section at a time. After an
    error, calls that have not started are cancelled, and running calls are awaited.
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
    settings = _settings(job, recipe) | _correction_settings(job, correction)
    job = corrected(job, correction)

    def found() -> Outcome | None:
        record = _former_record(folder, settings, overwrite=overwrite)
        if record is None:
            return None
        judged = _judged(record, recipe.limits)
        if judged != record:
            write_record(folder, judged)
        return Outcome(_row(out, name, judged), is_new=False)

    outcome = found()
    if outcome is None:
        with lock(folder, wait=wait):
            # Another process may have finished it meanwhile.
            outcome = found() or Outcome(_row(out, name, _register_into(job, recipe, folder, settings)))
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
    return Outcome(_failed_row(out, name, error, image), error=error)


def _write_traceback(path: Path, job: Job, error: Exception) -> None:
    """Append the traceback and the details of an error to the log; if that fails, the batch continues."""
    head = f"{datetime.now().astimezone().isoformat(timespec='seconds')} atlalign {__version__}: {job.path}"
    text = "\n".join([head, *traceback.format_exception(error), ""])
    with suppress(OSError), path.open("a", encoding="utf-8") as log:
        log.write(storable(text))


def _settings(job: Job, recipe: Recipe) -> dict[str, Any]:
    """Return, by name and as plain data, all settings that determine the result; the limits only judge it."""
    status = job.path.stat()
    of_image = {"file": job.path.name, "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
    where = {
        "position_um": job.position_um,
        "anchoring": None if job.anchoring is None else job.anchoring.to_json(),
    }
    settings = {**of_image, **where, **asdict(recipe.options), **recipe.origin}
    del settings["limits"]
    return json.loads(storable(json.dumps(settings, ensure_ascii=False)))  # type: ignore[no-any-return]


def _correction_settings(job: Job, correction: Correction) -> dict[str, Any]:
    """Return the corrections as one setting; empty if they do not change the result."""
    found = changes(job, correction)
    return {} if found is None else {CORRECTION: found}


def _former_record(folder: Path, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Return the record of an identical earlier registration; None if there is no intact one."""
    if not folder.exists():
        return None
    former = _former_settings(folder)
    # An option that did not exist at the time had its default, which is None.
    changed = {name for name in former | dict(settings) if former.get(name) != settings.get(name)}
    if former and not changed:
        with suppress(InputError):
            record = check_whole(folder)
            if record.keys() >= set(_MEASURES):  # an earlier version had fewer measures
                return record
    # A correction is made on purpose, so --overwrite is not needed as well.
    if overwrite or not former or changed <= {CORRECTION}:
        _check_replaceable(folder)
        return None
    names = sorted({_SAID.get(name, name) for name in changed})
    raise InputError(
        f"{folder} holds results made with another {', '.join(names)}: choose another --out, or --overwrite"
    )


def _former_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of the results in a folder; empty if their record is damaged.

    Raises:
        InputError: If the folder contains other files.
    """
    if not (folder / RECORD).exists():
        _check_replaceable(folder)
    try:
        settings = read_record(folder).get("settings")
    except InputError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _check_replaceable(folder: Path) -> None:
    """Raise an error if more than earlier results would be lost."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
    foreign = found - (_RESULTS if RECORD in found else set()) - _WORTHLESS
    if foreign:
        names = shorten(", ".join(sorted(foreign)), 80)
        raise InputError(f"{folder} holds more than results ({names}): move it away, or choose another --out")


def _register_into(job: Job, recipe: Recipe, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Register one image, write its folder of results, and return its record."""
    start = time.perf_counter()
    found = register_section(job, recipe)
    transform, placement = found.registered.transform, found.placement
    measured = {
        "position_um": job.position_um,
        **_measures(found.registered.quality),
        "pixel_um": placement.pixel_um,
        "pixel_size_from": placement.pixel_size_from,
        "placed_by": placement.placed_by,
        "turn": round(placement.turn, 2),
        "background": found.section.background,
        "settings": dict(settings),
        "version": __version__,
    }
    record = _judged(measured, recipe.limits)
    with folder_written_whole(folder, replace=True) as unfinished:
        write_section_files(unfinished, found, recipe.references.ontology, job.ignored)
        if transform.plane is not None:
            record["visualign"] = visualign.visualign_slice(
                transform,
                storable(job.path.name),
                job.number,
                anchoring=job.anchoring,
                tissue=found.reference.tissue.numpy(),
                labels=found.reference.labels,
            )
            if recipe.network.module is None and job.anchoring is not None:
                own = Anchoring(job.anchoring.vectors, transform.section.shape)
                record["visualign"]["markers"] = job.points.as_markers(
                    own
                )  # exact, because the markers are the whole registration
        if found.registered.without_points is not None:
            found.registered.without_points.forward.write(unfinished / WITHOUT_POINTS)
        record["seconds"] = round(time.perf_counter() - start, 2)
        transform.save(unfinished, record)
        if folder.exists():
            _check_replaceable(folder)  # the folder may have changed since the first check
    return record


def _measures(quality: Quality) -> dict[str, Any]:
    """Return the measures as plain data; None replaces NaN, which JSON cannot store."""
    return {name: None if value != value else value for name, value in asdict(quality).items()}


def _judged(record: Mapping[str, Any], limits: Mapping[str, Limit]) -> dict[str, Any]:
    """Return a record with the flag of its measures under these limits, and the reason."""
    measures: dict[str, Any] = {
        name: math.nan if record[name] is None else record[name] for name in _MEASURES
    }
    flag, reason = judge(Quality(**measures), limits)
    bounds = {name: list(limit) for name, limit in limits.items()}
    return {**record, "flag": flag, "reason": reason, "limits": bounds}


# --- tables -----------------------------------------------------------------------------------------------------------

_MEASURES = tuple(entry.name for entry in fields(Quality))
_COLUMNS = (
    "section",
    "flag",
    "reason",
    "position_um",
    *_MEASURES,
    "pixel_um_x",
    "pixel_um_y",
    "pixel_size_from",
    "placed_by",
    "turn",
    "background",
    "points",
    "verdict",
    "note",
    "seconds",
    "file",
)


def _write_tables(out: Path) -> None:
    """Write the tables of all sections in a folder of results, while no other process writes them."""
    with lock(out / TABLE, wait=True):
        whole, damaged = _records(path.parent for path in sorted(out.glob(f"[!.]*/{RECORD}")))
        failures = read_failures(out).items()
        failed = [_failed_row(out, name, failure["reason"], failure["file"]) for name, failure in failures]
        by_name = {row["section"]: row for row in (*damaged, *failed)}
        by_name |= {name: _row(out, name, record) for name, record in whole.items()}
        rows = [by_name[name] for name in sorted(by_name)]
        if rows:
            write_table(out / TABLE, _COLUMNS, (row.values() for row in rows))
        slices = [record["visualign"] for record in whole.values() if "visualign" in record]
        if slices:
            visualign.write_visualign(out / VISUALIGN, _numbered(slices))
        plot = series.write_series(out, whole)
        if rows:
            write_index(out, rows, plot)


def _records(folders: Iterable[Path]) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the records of complete results by folder name, and table rows for the damaged ones."""
    whole, damaged = {}, []
    for folder in folders:
        try:
            whole[folder.name] = check_whole(folder)
        except (InputError, OSError) as error:
            reason = f"damaged, must be registered again: {error}"
            damaged.append(_failed_row(folder.parent, storable(folder.name), reason))
    return whole, damaged


def _numbered(slices: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return VisuAlign's entries by number; duplicate numbers are replaced, since calls without a list count from 1."""
    if len({entry["nr"] for entry in slices}) == len(slices):
        return sorted(slices, key=lambda entry: int(entry["nr"]))
    return [{**entry, "nr": number} for number, entry in enumerate(slices, start=1)]


def _failed_row(out: Path, name: str, reason: str, file: str = "") -> dict[str, Any]:
    return _row(out, name, {"flag": "fail", "reason": reason, "settings": {"file": file}})


def _row(out: Path, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    x, y = record.get("pixel_um", ("", ""))
    settings = record.get("settings", {})
    known = {
        **record,
        **_review(out, name),
        "section": name,
        "file": settings.get("file", ""),
        "pixel_um_x": x,
        "pixel_um_y": y,
        "points": len(settings.get(CORRECTION, {}).get("points", ())),
    }
    return {column: known.get(column, "") for column in _COLUMNS}


def _review(out: Path, name: str) -> dict[str, Any]:
    """Return the user's verdict on a section, and the note."""
    try:
        return read_review(out, name)._asdict()
    except InputError as error:
        return {"note": str(error)}
