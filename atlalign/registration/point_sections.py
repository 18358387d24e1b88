"""The section of each point in a table: the column that names it, and the registered section with this name."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

from atlalign.errors import InputError
from atlalign.io.cells import is_missing, shown
from atlalign.io.images import IMAGE_ENDINGS
from atlalign.io.named_files import bare_name, folded_name
from atlalign.io.tables import Table, read_parts
from atlalign.registration.record import RECORD, read_record

SECTION = "section"
"""The column of atlalign's own tables that names each point's section."""

_IMAGE_COLUMNS = ("image", "imagename", "imagefile", "imagepath", "file", "filepath", "metadatafilelocation")
_IMAGE_PREFIXES = ("filename", "imagefilename")  # CellProfiler's FileName_DNA
_IMAGEJ_LABEL = "label"
_IMAGEJ_ROI = re.compile(r"(?<=.):[^/\\]*$")  # "a.tif:0001-0020"
_NUMBERS = ("imagenumber", "timestep")  # CellProfiler and ilastik number their images
_SCENE_MARK = " - "  # QuPath: "file.czi - scene"


class SectionNames:
    """Finds registered sections by the names that tables of points use.

    A section's name is the name of its folder, or of its image file, with or without folders and ending; QuPath adds
    the scene. If no section has exactly this name, other spellings of it also count.

    Args:
        folders: The folders of the sections' results.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = {folder.name: folder for folder in folders}

    @cached_property
    def _spellings(self) -> tuple[Mapping[str, set[str]], ...]:
        """The folders' names by the spellings of folders, of image files, and of image files without ending."""
        folders: Mapping[str, set[str]] = defaultdict(set)
        files: Mapping[str, set[str]] = defaultdict(set)
        bare: Mapping[str, set[str]] = defaultdict(set)
        for folder in self._folders.values():
            folders[_folded(folder.name)].add(folder.name)
            for name in _image_names(folder):
                files[folded_name(name)].add(folder.name)
                bare[_bare(name)].add(folder.name)
        return folders, files, bare

    def find(self, name: str) -> str | None:
        """Return the name of the folder of the section that a name refers to; None if there is no such section.

        Raises:
            InputError: If the name may refer to several sections.
        """
        if name in self._folders:
            return name
        spelled = zip(self._spellings, (_folded(name), folded_name(name), _bare(name)), strict=True)
        found = next((known[spelling] for known, spelling in spelled if spelling in known), set())
        if len(found) > 1:
            raise InputError(
                f"expected a name of one section, found {shown(name)}, which may mean {' or '.join(sorted(found))}: "
                f"add a column {SECTION} with the names of these folders"
            )
        return next(iter(found), None)

    def section_of(self, name: str, where: str, among: str) -> str:
        """Return the name of the folder of the section that a name refers to.

        Args:
            name: The name.
            where: The place of the name, which begins the error message.
            among: The place of the sections in words, such as "in --with".

        Raises:
            InputError: If the name refers to no section, or to several.
        """
        try:
            found = self.find(name)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if found is None:
            raise InputError(
                f"{where}: expected the name of a section's folder or image {among}, found {shown(name)}"
                f"{self._near(name)}"
            )
        return found

    def _near(self, name: str) -> str:
        known = {_folded(folder): folder for folder in self._folders}
        close = get_close_matches(bare_name(name), list(known), n=1)
        return f": did you mean {known[close[0]]}?" if close else ""


def sections_in(folder: Path) -> list[Path]:
    """Return the folders of the sections that a folder of results holds."""
    return sorted(record.parent for record in folder.glob(f"[!.]*/{RECORD}"))


def section_column(table: Table, names: SectionNames) -> str | None:
    """Return the column, in lower case, that names each point's section or image; None without such a column.

    Several columns may name images, as CellProfiler's do for channels: the first column that starts with a known name
    is used.
    """
    candidates = [name for name in table.names if _names_images(table, name, names)]
    candidates.sort(key=lambda name: _plain(name) != SECTION)
    if SECTION in candidates:
        return SECTION
    return next(
        (name for name in candidates if _first_is_known(table, name, names)), next(iter(candidates), None)
    )


def check_one_image(table: Table) -> None:
    """Check that a table that identifies images by number, not by name, holds points of only one image.

    Raises:
        InputError: If the table holds points of several images.
    """
    for name in table.names:
        if _plain(name) not in _NUMBERS:
            continue
        numbers: dict[str, int] = {}
        for part in read_parts(table.path):
            for line, cell in zip(part.lines, part.column(name), strict=True):
                numbers.setdefault(cell, line)
            if len(numbers) > 1:
                (first, _), (other, line), *_ = numbers.items()
                raise InputError(
                    f"{table.path}, line {line}, {name}: expected points of one image, found images {shown(first)} and "
                    f"{shown(other)}: add a column {SECTION} that names each point's section"
                )


def section_cells(path: Path, column: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of the section or image of each row that is not empty."""
    for part in read_parts(path):
        cells = zip(part.lines, part.rows, names_of_sections(part, column), strict=True)
        yield from ((line, name) for line, row, name in cells if any(row))


def names_of_sections(table: Table, column: str) -> list[str]:
    """Return the name of each row's section or image; "" if the cell is empty."""
    cells = table.column(column)
    if _plain(column) == _IMAGEJ_LABEL:
        cells = [_IMAGEJ_ROI.sub("", cell) for cell in cells]
    return cells if column == SECTION else ["" if is_missing(cell) else cell for cell in cells]


def _names_images(table: Table, name: str, names: SectionNames) -> bool:
    plain = _plain(name)
    if plain == _IMAGEJ_LABEL:  # it may also hold the numbers or classes of cells
        return _first_is_known(table, name, names) or _first(table, name).lower().endswith(IMAGE_ENDINGS)
    return plain == SECTION or plain in _IMAGE_COLUMNS or plain.startswith(_IMAGE_PREFIXES)


def _first_is_known(table: Table, name: str, names: SectionNames) -> bool:
    with suppress(InputError):
        return names.find(_first(table, name)) is not None
    return True


def _first(table: Table, name: str) -> str:
    return next(filter(None, names_of_sections(table, name)), "")


def _plain(name: str) -> str:
    """Return the name of a column without spaces and punctuation."""
    return re.sub(r"[\W_]", "", name)


def _folded(name: str) -> str:
    """Return a folder's name in a form that ignores letter case and the encoding of accents; a path stays a path."""
    return normalize("NFC", normalize("NFC", name).casefold())


def _bare(name: str) -> str:
    """Return the name of an image, perhaps with a scene, without the ending of its file."""
    file, mark, scene = name.rpartition(_SCENE_MARK)
    return (
        bare_name(name) if bare_name(file) == folded_name(file) else bare_name(file) + mark + scene.casefold()
    )


def _image_names(folder: Path) -> Sequence[str]:
    """Return the names of a section's image; none if its record is damaged or lacks them."""
    try:
        settings = read_record(folder).get("settings") or {}
    except InputError:
        return ()
    file, scene = settings.get("file"), settings.get("scene")
    if not file:
        return ()
    return (file,) if scene is None else (file, f"{file}{_SCENE_MARK}{scene}", str(scene))
