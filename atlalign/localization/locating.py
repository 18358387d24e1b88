"""Localization of sections from images alone: one section at a time, or the sections of a brain together."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from atlalign.errors import InputError
from atlalign.localization.brain import KeptSection, NewSection, in_series
from atlalign.localization.located import APART_MM, LITTLE_LIKE, Located, in_degrees, judged, on_plane
from atlalign.localization.locator import Locator, Looked
from atlalign.localization.search import Found, second_place
from atlalign.localization.series import numbers_of
from atlalign.registration.jobs import Job

_NOWHERE_MM = 2.0  # the error that the network expects for images that show no section
_AS_WELL = 1.5  # logarithm of the odds
_LEAST_SERIES = 3
_LARGEST_SPACING_UM = 1e5
_NO_SERIES = (
    "most sections of this brain do not lie in the order of their numbers, so each was located alone: check the "
    "numbers, or locate each section alone (--independent)"
)
_PROPOSAL_ERRORS = 0.7  # of the network's: measured on sections of gene expression


def locate(
    jobs: Sequence[Job],
    locator: Locator,
    *,
    independent: bool = False,
    section_spacing_um: float | None = None,
    known: Mapping[int, Located] | None = None,
    progress: Callable[[Iterable[Job]], Iterable[Job]] = iter,
) -> list[Located]:
    """Return located sections; the sections of one brain are located together.

    Args:
        jobs: The images, with their brain if there are several.
        locator: The atlas and the networks.
        independent: Locate each section alone.
        section_spacing_um: The distance between sections whose numbers differ by 1, if known.
        known: Sections located earlier, by their index among the jobs. They keep their planes. New sections of the same
            brain get the same cutting angle, and positions on the same line.
        progress: Wraps the images during the first pass.

    Raises:
        InputError: If the spacing is not above 0, or the only brain has two sections with the same number; among
            several brains, such a brain is skipped.

    Example:
        >>> from pathlib import Path
        >>> from atlalign.atlas.atlas import phantom_atlas
        >>> locator = Locator(phantom_atlas(image_shape=(40, 57), spacing_um=600))
        >>> [found] = locate([Job(Path("section.tif"), problem="no such file")], locator)
        >>> found.flag, found.position_um, found.anchoring
        ('fail', nan, None)
    """
    if section_spacing_um is not None and not 0 < section_spacing_um < _LARGEST_SPACING_UM:
        raise InputError(f"--section-spacing-um: expected more than 0 µm, got {section_spacing_um:g}")
    brains = _brains(jobs)
    numbers, problems = ({}, {}) if independent else _numbers(jobs, brains)
    starts = [
        Located(
            job,
            job.brain or job.path.absolute().parent.name,
            numbers.get(place, job.number),
            reason=locator.doubt,
        )
        for place, job in enumerate(jobs)
    ]
    known = known or {}
    located = dict(known) | {
        place: replace(starts[place], flag="fail", reason=problem) for place, problem in problems.items()
    }
    new = [place for place in range(len(jobs)) if place not in located]
    looks = (_tried(locator, job) for job in progress([jobs[place] for place in new]))
    seen: dict[int, NewSection] = {}
    for place, look in zip(new, looks, strict=True):
        if isinstance(look, str):
            located[place] = replace(starts[place], flag="fail", reason=look)
        elif look.found.proposal.error_mm > _NOWHERE_MM:
            located[place] = _nowhere(starts[place], look, locator.network.cut)
        else:
            seen[place] = NewSection(starts[place], look)
    for places in brains:
        own = {place: seen[place] for place in places if place in seen}
        kept = {place: known[place] for place in places if place in known}
        if independent or not own or len(own) + len(kept) < _LEAST_SERIES:
            located |= {place: _alone(section) for place, section in own.items()}
        else:
            line = _places_on_line(places, numbers, section_spacing_um)
            located |= _together(own, kept, line, section_spacing_um)
    return [located[place] for place in range(len(jobs))]


def _brains(jobs: Sequence[Job]) -> list[list[int]]:
    """Return the indexes of the sections of each brain among the jobs."""
    names = [job.brain or str(job.path.absolute().parent) for job in jobs]
    return [[place for place, own in enumerate(names) if own == name] for name in dict.fromkeys(names)]


def _numbers(jobs: Sequence[Job], brains: Sequence[Sequence[int]]) -> tuple[dict[int, int], dict[int, str]]:
    """Return, by index, each section's number, and a problem for each section of a brain that repeats a number."""
    numbers: dict[int, int] = {}
    problems: dict[int, str] = {}
    for places in brains:
        try:
            found = _given_numbers([jobs[place] for place in places])
        except InputError as error:
            if len(brains) == 1:
                raise
            problems |= dict.fromkeys(places, str(error))
            continue
        numbers |= dict(zip(places, found or (), strict=False))
    return numbers, problems


def _places_on_line(
    places: Sequence[int], numbers: Mapping[int, int], section_spacing_um: float | None
) -> dict[int, float] | None:
    """Return the places of a brain's sections on its line, by number, or by order if the spacing is known."""
    if all(place in numbers for place in places):
        return {place: float(numbers[place]) for place in places}
    if section_spacing_um is not None:
        return {place: float(order) for order, place in enumerate(places)}
    return None


def _given_numbers(jobs: Sequence[Job]) -> list[int] | None:
    return numbers_of([job.path for job in jobs], [job.section_number for job in jobs])


def _tried(locator: Locator, job: Job) -> Looked | str:
    """Return the result of the first pass over an image, or the error."""
    try:
        return locator.look(job)
    except InputError as error:
        return str(error)


def _together(
    new: Mapping[int, NewSection],
    kept: Mapping[int, Located],
    numbers: Mapping[int, float] | None,
    section_spacing_um: float | None,
) -> dict[int, Located]:
    """Return the located sections of a brain, by their index among all jobs."""
    frame = next(iter(new.values())).looked.search.frame
    members: dict[int, NewSection | KeptSection] = {**new}
    members |= {place: KeptSection.of(located, frame) for place, located in kept.items()}
    order = sorted(members)
    own = None if numbers is None else [numbers[place] for place in order]
    found = in_series([members[place] for place in order], own, section_spacing_um)
    if found is None:
        return {
            place: _alone(replace(one, start=_doubted(one.start, _NO_SERIES))) for place, one in new.items()
        }
    return dict(zip(order, found, strict=True))


def _doubted(start: Located, reason: str) -> Located:
    """Return a section with one more reason to check it."""
    return replace(start, reason="; ".join(filter(None, (start.reason, reason))))


def _alone(section: NewSection) -> Located:
    """Return a section located by itself."""
    looked = section.looked
    search = looked.search
    found = search.settle(looked.found)
    placed_um = 1000 * float(search.height(found.lie.plane, found.pivot))
    other = second_place(found.curve, APART_MM, _AS_WELL)
    return judged(
        replace(
            on_plane(section.start, looked, found.lie),
            side=found.side,
            likeness=found.likeness,
            error_um=1000 * _position_error_mm(found),
            error_deg=in_degrees(found.slopes_error[::-1]),
            other_um=math.nan if other is None else 1000 * other,
            curve=found.curve,
            alone_um=placed_um,
            placed_um=placed_um,
        )
    )


def _position_error_mm(found: Found) -> float:
    """Return the standard deviation of a position; at low likeness, it includes the proposal's expected error."""
    if found.likeness >= LITTLE_LIKE:
        return found.curve.error_mm
    return math.hypot(found.curve.error_mm, _PROPOSAL_ERRORS * found.proposal.error_mm)


def _nowhere(start: Located, looked: Looked, cut: str) -> Located:
    error_um = 1000 * looked.found.proposal.error_mm
    reason = (
        f"it fits no plane: the network, which knows {cut} sections, expects an error of {error_um:.0f} µm; check that "
        f"the image shows one {cut} section of the atlas's species"
    )
    return replace(start, flag="fail", reason=reason, curve=looked.found.curve)
