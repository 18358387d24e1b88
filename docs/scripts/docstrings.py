"""Lets the site show the `Example:` of a docstring as code."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames the section: griffe knows it in the plural."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename it in the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
