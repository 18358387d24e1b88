"""The tables of all sections in a folder of results: the table, VisuAlign's file, the series and the index page."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from atlalign.errors import InputError
from atlalign.io.files import lock, storable
from atlalign.io.tables import read_table, write_table
from atlalign.pages import INDEX, write_index
from atlalign.registration import series, visualign
from atlalign.registration.corrections import CORRECTION, read_review
from atlalign.registration.failures import FAILURES, read_failures
from atlalign.registration.quality import DERIVED, MEASURES, derived_measures
from atlalign.registration.record import RECORD, check_whole

TABLE, VISUALIGN = "registrations.csv", "visualign.json"
"""Files beside the sections' folders: the table and VisuAlign's file."""

COLUMNS = (
    "section",
    "flag",
    "reason",
    "position_um",
    *MEASURES,
    *DERIVED,
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

_HEAD_BYTES = 500
_OF_SERIES = ((series.SERIES, ",".join(series.COLUMNS[:3])), (series.SERIES_PLOT, "<svg"))


def check_tables(out: Path) -> None:
    """Raise an error if one of the user's own files, or a file saved by VisuAlign, would be overwritten."""
    for name, words in (
        (TABLE, ",".join(COLUMNS[:2])),
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


def write_tables(out: Path) -> None:
    """Write the tables of all sections in a folder of results; a lock keeps other processes from writing them too."""
    with lock(out / TABLE, wait=True):
        whole, damaged = _records(path.parent for path in sorted(out.glob(f"[!.]*/{RECORD}")))
        failures = read_failures(out).items()
        failed = [failed_row(out, name, failure["reason"], failure["file"]) for name, failure in failures]
        by_name = {row["section"]: row for row in (*damaged, *failed)}
        by_name |= {name: table_row(out, name, record) for name, record in whole.items()}
        rows = [by_name[name] for name in sorted(by_name)]
        if rows:
            write_table(out / TABLE, COLUMNS, (row.values() for row in rows))
        in_atlas = [record for record in whole.values() if "visualign" in record]
        if in_atlas:
            visualign.write_records(out / VISUALIGN, in_atlas)
        plot = series.write_series(out, whole)
        if rows:
            write_index(out, rows, plot)


def write_review(out: Path, name: str) -> None:
    """Write the user's verdict and note on a section into the table of all sections, if the table lists the section.

    Raises:
        InputError: If the table or the review cannot be read, or the table cannot be written.
    """
    with lock(out / TABLE, wait=True):
        if not (out / TABLE).is_file():
            return
        table = read_table(out / TABLE)
        review = {
            column: value or "" for column, value in _review(out, name).items() if column in table.names
        }
        rows = [
            [review.get(column, cell) for column, cell in zip(table.names, row, strict=True)]
            if section == name
            else row
            for section, row in zip(table.column("section"), table.rows, strict=True)
        ]
        if rows != table.rows:
            write_table(out / TABLE, table.header, rows)


def _records(folders: Iterable[Path]) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Return the records of complete results by folder name, and table rows for the damaged ones."""
    whole, damaged = {}, []
    for folder in folders:
        try:
            whole[folder.name] = check_whole(folder)
        except (InputError, OSError) as error:
            reason = f"damaged, must be registered again: {error}"
            damaged.append(failed_row(folder.parent, storable(folder.name), reason))
    return whole, damaged


def failed_row(out: Path, name: str, reason: str, file: str = "") -> dict[str, Any]:
    """Return the row of a section without results."""
    return table_row(out, name, {"flag": "fail", "reason": reason, "settings": {"file": file}})


def table_row(out: Path, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table row of a section, given its record."""
    x, y = record.get("pixel_um", ("", ""))
    settings = record.get("settings", {})
    known = {
        **derived_measures(record),
        **record,
        **_review(out, name),
        "section": name,
        "file": settings.get("file", ""),
        "pixel_um_x": x,
        "pixel_um_y": y,
        "points": len(settings.get(CORRECTION, {}).get("points", ())),
    }
    return {column: known.get(column, "") for column in COLUMNS}


def _review(out: Path, name: str) -> dict[str, Any]:
    """Return the user's verdict on a section, and the note."""
    try:
        return read_review(out, name)._asdict()
    except InputError as error:
        return {"note": str(error)}
