"""Test images for locating: real sections as they are, halved or turned, and oblique planes with known positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.planes import Anchoring, Matrix, homogeneous, invert_affine
from atlalign.atlas.section_lists import ListedSection
from atlalign.localization.samples import ViewSampler, _Random
from atlalign.localization.volume import AtlasVolume

_VIEW_PX = 256
_MARGIN_PX = 52
_WHITE = 255
_MIDLINE_MM = 5.7
_SERIES_MM = 4.5  # how far a series of planes reaches from the middle of the atlas


class Known(NamedTuple):
    """An image with a known plane.

    Attributes:
        path: The image.
        matrix: (3, 3), from its pixels to (AP, DV, ML) in mm; None if it has no place in the atlas.
        centre: (x, y), the pixel at which positions are compared.
        side: whole, left or right.
        number: The section's number in its series.
    """

    path: Path
    matrix: Matrix | None
    centre: tuple[float, float]
    side: str = "whole"
    number: int = 0


def pixel_to_mm(anchoring: Anchoring) -> Matrix:
    """Return the map (3, 3) from pixels of an anchored image to mm."""
    height, width = anchoring.size
    share = np.array([[1 / width, 0, 0.5 / width], [0, 1 / height, 0.5 / height], [0, 0, 1.0]])
    return anchoring.share_to_um @ share / 1000


def real(sections: Sequence[ListedSection], folder: Path) -> Iterator[Known]:
    """Yield real sections in shuffled order, under names that contain only their numbers."""
    for listed in shuffled(sections):
        with Image.open(listed.path) as image:
            yield _written(image.convert("RGB"), folder, listed, 0.0)


def turned(sections: Sequence[ListedSection], folder: Path, seed: int = 0) -> Iterator[Known]:
    """Yield real sections turned by random angles."""
    random = np.random.default_rng(seed)
    for listed in shuffled(sections):
        with Image.open(listed.path) as image:
            yield _written(image.convert("RGB"), folder, listed, float(random.uniform(-180, 180)))


def out_of_order(sections: Sequence[ListedSection], folder: Path) -> list[Known]:
    """Return real sections whose names contain each other's numbers."""
    known = list(real(sections, folder))
    found = []
    for one, place in zip(known, np.random.default_rng(1).permutation(len(known)), strict=True):
        path = folder / f"disordered_s{known[place].number:03d}.png"
        one.path.rename(path)
        found.append(one._replace(path=path, number=0))
    return found


def halved(sections: Sequence[ListedSection], folder: Path) -> Iterator[Known]:
    """Yield the left and the right half of real sections, cut at the midline of the anchoring."""
    for listed in shuffled(sections):
        for side in ("left", "right"):
            with Image.open(listed.path) as image:
                pixels = np.asarray(image.convert("RGB")).copy()
            matrix = _matrix(listed, pixels.shape[:2])
            y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
            is_right = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2] > _MIDLINE_MM
            pixels[is_right != (side == "right")] = _WHITE
            path = folder / f"half_{side}_s{listed.identity.image_id:03d}.png"
            Image.fromarray(pixels).save(path)
            seen = np.argwhere(pixels.min(axis=2) < 0.9 * _WHITE).mean(axis=0)
            yield Known(path, matrix, (float(seen[1]), float(seen[0])), side, listed.identity.image_id)


def shuffled(sections: Sequence[ListedSection]) -> list[ListedSection]:
    """Return sections in random order."""
    return [sections[place] for place in np.random.default_rng(0).permutation(len(sections))]


def _matrix(listed: ListedSection, size: tuple[int, ...]) -> Matrix:
    """Return an image's plane as if not mirrored, because mirroring cannot be seen in the image alone."""
    assert listed.anchoring is not None
    matrix = pixel_to_mm(listed.anchoring.on((size[0], size[1])))
    if np.linalg.det(matrix[[2, 1]][:, :2]) < 0:
        matrix[2] = np.array([0, 0, 2 * _MIDLINE_MM]) - matrix[2]
    return matrix


def _written(image: Image.Image, folder: Path, listed: ListedSection, degrees: float) -> Known:
    """Write an image, turned about its centre, and return it with its plane."""
    matrix = _matrix(listed, image.size[::-1])
    ground = _WHITE if np.median(np.asarray(image)[0]) > 127 else 0
    new = image.rotate(degrees, Image.Resampling.BILINEAR, expand=True, fillcolor=(ground,) * 3)
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    old_centre, new_centre = ((np.array(size) - 1) / 2 for size in (image.size, new.size))
    to_old = np.column_stack([turn, old_centre - turn @ new_centre])
    path = folder / f"image_s{listed.identity.image_id:03d}.png"
    new.save(path)
    centre = float(new_centre[0]), float(new_centre[1])
    return Known(path, matrix @ homogeneous(to_old), centre, "whole", listed.identity.image_id)


# --- planes of the atlas ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _PlainSampler(ViewSampler):
    """Views in the contrast of the volume itself."""

    def coloured(
        self, template: Tensor, labels: Tensor, expression: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return template


@dataclass(frozen=True, kw_only=True)
class _ParallelSampler(_PlainSampler):
    """Views of parallel planes, equally far apart, from front to back."""

    def _draw_planes(self, random: "_Random") -> tuple[Tensor, Tensor]:
        one = super()._draw_planes(_Random(1, random.generator))[0]
        n = random.n_views
        flat = one.repeat(n, 1, 1)
        flat[:, :, 2] = self.volume.centre_mm
        flat[:, 0, 2] += torch.linspace(-_SERIES_MM, _SERIES_MM, n)
        return flat, torch.ones(n, dtype=torch.bool)


def parallel(atlas: Atlas, path: Path, n: int, folder: Path, seed: int = 99) -> list[Known]:
    """Return a series of parallel, oblique planes of the Nissl volume, each deformed and damaged by itself."""
    sampler = _ParallelSampler(
        volume=_stained(atlas, path),
        view_px=_VIEW_PX,
        largest_tilt=8.0,
        p_turned=0.0,
        p_half=0.0,
        p_expression=0.0,
    )
    images, planes, _ = sampler(n, torch.Generator().manual_seed(seed))
    return [
        _of_view(image[0].numpy(), plane, folder / f"plane_s{10 * number:03d}.png")._replace(
            number=10 * number
        )
        for number, (image, plane) in enumerate(zip(images, planes.double().numpy(), strict=True), start=1)
    ]


def cut_otherwise(atlas: Atlas, axis: str, n: int, folder: Path, seed: int = 55) -> list[Known]:
    """Return planes of an atlas across another axis: ML (sagittal) or DV (horizontal)."""
    found = _drawn(ViewSampler, AtlasVolume.of(atlas), n, folder, seed, cut_along=(axis,))
    return [known._replace(matrix=None) for known in found]


def no_sections(sections: Sequence[ListedSection], folder: Path) -> list[Known]:
    """Return images that show no coronal section of a brain, or only a piece of one."""
    random = np.random.default_rng(3)
    y, x = np.mgrid[:400, :600]
    ellipse = ((x - 300) / 220) ** 2 + ((y - 200) / 150) ** 2 < 1
    grain = ndimage.gaussian_filter(random.normal(size=ellipse.shape), 6)
    images = {
        "noise": random.integers(0, 255, ellipse.shape),
        "ellipse": np.where(ellipse, 90, _WHITE),
        "grainy ellipse": np.where(ellipse, 120 + 600 * grain, _WHITE),
        "box": np.where((abs(x - 300) < 200) & (abs(y - 200) < 120), 60, _WHITE),
        "stripes": np.where(ellipse, 80 + 60 * (x // 40 % 2), _WHITE),
        "gradient": x * _WHITE / 600,
    }
    images |= {f"part {name}": piece for name, piece in _parts(sections).items()}
    found = []
    for name, pixels in images.items():
        path = folder / f"no {name}.png"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
        found.append(Known(path, None, (0.0, 0.0)))
    return found


def _parts(sections: Sequence[ListedSection]) -> dict[str, NDArray[Any]]:
    """Return the upper half and a quarter of sections: what a scan shows that was cut off."""
    found = {}
    for listed in sections[len(sections) // 3 :: 3]:
        with Image.open(listed.path) as image:
            pixels = np.asarray(image.convert("L"))
        height, width = pixels.shape
        found[f"{listed.identity.image_id} upper half"] = pixels[: height // 2]
        found[f"{listed.identity.image_id} quarter"] = pixels[: height // 2, : width // 2]
    return found


def synthetic(atlas: Atlas, n: int, folder: Path, seed: int = 1234) -> list[Known]:
    """Return oblique planes of an atlas in synthetic contrast, deformed and damaged as in training."""
    return _drawn(ViewSampler, AtlasVolume.of(atlas), n, folder, seed)


def nissl(atlas: Atlas, path: Path, n: int, folder: Path, seed: int = 4321) -> list[Known]:
    """Return oblique planes of the Nissl volume beside an atlas, deformed and damaged as in training."""
    return _drawn(_PlainSampler, _stained(atlas, path), n, folder, seed)


def _stained(atlas: Atlas, path: Path) -> AtlasVolume:
    """Return an atlas with the Nissl volume as its template."""
    volume = AtlasVolume.of(atlas)
    with h5py.File(path) as file:
        stain = np.asarray(file["nissl_100um"], np.float32)
    zoom = np.array(volume.labels.shape) / stain.shape
    fine = ndimage.zoom(stain, zoom, order=1, mode="nearest", grid_mode=True)
    fine = np.clip(fine / np.percentile(fine[fine > 0], 99.9), 0, 1)
    template = torch.from_numpy(fine) * (volume.labels > 0)
    return AtlasVolume(template, volume.labels, volume.voxel_mm, volume.first_mm)


def _drawn(
    kind: type[ViewSampler],
    volume: AtlasVolume,
    n: int,
    folder: Path,
    seed: int,
    cut_along: Sequence[str] = ("AP",),
) -> list[Known]:
    sampler = kind(
        volume=volume,
        view_px=_VIEW_PX,
        cut_along=cut_along,
        largest_tilt=12.0,
        p_half=0.0,
        p_expression=0.0,
    )
    generator = torch.Generator().manual_seed(seed)
    found: list[Known] = []
    while len(found) < n:
        images, planes, _ = sampler(8, generator)
        for image, plane in zip(images, planes.double().numpy(), strict=True):
            found.append(_of_view(image[0].numpy(), plane, folder / f"plane_{len(found):03d}.png"))
    return found[:n]


def _of_view(image: NDArray[np.float32], plane: Matrix, path: Path) -> Known:
    """Write a view with a margin, and return it with its plane."""
    Image.fromarray((np.pad(image, _MARGIN_PX) * 255).round().astype(np.uint8)).save(path)
    middle, scale = (_VIEW_PX - 1) / 2 + _MARGIN_PX, (_VIEW_PX - 1) / 2
    to_view = invert_affine(np.array([[scale, 0, middle], [0, scale, middle]]))
    centre, right, down = plane
    seen = np.argwhere(image > 0.1).mean(axis=0) + _MARGIN_PX
    matrix = np.column_stack([right, down, centre]) @ homogeneous(to_view)
    return Known(path, matrix, (float(seen[1]), float(seen[0])))
