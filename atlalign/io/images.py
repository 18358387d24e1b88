"""Image files: reading, conversion to grey and resizing to the working size."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.errors import InputError, check_size
from atlalign.io.files import IMAGE_FOLDER
from atlalign.io.pixels import PixelSize, log
from atlalign.io.scenes import Focus, Scene, array_scene
from atlalign.io.slideio_reader import SLIDE_ENDINGS
from atlalign.io.slides import errors_named, open_slide

TIFF_ENDINGS = (".tif", ".tiff")
SCANNER_ENDINGS = (".qptiff", ".svs", ".ndpi", ".scn", ".bif", *SLIDE_ENDINGS, IMAGE_FOLDER)
"""The file name endings of slide scanners' files, which often show several sections."""
IMAGE_ENDINGS = (
    *TIFF_ENDINGS,
    *(".btf", ".lsm", ".stk"),
    *SCANNER_ENDINGS,
    *(".png", ".jpg", ".jpeg", ".jp2", ".bmp", ".webp"),
)
"""The file name endings of images; the content of a file, not its name, decides how it is read."""

UNREAD_ENDINGS = (
    *(".nd2", ".lif", ".oib", ".oif", ".oir", ".ims", ".mrxs"),
    *(".gif", ".heic", ".psd", ".pdf"),
)
"""File name endings of unsupported image formats."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""The weights of red, green and blue in grey, by ITU-R BT.601."""

_STRIP_PX = 2**22  # number of pixels converted to grey at once


class ImageFile(NamedTuple):
    """The content of an image file.

    Attributes:
        pixels: (h, w) in grey, or (h, w, 3) in colour, in the file's own data type.
        pixel_um: The pixel size; None if the file lacks it.
    """

    pixels: NDArray[Any]
    pixel_um: PixelSize | None

    @property
    def scene(self) -> Scene:
        """The image as a scene in memory."""
        return array_scene(self.pixels, is_color=self.pixels.ndim == 3, pixel_um=self.pixel_um)


def resize_images(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return resized images (N, *shape) of the same dtype: smoothed by a Gaussian, then bilinear with aligned corners.

    Args:
        images: (N, H, W), float or uint8; integers are rounded.
        shape: (H', W'); images that have this shape are returned unchanged.
    """
    if tuple(images.shape[1:]) == tuple(shape):
        return images
    from kornia.geometry import resize  # slow to import

    resized: Tensor = resize(images[:, None].float(), shape, antialias=True, align_corners=True)[:, 0]
    return resized if images.is_floating_point() else resized.round().to(images.dtype)


def open_image(
    path: str | Path,
    *,
    scene: int | str | None = None,
    channel: int | str | None = None,
    page: int | None = None,
    z: Focus | str | None = None,
) -> Scene:
    """Return one image in grey or colour, without reading its pixels yet; see `open_slide` for the formats.

    The image is turned upright by its EXIF or TIFF orientation, and opacity is dropped. The pixel size comes from the
    metadata, or from the resolution in TIFF, PNG, JPEG or BMP if it is plausible for a microscope (at most 30 µm; a
    resolution of 72 to 600 dpi is a program's default). Of several points in time, the first is read, with a warning.

    Args:
        path: The file.
        scene: The scene, by its number or name, if there are several.
        channel: The channel, by its number or name, if there are several.
        page: The page of a TIFF file, from 0.
        z: The plane of a z-stack, from 0; max for the brightest value of all planes, best for the sharpest plane.

    Raises:
        InputError: If the file is missing or damaged, or is not one image in grey or colour.
    """
    opened = _open_channels(path, scene=scene, page=page, z=z)
    return one_channel(opened, channel, Path(path).name)


def read_image(
    path: str | Path,
    *,
    scene: int | str | None = None,
    channel: int | str | None = None,
    page: int | None = None,
    z: Focus | str | None = None,
) -> ImageFile:
    """Return all pixels of the image that `open_image` returns.

    Raises:
        InputError: For the same reasons as in `open_image`, or if memory cannot hold the image.
    """
    opened = open_image(path, scene=scene, channel=channel, page=page, z=z)
    return ImageFile(all_pixels(opened, Path(path).name), opened.pixel_um)


def open_channels(
    path: str | Path, *, scene: int | str | None = None, page: int | None = None, z: Focus | str | None = None
) -> Scene:
    """Return one image with all of its channels, without reading its pixels yet.

    Raises:
        InputError: For the same reasons as in `open_image`.
    """
    return _open_channels(path, scene=scene, page=page, z=z)


def open_labels(
    path: str | Path, *, scene: int | str | None = None, page: int | None = None, z: Focus | str | None = None
) -> Scene:
    """Return a label image of integers as stored, without reading it yet; an image with a palette holds its indices.

    Raises:
        InputError: If the file is missing, or is not an image of integers in one channel.
    """
    opened = _open_channels(path, scene=scene, page=page, z=z, labels=True)
    if len(opened.channels) > 1 or opened.dtype.kind not in "ui":
        shape = (*opened.shape, len(opened.channels)) if len(opened.channels) > 1 else opened.shape
        raise InputError(
            f"{Path(path).name}: expected labels, one integer per pixel, found {shape} {opened.dtype}"
        )
    return opened


def read_labels(
    path: str | Path, *, scene: int | str | None = None, page: int | None = None, z: Focus | str | None = None
) -> NDArray[Any]:
    """Return all pixels (h, w) of the label image that `open_labels` returns.

    Raises:
        InputError: For the same reasons as in `open_labels`, or if memory cannot hold the image.
    """
    return all_pixels(open_labels(path, scene=scene, page=page, z=z), Path(path).name)


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


def _open_channels(
    path: str | Path,
    *,
    scene: int | str | None = None,
    page: int | None = None,
    z: Focus | str | None = None,
    labels: bool = False,
) -> Scene:
    path = Path(path)
    slide = open_slide(path, page=page, labels=labels)
    with errors_named(path):
        opened = slide.scene(scene)
        if z is None and opened.z_count > 1:
            raise InputError(
                f"expected one image, found a z-stack of {opened.z_count} planes: for a section, choose a "
                "plane with --z (its number, best for the sharpest, or max for the brightest values); for a reference, "
                "save one plane as its own file"
            )
        if opened.t_count > 1:
            log.warning("%s: holds %d points in time; only the first is read", path.name, opened.t_count)
        return opened.in_focus(0 if z is None else z)


def one_channel(opened: Scene, channel: int | str | None, name: str) -> Scene:
    """Return a scene with one channel, chosen by its number or name; None selects the only channel.

    Raises:
        InputError: If there is no such channel, or there are several to choose from.
    """
    with errors_named(Path(name)):
        if channel is not None:
            return opened.of_channel(channel)
        if len(opened.channels) > 1:
            known = ", ".join(
                f"{number} {known.name}".strip() for number, known in enumerate(opened.channels)
            )
            raise InputError(
                f"expected grey or colour, found {len(opened.channels)} channels: for a section, choose one of "
                f"{known} with --channel; for a reference, save one channel as its own file"
            )
        return opened


def all_pixels(opened: Scene, name: str) -> NDArray[Any]:
    """Return all pixels of one channel, (h, w) or in colour (h, w, 3).

    Raises:
        InputError: If memory cannot hold them.
    """
    height, width = opened.shape
    check_size(name, (height, width), opened.dtype.itemsize * (3 if opened.is_color else 1))
    return np.ascontiguousarray(opened.read())
