"""What samples are made from: an annotated data set, an atlas alone, or images of sections at known positions."""

import csv
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from atlalign.data import schema
from atlalign.data.atlas import Atlas
from atlalign.data.contrast import apply_contrast, draw_contrast
from atlalign.data.images import resize_images
from atlalign.errors import InputError
from atlalign.geometry import affine_to_dvf, invert, invert_affine, warp

_SMALLEST_TISSUE_SHARE = 0.1
_TISSUE_INTENSITY = 25
# The grid of the anchoring of QuickNII and DeepSlice: the Allen atlas at 25 µm, as (AP, DV, ML).
_GRID = (528, 320, 456)
_GRID_UM = 25.0
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class Identity(NamedTuple):
    """What a sample keeps of its original: the position in µm from the front, and the ids."""

    position_um: int
    image_id: int
    dataset_id: int


class Start(NamedTuple):
    """Where one sample starts: the registered image is `moving(q + dvf(q))`.

    Attributes:
        moving: (1, 1, H, W) in [0, 1].
        dvf: (1, 2, H, W) in pixels.
        drawn_on: (1, 1, H, W), the image that the new deformation is drawn for.
        before: (1, 2, H, W), the field from `drawn_on` to the registered image, which the new one is composed with.
    """

    moving: Tensor
    dvf: Tensor
    drawn_on: Tensor
    before: Tensor

    @classmethod
    def registered(cls, image: Tensor) -> "Start":
        """Start from an image (1, 1, H, W) that is registered already."""
        nowhere = image.new_zeros(1, 2, *image.shape[-2:])
        return cls(image, nowhere, image, nowhere)


class Source(Protocol):
    """Originals that samples are made from; it is pickled, and sent to each process."""

    image_shape: tuple[int, int]

    def __len__(self) -> int:
        """Return the number of originals."""
        ...

    def identity(self, original: int) -> Identity:
        """Return what each sample keeps of this original."""
        ...

    def start(self, original: int, generator: torch.Generator) -> Start:
        """Return where a sample of this original starts; `generator` decides what is random."""
        ...


# --- annotated --------------------------------------------------------------------------------------------------------


class AnnotatedSource:
    """The samples of an h5 data set, each deformed further.

    Args:
        path: The h5 file, by the contract of `atlalign.data.schema`.
        image_shape: (H, W), that of the file.
        p_reg: The probability that a sample starts from the registered image and not from the moving one.
        extent_um: Positions lie in [0, extent_um].

    Raises:
        InputError: If the file is not valid, or its images have another size.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_shape: Sequence[int],
        p_reg: float = 0.5,
        extent_um: float = schema.ATLAS_EXTENT_UM,
    ) -> None:
        self.path = Path(path).expanduser()
        self.image_shape = _image_shape(image_shape)
        if not 0 <= p_reg <= 1:
            raise InputError(f"source.p_reg: expected a probability, got {p_reg}")
        self.p_reg = p_reg
        found = schema.check_once(self.path, extent_um)
        if found.image_shape != self.image_shape:
            raise InputError(
                f"source.path: data.image_shape is {self.image_shape}, but the images of {self.path} are "
                f"{found.image_shape}"
            )
        with h5py.File(self.path, "r") as file:
            columns = [file[name][:].tolist() for name in ("p", "image_id", "dataset_id")]
        self._identities = [Identity(*values) for values in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return len(self._identities)

    def identity(self, original: int) -> Identity:
        """Return position and ids of a sample of the file."""
        return self._identities[original]

    def start(self, original: int, generator: torch.Generator) -> Start:
        """Return the moving image with its field, to be deformed further as it is or as it is registered."""
        as_it_is, as_registered = _read_annotated(self.path, self.path.stat().st_mtime_ns, original)
        from_registered = float(torch.rand((), generator=generator)) < self.p_reg
        return as_registered if from_registered else as_it_is


@lru_cache(maxsize=1)
def _read_annotated(path: Path, mtime_ns: int, sample: int) -> tuple[Start, Start]:
    """Return the starts from the moving and from the registered image; all samples of an original share them.

    The time of the file's last change is there to forget what was read before.
    """
    with h5py.File(path, "r") as file:
        moving = torch.from_numpy(file["img"][sample])[None, None].float() / 255
        dvf = torch.from_numpy(file["deltas_xy"][sample]).permute(2, 0, 1)[None].float().contiguous()
    registered = Start(moving, dvf, warp_on_slide(moving, dvf), torch.zeros_like(dvf))
    return Start(moving, dvf, moving, invert(dvf)), registered


# --- atlas ------------------------------------------------------------------------------------------------------------


class AtlasSource:
    """Sections of an atlas at random positions, each sample seen in a synthetic contrast of its own.

    The position is uniform over the planes with tissue on at least a tenth of their area; `image_id` is the plane, so
    that training and validation never share one.

    Args:
        atlas: With annotation, unless `contrast` is None.
        n_sections: The number of sections.
        contrast: Options of `atlalign.data.contrast.draw_contrast`; None keeps the template's own contrast.
        seed: Decides the positions.

    Raises:
        InputError: If the atlas shows no tissue, or its annotation is needed and missing.
    """

    def __init__(
        self, *, atlas: Atlas, n_sections: int = 100, contrast: Mapping[str, Any] | None, seed: int = 0
    ) -> None:
        if n_sections < 1:
            raise InputError(f"source.n_sections: expected at least 1, got {n_sections}")
        self.atlas = atlas
        self.image_shape = atlas.image_shape
        self.contrast = None if contrast is None else dict(contrast)
        if self.contrast is not None:
            draw_contrast(atlas.labels(0)[None], **self.contrast)  # fails before anything is written
        self._positions_um = _draw_positions(atlas, n_sections, seed)

    def __len__(self) -> int:
        return len(self._positions_um)

    def identity(self, original: int) -> Identity:
        """Return the section's position, its plane as image_id, and dataset_id 0."""
        position = self._positions_um[original]
        return Identity(position, int(self.atlas.plane_index(position)), 0)

    def start(self, original: int, generator: torch.Generator) -> Start:
        """Return the section in a contrast drawn for this sample."""
        position = self._positions_um[original]
        template = self.atlas.section(position)[None]
        if self.contrast is None:
            return Start.registered(template)
        labels = self.atlas.labels(position)[None]
        contrast = draw_contrast(labels, **self.contrast, generator=generator)
        return Start.registered(apply_contrast(template, labels, contrast))


def _draw_positions(atlas: Atlas, n_sections: int, seed: int) -> list[int]:
    share = (atlas.template > _TISSUE_INTENSITY).float().mean(dim=(1, 2))
    planes = torch.nonzero(share >= _SMALLEST_TISSUE_SHARE)[:, 0].numpy()
    if not len(planes):
        raise InputError(
            f"atlas '{atlas.name}': expected planes with tissue on {_SMALLEST_TISSUE_SHARE:.0%} of their area, found "
            "none"
        )
    random = np.random.default_rng(seed)
    # Different planes as long as there are enough.
    chosen = random.choice(planes, n_sections, replace=n_sections > len(planes))
    return [int((plane + random.uniform()) * atlas.spacing_um) for plane in sorted(chosen.tolist())]


# --- images of sections -----------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """One image of a list: its file, what its samples keep, and the map from atlas to image pixels, if it is anchored.

    `to_image` (1, 2, 3) takes pixels (x, y) of the working size to pixels of the image brought to that size.
    """

    path: Path
    identity: Identity
    to_image: Tensor | None


class ImagesSource:
    """Images of sections (png, jpg, tif) at known positions: grey, at the working size.

    They need not be registered exactly: a sample's registered image is the section as it is.

    Args:
        path: A list of sections, or a folder that holds exactly one: the JSON file of QuickNII or DeepSlice, or a CSV
            file with columns filename, p (µm), and if wanted image_id and dataset_id. File names are relative to it.
        image_shape: (H, W).
        invert: Turn dark tissue on a bright slide into bright on dark, as atlases have it.
        place: Bring anchored sections onto their atlas plane (in-plane part of the anchoring); otherwise they are only
            resized.
        extent_um: Positions lie in [0, extent_um].

    Raises:
        InputError: If the list or an image cannot be read, or a position lies outside.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_shape: Sequence[int],
        invert: bool = False,
        place: bool = True,
        extent_um: float = schema.ATLAS_EXTENT_UM,
    ) -> None:
        self.image_shape = _image_shape(image_shape)
        self.invert = invert
        self.place = place
        listing = _find_list(Path(path).expanduser())
        self.sections = _read_list(listing, self.image_shape)
        problems = [problem for section in self.sections for problem in _section_problems(section, extent_um)]
        if problems:
            raise InputError(f"{listing}:\n" + "\n".join(f"  - {problem}" for problem in problems))

    def __len__(self) -> int:
        return len(self.sections)

    def identity(self, original: int) -> Identity:
        """Return position and ids of a section."""
        return self.sections[original].identity

    def start(self, original: int, generator: torch.Generator) -> Start:
        """Return the section as the registered image."""
        section = self.sections[original]
        image = _read_section(section.path, section.path.stat().st_mtime_ns, self.image_shape)
        if self.invert:
            image = 1 - image
        if self.place and section.to_image is not None:
            image = warp_on_slide(image, affine_to_dvf(section.to_image, self.image_shape))
        return Start.registered(image)


def warp_on_slide(image: Tensor, dvf: Tensor) -> Tensor:
    """Return `warp(image, dvf)` with what lies beyond the border as bright as the slide, the median of the border."""
    frame = torch.cat([image[..., [0, -1], :].flatten(), image[..., [0, -1]].flatten()])
    slide = frame.median()
    return (warp(image - slide, dvf) + slide).clamp(0, 1)


def _image_shape(image_shape: Sequence[int]) -> tuple[int, int]:
    shape = tuple(int(size) for size in image_shape)
    if len(shape) != 2 or min(shape) < schema.SMALLEST_SIDE_PX:
        raise InputError(
            f"data.image_shape: expected (H, W) of at least {schema.SMALLEST_SIDE_PX} px a side, got {shape}"
        )
    return shape


def _find_list(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in _LIST_READERS)
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise InputError(
            f"source.path: expected one list of sections (.json or .csv) in the folder {path}, found {names}"
        )
    return found[0]


def _read_list(path: Path, image_shape: tuple[int, int]) -> list[Section]:
    reader = _LIST_READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"source.path: expected a .json or .csv list of sections or a folder, got {path}")
    try:
        sections = reader(path, image_shape)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a list of sections: {type(error).__name__} {error}") from error
    if not sections:
        raise InputError(f"{path}: the list names no section")
    return sections


def _read_anchoring(path: Path, image_shape: tuple[int, int]) -> list[Section]:
    """Return the sections of a QuickNII or DeepSlice file, whose anchoring is in 25 µm voxels of the Allen atlas."""
    content = json.loads(path.read_text(encoding="utf-8-sig"))
    target = str(content.get("target", "25um"))
    if "25um" not in target:
        raise InputError(
            f"{path}: expected an anchoring to the Allen atlas at 25um, found the target '{target}'"
        )
    sections = []
    for place, entry in enumerate(content["slices"]):
        anchoring = np.array(entry.get("anchoring", ()), dtype=np.float64)
        if anchoring.shape != (9,) or not np.isfinite(anchoring).all():
            raise InputError(f"{path}: expected nine numbers as anchoring of {entry['filename']}")
        identity = Identity(anchored_position_um(anchoring), int(entry.get("nr", place)), 0)
        size = (int(entry["height"]), int(entry["width"]))
        to_image = anchored_map(anchoring, size, image_shape)
        sections.append(Section(path.parent / entry["filename"], identity, to_image))
    return sections


def anchored_position_um(anchoring: NDArray[np.float64]) -> int:
    """Return the front of the 25 µm atlas plane in which the section's centre lies; may be outside of the atlas.

    Args:
        anchoring: o, u, v as nine numbers: (s, t) in [0, 1]² of the image lies at (x, y, z) = o + s·u + t·v, in plane
            527 − ⌊y⌋.
    """
    origin, along_s, along_t = anchoring.reshape(3, 3)
    depth = (origin + along_s / 2 + along_t / 2)[1]
    return int(_GRID_UM * (_GRID[0] - 1 - np.floor(depth)))


def anchored_map(
    anchoring: NDArray[np.float64], size: tuple[int, int], image_shape: tuple[int, int]
) -> Tensor:
    """Return the map (1, 2, 3) from pixels of the atlas plane to those of the section, both at the working size.

    The section's tilt is left out: points go along AP. With the atlas value at row 319 − ⌊z⌋ and column ⌊x⌋, voxel
    centres lie at halves.

    Args:
        anchoring: o, u, v, as `anchored_position_um` takes them.
        size: (h, w) of the image file, whose pixel centres lie at (k + ½)/w and (k + ½)/h.
        image_shape: The working size (H, W), to which plane and image are resized with aligned corners.

    Raises:
        InputError: If the section is seen edge-on.
    """
    origin, along_s, along_t = anchoring.reshape(3, 3)[:, [0, 2]]
    plane = torch.from_numpy(np.column_stack([along_s, along_t, origin]))  # (s, t, 1) to (x, z)
    if abs(float(torch.linalg.det(plane[:, :2]))) < 1:
        raise InputError("anchoring: expected a coronal section, found one seen edge-on")
    height, width = image_shape
    to_voxel = torch.tensor(  # working pixels to (x, z)
        [[(_GRID[2] - 1) / (width - 1), 0, 0.5], [0, -(_GRID[1] - 1) / (height - 1), _GRID[1] - 0.5]],
        dtype=torch.float64,
    )
    to_pixel = torch.tensor(  # (s, t) to working pixels
        [[size[1], 0, -0.5], [0, size[0], -0.5]], dtype=torch.float64
    ) * torch.tensor([[(width - 1) / (size[1] - 1)], [(height - 1) / (size[0] - 1)]], dtype=torch.float64)
    return _product(_product(to_pixel, invert_affine(plane[None])[0]), to_voxel)[None].float()


def _product(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the affine map (2, 3) that applies `inner` first."""
    last = torch.tensor([[0.0, 0.0, 1.0]], dtype=inner.dtype)
    return outer @ torch.cat([inner, last])


def _read_table(path: Path, image_shape: tuple[int, int]) -> list[Section]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in ("filename", "p") if rows and name not in rows[0]]
    if missing:
        raise InputError(f"{path}: expected the columns filename and p, {' and '.join(missing)} is missing")
    return [
        Section(
            path.parent / row["filename"],
            Identity(int(row["p"]), int(row.get("image_id") or place), int(row.get("dataset_id") or 0)),
            None,
        )
        for place, row in enumerate(rows)
    ]


_LIST_READERS = {".json": _read_anchoring, ".csv": _read_table}


def _section_problems(section: Section, extent_um: float) -> list[str]:
    problems = []
    position = section.identity.position_um
    if not 0 <= position <= extent_um:
        problems.append(
            f"{section.path.name}: expected a position in [0, {extent_um:g}] µm, found {position}"
        )
    try:
        _read_grey(section.path)
    except InputError as error:
        problems.append(str(error))
    return problems


@lru_cache(maxsize=1)
def _read_section(path: Path, mtime_ns: int, shape: tuple[int, int]) -> Tensor:
    return resize_images(_read_grey(path)[None], shape)[None]


def _read_grey(path: Path) -> Tensor:
    """Return an image (H, W) in [0, 1]: 8 bits as they are, other depths divided by the 99.9th percentile above 0.

    Raises:
        InputError: If there is no file, or it is not one image in grey or colour.
    """
    import SimpleITK

    if not path.is_file():
        raise InputError(f"{path.name}: no such file in {path.parent}")
    try:
        pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError as error:
        raise InputError(f"{path.name}: cannot be read as an image") from error
    white = 255.0 if pixels.dtype == np.uint8 else None
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        pixels = pixels[..., :3] @ _LUMA  # opacity is left out
    if pixels.ndim != 2 or min(pixels.shape) < 2:
        raise InputError(f"{path.name}: expected one image in grey or colour, found shape {pixels.shape}")
    return _to_unit_range(torch.from_numpy(pixels.astype(np.float32)), white, path.name)


def _to_unit_range(image: Tensor, white: float | None, name: str) -> Tensor:
    if white is None:
        if not bool(image.isfinite().all()) or not bool((image > 0).any()):
            raise InputError(f"{name}: expected finite intensities, some above 0")
        white = float(np.percentile(image[image > 0].numpy(), 99.9))
    return (image / white).clamp(0, 1)
