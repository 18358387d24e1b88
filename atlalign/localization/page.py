"""The page of located sections: each beside its plane, with its fit along the axis, and the series."""

import math
from collections.abc import Sequence
from pathlib import Path

from atlalign import __version__
from atlalign.io.files import written_whole
from atlalign.localization.located import Located
from atlalign.pages import Block, Charts, Heading, Text, View, Views, picture_uri, render_page
from atlalign.plots import curve_figure, figure_svg, located_figure

_ATLAS, _SECTION = "atlas", "section"
_APART_UM = 400.0
_ABOUT = (
    "Drag over a section, or use the arrow keys, to wipe from the atlas plane that was found to the section placed "
    "on it. An image does not show whether a whole section is mirrored left to right."
)


def write_page(path: str | Path, located: Sequence[Located]) -> None:
    """Write the page as a self-contained file."""
    blocks: list[Block] = [Text(_ABOUT)]
    brains = dict.fromkeys(found.brain for found in located)
    series = {brain: _series([found for found in located if found.brain == brain]) for brain in brains}
    if shown := {brain or "series": svg for brain, svg in series.items() if svg}:
        blocks += [Heading("Positions over section numbers"), Charts(shown)]
    blocks.append(Views([_view(found) for found in located], left=_ATLAS, right=_SECTION))
    curves = {_title(found): _curve(found) for found in located if found.curve is not None}
    blocks += [Heading("Likeness to the planes along the axis, for each section alone"), Charts(curves)]
    title = f"{len(located)} located section{'s' * (len(located) != 1)}"
    with written_whole(Path(path)) as unfinished:
        unfinished.write_text(render_page(title, blocks, note=f"atlalign {__version__}"), encoding="utf-8")


def _series(located: Sequence[Located]) -> str:
    """Return the chart of a brain's positions; empty for fewer than two sections."""
    placed = [(found.number, found.placed_um / 1000) for found in located if not math.isnan(found.placed_um)]
    if len(placed) < 2:
        return ""
    alone = [
        (found, (found.number, found.alone_um / 1000)) for found in located if not math.isnan(found.alone_um)
    ]
    kinds = {
        "by itself": [point for found, point in alone if not _is_outlier(found)],
        "by itself, elsewhere": [point for found, point in alone if _is_outlier(found)],
    }
    return figure_svg(located_figure(kinds, placed))


def _is_outlier(found: Located) -> bool:
    return abs(found.alone_um - found.placed_um) > _APART_UM


def _view(found: Located) -> View:
    pictures = found.pictures or ()
    images = {name: picture_uri(picture) for name, picture in zip((_ATLAS, _SECTION), pictures, strict=False)}
    position = "" if math.isnan(found.position_um) else f"{found.position_um:.0f} ± {found.error_um:.0f} µm"
    values = {"position_um": found.position_um, "likeness": found.likeness, "error_um": found.error_um}
    return View(
        title=_title(found),
        caption=": ".join(filter(None, (position, found.reason))),
        images=images,
        shape=pictures[0].shape if pictures else (1, 1),
        flag=found.flag,
        values={name: value for name, value in values.items() if not math.isnan(value)},
    )


def _curve(found: Located) -> str:
    assert found.curve is not None
    curve = found.curve
    return figure_svg(
        curve_figure(curve.position_mm.tolist(), curve.likeness.tolist(), found.placed_um / 1000)
    )


def _title(found: Located) -> str:
    return found.job.path.name
