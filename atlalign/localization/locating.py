"""From images alone to the plane of each: one section at a time, or the sections of a brain together."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from atlalign.errors import InputError
from atlalign.localization.brain import in_series
from atlalign.localization.located import APART_MM, Located, in_degrees, judged, on_plane
from atlalign.localization.locator import Locator, Looked
from atlalign.localization.search import second_place
from atlalign.localization.series import numbers_of
from atlalign.registration.jobs import Job

_NOWHERE_MM = 2.0  # the error that a network expects of images that are no sections
_AS_WELL = 1.5  # logarithm of the odds
_LEAST_SERIES = 3


def locate(
    jobs: Sequence[Job],
    locator: Locator,
    *,
    independent: bool = False,
    section_spacing_um: float | None = None,
    progress: Callable[[Iterable[Job]], Iterable[Job]] = iter,
) -> list[Located]:
    """Return where sections lie, those of one brain together.

    Args:
        jobs: The images, with the brain of each where there are several.
        locator: The atlas and the networks.
        independent: Locate each section alone.
        section_spacing_um: The distance between sections whose numbers differ by 1, if known.
        progress: Wraps the images while they are looked at.

    Raises:
        InputError: If two sections of a brain have the same number.

    Example:
        >>> from pathlib import Path
        >>> from atlalign.atlas.atlas import phantom_atlas
        >>> locator = Locator(phantom_atlas(image_shape=(40, 57), spacing_um=600))
        >>> [found] = locate([Job(Path("section.tif"), problem="no such file")], locator)
        >>> found.flag, found.position_um, found.anchoring
        ('fail', nan, None)
    """
    names = [job.brain or str(job.path.absolute().parent) for job in jobs]
    groups = {
        name: [place for place, own in enumerate(names) if own == name] for name in dict.fromkeys(names)
    }
    numbers = {
        name: None if independent else _numbers([jobs[place] for place in places])
        for name, places in groups.items()
    }
    starts = [Located(job, job.brain or job.path.absolute().parent.name, job.number) for job in jobs]
    looked = [_tried(locator, start) for start, _ in zip(starts, progress(jobs), strict=True)]
    located: dict[int, Located] = {}
    for name, places in groups.items():
        known = numbers[name]
        for place, number in zip(places, known or [], strict=False):
            starts[place] = replace(starts[place], number=number)
        seen = {place: one for place in places if isinstance(one := looked[place], Looked)}
        located |= {
            place: replace(starts[place], flag="fail", reason=str(looked[place]))
            for place in places
            if place not in seen
        }
        together = [place for place, one in seen.items() if one.found.proposal.error_mm <= _NOWHERE_MM]
        if independent or len(together) < _LEAST_SERIES:
            located |= {place: _alone(starts[place], one) for place, one in seen.items()}
            continue
        order = [float(starts[place].number) for place in together] if known else None
        if order is None and section_spacing_um is not None:
            order = [float(places.index(place)) for place in together]
        own = [seen[place] for place in together]
        begun = [starts[place] for place in together]
        located |= dict(zip(together, in_series(begun, own, order, section_spacing_um), strict=True))
        located |= {place: _alone(starts[place], seen[place]) for place in seen if place not in together}
    return [located[place] for place in range(len(jobs))]


def _numbers(jobs: Sequence[Job]) -> list[int] | None:
    return numbers_of([job.path for job in jobs], [job.section_number for job in jobs])


def _tried(locator: Locator, start: Located) -> Looked | str:
    """Return what an image shows, or why nothing can be said of it."""
    try:
        return locator.look(start.job)
    except InputError as error:
        return str(error)


def _alone(start: Located, looked: Looked) -> Located:
    """Return where a section lies by itself."""
    if looked.found.proposal.error_mm > _NOWHERE_MM:
        return _nowhere(start, looked)
    search = looked.search
    found = search.settle(looked.found)
    curve = looked.found.curve.merged(found.curve)
    placed_mm = float(search.height(found.lie.plane, found.pivot))
    other = second_place(curve, APART_MM, _AS_WELL)
    error_mm = max(curve.error_mm, found.curve.error_mm)
    return judged(
        replace(
            on_plane(start, looked, found.lie),
            side=found.side,
            likeness=found.likeness,
            error_um=1000 * error_mm,
            error_deg=in_degrees(found.slopes_error),
            other_um=math.nan if other is None else 1000 * other,
            curve=curve,
            alone_um=1000 * placed_mm,
            placed_um=1000 * placed_mm,
        )
    )


def _nowhere(start: Located, looked: Looked) -> Located:
    reason = (
        f"it fits nowhere: the error to expect is {1000 * looked.found.proposal.error_mm:.0f} µm; is this one section "
        "of this species, cut as the network knows it?"
    )
    return replace(start, flag="fail", reason=reason, curve=looked.found.curve)
