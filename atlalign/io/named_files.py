"""Find the files that a list names; the list may come from another computer."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path, PureWindowsPath
from typing import NamedTuple
from unicodedata import normalize
from urllib.parse import unquote

from atlalign.errors import InputError
from atlalign.io.cells import shown
from atlalign.io.files import is_file
from atlalign.io.images import IMAGE_ENDINGS, UNREAD_ENDINGS

_LONGEST_NAME = 255  # bytes, in the file systems of all common systems
_ZOOMABLE = ".dzip"  # WebAlign's own copy of an image, which lacks its ending


class NamedFile(NamedTuple):
    """The file that a name in a list refers to.

    Attributes:
        path: The file, or the place where it is expected.
        guessed: Whether its folder or letter case differs from the list.
        missing: Why the file was not found; empty if it was.
    """

    path: Path
    guessed: bool = False
    missing: str = ""


def find_files(folder: Path, names: Sequence[str], *, only_here: bool = False) -> list[NamedFile]:
    """Return the files that the `names` in a list refer to.

    A name is first taken literally, relative to `folder`. If there is no such file, the name may come from another
    computer: with backslashes, percent-encoding, accents of another encoding, a folder that does not exist here, or
    another letter case. The file is then searched for below `folder`. Two names never share a file that was found this
    way.

    Args:
        folder: The folder that names are relative to.
        names: Names that passed `check_name`.
        only_here: Search below `folder` for absolute names as well, even if these files exist.
    """
    search = _Search(folder, only_here=only_here)
    found = [search.find(name) for name in names]
    claims = defaultdict(set)
    for name, file in zip(names, found, strict=True):
        claims[file.path].add(name)
    return [
        _contested(file, name, claims[file.path]) if file.guessed and len(claims[file.path]) > 1 else file
        for name, file in zip(names, found, strict=True)
    ]


def check_name(name: object) -> str:
    """Return a file name from a list after checking it.

    Raises:
        InputError: If no file can have this name.
    """
    if not isinstance(name, str) or not _parts(name):
        raise InputError(f"expected a filename, found {shown(name)}")
    try:
        size = len(os.fsencode(_parts(name)[-1]))
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= _LONGEST_NAME or "\0" in name:
        raise InputError(
            f"expected a filename of at most {_LONGEST_NAME} bytes of valid text, found {shown(name)}"
        )
    return name


def is_visible(path: Path) -> bool:
    """Return whether a file is not hidden; macOS adds hidden files such as ._a.png beside others."""
    return not path.name.startswith(".") and is_file(path)


def folded_name(name: str) -> str:
    r"""Return the name of a file without its folders, in a form that ignores letter case and the encoding of accents.

    Example:
        >>> folded_name(r"C:\Mouse 12\S1.TIF")
        's1.tif'
    """
    return _folded((_parts(_spellings(name)[-1]) or [""])[-1])


def bare_name(name: str) -> str:
    """Return `folded_name` without the ending of an image.

    Example:
        >>> bare_name("Mouse 12/S1.ome.tif"), bare_name("s1.5")
        ('s1', 's1.5')
    """
    folded = folded_name(name)
    ending = max(
        (end for end in (*IMAGE_ENDINGS, *UNREAD_ENDINGS) if folded.endswith(end)), key=len, default=""
    )
    return folded.removesuffix(ending).removesuffix(".ome")


class _Search:
    """Searches for files below one folder, whose content is listed only once."""

    def __init__(self, folder: Path, *, only_here: bool) -> None:
        self.folder = folder
        self.only_here = only_here
        self._content = cache(_content)

    def find(self, name: str) -> NamedFile:
        """Return the file that `name` refers to, or why it was not found."""
        zoomable = name.lower().endswith(_ZOOMABLE)
        spellings = _spellings(name[: -len(_ZOOMABLE)] if zoomable else name)
        for spelling in spellings:
            if is_file(self.folder / spelling) and not (self.only_here and _is_absolute(spelling)):
                return NamedFile(self.folder / spelling)
        return self._below(spellings) or self._of_another_ending(spellings, name, accept=zoomable)

    def _below(self, spellings: Sequence[str]) -> NamedFile | None:
        for alike in (_composed, _folded):
            for spelling in spellings:
                parts = _parts(spelling)
                for start in range(len(parts)):
                    path = self._walk(parts[start:], alike)
                    if path is not None:
                        elsewhere = start > 0 or _is_absolute(spelling) or ".." in spelling
                        return NamedFile(path, guessed=elsewhere or alike is _folded)
        return None

    def _walk(self, parts: Sequence[str], alike: Callable[[str], str]) -> Path | None:
        """Return the file below the folder whose path is the same under `alike`; None if no file or several match."""
        path = self.folder
        for part in parts:
            found = self._content(path, alike).get(alike(part), [])
            if part in found:
                found = [part]
            if len(found) != 1:
                return None
            path /= found[0]
        return path if is_file(path) else None

    def _of_another_ending(self, spellings: Sequence[str], name: str, *, accept: bool) -> NamedFile:
        """Return why the file was not found or, if `accept`, the one image whose name differs only in its ending."""
        expected = self.folder / (_parts(name)[-1] if _is_absolute(name) else _slashed(name))
        near = sorted(
            path
            for parent in {self.folder, expected.parent}
            for path in _images_in(parent)
            if any(_folded(path.stem) == _folded(_stem(spelling)) for spelling in spellings)
        )
        if accept and len(near) == 1:
            return NamedFile(near[0], guessed=True)
        missing = f"no such file in {expected.parent}"
        if _is_absolute(name):
            missing += f", nor {shown(name)}"
        if near:
            there = ", ".join(path.name for path in near)
            missing += f"; found {there} instead: if it is the same image, use its name in the list"
        return NamedFile(expected, missing=missing)


def _contested(file: NamedFile, name: str, names: set[str]) -> NamedFile:
    others = ", ".join(shown(other) for other in sorted(names - {name}))
    return file._replace(
        missing=f"there is no file {shown(name)}, and {file.path} could also be {others}: correct the list"
    )


def _spellings(name: str) -> list[str]:
    """Return a name as written, and as this computer would write it."""
    slashed = _slashed(name)
    if re.match("file:/", slashed, re.IGNORECASE):
        slashed = "/" + slashed[len("file:") :].lstrip("/")
    return list(dict.fromkeys([name, slashed, unquote(slashed)]))


def _slashed(name: str) -> str:
    return name.strip().replace("\\", "/")


def _parts(name: str) -> list[str]:
    return [part for part in _slashed(name).split("/") if part not in ("", ".", "..")]


def _stem(spelling: str) -> str:
    """Return the name of a file without its folders and, if it is an image, its ending."""
    name = Path(_slashed(spelling))
    return name.stem if name.suffix.lower() in IMAGE_ENDINGS else name.name


def _is_absolute(name: str) -> bool:
    """Return whether a name starts at the root or a drive of some computer."""
    return bool(PureWindowsPath(name.strip()).anchor) or name.strip().lower().startswith("file:")


def _content(folder: Path, alike: Callable[[str], str]) -> dict[str, list[str]]:
    """Return the names in a folder by their normalised form."""
    names = defaultdict(list)
    for path in _paths_in(folder):
        names[alike(path.name)].append(path.name)
    return names


def _images_in(folder: Path) -> Iterator[Path]:
    return (path for path in _paths_in(folder) if path.suffix.lower() in IMAGE_ENDINGS and is_visible(path))


def _paths_in(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # treated as if there were none
        return []


def _composed(name: str) -> str:
    """Return a name with composed accents; macOS decomposes them."""
    return normalize("NFC", name)


def _folded(name: str) -> str:
    return _composed(_composed(name).casefold())
