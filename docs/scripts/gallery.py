"""Draws the gallery: registered sections with the outlines of regions, their flags and reasons.

`python docs/scripts/gallery.py` draws that of the site, from the phantom. `python docs/scripts/gallery.py --out
runs/gallery FOLDER --atlas atlas_25um.h5` registers any other sections, with any options of `atlalign register`, and
draws `runs/gallery.jpg`.
"""

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import fill

from matplotlib import pyplot as plt
from phantom_cases import write_cases
from PIL import Image

from atlalign.cli import main as atlalign

PICTURES = Path(__file__).parents[1] / "pictures"
COLORS = {"pass": "#2e7d32", "look": "#b26a00", "fail": "#b71c1c"}
COLUMNS = 2
_MEASURE = re.compile(r" \(\w+ [^()]*\)")  # after each reason: its measure, value and limit


def rows_of(folder: Path) -> list[dict[str, str]]:
    """Return the rows of `registrations.csv`."""
    with (folder / "registrations.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw(folder: Path, path: Path, titles: Mapping[str, str], columns: int = COLUMNS) -> None:
    """Draw all sections of a folder of results, each with its flag and reason.

    Args:
        folder: The results.
        path: The picture to write.
        titles: By the names of sections; others have their names.
        columns: How many stand beside each other.
    """
    rows = rows_of(folder)
    height = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        height, columns, figsize=(6 * columns, 4.2 * height), layout="constrained", squeeze=False
    )
    for panel in axes.flat:
        panel.axis("off")
    for panel, row in zip(axes.flat, rows, strict=False):
        overlay = folder / row["section"] / "overlay.png"
        if overlay.is_file():
            panel.imshow(Image.open(overlay).convert("RGB"))
        else:
            panel.text(0.5, 0.5, "no result", ha="center", transform=panel.transAxes, color="grey")
        panel.set_title(
            f"{titles.get(row['section'], row['section'])}: {row['flag']}",
            color=COLORS[row["flag"]],
            loc="left",
        )
        reasons = _MEASURE.sub("", row["reason"])
        panel.text(
            0, -0.02, fill(reasons, 88), transform=panel.transAxes, va="top", fontsize=8.5, color="0.35"
        )
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 88} if path.suffix == ".jpg" else {})
    plt.close(figure)


def of_the_phantom() -> None:
    """Draw the gallery of the site, and a pass, a look and a fail beside each other."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        titles = write_cases(folder / "cases")
        atlalign(
            [
                "register",
                str(folder / "cases"),
                "--atlas",
                "phantom",
                "--out",
                str(folder / "out"),
                "--workers",
                "1",
            ]
        )
        draw(folder / "out", PICTURES / "gallery.jpg", titles)
        for row in rows_of(folder / "out"):
            print(titles[row["section"]], row["flag"], row["reason"], sep=" | ")
        for flag, title in (
            ("pass", "immunostain"),
            ("look", "list 1 mm off"),
            ("fail", "a handful of cells"),
        ):
            section = next(name for name in titles if titles[name] == title)
            Image.open(folder / "out" / section / "overlay.png").convert("RGB").save(
                PICTURES / f"quality_{flag}.jpg", quality=88
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the gallery of the phantom, or register sections and draw theirs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the results of your own sections")
    own, others = parser.parse_known_args(arguments)
    if own.out is None:
        of_the_phantom()
        return
    atlalign(["register", *others, "--out", str(own.out)])
    draw(own.out, own.out.with_name(f"{own.out.name}.jpg"), {})


if __name__ == "__main__":
    main()
