"""Image files: reading, conversion to grey and resizing to the working size."""

from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.errors import InputError
from atlalign.io.picture_reader import read_picture
from atlalign.io.pixels import Choice, Pixels, PixelSize
from atlalign.io.tiff_reader import TIFF_STARTS, read_tiff

TIFF_ENDINGS = (".tif", ".tiff")
IMAGE_ENDINGS = (
    *TIFF_ENDINGS,
    *(".btf", ".lsm", ".stk", ".qptiff", ".svs", ".ndpi", ".scn", ".bif"),
    *(".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".webp"),
)
"""The file name endings of images; the content of a file, not its name, decides how it is read."""

UNREAD_ENDINGS = (
    *(".czi", ".zvi", ".nd2", ".lif", ".vsi", ".oib", ".oif", ".oir", ".ims", ".mrxs"),
    *(".gif", ".heic", ".psd", ".pdf", ".dcm"),
)
"""What the names of images end in whose formats are not read."""

LARGEST_INTENSITY = 1e30
"""Sums over blocks of pixels up to this value are finite in float32."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""The weights of red, green and blue in grey, by ITU-R BT.601."""

_STRIP_PX = 2**22  # the number of pixels that are converted to grey at once


class ImageFile(NamedTuple):
    """The content of an image file.

    Attributes:
        pixels: (h, w) in grey, or (h, w, 3) in colour, in the file's own data type.
        pixel_um: The size of a pixel; None if the file does not say it.
    """

    pixels: NDArray[Any]
    pixel_um: PixelSize | None


def resize_images(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return images (N, *shape) of the same dtype: Gaussian antialiasing, then bilinear with aligned corners.

    Args:
        images: (N, H, W), float or uint8; integers are rounded.
        shape: (H', W'); images that have this shape are returned unchanged.
    """
    if tuple(images.shape[1:]) == tuple(shape):
        return images
    from kornia.geometry import resize  # slow to import

    resized: Tensor = resize(images[:, None].float(), shape, antialias=True, align_corners=True)[:, 0]
    return resized if images.is_floating_point() else resized.round().to(images.dtype)


def read_image(
    path: str | Path, *, channel: int | None = None, page: int | None = None, z: int | None = None
) -> ImageFile:
    """Return an image in PNG, JPEG, JPEG 2000, BMP, WebP, TIFF and its variants, or a format that SimpleITK reads.

    The image is turned upright by its EXIF or TIFF orientation, and opacity is dropped. The largest level of a pyramid
    and the largest image of a TIFF file are read; if other images are skipped, a warning is logged. The pixel size
    comes from the metadata of OME, ImageJ, Aperio, Philips, LSM or MetaMorph, or from the resolution in TIFF, PNG, JPEG
    or BMP if it is plausible for a microscope (at most 30 µm; 72 to 600 dpi are defaults of programs).

    Args:
        path: The file.
        channel: The channel to read, from 0, if there are several.
        page: The page of a TIFF file to read, from 0, if there are several.
        z: The plane of a z-stack to read, from 0.

    Raises:
        InputError: If the file is missing, or is not one image in grey or colour.
    """
    pixels = _read(path, Choice(channel, page, z))
    return ImageFile(_one_image(pixels, Path(path).name), pixels.pixel_um)


def read_channels(path: str | Path, *, page: int | None = None, z: int | None = None) -> list[NDArray[Any]]:
    """Return the channels (h, w) of an image; for a colour image, a list of its pixels (h, w, 3) alone.

    Raises:
        InputError: For the same reasons as in `read_image`.
    """
    pixels = _read(path, Choice(page=page, z=z))
    if pixels.is_color or pixels.array.ndim == 2:
        return [_one_image(pixels, Path(path).name)]
    return list(np.moveaxis(pixels.array, -1, 0))


def read_labels(path: str | Path, *, page: int | None = None, z: int | None = None) -> NDArray[Any]:
    """Return a label image (h, w) of integers as stored in the file; for a palette, these are the indices.

    Raises:
        InputError: If the file is missing, or is not an image of integers in one channel.
    """
    labels = _read(path, Choice(page=page, z=z, labels=True)).array
    if labels.ndim != 2 or labels.dtype.kind not in "ui":
        raise InputError(
            f"{Path(path).name}: expected labels, one integer per pixel, found {labels.shape} {labels.dtype}"
        )
    return np.ascontiguousarray(labels)


def shrink_to_grey(pixels: NDArray[Any], factor: int = 1, weights: NDArray[np.float32] = LUMA) -> Tensor:
    """Return the means of blocks of `factor`² pixels in grey, float32 (h // factor, w // factor), in the file's units.

    Pixel k of the result lies at `factor·k + (factor − 1)/2` of the image. The rows are processed in strips, so that an
    image that barely fits into memory can still be shrunk.

    Args:
        pixels: (h, w) or (h, w, 3).
        factor: At least 1.
        weights: (3,), the weights of red, green and blue.
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


def _read(path: str | Path, choice: Choice) -> Pixels:
    """Return the chosen part of a file, whose format is recognised by its content, not by its name.

    Raises:
        InputError: If it cannot be read; the message begins with the file's name.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path.name}: expected an image, found a folder of this name in {path.parent}")
    if not path.is_file():
        raise InputError(f"{path.name}: no such file in {path.parent}")
    try:
        with path.open("rb") as file:
            is_tiff = file.read(4) in TIFF_STARTS
        pixels = (read_tiff if is_tiff else read_picture)(path, choice)
        _check_pixels(pixels.array)
    except Exception as error:  # a damaged file may raise anything
        reason = str(error).removeprefix(f"{path.name}: ")
        expected = isinstance(error, InputError) and reason.startswith("expected")
        said = reason if expected else f"cannot be read as an image: {shorten(reason, 200)}"
        raise InputError(f"{path.name}: {said}") from error
    return pixels


def _one_image(pixels: Pixels, name: str) -> NDArray[Any]:
    """Return the pixels (h, w) of the only channel, or (h, w, 3) in colour."""
    if pixels.array.ndim == 2:
        return np.ascontiguousarray(pixels.array)
    if not pixels.is_color:
        raise InputError(
            f"{name}: expected grey or colour, found {pixels.array.shape[2]} channels: choose one (--channel, for "
            "sections), or save it as a file of its own (for a reference)"
        )
    return np.ascontiguousarray(pixels.array[..., :3])


def _check_pixels(pixels: NDArray[Any]) -> None:
    if min(pixels.shape[:2]) < 2:
        raise InputError(f"expected an image of at least 2×2 pixels, found {pixels.shape}")
    if pixels.dtype.kind not in "uif":
        raise InputError(f"expected intensities, integers or floats, found {pixels.dtype}")
    if pixels.dtype.kind != "f":
        return
    largest = max(abs(float(pixels.min())), abs(float(pixels.max())))  # NaN if any pixel is
    if not largest <= LARGEST_INTENSITY:
        raise InputError(
            f"expected finite intensities of at most {LARGEST_INTENSITY:g}, found {largest:g} ({pixels.dtype})"
        )
