"""Reads the pixel size from the TIFF metadata of various programs."""

import html
import re
import unicodedata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from atlalign.io.pixels import PixelSize, log

_LARGEST_TAGGED_UM = 30.0
"""A resolution in pixels per cm or inch that implies larger pixels is usually meant for a printer."""

_SMALLEST_UM = 0.02  # no light microscope has smaller pixels

SOFTWARE = "atlalign"
"""The Software tag of this package's files, whose resolutions are always valid."""

_INCH = 25400.0
_NAMES = {
    1e6: "m meter metre",
    1e4: "cm centimeter centimetre",
    1e3: "mm millimeter millimetre",
    1.0: "µm um µ micron mikron micrometer micrometre mikrometer micrometro micrómetro micromètre мкм 微米",
    1e-3: "nm nanometer nanometre",
    1e-4: "å angstrom ångström",
    1e-6: "pm picometer picometre",
    _INCH: "in inch inche",
    25.4: "thou mil",
}
_NO_UNITS = ("", "pixel", "pixels", "px", "none", "unknown", "reference frame", "unitless")


def _plain(unit: str) -> str:
    """Return the name of a unit in one spelling, without brackets and without "per pixel"."""
    # µ may be two characters, escaped, or wrongly decoded.
    unescaped = re.sub(r"\\u00b5|\\u03bc|Âµ", "µ", html.unescape(unit), flags=re.IGNORECASE)
    name = unicodedata.normalize("NFKC", unescaped).casefold().strip(" \t\r\n\0.()[]")
    return re.sub(r"\s*(/|\bper\b)\s*(px|pixels?|vx|voxels?)$", "", name)


_MICRONS = {
    _plain(name + plural): um
    for um, names in _NAMES.items()
    for name in names.split()
    for plural in ("", "s")
} | {'"': _INCH}
"""The length of each unit in µm, by its plain name."""

_PER_UNIT = {2: "inch", 3: "cm"}  # TIFF's ResolutionUnit
_SPACING = re.compile(r'"DICOM_PIXEL_SPACING"[^>]*>\s*"([^"]+)"\s+"([^"]+)"')
_MPP = re.compile(r"\bMPP\s*=\s*([^|;\r\n]+)")


def parse_length(value: str, unit: str) -> float | None:
    """Return a length in µm, or None if it is unknown: 0, or given in pixels.

    Args:
        value: A number with a decimal point or comma.
        unit: A unit of length in any common spelling.

    Raises:
        ValueError: If the number or the unit cannot be read.
    """
    name = _plain(unit)
    if name in _NO_UNITS:
        return None
    if name not in _MICRONS:
        raise ValueError(f"'{unit}' is not a known unit of length")
    number = _number(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"'{value}' is not a length")
    return number * _MICRONS[name] or None


def _number(value: str) -> float:
    text = value.strip()
    if text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"'{value}' is not a number") from error


def density_pixel_size(dpi: tuple[float, float] | None) -> PixelSize | None:
    """Return the size of a pixel from the density of a PNG, JPEG or BMP, in pixels per inch along x and y.

    Most programs write a default for screens or printers, of 72 to 600 per inch. As in TIFF, only values plausible for
    a microscope or slide scanner count.
    """
    if dpi is None or not all(0 < float(density) < float("inf") for density in dpi):
        return None
    x, y = (_INCH / float(density) for density in dpi)
    return (x, y) if min(x, y) >= _SMALLEST_UM and max(x, y) <= _LARGEST_TAGGED_UM else None


def tiff_pixel_size(file: Any, page: Any, path: Path, image: int | None) -> PixelSize | None:
    """Return the size of a pixel of one page; a size that cannot be read is logged.

    Args:
        file: The `TiffFile`.
        page: The page, or the first one of a series.
        path: The path of the file.
        image: The number of the image in the file if the page shows it at full size; None for other pages, for which
            only the page's own tags are used.
    """
    sources = [_ome, _aperio, _philips, _lsm, _stk, _metaseries] if image is not None else []
    try:
        for source in sources:
            said = source(file, page, path, image)
            if said is not None:
                return _known(said)
        return tagged_size(file, page)
    except ValueError as error:
        log.warning(
            "%s: the pixel size is unknown, because %s (set it with --pixel-size-um)", path.name, error
        )
        return None


_Said = tuple[float | None, float | None]


def _known(said: _Said) -> PixelSize | None:
    x, y = said
    if x is None and y is None:
        return None
    if x is None or y is None:
        raise ValueError("the file gives only one of width and height")
    return x, y


def _ome(file: Any, page: Any, path: Path, image: int | None) -> _Said | None:
    lengths = ome_lengths(file, page, path, image, "XY")
    if lengths is None or lengths == [None, None]:
        return None
    return lengths[0], lengths[1]


def ome_lengths(file: Any, page: Any, path: Path, image: int | None, axes: str) -> list[float | None] | None:
    """Return OME's pixel size along some axes, in µm; None if there is no metadata for this image.

    Raises:
        ValueError: If the metadata cannot be read.
    """
    pixels = ome_pixels(file, page, path, image)
    if pixels is None:
        return None
    sizes = {axis: pixels.get(f"PhysicalSize{axis}", "0") for axis in axes}
    return [parse_length(sizes[axis], pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in axes]


def ome_pixels(file: Any, page: Any, path: Path, image: int | None) -> ElementTree.Element | None:
    """Return OME's metadata on an image's pixels, or None without it.

    The metadata may be in a file beside the image.

    Raises:
        ValueError: If it cannot be read.
    """
    description = str(file.pages.first.description or "")
    if "<OME" not in description and "<ome:OME" not in description:
        return None
    root = _xml(description)
    companion = root.find("{*}BinaryOnly")
    if companion is not None:
        name = str(companion.get("MetadataFile", ""))
        beside = path.parent / Path(name).name
        if not name or not beside.is_file():
            raise ValueError(
                f"the file with the metadata, {name or 'without a name'}, is missing beside the image"
            )
        root = _xml(beside.read_text(encoding="utf-8", errors="replace"))
    return _ome_pixels(root, page, path, image)


def _xml(text: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text.strip().strip("\0"))
    except ElementTree.ParseError as error:
        raise ValueError(f"the OME metadata is damaged: {error}") from error


def _ome_pixels(
    root: ElementTree.Element, page: Any, path: Path, image: int | None
) -> ElementTree.Element | None:
    """Return the Pixels element of the image, found by the file's name, the position or the size."""
    found = list(root.iterfind("{*}Image/{*}Pixels"))
    named = [
        pixels
        for pixels in found
        if any(uuid.get("FileName") == path.name for uuid in pixels.iterfind("{*}TiffData/{*}UUID"))
    ]
    candidates = named if 0 < len(named) < len(found) else found
    size = (str(page.imagewidth), str(page.imagelength))
    if image is not None and image < len(candidates):
        placed = candidates[image]
        if (placed.get("SizeX"), placed.get("SizeY")) == size:
            return placed
    return next((p for p in candidates if (p.get("SizeX"), p.get("SizeY")) == size), None)


def _aperio(file: Any, page: Any, path: Path, image: int | None) -> _Said | None:
    """Return the microns per pixel in a description by Aperio, or by another program in the same form."""
    found = _MPP.search(page.description or "")
    if found is None:
        return None
    size = parse_length(found[1], "µm")
    return None if size is None else (size, size)


def _philips(file: Any, page: Any, path: Path, image: int | None) -> _Said | None:
    """Return the pixel spacing y, x in mm from Philips' DICOM-like description; the finest is the slide's."""
    if not file.is_philips:
        return None
    found = _SPACING.findall(html.unescape(str(file.pages.first.description or "")))
    if not found:
        return None
    y, x = min(found, key=lambda pair: _number(pair[0]))
    return parse_length(x, "mm"), parse_length(y, "mm")


def _lsm(file: Any, page: Any, path: Path, image: int | None) -> _Said | None:
    if not file.is_lsm or not file.lsm_metadata:
        return None
    x, y = (parse_length(str(file.lsm_metadata.get(f"VoxelSize{axis}", 0)), "m") for axis in "XY")
    return x, y


def _stk(file: Any, page: Any, path: Path, image: int | None) -> _Said | None:
    if not file.is_stk or not file.stk_metadata:
        return None
    said = file.stk_metadata
    unit = str(said.get("CalibrationUnits", "pixel"))
    x, y = (parse_length(str(float(said.get(f"{axis}Calibration", 0))), unit) for axis in "XY")
    return None if x is None and y is None else (x, y)


def _metaseries(file: Any, page: Any, path: Path, image: int | None) -> _Said | None:
    """Return the pixel size from MetaXpress and newer versions of MetaMorph."""
    said = (file.metaseries_metadata or {}).get("PlaneInfo", {}) if file.is_metaseries else {}
    if not said.get("spatial-calibration-state"):
        return None
    unit = str(said.get("spatial-calibration-units", "pixel"))
    x, y = (parse_length(str(said.get(f"spatial-calibration-{axis}", 0)), unit) for axis in "xy")
    return x, y


def tagged_size(file: Any, page: Any) -> PixelSize | None:
    """Return the pixel size from the resolution tags, in ImageJ's unit, or per cm or inch."""
    if "XResolution" not in page.tags or "YResolution" not in page.tags:
        return None
    imagej = file.imagej_metadata or {}
    per_unit = _PER_UNIT.get(int(page.tags.valueof("ResolutionUnit", 1)), "")
    said = str(imagej.get("unit", ""))
    unit = per_unit if _plain(said) in _NO_UNITS else said
    units = {"X": unit, "Y": str(imagej.get("yunit", "")) or unit}
    x, y = (_per_pixel(page.tags.valueof(f"{axis}Resolution"), units[axis]) for axis in "XY")
    if x is None or y is None:
        return None
    # ImageJ's own unit counts, but not inches, which are meant for printers, nor values left by other programs.
    is_meant = (unit == said and _MICRONS[_plain(unit)] != _INCH) or page.software == SOFTWARE
    return (x, y) if is_meant or max(x, y) <= _LARGEST_TAGGED_UM else None


def _per_pixel(resolution: Any, unit: str) -> float | None:
    """Return the pixel length in µm, given the number of pixels per unit as a fraction."""
    counted, by = resolution if isinstance(resolution, tuple) else (resolution, 1)
    return parse_length(str(by / counted), unit) if counted else None
