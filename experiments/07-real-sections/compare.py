"""Registrations of real and synthetic sections side by side: classical methods, and ours.

Parts: (a) real sections and the same under a known warp: do the two registrations agree with it? (b) The real
sections as they are. (c) Planes of the atlas in synthetic contrasts under known fields. (d) Planes of a stained volume
under known fields. (e) As (a), with gene expression alone. (f) A section of another species, for looking at. (g) As
(a), on located planes.

All methods register the same two images on the same grid, placed by the same anchoring. Fields are kept in OUT/fields,
so that a stopped run can be resumed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from atlalign.atlas.atlas import file_atlas
from atlalign.atlas.section_lists import read_list
from atlalign.errors import InputError
from atlalign.io.files import fingerprint, written_whole
from atlalign.models import SHIPPED_MODEL, read_origin
from methods import METHODS, Kept, make_methods
from pairs import read_stain, spread
from parts import PARTS, Setting, measured
from results import marks, tables, write_results

TABLES = "tables.md"
_NEEDED = {"d": "--stain", "e": "--expression", "f": "--other", "g": "--located"}


def grids(setting: Setting, options: argparse.Namespace, model: Path) -> str:
    """Return a sentence on the image sizes that the methods use, for the head of the tables."""
    (height, width), shape = setting.size, read_origin(model).image_shape
    own = "" if shape is None else f" Our network sees them at {shape[0]}×{shape[1]} px."
    threads = "1 thread" if options.threads == 1 else f"{options.threads} threads"
    return (
        f"Images have {height}×{width} px for all methods, and all measures are taken at this size.{own} "
        f"Refinement takes {options.steps} steps. Times are medians on {threads}.\n\n"
    )


def compare(options: argparse.Namespace) -> None:
    atlas = file_atlas(options.atlas, spacing_um=options.spacing_um, ontology_path=options.ontology)
    if atlas.annotation is None:
        raise InputError(f"{options.atlas}: expected an atlas with an annotation, found none")
    if min(options.only, options.planes, options.threads, *options.size) < 1:
        raise InputError("expected --only, --planes, --threads and --size to be at least 1")
    sections = spread(read_list(options.sections), options.only)
    setting = Setting(
        atlas,
        sections,
        tuple(options.size),
        options.planes,
        None if options.stain is None else read_stain(options.atlas, options.stain),
        () if options.expression is None else spread(read_list(options.expression), options.only),
        options.other,
        () if options.located is None else spread(read_list(options.located), options.only),
    )
    if unknown := sorted(set(options.parts or ()) - set(setting.parts)):
        raise InputError(f"--parts {unknown[0]}: expected {_NEEDED[unknown[0]]}, found none")
    torch.set_num_threads(options.threads)
    model = options.model or SHIPPED_MODEL
    weights = fingerprint(model)
    find = Kept(
        make_methods(options.methods, model, options.steps),
        options.out / "fields",
        {"ours": weights, "ours_refined": f"{weights} {options.steps}"},
        options.again,
    )
    results = measured(setting, options.parts or setting.parts, find)
    write_results(options.out, setting, results, find)
    text = grids(setting, options, model) + tables(results)
    with written_whole(options.out / TABLES) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    about = {name: getattr(options, name) for name in ("size", "threads", "steps")} | {"model": weights}
    content = {**about, "results": results, "marks": [mark._asdict() for mark in marks(results)]}
    with written_whole(options.out / "results.json") as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--atlas", type=Path, required=True, help="an h5 file with template and annotation")
    add("--spacing-um", type=float, default=25.0, help="the size of its voxels (default: %(default)s)")
    add("--sections", type=Path, required=True, help="the list of sections (.json of QuickNII or DeepSlice)")
    add("--ontology", type=Path, help="a table of the regions: Dice by depth")
    add(
        "--stain",
        metavar="DATASET",
        help="a stained volume in the atlas's file, of the same box, for part (d)",
    )
    add("--expression", type=Path, help="a list of sections with gene expression alone, for part (e)")
    add("--other", type=Path, help="a folder with section.tif, plane.tif and plane_labels.tif, for part (f)")
    add("--located", type=Path, help="a list of the sections on planes that were located, for part (g)")
    add("--out", type=Path, required=True, help="the folder to write")
    add("--model", type=Path, help="a model file (default: the one that ships)")
    add("--steps", type=int, default=40, help="of refinement (default: %(default)s)")
    add("--size", type=int, nargs=2, default=[320, 456], metavar=("H", "W"), help="(default: 320 456)")
    add("--only", type=int, metavar="N", default=sys.maxsize, help="so many sections, spread over the list")
    add("--planes", type=int, default=12, help="of the atlas, in parts (c) and (d) (default: %(default)s)")
    add("--methods", nargs="+", default=list(METHODS), metavar="NAME", help=", ".join(METHODS))
    add("--parts", nargs="+", choices=list(PARTS), help="(default: all for which there is data)")
    add("--again", nargs="+", default=[], metavar="NAME", help="methods to run again: their code has changed")
    add("--threads", type=int, default=2, help="of PyTorch, ANTs and elastix (default: %(default)s)")
    try:
        compare(parser.parse_args(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
