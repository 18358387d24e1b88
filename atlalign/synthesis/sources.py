"""The sources of generated samples: an annotated data set, an atlas alone, or images of sections at known positions."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
import torch
from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import GRID, GRID_UM, Anchoring, homogeneous
from atlalign.atlas.section_lists import Identity, ListedSection, find_list, read_list
from atlalign.data import schema
from atlalign.errors import (
    OF_NETWORK,
    InputError,
    check_finite_numbers,
    check_probabilities,
    check_size,
    checked_shape,
)
from atlalign.geometry import affine_to_dvf, invert, stays_inside, warp
from atlalign.io.ground import find_ground
from atlalign.io.images import read_image, resize_images, shrink_to_grey
from atlalign.io.intensity import tissue_of, to_unit_range
from atlalign.synthesis.contrast import apply_contrast, draw_contrast
from atlalign.synthesis.damage import draw_damage, missing

_log = logging.getLogger(__name__)

_SMALLEST_TISSUE_SHARE = 0.1
_TISSUE_INTENSITY = 25
_BYTES_A_SECTION = 512  # per entry in the lists of positions


class Start(NamedTuple):
    """The images and fields that a sample starts from; its registered image is `moving(q + dvf(q))`.

    Attributes:
        moving: (1, 1, H, W) in [0, 1].
        dvf: (1, 2, H, W) in pixels.
        drawn_on: (1, 1, H, W), the image for which the new deformation is drawn.
        before: (1, 2, H, W), the field from `drawn_on` to the registered image; the new field is composed with it.
    """

    moving: Tensor
    dvf: Tensor
    drawn_on: Tensor
    before: Tensor

    @classmethod
    def registered(cls, image: Tensor) -> "Start":
        """Return the start from a registered image (1, 1, H, W)."""
        nowhere = image.new_zeros(1, 2, *image.shape[-2:])
        return cls(image, nowhere, image, nowhere)


class Source(Protocol):
    """Original sections from which samples are made; each process receives a pickled copy of the source."""

    image_shape: tuple[int, int]
    extent_um: float
    """Positions lie in [0, extent_um]."""
    files: list[Path]
    """Files that are read in addition to those that the configuration names."""
    origin: str
    """The name of the atlas whose planes the originals are; empty if unknown."""

    def __len__(self) -> int:
        """Return the number of originals."""
        ...

    def identity(self, original: int) -> Identity:
        """Return the position and ids that each sample of this original keeps."""
        ...

    def start(self, original: int, generator: torch.Generator) -> Start:
        """Return the start of one sample of this original; all randomness comes from `generator`."""
        ...


# --- annotated --------------------------------------------------------------------------------------------------------


class AnnotatedSource:
    """The samples of an h5 data set, each deformed further.

    Args:
        path: An h5 file of the form that `atlalign.data.schema` describes.
        image_shape: (H, W) of the file.
        p_reg: Probability that a sample starts from the registered image instead of the moving one.
        extent_um: Positions lie in [0, extent_um]; None for the extent of the file's atlas.

    Raises:
        InputError: If the file is invalid, or its images have another size.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        image_shape: Sequence[int],
        p_reg: float = 0.5,
        extent_um: float | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.files = [self.path]
        self.image_shape = _image_shape(image_shape)
        check_probabilities("source", p_reg=p_reg)
        self.p_reg = p_reg
        found = schema.check_once(self.path, extent_um)
        self.origin = schema.atlas_of(self.path)
        self.extent_um = schema.extent_of(self.path) if extent_um is None else extent_um
        if found.image_shape != self.image_shape:
            raise InputError(
                f"source.path: expected images of data.image_shape={self.image_shape}, found {found.image_shape} in "
                f"{self.path}"
            )
        with h5py.File(self.path, "r") as file:
            columns = [file[name][:].tolist() for name in ("p", "image_id", "dataset_id")]
        self._identities = [Identity(*values) for values in zip(*columns, strict=True)]

    def __len__(self) -> int:
        return len(self._identities)

    def identity(self, original: int) -> Identity:
        """Return the position and ids of a sample in the file."""
        return self._identities[original]

    def start(self, original: int, generator: torch.Generator) -> Start:
        """Return the moving image with its field, to be deformed further either as it is or after registration."""
        as_it_is, as_registered = _read_annotated(self.path, self.path.stat().st_mtime_ns, original)
        from_registered = float(torch.rand((), generator=generator)) < self.p_reg
        return as_registered if from_registered else as_it_is


@lru_cache(maxsize=1)
def _read_annotated(path: Path, mtime_ns: int, sample: int) -> tuple[Start, Start]:
    """Return the starts from the moving and from the registered image; all samples of an original share them.

    The time of the file's last change is part of the cache's key, so that a changed file is read again.
    """
    with h5py.File(path, "r") as file:
        moving = torch.from_numpy(file["img"][sample])[None, None].float() / 255
        dvf = torch.from_numpy(file["deltas_xy"][sample]).permute(2, 0, 1)[None].float().contiguous()
    registered = Start(moving, dvf, warp_on_slide(moving, dvf), torch.zeros_like(dvf))
    return Start(moving, dvf, moving, invert(dvf)), registered


# --- atlas ------------------------------------------------------------------------------------------------------------


class AtlasSource:
    """Sections of an atlas at random positions; each sample has its own synthetic contrast.

    The position is uniform over the planes with tissue on at least a tenth of their area. `image_id` is the plane, so
    training and validation never share one.

    Args:
        atlas: The atlas, with annotation unless `contrast` is None.
        n_sections: Number of sections.
        contrast: Options of `atlalign.synthesis.contrast.draw_contrast`; None keeps the template's contrast.
        damage: Options of `atlalign.synthesis.damage.draw_damage`; None keeps sections intact.
        position_error_um: Largest distance between recorded and true position of a section, uniform in both directions,
            to simulate inaccurate anchorings.
        seed: Seed of the positions.

    Raises:
        InputError: If the atlas shows no tissue, lacks an annotation that is needed, or an option is out of range.
    """

    def __init__(
        self,
        *,
        atlas: Atlas,
        n_sections: int = 100,
        contrast: Mapping[str, Any] | None,
        damage: Mapping[str, Any] | None = None,
        position_error_um: float = 0.0,
        seed: int = 0,
    ) -> None:
        given = {"n_sections": n_sections, "position_error_um": position_error_um, "seed": seed}
        least = {"source.n_sections": 1, "source.position_error_um": 0.0, "source.seed": 0}
        check_finite_numbers({f"source.{name}": value for name, value in given.items()}, least)
        check_size("source.n_sections", [n_sections], _BYTES_A_SECTION)
        self.files: list[Path] = []
        self.origin = atlas.name
        self.atlas = atlas
        self.extent_um = atlas.extent_um
        self.image_shape = atlas.image_shape
        self.contrast = None if contrast is None else dict(contrast)
        if self.contrast is not None:
            draw_contrast(atlas.labels(0)[None], **self.contrast)  # fails before anything is written
        self.damage = dict(damage or {})
        draw_damage(atlas.section(0)[None], **self.damage)
        self._positions_um = _draw_positions(atlas, n_sections, seed)
        errors_um = np.random.default_rng((seed, 1)).uniform(-1, 1, n_sections) * position_error_um
        self._found_um = [
            int(np.clip(position + error, 0, atlas.extent_um))
            for position, error in zip(self._positions_um, errors_um, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._positions_um)

    def identity(self, original: int) -> Identity:
        """Return the section's position with its error, its true plane as image_id, and dataset_id 0."""
        plane = int(self.atlas.plane_index(self._positions_um[original]))
        return Identity(self._found_um[original], plane, 0)

    def start(self, original: int, generator: torch.Generator) -> Start:
        """Return the section with a contrast and damage that are drawn for this sample."""
        position = self._positions_um[original]
        template = self.atlas.section(position)[None]
        lost = self._lost(template, generator)
        if self.contrast is None:
            return Start.registered(template.masked_fill(lost, 0))
        labels = self.atlas.labels(position)[None]
        contrast = draw_contrast(labels, **self.contrast, generator=generator)
        return Start.registered(apply_contrast(template, labels.masked_fill(lost, 0), contrast))

    def _lost(self, section: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mask (1, 1, H, W) of the lost parts of the section."""
        # Damage has its own random numbers, so that all other draws stay the same with and without it.
        own = torch.Generator().manual_seed(generator.initial_seed() ^ 1)
        return missing(draw_damage(section, **self.damage, generator=own), self.image_shape)


def _draw_positions(atlas: Atlas, n_sections: int, seed: int) -> list[int]:
    share = (atlas.template > _TISSUE_INTENSITY).float().mean(dim=(1, 2))
    planes = torch.nonzero(share >= _SMALLEST_TISSUE_SHARE)[:, 0].numpy()
    if not len(planes):
        raise InputError(
            f"atlas '{atlas.name}': expected planes with tissue on {_SMALLEST_TISSUE_SHARE:.0%} of their area, found "
            "none"
        )
    random = np.random.default_rng(seed)
    # The planes differ as long as there are enough.
    chosen = random.choice(planes, n_sections, replace=n_sections > len(planes))
    return [int((plane + random.uniform()) * atlas.spacing_um) for plane in sorted(chosen.tolist())]


# --- images of sections -----------------------------------------------------------------------------------------------


class ImagesSource:
    """Images of sections (png, jpg, tif) at known positions, converted to grey at the working size.

    The registered image of a sample is the section itself, or the section moved onto its plane by its anchoring.
    Samples take this image as the truth, so errors of anchorings are learned; a warning says so.

    Args:
        path: A list of sections, or a folder with one: a file of QuickNII, DeepSlice or WebAlign, or a table with the
            columns filename, p (µm), and optionally image_id and dataset_id. File names are relative to the list.
        image_shape: (H, W).
        invert: Convert dark tissue on a bright slide to bright tissue on a background of 0, as `atlalign register`
            does.
        place: Move anchored sections onto their atlas plane (in-plane part of the anchoring); otherwise only resize
            them.
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
        self.extent_um = extent_um
        listing = find_list(Path(path).expanduser())
        self.sections = read_list(listing)
        self.origin = ""
        self.files = [listing, *(section.path for section in self.sections)]
        problems = [problem for section in self.sections for problem in self._problems(section)]
        if problems:
            raise InputError(f"{listing}:\n" + "\n".join(f"  - {problem}" for problem in problems))
        if any(section.anchoring is not None for section in self.sections):
            _log.warning(
                "%s: the anchorings are taken as the truth, although they are often off by some hundred µm: a "
                "network that trains on these samples learns not to correct these errors",
                listing,
            )

    def __len__(self) -> int:
        return len(self.sections)

    def identity(self, original: int) -> Identity:
        """Return the position and ids of a section."""
        return self.sections[original].identity

    def start(self, original: int, generator: torch.Generator) -> Start:
        """Return the section as the registered image."""
        section = self.sections[original]
        mtime_ns = section.path.stat().st_mtime_ns
        image, size = _read_section(section.path, mtime_ns, self.image_shape, invert=self.invert)
        if self.place and section.anchoring is not None:
            to_image = _working_map(section.anchoring.on(size), self.image_shape)
            image = warp_on_slide(image, affine_to_dvf(to_image, self.image_shape))
        return Start.registered(image)

    def _problems(self, section: ListedSection) -> list[str]:
        if section.missing:
            return [f"{section.path.name}: {section.missing}"]
        problems = [section.problem] if section.problem else []
        if section.anchoring is not None and section.anchoring.kind != "coronal":
            problems.append(f"anchoring: expected a coronal section, found a {section.anchoring.kind} one")
        position = section.identity.position_um
        if not section.problem and not 0 <= position <= self.extent_um:
            problems.append(f"expected a position in [0, {self.extent_um:g}] µm, found {position}")
        try:
            grey = _read_grey(section.path, invert=self.invert)
        except InputError as error:
            return [*(f"{section.path.name}: {problem}" for problem in problems), str(error)]
        if self.place and section.anchoring is not None:
            size = int(grey.shape[0]), int(grey.shape[1])
            problems += _placing_problems(section.anchoring, size, self.image_shape)
        return [f"{section.path.name}: {problem}" for problem in problems]


def warp_on_slide(image: Tensor, dvf: Tensor) -> Tensor:
    """Return `warp(image, dvf)` of an image (1, 1, H, W); beyond the border it has the background's brightness."""
    slide = find_ground(image[0, 0]).level
    return (warp(image - slide, dvf) + slide).clamp(0, 1)


def _image_shape(image_shape: Sequence[int]) -> tuple[int, int]:
    return checked_shape("data.image_shape", image_shape, schema.SMALLEST_SIDE_PX, bytes_a_pixel=OF_NETWORK)


def _working_map(anchoring: Anchoring, image_shape: tuple[int, int]) -> Tensor:
    """Return the map (1, 2, 3) from pixels of the plane to those of the image, both resized to the working size."""
    height, width = image_shape
    voxels = np.diag([(GRID[2] - 1) / (width - 1), (GRID[1] - 1) / (height - 1), 1.0])
    pixels = np.diag([(width - 1) / (anchoring.size[1] - 1), (height - 1) / (anchoring.size[0] - 1)])
    to_um = np.array([[GRID_UM, 0, GRID_UM / 2], [0, GRID_UM, GRID_UM / 2]])
    return torch.from_numpy(pixels @ anchoring.um_to_pixel() @ homogeneous(to_um @ voxels))[None].float()


def _placing_problems(anchoring: Anchoring, size: tuple[int, int], image_shape: tuple[int, int]) -> list[str]:
    """Return the reasons why an image of `size` (h, w) cannot be moved onto its plane."""
    try:
        to_image = _working_map(anchoring.on(size), image_shape)
    except InputError as error:
        return [str(error)]
    if not stays_inside(affine_to_dvf(to_image, image_shape)).any():
        return [
            "anchoring: expected an image that shows a part of the atlas, found one that lies outside of it"
        ]
    return []


@lru_cache(maxsize=1)
def _read_section(
    path: Path, mtime_ns: int, shape: tuple[int, int], *, invert: bool
) -> tuple[Tensor, tuple[int, int]]:
    """Return the section (1, 1, H, W) at the working size, and its size (h, w) in the file."""
    grey = _read_grey(path, invert=invert)
    return resize_images(grey[None], shape)[None], (int(grey.shape[0]), int(grey.shape[1]))


def _read_grey(path: Path, *, invert: bool) -> Tensor:
    """Return a section (h, w) in [0, 1]; an 8-bit image that is not inverted keeps its range."""
    pixels = read_image(path).pixels
    if invert:
        return tissue_of(pixels, background="bright", name=path.name).image
    grey = shrink_to_grey(pixels)
    return grey / 255 if pixels.dtype == np.uint8 else to_unit_range(grey, path.name)
