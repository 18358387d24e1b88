"""A section's plane as settings for the user: position, tilts, turn, size and side, instead of three vectors."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from atlalign.atlas.planes import GRID, GRID_UM, Anchoring, Matrix, Point
from atlalign.errors import InputError, check_finite_numbers

_STEEPEST_DEG = 45.0


@dataclass(frozen=True)
class PlaneSettings:
    """A plane, and the position of the section's image in it.

    Attributes:
        position_um: AP of the image's centre.
        tilt_ml_deg: The angle by which the plane falls back towards the right.
        tilt_dv_deg: The angle by which the plane falls back towards the bottom.
        turn_deg: The clockwise turn of the image in the plane.
        size: The pixel size of the image, as a multiple of the former pixel size.
        is_flipped: Whether the image shows the right side of the atlas on its left.

    Example:
        >>> from dataclasses import replace
        >>> anchoring = Anchoring(np.array([[0.0, 300, 320], [456, 0, 0], [0, 0, -320]]), size=(320, 456))
        >>> tilted = replace(PlaneSettings.of(anchoring), tilt_dv_deg=5.0)
        >>> round(tilted.anchoring(anchoring).tilt[1], 4)  # the tangent of 5°
        0.0875
    """

    position_um: float
    tilt_ml_deg: float
    tilt_dv_deg: float
    turn_deg: float
    size: float = 1.0
    is_flipped: bool = False

    @classmethod
    def of(cls, anchoring: Anchoring, former: Anchoring | None = None) -> "PlaneSettings":
        """Return the settings of an anchoring; `former` is the anchoring whose pixels have the size 1."""
        rotation, stretch, is_flipped = _parts(anchoring)
        _, before, _ = _parts(former or anchoring)
        per_ml, per_dv = anchoring.tilt
        return cls(
            position_um=anchoring.position_um,
            tilt_ml_deg=float(np.degrees(np.arctan(per_ml))),
            tilt_dv_deg=float(np.degrees(np.arctan(per_dv))),
            turn_deg=float(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0]))),
            size=float(np.sqrt(np.linalg.det(stretch) / np.linalg.det(before))),
            is_flipped=is_flipped,
        )

    @classmethod
    def from_json(cls, found: Any) -> "PlaneSettings":
        """Return the settings that `to_json` has converted.

        Raises:
            InputError: If a value is missing, is not a number, or is out of range.
        """
        names = ("position_um", "tilt_ml_deg", "tilt_dv_deg", "turn_deg", "size")
        if not isinstance(found, dict) or not {*names, "is_flipped"} <= set(found):
            raise InputError(f"plane: expected {', '.join(names)} and is_flipped, found {str(found)[:80]}")
        check_finite_numbers(found, dict.fromkeys(names, -1e6))
        if max(abs(found["tilt_ml_deg"]), abs(found["tilt_dv_deg"])) > _STEEPEST_DEG:
            raise InputError(f"plane: expected tilts up to {_STEEPEST_DEG:g}°, found a steeper one")
        if not 0.1 <= found["size"] <= 10:
            raise InputError(f"size: expected 0.1 to 10, found {found['size']:g}")
        return cls(**{name: float(found[name]) for name in names}, is_flipped=bool(found["is_flipped"]))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return asdict(self)

    def anchoring(self, former: Anchoring, shown: Anchoring | None = None) -> Anchoring:
        """Return the anchoring with these settings.

        Args:
            former: The anchoring whose pixels have the size 1.
            shown: The anchoring from which the image keeps its centre in the plane and its proportions; None for
                `former`.
        """
        shown = shown or former
        _, before, _ = _parts(former)
        _, stretch, _ = _parts(shown)
        size = self.size * np.sqrt(np.linalg.det(before) / np.linalg.det(stretch))
        turn = np.radians(self.turn_deg)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        um_per_pixel = rotation @ (stretch * size) @ np.diag([-1.0 if self.is_flipped else 1.0, 1.0])
        height, width = former.size
        in_plane = um_per_pixel @ np.diag([width, height])  # (ML, DV) of (s, t)
        centre = (shown.share_to_um @ (0.5, 0.5, 1))[[2, 1]]
        ml, dv = np.column_stack([in_plane, centre - in_plane @ (0.5, 0.5)])
        tilts = np.tan(np.radians([self.tilt_ml_deg, self.tilt_dv_deg]))
        ap = tilts @ [ml, dv] + np.array([0, 0, self.position_um - tilts @ centre])
        return Anchoring(_vectors(ap, dv, ml), former.size)


def _parts(anchoring: Anchoring) -> tuple[Matrix, Matrix, bool]:
    """Return the rotation and the stretch (2, 2) of µm per pixel, after an optional flip of the image."""
    height, width = anchoring.size
    um_per_pixel = anchoring.share_to_um[[2, 1], :2] / (width, height)
    is_flipped = bool(np.linalg.det(um_per_pixel) < 0)
    upright = um_per_pixel @ np.diag([-1.0 if is_flipped else 1.0, 1.0])
    left, scales, right = np.linalg.svd(upright)
    return left @ right, right.T @ np.diag(scales) @ right, is_flipped


def _vectors(ap: Point, dv: Point, ml: Point) -> Matrix:
    """Return o, u, v from AP, DV and ML in µm, each by (s, t, 1)."""
    last = np.array([0.0, 0.0, 1.0])
    x, y, z = ml / GRID_UM, GRID[0] * last - ap / GRID_UM, GRID[1] * last - dv / GRID_UM
    return np.roll(np.stack([x, y, z], axis=1), 1, axis=0)
