"""One data set with nested training subsets; all subsets share the same validation planes.

python subsets.py ATLAS.h5 FOLDER: writes data.h5, val.npy and an .npy file for each number of samples.
"""

import sys
from pathlib import Path

import h5py
import numpy as np

from atlalign.atlas.atlas import file_atlas
from atlalign.data.demo import tissue_planes, write_demo
from atlalign.synthesis.online import hold_out

SIZES = (32, 128, 512, 4800)
FIELDS_PER_PLANE = 16
N_VAL = 200


def main(atlas_path: str, out: str) -> None:
    folder = Path(out)
    atlas = file_atlas(atlas_path, image_shape=(64, 96), with_annotation=False)
    planes = tissue_planes(atlas)
    path = folder / "data.h5"
    write_demo(path, atlas, n_sections=len(planes), fields_per_section=FIELDS_PER_PLANE)
    with h5py.File(path) as file:
        plane = file["image_id"][:]
    # Validation uses blocks of neighbouring planes, and no training plane lies within 100 µm of them.
    train, val = hold_out(planes, val_fraction=0.2, n_blocks=4, margin=4, seed=0)
    order = np.random.default_rng(0).permutation(len(plane))
    pool = order[np.isin(plane[order], train)]
    np.save(folder / "val.npy", order[np.isin(plane[order], val)][:N_VAL])
    for size in SIZES:
        if size > len(pool):
            raise SystemExit(f"expected {size} samples, found {len(pool)}")
        np.save(folder / f"{size}.npy", pool[:size])


if __name__ == "__main__":
    main(*sys.argv[1:])
