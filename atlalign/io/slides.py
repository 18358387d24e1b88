"""Opens image files of every kind: the one way from a file to its pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from numpy.typing import NDArray

from atlalign.errors import InputError, reason_of
from atlalign.io.files import is_file, is_folder
from atlalign.io.picture_reader import picture_scene
from atlalign.io.pixels import check_index
from atlalign.io.scenes import Block, Scene, Slide
from atlalign.io.slideio_reader import slideio_driver, slideio_scenes
from atlalign.io.tiff_reader import TIFF_STARTS, tiff_scenes
from atlalign.io.zarr_reader import zarr_scenes

LARGEST_INTENSITY = 1e30
"""Sums over blocks of pixels up to this value are finite in float32."""

_START_BYTES = 132


def open_slide(path: str | Path, *, page: int | None = None, labels: bool = False) -> Slide:
    """Open an image file; its format is recognised by its content, not by its name.

    Pixels are read later, when and where they are needed. Only pictures (PNG, JPEG and the like) are decoded
    immediately. Nothing needs to be closed.

    Args:
        path: A TIFF file or one of its variants (OME-TIFF, SVS, NDPI, SCN, QPTIFF), a picture, or a format that
            SimpleITK reads. The package slideio adds CZI, VSI, ZVI and DICOM; zarr adds OME-Zarr folders.
        page: Open only this page of a TIFF file, from 0, as the only scene.
        labels: Return the numbers in the file instead of the colours or intensities that they stand for.

    Raises:
        InputError: If the file is missing, damaged or of another kind; the message begins with the file's name.

    Example:
        >>> slide = open_slide("slide.czi")  # doctest: +SKIP
        >>> scene = slide.scenes[0]  # doctest: +SKIP
        >>> scene.read(scene.level_of(4_000_000), channel=0)  # doctest: +SKIP
    """
    path = Path(path)
    if is_folder(path):
        raise InputError(f"{path.name}: expected an image, found a folder of this name in {path.parent}")
    if not is_file(path):
        raise InputError(f"{path.name}: no such file in {path.parent}")
    with errors_named(path):
        scenes = _scenes(path, page, labels=labels)
        for scene in scenes:
            _check_scene(scene)
    return Slide(path, tuple(_guarded(scene, path) for scene in scenes))


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn any error in the block into one whose message begins with the file's name."""
    try:
        yield
    except Exception as error:  # a damaged file may raise anything
        reason = reason_of(error).removeprefix(f"{path.name}: ")
        expected = isinstance(error, InputError) and reason.startswith("expected")
        said = reason if expected else f"cannot be read as an image: {shorten(reason, 200)}"
        raise InputError(f"{path.name}: {said}") from error


def _guarded(scene: Scene, path: Path) -> Scene:
    """Return a scene whose errors name the file, and whose pixels are checked when they are read."""

    def check() -> None:
        with errors_named(path):
            scene.check()

    def block(part: Block) -> NDArray[Any]:
        with errors_named(path):
            pixels = scene.block(part)
            _check_intensities(pixels)
            return pixels

    return replace(scene, block=block, check=check)


def _scenes(path: Path, page: int | None, *, labels: bool) -> list[Scene]:
    if path.is_dir():
        check_index("page (--page)", page or 0, 1)
        return zarr_scenes(path)
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
    if start[:4] in TIFF_STARTS:
        return tiff_scenes(path, page=page, labels=labels)
    if page is not None:
        check_index("page (--page)", page, 1)
    driver = slideio_driver(path, start)
    return [picture_scene(path, labels=labels)] if driver is None else slideio_scenes(path, driver)


def _check_scene(scene: Scene) -> None:
    if min(scene.shape) < 2:
        raise InputError(f"expected an image of at least 2×2 pixels, found {scene.shape}")
    if scene.dtype.kind not in "uif":
        raise InputError(f"expected integer or float intensities, found {scene.dtype}: convert the image")


def _check_intensities(pixels: NDArray[Any]) -> None:
    if pixels.dtype.kind != "f" or not pixels.size:
        return
    largest = max(abs(float(pixels.min())), abs(float(pixels.max())))  # NaN if any pixel is
    if not largest <= LARGEST_INTENSITY:
        raise InputError(
            f"expected finite intensities of at most {LARGEST_INTENSITY:g}, found {largest:g} ({pixels.dtype})"
        )
