"""Print the table and draw the picture of this experiment from the results of `atlalign register`."""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS = 3
WIDTH_PX = 460


def main(folder: Path, picture: Path) -> None:
    with (folder / "registrations.csv").open() as file:
        rows = list(csv.DictReader(file))
    print("| section | mutual information, placed | registered | folds | there and back (µm) | flag |")
    print("|---|---:|---:|---:|---:|---|")
    for row in rows:
        before, after, folding, back = (
            float(row[name])
            for name in ("similarity_before", "similarity_after", "folding", "inverse_consistency_um")
        )
        name = row["section"].rpartition("_")[2]
        print(f"| {name} | {before:.3f} | {after:.3f} | {folding:.2%} | {back:.0f} | {row['flag']} |")
    draw([folder / row["section"] / "overlay.png" for row in rows]).save(picture, quality=80)


def draw(overlays: list[Path]) -> Image.Image:
    """Return the sections with the outlines of their regions, in rows."""
    tiles = []
    for path in overlays:
        image = Image.open(path).convert("RGB")
        # The left part has the height of the picture and the shape of the section.
        section = image.crop((0, 0, round(image.height * 1024 / 670), image.height))
        tiles.append(
            np.asarray(section.resize((WIDTH_PX, round(WIDTH_PX * 670 / 1024)), Image.Resampling.LANCZOS))
        )
    rows = [np.concatenate(tiles[i : i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
