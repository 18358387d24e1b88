"""The quality of a registration: its measures, their limits, and the flag that follows from both."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

FAR_UM = 500.0
"""From this distance on, a plane counts as another place."""


class Alternative(NamedTuple):
    """Another place for a section.

    Attributes:
        where: The place in words, such as "turned by 180°".
        likeness: Likeness of the section, registered from there, to its reference.
    """

    where: str
    likeness: float


class OtherPlane(NamedTuple):
    """Another plane for a section.

    Attributes:
        distance_um: Distance from the section's own plane along the atlas's axis, positive towards the back.
        likeness: Likeness of the section, registered to that plane.
    """

    distance_um: float
    likeness: float


_NOWHERE = Alternative("", 0.0)


@dataclass(frozen=True)
class Quality:
    """The quality of a registration; lengths are means or maxima over the reference's tissue.

    Attributes:
        displacement_mean_um: The mean displacement by the network's field.
        displacement_max_um: The largest displacement by the network's field.
        folding: The share of the plane on which the field folds.
        inverse_consistency_um: The mean distance between a point and the place that it returns to when the network also
            registers the reference to the section. A network that is sure agrees with itself.
        similarity_before: Mutual information of the placed section and the reference, in nats.
        similarity_after: Mutual information of the registered section and the reference, in nats.
        bending_um: The mean distance of the network's displacements from the closest affine map. A section in the right
            place is bent little; a section in a wrong place, or with a missing part, is bent a lot.
        rescaling: The change of the section's size by the closest affine map, as a fraction. The network corrects a
            wrong pixel size only in part.
        rotation_deg: The rotation by the closest affine map in degrees, in either direction. The network corrects a
            wrong turn only in part.
        uncovered: The share of the reference's tissue on which the registered section shows no tissue. The section may
            be torn, lack a part or show only half of the brain, or its stain may leave most tissue dark.
        gap: The area of the largest connected part of this uncovered tissue that lies more than 0.3 mm inside the
            reference's outline, as a share of the reference's tissue. A tear is narrow: it leaves little tissue
            uncovered, but in one place.
        beyond: The area of the section's tissue outside the reference's tissue, as a share of the latter.
        likeness: The likeness of the reference and the section registered by the network.
        likeness_turned: The largest likeness at another turn, or of a mirrored half section; 0 if none was tried.
        turned: The turn with this likeness, in words.
        likeness_elsewhere: The largest likeness on planes at least 500 µm in front or behind; 0 if none was tried.
        elsewhere_um: The distance to the plane with this likeness, positive towards the back.
        plane_offset_um: The distance to the plane where the likeness peaks, positive towards the back; 0 if no other
            plane was tried.
        folding_by_points: The share of the plane on which the field folds only because of the user's points.
        expected_error_um: The median over tissue of the expected error of the network's field; NaN for a network
            without a calibration. Systematic errors do not show.
    """

    displacement_mean_um: float
    displacement_max_um: float
    folding: float
    inverse_consistency_um: float
    similarity_before: float
    similarity_after: float
    bending_um: float
    rescaling: float
    rotation_deg: float
    uncovered: float
    gap: float
    beyond: float
    likeness: float
    likeness_turned: float = 0.0
    turned: str = ""
    likeness_elsewhere: float = 0.0
    elsewhere_um: float = 0.0
    plane_offset_um: float = 0.0
    folding_by_points: float = 0.0
    expected_error_um: float = math.nan

    def compared(self, turns: Iterable[Alternative], planes: Sequence[OtherPlane]) -> "Quality":
        """Return the measures with the likeliest of other turns and of other planes."""
        turned = max(turns, key=lambda other: other.likeness, default=_NOWHERE)
        far = [plane for plane in planes if abs(plane.distance_um) >= FAR_UM]
        elsewhere = max(far, key=lambda other: other.likeness, default=OtherPlane(0.0, 0.0))
        return replace(
            self,
            likeness_turned=turned.likeness,
            turned=turned.where,
            likeness_elsewhere=elsewhere.likeness,
            elsewhere_um=elsewhere.distance_um,
            plane_offset_um=likeliest_distance([OtherPlane(0.0, self.likeness), *planes]),
        )

    @property
    def similarity_loss(self) -> float:
        """The decrease of the mutual information with the reference."""
        return self.similarity_before - self.similarity_after

    @property
    def better_turned(self) -> float:
        """The gain in likeness at another turn, as a fraction of the likeness here."""
        return self.likeness_turned / max(self.likeness, 1e-3) - 1

    @property
    def better_elsewhere(self) -> float:
        """The gain in likeness on another plane, as a fraction of the likeness here."""
        return self.likeness_elsewhere / max(self.likeness, 1e-3) - 1

    def judged(self, name: str) -> float:
        """Return the value that is compared with the limit of a measure: a plane may be off in either direction."""
        value: float = getattr(self, name)
        return abs(value) if name == "plane_offset_um" else value


def likeliest_distance(planes: Sequence[OtherPlane]) -> float:
    """Return where the likeness peaks, in µm: the vertex of a parabola through the best plane and its two neighbours.

    If the best plane is the first or the last one, return its distance.

    Example:
        >>> likeliest_distance([OtherPlane(-250, 0.8), OtherPlane(0, 1.0), OtherPlane(250, 1.0), OtherPlane(500, 0.6)])
        125.0
    """
    ordered = sorted(planes)
    peak = max(range(len(ordered)), key=lambda number: ordered[number].likeness)
    if peak in (0, len(ordered) - 1):
        return ordered[peak].distance_um
    (left, below), (middle, top), (right, beyond) = ordered[peak - 1 : peak + 2]
    # The slopes on both sides belong to the middles of the intervals; in between, the slope falls to 0 at the vertex.
    rise, fall = (top - below) / (middle - left), (top - beyond) / (right - middle)
    if rise + fall == 0:
        return middle
    return (left + middle) / 2 + (right - left) / 2 * rise / (rise + fall)


MEASURES = tuple(entry.name for entry in fields(Quality))
"""The names of the measures."""


class Limit(NamedTuple):
    """The values of a measure above which a registration is flagged `look` and `fail`."""

    look: float
    fail: float


LIMITS: Mapping[str, Limit] = {
    "displacement_max_um": Limit(1500.0, 3000.0),
    "folding": Limit(0.0, 0.01),
    "inverse_consistency_um": Limit(250.0, 500.0),
    "similarity_loss": Limit(0.0, 0.05),
    "bending_um": Limit(200.0, 500.0),
    "rescaling": Limit(0.13, 0.5),
    "rotation_deg": Limit(3.0, 20.0),
    "uncovered": Limit(0.06, 0.97),
    "gap": Limit(0.012, 0.97),
    "beyond": Limit(0.15, 0.5),
    "better_turned": Limit(-0.05, 1.0),
    "better_elsewhere": Limit(-0.02, 1.0),
    "plane_offset_um": Limit(200.0, 2500.0),
}
"""The default limits of `judge`.

They were chosen on even-numbered sections of a brown immunostain with the shipped network, so that no registration with
an error above 150 µm passes. On four odd-numbered sections none of 139 such registrations passed
(tests/registration/SITUATIONS.md). A stain that shows little of the tissue always exceeds `uncovered` and `gap`.
"""

SENTENCES: Mapping[str, str] = {
    "displacement_max_um": "the network moved some tissue by {value}",
    "folding": "the registration folds on {value} of the plane{where}",
    "inverse_consistency_um": "mapped to the template and back, points end {value} from their start on average",
    "similarity_loss": "the section is less similar to the template after registration than before",
    "bending_um": "the network bent the section by {value} on average: the plane may be wrong, or a part missing",
    "rescaling": "the network changed the section's size by {value}: check its pixel size",
    "rotation_deg": "the network turned the section by {value}: check its rotation",
    "uncovered": "on {value} of the template, the section shows no tissue: it may be torn, incomplete or dark",
    "gap": "in one place, {value} of the template has no tissue of the section: it may be torn there",
    "beyond": "tissue lies outside the template's outline; its area is {value} of the template's",
    "better_turned": "the section fits {how} {where}",
    "better_elsewhere": "the section fits {how} on a plane {where}",
    "plane_offset_um": "the section fits best on a plane {where}",
}
"""The sentence for each measure above its limit: with its `value`, or with `where` else and `how` well the section
fits."""

DERIVED = tuple(name for name in LIMITS if name not in MEASURES)
"""The names of the measures with a limit that are computed from other measures."""

WITHOUT_NETWORK = ("folding",)
"""The measures that are taken without a network; all others compare intensities, or ask the network."""


def derived_measures(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of `DERIVED` for the record of a section; none if it lacks measures."""
    if not record.keys() >= set(MEASURES):
        return {}
    measures: dict[str, Any] = {name: math.nan if record[name] is None else record[name] for name in MEASURES}
    quality = Quality(**measures)
    return {name: getattr(quality, name) for name in DERIVED}


def judge(quality: Quality, limits: Mapping[str, Limit] = LIMITS, *, doubt: str = "") -> tuple[str, str]:
    """Return the flag (pass, look or fail), and the reasons for a look or fail, separated by semicolons.

    Args:
        quality: The measures.
        limits: Their limits.
        doubt: A reason to check the result whatever its measures are; empty if there is none.
    """
    flag, reason = _measured(quality, limits)
    if not doubt:
        return flag, reason
    return "look" if flag == "pass" else flag, "; ".join(filter(None, (reason, doubt)))


def _measured(quality: Quality, limits: Mapping[str, Limit]) -> tuple[str, str]:
    found = {name: quality.judged(name) for name in limits}
    for flag, bounds in (
        ("fail", {name: limit.fail for name, limit in limits.items()}),
        ("look", {name: limit.look for name, limit in limits.items()}),
    ):
        # NaN is beyond every limit.
        beyond = [
            f"{_sentence(quality, name)} ({name} {found[name]:.4g}, {flag} above {bound:g})"
            for name, bound in bounds.items()
            if not found[name] <= bound
        ]
        if beyond:
            return flag, "; ".join(beyond)
    return "pass", ""


def _sentence(quality: Quality, measure: str) -> str:
    """Return the sentence on a section that a measure beyond its limit gives."""
    value: float = getattr(quality, measure)
    if math.isnan(value):
        return "one measure could not be computed"
    how = "better" if value > 0 else "almost as well"
    return SENTENCES[measure].format(
        value=_with_unit(measure, value), where=_where(quality, measure), how=how
    )


def _with_unit(measure: str, value: float) -> str:
    """Return a value in µm, degrees or per cent, depending on the ending of the measure's name."""
    if measure.endswith("_um"):
        return f"{value:.0f} µm"
    if measure.endswith("_deg"):
        return f"{value:.1f}°"
    return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"


def _where(quality: Quality, measure: str) -> str:
    """Return where the section fits better, for measures that compare places, or the origin of folds."""
    if measure == "folding" and quality.folding_by_points:
        return f", on {_with_unit(measure, quality.folding_by_points)} because of points set by hand"
    distances = {"plane_offset_um": quality.plane_offset_um, "better_elsewhere": quality.elsewhere_um}
    return _along_axis(distances[measure]) if measure in distances else quality.turned


def _along_axis(distance_um: float) -> str:
    return f"{abs(distance_um):.0f} µm further {'back' if distance_um > 0 else 'to the front'}"
