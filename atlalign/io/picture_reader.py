"""Images in the formats of cameras, viewers and medical programs: every format but TIFF."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.errors import InputError, check_size
from atlalign.io.files import itk_name
from atlalign.io.jpeg import check_jpeg
from atlalign.io.pixel_sizes import density_pixel_size
from atlalign.io.pixels import PixelSize, is_turned, upright
from atlalign.io.scenes import Scene, array_scene

_ORIENTATION = 0x0112  # of EXIF
_COPIES = 3  # Pillow's own pixels, its exported buffer, and the array
_OTHERS = {
    b"": "it is empty",
    b"%PDF": "it is a PDF file",
    b"PK\x03\x04": "it is a ZIP archive",
    b"\x89HDF": "it is an HDF5 file",
    b"8BPS": "it is a Photoshop file: save it as TIFF",
    b"GIF8": "it is a GIF file: save it as PNG",
    b"\0\x05\x16\x07": "it holds only the metadata that macOS keeps beside a file",
}
"""The first bytes of files that are often mistaken for images, and the messages about them."""


def picture_scene(path: Path, *, labels: bool = False) -> Scene:
    """Return the image that Pillow or SimpleITK reads; its format is recognised by its content, not by its name.

    Args:
        path: The file.
        labels: Return the numbers in the file instead of the colours or intensities that they stand for.

    Raises:
        InputError: If it is not an image, ends early, or is too large.
    """
    with path.open("rb") as file:
        start = file.read(32)
    opened = _opener(start)
    array, size = (_medical(path, start), None) if opened is None else _decoded(opened, path, labels=labels)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    is_color = array.ndim == 3 and array.shape[2] in (3, 4) and not labels
    return array_scene(array, is_color=is_color, pixel_um=size)


def _opener(start: bytes) -> Callable[[Any], Any] | None:
    """Return the Pillow class for a file with these first bytes; `PIL.Image.open` would apply its own size limit."""
    from PIL import BmpImagePlugin, Jpeg2KImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    known: dict[bytes, Callable[[Any], Any]] = {
        b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
        b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
        b"\0\0\0\x0cjP  ": Jpeg2KImagePlugin.Jpeg2KImageFile,
        b"\xff\x4f\xff\x51": Jpeg2KImagePlugin.Jpeg2KImageFile,
        b"BM": BmpImagePlugin.BmpImageFile,
    }
    return next((opened for begin, opened in known.items() if start.startswith(begin)), None)


def _decoded(
    opened: Callable[[Any], Any], path: Path, *, labels: bool
) -> tuple[NDArray[Any], PixelSize | None]:
    """Return the pixels (h, w) or (h, w, c), upright and without opacity, and the pixel size."""
    content = path.read_bytes()
    with opened(BytesIO(content)) as image:
        check_size(path.name, (image.height, image.width), _COPIES * _bytes_each(image))
        if image.format == "JPEG":
            check_jpeg(content)
        array = _of_16_bits(image, content)
        if array is None:
            array = _of_8_bits(image, labels=labels)
        has_opacity = image.mode in ("LA", "La", "RGBA", "RGBa") and array.ndim == 3
        array = array[..., :-1] if has_opacity else array
        orientation = image.getexif().get(_ORIENTATION, 1)
        size = density_pixel_size(image.info.get("dpi"))
    if size is not None and is_turned(orientation):
        size = size[::-1]
    return upright(array, orientation), size


def _bytes_each(image: Any) -> int:
    """Return the largest number of bytes per pixel; channels of a multichannel image may have 16 bits."""
    channels = len(image.getbands())
    return 2 * channels if channels > 1 else {"I": 4, "F": 4, "I;16": 2, "I;16B": 2}.get(image.mode, 1)


def _of_16_bits(image: Any, content: bytes) -> NDArray[Any] | None:
    """Return the pixels of an image with several 16-bit channels, which Pillow would reduce to 8 bits, or None."""
    from imagecodecs import jpeg2k_decode, png_decode

    if len(image.getbands()) == 1:
        return None
    if image.format == "PNG":
        is_deep = content[24] == 16  # the bit depth in the header
        return np.asarray(png_decode(content)) if is_deep else None
    if image.format == "JPEG2000":
        array = np.asarray(jpeg2k_decode(content))
        return None if array.dtype == np.uint8 else array
    return None


def _of_8_bits(image: Any, *, labels: bool) -> NDArray[Any]:
    """Return the pixels of an image as Pillow decodes them; labels keep the bit depth of the file."""
    if image.mode in ("P", "PA"):
        indices = np.array(image)
        return (
            (indices if indices.ndim == 2 else indices[..., 0]) if labels else np.array(image.convert("RGB"))
        )
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        return np.array(image.convert("RGB"))
    bits = _bits(image)
    array = np.array(image)  # writable, unlike the result of `asarray`
    if array.dtype == bool:
        return array.astype(np.uint8) * (1 if labels else 255)
    # Pillow scales 2 and 4 bits to 8.
    return array // np.uint8(255 // (2**bits - 1)) if labels and bits < 8 else array


def _bits(image: Any) -> int:
    """Return the bit depth, at most 8, of a grey image in its file."""
    mode = image.tile[0].args if image.tile else None
    return {"L;2": 2, "L;4": 4}.get(mode if isinstance(mode, str) else "", 8)


def _medical(path: Path, start: bytes) -> NDArray[Any]:
    """Return the pixels of a file that SimpleITK reads, such as NRRD, NIfTI and MetaImage."""
    import SimpleITK

    reason = next((said for begin, said in _OTHERS.items() if begin and start.startswith(begin)), None)
    if not start or reason:
        raise InputError(reason or _OTHERS[b""])
    make: Any = SimpleITK.ImageFileReader
    reader = make()
    reader.SetFileName(itk_name(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            "its content is not TIFF, PNG, JPEG, JPEG 2000, BMP or WebP, despite its name: export it as OME-TIFF"
        ) from error
    size = reader.GetSize()
    if any(planes != 1 for planes in size[2:]):
        raise InputError(f"expected one image, found a volume of sizes {size}: save one of its planes")
    check_size(path.name, (*size, reader.GetNumberOfComponents()))
    array = np.asarray(SimpleITK.GetArrayFromImage(reader.Execute()))
    return array.reshape(array.shape[len(size) - 2 :])
