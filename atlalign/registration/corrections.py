"""A user's corrections of a section, as plain files beside its results.

`corrections/SECTION/` in the folder of results holds up to four files, each only if it has content:

- `visualign.json`: the plane and the pairs of points, as a series of VisuAlign with this section alone;
- `ignored.png`, `ignored.geojson`: tissue to ignore, as an image whose non-zero pixels are ignored, or as areas in
  pixels of the section's image, as QuPath writes them; if both exist, both apply;
- `review.json`: the verdict, a note, and which half of the brain the section shows.

`register` reads these files and never writes them: results are replaced as a whole, corrections are not.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.planes import Anchoring, Points
from atlalign.atlas.section_lists import read_anchoring, read_markers
from atlalign.atlas.targets import Target
from atlalign.errors import InputError, unknown_name
from atlalign.io.cells import shown, whole_number
from atlalign.io.files import file_name, storable, written_whole
from atlalign.io.images import read_labels
from atlalign.io.tables import read_text
from atlalign.registration.geojson import rings
from atlalign.registration.ignored import NOTHING, Ignored
from atlalign.registration.jobs import Job
from atlalign.registration.points import PointPairs
from atlalign.registration.record import RECORD, read_record

CORRECTION = "correction"
"""The setting of a result that describes the user's corrections."""
CORRECTIONS = "corrections"
"""The folder of all sections' corrections, in the folder of results."""
MARKERS, REVIEW = "visualign.json", "review.json"
IGNORED_IMAGE, IGNORED_SHAPES = "ignored.png", "ignored.geojson"

Verdict = Literal["accepted", "rejected", "unsure"]
Hemisphere = Literal["whole", "left", "right"]

_ALLEN = Target()
_MOVES_PLANE, _POINTS_UM = "moves_plane", "points_um"


@dataclass(frozen=True, eq=False)
class Correction:
    """The user's corrections of a section.

    Attributes:
        anchoring: The plane that the points refer to; None if the reference is an image.
        moves_plane: Whether to place the section by this anchoring; otherwise it is placed as if it had no correction.
        points: Pairs of corresponding points in the reference and the section.
        ignored: Tissue to ignore.
        verdict: The user's verdict on the result; None if there is none yet.
        note: The user's note.
        hemisphere: The half of the brain that the section shows; None means the half that the options of `register`
            set.
        target: The atlas of the plane; in the file, its voxels are the unit of the anchoring.
    """

    anchoring: Anchoring | None = None
    moves_plane: bool = False
    points: PointPairs = field(default_factory=PointPairs.none)
    ignored: Ignored = NOTHING
    verdict: Verdict | None = None
    note: str = ""
    hemisphere: Hemisphere | None = None
    target: Target = _ALLEN

    def __post_init__(self) -> None:
        for name, value, known in (
            ("verdict", self.verdict, get_args(Verdict)),
            ("hemisphere", self.hemisphere, get_args(Hemisphere)),
        ):
            if value is not None and value not in known:
                raise unknown_name(name, str(value), known)
        if self.moves_plane and self.anchoring is None:
            raise InputError("moves_plane: expected the anchoring of the corrected plane, got none")

    @property
    def sets_points(self) -> bool:
        """Whether these points, even an empty set, replace those of the section's list."""
        return self.anchoring is not None or bool(len(self.points))


def correction_folder(out: Path, section: str) -> Path:
    """Return the folder of a section's corrections, given the name of the section's folder of results."""
    return out / CORRECTIONS / file_name(section)


def corrected(job: Job, correction: Correction) -> Job:
    """Return a job with the user's corrections; the points from its list remain unless the user has set points."""
    atlas = "" if correction.target == _ALLEN else correction.target.name
    if correction.moves_plane and correction.anchoring is not None:
        # The anchoring defines the orientation and overrides all other settings of it.
        upright = {**job.options, "place": "anchoring", "mirrored": False, "turn": None}
        position_um = correction.anchoring.position_um
        job = job._replace(
            position_um=position_um, anchoring=correction.anchoring, options=upright, target=atlas, doubt=""
        )
    elif correction.anchoring is not None:
        job = job._replace(target=job.target or atlas)
    if correction.hemisphere is not None:
        side = None if correction.hemisphere == "whole" else correction.hemisphere
        job = job._replace(options={**job.options, "hemisphere": side})
    points = correction.points if correction.sets_points else job.points
    return job._replace(points=points, ignored=correction.ignored)


def changes(job: Job, correction: Correction) -> dict[str, Any] | None:
    """Return the user's points, plane, mask and half of the brain as plain data; None if they change nothing."""
    points = correction.points if correction.sets_points else job.points
    moved = correction.anchoring.to_json() if correction.moves_plane and correction.anchoring else None
    if not (moved or len(points) or correction.ignored or correction.hemisphere):
        return None
    # Older results lack this key, because the half could not be corrected then; they are still valid.
    half = {} if correction.hemisphere is None else {"hemisphere": correction.hemisphere}
    return {
        **half,
        "anchoring": moved,
        "points": np.hstack([points.reference_um, points.section]).round(3).tolist(),
        "points_size": None if points.size is None else list(points.size),
        "ignored_sha256": correction.ignored.fingerprint() if correction.ignored else None,
    }


# --- reading ----------------------------------------------------------------------------------------------------------


def read_correction(out: Path, section: str) -> Correction:
    """Return the corrections of a section; they are empty for a section without corrections.

    Raises:
        InputError: If a file cannot be read, or has invalid content.
    """
    folder = correction_folder(out, section)
    verdict, note, hemisphere = read_review(out, section)
    ignored = Ignored(_read_mask(folder / IGNORED_IMAGE), _read_areas(folder / IGNORED_SHAPES))
    return replace(
        _read_markers(folder / MARKERS), ignored=ignored, verdict=verdict, note=note, hemisphere=hemisphere
    )


def _read_markers(path: Path) -> Correction:
    """Return the plane and the points of a correction."""
    if not path.exists():
        return Correction()
    series = _loaded(path)
    slices = series.get("slices")
    if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], dict):
        raise InputError(f"{path}: expected a series of VisuAlign with one slice, found {shown(slices)}")
    (entry,) = slices
    if _POINTS_UM in entry:
        numbers = np.array(read_markers(entry[_POINTS_UM], f"{path}, {_POINTS_UM}")).reshape(-1, 4)
        return Correction(points=PointPairs(numbers[:, :2], numbers[:, 2:], _size(entry, path)))
    target = Target.of_head(series, str(path))
    try:
        anchoring = read_anchoring(entry, target)
        moves_plane = entry.get(_MOVES_PLANE, True)
        if not isinstance(moves_plane, bool):
            raise InputError(f"{_MOVES_PLANE}: expected true or false, found {shown(moves_plane)}")
        points = PointPairs.of_markers(read_markers(entry.get("markers")), anchoring)
        return Correction(anchoring, moves_plane, points, target=target)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


class Review(NamedTuple):
    """The user's review of a section: a verdict, a note, and the part of the brain that it shows."""

    verdict: Verdict | None = None
    note: str = ""
    hemisphere: Hemisphere | None = None


def read_review(out: Path, section: str) -> Review:
    """Return the user's verdict, note, and half of the brain for a section; all are empty without a review.

    Raises:
        InputError: If the file cannot be read, or has invalid content.
    """
    path = correction_folder(out, section) / REVIEW
    if not path.exists():
        return Review()
    content = _loaded(path)
    note = content.get("note", "")
    if not isinstance(note, str):
        raise InputError(f"{path}, note: expected text, found {shown(note)}")
    verdict = _choice(content, "verdict", get_args(Verdict), path)
    return Review(verdict, note, _choice(content, "hemisphere", get_args(Hemisphere), path))


def is_rejected(folder: Path) -> bool:
    """Return whether the user rejected a section in review, given the folder of its results.

    Raises:
        InputError: As in `read_review`.
    """
    return read_review(folder.parent, folder.name).verdict == "rejected"


def _choice(content: Mapping[str, Any], name: str, known: Sequence[str], path: Path) -> Any:
    value = content.get(name)
    if value not in (None, *known):
        raise InputError(f"{path}, {name}: expected {', '.join(known)} or null, found {shown(value)}")
    return value


def _size(entry: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """Return the (h, w) of the image that an entry refers to."""
    height, width = (whole_number(entry.get(name), f"{path}, {name}") for name in ("height", "width"))
    return height, width


def _read_mask(path: Path) -> NDArray[np.bool_] | None:
    return read_labels(path) != 0 if path.exists() else None


def _read_areas(path: Path) -> tuple[tuple[Points, ...], ...]:
    if not path.exists():
        return ()
    try:
        return tuple(rings(json.loads(read_text(path))))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as GeoJSON: {error}") from error


def _loaded(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected an object, found {shown(content)}")
    return content


def shown_correction(out: Path, section: str) -> Correction:
    """Return the correction of a registered section for further editing.

    Until the user sets points, the correction has the points of the result, such as VisuAlign's markers from a list.
    Until the user moves the plane, the correction has the anchoring of the result.

    Raises:
        InputError: If the section has no results, or a file cannot be read.
    """
    correction = read_correction(out, section)
    record = read_record(out / file_name(section))
    if correction.sets_points or "visualign" not in record:
        return correction
    applied = record["settings"].get(CORRECTION, {})
    pairs = np.array(applied.get("points", []), np.float64).reshape(-1, 4)
    height, width = applied.get("points_size") or record["section"]["shape"]
    points = PointPairs(pairs[:, :2], pairs[:, 2:], (height, width))
    anchoring, target = read_anchoring(record["visualign"]), Target.of_head(record, RECORD)
    return replace(correction, anchoring=anchoring, points=points, target=target)


# --- writing ----------------------------------------------------------------------------------------------------------


def write_correction(
    out: Path,
    section: str,
    correction: Correction,
    *,
    size: tuple[int, int],
    filename: str = "",
    number: int = 1,
) -> None:
    """Write the corrections of a section, each file atomically, in place of the previous ones.

    Unchanged files are not touched, and files without content are deleted.

    Args:
        out: The folder of results.
        section: The name of the section's folder.
        correction: All corrections of the section.
        size: (H, W) of the section's image.
        filename: The image's name.
        number: The section's number in its series.

    Raises:
        WriteError: If the system refuses to write a file.
    """
    folder = correction_folder(out, section)
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"filename": filename or section, "nr": number, "width": size[1], "height": size[0]}
    _write(folder / MARKERS, _series(correction, entry, size))
    _write(folder / REVIEW, _review(correction))
    _write(folder / IGNORED_SHAPES, _shapes(correction.ignored.areas))
    _write(folder / IGNORED_IMAGE, _picture(correction.ignored.mask))


def _series(correction: Correction, entry: Mapping[str, Any], size: tuple[int, int]) -> bytes | None:
    """Return VisuAlign's file; for a registration to an image, a file of the same form."""
    points = correction.points
    if correction.anchoring is None:
        pairs = np.hstack([points.reference_um, points.on(size).section]).tolist()
        return _json({"slices": [{**entry, _POINTS_UM: pairs}]}) if pairs else None
    anchoring = correction.anchoring.on(size)
    placed = {
        "anchoring": correction.target.vectors(anchoring).ravel().tolist(),
        _MOVES_PLANE: correction.moves_plane,
        "markers": points.as_markers(anchoring),
    }
    return _json({"name": "", **correction.target.to_json(), "slices": [{**entry, **placed}]})


def _review(correction: Correction) -> bytes | None:
    if correction.verdict is None and not correction.note and correction.hemisphere is None:
        return None
    half = {} if correction.hemisphere is None else {"hemisphere": correction.hemisphere}
    return _json({"verdict": correction.verdict, "note": storable(correction.note), **half})


def _shapes(areas: Sequence[Sequence[Points]]) -> bytes | None:
    if not areas:
        return None
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring.tolist() for ring in area]},
            "properties": {"objectType": "annotation", "name": "ignored"},
        }
        for area in areas
    ]
    return _json({"type": "FeatureCollection", "features": features})


def _picture(mask: NDArray[np.bool_] | None) -> bytes | None:
    from imagecodecs import png_encode

    return None if mask is None or not mask.any() else bytes(png_encode(mask.astype(np.uint8) * 255))


def _json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_bytes() != content:
        with written_whole(path) as unfinished:
            unfinished.write_bytes(content)
