"""Finds the sections on a slide, puts them in order and turns them upright."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.pieces import Found, find_sections, rejected_in_words
from atlalign.io.pixels import Background
from atlalign.sections.halves import with_halves_joined
from atlalign.sections.options import Order
from atlalign.sections.order import in_order
from atlalign.sections.outlines import filled, outline_of
from atlalign.sections.scattered import with_cells_joined
from atlalign.sections.section import Section, section_name
from atlalign.sections.small_copy import SmallCopy
from atlalign.sections.upright import Judge, find_turn

_MARGIN_PX = 2  # of the working pixels: the distance of an outline from the tissue
_LISTED_MM2 = 0.1  # smaller rejected pieces get no row
_SCATTERED = "only scattered cells or layers are visible: check the outline"


class View(NamedTuple):
    """A scene prepared for finding its sections.

    Attributes:
        copy: The small copy.
        pixel_um: The pixel size of the scene.
        background: Brightness of the slide; auto detects it.
    """

    copy: SmallCopy
    pixel_um: float
    background: Background = "auto"

    def pieces(self) -> Found:
        """Return the sections and the rejected pieces."""
        found = find_sections(
            self.copy.pixels,
            is_color=self.copy.is_color,
            pixel_um=self.pixel_um * float(self.copy.scale.mean()),
            background=self.background,
        )
        return found if found.is_solid else with_cells_joined(found)


class Turning(NamedTuple):
    """The way in which sections are turned upright.

    Attributes:
        is_wanted: Whether they are turned at all.
        judge: Finds the upright direction, and the pieces that form one section; None uses shapes alone.
    """

    is_wanted: bool = True
    judge: Judge | None = None

    def of(self, found: Found, mask: NDArray[np.bool_]) -> tuple[float, str]:
        """Return the turn of a section in whole degrees, and a remark if it is doubtful."""
        if not self.is_wanted or not mask.any():
            return 0.0, ""
        rows, columns = (slice(where.min(), where.max() + 1) for where in np.nonzero(mask))
        return find_turn(found.strength[rows, columns], mask[rows, columns], self.judge)


def find_on_view(
    view: View,
    *,
    slide: str,
    scene: int = 0,
    order: Order = "rows",
    turning: Turning = Turning(),  # noqa: B008 (it cannot change)
) -> list[Section]:
    """Return the sections of a scene in order, followed by the rejected pieces, from large to small.

    Their images have no names yet.

    Args:
        view: The scene.
        slide: The name of the slide's file.
        scene: The number of the scene.
        order: The order of the sections.
        turning: How they are turned upright.
    """
    found = view.pieces()
    if turning.judge is not None and found.is_solid:
        found = with_halves_joined(found, turning.judge)
    scale = _scale(view, found)
    masks = [found.labels == number for number in range(1, found.number + 1)]
    outlines = [outline_of(mask, scale, margin_px=_MARGIN_PX) for mask in masks]
    sections = []
    for place in in_order(outlines, order):
        turn, doubt = turning.of(found, masks[place])
        notes = (doubt, _cut_off(masks[place]), "" if found.is_solid else _SCATTERED)
        sections.append(Section("", slide, scene, outlines[place], turn, note="; ".join(filter(None, notes))))
    return sections + _left_out(found, scale, slide, scene)


def named(sections: Sequence[Section], stem: str) -> list[Section]:
    """Return the sections of a slide with numbered image names; rejected pieces come last.

    Args:
        sections: The sections of all scenes.
        stem: The beginning of the names.
    """
    in_turn = sorted(sections, key=lambda section: bool(section.left_out))
    return [
        section._replace(filename=section_name(stem, str(number)))
        for number, section in enumerate(in_turn, start=1)
    ]


def with_turns(view: View, sections: Sequence[Section], turning: Turning) -> list[Section]:
    """Return the sections of a scene after turning upright those that need it; rejected pieces are not turned."""
    if not any(section.needs_turn and section.kept for section in sections):
        return list(sections)
    found = view.pieces()
    return [
        _with_turn(section, view, found, turning) if section.needs_turn and section.kept else section
        for section in sections
    ]


def _with_turn(section: Section, view: View, found: Found, turning: Turning) -> Section:
    scale = _scale(view, found)
    outline = [(ring + 0.5) / scale - 0.5 for ring in section.outline]
    rows, columns = found.labels.shape
    turn, doubt = turning.of(found, filled(outline, (rows, columns)) & (found.strength > 1))
    note = "; ".join(filter(None, (section.note, doubt)))
    return section._replace(turn=turn, note=note, needs_turn=False)


def _scale(view: View, found: Found) -> NDArray[np.float64]:
    """Return the number of scene pixels that one pixel of the labels covers, along x and y."""
    height, width = view.copy.pixels.shape[:2]
    rows, columns = found.labels.shape
    return np.asarray(view.copy.scale * (width / columns, height / rows))


def _cut_off(mask: NDArray[np.bool_]) -> str:
    at_border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    return "cut off by the border of the image" if at_border else ""


def _left_out(found: Found, scale: NDArray[np.float64], slide: str, scene: int) -> list[Section]:
    """Return the rejected pieces, except for the smallest, as sections that are not kept."""
    sections = []
    for piece in found.left_out:
        if piece.mask.sum() * found.unit_mm**2 < _LISTED_MM2:
            continue
        mask = np.zeros(found.labels.shape, bool)
        mask[piece.box] = piece.mask
        outline = outline_of(mask, scale, margin_px=_MARGIN_PX)
        sections.append(
            Section("", slide, scene, outline, kept=False, left_out=piece.reason, needs_turn=True)
        )
    return sections


def nothing_found(slide: str, left_out: Sequence[Section]) -> InputError:
    """Return the error for a slide that shows only rejected pieces."""
    found = rejected_in_words([piece.left_out for piece in left_out if piece.left_out])
    return InputError(
        f"{slide}: expected sections of about 1 mm² or more, found {found}: check the pixel size (--pixel-size-um)"
    )
