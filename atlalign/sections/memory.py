"""The stored state of a folder of sections, with their outlines on the slides, as GeoJSON for QuPath."""

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
"""The attributes of a section that are stored unchanged in JSON."""


class Memory(NamedTuple):
    """The stored state of a folder of sections.

    Attributes:
        sections: The sections in the order of the list.
        slides: For each slide's file name, a key that detects a changed file.
        applied: The SHA-256 of a list whose changes have already been made; set after an interrupted run.
    """

    sections: list[Section]
    slides: dict[str, str]
    applied: str = ""


def read_memory(folder: Path) -> Memory | None:
    """Return the stored state of a folder, or None.

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
            f"{path}: expected the outlines of sections from `atlalign sections`, found something else: add "
            "--overwrite to find the sections again"
        ) from error


def write_memory(folder: Path, memory: Memory) -> None:
    """Write the state of a folder as GeoJSON."""
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
