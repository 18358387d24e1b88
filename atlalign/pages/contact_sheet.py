"""The page of all sections, `index.html` beside the sections' folders, made from the results on disk."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from atlalign.errors import InputError
from atlalign.io.files import written_whole
from atlalign.pages.page import Block, Charts, Heading, Text, View, Views, render_page
from atlalign.pages.preview import SECTION, TEMPLATE, Preview

INDEX = "index.html"

_ABOUT = (
    "Drag over a section, or use the arrow keys, to wipe from the template to the section; the bar changes all "
    "sections at once. Outlines come from the atlas. Titles link to overlay.png, which draws them on the section. "
    "The picture “expected error” is blue near 0, green at 50, yellow at 100 and red from 200 µm on. At about half of "
    "the places the error is smaller than shown. An error that the network makes every time does not show."
)
_ABOUT_SERIES = (
    "A brain changes smoothly from section to section. A shaded bar marks a section whose areas differ from both "
    "neighbours: it may lie on a wrong plane, be torn, or be registered badly."
)
_NO_SORTING = (
    "section",
    "flag",
    "reason",
    "pixel_size_from",
    "placed_by",
    "background",
    "file",
    "elsewhere",
    "turned",
)


def write_index(out: Path, rows: Iterable[Mapping[str, Any]], plot: str = "") -> None:
    """Write the page of all sections.

    Args:
        out: The folder of results.
        rows: The rows of its table.
        plot: The series from front to back, as an <svg> element.
    """
    views = [_view(out, row) for row in rows]
    blocks: list[Block] = [Text(_ABOUT), Views(views, left=TEMPLATE, right=SECTION, order="section")]
    if plot:
        series: list[Block] = [
            Heading("From front to back"),
            Text(_ABOUT_SERIES),
            Charts({"Areas of large regions": plot}),
        ]
        blocks = [*series, Heading("Sections"), *blocks]
    title = f"{len(views)} section{'s' * (len(views) != 1)}"
    with written_whole(out / INDEX) as unfinished:
        unfinished.write_text(render_page(title, blocks), encoding="utf-8")


def _view(out: Path, row: Mapping[str, Any]) -> View:
    """Return the view of one section; a section that could not be registered has no pictures."""
    name = row["section"]
    preview = Preview((1, 1), {}, "")
    with suppress(InputError, OSError):
        preview = Preview.read(out / name)
    values = {key: float(value) for key, value in row.items() if _is_number(value) and key not in _NO_SORTING}
    position = f"{values['position_um']:.0f} µm" if "position_um" in values else ""
    return View(
        title=name,
        caption="\n".join(filter(None, (position, *row["reason"].split("; ")))),
        images=preview.images,
        shape=preview.shape,
        outlines=preview.outlines,
        flag=row["flag"],
        values=values,
        link=f"{quote(name)}/overlay.png" if preview.images else "",
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
