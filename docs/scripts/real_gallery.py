"""Draws the real sections of the gallery: `ATLALIGN_TEST_DATA=FOLDER python docs/scripts/real_gallery.py [NAME …]`.

Each picture is the `overlay.png` of one section, registered as its case says. The flags and reasons are printed.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import h5py
import numpy as np
from gallery import PICTURES, rows_of
from numpy.typing import NDArray
from PIL import Image

from atlalign.cli import main as atlalign

DATA = Path(os.environ.get("ATLALIGN_TEST_DATA", ""))
MOUSE = (
    *("--atlas", str(DATA / "allen_ccf_25um.h5")),
    *("--ontology", str(DATA / "structure_tree_safe_2017.csv")),
)
WIDTH = 1200
LARGEST_BYTES = 150_000


class Case(NamedTuple):
    """A section of the gallery.

    Attributes:
        name: Of the picture.
        write: Writes the section into a folder and returns its path; a list if there is one.
        arguments: Further arguments of `atlalign register`.
    """

    name: str
    write: Callable[[Path], Path]
    arguments: tuple[str, ...] = MOUSE


def immunostain(folder: Path, number: str = "099") -> Path:
    """Write a section of the brown immunostain, without its position."""
    return _saved(_stained(number), folder)


def off_position(folder: Path) -> Path:
    """Write a section whose anchoring is moved by 1 mm."""
    return _listed(folder, "sections", "641_2002_2568_NM01_s099.png", off_um=1000)


def half(folder: Path) -> Path:
    """Write the left half of a section."""
    pixels = _stained("109")
    return _saved(pixels[:, : pixels.shape[1] // 2], folder)


def mirrored(folder: Path) -> Path:
    """Write a section that is mirrored."""
    return _saved(_stained("119")[:, ::-1], folder)


def nissl(folder: Path) -> Path:
    """Write a plane of the Nissl volume, as dark tissue on a bright slide."""
    with h5py.File(DATA / "allen_ccf_25um.h5") as file:
        plane = file["nissl_100um"][75]
    enlarged = Image.fromarray(plane).resize(
        (plane.shape[1] * 8, plane.shape[0] * 8), Image.Resampling.BICUBIC
    )
    return _saved(np.asarray(enlarged), folder)


def expression(folder: Path, name: str = "71661875_s0201.jpg") -> Path:
    """Write a section that shows gene expression alone, with its anchoring."""
    return _listed(folder, "ish", name)


def rat(folder: Path) -> Path:
    """Return the fluorescent section of a rat."""
    return DATA / "rat" / "section.tif"


CASES = (
    Case("immunostain", immunostain),
    Case("torn", lambda folder: immunostain(folder, "174")),
    Case("nissl", nissl, (*MOUSE, "--position-um", "7500", "--pixel-size-um", "12.5")),
    Case("half", half),
    Case("expression", expression),
    Case("expression_back", lambda folder: expression(folder, "71661955_s0457.jpg")),
    Case("off_position", off_position),
    Case("mirrored", mirrored),
    Case("rat_on_mouse", rat),
    Case(
        "rat",
        rat,
        (
            *("--reference", str(DATA / "rat" / "plane.tif"), "--reference-pixel-um", "39"),
            *("--reference-labels", str(DATA / "rat" / "plane_labels.tif")),
        ),
    ),
)


def draw(case: Case) -> str:
    """Register a section, draw its picture, and return its flag and reason."""
    with TemporaryDirectory() as name:
        folder, out = Path(name), Path(name) / "out"
        (folder / "in").mkdir()
        atlalign(
            ["register", str(case.write(folder / "in")), *case.arguments, "--out", str(out), "--workers", "1"]
        )
        (row,) = rows_of(out)
        overlay = out / row["section"] / "overlay.png"
        if overlay.is_file():
            _small(Image.open(overlay).convert("RGB"), PICTURES / f"real_{case.name}.jpg")
    return f"{case.name} | {row['flag']} | {row['reason']}"


def _stained(number: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(DATA / "sections" / f"641_2002_2568_NM01_s{number}.png").convert("RGB"))


def _saved(pixels: NDArray[np.uint8], folder: Path) -> Path:
    path = folder / "section.png"
    Image.fromarray(pixels).save(path)
    return path


def _listed(folder: Path, source: str, name: str, off_um: float = 0) -> Path:
    """Write the list of one anchored image, its plane moved towards the back."""
    slices = json.loads((DATA / source / "sections.json").read_text(encoding="utf-8"))
    entry = next(entry for entry in slices["slices"] if entry["filename"] == name)
    entry["anchoring"][1] -= off_um / 25
    path = folder / "list.json"
    path.write_text(json.dumps({**slices, "slices": [entry]}), encoding="utf-8")
    (folder / name).symlink_to(DATA / source / name)
    return path


def _small(picture: Image.Image, path: Path) -> None:
    """Write a picture in the best quality that stays small."""
    picture.thumbnail((WIDTH, WIDTH))
    for quality in _qualities():
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LARGEST_BYTES:
            return


def _qualities() -> Iterator[int]:
    yield from range(90, 40, -5)


if __name__ == "__main__":
    for case in CASES:
        if not sys.argv[1:] or case.name in sys.argv[1:]:
            print(draw(case), flush=True)
