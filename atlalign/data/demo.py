"""Demo data: atlas sections under known deformations, written once as a valid h5 data set."""

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from atlalign.atlas.atlas import Atlas
from atlalign.console import track
from atlalign.data import schema
from atlalign.data.datamodule import RegistrationDataModule
from atlalign.errors import InputError, check_numbers, check_size
from atlalign.geometry import warp
from atlalign.geometry.random_fields import invertible_field
from atlalign.io.files import written_whole

_SMALLEST_TISSUE_SHARE = 0.1
# The sizes are slightly larger than promised, because float16 rounds.
_FIELDS = {"mean_fraction": 0.0202, "largest_fraction": 0.0606, "spacing": 0.25}
_TISSUE_INTENSITY = 25
_BYTES_A_PIXEL = 16  # of a field and its inverse


class DemoDataModule(RegistrationDataModule):
    """A data module for demo data, which it writes on first use.

    Each sample is an atlas section R and a field u with the inverse w. The moving image is R(p + w(p)), so the moving
    image warped by u is R again. The mean displacement of a field is at least 2 % of the width, and the largest at
    least 6 %. All samples of a section share its image_id, so that no section is used for both training and validation.

    Args:
        folder: Folder of the h5 file. The file's name depends on the atlas, its size and the arguments below.
        n_sections: Number of atlas sections, all from different planes.
        fields_per_section: Number of deformations per section.
        deformation: "smooth" (diffeomorphic random fields), "affine", or "affine_smooth" (both; each reaches these
            sizes).
        atlas: The atlas at the working size.
        data_seed: Seed of sections and fields.
        others: The arguments of `RegistrationDataModule`.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        atlas: Atlas,
        n_sections: int = 60,
        fields_per_section: int = 6,
        deformation: Literal["smooth", "affine", "affine_smooth"] = "smooth",
        data_seed: int = 0,
        **others: Any,
    ) -> None:
        invertible_field(deformation, **_FIELDS)  # which checks the name
        least = {"data.n_sections": 1, "data.fields_per_section": 1, "data.data_seed": 0}
        check_numbers(dict(zip(least, (n_sections, fields_per_section, data_seed), strict=True)), least)
        check_size("data.fields_per_section", (fields_per_section, *atlas.image_shape), _BYTES_A_PIXEL)
        self.n_sections = n_sections
        self.fields_per_section = fields_per_section
        self.deformation = deformation
        self.data_seed = data_seed
        name = _fingerprint(atlas, n_sections, fields_per_section, deformation, data_seed)
        super().__init__(Path(folder).expanduser() / f"demo-{name}.h5", atlas=atlas, **others)

    def prepare_data(self) -> None:
        """Write the file if it does not exist, and check it."""
        if not self.path.exists():
            write_demo(
                self.path,
                self.atlas,
                n_sections=self.n_sections,
                fields_per_section=self.fields_per_section,
                deformation=self.deformation,
                seed=self.data_seed,
            )
        super().prepare_data()


def write_demo(
    path: Path,
    atlas: Atlas,
    *,
    n_sections: int,
    fields_per_section: int,
    deformation: str = "smooth",
    seed: int = 0,
) -> None:
    """Write the data set described by `DemoDataModule`; the file appears under its name when it is complete.

    Raises:
        InputError: If the atlas has fewer planes with tissue than `n_sections`.
    """
    planes = _draw_planes(atlas, n_sections, seed)
    generator = torch.Generator().manual_seed(seed)
    field = invertible_field(deformation, **_FIELDS)
    provenance = {
        "atlas": atlas.name,
        "extent_um": atlas.extent_um,
        "deformation": deformation,
        "seed": seed,
    }
    n_samples = n_sections * fields_per_section
    # Runs of a sweep may start together: each writes its own file, with the same content.
    content = BytesIO()  # HDF5 fails badly on a full disk
    with schema.create(content, n_samples, atlas.image_shape, **provenance) as file:
        for number, plane in enumerate(track(planes, description="writing demo data")):
            section = atlas.template[plane].float()[None, None] / 255
            images = section.expand(fields_per_section, -1, -1, -1)
            pair = field.pair(field.draw(images, generator=generator), atlas.image_shape)
            samples = slice(number * fields_per_section, (number + 1) * fields_per_section)
            moving = warp(images, pair.inverse)
            file["img"][samples] = (moving[:, 0] * 255).round().to(torch.uint8).numpy()
            file["deltas_xy"][samples] = _channels_last(pair.dvf)
            file["inv_deltas_xy"][samples] = _channels_last(pair.inverse)
            file["p"][samples] = int(atlas.first_um(plane))
            file["image_id"][samples] = plane
            file["dataset_id"][samples] = 0
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content.getbuffer())


def tissue_planes(atlas: Atlas) -> np.ndarray:
    """Return the planes of the atlas that show tissue on at least a tenth of their area."""
    bright = torch.stack([(plane > _TISSUE_INTENSITY).float().mean() for plane in atlas.template])
    return torch.nonzero(bright >= _SMALLEST_TISSUE_SHARE)[:, 0].numpy()


def _draw_planes(atlas: Atlas, n_sections: int, seed: int) -> list[int]:
    candidates = tissue_planes(atlas)
    if len(candidates) < n_sections:
        raise InputError(
            f"data.n_sections: expected at most {len(candidates)}, the number of planes of atlas '{atlas.name}' with "
            f"tissue on {_SMALLEST_TISSUE_SHARE:.0%} of their area, got {n_sections}"
        )
    return sorted(np.random.default_rng(seed).choice(candidates, n_sections, replace=False).tolist())


def _channels_last(dvf: Tensor) -> np.ndarray:
    return dvf.permute(0, 2, 3, 1).half().numpy()


def _fingerprint(atlas: Atlas, *arguments: object) -> str:
    middle = atlas.template[len(atlas.template) // 2].numpy().tobytes()
    described = json.dumps([atlas.name, list(atlas.template.shape), atlas.spacing_um, *arguments])
    return hashlib.sha256(described.encode() + middle).hexdigest()[:12]
