"""Opens OME-Zarr images, which are folders: versions 0.4 (Zarr 2) and 0.5 (Zarr 3), with the optional package zarr."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError, reason_of
from atlalign.io.channel_names import hexadecimal_color
from atlalign.io.pixel_sizes import parse_length
from atlalign.io.pixels import PixelSize
from atlalign.io.scenes import Block, Channel, Scene

_log = logging.getLogger(__name__)

_RGB = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
_COLOR_NAME = re.compile(r"(channel[ _]?\d*|red|green|blue|[rgb])?", re.IGNORECASE)


def zarr_scenes(path: Path) -> list[Scene]:
    """Return the images of an OME-Zarr folder; its labels and tables are ignored.

    Raises:
        InputError: If zarr is not installed, or the folder does not contain one or several images.
    """
    try:
        import zarr
    except ImportError as error:
        raise InputError(
            "expected the package zarr, which reads OME-Zarr: pip install 'atlalign-torch[slides]'"
        ) from error
    try:
        group: Any = zarr.open_group(str(path), mode="r")
        return [_scene(image, path.name) for image in _images(group)]
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"expected the metadata of an OME-Zarr image, found something else ({reason_of(error)})"
        ) from error
    except FileNotFoundError as error:
        raise InputError(
            "expected a Zarr group in this folder, found none: check that the copy is complete"
        ) from error


def _images(group: Any) -> list[Any]:
    """Return the groups of the images in a folder."""
    said = _said(group)
    if "plate" in said or "well" in said:
        raise InputError(
            "expected one image, found a plate of wells: name one of its images, such as A/1/0 inside it"
        )
    images = [group] if "multiscales" in said else [group[name] for name in _series(group, said)]
    if not images:
        raise InputError("expected OME-Zarr metadata (multiscales), found none in this Zarr folder")
    return images


def _said(group: Any) -> Mapping[str, Any]:
    """Return the OME metadata of a group; since version 0.5 it has a key of its own."""
    attributes = dict(group.attrs)
    said: Mapping[str, Any] = attributes.get("ome", attributes)
    return said


def _series(group: Any, said: Mapping[str, Any]) -> list[str]:
    """Return the names of the images in a folder of several images, as written by Bio-Formats."""
    if "bioformats2raw.layout" not in said:
        return []
    listed = _said(group["OME"]).get("series") if "OME" in group else None
    return listed or sorted((name for name in group if name.isdecimal()), key=int)


def _scene(group: Any, name: str) -> Scene:
    said = _said(group)
    multiscale = said["multiscales"][0]
    arrays = [group[dataset["path"]] for dataset in multiscale["datasets"]]
    axes = _axes(multiscale, arrays[0])
    sizes = dict(zip(axes, arrays[0].shape, strict=True))
    channels = _channels(said.get("omero", {}), sizes.get("c", 1))
    is_color = _is_color(channels, arrays[0].dtype)

    def block(part: Block) -> NDArray[Any]:
        array, rows, columns = arrays[part.level], slice(part.top, part.bottom), slice(part.left, part.right)
        where = {"t": 0, "c": slice(None) if is_color else part.channel, "z": part.z, "y": rows, "x": columns}
        pixels = np.asarray(array[tuple(where[axis] for axis in axes)])
        return np.moveaxis(pixels, 0, -1) if is_color else pixels

    def check() -> None:
        for number, array in enumerate(arrays):
            if array.nchunks_initialized < array.nchunks:
                missing = array.nchunks - array.nchunks_initialized
                _log.warning(
                    "%s: level %d lacks %d of %d chunks, which are read as empty: scanners omit empty chunks, but an "
                    "interrupted copy also lacks chunks",
                    *(name, number, missing, array.nchunks),
                )

    return Scene(
        name=str(multiscale.get("name", "")),
        levels=tuple((array.shape[axes.index("y")], array.shape[axes.index("x")]) for array in arrays),
        channels=(Channel(),) if is_color else channels,
        is_color=is_color,
        dtype=np.dtype(arrays[0].dtype),
        pixel_um=_pixel_um(multiscale, axes),
        block=block,
        check=check,
        z_count=sizes.get("z", 1),
        t_count=sizes.get("t", 1),
    )


def _axes(multiscale: Mapping[str, Any], array: Any) -> list[str]:
    """Return the names of the axes; versions before 0.3 do not store them."""
    given = multiscale.get("axes", list("tczyx"))
    axes = [axis["name"] if isinstance(axis, Mapping) else axis for axis in given]
    if len(axes) != len(array.shape) or set(axes) - set("tczyx") or not {"y", "x"} <= set(axes):
        raise InputError(
            f"expected axes among t, c, z, y and x, found {', '.join(axes)} of sizes {array.shape}"
        )
    return axes


def _channels(omero: Mapping[str, Any], count: int) -> tuple[Channel, ...]:
    given = omero.get("channels", [])
    if len(given) != count:
        return (Channel(),) * count
    return tuple(
        Channel(str(channel.get("label", "")), hexadecimal_color(channel.get("color", "")))
        for channel in given
    )


def _is_color(channels: Sequence[Channel], dtype: Any) -> bool:
    """Return whether three 8-bit channels are red, green and blue and have no other names."""
    named = all(_COLOR_NAME.fullmatch(channel.name) for channel in channels)
    return dtype == np.uint8 and named and [channel.color for channel in channels] == _RGB


def _pixel_um(multiscale: Mapping[str, Any], axes: Sequence[str]) -> PixelSize | None:
    """Return the pixel size of the first level; None if its unit is missing."""
    scale = np.ones(len(axes))
    for owner in (multiscale["datasets"][0], multiscale):
        for transform in owner.get("coordinateTransformations", []):
            if transform.get("type") == "scale":
                scale = scale * np.array(transform["scale"], float)
    units = {
        axis["name"]: axis.get("unit", "") for axis in multiscale.get("axes", []) if isinstance(axis, Mapping)
    }
    x, y = (parse_length(str(scale[axes.index(axis)]), units.get(axis, "")) for axis in "xy")
    return (x, y) if x and y else None
