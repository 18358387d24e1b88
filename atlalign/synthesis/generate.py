"""Generated data sets: originals under known random deformations, written as an h5 file that records its settings.

A sample depends only on the seed and its own number, not on the process that makes it. The samples of one original are
a part, which is written atomically into the folder `<out>.partial`. Finished parts are copied into one file, which then
gets its final name. The same command therefore resumes after a crash and gives the same bytes. A lock, which ends with
its process, keeps other runs from writing the same file.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from atlalign.arguments import build, check_kinds_of
from atlalign.atlas.atlas import PHANTOM, Atlas
from atlalign.errors import InputError, check_numbers, check_processes, check_size
from atlalign.synthesis.assembly import Counts, figure_path, publish
from atlalign.synthesis.parts import write_parts
from atlalign.synthesis.samples import SampleRecipe
from atlalign.synthesis.unfinished import (
    UnfinishedError,
    check_free,
    only_run,
    open_partial,
    sentences_about,
    settings_of,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

_LEAST = {
    "per_original": 1,
    "max_trials": 1,
    "max_corrupted_pixels": 1,
    "max_difference": 0.0,
    "seed": 0,
    "workers": 0,
}
_KINDS: Mapping[str, Any] = {
    "out": str,
    "per_original": int,
    "max_trials": int,
    "max_corrupted_pixels": int,
    "max_difference": float,
    "seed": int,
    "workers": int,
}
_BYTES_A_PIXEL = 9  # per stored sample: its image and two fields


def generate(config: "DictConfig") -> Path:
    """Write the data set of `conf/generate.yaml` and a figure of samples beside it, and return the file's path.

    Raises:
        InputError: If the configuration or the input is invalid (no file is left), or another run is writing the file.
        UnfinishedError: If the disk is full or a process was killed; the same command resumes the work.
    """
    _check_values(config)
    out = Path(config.out).expanduser()
    check_free(out)
    request = settings_of(config)
    recipe = _build_recipe(config)
    check_size("per_original", (recipe.per_original, *recipe.source.image_shape), _BYTES_A_PIXEL)
    atlas = _atlas_to_show(config)
    with only_run(out):
        check_free(out)  # another run may have finished in the meantime
        counts = _make(recipe, out, request, config.workers, atlas)
    _print_report(counts, out)
    return out


def _check_values(config: "DictConfig") -> None:
    """Check the settings that are not passed to any object, which would check them itself."""
    check_kinds_of(config, _KINDS)
    check_numbers(config, _LEAST)
    check_processes("workers", config.workers)


def _make(
    recipe: SampleRecipe, out: Path, request: dict[str, Any], workers: int, atlas: Atlas | None
) -> "Counts":
    """Write the missing parts of the data set, and give the finished file its name."""
    partial = open_partial(out, request, recipe.source.files)
    try:
        with sentences_about(out):
            write_parts(recipe, partial, workers)
            return publish(recipe, partial, out, request, atlas)
    except Exception as error:
        mistaken = isinstance(error, InputError) and not isinstance(error, UnfinishedError)
        if mistaken or not any(partial.glob("part-*.h5")):
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _atlas_to_show(config: "DictConfig") -> Atlas | None:
    """Return the atlas to show in the figure; None if the source is an atlas itself, or the atlas is the phantom."""
    target = str(config.atlas._target_)
    if "atlas" in config.source or target.endswith(f".{PHANTOM}_atlas"):
        return None
    atlas: Atlas = build(config.atlas, with_annotation=False)
    return atlas


def _build_recipe(config: "DictConfig") -> SampleRecipe:
    from hydra.errors import InstantiationException

    try:
        parts = {name: build(config[name]) for name in ("source", "deformation")}
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    names = ("per_original", "max_trials", "max_corrupted_pixels", "max_difference", "seed")
    return SampleRecipe(**parts, **{name: config[name] for name in names})


def _print_report(counts: Counts, out: Path) -> None:
    table = Table(title=str(out), title_justify="left")
    table.add_column("")
    table.add_column("number", justify="right")
    table.add_row("samples wanted", str(counts.wanted))
    table.add_row("samples kept", str(counts.kept))
    table.add_row("samples left out", str(counts.left_out))
    for reason, number in counts.rejected.items():
        table.add_row(f"draws rejected: {reason}", str(number))
    console = Console()
    console.print(table)
    console.print(f"samples are shown in [bold]{figure_path(out)}[/bold]")
