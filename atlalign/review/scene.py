"""The view of one section: its image at any zoom, and the atlas on it under any correction."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import Anchoring, Matrix, Points, apply_affine, homogeneous, invert_affine
from atlalign.io.files import is_file
from atlalign.io.images import open_channels, read_image, read_labels
from atlalign.io.views import overview
from atlalign.plots import brightened
from atlalign.registration.bands import warp_in_bands
from atlalign.registration.corrections import CORRECTION, Correction
from atlalign.registration.grid import Grid
from atlalign.registration.options import Side
from atlalign.registration.placed_field import transform_by
from atlalign.registration.points import honoured, load_without_points
from atlalign.registration.record import LABELS, REGIONS
from atlalign.registration.references import atlas_reference, columns_of
from atlalign.registration.regions import RegionName, read_regions
from atlalign.registration.transform import SectionTransform
from atlalign.review.borders import Lines, borders
from atlalign.review.folder import hemisphere_of, result_anchoring

_TEMPLATE_PX = 1000  # the longer side of the template on the section
_LARGEST = (6000, 6000)  # (h, w): of a larger scan, a smaller level is shown
_STAND_IN_PX = (
    2000  # the longer side of the image made from the results if the section's own image is missing
)
_LEAST_PX = 256  # the longer side of the smallest level of an image


class AtlasPlane(NamedTuple):
    """The content of the reference, independent of any section.

    Attributes:
        template: (h, w) in 8 bits.
        labels: (h', w') with the same outermost pixels, or None.
        lines: The borders of its labels, in mm of the reference's frame.
        transform: Between the reference and the section, without points.
    """

    template: NDArray[np.uint8]
    labels: NDArray[Any] | None
    lines: Lines
    transform: SectionTransform


class Scene:
    """The view of one section.

    Args:
        folder: The folder of its results.
        record: The record of the results.
        image: The file of the section's image; None if it is unknown.
        atlas: Returns the atlas, or None if there is none; with `wait=False` also if it is not loaded yet.
        by_network: Whether a network registered the section; otherwise points act as in VisuAlign.
    """

    def __init__(
        self,
        folder: Path,
        record: dict[str, Any],
        image: Path | None,
        atlas: Callable[..., Atlas | None],
        *,
        by_network: bool = True,
    ) -> None:
        self.folder = folder
        self.record = record
        self.image = image
        self.base = load_without_points(folder)
        self.atlas = atlas
        self._by_network = by_network
        self._planes: dict[str, AtlasPlane] = {}
        self._transforms: dict[str, SectionTransform] = {}
        self._lock = RLock()

    # --- the section --------------------------------------------------------------------------------------------------

    @property
    def channels(self) -> list[list[NDArray[np.uint8]]]:
        """The levels of each channel, each half as large as the previous one; a colour image has one channel."""
        with self._lock:
            return self._channels

    @cached_property
    def _channels(self) -> list[list[NDArray[np.uint8]]]:
        return [_levels(brightened(channel)) for channel in self._pixels()]

    def _pixels(self) -> list[NDArray[Any]]:
        options = self.record.get("settings", {})
        if self.image is not None and is_file(self.image):
            chosen = {name: options.get(name) for name in ("scene", "page", "z")}
            image = open_channels(self.image, **chosen)
            if image.shape == self.base.section.shape:
                return [overview(channel, _LARGEST).pixels for channel in image.each_channel()]
        return [self._stand_in()]

    def _stand_in(self) -> NDArray[Any]:
        """Return the part of the section that its registered image shows."""
        transform = SectionTransform.load(self.folder)
        registered = read_image(self.folder / "registered.tif").pixels
        source = transform.forward.grid.with_shape((registered.shape[0], registered.shape[1]))
        target = _at_most(transform.section, _STAND_IN_PX)
        return np.concatenate(list(warp_in_bands(registered, source, transform.inverse, target)))

    def picture(self, channel: int, box: tuple[float, float, float, float], size: tuple[int, int]) -> bytes:
        """Return a part of the section as JPEG.

        Args:
            channel: The channel, from 0.
            box: Left, top, right and bottom edges, in pixels of the section's image from its corner.
            size: (w, h) of the picture.
        """
        levels = self.channels[min(channel, len(self.channels) - 1)]
        height, width = self.base.section.shape
        wanted = (box[2] - box[0]) / size[0]  # image pixels per pixel of the picture
        shares = [width / level.shape[1] for level in levels]
        number = max((n for n, share in enumerate(shares) if share <= max(wanted, shares[0])), default=0)
        level = levels[number]
        scale = np.array([level.shape[1] / width, level.shape[0] / height] * 2)
        # Pillow does not clip, so areas outside the image must not be part of the box.
        left, top, right, bottom = np.array(box) * scale
        first = np.floor([left, top]).astype(int).clip(0)
        last = np.minimum(np.ceil([right, bottom]).astype(int), level.shape[1::-1])
        crop = Image.fromarray(np.ascontiguousarray(level[first[1] : last[1], first[0] : last[0]]))
        inner = (left - first[0], top - first[1], right - first[0], bottom - first[1])
        return _encoded(crop.resize(size, Image.Resampling.BILINEAR, box=inner), "jpeg", quality=88)

    # --- the atlas ----------------------------------------------------------------------------------------------------

    def outlines(self, correction: Correction) -> bytes:
        """Return the borders of regions: the numbers of lines and points, points per line, then positions as float32.

        The positions of all points in the reference come first, in µm along the plane's axes as in `PointPairs`. Their
        positions in the section follow, in pixels of its image.
        """
        plane, transform = self._plane(correction), self.transform(correction)
        in_reference = plane.lines.points * 1000
        if transform.plane is not None:
            in_reference = in_reference + transform.plane.matrix[transform.plane.axes, 2]
        in_section = transform.to_section(plane.lines.points)
        numbers = np.array([len(plane.lines.counts), len(in_section)], np.int32)
        places = np.concatenate([in_reference, in_section]).astype(np.float32)
        return numbers.tobytes() + plane.lines.counts.tobytes() + places.tobytes()

    def template(self, correction: Correction) -> bytes:
        """Return the reference placed on the section, as WebP of the whole section."""
        plane, transform = self._plane(correction), self.transform(correction)
        source = transform.forward.grid.with_shape((plane.template.shape[0], plane.template.shape[1]))
        target = _at_most(transform.section, _TEMPLATE_PX)
        warped = np.concatenate(list(warp_in_bands(plane.template, source, transform.inverse, target)))
        return _encoded(Image.fromarray(warped), "webp", quality=80, method=1)

    def region(self, correction: Correction, x: float, y: float) -> str:
        """Return the name of the region at a pixel of the section; empty outside of all regions."""
        plane, transform = self._plane(correction), self.transform(correction)
        if plane.labels is None:
            return ""
        height, width = plane.labels.shape
        grid = transform.forward.grid.with_shape((height, width))
        column, row = np.rint(grid.to_pixels(transform.to_reference(np.array([[x, y]]))))[0].astype(int)
        if not (0 <= row < height and 0 <= column < width):
            return ""
        label = int(plane.labels[row, column])
        atlas = self.atlas(wait=False)
        ontology = None if atlas is None else atlas.ontology
        found = ontology[label] if ontology is not None and label in ontology else self._regions.get(label)
        if found is None:
            return f"region {label}" if label else ""
        return f"{found.acronym}: {found.name}" if found.acronym else found.name

    def transform(self, correction: Correction) -> SectionTransform:
        """Return the map between reference and section under a correction, computed immediately without the network."""
        pairs = np.hstack([correction.points.reference_um, correction.points.section])
        key = f"{_plane_key(correction)} {correction.hemisphere} {pairs.tobytes().hex()}"
        with self._lock:
            if key not in self._transforms:
                plane = self._plane(correction)
                transform = honoured(plane.transform, correction.points, by_network=self._by_network)
                self._transforms = {key: transform}
            return self._transforms[key]

    def before_network(self, found: Anchoring) -> Anchoring:
        """Return the anchoring that becomes another one when the affine part of the network's registration is added.

        The user sets anchorings of this kind: registration then adds its affine part.
        """
        former, lines = result_anchoring(self.record), self._plane(Correction()).lines
        if former is None or self.base.plane is None or len(lines.points) < 3:
            return found
        um = self.base.plane.to_atlas(lines.points)[:, [2, 1]]
        design = np.column_stack([um, np.ones(len(um))])
        fitted = np.linalg.lstsq(design, self.base.to_section(lines.points))[0].T
        registered = np.asarray(fitted, np.float64)
        from_registered = homogeneous(invert_affine(registered)) @ homogeneous(former.um_to_pixel())
        um_to_pixel = found.um_to_pixel() @ from_registered
        return Anchoring.of_plane(found.plane((0.0, 0.0)), invert_affine(um_to_pixel) / 1000, found.size)

    def _plane(self, correction: Correction) -> AtlasPlane:
        is_moved, atlas, side = bool(_plane_key(correction)), self.atlas(wait=False), self._side(correction)
        # The results show the template at the network's resolution only.
        key = f"{_plane_key(correction)} {atlas is not None} {side}"
        with self._lock:
            if key not in self._planes:
                moved = self._moved_plane(correction.anchoring, side) if is_moved else None
                self._planes = {key: moved or self._own_plane(side)}
            return self._planes[key]

    @cached_property
    def _made_with(self) -> Correction:
        """A correction with the half of the brain that the results were made with."""
        applied = self.record.get("settings", {}).get(CORRECTION) or {}
        return Correction(hemisphere=applied.get("hemisphere"))

    def _side(self, correction: Correction) -> Side | None:
        """Return the half of the brain that the section shows; None for a whole section."""
        shown = correction.hemisphere or hemisphere_of(self.record)
        return None if shown == "whole" else shown

    def _own_plane(self, side: Side | None) -> AtlasPlane:
        """Return the plane of the results, from the files of the results if the atlas is missing or not loaded yet."""
        atlas = self.atlas(wait=side != self._side(self._made_with))
        if atlas is not None and self.base.plane is not None:
            return _cut(atlas, self.base, side)
        template = brightened(read_image(self.folder / "reference.tif").pixels)
        labels = read_labels(self.folder / LABELS) if (self.folder / LABELS).exists() else None
        if side is not None:
            template = template * columns_of(side, template.shape[1])
            labels = None if labels is None else labels * columns_of(side, labels.shape[1])
        return AtlasPlane(template, labels, _lines(labels, self.base.forward.grid), self.base)

    def _moved_plane(self, anchoring: Anchoring | None, side: Side | None) -> AtlasPlane | None:
        """Return the plane of another anchoring, with the section placed as in the results; None without an atlas."""
        atlas, former = self.atlas(), result_anchoring(self.record)
        if atlas is None or former is None or anchoring is None:
            return None
        in_section = anchoring.um_to_pixel() @ homogeneous(invert_affine(former.um_to_pixel()))
        moved = _moved(self.base, in_section)
        return _cut(atlas, replace(moved, plane=anchoring.plane(atlas.origin_um)), side)

    @cached_property
    def _regions(self) -> dict[int, RegionName]:
        return read_regions(self.folder / REGIONS) if (self.folder / REGIONS).exists() else {}


def _plane_key(correction: Correction) -> str:
    return str(correction.anchoring.to_json()) if correction.moves_plane and correction.anchoring else ""


def _cut(atlas: Atlas, transform: SectionTransform, side: Side | None) -> AtlasPlane:
    assert transform.plane is not None
    reference = atlas_reference(atlas, transform.plane, atlas.image_shape).half(side)
    template = (reference.image[0, 0] * 255).round().byte().numpy()
    return AtlasPlane(template, reference.labels, _lines(reference.labels, transform.forward.grid), transform)


def _lines(labels: NDArray[Any] | None, frame: Grid) -> Lines:
    """Return the borders of labels in mm of the frame."""
    if labels is None:
        return Lines(np.zeros(0, np.int32), np.zeros((0, 2)))
    found = borders(labels)
    return found._replace(points=frame.with_shape((labels.shape[0], labels.shape[1])).to_mm(found.points))


def _moved(base: SectionTransform, in_section: Matrix) -> SectionTransform:
    """Return a transform with an additional affine map (2, 3) of the section's pixels."""

    def to_section(points_mm: Points) -> Points:
        return base.section.to_mm(apply_affine(in_section, base.to_section(points_mm)))

    def to_reference(points_mm: Points) -> Points:
        before = apply_affine(invert_affine(in_section), base.section.to_pixels(points_mm))
        return base.to_reference(before)

    return transform_by(
        to_section, to_reference, base.forward.grid, base.inverse.grid, base.section, base.plane
    )


def _at_most(grid: Grid, longest_px: int) -> Grid:
    """Return the grid with at most this many pixels along its longer side."""
    scale = min(1.0, longest_px / max(grid.shape))
    return grid.with_shape((max(2, round(grid.shape[0] * scale)), max(2, round(grid.shape[1] * scale))))


def _levels(image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    levels = [image]
    while max(levels[-1].shape[:2]) > _LEAST_PX:
        picture = Image.fromarray(np.ascontiguousarray(levels[-1]))
        levels.append(np.asarray(picture.reduce(2)))
    return levels


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
