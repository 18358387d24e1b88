"""Headers of volumes: the size of the voxels, and the directions of the axes.

Three formats do not define the unit, or often hold a wrong one: NRRD, MetaImage, and NIfTI in mm. The Allen Institute's
own NRRD files say 25 for 25 µm, others say 0.025. A size without a reliable unit therefore counts as µm if it is at
least 5 and as mm if it is smaller: voxels of 5 mm, or of less than 5 µm, do not occur in brain atlases.
"""

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError
from atlalign.io.pixel_sizes import ome_lengths, parse_length, tagged_size

_log = logging.getLogger(__name__)

VoxelSize = tuple[float, float, float]
"""The size of one voxel along the three axes of its file, in µm."""

_LEAST_WITHOUT_UNIT_UM = 5.0
_PLAUSIBLE_UM = (0.1, 5000.0)
_MM = 1e3
_NRRD_HEADER_BYTES = 2**16
_H5_ATTRIBUTES = ("spacing_um", "element_size_um")


class Header(NamedTuple):
    """A file's information about its voxels.

    Attributes:
        spacing_um: The voxel size along the file's own axes; None if the file lacks it.
        direction: (3, 3), column j is the direction of axis j in (left, posterior, superior); None if the file lacks
            it.
    """

    spacing_um: VoxelSize | None = None
    direction: NDArray[np.float64] | None = None


def itk_header(path: Path, reader: Any) -> Header:
    """Return the header of a .nrrd, .nii or .mha file whose information a SimpleITK reader has read."""
    sizes = tuple(reader.GetSpacing())
    direction = np.reshape(reader.GetDirection(), (3, 3)).astype(np.float64)
    if sizes == (1.0, 1.0, 1.0):  # SimpleITK's value for an unknown size
        return Header(None, direction)
    size = _if_readable(path, lambda: _in_um(sizes, _reliable_unit_um(path, reader)))
    return Header(size, direction)


def tiff_header(path: Path, file: Any, series: Any) -> Header:
    """Return the header of one series of an open tifffile.TiffFile: the voxel size of OME or ImageJ.

    The size is in the order of pages, rows and columns.
    """
    return Header(_if_readable(path, lambda: _ome_sizes(path, file, series) or _imagej_sizes(file, series)))


def h5_header(path: Path, dataset: Any) -> Header:
    """Return the header of an h5 dataset: its attribute `spacing_um` or `element_size_um`, or the file's."""
    for holder in (dataset, dataset.file):
        for name in _H5_ATTRIBUTES:
            if name in holder.attrs:
                return Header(_checked(path, _triple(holder.attrs[name], f"{path}, attribute {name}")))
    return Header()


def brainglobe_header(path: Path) -> Header | None:
    """Return BrainGlobe's metadata.json beside an image as a header, or None without that file.

    Its orientation names the corner of the first voxel: asr is anterior, superior, right.

    Raises:
        InputError: If it is damaged.
    """
    beside = path.with_name("metadata.json")
    try:
        metadata = json.loads(beside.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise InputError(f"{beside}: expected BrainGlobe's metadata of an atlas: {error}") from error
    if not isinstance(metadata, dict) or not {"orientation", "resolution"} <= metadata.keys():
        return None
    corner = str(metadata["orientation"]).lower()
    columns = [_CORNERS[letter] for letter in corner if letter in _CORNERS]
    direction = np.array(columns, np.float64).T
    if direction.shape != (3, 3) or abs(np.linalg.det(direction)) != 1:
        raise InputError(f"{beside}, orientation: expected letters such as asr, found '{corner}'")
    return Header(_checked(path, _triple(metadata["resolution"], f"{beside}, resolution")), direction)


_CORNERS = {
    "l": (-1, 0, 0), "r": (1, 0, 0), "a": (0, 1, 0), "p": (0, -1, 0), "s": (0, 0, -1), "i": (0, 0, 1),
}  # fmt: skip


def _triple(value: Any, where: str) -> VoxelSize:
    """Return a voxel size, given as one number for all axes or as three."""
    try:
        sizes = np.asarray(value, np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: expected one or three numbers, found {value}") from error
    if sizes.size not in (1, 3):
        raise InputError(f"{where}: expected one or three numbers, found {value}")
    x, y, z = np.broadcast_to(sizes, 3).tolist()
    return x, y, z


def _checked(path: Path, sizes: VoxelSize) -> VoxelSize:
    least, most = _PLAUSIBLE_UM
    if not all(least <= size <= most for size in sizes):
        raise InputError(
            f"{path}: expected voxels of {least:g} to {most:g} µm in the header, found {shown_um(sizes)}: correct "
            "its spacing or its unit"
        )
    return sizes


def shown_um(sizes: Iterable[float]) -> str:
    """Return a voxel size as messages show it: as one number if all axes share it."""
    each = [f"{size:g}" for size in sizes]
    return f"{' × '.join(each[:1] if len(set(each)) == 1 else each)} µm"


def _in_um(sizes: Iterable[float], unit_um: float | None) -> VoxelSize:
    """Return sizes in µm, by this module's rule if there is no reliable unit."""
    given = list(sizes)
    if unit_um is None:
        unit_um = 1.0 if min(given) >= _LEAST_WITHOUT_UNIT_UM else 1e3
    x, y, z = (float(f"{size * unit_um:.6g}") for size in given)
    return x, y, z


# --- formats ----------------------------------------------------------------------------------------------------------


def _if_readable(path: Path, read: Callable[[], VoxelSize | None]) -> VoxelSize | None:
    """Return a size in a plausible range; if it cannot be read, log a warning and return None."""
    try:
        sizes = read()
    except ValueError as error:
        _log.warning("%s: the header does not give the voxel size: %s", path, error)
        return None
    return None if sizes is None else _checked(path, sizes)


def _reliable_unit_um(path: Path, reader: Any) -> float | None:
    """Return the length in µm of the unit of the reader's spacing; None if the unit is missing, or is mm."""
    if path.suffix.lower() == ".nrrd":
        unit = _nrrd_unit_um(path)
        return None if unit == _MM else unit
    said = int(reader.GetMetaData("xyzt_units")) & 7 if reader.HasMetaDataKey("xyzt_units") else 0
    return _MM if said in (1, 3) else None  # m and µm, which ITK has converted to mm


def _nrrd_unit_um(path: Path) -> float | None:
    """Return the unit of an NRRD header, which ITK does not return."""
    with path.open("rb") as file:
        lines = file.read(_NRRD_HEADER_BYTES).split(b"\n\n")[0].decode("latin-1").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    said = fields.get("space units") or fields.get("units") or ""
    units = {parse_length("1", unit) for unit in re.findall(r'"([^"]*)"', said) or said.split()}
    if len(units) > 1:
        raise ValueError(f"its axes have different units, {said.strip()}")
    return units.pop() if units else None


def _ome_sizes(path: Path, file: Any, series: Any) -> VoxelSize | None:
    return _all_or_none(ome_lengths(file, series.keyframe, path, file.series.index(series), "ZYX"))


def _imagej_sizes(file: Any, series: Any) -> VoxelSize | None:
    said = file.imagej_metadata or {}
    unit = str(said.get("zunit") or said.get("unit", ""))
    plane = tagged_size(file, series.keyframe)
    if plane is None or "spacing" not in said:
        return None
    return _all_or_none([parse_length(str(said["spacing"]), unit), plane[1], plane[0]])


def _all_or_none(sizes: Sequence[float | None] | None) -> VoxelSize | None:
    """Return three sizes, rounded to the precision of fractions in files; None unless all three are known."""
    known = [float(f"{size:.6g}") for size in sizes or () if size is not None]
    return (known[0], known[1], known[2]) if len(known) == 3 else None


def agree(one: VoxelSize, other: VoxelSize) -> bool:
    """Return whether two voxel sizes are equal up to rounding."""
    return all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one, other, strict=True))
