"""The files of located sections: anchorings for QuickNII, VisuAlign and `atlalign register`, and a table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atlalign import __version__
from atlalign.atlas.targets import Target
from atlalign.io.files import storable, write_json
from atlalign.io.tables import write_table
from atlalign.localization.located import Located

COLUMNS = (
    "section",
    "brain",
    "number",
    "position_um",
    "position_error_um",
    "tilt_ml_deg",
    "tilt_ml_error_deg",
    "tilt_dv_deg",
    "tilt_dv_error_deg",
    "hemisphere",
    "likeness",
    "strain",
    "other_position_um",
    "flag",
    "reason",
)


def write_located(path: str | Path, located: Sequence[Located], target: Target) -> Path:
    """Write the anchorings as QuickNII's JSON and the table of all sections beside it; return the table's path.

    Sections that fit no plane appear only in the table.

    Args:
        path: The JSON file.
        located: The sections.
        target: The atlas in which they were located; its voxels are the unit of the anchorings.
    """
    path = Path(path)
    slices = [_slice(found, path.parent, target) for found in located if found.anchoring is not None]
    series = {
        "name": "",
        **target.to_json(),
        "aligner": f"locate of atlalign {__version__}",
        "slices": slices,
    }
    write_json(path, series, indent=1)
    table = path.with_suffix(".csv")
    write_table(table, COLUMNS, (row(found).values() for found in located))
    return table


def row(found: Located) -> dict[str, Any]:
    """Return a section's row of the table."""
    return {
        "section": storable(found.job.path.name),
        "brain": storable(found.brain),
        "number": found.number,
        "position_um": _rounded(found.position_um, 0),
        "position_error_um": _rounded(found.error_um, 0),
        "tilt_ml_deg": _rounded(found.tilt_deg[0], 2),
        "tilt_ml_error_deg": _rounded(found.error_deg[0], 2),
        "tilt_dv_deg": _rounded(found.tilt_deg[1], 2),
        "tilt_dv_error_deg": _rounded(found.error_deg[1], 2),
        "hemisphere": found.side,
        "likeness": _rounded(found.likeness, 3),
        "strain": _rounded(found.strain, 0),
        "other_position_um": _rounded(found.other_um, 0),
        "flag": found.flag,
        "reason": storable(found.reason),
    }


def _slice(found: Located, folder: Path, target: Target) -> dict[str, Any]:
    """Return a section's entry in QuickNII's JSON, with its file relative to the list's folder."""
    assert found.anchoring is not None
    height, width = found.anchoring.size
    file = found.job.path.absolute()
    inside = file.is_relative_to(folder.absolute())
    return {
        "filename": storable(file.relative_to(folder.absolute()).as_posix() if inside else str(file)),
        "nr": found.number,
        "width": width,
        "height": height,
        "anchoring": target.vectors(found.anchoring).ravel().tolist(),
        "markers": [],
    }


def _rounded(value: float, digits: int) -> float | str:
    return "" if math.isnan(value) else round(value, digits) if digits else round(value)
