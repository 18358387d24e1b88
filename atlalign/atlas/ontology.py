"""The regions of an atlas: their ids, names and hierarchy."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.cells import shown, whole_number
from atlalign.io.tables import read_table


class Region(NamedTuple):
    """One region.

    Attributes:
        id: The region's number in annotations.
        acronym: Short name.
        name: Full name.
        path: The ids from the root down to the region itself; only its own id if no tree is known.
        color: (r, g, b), each 0 to 255, or None.
    """

    id: int
    acronym: str
    name: str
    path: tuple[int, ...]
    color: tuple[int, int, int] | None

    @property
    def depth(self) -> int:
        """The number of regions that contain this one; 0 for the root."""
        return len(self.path) - 1


class Ontology:
    """The tree of regions.

    Args:
        regions: The regions, each with its path from the root.

    Raises:
        InputError: If two regions share an id, or a path does not end in the region itself.
    """

    def __init__(self, regions: Iterable[Region]) -> None:
        self._regions: dict[int, Region] = {}
        for region in regions:
            if region.id in self._regions:
                raise InputError(f"ontology: expected each id once, found {region.id} twice")
            if not region.path or region.path[-1] != region.id:
                raise InputError(
                    f"ontology: expected the path of {region.id} to end in it, got {region.path}"
                )
            self._regions[region.id] = region

    def __getitem__(self, region_id: int) -> Region:
        return self._regions[int(region_id)]

    def __contains__(self, region_id: object) -> bool:
        return region_id in self._regions

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions.values())

    def __len__(self) -> int:
        return len(self._regions)

    @property
    def depth(self) -> int:
        """The depth of the deepest region; the root's is 0."""
        return max((region.depth for region in self), default=0)

    def at_depth(self, labels: NDArray[Any], depth: int) -> NDArray[Any]:
        """Return labels, of any shape, with each region replaced by its ancestor at `depth`.

        The data type stays the same, or becomes int64 if an id does not fit into it. Shallower regions, 0 and unknown
        ids stay unchanged.
        """
        found, place = np.unique(labels, return_inverse=True)
        ancestors = [self._ancestor(int(label), depth) for label in found]
        fits = max(ancestors, default=0) <= np.iinfo(labels.dtype).max
        dtype = labels.dtype if fits else np.dtype(np.int64)
        return np.array(ancestors, dtype=dtype)[place].reshape(labels.shape)

    def _ancestor(self, label: int, depth: int) -> int:
        region = self._regions.get(label)
        return label if region is None or region.depth < depth else region.path[depth]


def read_ontology(path: str | Path) -> Ontology:
    """Return the ontology in a CSV file with the columns of the Allen Institute's structure tree.

    The columns are id, acronym, safe_name or name, and optionally structure_id_path (`/997/8/567/`) and
    color_hex_triplet. `read_table` describes the formats that it accepts.

    Raises:
        InputError: If the file cannot be read, a column is missing, or a row is malformed.
    """
    path = Path(path).expanduser()
    table = read_table(path)
    name = "safe_name" if "safe_name" in table.names else "name"
    rows = table.records(("id", "acronym", name))
    regions = [_region(cells, name, f"{path}, line {line}") for line, cells in rows]
    if not regions:
        raise InputError(f"{path}: expected regions below the column names, found none")
    try:
        return Ontology(regions)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _region(cells: Mapping[str, str], name: str, where: str) -> Region:
    region_id, path = whole_number(cells["id"], f"{where}, id"), cells.get("structure_id_path")
    ids = _ids(path, f"{where}, structure_id_path") if path else (region_id,)
    color = _color(cells.get("color_hex_triplet", ""), f"{where}, color_hex_triplet")
    return Region(region_id, cells["acronym"], cells[name], ids, color)


def _ids(text: str, where: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.strip("/").split("/"))
    except ValueError as error:
        raise InputError(f"{where}: expected ids such as /997/8/, found {shown(text)}") from error


def _color(text: str, where: str) -> tuple[int, int, int] | None:
    if not text:
        return None
    try:
        red, green, blue = bytes.fromhex(text.zfill(6))  # spreadsheets drop leading zeros
    except ValueError as error:
        raise InputError(f"{where}: expected six hexadecimal digits, found {shown(text)}") from error
    return red, green, blue
