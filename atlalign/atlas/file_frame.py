"""The voxel size and the axes of an atlas file, from the user or from the headers of its volumes."""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.axes import (
    Axes,
    better_mirrored,
    brain_length,
    brain_likeness,
    header_axes,
    ml_place,
    oriented,
)
from atlalign.atlas.volumes import VolumeFile
from atlalign.declarations import atlas_option
from atlalign.errors import InputError
from atlalign.io.headers import VoxelSize, agree, shown_um

_log = logging.getLogger(__name__)
_DEFAULT_UM = 25.0
_MOUSE_MM = (9.0, 15.5)  # the length of a mouse brain, from the olfactory bulbs to the medulla


def lengths_of(volume: VolumeFile) -> tuple[float, ...]:
    """Return the lengths of a file's axes: in µm if its header gives the voxel size, otherwise in voxels."""
    return tuple(
        planes * size
        for planes, size in zip(volume.array.shape, volume.header.spacing_um or (1.0,) * 3, strict=True)
    )


def warn_if_turned(small: NDArray[np.float32], axes: Axes, source: str) -> None:
    """Log a warning if the halves do not mirror each other along the axis that the user calls ML, but along another."""
    if (mirrored := better_mirrored(small, axes)) is not None:
        _log.warning(
            "%s: %s makes axis %d ML, but the halves of the brain mirror each other along axis %d",
            source, atlas_option("axes", ",".join(axes)), ml_place(axes) + 1, mirrored + 1,
        )  # fmt: skip


def voxel_size(
    volume: VolumeFile, given_um: float | None, small: NDArray[np.float32], axes: Axes
) -> VoxelSize:
    """Return the size of the voxels along the file's axes, as given by the user or the header.

    Args:
        volume: The volume in the order of its file.
        given_um: The size given by the user, or None.
        small: The volume along (AP, DV, ML) at any resolution.
        axes: The axes of the file.

    Raises:
        InputError: If user and header contradict each other, or neither gives a size and the default is implausible.
    """
    said = volume.header.spacing_um
    given = None if given_um is None else (given_um, given_um, given_um)
    if said is not None and given is not None and not agree(said, given):
        raise InputError(
            f"{volume.source}: expected voxels of {shown_um(given)} as {atlas_option('spacing_um')} says, found "
            f"{shown_um(said)} in the file: leave the option out, or correct the file"
        )
    along_ap = next(place for place, name in enumerate(axes) if name in ("AP", "PA"))
    return said or given or _usual_size(volume.source, small, volume.array.shape[along_ap])


def _usual_size(source: str, small: NDArray[np.float32], planes: int) -> VoxelSize:
    length_mm = brain_length(small) * planes * _DEFAULT_UM / 1000
    least, most = _MOUSE_MM
    if brain_likeness(small) and not least <= length_mm <= most:
        raise InputError(
            f"{source}: expected a voxel size, which the file does not give; at {_DEFAULT_UM:g} µm its tissue "
            f"would be {length_mm:.1f} mm long from front to back (a mouse brain: {least:g} to {most:g} mm): give "
            f"{atlas_option('spacing_um')}"
        )
    _log.info("%s does not give its voxel size: %g µm is assumed", source, _DEFAULT_UM)
    return _DEFAULT_UM, _DEFAULT_UM, _DEFAULT_UM


def check_header(ids: VolumeFile, sizes: VoxelSize, axes: Axes | None) -> None:
    """Check that the header of the ids agrees with the template's voxel size and, unless None, its axes."""
    said, direction = ids.header
    if said is not None and not agree(said, sizes):
        raise InputError(
            f"{ids.source}: expected voxels of {shown_um(sizes)} as in the template, found {shown_um(said)}"
        )
    if axes is None or direction is None or np.allclose(np.abs(direction), np.eye(3), atol=0.02):
        return
    if (found := header_axes(direction, ids.source)) != axes:
        raise InputError(
            f"{ids.source}: expected the template's axes {','.join(axes)}, found {','.join(found)} in the header: if "
            f"both files have the same orientation, give their axes, such as {atlas_option('axes', ','.join(axes))}"
        )


def oriented_like(ids: VolumeFile, template: VolumeFile, axes: Axes) -> Any:
    """Return the ids along (AP, DV, ML), given the axes of their template.

    Raises:
        InputError: If the shapes differ.
    """
    if ids.array.shape != template.array.shape:
        raise InputError(
            f"{ids.source}: expected the template's shape {tuple(template.array.shape)}, "
            f"got {tuple(ids.array.shape)}"
        )
    return oriented(ids.array, axes)
