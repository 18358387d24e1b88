"""The reference volume: a template and, on request, region ids, held in memory at the working size.

The configurations `conf/atlas/*.yaml` name its three loaders. A coronal plane (H, W) is ordered (DV, ML): rows run
downwards from the top of the brain.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from atlalign.atlas.axes import choose_axes, oriented, parse_axes, reordered
from atlalign.atlas.brainglobe import fetch
from atlalign.atlas.file_frame import check_header, lengths_of, oriented_like, voxel_size, warn_if_turned
from atlalign.atlas.ontology import Ontology, read_ontology
from atlalign.atlas.phantom import phantom_volume
from atlalign.atlas.phantom_anatomy import EXTENT_MM, phantom_ontology
from atlalign.atlas.volumes import Volume, has_dataset, open_volume
from atlalign.atlas.working_size import load_annotation, load_template
from atlalign.declarations import atlas_option, is_interface
from atlalign.errors import InputError, check_finite_numbers, check_size, checked_shape
from atlalign.io.files import fingerprint_of
from atlalign.io.headers import VoxelSize

PHANTOM = "phantom"
"""The name of the procedural atlas."""
_ANNOTATION = "annotation"
_ALLEN_FILES = "http://download.alleninstitute.org/informatics-archive/current-release/mouse_ccf"
_SETTINGS = "atlas=file atlas.path={template} atlas.annotation_path={annotation}"
_FLAGS = "--atlas {template} --annotation {annotation}"
_PHANTOM_BYTES_A_VOXEL = 16  # while it is drawn


@dataclass(frozen=True, eq=False)
class Atlas:
    """Coronal planes from front to back, at the working size.

    Attributes:
        template: uint8 (P, H, W).
        annotation: Region ids, int32 or int64 (P, H, W), 0 outside regions; None if missing or not requested.
        spacing_um: Distance between planes along AP; plane i covers the positions from i · spacing to (i + 1) ·
            spacing.
        name: The atlas's name in messages and reports.
        intensity_scale: The divisor that mapped raw intensities to [0, 1].
        pixel_um: Distance between the pixels of a plane along x (ML) and y (DV).
        origin_um: Position of the centre of a plane's first pixel along x and y. Positions start at the corner of the
            first voxel, so the centre lies at half a voxel of the original volume. The phantom has no voxels; its
            origin is 0.
        ontology: The names and hierarchy of the ids; None if unknown.
    """

    template: Tensor
    annotation: Tensor | None
    spacing_um: float
    name: str
    intensity_scale: float
    pixel_um: tuple[float, float]
    origin_um: tuple[float, float] = (0.0, 0.0)
    ontology: Ontology | None = None

    @property
    def image_shape(self) -> tuple[int, int]:
        """The working size (H, W)."""
        return int(self.template.shape[1]), int(self.template.shape[2])

    @property
    def extent_um(self) -> float:
        """The largest position: P · spacing."""
        return len(self.template) * self.spacing_um

    def description(self) -> str:
        """Return one line with the name, the size and the planes; it reveals errors in axes and voxel sizes."""
        (height, width), (x_um, y_um), (x0_um, y0_um) = self.image_shape, self.pixel_um, self.origin_um
        size_um = (self.extent_um, (height - 1) * y_um + 2 * y0_um, (width - 1) * x_um + 2 * x0_um)
        size = " × ".join(f"{length / 1000:.1f}" for length in size_um)
        return f"atlas {self.name}: {size} mm (AP × DV × ML), {len(self.template)} planes of {self.spacing_um:g} µm"

    def fingerprint(self) -> str:
        """Return the SHA-256 of the atlas's content without its name; it takes a second or two per GB."""
        annotation = None if self.annotation is None else self.annotation.numpy()
        frame = (self.spacing_um, self.pixel_um, self.origin_um)
        regions = None if self.ontology is None else list(self.ontology)
        return fingerprint_of(self.template.numpy(), annotation, frame, regions)

    def plane_index(self, position_um: float | Tensor) -> Tensor:
        """Return the index of the plane at a position, min(position // spacing, P − 1), int64 of the same shape.

        Raises:
            InputError: If a position lies outside [0, extent_um].
        """
        position = torch.as_tensor(position_um, dtype=torch.float64)
        inside = (position >= 0) & (position <= self.extent_um)
        if not inside.all():
            found = position[~inside][0].item()
            raise InputError(
                f"position: expected 0 to {self.extent_um:g} µm (atlas '{self.name}'), got {found:g}"
            )
        return (position // self.spacing_um).long().clamp(max=len(self.template) - 1)

    def first_um(self, plane: int | Tensor) -> Tensor:
        """Return the first position of each plane in whole µm, as int64; `plane_index` maps it back to the plane."""
        planes = torch.as_tensor(plane)
        position = (planes.double() * self.spacing_um).ceil()
        # A fractional spacing is not exact, so the product may fall into the previous plane.
        return (position + (self.plane_index(position) < planes)).long()

    def section(self, position_um: float) -> Tensor:
        """Return the template's plane at `position_um` as float32 (1, H, W) in [0, 1]."""
        return self.template[int(self.plane_index(position_um))][None].float() / 255

    def labels(self, position_um: float) -> Tensor:
        """Return the region ids at `position_um` as int32 or int64 (1, H, W).

        Raises:
            InputError: If the atlas holds no annotation, or the position lies outside it.
        """
        if self.annotation is None:
            raise self.lacks_annotation()
        return self.annotation[int(self.plane_index(position_um))][None]

    def lacks_annotation(self, alternative: str = "") -> InputError:
        """Return the error for an operation that needs region ids; `alternative` is another remedy, if there is one."""
        switch = (
            "" if is_interface("flags") else f", or set {atlas_option('with_annotation')}=true if it is false"
        )
        return InputError(
            f"atlas '{self.name}' holds no annotation: give a file of region ids, {atlas_option('annotation', 'FILE')}"
            f"{switch}{f', or {alternative}' * bool(alternative)}"
        )

    def cut(self, position_um: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the template (1, H, W) in [0, 1] and the region ids (1, H, W) on a cut that may be oblique.

        Each pixel comes from the coronal plane at its AP position. Outside the atlas both are 0.

        Args:
            position_um: The AP position of each pixel, (H, W) at the working size.
        """
        height, width = self.image_shape
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        inside = (position_um >= 0) & (position_um <= self.extent_um)
        plane = (position_um // self.spacing_um).long().clamp(0, len(self.template) - 1)
        image = self.template[plane, rows, columns] * inside
        labels = None if self.annotation is None else self.annotation[plane, rows, columns] * inside
        return image[None].float() / 255, None if labels is None else labels[None]


def phantom_atlas(
    *,
    image_shape: tuple[int, int],
    seed: int = 0,
    spacing_um: float = 100.0,
    with_annotation: bool = True,
) -> Atlas:
    """Return a procedural mouse-like brain over 0 … 13200 µm, rendered at the working size.

    Args:
        image_shape: (H, W).
        seed: Each seed gives another animal.
        spacing_um: Distance between planes; it must divide 13200.
        with_annotation: Whether to keep the labels, whose names are `PHANTOM_REGIONS`.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> atlas = phantom_atlas(image_shape=(40, 57), spacing_um=600)
        >>> atlas.section(6000).shape, sorted(atlas.labels(300).unique().tolist())
        (torch.Size([1, 40, 57]), [0, 1, 2])
    """
    shape = checked_shape("image_shape", image_shape)
    extent_um = EXTENT_MM[0] * 1000
    check_finite_numbers(
        {"atlas.seed": seed, "atlas.spacing_um": spacing_um}, {"atlas.seed": 0, "atlas.spacing_um": 0.0}
    )
    planes = round(extent_um / spacing_um) if spacing_um > 0 else 0
    if abs(planes * spacing_um - extent_um) > 1e-6:
        raise InputError(f"spacing_um: expected a divisor of {extent_um:g}, got {spacing_um:g}")
    check_size("atlas.spacing_um", (planes, *shape), _PHANTOM_BYTES_A_VOXEL)
    template, labels = phantom_volume(shape=(planes, *shape), seed=seed)
    annotation = torch.from_numpy(labels).int() if with_annotation else None
    height_um, width_um = EXTENT_MM[1] * 1000, EXTENT_MM[2] * 1000
    return Atlas(
        torch.from_numpy(template),
        annotation,
        spacing_um,
        PHANTOM,
        255.0,
        pixel_um=(width_um / (shape[1] - 1), height_um / (shape[0] - 1)),
        ontology=phantom_ontology(),
    )


def file_atlas(
    path: str | Path,
    *,
    image_shape: tuple[int, int] | None = None,
    template: str = "template",
    annotation: str = _ANNOTATION,
    spacing_um: float | None = None,
    annotation_path: str | Path | None = None,
    ontology_path: str | Path | None = None,
    axes: str | Sequence[str] | None = None,
    with_annotation: bool = True,
) -> Atlas:
    """Return the atlas in a file: .h5, .hdf5, .npy, .nrrd, .nii, .nii.gz, .mha, .tif or .tiff.

    uint8 intensities keep their scale; others are divided by the 99.9th percentile of the voxels above 0. Images are
    resized with antialiasing, ids by nearest neighbour, both with aligned corners.

    The axes in a header are used unless they may be a writer's default, see `atlalign.atlas.axes`. Without a header,
    the first plane is the front of the brain, the first row its top, and the first column its left. A volume is refused
    if it looks like a brain in another order, or if its halves mirror each other along another axis.

    Args:
        path: The file.
        image_shape: (H, W) of the planes to return; None keeps the file's own.
        template: The dataset of intensities in an h5 file.
        annotation: The dataset of ids in an h5 file; a dataset with the default name is optional.
        spacing_um: The size of the file's cubic voxels; None uses the size in the header, or 25 µm without one.
        annotation_path: A file of ids with the template's axes; in an h5 file, the dataset `annotation`.
        ontology_path: A table of the regions, see `atlalign.atlas.ontology.read_ontology`.
        axes: The directions of the file's axes in its own order, such as "AP,DV,ML"; "PA,VD,RL" are the opposite
            directions. The order is that of the header in .nrrd, .nii and .mha (ITK's arrays reverse it); pages, rows,
            columns in .tif; that of the array in .h5 and .npy. None uses the header's axes, or AP,DV,ML.
        with_annotation: Whether to load the ids.

    Raises:
        InputError: If a file cannot be read, lacks expected content, or contradicts an argument.
    """
    path = Path(path).expanduser()
    given = None if axes is None else parse_axes(axes)
    if spacing_um is not None and not 0 < spacing_um < math.inf:
        raise InputError(f"spacing_um: expected more than 0, got {spacing_um:g}")
    ontology = None if ontology_path is None else read_ontology(ontology_path)
    with ExitStack() as files:
        volume = open_volume(path, template, files)
        unturned = Volume(volume.array, volume.source)
        if unturned.array.dtype.kind not in "uif":
            raise InputError(f"{volume.source}: expected integers or floats, got {volume.array.dtype}")
        small = unturned.thumbnail()
        ids = None
        if with_annotation and annotation_path is not None:
            ids = open_volume(Path(annotation_path).expanduser(), annotation, files)
        elif with_annotation and (annotation != _ANNOTATION or has_dataset(path, annotation)):
            ids = open_volume(path, annotation, files)
        chosen = given or choose_axes(small, volume.header.direction, volume.source, lengths_of(volume))
        if given:
            warn_if_turned(small, given, volume.source)
        sizes = voxel_size(volume, spacing_um, oriented(small, chosen), chosen)
        if ids is not None:
            check_header(ids, sizes, None if given else chosen)
        return _assemble(
            Volume(oriented(volume.array, chosen), volume.source),
            None if ids is None else Volume(oriented_like(ids, volume, chosen), ids.source),
            image_shape=image_shape,
            spacing_um=reordered(sizes, chosen),
            name=path.stem,
            ontology=ontology,
        )


def allen_atlas(
    *, image_shape: tuple[int, int] | None = None, resolution_um: int = 25, with_annotation: bool = True
) -> Atlas:
    """Return the Allen CCFv3 from BrainGlobe, which downloads it on first use (optional extra `allen`).

    Args:
        image_shape: (H, W) of the planes to return; None keeps the atlas's own.
        resolution_um: 10, 25, 50 or 100.
        with_annotation: Whether to load the region ids.

    Raises:
        InputError: If the resolution is not available, brainglobe-atlasapi is missing, or the download fails.
    """
    return _allen_atlas(image_shape, resolution_um, with_annotation=with_annotation, options=_SETTINGS)


def _allen_atlas(
    image_shape: tuple[int, int] | None, resolution_um: int, *, with_annotation: bool, options: str
) -> Atlas:
    """Return the same as `allen_atlas`; if its download fails, the error suggests these `options` for files."""
    if resolution_um not in (10, 25, 50, 100):
        raise InputError(f"resolution_um: expected 10, 25, 50 or 100, got {resolution_um}")
    name = f"allen_mouse_{resolution_um}um"
    template, annotation, ontology = fetch(
        name, with_annotation=with_annotation, by_hand=_by_hand(resolution_um, options)
    )
    return _assemble(
        Volume(template, f"{name} template"),
        None if annotation is None else Volume(annotation, f"{name} annotation"),
        image_shape=image_shape,
        spacing_um=(float(resolution_um),) * 3,
        name=name,
        ontology=ontology,
    )


def _by_hand(resolution_um: int, options: str) -> str:
    """Return advice on how to use the Allen atlas without its download."""
    template, annotation = f"average_template_{resolution_um}.nrrd", f"annotation_{resolution_um}.nrrd"
    return (
        f"download average_template/{template} and annotation/ccf_2017/{annotation} from {_ALLEN_FILES} on a machine "
        f"with internet access, then use {options.format(template=template, annotation=annotation)}"
    )


def open_atlas(
    atlas: str | Path = "allen",
    *,
    phantom_shape: tuple[int, int],
    annotation: str | Path | None = None,
    ontology: str | Path | None = None,
    spacing_um: float | None = None,
    axes: str | None = None,
) -> Atlas:
    """Return an atlas at its own resolution, with region ids if it has any.

    Args:
        atlas: phantom, allen, or a file.
        phantom_shape: (H, W) at which the phantom, which has no resolution of its own, is drawn.
        annotation: Only for a file, see `file_atlas`.
        ontology: Only for a file.
        spacing_um: Only for a file.
        axes: Only for a file.

    Raises:
        InputError: If the atlas cannot be loaded, or phantom or allen is combined with an argument for files only.
    """
    of_file = (annotation, ontology, spacing_um, axes)
    if atlas in (PHANTOM, "allen") and any(value is not None for value in of_file):
        raise InputError(
            f"atlas '{atlas}' has its own annotation, ontology, spacing and axes: omit these options"
        )
    if atlas == PHANTOM:
        return phantom_atlas(image_shape=phantom_shape)
    if atlas == "allen":
        return _allen_atlas(None, 25, with_annotation=True, options=_FLAGS)
    return file_atlas(
        atlas,
        annotation_path=annotation,
        ontology_path=ontology,
        spacing_um=spacing_um,
        axes=axes,
    )


def _assemble(
    template: Volume,
    annotation: Volume | None,
    *,
    image_shape: tuple[int, int] | None,
    spacing_um: VoxelSize,
    name: str,
    ontology: Ontology | None,
) -> Atlas:
    _, *own_shape = template.array.shape
    shape = checked_shape("image_shape", own_shape if image_shape is None else image_shape)
    with ThreadPoolExecutor(1) as other_core:
        ids = None if annotation is None else other_core.submit(load_annotation, annotation, shape)
        grey, scale = load_template(template, shape)
    # Corners are aligned: the distance between the centres of the outermost pixels stays the same.
    ap_um, dv_um, ml_um = spacing_um
    along_y, along_x = (
        (own - 1) / (new - 1) * size for own, new, size in zip(own_shape, shape, (dv_um, ml_um), strict=True)
    )
    return Atlas(
        grey,
        None if ids is None else ids.result(),
        ap_um,
        name,
        scale,
        pixel_um=(along_x, along_y),
        origin_um=(ml_um / 2, dv_um / 2),
        ontology=ontology,
    )
