"""The result of a registration: the map between a reference plane and a section, for images and points.

Both sides have their own frame in mm: pixel (0, 0) lies at the origin, x along columns, y along rows. The forward map
takes reference points to the section and is used to warp the section's image; the inverse map takes section points to
the reference and is used to warp the reference's labels. Each is a displacement field as ITK defines it.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.atlas.planes import Plane, Points
from atlalign.errors import InputError
from atlalign.geometry import sample, warp_points
from atlalign.io.files import fingerprint, itk_name, storable, written_whole
from atlalign.io.pixels import PixelSize
from atlalign.io.tables import cut
from atlalign.io.views import Pixels

FORWARD, INVERSE, RECORD = "forward.nii.gz", "inverse.nii.gz", "transform.json"
"""The files of a transform."""
LABELS, REGIONS = "reference_labels.tif", "regions.csv"
"""The files beside them if the reference has labels."""

_ITK_FILES = Lock()  # ITK may read or write only one file at a time
_FORMAT = 1
_CHECKSUM = "sha256"  # of the record itself
_READ_BYTES = 2**20
_TILE_PX = 256
_AGAIN = "register the section again with --overwrite"


class Grid(NamedTuple):
    """The pixels of an image in its own frame.

    Attributes:
        shape: (H, W).
        pixel_um: The distance between pixels along x and y.
        origin_mm: The centre of pixel (0, 0); not at 0 for a smaller copy of the frame's own image.
    """

    shape: tuple[int, int]
    pixel_um: PixelSize
    origin_mm: tuple[float, float] = (0.0, 0.0)

    def to_mm(self, pixels: Points) -> Points:
        """Convert points (N, 2) from pixels (x, y) to mm."""
        return pixels * (np.array(self.pixel_um) / 1000) + self.origin_mm

    def to_pixels(self, points_mm: Points) -> Points:
        """Convert points (N, 2) from mm to pixels (x, y)."""
        return (points_mm - self.origin_mm) / (np.array(self.pixel_um) / 1000)

    def scaled(self, scale: tuple[float, float], shape: tuple[int, int]) -> "Grid":
        """Return the grid of larger pixels whose outer edges at the left and the top are the same.

        Args:
            scale: How many pixels one of these covers, along x and y.
            shape: How many there are.
        """
        x, y = (size * by for size, by in zip(self.pixel_um, scale, strict=True))
        left, top = (
            origin + (new - old) / 2000
            for origin, new, old in zip(self.origin_mm, (x, y), self.pixel_um, strict=True)
        )
        return Grid(shape, (x, y), (left, top))

    def resampled(self, shape: tuple[int, int]) -> "Grid":
        """Return the grid of another shape whose outer edges are the same."""
        return self.scaled((self.shape[1] / shape[1], self.shape[0] / shape[0]), shape)

    def with_shape(self, shape: tuple[int, int]) -> "Grid":
        """Return a grid of another shape with the same outermost pixels."""
        sizes = zip(self.pixel_um, self.shape[::-1], shape[::-1], strict=True)
        x, y = (size * (old - 1) / (new - 1) for size, old, new in sizes)
        return Grid(shape, (x, y), self.origin_mm)

    def finer(self, pixel_um: float) -> "Grid":
        """Return a grid with the same outermost pixels and a distance of about `pixel_um` between pixels."""
        height, width = (
            max(2, round((n - 1) * size / pixel_um) + 1)
            for n, size in zip(self.shape, self.pixel_um[::-1], strict=True)
        )
        return self.with_shape((height, width))


@dataclass(frozen=True, eq=False)
class Displacement:
    """A map from one frame to another.

    Attributes:
        grid: The points at which the displacement is known, in the frame that is mapped.
        mm: (2, H, W), float32, x first: the grid point p is mapped to p + mm in the other frame.
    """

    grid: Grid
    mm: Tensor

    def __call__(self, points_mm: Points) -> Points:
        """Map points (N, 2) in mm; outside the grid, the displacement is that of its border."""
        pixels = torch.from_numpy(self.grid.to_pixels(points_mm))[None]
        in_pixels = self.mm.double() / torch.tensor(self.grid.pixel_um).view(2, 1, 1) * 1000
        return self.grid.to_mm(warp_points(pixels, in_pixels[None])[0].numpy())

    def write(self, path: Path) -> None:
        """Write an ITK displacement field in mm, which SimpleITK and ANTs apply as a transform."""
        import SimpleITK
        from imagecodecs import gzip_encode

        vectors = np.ascontiguousarray(np.moveaxis(self.mm.numpy(), 0, -1))
        image: Any = SimpleITK.GetImageFromArray(vectors, isVector=True)
        image.SetSpacing([size / 1000 for size in self.grid.pixel_um])
        plain = path.with_suffix("")
        with _ITK_FILES:
            SimpleITK.WriteImage(image, itk_name(plain))
        path.write_bytes(gzip_encode(plain.read_bytes()))  # SimpleITK's own compression takes twice as long
        plain.unlink()

    @classmethod
    def read(cls, path: Path) -> "Displacement":
        """Read what `write` wrote.

        Raises:
            InputError: If the file is missing or damaged, or is not a displacement field with its origin at 0.
        """
        import SimpleITK

        if not path.is_file():
            raise InputError(f"{path}: expected a displacement field, found no file: {_AGAIN}")
        try:
            _check_gzip(path)
            with _ITK_FILES:
                image: Any = SimpleITK.ReadImage(itk_name(path))
        except (RuntimeError, OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{path}: expected a displacement field, cannot read this file: {_AGAIN}"
            ) from error
        if image.GetDimension() != 2 or image.GetNumberOfComponentsPerPixel() != 2:
            raise InputError(f"{path}: expected a 2D displacement field, found another kind of image")
        if (
            np.abs(image.GetOrigin()).max() > 0
            or np.abs(np.subtract(image.GetDirection(), (1, 0, 0, 1))).max() > 0
        ):
            raise InputError(
                f"{path}: expected a field that atlalign wrote, with its origin at 0 and no rotation"
            )
        mm = torch.from_numpy(
            np.moveaxis(SimpleITK.GetArrayFromImage(image).astype(np.float32), -1, 0).copy()
        )
        if not bool(mm.isfinite().all()):
            raise InputError(f"{path}: expected finite displacements, found infinite values or NaN: {_AGAIN}")
        x, y = (1000 * size for size in image.GetSpacing())
        return cls(Grid((mm.shape[1], mm.shape[2]), (x, y)), mm)


@dataclass(frozen=True, eq=False)
class SectionTransform:
    """The map between a reference plane and a section, in both directions.

    Attributes:
        forward: From the reference's frame to the section's.
        inverse: From the section's frame to the reference's.
        section: The pixels of the section's image.
        plane: The position of the reference in the atlas; None if the reference is an image.
        output_um: The pixel size of images that are written; None means that of the section's image, or of the
            reference if it is smaller.

    Example:
        >>> grid = Grid(shape=(40, 56), pixel_um=(25.0, 25.0))
        >>> half_a_mm = Displacement(grid, torch.full((2, 40, 56), 0.5))  # along x and y
        >>> SectionTransform(half_a_mm, half_a_mm, grid, plane=None).to_section(np.array([[0.25, 0.0]]))
        array([[30., 20.]])
    """

    forward: Displacement
    inverse: Displacement
    section: Grid
    plane: Plane | None
    output_um: float | None = None

    @property
    def reference(self) -> Grid:
        """The pixels of images in the reference's frame that are written: those of the registered image."""
        finest = min(*self.section.pixel_um, *self.forward.grid.pixel_um)
        return self.forward.grid.finer(self.output_um or finest)

    @property
    def in_section(self) -> Grid:
        """The pixels of images in the section's frame that are written: its own, or larger ones."""
        if self.output_um is None:
            return self.section
        height, width = (
            max(1, min(size, round(size * um / self.output_um)))
            for size, um in zip(self.section.shape, self.section.pixel_um[::-1], strict=True)
        )
        return self.section.resampled((height, width))

    @property
    def midline_mm(self) -> float:
        """The x of the midline in the reference's frame: its middle, because a plane shows the atlas's whole width."""
        grid = self.forward.grid
        return (grid.shape[1] - 1) / 2 * grid.pixel_um[0] / 1000

    def to_reference(self, pixels: Points) -> Points:
        """Map section points (N, 2) in pixels (x, y) to the reference's frame in mm."""
        return self.inverse(self.section.to_mm(pixels))

    def to_atlas(self, pixels: Points) -> Points:
        """Map section points (N, 2) in pixels (x, y) to the atlas: (AP, DV, ML) in µm, (N, 3).

        Raises:
            InputError: If the reference is not a plane of an atlas.
        """
        if self.plane is None:
            raise InputError("expected a registration to an atlas, found a registration to a reference image")
        return self.plane.to_atlas(self.to_reference(pixels))

    def to_section(self, points_mm: Points) -> Points:
        """Map points (N, 2) of the reference's frame in mm to pixels (x, y) of the section."""
        return self.section.to_pixels(self.forward(points_mm))

    def register(
        self, image: Pixels, *, scale: tuple[float, float] = (1.0, 1.0), fill: Any = 0
    ) -> Iterator[NDArray[Any]]:
        """Yield the registered image, of `reference.shape`, in bands of rows.

        Args:
            image: The section (h, w) or (h, w, 3); interpolation is linear; integers are rounded.
            scale: How many of the section's pixels one of the image covers, along x and y.
            fill: The value outside the section, or one value per channel.
        """
        source = self.section.scaled(scale, (image.shape[0], image.shape[1]))
        return warp_in_bands(image, source, self.forward, self.reference, fill=fill)

    def label(self, labels: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield the labels in section space, of shape `in_section.shape`, in bands of rows.

        Args:
            labels: The labels of the reference, at any resolution. Interpolation is nearest-neighbour; 0 outside.
        """
        grid = self.forward.grid.with_shape((labels.shape[0], labels.shape[1]))
        return warp_in_bands(labels, grid, self.inverse, self.in_section, nearest=True)

    def label_by_side(self, labels: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        """Yield bands of labels as `label` does, each with a mask of the pixels left of the midline."""
        grid = self.forward.grid.with_shape((labels.shape[0], labels.shape[1]))
        middle = (labels.shape[1] - 1) / 2
        for tiles in _tiles_in_bands(grid, self.inverse, self.in_section):
            taken = [(_take_nearest(labels, tile, 0), tile[0].numpy() < middle) for tile in tiles]
            yield (
                np.concatenate([ids for ids, _ in taken], axis=1),
                np.concatenate([is_left for _, is_left in taken], axis=1),
            )

    def save(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the transform into a folder, with `record`, plain data on how it was made.

        The saved record also holds the sizes and checksums of all files in the folder.
        """
        self.forward.write(folder / FORWARD)
        self.inverse.write(folder / INVERSE)
        frames = {
            "section": {"shape": self.section.shape, "pixel_um": self.section.pixel_um},
            "plane": None if self.plane is None else self.plane.matrix.tolist(),
            "output_um": self.output_um,
        }
        files = {path.name: _state(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
        write_record(folder, {"format": _FORMAT, **frames, **record, "files": files})

    @classmethod
    def load(cls, folder: str | Path) -> "SectionTransform":
        """Read what `save` wrote.

        Raises:
            InputError: If the folder holds no transform, or the transform is damaged.
        """
        folder = Path(folder)
        record = read_record(folder)
        section = _recorded_grid(record.get("section"), folder / RECORD)
        plane = _recorded_plane(record.get("plane", ""), folder / RECORD)
        output_um = _recorded_size(record.get("output_um"), folder / RECORD)
        for name in (FORWARD, INVERSE):
            check_file(folder, record, name)
        forward, inverse = (Displacement.read(folder / name) for name in (FORWARD, INVERSE))
        return cls(forward, inverse, section, plane, output_um)


def _recorded_grid(found: Any, path: Path) -> Grid:
    """Return the section's pixels as `SectionTransform.save` wrote them."""
    try:
        height, width = found["shape"]
        x, y = (float(size) for size in found["pixel_um"])
        is_valid = (
            all(isinstance(n, int) and n > 1 for n in (height, width)) and 0 < min(x, y) <= max(x, y) < np.inf
        )
    except (KeyError, TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise InputError(
            f"{path}, section: expected the shape (H, W) and pixel_um (x, y) of an image, found {cut(str(found), 80)}: "
            f"{_AGAIN}"
        )
    return Grid((height, width), (x, y))


def _recorded_size(found: Any, path: Path) -> float | None:
    """Return the size of written pixels, as `SectionTransform.save` wrote it."""
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    if found is not None and not (is_number and 0 < found < np.inf):
        raise InputError(
            f"{path}, output_um: expected null or a size in µm, found {cut(str(found), 80)}: {_AGAIN}"
        )
    return None if found is None else float(found)


def _recorded_plane(found: Any, path: Path) -> Plane | None:
    """Return the reference's position in the atlas as `SectionTransform.save` wrote it."""
    if found is None:
        return None
    try:
        matrix = np.array(found, np.float64).reshape(3, 3)
        # x and y of the frame must point in different directions in the atlas.
        is_valid = bool(np.isfinite(matrix).all() and np.linalg.matrix_rank(matrix[1:, :2]) == 2)
    except (TypeError, ValueError):
        is_valid = False
    if not is_valid:
        raise InputError(
            f"{path}, plane: expected null or an invertible 3×3 matrix of finite numbers, found {cut(str(found), 80)}: "
            f"{_AGAIN}"
        )
    return Plane(matrix)


def prepare_itk() -> None:
    """Let ITK register its readers and writers.

    It registers them when it first reads or writes a file, and crashes if another thread uses it meanwhile.
    """
    import SimpleITK

    with TemporaryDirectory() as folder, _ITK_FILES:
        name = str(Path(folder, "image.nii"))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((2, 2), np.float32)), name)
        SimpleITK.ReadImage(name)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record saved with a transform, as plain data.

    Raises:
        InputError: If the folder holds no transform, or its record was changed after it was written.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(_no_record(folder, error)) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        found = record.get("format", "none") if isinstance(record, dict) else "no object"
        raise InputError(
            f"{folder / RECORD}: expected a record of format {_FORMAT}, found {cut(str(found), 40)}: use the version "
            f"of atlalign that wrote it, or {_AGAIN}"
        )
    if record.get(_CHECKSUM) != _checksum(record):
        raise InputError(
            f"{folder / RECORD}: expected the record as it was written, found that it has changed: {_AGAIN}"
        )
    return record


def _no_record(folder: Path, error: Exception) -> str:
    """Return the reason why a folder is not the folder of one section."""
    if (folder / RECORD).exists():
        return (
            f"{folder / RECORD}: expected the record of a section, cannot read this file ({error}): {_AGAIN}"
        )
    if any(folder.glob(f"*/{RECORD}")):
        return f"{folder}: expected the folder of one section, found a folder that holds several"
    return f"{folder}: expected a section's folder that `atlalign register` wrote, found no {RECORD} in it"


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record and its checksum, and replace the previous record."""
    content = {**record, _CHECKSUM: _checksum(record)}
    with written_whole(folder / RECORD) as unfinished:
        unfinished.write_text(storable(_compact_json(content)) + "\n", encoding="utf-8")


def check_whole(folder: Path) -> dict[str, Any]:
    """Return the record of a transform after checking that no file of its folder has changed.

    A file is read only if its size or time differs from the record.

    Raises:
        InputError: If the record or a file is missing, damaged or changed.
    """
    record = read_record(folder)
    for name in record.get("files", {}):
        check_file(folder, record, name)
    return record


def check_file(folder: Path, record: Mapping[str, Any], name: str) -> None:
    """Check that a file listed in a record has not changed since it was written.

    Raises:
        InputError: If it is missing, damaged or changed.
    """
    state = record.get("files", {}).get(name)
    if state is None:
        return
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: expected a file of results, found no file: {_AGAIN}")
    if not _is_as_written(path, state):
        raise InputError(f"{path}: expected the file as it was written, found that it has changed: {_AGAIN}")


def _state(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": fingerprint(path)}


def _is_as_written(path: Path, state: Mapping[str, Any]) -> bool:
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) == (state["bytes"], state["modified_ns"]):
        return True
    return bool(status.st_size == state["bytes"] and fingerprint(path) == state["sha256"])


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the checksum of a record's content, which does not depend on its layout."""
    content = {name: value for name, value in record.items() if name != _CHECKSUM}
    text = storable(json.dumps(content, ensure_ascii=False, sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()


def _compact_json(record: Mapping[str, Any]) -> str:
    """Return plain data as indented JSON, each list of numbers on one line."""
    text = json.dumps(record, indent=2, ensure_ascii=False)
    # Strings in JSON have no line breaks, and lists of numbers contain neither brackets nor quotes.
    return re.sub(r'\[\n([^\[\]{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text)


def _check_gzip(path: Path) -> None:
    """Read a file up to its checksum: ITK fills the missing part of a truncated file with zeros."""
    with gzip.open(path) as file:
        while file.read(_READ_BYTES):
            pass


# --- bands ------------------------------------------------------------------------------------------------------------


def warp_in_bands(
    image: Pixels,
    source: Grid,
    displacement: Displacement,
    target: Grid,
    *,
    nearest: bool = False,
    fill: Any = 0,
) -> Iterator[NDArray[Any]]:
    """Yield a warped image in bands of rows, so that memory holds only the original and one band.

    Up to half a pixel outside the image, its border is repeated, as in ITK; further out, pixels are `fill`.

    Args:
        image: (h, w) or (h, w, c), of any type; with `nearest` an array.
        source: The pixels of the image.
        displacement: From the target's frame to the image's.
        target: The pixels to fill.
        nearest: Use nearest-neighbour instead of linear interpolation.
        fill: One value, or one per channel.
    """
    take: Callable[[Any, Tensor, Any], NDArray[Any]] = _take_nearest if nearest else _interpolate
    for tiles in _tiles_in_bands(source, displacement, target):
        yield np.concatenate([take(image, tile, fill) for tile in tiles], axis=1)


def _tiles_in_bands(source: Grid, displacement: Displacement, target: Grid) -> Iterator[Iterator[Tensor]]:
    """Yield bands of tiles; a tile is the position of its pixels in the source image, (2, h, w), in pixels."""
    height, width = target.shape
    source_mm = torch.tensor(source.pixel_um, dtype=torch.float64).view(2, 1, 1) / 1000
    shift = displacement.mm.double() / source_mm  # once, not for every tile
    for top in range(0, height, _TILE_PX):
        rows = torch.arange(top, min(top + _TILE_PX, height))
        # A tile needs only a small part of the image, however the section is turned.
        tiles = (torch.arange(left, min(left + _TILE_PX, width)) for left in range(0, width, _TILE_PX))
        yield (
            _sources(
                _axes(target, displacement.grid, rows, columns), shift, _axes(target, source, rows, columns)
            )
            for columns in tiles
        )


def _axes(target: Grid, grid: Grid, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (1, w) and y (h, 1) of a tile of the target, in pixels of another grid."""
    x, y = (own / other for own, other in zip(target.pixel_um, grid.pixel_um, strict=True))
    left, top = (
        1000 * (own - other) / size
        for own, other, size in zip(target.origin_mm, grid.origin_mm, grid.pixel_um, strict=True)
    )
    return columns.double()[None] * x + left, rows.double()[:, None] * y + top


def _sources(in_shift: tuple[Tensor, Tensor], shift: Tensor, in_source: tuple[Tensor, Tensor]) -> Tensor:
    """Return the positions of a tile's pixels in the source image, (2, h, w), in pixels, x first.

    x and y are separate planes, because arithmetic along a last axis of length two takes twice as long.

    Args:
        in_shift: x and y of the tile in pixels of the shift.
        shift: (2, H, W), in pixels of the source.
        in_source: x and y of the tile in pixels of the source.
    """
    x, y = in_shift
    moved = _sampled(shift, torch.stack([x.expand(len(y), -1), y.expand(-1, x.shape[1])]))
    for plane, axis in zip(moved, in_source, strict=True):
        plane += axis
    return moved


def _sampled(planes: Tensor, points: Tensor) -> Tensor:
    """Return the values (c, h, w) of planes (c, H, W) at points (2, h, w); the border is repeated outside."""
    return sample(planes[None], points.permute(1, 2, 0)[None], padding_mode="border")[0]


def _interpolate(image: Pixels, points: Tensor, fill: Any) -> NDArray[Any]:
    crop, origin = _crop(image, points)
    channels = crop.reshape(*crop.shape[:2], -1)
    values = torch.from_numpy(channels.astype(np.float32)).permute(2, 0, 1)
    sampled = _sampled(values, (points - origin).float()).permute(1, 2, 0).numpy()
    if image.dtype.kind in "ui":
        sampled = sampled.round()
    tile = sampled.astype(image.dtype).reshape(*points.shape[1:], *image.shape[2:])
    tile[~_inside(image, points)] = fill
    return tile


def _take_nearest(image: NDArray[Any], points: Tensor, fill: Any) -> NDArray[Any]:
    height, width = image.shape[:2]
    x, y = (points + 0.5).floor().long().numpy()
    tile: NDArray[Any] = image[y.clip(0, height - 1), x.clip(0, width - 1)]
    tile[~_inside(image, points)] = fill
    return tile


def _inside(image: Pixels, points: Tensor) -> NDArray[np.bool_]:
    height, width = image.shape[:2]
    x, y = points.numpy()
    inside: NDArray[np.bool_] = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    return inside


def _crop(image: Pixels, points: Tensor) -> tuple[NDArray[Any], Tensor]:
    """Return the part of the image around points (2, h, w), and the position (2, 1, 1) of its first pixel."""
    limit = torch.tensor([image.shape[1], image.shape[0]])
    first = torch.minimum(points.amin(dim=(1, 2)).floor().long().clamp(min=0), limit - 2)
    last = torch.maximum(points.amax(dim=(1, 2)).ceil().long(), first + 1)
    (left, top), (right, bottom) = first.tolist(), last.tolist()
    return image[top : bottom + 1, left : right + 1], first.view(2, 1, 1)
