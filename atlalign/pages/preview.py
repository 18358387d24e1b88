"""The preview of a registered section: small pictures and outlines, in a file beside its results."""

import json
from pathlib import Path
from typing import NamedTuple

from atlalign.errors import InputError

PREVIEW, TEMPLATE, SECTION, EXPECTED_ERROR = "preview.json", "template", "section", "expected error"
"""The file name of a preview, and the names of its pictures."""


class Preview(NamedTuple):
    """Pictures of a registered section on one grid of the reference.

    Attributes:
        shape: The grid's (H, W).
        images: Data URIs by name: `TEMPLATE`, `SECTION` for the registered section, and `EXPECTED_ERROR` if known.
        outlines: The borders of the reference's regions, as an SVG path on that grid.
    """

    shape: tuple[int, int]
    images: dict[str, str]
    outlines: str

    def write(self, folder: Path) -> None:
        """Write the preview to a section's folder."""
        (folder / PREVIEW).write_text(json.dumps(self._asdict()) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Preview":
        """Read a preview.

        Raises:
            InputError: If it is missing or damaged.
        """
        try:
            found = json.loads((folder / PREVIEW).read_text(encoding="utf-8"))
            height, width = found["shape"]
            images = {str(name): str(uri) for name, uri in found["images"].items()}
            return cls((int(height), int(width)), images, str(found["outlines"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / PREVIEW}: cannot be read as a preview: {error}") from error
