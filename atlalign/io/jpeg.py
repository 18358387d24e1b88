"""Finds damage inside JPEG data, which image decoders ignore."""

from collections.abc import Iterable

from atlalign.errors import InputError

_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression sequence")
"""Beginnings of libjpeg's warnings about lost or changed bits, after which it still decodes the data."""


def check_jpeg(content: bytes) -> None:
    """Check that libjpeg decodes JPEG data without a warning about damage.

    Pillow and imagecodecs do not report these warnings. A changed bit that leaves a valid stream, for example with a
    different brightness of a block, cannot be detected. Data that libjpeg cannot decode at all is left to the image
    decoder.

    Raises:
        InputError: If the data is damaged.
    """
    from simplejpeg import decode_jpeg, decode_jpeg_header

    try:
        _, _, colours, _ = decode_jpeg_header(content)
        # All bits are read at any scale, and the smallest scale is the fastest.
        wanted = "CMYK" if colours in ("CMYK", "YCCK") else "GRAY"
        decode_jpeg(content, wanted, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        said = str(error)
        if said.startswith(_DAMAGE):
            raise InputError(
                f"the JPEG data is damaged ({said}): copy or export the file again, or save a copy from "
                "a viewer that shows it correctly"
            ) from error


def check_jpeg_tiles(tiles: Iterable[bytes], tables: bytes | None) -> None:
    """Check the JPEG strips or tiles of a TIFF file, which may share their tables.

    Raises:
        InputError: If one is damaged.
    """
    shared = b"" if tables is None else tables.removesuffix(b"\xff\xd9").removeprefix(b"\xff\xd8")
    for tile in tiles:
        check_jpeg(tile[:2] + shared + tile[2:])
