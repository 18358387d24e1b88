"""From images alone to the plane of each: one section at a time, or the sections of a brain together."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import Anchoring, Matrix
from atlalign.errors import InputError
from atlalign.io.images import one_channel, open_channels
from atlalign.localization.fit import Frame, Lie
from atlalign.localization.proposals import Proposal, propose
from atlalign.localization.search import Curve, Found, Search, second_place
from atlalign.localization.series import Series, common, in_order, numbers_of, on_a_line
from atlalign.localization.views import SeenTissue, seen_tissue
from atlalign.localization.volume import AtlasVolume
from atlalign.models import load_model
from atlalign.networks.plane_locator import PlaneLocatorNet
from atlalign.registration.jobs import Job
from atlalign.registration.options import Options
from atlalign.registration.placement import Section, read_section

SHIPPED_LOCATOR = Path(__file__).parents[1] / "weights" / "locator.safetensors"
"""The network that comes with the package."""

_COLUMNS_PX = 228  # across the atlas: what the shipped registration works at
_SIZES_DIFFER = 0.15  # of an atlas's length from that of the training
_NOWHERE_MM = 2.0  # the error that a network expects of images that are no sections
_UNSURE_MM = 0.3
_LITTLE_LIKE = 0.5  # of solid sections in their places, only those at the ends of the brain are less like
_APART_MM = 0.4
_AS_WELL = 1.5  # logarithm of the odds
_SECOND_TRY = (
    1.5  # another turn is tried as well if its expected error is at most so many times that of the best
)
# Two pieces are two sections if the network expects at most these errors of both.
_HALF_AS_LARGE = 0.5
_SURE_MM = 1.0
_SURER = 0.5  # times the error that it expects of both together
_LEAST_SERIES = 3
_SLOPE_DOUBT = 0.04  # of a section's own slopes, beyond their standard deviation


@dataclass(frozen=True, eq=False)
class Located:
    """Where a section lies.

    Attributes:
        job: The image.
        brain: Which brain it is of: what its list says, or its folder.
        number: Its number in the series.
        side: whole, left or right.
        anchoring: Of the image; None where it fits nowhere.
        position_um: Along the axis, at the centre of the image.
        tilt_deg: Of the plane, about the two other axes of the atlas: of coronal ones the slope along ML and along DV.
        error_um: The position's standard deviation.
        error_deg: Those of the tilts.
        likeness: To the plane, once registered.
        flag: pass, look or fail.
        reason: Why it is not pass.
        other_um: Another position that fits about as well, if there is one.
        curve: How well it fits along the axis, by itself.
        alone_um: The position at its tissue's centre by itself.
        placed_um: The position at its tissue's centre as it is located.
        pictures: The plane of the atlas, and the section as it lies there, each (H, W) in 8 bits.
    """

    job: Job
    brain: str
    number: int
    side: str = ""
    anchoring: Anchoring | None = None
    position_um: float = math.nan
    tilt_deg: tuple[float, float] = (math.nan, math.nan)
    error_um: float = math.nan
    error_deg: tuple[float, float] = (math.nan, math.nan)
    likeness: float = math.nan
    flag: str = "pass"
    reason: str = ""
    other_um: float = math.nan
    curve: Curve | None = None
    alone_um: float = math.nan
    placed_um: float = math.nan
    pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None

    def placed_job(self) -> Job:
        """Return the image with its place, or the reason why it has none."""
        if self.anchoring is None:
            return self.job._replace(problem=self.reason)
        half = {} if self.side == "whole" else {"hemisphere": self.side}
        return self.job._replace(
            position_um=self.anchoring.position_um,
            anchoring=self.anchoring,
            options={**half, **self.job.options},
        )


class Locator:
    """Locates sections in an atlas.

    Args:
        atlas: With region ids.
        network: That proposes planes; None for the one that comes with the package.
        registration: That registers sections to planes; None for the one that comes with the package.

    Raises:
        InputError: If the atlas has no region ids, or another size than the network was trained for.
    """

    def __init__(
        self,
        atlas: Atlas,
        *,
        network: nn.Module | str | Path | None = None,
        registration: nn.Module | str | Path | None = None,
    ) -> None:
        loaded = network if isinstance(network, nn.Module) else load_model(network or SHIPPED_LOCATOR)
        if not isinstance(loaded, PlaneLocatorNet):
            raise InputError(
                f"expected a network that locates sections (PlaneLocatorNet), got {type(loaded).__name__}"
            )
        self.network = loaded
        self.volume = AtlasVolume.of(atlas, voxel_um=_width_um(atlas) / _COLUMNS_PX)
        self.coarse_mm = 2 * _width_um(atlas) / _COLUMNS_PX / 1000
        _check_size(self.volume, loaded, atlas.name)
        self.registration = registration if isinstance(registration, nn.Module) else load_model(registration)

    def frame(self, across: int) -> Frame:
        """Return the coarse images of planes across an axis."""
        return Frame(self.volume, across, self.coarse_mm)

    def look(self, job: Job) -> "Looked":
        """Return what an image shows, and the best place by itself at wide steps.

        Raises:
            InputError: If the image cannot be read, or does not show one section.
        """
        if job.problem:
            raise InputError(job.problem)
        options = Options(**job.options)
        image = open_channels(job.path, scene=options.scene, page=options.page, z=options.z)
        channel = one_channel(image, options.channel, job.path.name)
        section = read_section(channel, (160, _COLUMNS_PX), background=options.background, name=job.path.name)
        tissue = seen_tissue(section, job.path.name)
        proposals = propose(self.network, self.volume, section, tissue)
        _check_one_section(self, section, tissue, proposals[0], job.path.name)
        best, *others = proposals
        tried = [best, *(other for other in others if other.error_mm <= _SECOND_TRY * best.error_mm)]
        looked = [self._looked(section, tissue, proposal) for proposal in tried]
        return max(looked, key=lambda one: one.found.curve.odds.max())

    def _looked(self, section: Section, tissue: SeenTissue, proposal: Proposal) -> "Looked":
        normal = np.cross(proposal.matrix[:, 0], proposal.matrix[:, 1])
        frame = self.frame(int(np.abs(normal).argmax()))
        search = Search(self.registration, frame, section, tissue, proposal)
        return Looked(section, search, search.look())


class Looked(NamedTuple):
    """A section that was looked at by itself."""

    section: Section
    search: Search
    found: Found


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
        name: None if independent else numbers_of([jobs[place].path for place in places])
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
        located |= dict(zip(together, _in_series(begun, own, order, section_spacing_um), strict=True))
        located |= {place: _alone(starts[place], seen[place]) for place in seen if place not in together}
    return [located[place] for place in range(len(jobs))]


def _tried(locator: Locator, start: Located) -> Looked | str:
    """Return what an image shows, or why nothing can be said of it."""
    try:
        return locator.look(start.job)
    except InputError as error:
        return str(error)


# --- one section ------------------------------------------------------------------------------------------------------


def _alone(start: Located, looked: Looked) -> Located:
    """Return where a section lies by itself."""
    if looked.found.proposal.error_mm > _NOWHERE_MM:
        return _nowhere(start, looked)
    search = looked.search
    found = search.settle(looked.found)
    curve = looked.found.curve.merged(found.curve)
    placed_mm = float(search.height(found.lie.plane, found.pivot))
    other = second_place(curve, _APART_MM, _AS_WELL)
    error_mm = max(curve.error_mm, found.curve.error_mm)
    return _judged(
        replace(
            _placed(start, looked, found.lie),
            side=found.side,
            likeness=found.likeness,
            error_um=1000 * error_mm,
            error_deg=_degrees(found.slopes_error),
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


def _placed(start: Located, looked: Looked, lie: Lie) -> Located:
    """Return a section with the plane on which it lies."""
    frame = looked.search.frame
    matrix = lie.matrix(frame)
    height, width = looked.section.shape
    middle = matrix @ ((width - 1) / 2, (height - 1) / 2, 1.0)
    problem = ""
    anchoring = None
    try:
        anchoring = anchoring_of(matrix, looked.section.shape)
    except InputError as error:
        problem = str(error)
    return replace(
        start,
        anchoring=anchoring,
        pictures=looked.search.finer.pictures(lie),
        position_um=1000 * float(middle[frame.across]),
        tilt_deg=_degrees(lie.plane[[2, 1]]),
        flag="look" if problem else "pass",
        reason=problem,
    )


def anchoring_of(matrix: Matrix, shape: tuple[int, int]) -> Anchoring:
    """Return the anchoring of an image (h, w) whose pixels a matrix (3, 3) takes to (AP, DV, ML) in mm."""
    height, width = shape
    share_to_pixel = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1.0]])
    return Anchoring.of_points_um(1000 * matrix @ share_to_pixel, shape)


def _judged(located: Located) -> Located:
    """Return a section with what there is to look at."""
    reasons = [located.reason] if located.reason else []
    if not math.isnan(located.other_um):
        reasons.append(f"it fits about as well at {located.other_um:.0f} µm")
    if located.error_um > 1000 * _UNSURE_MM:
        reasons.append(f"its position is uncertain by ±{located.error_um:.0f} µm")
    if located.likeness < _LITTLE_LIKE:
        reasons.append(f"it is little like its plane ({located.likeness:.2f})")
    return replace(located, flag="look" if reasons else "pass", reason="; ".join(reasons))


def _degrees(slopes: np.ndarray) -> tuple[float, float]:
    first, second = np.rad2deg(np.arctan(slopes))
    return float(first), float(second)


# --- a series ---------------------------------------------------------------------------------------------------------


def _in_series(
    starts: Sequence[Located],
    looked: Sequence[Looked],
    numbers: Sequence[float] | None,
    section_spacing_um: float | None,
) -> list[Located]:
    """Return where the sections of a series lie: on planes of one angle, in the order of their numbers."""
    own = np.array([one.found.lie.plane[1:] for one in looked])
    errors = np.array([np.hypot(one.found.slopes_error, _SLOPE_DOUBT) for one in looked])
    slopes = np.array([common(own[:, axis], errors[:, axis]) for axis in (0, 1)])
    slope_errors = 1.25 * 1.48 * np.median(np.abs(own - slopes), axis=0) / math.sqrt(len(own))
    curves, arms = [], []
    for one in looked:
        tilted = one.found.lie.on(_tilted(one, slopes))
        _, near = one.search.along(tilted, np.arange(-4.0, 5.0))
        curves.append(one.found.curve.merged(near))
        arms.append(float(one.search.arms(one.found.pivot) @ slopes))
    # Positions at the middle of the atlas, where parallel planes are equally far apart.
    middle = [
        Curve(curve.position_mm - arm, curve.odds, curve.likeness)
        for curve, arm in zip(curves, arms, strict=True)
    ]
    spacing_mm = None if section_spacing_um is None else section_spacing_um / 1000
    series = in_order(middle) if numbers is None else on_a_line(middle, numbers, spacing_mm)
    return [
        _member(start, one, curve, arm, series, place, slopes, slope_errors)
        for place, (start, one, curve, arm) in enumerate(zip(starts, looked, curves, arms, strict=True))
    ]


def _tilted(looked: Looked, slopes: np.ndarray) -> np.ndarray:
    """Return the plane of a section with other slopes about the centre of its tissue."""
    search, lie = looked.search, looked.found.lie
    height = search.height(lie.plane, looked.found.pivot)
    return np.array([height - search.arms(looked.found.pivot) @ slopes, *slopes])


def _member(
    start: Located,
    looked: Looked,
    curve: Curve,
    arm: float,
    series: Series,
    place: int,
    slopes: np.ndarray,
    slope_errors: np.ndarray,
) -> Located:
    """Return a section at its place in the series."""
    middle_mm = float(series.position_mm[place])
    placed_um, alone_um = 1000 * (middle_mm + arm), 1000 * curve.best_mm
    lie = looked.found.lie.on(np.array([middle_mm, *slopes]))
    lie = looked.search.finer.straightened(lie)
    located = replace(
        _placed(start, looked, lie),
        side=looked.found.side,
        likeness=float(np.interp(placed_um / 1000, curve.position_mm, curve.likeness)),
        error_um=1000 * float(series.error_mm[place]),
        error_deg=_degrees(slope_errors[::-1]),
        curve=curve,
        alone_um=alone_um,
        placed_um=placed_um,
    )
    if not series.fits[place] and abs(alone_um - placed_um) > 1000 * _APART_MM:
        apart = f"by itself it fits at {alone_um:.0f} µm, not at its place in the series, {placed_um:.0f} µm"
        located = replace(located, reason="; ".join(filter(None, [located.reason, apart])))
    return _judged(located)


# --- checks -----------------------------------------------------------------------------------------------------------


def _width_um(atlas: Atlas) -> float:
    return atlas.pixel_um[0] * atlas.image_shape[1]


def _check_size(volume: AtlasVolume, network: PlaneLocatorNet, name: str) -> None:
    """Raise an error where an atlas has another size than that of the network's training."""
    size = [far - first for far, first in zip(volume.extent_mm, volume.first_mm.tolist(), strict=True)]
    if max(abs(own / known - 1) for own, known in zip(size, network.extent_mm, strict=True)) > _SIZES_DIFFER:
        found, known = (
            " × ".join(f"{value:.1f}" for value in extent) for extent in (size, network.extent_mm)
        )
        raise InputError(
            f"atlas '{name}': expected about {known} mm (AP × DV × ML), for which the network was trained, found "
            f"{found} mm: train one for this atlas (python train.py experiment=locator), or give positions"
        )


def _check_one_section(
    locator: Locator, section: Section, tissue: SeenTissue, whole: Proposal, name: str
) -> None:
    """Raise an error where two pieces of tissue are each a section by themselves."""
    if len(tissue.pieces) < 2 or tissue.pieces[1].area < _HALF_AS_LARGE * tissue.pieces[0].area:
        return
    alone = [propose(locator.network, locator.volume, section, piece)[0] for piece in tissue.pieces[:2]]
    sure_mm = min(_SURE_MM, _SURER * whole.error_mm)
    if all(one.side == "whole" and one.error_mm < sure_mm for one in alone):
        raise InputError(
            f"{name}: expected one section, found two: separate them (atlalign sections {name} --out FOLDER)"
        )
