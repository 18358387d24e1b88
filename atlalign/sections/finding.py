"""Finds the sections on a slide, puts them in order and says how each is turned."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.pieces import Found, find_sections
from atlalign.io.pixels import Background
from atlalign.sections.options import Order
from atlalign.sections.order import in_order
from atlalign.sections.outlines import Outline, outline_of
from atlalign.sections.section import Section, section_name
from atlalign.sections.small_copy import SmallCopy
from atlalign.sections.upright import find_midline

_MARGIN_PX = 2  # of the working pixels: an outline lies this far outside of the tissue
_SCATTERED = "only scattered cells or layers are seen: check the outline"


class SlideSections(NamedTuple):
    """Sections of one scene.

    Attributes:
        sections: In order.
        left_out: The outlines of pieces that are no sections, with the reason.
    """

    sections: list[Section]
    left_out: list[tuple[Outline, str]]


def find_on_view(
    view: SmallCopy,
    *,
    slide: str,
    stem: str,
    scene: int,
    first: int,
    pixel_um: float,
    order: Order = "rows",
    background: Background = "auto",
) -> SlideSections:
    """Return the sections in a view of a scene.

    Args:
        view: The small copy.
        slide: The name of the slide's file.
        stem: The beginning of the names of images.
        scene: The number of the scene.
        first: The number of its first section.
        pixel_um: The size of a pixel of the scene.
        order: The order of the sections.
        background: Brightness of the slide; auto detects it.
    """
    found = find_sections(
        view.pixels,
        is_color=view.is_color,
        pixel_um=pixel_um * float(view.scale.mean()),
        background=background,
    )
    scale = _scale(view, found)
    masks = [found.labels == number for number in range(1, found.number + 1)]
    outlines = [outline_of(mask, scale, margin_px=_MARGIN_PX) for mask in masks]
    sections = []
    for number, place in enumerate(in_order(outlines, order), start=first):
        turn, note = _turn(found, masks[place])
        note = "; ".join(filter(None, (note, _cut_off(masks[place]), "" if found.is_solid else _SCATTERED)))
        filename = section_name(stem, str(number))
        sections.append(Section(filename, slide, scene, outlines[place], turn, note=note))
    return SlideSections(sections, _left_out(found, scale))


def _scale(view: SmallCopy, found: Found) -> NDArray[np.float64]:
    height, width = view.pixels.shape[:2]
    rows, columns = found.labels.shape
    return np.asarray(view.scale * (width / columns, height / rows))


def _turn(found: Found, mask: NDArray[np.bool_]) -> tuple[float, str]:
    """Return the turn of a section in whole degrees, and a remark."""
    rows, columns = (slice(where.min(), where.max() + 1) for where in np.nonzero(mask))
    midline = find_midline(found.strength[rows, columns], mask[rows, columns])
    if not midline.is_clear:
        return 0.0, "not turned: no clear midline"
    return float(round(midline.turn)), ""


def _cut_off(mask: NDArray[np.bool_]) -> str:
    at_border = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    return "cut off by the border of the image" if at_border else ""


def _left_out(found: Found, scale: NDArray[np.float64]) -> list[tuple[Outline, str]]:
    left_out: list[tuple[Outline, str]] = []
    for piece in found.left_out:
        top, left = (side.start for side in piece.box)
        outline = outline_of(piece.mask, np.ones(2), margin_px=0)
        left_out.append((tuple((ring + (left, top) + 0.5) * scale - 0.5 for ring in outline), piece.reason))
    return left_out


def nothing_found(slide: str, left_out: list[tuple[Outline, str]]) -> InputError:
    """Return the error about a slide without sections."""
    counts = {reason: sum(why == reason for _, why in left_out) for _, reason in left_out}
    said = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    found = f"found only pieces that are none ({said})" if said else "found none"
    return InputError(
        f"{slide}: expected sections of about 1 mm² or more, {found}: is the pixel size right (--pixel-size-um)?"
    )
