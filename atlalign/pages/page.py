"""A page as a list of blocks, such as tables, charts and views of sections; one template renders them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


@dataclass(frozen=True)
class Heading:
    """A heading between blocks."""

    text: str
    kind: ClassVar = "heading"


@dataclass(frozen=True)
class Text:
    """A paragraph of explanation."""

    text: str
    kind: ClassVar = "text"


@dataclass(frozen=True)
class Facts:
    """Short facts by name."""

    facts: Mapping[str, str]
    kind: ClassVar = "facts"


class TableRow(NamedTuple):
    """A row of a table.

    Attributes:
        title: Its first cell.
        cells: The other cells.
    """

    title: str
    cells: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes:
        caption: Its title.
        columns: The headings of all columns but the first.
        groups: Groups of rows, separated by lines.
        is_folded: Whether the table is folded until clicked.
    """

    caption: str
    columns: Sequence[str]
    groups: Sequence[Sequence[TableRow]]
    is_folded: bool = False
    kind: ClassVar = "table"


@dataclass(frozen=True)
class Charts:
    """Charts side by side.

    Attributes:
        charts: Titles and <svg> elements; see `plots.figure_svg`. The elements are trusted and not escaped.
    """

    charts: Mapping[str, str]
    kind: ClassVar = "charts"

    @property
    def svgs(self) -> Mapping[str, Markup]:
        """The charts, marked as trusted."""
        return {title: Markup(svg) for title, svg in self.charts.items()}


@dataclass(frozen=True)
class View:
    """A view of a section: pictures on one grid, two of which can be compared.

    Attributes:
        title: Its name.
        caption: Sentences on the section, one per line.
        images: Data URIs of its pictures by name; empty if there is nothing to show. See `picture_uri`.
        shape: The (H, W) of the outlines' grid.
        outlines: Lines over every picture, as an SVG path on that grid; see `outline_path`.
        flag: pass, look, fail, or nothing.
        values: Numbers by name, by which views can be sorted.
        link: The address that the title links to.
    """

    title: str
    caption: str
    images: Mapping[str, str]
    shape: tuple[int, int]
    outlines: str = ""
    flag: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    link: str = ""


@dataclass(frozen=True)
class Views:
    """Views of sections, with one bar of controls for all of them.

    Attributes:
        views: The views in their initial order.
        left: The picture that is initially on the left.
        right: The picture that is initially on the right.
        order: The name of the initial order.
    """

    views: Sequence[View]
    left: str
    right: str
    order: str = "as listed"
    kind: ClassVar = "views"

    @property
    def names(self) -> list[str]:
        """The names of all pictures."""
        return list(dict.fromkeys(name for view in self.views for name in view.images))

    @property
    def sortable_by(self) -> list[str]:
        """The names of all values."""
        return list(dict.fromkeys(name for view in self.views for name in view.values))

    @property
    def flags(self) -> dict[str, int]:
        """Return the number of views with each flag, worst first."""
        of_views = [view.flag for view in self.views]
        return {flag: of_views.count(flag) for flag in ("fail", "look", "pass") if flag in of_views}


Block = Heading | Text | Facts | Table | Charts | Views


def render_page(title: str, blocks: Sequence[Block], *, note: str = "") -> str:
    """Return a page as HTML.

    Args:
        title: The page's heading and window title.
        blocks: The blocks from top to bottom.
        note: A line at the end, such as versions.

    Example:
        >>> page = render_page("Two numbers", [Table("Sums", ["value"], [[TableRow("1 + 1", ["2"])]])])
        >>> "<td>2</td>" in page
        True
    """
    return _template().render(title=title, blocks=blocks, note=note)


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader("atlalign.pages"),
    )
    return environment.get_template("page.html")
