"""The images and tables in the folder of a registered section, beside its transform."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, tee
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlalign.atlas.ids import stored_type
from atlalign.atlas.ontology import Ontology
from atlalign.io.intensity import slide_color
from atlalign.io.scenes import Scene
from atlalign.io.tiff_writer import write_tiff
from atlalign.io.views import at_scale, overview
from atlalign.pages import PREVIEW
from atlalign.plots import png, section_overlay
from atlalign.registration import regions
from atlalign.registration.grid import Grid
from atlalign.registration.ignored import IGNORED, NOTHING, Ignored
from atlalign.registration.preview import preview_of
from atlalign.registration.record import LABELS, REGIONS
from atlalign.registration.registered import RegisteredSection
from atlalign.registration.transform import SectionTransform

_IMAGE, _IMAGE_LABELS, _REFERENCE, _OVERLAY = "registered.tif", "labels.tif", "reference.tif", "overlay.png"
_OVERVIEW = (1280, 1280)  # enough for the overlay and the colour of the slide
_ERROR = "expected_error.tif"
SECTION_FILES = {_IMAGE, _IMAGE_LABELS, _REFERENCE, _OVERLAY, _ERROR, PREVIEW, LABELS, REGIONS, IGNORED}


def write_section_files(
    folder: Path, found: RegisteredSection, ontology: Ontology | None, ignored: Ignored = NOTHING
) -> None:
    """Write the files named in `SECTION_FILES`.

    Labels and the expected error are written only if they are known, `IGNORED` only if tissue is ignored. Ignored
    tissue has no label and no area.
    """
    transform, image, reference = found.registered.transform, found.image, found.reference
    _write_registered(folder / _IMAGE, image, transform)
    grey = (reference.image[0, 0] * 255).round().byte().numpy()
    _write(folder / _REFERENCE, [grey], grey.shape, grey.dtype, reference.grid)
    error_um = found.registered.expected_error_um
    if error_um is not None:
        write_tiff(
            folder / _ERROR,
            [error_um],
            shape=error_um.shape,
            dtype=error_um.dtype,
            pixel_um=reference.grid.pixel_um,
        )
    mask = None
    if ignored:
        grid = transform.in_section
        mask = ignored.on(grid.shape, transform.section.shape)
        _write(folder / IGNORED, [mask.astype(np.uint8)], mask.shape, np.dtype(np.uint8), grid)
    if reference.labels is not None:
        _write_labels(folder, reference.labels, transform, ontology, mask)
    _write_overlay(folder / _OVERLAY, found)
    pixels = overview(found.channel, _OVERVIEW).pixels
    preview_of(transform, pixels, grey, reference.labels, error_um).write(folder)


def _write_registered(path: Path, image: Scene, transform: SectionTransform) -> None:
    """Write all channels of the registered image."""
    target = transform.reference
    write_tiff(
        path,
        chain.from_iterable(_registered(channel, transform) for channel in image.each_channel()),
        shape=(*target.shape, 3) if image.is_color else target.shape,
        dtype=image.dtype,
        pixel_um=target.pixel_um,
        channels=image.channels,
    )


def _registered(channel: Scene, transform: SectionTransform) -> Iterator[NDArray[Any]]:
    """Yield one channel of the registered image in bands, from a level with at least the resolution of the result."""
    view = at_scale(channel, min(transform.reference.pixel_um) / max(transform.section.pixel_um))
    fill = slide_color(overview(channel, _OVERVIEW).pixels)
    return transform.register(view.pixels, scale=view.scale, fill=fill)


def _write_labels(
    folder: Path,
    labels: NDArray[Any],
    transform: SectionTransform,
    ontology: Ontology | None,
    ignored: NDArray[np.bool_] | None,
) -> None:
    """Write the labels of the reference and of the section, and the areas of the section's regions."""
    labels = labels.astype(stored_type(labels))
    grid = transform.forward.grid.with_shape((labels.shape[0], labels.shape[1]))
    _write(folder / LABELS, [labels], labels.shape, labels.dtype, grid)
    areas = regions.RegionAreas(transform.in_section.pixel_um)
    if not transform.has_sides:
        in_section = areas.counted(_without(transform.label(labels), ignored))
    else:
        bands, sides = tee(transform.label_by_side(labels))
        own_labels = _without((band for band, _ in bands), ignored)
        in_section = areas.counted_by_side(zip(own_labels, (is_left for _, is_left in sides), strict=True))
    _write(folder / _IMAGE_LABELS, in_section, transform.in_section.shape, labels.dtype, transform.in_section)
    regions.write_regions(folder / REGIONS, areas, ontology, known=np.unique(labels[labels > 0]).tolist())


def _without(bands: Iterable[NDArray[Any]], ignored: NDArray[np.bool_] | None) -> Iterator[NDArray[Any]]:
    """Yield bands of labels with 0 where tissue (h, w) is ignored."""
    top = 0
    for band in bands:
        yield (
            band if ignored is None else np.where(ignored[top : top + len(band)], 0, band).astype(band.dtype)
        )
        top += len(band)


def _write(
    path: Path, bands: Iterable[NDArray[Any]], shape: tuple[int, ...], dtype: np.dtype[Any], grid: Grid
) -> None:
    write_tiff(path, bands, shape=shape, dtype=dtype, pixel_um=grid.pixel_um, labels=True)


def _write_overlay(path: Path, found: RegisteredSection) -> None:
    """Write the overlay picture, from the section at a sufficient resolution."""
    labels, result = found.reference.labels, found.registered

    def labels_of(shape: tuple[int, int]) -> NDArray[Any] | None:
        if labels is None:
            return None
        grid = result.transform.section.with_shape(shape)
        on_thumbnail = replace(result.transform, section=grid, output_um=None)
        return np.concatenate(list(on_thumbnail.label(labels)))

    images = (found.reference.image[0, 0], result.placed[0, 0], result.registered[0, 0])
    path.write_bytes(png(section_overlay(overview(found.channel, _OVERVIEW).pixels, *images, labels_of)))
