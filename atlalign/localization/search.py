"""From a proposal to the best-fitting plane: first its position, then position and both slopes together.

The unit of steps is 1/132 of the brain's length, a tenth of a millimetre in a mouse.
"""

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from atlalign.atlas.planes import apply_affine, invert_affine
from atlalign.io.pixels import Floats
from atlalign.localization.fit import Fitter, Frame, Lie
from atlalign.localization.quadratic import Quadratic, design
from atlalign.localization.views import SeenTissue
from atlalign.recognition.answers import Proposal
from atlalign.registration.section import Section

STEPS_A_BRAIN = 132
_WIDE = np.array([-16, -13, -10, -8, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16], float)
_NEAR = np.array([-3, -2, -1, 0, 1, 2, 3], float)
_DESIGN = design(3)
_ROUNDS = (
    (2.0, 6.0),
    (1.5, 4.0),
    (1.0, 3.0),
)  # how far planes reach: in steps along the axis, and in degrees
_LONGEST_STEP = 1.3  # of these reaches
_TEMPERATURE = 0.03  # of likeness: a difference of this size corresponds to odds of e
_BENDS = 0.03  # the cost in likeness of narrow bends of a thousandth of the width
_OF_CELLS = 0.005  # as `_TEMPERATURE`, of the mean local correlation
_PRIOR_ERRORS = (
    0.5  # the standard deviation of a proposed position, relative to the error that the network expects
)
_LEAST_PRIOR_MM = 0.1
_PRIOR_SLOPE = 0.1  # the standard deviation of proposed slopes


@dataclass(frozen=True, eq=False)
class Curve:
    """A section's fit along the axis, in units in which a difference of 1 corresponds to odds of e.

    Attributes:
        position_mm: Ascending positions of the tissue's centre along the axis.
        odds: Logarithms of the odds, which include the network's proposal.
        likeness: The likeness to the planes at these positions, after registration.
    """

    position_mm: Floats
    odds: Floats
    likeness: Floats

    def at(self, position_mm: Floats | float) -> Floats:
        """Return the logarithm of the odds at positions, relative to the best one; beyond the ends, the lowest."""
        relative = self.odds - self.odds.max()
        worst = float(relative.min())
        found: Floats = np.interp(position_mm, self.position_mm, relative, left=worst, right=worst)
        return found

    @property
    def best_mm(self) -> float:
        """The best-fitting position, interpolated between the sampled ones."""
        return peak(self.position_mm, self.odds)

    @property
    def error_mm(self) -> float:
        """The standard deviation of the position under these odds."""
        fine = np.linspace(self.position_mm[0], self.position_mm[-1], 400)
        weight = np.exp(self.at(fine))
        mean = (fine * weight).sum() / weight.sum()
        return float(np.sqrt((np.square(fine - mean) * weight).sum() / weight.sum()))

    def moved(self, distance_mm: float) -> "Curve":
        """Return the curve moved back by this distance."""
        return replace(self, position_mm=self.position_mm + distance_mm)

    def merged(self, other: "Curve") -> "Curve":
        """Return both curves as one; at common positions, `other` is used."""
        kept = ~np.isclose(self.position_mm[:, None], other.position_mm, atol=1e-6).any(axis=1)
        parts = [
            np.concatenate([getattr(self, name)[kept], getattr(other, name)])
            for name in ("position_mm", "odds", "likeness")
        ]
        order = np.argsort(parts[0])
        return Curve(*(part[order] for part in parts))


@dataclass(frozen=True, eq=False)
class Found:
    """The best plane of one section.

    Attributes:
        lie: The position of the image.
        side: The part of the brain that it shows: one of `SIDES`.
        pivot: (right, down) in mm: the centre of its tissue, about which planes tilt and at which positions are
            measured.
        curve: The fit along the axis.
        slopes_error: The standard deviations of both slopes.
        proposal: The start of the search.
    """

    lie: Lie
    side: str
    pivot: Floats
    curve: Curve
    slopes_error: Floats
    proposal: Proposal

    @property
    def likeness(self) -> float:
        """The likeness at the best plane."""
        return float(np.interp(self.curve.best_mm, self.curve.position_mm, self.curve.likeness))


class Search:
    """Finds the plane of one section.

    Args:
        network: The registration network.
        frame: Coarse images of planes.
        section: The section.
        tissue: The section's tissue.
        proposal: The start of the search.
    """

    def __init__(
        self, network: nn.Module, frame: Frame, section: Section, tissue: SeenTissue, proposal: Proposal
    ) -> None:
        self.frame = frame
        self.tissue = tissue
        self.proposal = proposal
        self.fitter = Fitter(network, frame, section, proposal.side)
        self.finer = Fitter(network, frame.finer(), section, proposal.side)
        size = frame.volume.voxel_mm * frame.volume.labels.new_tensor(frame.volume.labels.shape)
        self.step_mm = float(size[frame.across]) / STEPS_A_BRAIN

    def look(self) -> Found:
        """Return the best plane: first along the axis, then position and slopes together."""
        lie = self.fitter.straightened(Lie.of(self.proposal.matrix, self.frame))
        lie, curve = self.along(lie, _WIDE)
        lie, slopes_error = self.refined(lie)
        return self.found(lie, curve, slopes_error)

    def refined(self, lie: Lie) -> tuple[Lie, Floats]:
        """Return the best plane near a known one, and the standard deviations of both slopes."""
        lie, slopes_error = self.fitter.straightened(lie), np.zeros(2)
        for steps, degrees in _ROUNDS:
            lie, slopes_error = self.tuned(lie, steps * self.step_mm, np.tan(np.deg2rad(degrees)))
            lie = self.fitter.straightened(lie)
        return lie, slopes_error

    def settle(self, found: Found) -> Found:
        """Return a plane with the section's fit along the axis near it."""
        _, curve = self.along(found.lie, _NEAR)
        return replace(found, curve=found.curve.merged(curve))

    def along(self, lie: Lie, steps: Floats, fitter: Fitter | None = None) -> tuple[Lie, Curve]:
        """Return the best plane along the axis, and the fit of all planes along it."""
        fitter = fitter or self.fitter
        pivot = self.pivot(lie)
        planes = lie.plane + np.outer(steps * self.step_mm, (1.0, 0.0, 0.0))
        likeness = fitter.likeness(lie, planes)
        position_mm = self.height(planes, pivot)
        curve = Curve(position_mm, self._odds(position_mm, likeness), likeness)
        moved = curve.best_mm - self.height(lie.plane, pivot)
        return lie.on(lie.plane + np.array([moved, 0, 0])), curve

    def tuned(self, lie: Lie, reach_mm: float, reach_slope: float) -> tuple[Lie, Floats]:
        """Return the plane that fits best near a known one, and the standard deviations of both slopes.

        The search tries planes with different positions and slopes. The result is the peak of the sum of three
        functions, weighted by their precision. The first is a quadratic through the likeness to these planes. The
        second is a sum of parabolas, one for each cell of the image: the local correlation there over the position of
        the plane there. The third is the proposal.
        """
        pivot = self.pivot(lie)
        start = np.array([self.height(lie.plane, pivot), *lie.plane[1:]])
        reach = np.array([reach_mm, reach_slope, reach_slope])
        planes = self.through(pivot, start + _DESIGN * reach)
        fit = self.fitter.fit(lie, planes)
        arms = self.fitter.cell_centres() - pivot[::-1]
        directions = reach * np.column_stack([np.ones(len(arms)), arms])
        odds = Quadratic.through(_DESIGN, (fit.likeness - _BENDS * fit.bends) / _TEMPERATURE)
        odds = odds.plus(Quadratic.of_parts(_DESIGN, directions, fit.cells / (_OF_CELLS * len(arms))))
        proposed = Lie.of(self.proposal.matrix, self.frame).plane
        expected = np.array([self.height(proposed, pivot), *proposed[1:]]) - start
        precision = np.square(reach / (self._proposal_error(1.0), _PRIOR_SLOPE, _PRIOR_SLOPE))
        odds = odds.with_prior(expected / reach, precision)
        step = odds.peak / max(1.0, float(np.abs(odds.peak).max()) / _LONGEST_STEP)
        plane = self.through(pivot, start + step * reach)
        return lie.on(plane), np.sqrt(odds.variances[1:]) * reach_slope

    def through(self, pivot: Floats, places: Floats) -> Floats:
        """Return the planes (…, 3) with these positions (…, 3) at the centre of the tissue, and slopes."""
        position = places[..., :1] - (places[..., 1:] @ self.arms(pivot))[..., None]
        return np.concatenate([position, places[..., 1:]], axis=-1)

    def found(self, lie: Lie, curve: Curve, slopes_error: Floats) -> Found:
        """Return a plane together with its curve and errors."""
        return Found(lie, self.proposal.side, self.pivot(lie), curve, slopes_error, self.proposal)

    def pivot(self, lie: Lie) -> Floats:
        """Return the centre of the tissue as (right, down) in mm."""
        pivot: Floats = apply_affine(invert_affine(lie.to_pixel), self.tissue.centre[None])[0]
        return pivot

    def height(self, planes: Floats, pivot: Floats) -> Floats:
        """Return the positions of planes (…, 3) along the axis at the centre of the tissue."""
        height: Floats = planes[..., 0] + planes[..., 1:] @ self.arms(pivot)
        return height

    def arms(self, pivot: Floats) -> Floats:
        """Return the distance of the tissue's centre from the middle of the volume, down and right."""
        middle = self.frame.volume.centre_mm.double().numpy()[[self.frame.across, *self.frame.axes]]
        arms: Floats = pivot[::-1] - middle[1:]
        return arms

    def _odds(self, position_mm: Floats, likeness: Floats) -> Floats:
        expected = float((self.proposal.matrix @ (*self.tissue.centre, 1.0))[self.frame.across])
        away = (position_mm - expected) / self._proposal_error(_PRIOR_ERRORS)
        return likeness / _TEMPERATURE - 0.5 * np.square(away)

    def _proposal_error(self, times: float) -> float:
        """Return the standard deviation of the proposed position, in mm."""
        return max(_LEAST_PRIOR_MM, times * self.proposal.error_mm)


def peak(x: Floats, y: Floats) -> float:
    """Return the position of the maximum of sampled values, on the parabola through the largest and its neighbours."""
    place = int(np.argmax(y))
    if place in (0, len(x) - 1):
        return float(x[place])
    coefficients = np.polyfit(x[place - 1 : place + 2] - x[place], y[place - 1 : place + 2], 2)
    if coefficients[0] >= 0:
        return float(x[place])
    return float(x[place] - coefficients[1] / (2 * coefficients[0]))


def second_place(curve: Curve, apart_mm: float, odds: float) -> float | None:
    """Return another position that fits about as well: a peak at least `apart_mm` away, at most `odds` less likely."""
    inner = np.r_[-np.inf, curve.odds, -np.inf]
    is_peak = (inner[1:-1] >= inner[:-2]) & (inner[1:-1] >= inner[2:])
    far = np.abs(curve.position_mm - curve.best_mm) >= apart_mm
    relative = np.where(is_peak & far, curve.odds - curve.odds.max(), -np.inf)
    return float(curve.position_mm[relative.argmax()]) if relative.max() >= -odds else None
