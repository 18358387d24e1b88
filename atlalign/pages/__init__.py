"""Self-contained HTML pages: they load nothing, work from disk, and all look and behave alike."""

from atlalign.pages.page import (
    Block,
    Charts,
    Facts,
    Heading,
    Table,
    TableRow,
    Text,
    View,
    Views,
    render_page,
)
from atlalign.pages.pictures import outline_path, picture_uri

__all__ = [
    "Block",
    "Charts",
    "Facts",
    "Heading",
    "Table",
    "TableRow",
    "Text",
    "View",
    "Views",
    "outline_path",
    "picture_uri",
    "render_page",
]
