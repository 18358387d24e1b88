"""Images between files and the working size."""

import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.errors import InputError

TIFF_ENDINGS = (".tif", ".tiff")
IMAGE_ENDINGS = (*TIFF_ENDINGS, ".png", ".jpg", ".jpeg")
"""What the names of images that users give end in."""

PixelSize = tuple[float, float]
"""Of one pixel along x and y, in µm."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""The weights of red, green and blue in grey, by ITU-R BT.601."""

_STRIP_PX = 2**22  # so many pixels are made grey at once
_JPEG_END, _TAIL_BYTES = b"\xff\xd9", 2**16
_PNG_START = b"\x89PNG"
# What a TIFF file says in pixels per cm or inch is as often the resolution of a printer.
_LARGEST_TAGGED_UM = 30.0
_SOFTWARE = "atlalign"
_MICRONS = {"µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


class _Pixels(NamedTuple):
    """What is in a file: (h, w) or (h, w, c), and whether the first three of several channels are red, green, blue."""

    array: NDArray[Any]
    is_color: bool


class ImageFile(NamedTuple):
    """What a file holds.

    Attributes:
        pixels: (h, w) in grey, or (h, w, 3) in colour, of the file's own type.
        pixel_um: The size of a pixel, where the file says it.
    """

    pixels: NDArray[Any]
    pixel_um: PixelSize | None


def resize_images(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return images (N, *shape) of the same dtype: Gaussian antialiasing, then bilinear with aligned corners.

    Args:
        images: (N, H, W), float or uint8; integers are rounded.
        shape: (H', W'); images that have it are returned as they are.
    """
    if tuple(images.shape[1:]) == tuple(shape):
        return images
    from kornia.geometry import resize  # slow to import

    resized: Tensor = resize(images[:, None].float(), shape, antialias=True, align_corners=True)[:, 0]
    return resized if images.is_floating_point() else resized.round().to(images.dtype)


def read_image(path: str | Path, *, channel: int | None = None) -> ImageFile:
    """Return an image: PNG, JPG, TIFF, OME-TIFF and what else SimpleITK reads; opacity is left out.

    The pixel size is that of OME and ImageJ metadata, or of a TIFF's resolution where it is plausible for a
    microscope (at most 30 µm). Of a pyramid the largest level is read. The EXIF orientation of a JPG is not looked at.

    Args:
        path: The file.
        channel: Which channel to read of an image that has several, from 0.

    Raises:
        InputError: If there is no file, or it is not one image in grey or colour.
    """
    path = Path(path)
    pixels, pixel_um = _read(path)
    return ImageFile(_checked(_chosen(pixels, channel, path.name), path.name), pixel_um)


def read_channels(path: str | Path) -> list[NDArray[Any]]:
    """Return the channels (h, w) of an image, or of one in colour its pixels (h, w, 3) alone.

    Raises:
        InputError: As `read_image` does.
    """
    path = Path(path)
    pixels, _ = _read(path)
    if pixels.is_color or pixels.array.ndim == 2:
        return [_checked(_chosen(pixels, None, path.name), path.name)]
    return list(np.moveaxis(_checked(pixels.array, path.name), -1, 0))


def read_labels(path: str | Path) -> NDArray[Any]:
    """Return a label image (h, w) of integers.

    Raises:
        InputError: If there is no file, or it is no image of integers in one channel.
    """
    labels = read_image(path).pixels
    if labels.ndim != 2 or labels.dtype.kind not in "ui":
        raise InputError(
            f"{Path(path).name}: expected labels, one integer a pixel, found {labels.shape} {labels.dtype}"
        )
    return labels


def shrink_to_grey(pixels: NDArray[Any], factor: int = 1, weights: NDArray[np.float32] = LUMA) -> Tensor:
    """Return the means of blocks of `factor`² pixels in grey, float32 (h // factor, w // factor), in the file's units.

    Pixel k of the result lies at `factor·k + (factor − 1)/2` of the image. A few rows are worked on at a time, so that
    an image that barely fits into memory still can be shrunk.

    Args:
        pixels: (h, w) or (h, w, 3).
        factor: At least 1.
        weights: (3,), of the channels of an image in colour.
    """
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    grey = torch.empty(height, width)
    step = max(1, _STRIP_PX // (pixels.shape[1] * factor))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        strip = pixels[rows.start * factor : rows.stop * factor, : width * factor]
        values = strip @ weights if strip.ndim == 3 else strip.astype(np.float32)
        blocks = values.reshape(rows.stop - rows.start, factor, width, factor)
        grey[rows] = torch.from_numpy(blocks.mean(axis=(1, 3), dtype=np.float32))
    return grey


def overlay(reference: Tensor, other: Tensor) -> NDArray[np.float32]:
    """Return an RGB image (H, W, 3) of two (H, W) in [0, 1]: the reference in magenta, the other one in green."""
    reference, other = (image.detach().cpu().float().clamp(0, 1) for image in (reference, other))
    return torch.stack([reference, other, reference], dim=-1).numpy()


def write_tiff(
    path: Path,
    bands: Iterable[NDArray[Any]],
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    pixel_um: PixelSize,
    channels: int = 1,
) -> None:
    """Write an image band by band, compressed without loss, with its pixel size.

    Args:
        path: The file; BigTIFF where it may exceed 4 GB.
        bands: Of consecutive rows, all of one height but the last, which may be lower; one channel after the other.
        shape: (h, w) or (h, w, 3).
        dtype: Of the bands.
        pixel_um: The size of a pixel.
        channels: So many images (h, w) make an OME-TIFF of as many channels.
    """
    import tifffile
    from imagecodecs import deflate_encode  # in half of zlib's time

    remaining = iter(bands)
    first = next(remaining)
    # In strips and not in tiles, of which ITK makes four channels.
    strips = (bytes(deflate_encode(band.tobytes())) for band in chain([first], remaining))
    size = channels * math.prod(shape) * dtype.itemsize
    is_ome = channels > 1
    with tifffile.TiffWriter(path, bigtiff=size > 2**31, ome=is_ome or None) as file:
        file.write(
            strips,
            shape=(channels, *shape) if is_ome else shape,
            dtype=dtype,
            rowsperstrip=len(first),
            compression="zlib",
            photometric="rgb" if len(shape) == 3 else "minisblack",
            resolution=(1e4 / pixel_um[0], 1e4 / pixel_um[1]),
            resolutionunit="CENTIMETER",
            software=_SOFTWARE,
            metadata=_ome_metadata(pixel_um) if is_ome else None,
        )


def _ome_metadata(pixel_um: PixelSize) -> dict[str, Any]:
    x, y = pixel_um
    units = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    return {"axes": "CYX", "PhysicalSizeX": x, "PhysicalSizeY": y, **units}


def _read(path: Path) -> tuple[_Pixels, PixelSize | None]:
    if not path.is_file():
        raise InputError(f"{path.name}: no such file in {path.parent}")
    return (_read_tiff if path.suffix.lower() in TIFF_ENDINGS else _read_other)(path)


def _read_tiff(path: Path) -> tuple[_Pixels, PixelSize | None]:
    """Return the first image of a TIFF file and its pixel size."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            array = series.asarray().squeeze()
            axes = "".join(axis for axis, n in zip(series.axes, series.shape, strict=True) if n > 1)
            page = file.pages.first
            if array.dtype == bool:
                array = array.astype(np.uint8) * 255
            if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                array = np.iinfo(array.dtype).max - array
            pixel_um = _ome_pixel_size(file) or _tagged_pixel_size(file, page)
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{path.name}: cannot be read as an image: {error}") from error
    if axes not in ("YX", "YXS", "SYX", "CYX", "YXC"):
        raise InputError(f"{path.name}: expected one image, found axes {series.axes} of sizes {series.shape}")
    if "S" not in axes:
        channels = axes.find("C")  # −1 without: the array stays as it is
        return _Pixels(np.moveaxis(array, channels, -1), is_color=False), pixel_um
    array = np.moveaxis(array, axes.index("S"), 2)
    opacities = sum(sample in (1, 2) for sample in page.extrasamples)  # ASSOCALPHA, UNASSALPHA
    array = array[..., : array.shape[2] - opacities]
    is_color = page.photometric in (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    return _Pixels(array, is_color=is_color and array.shape[2] in (3, 4)), pixel_um


def _ome_pixel_size(file: Any) -> PixelSize | None:
    import tifffile

    if not file.ome_metadata:
        return None
    images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    pixels = (images[0] if isinstance(images, list) else images)["Pixels"]
    units = {axis: _MICRONS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm")) for axis in "XY"}
    sizes = [
        float(pixels[f"PhysicalSize{axis}"]) * unit
        for axis, unit in units.items()
        if unit is not None and f"PhysicalSize{axis}" in pixels
    ]
    return (sizes[0], sizes[1]) if len(sizes) == 2 else None


def _tagged_pixel_size(file: Any, page: Any) -> PixelSize | None:
    """Return the size of a pixel from the tags of its resolution: with ImageJ's unit, or per cm or inch."""
    if "XResolution" not in page.tags or "YResolution" not in page.tags:
        return None
    unit = str((file.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
    per_unit = {2: 25400.0, 3: 10000.0}
    length = _MICRONS.get(unit) or per_unit.get(int(page.tags.valueof("ResolutionUnit", 1)))
    pixels = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if length is None or any(counted == 0 for counted, _ in pixels):
        return None
    x, y = (length * by / counted for counted, by in pixels)
    is_meant = unit in _MICRONS or page.software == _SOFTWARE
    return (x, y) if is_meant or max(x, y) <= _LARGEST_TAGGED_UM else None


def _read_other(path: Path) -> tuple[_Pixels, None]:
    import SimpleITK
    from imagecodecs import png_decode

    content = path.read_bytes()
    if path.suffix.lower() in (".jpg", ".jpeg") and _JPEG_END not in content[-_TAIL_BYTES:]:
        # The decoder would fill what is missing with grey.
        raise InputError(f"{path.name}: cannot be read as an image: its end is missing")
    try:
        if content.startswith(_PNG_START):  # of which SimpleITK does not read grey with opacity
            array = png_decode(content)
            has_opacity = array.ndim == 3 and array.shape[2] in (2, 4)
            return _Pixels(array[..., :-1] if has_opacity else array, is_color=True), None
        image: Any = SimpleITK.ReadImage(str(path))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{path.name}: cannot be read as an image") from error
    if image.GetDimension() != 2:
        raise InputError(f"{path.name}: expected one image, found sizes {image.GetSize()}")
    is_color = image.GetNumberOfComponentsPerPixel() in (3, 4)
    return _Pixels(SimpleITK.GetArrayFromImage(image), is_color), None


def _chosen(pixels: _Pixels, channel: int | None, name: str) -> NDArray[Any]:
    """Return (h, w), of the one channel that there is or that was chosen, or (h, w, 3) in colour."""
    array = pixels.array if pixels.array.ndim == 3 else pixels.array[..., None]
    channels = array.shape[2]
    if channel is not None and not 0 <= channel < channels:
        raise InputError(f"{name}: expected a channel in 0 … {channels - 1}, got {channel}")
    if channel is not None or channels == 1:
        return array[..., channel or 0]
    if not pixels.is_color:
        raise InputError(
            f"{name}: expected grey or colour, found {channels} channels: choose one (--channel)"
        )
    return np.ascontiguousarray(array[..., :3])


def _checked(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    if min(pixels.shape[:2]) < 2:
        raise InputError(f"{name}: expected an image of at least 2×2 pixels, found {pixels.shape}")
    if pixels.dtype.kind not in "uif" or (pixels.dtype.kind == "f" and not np.isfinite(pixels).all()):
        raise InputError(f"{name}: expected finite intensities, some above 0; found {pixels.dtype}")
    return pixels
