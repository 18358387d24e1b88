"""The file that remembers the sections of a folder and where they lie on their slides, as GeoJSON for QuPath."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atlalign.errors import InputError
from atlalign.io.files import read_bytes, written_whole
from atlalign.sections.section import Section

MEMORY = "sections.geojson"
_PLAIN = (
    "filename",
    "slide",
    "scene",
    "turn",
    "flipped",
    "kept",
    "left_out",
    "needs_turn",
    "note",
    "is_written",
)
"""The attributes of a section that JSON holds as they are."""


class Memory(NamedTuple):
    """The sections of a folder.

    Attributes:
        sections: In the order of the list.
        slides: By the file name of each slide, a mark by which a changed slide is recognised.
        applied: The SHA-256 of a list whose changes are already in `sections`, after an interrupted run.
    """

    sections: list[Section]
    slides: dict[str, str]
    applied: str = ""


def read_memory(folder: Path) -> Memory | None:
    """Return the remembered sections of a folder; None if there are none.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder / MEMORY
    if not path.is_file():
        return None
    try:
        content = json.loads(read_bytes(path))
        sections = [_section(feature) for feature in content["features"]]
        return Memory(sections, dict(content["slides"]), content["applied"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path}: expected the outlines of sections that `atlalign sections` wrote, found something else: add "
            "--overwrite to find the sections anew"
        ) from error


def write_memory(folder: Path, memory: Memory) -> None:
    """Write the sections of a folder as GeoJSON."""
    content = {
        "type": "FeatureCollection",
        "slides": memory.slides,
        "applied": memory.applied,
        "features": [_feature(section) for section in memory.sections],
    }
    with written_whole(folder / MEMORY) as unfinished:
        unfinished.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def _feature(section: Section) -> dict[str, Any]:
    closed = [np.vstack([ring, ring[:1]]).round(2).tolist() for ring in section.outline]
    return {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": [[ring] for ring in closed]},
        "properties": {name: getattr(section, name) for name in _PLAIN} | {"cells": dict(section.cells)},
    }


def _section(feature: Mapping[str, Any]) -> Section:
    rings = (np.array(polygon[0], float)[:-1] for polygon in feature["geometry"]["coordinates"])
    return Section(outline=tuple(rings), **feature["properties"])
