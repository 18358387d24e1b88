"""What a registration leaves behind: the map between a reference plane and a section, for images and points.

Both sides have a frame of their own in mm: pixel (0, 0) lies at the origin, x along columns, y along rows. The forward
map takes reference points to the section, which is what warps the section's image; the inverse one takes section
points to the reference, which is what warps the reference's labels. Each is a displacement field in ITK's sense.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
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

FORWARD, INVERSE, RECORD = "forward.nii.gz", "inverse.nii.gz", "transform.json"
"""The files of a transform."""
LABELS, REGIONS = "reference_labels.tif", "regions.csv"
"""What stands beside them, where the reference has labels."""

_ITK_FILES = Lock()  # of which ITK reads or writes one at a time
_FORMAT = 1
_CHECKSUM = "sha256"  # of the record itself
_READ_BYTES = 2**20
_TILE_PX = 256
_AGAIN = "register the section again with --overwrite"


class Grid(NamedTuple):
    """Pixels of an image in its own frame.

    Attributes:
        shape: (H, W).
        pixel_um: Their distance along x and y.
    """

    shape: tuple[int, int]
    pixel_um: PixelSize

    def to_mm(self, pixels: Points) -> Points:
        """Return points (N, 2), given in pixels (x, y), in mm."""
        return pixels * (np.array(self.pixel_um) / 1000)

    def to_pixels(self, points_mm: Points) -> Points:
        """Return points (N, 2), given in mm, in pixels (x, y)."""
        return points_mm / (np.array(self.pixel_um) / 1000)

    def with_shape(self, shape: tuple[int, int]) -> "Grid":
        """Return the grid of another shape whose outermost pixels are the same."""
        sizes = zip(self.pixel_um, self.shape[::-1], shape[::-1], strict=True)
        x, y = (size * (old - 1) / (new - 1) for size, old, new in sizes)
        return Grid(shape, (x, y))

    def finer(self, pixel_um: float) -> "Grid":
        """Return the grid with the same outermost pixels, and about `pixel_um` between its pixels."""
        height, width = (
            max(2, round((n - 1) * size / pixel_um) + 1)
            for n, size in zip(self.shape, self.pixel_um[::-1], strict=True)
        )
        return self.with_shape((height, width))


@dataclass(frozen=True, eq=False)
class Displacement:
    """A map from one frame to another.

    Attributes:
        grid: Where the displacement is known, in the frame that is mapped.
        mm: (2, H, W), float32, x first: the point p of the grid is mapped to p + mm, in the other frame.
    """

    grid: Grid
    mm: Tensor

    def __call__(self, points_mm: Points) -> Points:
        """Return where points (N, 2), in mm, are mapped to; beyond the grid the displacement is that of its border."""
        pixels = torch.from_numpy(self.grid.to_pixels(points_mm))[None]
        in_pixels = self.mm.double() / torch.tensor(self.grid.pixel_um).view(2, 1, 1) * 1000
        return self.grid.to_mm(warp_points(pixels, in_pixels[None])[0].numpy())

    def write(self, path: Path) -> None:
        """Write an ITK displacement field, in mm: SimpleITK and ANTs apply it as a transform."""
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
            InputError: If the file is missing, damaged, or no displacement field with its origin at 0.
        """
        import SimpleITK

        if not path.is_file():
            raise InputError(f"{path}: expected a displacement field, found no file: {_AGAIN}")
        try:
            _check_gzip(path)
            with _ITK_FILES:
                image: Any = SimpleITK.ReadImage(itk_name(path))
        except (RuntimeError, OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: expected a displacement field, cannot read it: {_AGAIN}") from error
        if image.GetDimension() != 2 or image.GetNumberOfComponentsPerPixel() != 2:
            raise InputError(f"{path}: expected a 2D displacement field, found another image")
        if (
            np.abs(image.GetOrigin()).max() > 0
            or np.abs(np.subtract(image.GetDirection(), (1, 0, 0, 1))).max() > 0
        ):
            raise InputError(f"{path}: expected a field as atlalign writes it, with its origin at 0, upright")
        mm = torch.from_numpy(
            np.moveaxis(SimpleITK.GetArrayFromImage(image).astype(np.float32), -1, 0).copy()
        )
        if not bool(mm.isfinite().all()):
            raise InputError(f"{path}: expected finite displacements, found infinite ones or NaN: {_AGAIN}")
        x, y = (1000 * size for size in image.GetSpacing())
        return cls(Grid((mm.shape[1], mm.shape[2]), (x, y)), mm)


@dataclass(frozen=True, eq=False)
class SectionTransform:
    """The map between a reference plane and a section, both ways.

    Attributes:
        forward: From the reference's frame to the section's.
        inverse: From the section's frame to the reference's.
        section: The pixels of the section's image.
        plane: Where the reference lies in the atlas; None if it is no plane of one.

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

    @property
    def reference(self) -> Grid:
        """The reference's pixels at the section's resolution: those of the registered image."""
        finest = min(self.section.pixel_um)
        return self.forward.grid.finer(min(finest, *self.forward.grid.pixel_um))

    @property
    def midline_mm(self) -> float:
        """The middle of the reference along x of its frame; planes show all of an atlas's width, so its midline."""
        grid = self.forward.grid
        return (grid.shape[1] - 1) / 2 * grid.pixel_um[0] / 1000

    def to_reference(self, pixels: Points) -> Points:
        """Return section points (N, 2), in pixels (x, y), in the reference's frame, in mm."""
        return self.inverse(self.section.to_mm(pixels))

    def to_atlas(self, pixels: Points) -> Points:
        """Return (AP, DV, ML) in µm (N, 3) of section points (N, 2), in pixels (x, y).

        Raises:
            InputError: If the reference is not a plane of an atlas.
        """
        if self.plane is None:
            raise InputError("expected a registration to an atlas, found one to a reference image")
        return self.plane.to_atlas(self.to_reference(pixels))

    def to_section(self, points_mm: Points) -> Points:
        """Return points (N, 2) of the reference's frame, in mm, in pixels (x, y) of the section."""
        return self.section.to_pixels(self.forward(points_mm))

    def register(self, image: NDArray[Any], *, fill: Any = 0) -> Iterator[NDArray[Any]]:
        """Yield the registered image, of `reference.shape`, in bands of some rows.

        Args:
            image: The section (h, w) or (h, w, 3); linear interpolation, integers are rounded.
            fill: What lies beyond the section, one value or one a channel.
        """
        return warp_in_bands(image, self.section, self.forward, self.reference, fill=fill)

    def label(self, labels: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """Yield the labels in section space, of `section.shape`, in bands of some rows.

        Args:
            labels: Of the reference, of any size that covers its frame; nearest neighbour, 0 beyond.
        """
        grid = self.forward.grid.with_shape((labels.shape[0], labels.shape[1]))
        return warp_in_bands(labels, grid, self.inverse, self.section, nearest=True)

    def label_by_side(self, labels: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        """Yield the labels in section space as `label` does, each band with where it lies left of the midline."""
        grid = self.forward.grid.with_shape((labels.shape[0], labels.shape[1]))
        middle = (labels.shape[1] - 1) / 2
        for tiles in _tiles_in_bands(grid, self.inverse, self.section):
            taken = [(_take_nearest(labels, tile, 0), tile[0].numpy() < middle) for tile in tiles]
            yield (
                np.concatenate([ids for ids, _ in taken], axis=1),
                np.concatenate([is_left for _, is_left in taken], axis=1),
            )

    def save(self, folder: Path, record: Mapping[str, Any]) -> None:
        """Write the transform into a folder; `record`, plain data on how it came about, is kept with it.

        The record gets the sizes and checksums of all files that are in the folder.
        """
        self.forward.write(folder / FORWARD)
        self.inverse.write(folder / INVERSE)
        frames = {
            "section": {"shape": self.section.shape, "pixel_um": self.section.pixel_um},
            "plane": None if self.plane is None else self.plane.matrix.tolist(),
        }
        files = {path.name: _state(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
        write_record(folder, {"format": _FORMAT, **frames, **record, "files": files})

    @classmethod
    def load(cls, folder: str | Path) -> "SectionTransform":
        """Read what `save` wrote.

        Raises:
            InputError: If the folder holds no transform, or a damaged one.
        """
        folder = Path(folder)
        record = read_record(folder)
        section = _recorded_grid(record.get("section"), folder / RECORD)
        plane = _recorded_plane(record.get("plane", ""), folder / RECORD)
        for name in (FORWARD, INVERSE):
            check_file(folder, record, name)
        forward, inverse = (Displacement.read(folder / name) for name in (FORWARD, INVERSE))
        return cls(forward, inverse, section, plane)


def _recorded_grid(found: Any, path: Path) -> Grid:
    """Return the section's pixels, as `SectionTransform.save` wrote them."""
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


def _recorded_plane(found: Any, path: Path) -> Plane | None:
    """Return the reference's place in the atlas, as `SectionTransform.save` wrote it."""
    if found is None:
        return None
    try:
        matrix = np.array(found, np.float64).reshape(3, 3)
        # The frame's x and y must lead to different places in the atlas.
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

    It does so when a file is first read or written, and crashes if another thread uses it meanwhile.
    """
    import SimpleITK

    with TemporaryDirectory() as folder, _ITK_FILES:
        name = str(Path(folder, "image.nii"))
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((2, 2), np.float32)), name)
        SimpleITK.ReadImage(name)


def read_record(folder: Path) -> dict[str, Any]:
    """Return what is kept with a transform, as plain data.

    Raises:
        InputError: If the folder holds no transform, or one whose record has changed since it was written.
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
            f"{folder / RECORD}: expected the record as it was written, found it changed: {_AGAIN}"
        )
    return record


def _no_record(folder: Path, error: Exception) -> str:
    """Return why a folder is not that of one section."""
    if (folder / RECORD).exists():
        return f"{folder / RECORD}: expected the record of a section, cannot read it ({error}): {_AGAIN}"
    if any(folder.glob(f"*/{RECORD}")):
        return f"{folder}: expected the folder of one section, found a folder with the folders of several"
    return f"{folder}: expected a section's folder that `atlalign register` wrote, found no {RECORD} in it"


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write all that is kept with a transform as plain data, and its checksum, in place of what was."""
    content = {**record, _CHECKSUM: _checksum(record)}
    with written_whole(folder / RECORD) as unfinished:
        unfinished.write_text(storable(_compact_json(content)) + "\n", encoding="utf-8")


def check_whole(folder: Path) -> dict[str, Any]:
    """Return what is kept with a transform, if neither it nor any file beside it has changed since it was written.

    A file is read only where its size or time differ from the record's.

    Raises:
        InputError: If something is missing, damaged or changed.
    """
    record = read_record(folder)
    for name in record.get("files", {}):
        check_file(folder, record, name)
    return record


def check_file(folder: Path, record: Mapping[str, Any], name: str) -> None:
    """Check that a file beside a record is as it was written, if the record lists it.

    Raises:
        InputError: If it is missing, damaged or changed.
    """
    state = record.get("files", {}).get(name)
    if state is None:
        return
    path = folder / name
    if not path.is_file():
        raise InputError(f"{path}: expected a file of results, found none: {_AGAIN}")
    if not _is_as_written(path, state):
        raise InputError(f"{path}: expected the file as it was written, found it changed: {_AGAIN}")


def _state(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": fingerprint(path)}


def _is_as_written(path: Path, state: Mapping[str, Any]) -> bool:
    status = path.stat()
    if (status.st_size, status.st_mtime_ns) == (state["bytes"], state["modified_ns"]):
        return True
    return bool(status.st_size == state["bytes"] and fingerprint(path) == state["sha256"])


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the checksum of a record's content, whatever its layout."""
    content = {name: value for name, value in record.items() if name != _CHECKSUM}
    text = storable(json.dumps(content, ensure_ascii=False, sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()


def _compact_json(record: Mapping[str, Any]) -> str:
    """Return plain data as indented JSON, each list of numbers on one line."""
    text = json.dumps(record, indent=2, ensure_ascii=False)
    # No text within JSON has a line break, nor does a list of numbers have marks of its own.
    return re.sub(r'\[\n([^\[\]{}"]*)\]', lambda found: f"[{' '.join(found[1].split())}]", text)


def _check_gzip(path: Path) -> None:
    """Read a file to its checksum: ITK takes what a truncated one lacks for zeros."""
    with gzip.open(path) as file:
        while file.read(_READ_BYTES):
            pass


# --- bands ------------------------------------------------------------------------------------------------------------


def warp_in_bands(
    image: NDArray[Any],
    source: Grid,
    displacement: Displacement,
    target: Grid,
    *,
    nearest: bool = False,
    fill: Any = 0,
) -> Iterator[NDArray[Any]]:
    """Yield a warped image in bands of some rows, so that it need not fit into memory beside the original.

    What lies within half a pixel of the border is that of the border, as in ITK; beyond it is `fill`.

    Args:
        image: (h, w) or (h, w, c), of any type.
        source: Its pixels.
        displacement: From the target's frame to the image's.
        target: The pixels to fill.
        nearest: Take the nearest pixel unchanged, instead of interpolating linearly.
        fill: One value, or one a channel.
    """
    take = _take_nearest if nearest else _interpolate
    for tiles in _tiles_in_bands(source, displacement, target):
        yield np.concatenate([take(image, tile, fill) for tile in tiles], axis=1)


def _tiles_in_bands(source: Grid, displacement: Displacement, target: Grid) -> Iterator[Iterator[Tensor]]:
    """Yield, band by band, where the pixels of its tiles lie in the source image, (2, h, w) in its pixels."""
    height, width = target.shape
    source_mm = torch.tensor(source.pixel_um, dtype=torch.float64).view(2, 1, 1) / 1000
    shift = displacement.mm.double() / source_mm  # once, not for every tile
    for top in range(0, height, _TILE_PX):
        rows = torch.arange(top, min(top + _TILE_PX, height))
        # A tile needs little of the image, however the section is turned.
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
    return columns.double()[None] * x, rows.double()[:, None] * y


def _sources(in_shift: tuple[Tensor, Tensor], shift: Tensor, in_source: tuple[Tensor, Tensor]) -> Tensor:
    """Return where the pixels of a tile lie in the source image, (2, h, w) in its pixels, x first.

    Coordinates stay planes: arithmetic along a last axis of two numbers takes twice as long.

    Args:
        in_shift: Their x and y in pixels of the shift.
        shift: (2, H, W) in pixels of the source.
        in_source: Their x and y in pixels of the source.
    """
    x, y = in_shift
    moved = _sampled(shift, torch.stack([x.expand(len(y), -1), y.expand(-1, x.shape[1])]))
    for plane, axis in zip(moved, in_source, strict=True):
        plane += axis
    return moved


def _sampled(planes: Tensor, points: Tensor) -> Tensor:
    """Return the values (c, h, w) of planes (c, H, W) at points (2, h, w); beyond the border, those of the border."""
    return sample(planes[None], points.permute(1, 2, 0)[None], padding_mode="border")[0]


def _interpolate(image: NDArray[Any], points: Tensor, fill: Any) -> NDArray[Any]:
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


def _inside(image: NDArray[Any], points: Tensor) -> NDArray[np.bool_]:
    height, width = image.shape[:2]
    x, y = points.numpy()
    inside: NDArray[np.bool_] = (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
    return inside


def _crop(image: NDArray[Any], points: Tensor) -> tuple[NDArray[Any], Tensor]:
    """Return the part of the image that the points (2, h, w) lie in, and where (2, 1, 1) its first pixel lies."""
    limit = torch.tensor([image.shape[1], image.shape[0]])
    first = torch.minimum(points.amin(dim=(1, 2)).floor().long().clamp(min=0), limit - 2)
    last = torch.maximum(points.amax(dim=(1, 2)).ceil().long(), first + 1)
    (left, top), (right, bottom) = first.tolist(), last.tolist()
    return image[top : bottom + 1, left : right + 1], first.view(2, 1, 1)
