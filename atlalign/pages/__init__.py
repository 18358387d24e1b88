"""Self-contained HTML pages: they load no other files, open from disk, and share one look and one set of controls."""

from atlalign.pages.contact_sheet import INDEX, write_index
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
from atlalign.pages.preview import EXPECTED_ERROR, PREVIEW, SECTION, TEMPLATE, Preview

__all__ = [
    "EXPECTED_ERROR",
    "INDEX",
    "PREVIEW",
    "SECTION",
    "TEMPLATE",
    "Block",
    "Charts",
    "Facts",
    "Heading",
    "Preview",
    "Table",
    "TableRow",
    "Text",
    "View",
    "Views",
    "outline_path",
    "picture_uri",
    "render_page",
    "write_index",
]
