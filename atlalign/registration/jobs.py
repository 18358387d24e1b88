"""The images to register: files, folders, and lists of sections."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn
from unicodedata import normalize

from atlalign.atlas.planes import Anchoring, check_is_um
from atlalign.atlas.section_lists import (
    LIST_COLUMNS,
    LIST_ENDINGS,
    ListedSection,
    find_list,
    holds_list,
    read_list,
    unused_positions,
)
from atlalign.console import counted
from atlalign.declarations import Declaration, declarations, option
from atlalign.errors import InputError
from atlalign.io.cells import number, shown, whole_number
from atlalign.io.files import is_file, is_folder
from atlalign.io.images import IMAGE_ENDINGS, UNREAD_ENDINGS
from atlalign.io.named_files import is_visible
from atlalign.registration.ignored import NOTHING, Ignored
from atlalign.registration.options import Options
from atlalign.registration.points import PointPairs

_log = logging.getLogger(__name__)
_PARTS = ("scene", "page", "z")
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")


class Job(NamedTuple):
    """One image to register.

    Attributes:
        path: The file.
        position_um: The position of the section in the atlas; None if it is unknown, or does not matter.
        number: The section's number.
        anchoring: The anchoring of the image, if it has one.
        problem: The reason why it cannot be registered, if the list already shows one.
        options: The values of `Options` that apply to this image alone, by name.
        label: The name of its folder of results; empty means the name of the file without its ending.
        points: Pairs of corresponding points in the reference and the image, set by the user.
        ignored: Tissue to ignore.
        brain: The brain that the section comes from, if a list gives it.
        section_number: Its number in the series of sections, if a list gives it.
        target: The atlas to which it is anchored, if its list names one other than the Allen atlas.
        doubt: The reason why its place must be checked, if one is known before the registration.
    """

    path: Path
    position_um: float | None = None
    number: int = 1
    anchoring: Anchoring | None = None
    problem: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    label: str = ""
    points: PointPairs = PointPairs.none()
    ignored: Ignored = NOTHING
    brain: str = ""
    section_number: int | None = None
    target: str = ""
    doubt: str = ""

    @property
    def name(self) -> str:
        """The name of the folder of results; never a hidden one."""
        return self.label or _split(self.path)[0]

    @property
    def part(self) -> str:
        """The suffix for one scene, page or plane of a file; empty if the list names none."""
        said = "".join(f"_{part}{self.options[part]}" for part in _PARTS if part in self.options)
        return re.sub(r"[^\w.-]", "-", said)  # a scene may have any name


def find_jobs(
    inputs: Sequence[str | Path],
    *,
    position_um: float | None = None,
    listed: bool = True,
    images: str | Path | None = None,
) -> list[Job]:
    """Return the images given as files, in folders or in lists of sections, each once.

    Args:
        inputs: Images; lists of sections (of QuickNII, DeepSlice or WebAlign, or a table); folders of images, perhaps
            with one such list. In folders, hidden files do not count.
        position_um: The position of all images that are not in a list.
        listed: Whether to use the lists in folders, and the positions in lists. Otherwise all images in a folder are
            used, and positions are ignored.
        images: The folder of the images named in lists; None means the folder of each list.

    Raises:
        InputError: If nothing is named, a folder holds no images, or a position seems to be in mm. An image that a list
            names but that does not exist still gives a job, and only this job fails later.

    Example:
        >>> [job] = find_jobs(["section.tif"], position_um=6000)
        >>> job.name, job.position_um
        ('section', 6000)
    """
    if position_um is not None:
        check_is_um(position_um, option("position_um"))
    if images is not None and not is_folder(Path(images)):
        raise InputError(
            f"{option('images')}: expected the folder of the images named in a list, found no folder {images}"
        )
    jobs: list[Job] = []
    for path in map(Path, inputs):
        if (listing := _list_of(path, position_um, listed=listed)) is not None:
            sections = read_list(listing, None if images is None else Path(images))
            if images is None and all(section.missing for section in sections):
                _log.warning(
                    "%s: none of its images was found: give their folder with %s", listing, option("images")
                )
            _warn_of_unused(listing, sections)
            if not listed and any(section.markers for section in sections):
                _log.warning("%s: its markers are not used, because they refer to the Allen atlas", listing)
            jobs += [_listed_job(section, listed=listed) for section in sections]
        else:
            if listed and position_um is None:
                _warn_of_unread_positions(path)
            jobs += [
                Job(file, position_um, number) for number, file in enumerate(_images_of(path), len(jobs) + 1)
            ]
    if not jobs:
        raise InputError(
            f"expected images ({', '.join(IMAGE_ENDINGS)}), found none in {', '.join(map(str, inputs))}"
        )
    return _told_apart(_once_each(jobs))


def find_lists(
    inputs: Sequence[str | Path], *, position_um: float | None = None, listed: bool = True
) -> list[Path]:
    """Return the lists of sections that `find_jobs` would read."""
    lists = (_list_of(Path(path), position_um, listed=listed) for path in inputs)
    return [path for path in lists if path is not None]


def _list_of(path: Path, position_um: float | None, *, listed: bool) -> Path | None:
    """Return the list that an input is or contains; None for an image or a folder of images."""
    if is_folder(path):
        return find_list(path) if listed and position_um is None and holds_list(path) else None
    if path.suffix.lower() not in LIST_ENDINGS:
        return None
    if position_um is not None:
        raise InputError(
            f"{path}: {option('position_um')} cannot be combined with a list of sections, which gives positions"
        )
    return path


def _images_of(path: Path) -> list[Path]:
    """Return an image, or the images of a folder."""
    ending = path.suffix.lower()
    if is_folder(path):
        files = sorted(filter(is_visible, path.iterdir()))
        unread = [file.name for file in files if file.suffix.lower() in UNREAD_ENDINGS]
        if unread:
            _log.warning(
                "%s: left out because their format cannot be read: %s, such as %s: export them as OME-TIFF",
                path,
                counted(len(unread), "image"),
                unread[0],
            )
        return [file for file in files if file.suffix.lower() in IMAGE_ENDINGS]
    if ending in _SPREADSHEETS:
        raise InputError(
            f"{path}: expected an image or a list of sections, found a spreadsheet: save it as CSV"
        )
    # A file with any other ending may be an image; reading it will show.
    if ending not in IMAGE_ENDINGS and not is_file(path):
        raise InputError(f"{path}: no such file or folder")
    return [path]


def _warn_of_unread_positions(path: Path) -> None:
    """Warn of tables that may be meant as the list of a folder without a list."""
    if not is_folder(path):
        return
    for table, columns in unused_positions(path):
        _log.warning(
            "%s: not used, because it has no column filename, only %s: rename the column with the names of the images "
            "to filename, and the column with their positions in µm to p",
            table,
            ", ".join(map(shown, columns)),
        )
    for sheet in sorted(filter(is_visible, path.iterdir())):
        if sheet.suffix.lower() in _SPREADSHEETS and not sheet.name.startswith("~$"):
            _log.warning("%s: not used: save a list of sections as CSV, with columns filename and p", sheet)


def _warn_of_unused(listing: Path, sections: Sequence[ListedSection]) -> None:
    """Warn of columns that have values but are not used: their names may be misspelt."""
    filled = {name: None for section in sections for name, cell in section.cells.items() if cell}
    unused = [name for name in filled if name not in {*LIST_COLUMNS, *_COLUMNS}]
    if unused:
        _log.warning(
            "%s: not used: the columns %s; a list may set these options for each image: %s",
            listing,
            ", ".join(map(shown, unused)),
            ", ".join(name for name, parse in _COLUMNS.items() if parse is not _renamed),
        )


def _listed_job(section: ListedSection, *, listed: bool) -> Job:
    job = Job(section.path, number=section.identity.image_id, brain=section.cells.get("brain", ""))
    try:
        job = job._replace(
            options=_own_options(section.cells, section.where), section_number=_section_number(section)
        )
    except InputError as error:
        return job._replace(problem=str(error))
    problem = section.missing or ("" if section.unplaced else section.problem)
    if not listed:  # the reference is not an atlas
        return job._replace(problem=section.missing)
    if problem:
        return job._replace(problem=problem)
    if section.unplaced:
        return job
    job = job._replace(position_um=section.position_um, anchoring=section.anchoring, target=section.target)
    return job if section.anchoring is None else job._replace(points=_points(section, section.anchoring))


def _section_number(section: ListedSection) -> int | None:
    cell = section.cells.get("section_number")
    return whole_number(cell, f"{section.where}, section_number") if cell else None


def _points(section: ListedSection, anchoring: Anchoring) -> PointPairs:
    """Return VisuAlign's markers of a section as pairs of points."""
    return PointPairs.of_markers(section.markers, anchoring)


# --- several of one image, and of one name ----------------------------------------------------------------------------


def _once_each(jobs: Sequence[Job]) -> list[Job]:
    """Return one job for each file, or for each page of a file."""
    by_file = defaultdict(list)
    for job in jobs:
        by_file[os.path.normpath(job.path.absolute()), job.part].append(job)
    if len(by_file) < len(jobs):
        repeated = [same[0].path for same in by_file.values() if len(same) > 1]
        _log.warning(
            "given more than once: %s, such as %s: each is used once",
            counted(len(repeated), "image"),
            repeated[0],
        )
    return [_one_of_all(same) for same in by_file.values()]


def _one_of_all(jobs: Sequence[Job]) -> Job:
    """Merge several jobs for the same file; the result has a problem if they contradict each other."""
    first, *others = jobs
    if all(_meaning(other) == _meaning(first) for other in others):
        return first
    return first._replace(
        problem=f"named {len(jobs)} times, with different positions, anchorings, markers or options: keep one entry"
    )


def _meaning(job: Job) -> tuple[Any, ...]:
    """Return everything that a job asks for, as values that can be compared."""
    anchoring = job.anchoring and (job.anchoring.to_json(), job.anchoring.size)
    points = (job.points.reference_um.tolist(), job.points.section.tolist())
    return job.position_um, anchoring, job.problem, dict(job.options), points


def _told_apart(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs with names that differ even if case is ignored, as on Windows and macOS."""
    by_name = defaultdict(list)
    for job in jobs:
        by_name[_folded(job.name)].append(job)
    taken = {name for name, same in by_name.items() if len(same) == 1}
    labels: dict[tuple[Path, str], str] = {}
    for same in by_name.values():
        if len(same) > 1:
            chosen = _labels(same, taken)
            taken.update(map(_folded, chosen))
            labels.update(zip(((job.path, job.part) for job in same), chosen, strict=True))
    return [job._replace(label=labels.get((job.path, job.part), job.label)) for job in jobs]


def _labels(jobs: Sequence[Job], taken: Collection[str]) -> list[str]:
    """Return different names for images that share one: with their endings, their folders, both, or numbers."""
    for folders in range(max(len(job.path.absolute().parts) for job in jobs)):
        for with_ending in (False, True):
            labels = [_label(job, folders, with_ending=with_ending) for job in jobs]
            keys = set(map(_folded, labels))
            if len(keys) == len(jobs) and not keys & set(taken):
                return labels
    return [f"{job.name}_{number}" for number, job in enumerate(jobs, start=1)]


def _label(job: Job, folders: int, *, with_ending: bool) -> str:
    name, ending = _split(job.path)
    parents = job.path.absolute().parent.parts[1:][-folders:] if folders else ()
    return "_".join([*parents, name, *([ending] if with_ending and ending else [])]) + job.part


def _split(path: Path) -> tuple[str, str]:
    """Return the name of an image without its ending and the dot of a hidden file, and the ending without dots."""
    name = path.name.removesuffix(path.suffix).removesuffix(".ome")
    ending = path.name[len(name) :].strip(".").replace(".", "_")
    return name.lstrip(".") or "section", ending


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold()


# --- the options in a list --------------------------------------------------------------------------------------------


def _own_options(cells: Mapping[str, str], where: str) -> dict[str, Any]:
    """Return the options that a table's row sets for its image."""
    return {
        column: parse(cells[column], f"{where}, {column}")
        for column, parse in _COLUMNS.items()
        if cells.get(column)
    }


def _cell_parser(declared: Declaration) -> Callable[[str, str], Any]:
    """Return the function that reads a cell, given where it stands."""
    if declared.choices:
        return _one_of({choice: choice for choice in declared.choices})
    return _PARSERS.get(declared.kind, lambda cell, _: declared.kind(cell))


def _one_of(choices: Mapping[str, Any]) -> Callable[[str, str], Any]:
    def choose(cell: str, where: str) -> Any:
        if cell.lower() not in choices:
            raise InputError(f"{where}: expected one of {', '.join(choices)}, found {shown(cell)}")
        return choices[cell.lower()]

    return choose


def _float(cell: str, where: str) -> float:
    return float(number(cell, where))


def _renamed(cell: str, where: str) -> NoReturn:
    raise InputError(
        f"{where}: expected a column turn in degrees, 90 for each quarter turn, found {shown(cell)}"
    )


_YES_OR_NO = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
_PARSERS: dict[Any, Callable[[str, str], Any]] = {bool: _one_of(_YES_OR_NO), int: whole_number, float: _float}
_COLUMNS: dict[str, Callable[[str, str], Any]] = {
    **{
        declared.name: _cell_parser(declared)
        for declared in declarations(Options)
        if declared.option.is_column
    },
    "quarter_turns": _renamed,
}
"""The columns of a list that set an option for one image; for an empty cell, the command line sets it."""
