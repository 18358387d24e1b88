"""Location of sections that are to be registered but have no position; later calls keep their planes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from atlalign.errors import InputError
from atlalign.io.files import fingerprint
from atlalign.localization.located import Located
from atlalign.localization.locating import locate
from atlalign.localization.locator import Locator
from atlalign.localization.recorded import ATLAS, LOCATED, Recorded
from atlalign.localization.results import write_located
from atlalign.recognition.judge import SHIPPED_LOCATOR
from atlalign.registration.earlier import check_unplaced
from atlalign.registration.jobs import Job
from atlalign.registration.options import ReadingOptions
from atlalign.registration.recipe import Recipe
from atlalign.registration.references import AtlasReferences


class LocatedJobs(NamedTuple):
    """Jobs whose sections all have a position, if one could be found.

    Attributes:
        jobs: All jobs in their order, with the plane of each located section, or the reason why it has none.
        located: The sections that had no position.
        kept: The number of these sections that keep the plane of an earlier call.
        files: The files written: the list of anchorings and the table; none if every section keeps its plane.
        locator: The network that located the sections, in words; empty if every section keeps its plane.
    """

    jobs: list[Job]
    located: Sequence[Located] = ()
    kept: int = 0
    files: tuple[Path, ...] = ()
    locator: str = ""


def locate_unplaced(
    jobs: Sequence[Job],
    recipe: Recipe,
    out: str | Path,
    *,
    locator: str | Path | None = None,
    independent: bool = False,
    section_spacing_um: float | None = None,
    overwrite: bool = False,
    progress: Callable[[Iterable[Job]], Iterable[Job]] = iter,
) -> LocatedJobs:
    """Return jobs in which every section without a position has been located in the recipe's atlas.

    A section is located again only if its image, the atlas or the options have changed. New sections of a brain are
    placed between its other sections. A section whose results were made with other settings is not located, and its job
    says why. If the recipe's reference is an image, the jobs are returned as they are.

    Args:
        jobs: The sections to register.
        recipe: The atlas, and the options for reading the images.
        out: The folder of results, which also keeps the planes.
        locator: A network trained with `atlalign train experiment=locator`; None for the one that comes with the
            package.
        independent: Locate each section alone.
        section_spacing_um: The distance between sections whose numbers differ by 1, if known.
        overwrite: Also locate sections whose results were made with other settings; give it to `register_batch` too.
        progress: Wraps the images during the first pass.

    Raises:
        InputError: If an option is invalid, or the sections cannot be located in this atlas.

    Example:
        >>> from atlalign.registration import atlas_recipe
        >>> recipe = atlas_recipe("phantom", image_shape=(64, 96))
        >>> jobs = [Job(Path("a.tif"), position_um=6000.0), Job(Path("b.tif"), problem="no such file")]
        >>> locate_unplaced(jobs, recipe, "registered").jobs == jobs  # neither needs a position
        True
    """
    references = recipe.references
    if not any(map(_is_unplaced, jobs)) or not isinstance(references, AtlasReferences):
        return LocatedJobs(list(jobs))
    network = SHIPPED_LOCATOR if locator is None else Path(locator)
    if not network.exists():
        raise InputError(f"--locator: expected a file, found none: {network}")
    record = Recorded(
        Path(out),
        {
            ATLAS: references.origin["reference_sha256"],
            "locator_sha256": fingerprint(network),
            "independent": independent,
            "section_spacing_um": section_spacing_um,
        },
    )
    checked = list(jobs) if overwrite else [_checked(job, recipe, record) for job in jobs]
    unplaced = list(filter(_is_unplaced, checked))
    if not unplaced:
        return LocatedJobs(checked)
    as_read = [_as_read(job, recipe) for job in unplaced]
    found = _located(as_read, references, record, progress, locator, independent, section_spacing_um)
    placed = {
        id(job): replace(one, job=job).placed_job() for job, one in zip(unplaced, found.located, strict=True)
    }
    return found._replace(jobs=[placed.get(id(job), job) for job in checked])


def _is_unplaced(job: Job) -> bool:
    return job.position_um is None and not job.problem


def _as_read(job: Job, recipe: Recipe) -> Job:
    """Return a job with all options for reading its image: its own, and the recipe's for the rest."""
    common = {entry.name: getattr(recipe.options, entry.name) for entry in fields(ReadingOptions)}
    return job._replace(options={**common, **job.options})


def _checked(job: Job, recipe: Recipe, record: Recorded) -> Job:
    """Return a job, with a problem if it has no position and its earlier results were made with other settings."""
    if not _is_unplaced(job):
        return job
    try:
        check_unplaced(job, recipe, record.folder, record.changed(_as_read(job, recipe)))
    except InputError as error:
        return job._replace(problem=str(error))
    except OSError:  # a missing image fails later, when it is read
        pass
    return job


def _located(
    jobs: Sequence[Job],
    references: AtlasReferences,
    record: Recorded,
    progress: Callable[[Iterable[Job]], Iterable[Job]],
    network: str | Path | None,
    independent: bool,
    section_spacing_um: float | None,
) -> LocatedJobs:
    """Locate the sections of all jobs, and return the jobs, which do not have these planes yet."""
    out = record.folder
    known = record.unchanged(jobs)
    if len(known) == len(jobs) and (out / LOCATED).is_file():
        return LocatedJobs(list(jobs), [known[place] for place in range(len(jobs))], len(known))
    locator = Locator(references.atlas, network=network)
    located = locate(
        jobs,
        locator,
        independent=independent,
        section_spacing_um=section_spacing_um,
        known=known,
        progress=progress,
    )
    record.write(located)
    table = write_located(out / LOCATED, [*located, *record.others(jobs)], references.target)
    return LocatedJobs(list(jobs), located, len(known), (out / LOCATED, table), locator.said)
