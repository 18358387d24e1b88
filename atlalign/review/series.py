"""Planes of neighbouring sections, derived from one or two planes set by the user."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from atlalign.atlas.planes import Anchoring
from atlalign.errors import InputError
from atlalign.registration.corrections import Correction
from atlalign.review.folder import ReviewFolder, result_anchoring
from atlalign.review.plane_settings import PlaneSettings


@dataclass(frozen=True)
class _Shift:
    """The shift of a section's plane by the user."""

    position_um: float
    tilt_ml_deg: float
    tilt_dv_deg: float

    def of(self, settings: PlaneSettings) -> PlaneSettings:
        """Return settings shifted by the same amount."""
        return replace(
            settings,
            position_um=settings.position_um + self.position_um,
            tilt_ml_deg=settings.tilt_ml_deg + self.tilt_ml_deg,
            tilt_dv_deg=settings.tilt_dv_deg + self.tilt_dv_deg,
        )

    def between(self, other: "_Shift", share: float) -> "_Shift":
        """Return the shift at a fraction of the way to another shift."""
        return _Shift(
            *(
                (1 - share) * own + share * of_other
                for own, of_other in zip(
                    (self.position_um, self.tilt_ml_deg, self.tilt_dv_deg),
                    (other.position_um, other.tilt_ml_deg, other.tilt_dv_deg),
                    strict=True,
                )
            )
        )


def spread_plane(folder: ReviewFolder, name: str, copies: int = 0) -> list[str]:
    """Move the planes of sections near a section whose plane the user has moved, and return their names.

    Sections between it and the next one moved by the user, on either side, are moved by an interpolated shift. If there
    is no such section, `copies` neighbours are moved by the same shift.

    Raises:
        InputError: If the section's plane has not been moved.
    """
    names = _in_order(folder)
    at = names.index(name) if name in names else -1
    shifts = {other: _shift(folder, other) for other in names}
    own = shifts.get(name)
    if at < 0 or own is None:
        raise InputError(f"{name[:80]}: expected a section whose plane you have moved")
    changed = []
    for side in (names[at + 1 :], names[:at][::-1]):
        for other, shift in _moves(side, own, shifts, copies):
            _move(folder, other, shift)
            changed.append(other)
    return sorted(changed)


def _moves(
    side: Sequence[str], own: _Shift, shifts: dict[str, _Shift | None], copies: int
) -> list[tuple[str, _Shift]]:
    """Return the sections to move on one side, from near to far, with their shifts."""
    end = next((number for number, other in enumerate(side) if shifts[other] is not None), None)
    if end is None:
        return [(other, own) for other in side[:copies]]
    last = shifts[side[end]]
    assert last is not None
    return [(side[number], own.between(last, (number + 1) / (end + 1))) for number in range(end)]


def _in_order(folder: ReviewFolder) -> list[str]:
    """Return the names of sections on planes of an atlas, from front to back."""
    found = []
    for name in folder.names():
        anchoring = result_anchoring(folder.record(name))
        if anchoring is not None:
            found.append((anchoring.position_um, name))
    return [name for _, name in sorted(found)]


def _shift(folder: ReviewFolder, name: str) -> _Shift | None:
    """Return the user's shift of a plane; None if it has not been moved."""
    correction = folder.load(name).correction
    if not correction.moves_plane or correction.anchoring is None:
        return None
    now, before = PlaneSettings.of(correction.anchoring), _listed(folder, name)
    return _Shift(
        now.position_um - before.position_um,
        now.tilt_ml_deg - before.tilt_ml_deg,
        now.tilt_dv_deg - before.tilt_dv_deg,
    )


def _listed(folder: ReviewFolder, name: str) -> PlaneSettings:
    """Return the plane that a section had before any correction."""
    record = folder.record(name)
    results = result_anchoring(record)
    assert results is not None
    settings = record.get("settings", {})
    if settings.get("anchoring") is not None:
        return PlaneSettings.of(Anchoring(np.array(settings["anchoring"]).reshape(3, 3), results.size))
    upright = replace(PlaneSettings.of(results), tilt_ml_deg=0.0, tilt_dv_deg=0.0)
    return replace(upright, position_um=settings.get("position_um") or upright.position_um)


def _move(folder: ReviewFolder, name: str, shift: _Shift) -> None:
    former = result_anchoring(folder.record(name))
    assert former is not None
    saved = folder.load(name)
    listed = _listed(folder, name)
    wanted = shift.of(
        replace(
            PlaneSettings.of(former),
            position_um=listed.position_um,
            tilt_ml_deg=listed.tilt_ml_deg,
            tilt_dv_deg=listed.tilt_dv_deg,
        )
    )
    anchoring = wanted.anchoring(former)
    moved: Correction = replace(saved.correction, anchoring=anchoring, moves_plane=True)
    folder.save(name, moved, saved.revision)
