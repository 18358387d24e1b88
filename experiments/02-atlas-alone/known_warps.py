"""How far two registrations of one section disagree when the second has been warped in a known way.

python known_warps.py MODEL ATLAS.h5 SECTIONS.json: mean disagreement over tissue in µm, for every third section.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from atlalign.data.atlas import file_atlas
from atlalign.data.images import read_image
from atlalign.data.sections import read_list
from atlalign.geometry import compose, smooth_field, warp
from atlalign.models import load_model, read_origin
from atlalign.registration.batch import AtlasReferences, Job
from atlalign.registration.placement import place, placed_image, read_section
from atlalign.registration.refine import refine


def main(model: str, atlas_path: str, sections: str) -> None:
    network, shape = load_model(model), read_origin(model).image_shape
    assert shape is not None
    references = AtlasReferences(file_atlas(atlas_path), shape)
    found: dict[str, list[float]] = {}
    for number, listed in enumerate(read_list(Path(sections))[1::3]):
        reference = references(Job(listed.path, number, listed.anchoring.position_um, listed.anchoring))
        section = read_section(read_image(listed.path), shape)
        moving = placed_image(section, place(section, reference, anchoring=listed.anchoring), shape)
        # 10 px in the mean at 320×456.
        known = smooth_field(
            1, shape, mean_fraction=10 / 456, largest_fraction=30 / 456, spacing=0.25,
            generator=torch.Generator().manual_seed(number),
        ).dvf  # fmt: skip
        plain = estimates(network, reference.image, moving)
        warped = estimates(network, reference.image, warp(moving, known))
        pixel_um = torch.tensor(reference.grid.pixel_um).view(1, 2, 1, 1)
        for method, dvf in plain.items():
            difference = (compose(known, warped[method]) - dvf) * pixel_um
            distance = difference.square().sum(1).sqrt()[0][reference.tissue].mean()
            found.setdefault(method, []).append(float(distance))
    for method, distances in found.items():
        print(f"{method:10} {sum(distances) / len(distances):6.1f} µm", [round(d) for d in distances])


def estimates(network: nn.Module, reference: Tensor, moving: Tensor) -> dict[str, Tensor]:
    """Return the field of each method."""
    with torch.no_grad():
        dvf = network(reference, moving).dvf
    return {
        "nothing": torch.zeros_like(dvf),
        "network": dvf,
        "refined": refine(reference, moving, dvf, steps=50),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
