"""Atlases from BrainGlobe."""

import logging
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from atlalign.atlas.ontology import Ontology, Region
from atlalign.errors import InputError, reason_of

_log = logging.getLogger(__name__)


def fetch(
    name: str, *, with_annotation: bool, by_hand: str
) -> tuple[NDArray[Any], NDArray[Any] | None, Ontology]:
    """Return template, annotation and ontology of a BrainGlobe atlas, which is cached in ~/.brainglobe.

    Args:
        name: The atlas.
        with_annotation: Whether to load the region ids.
        by_hand: Advice on how to use the atlas without this download, for the error message.

    Raises:
        InputError: If brainglobe-atlasapi is missing, or the download fails.
    """
    try:
        from brainglobe_atlasapi import BrainGlobeAtlas
    except ImportError as error:
        raise InputError(
            "the Allen atlas needs brainglobe-atlasapi: pip install 'atlalign-torch[allen]'"
        ) from error
    _log.info("%s: read from ~/.brainglobe, or downloaded from BrainGlobe's server on first use", name)
    try:
        atlas = BrainGlobeAtlas(name, check_latest=False)
        # Version 3 renamed `reference` to `template`.
        template = atlas.template if hasattr(type(atlas), "template") else atlas.reference
        ontology = Ontology(_brainglobe_region(entry) for entry in atlas.structures.values())
        return template, atlas.annotation if with_annotation else None, ontology
    except Exception as error:  # each of its network libraries raises its own exceptions
        raise InputError(
            f"{name}: not on this machine, and the download failed ({reason_of(error)}): {by_hand}"
        ) from error


def _brainglobe_region(entry: Mapping[str, Any]) -> Region:
    red, green, blue = entry["rgb_triplet"]
    path = tuple(int(part) for part in entry["structure_id_path"])
    return Region(int(entry["id"]), entry["acronym"], entry["name"], path, (int(red), int(green), int(blue)))
