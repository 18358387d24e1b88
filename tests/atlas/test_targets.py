"""A file names the atlas that was used, and its anchorings count in the voxels of that atlas."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from atlalign.atlas.atlas import Atlas, phantom_atlas
from atlalign.atlas.planes import Anchoring
from atlalign.atlas.section_lists import read_list
from atlalign.atlas.targets import ALLEN, Target
from atlalign.errors import InputError
from atlalign.registration.jobs import find_jobs
from atlalign.registration.references import AtlasReferences

SHARE_TO_UM = np.array([[300.0, -200.0, 6000.0], [150.0, 7800.0, 400.0], [9000.0, 100.0, 1200.0]])


def volume(shape, um, name="brain", root=0) -> Atlas:
    annotation = torch.full(shape, root, dtype=torch.int32)
    template = torch.zeros(shape, dtype=torch.uint8)
    return Atlas(template, annotation, um, name, 255.0, pixel_um=(um, um), origin_um=(um / 2, um / 2))


@pytest.mark.parametrize("um", [100.0, 200.0])
def test_quicknii_knows_the_allen_atlas_at_any_resolution(um):
    shape = tuple(round(length / um) for length in (13200, 8000, 11400))
    target = Target.of(volume(shape, um, root=997))
    assert target.to_json() == {"target": ALLEN}
    anchoring = Anchoring.of_points_um(SHARE_TO_UM, (30, 40))
    assert target.vectors(anchoring) == pytest.approx(anchoring.vectors)
    # The same frame with other regions, or none, is another atlas.
    assert Target.of(volume(shape, um, root=1)).to_json()["target"] == f"brain_{um:g}um"
    assert Target.of(replace(volume(shape, um), annotation=None)).name == f"brain_{um:g}um"


def test_an_atlas_has_its_own_name_and_resolution():
    assert Target.of(phantom_atlas(image_shape=(40, 57), spacing_um=600)).name == "phantom_600um"
    assert Target.of(volume((4, 5, 6), 39.0, name="whs_rat_39um")).name == "whs_rat_39um"


def test_anchorings_count_in_voxels_of_the_atlas():
    """The point at (s, t) lies in voxel (n − 1 − ⌊y⌋, m − 1 − ⌊z⌋, ⌊x⌋) of the atlas."""
    shape, um = (340, 210, 300), 39.0
    target = Target.of(volume(shape, um))
    o, u, v = target.vectors(Anchoring.of_points_um(SHARE_TO_UM, (30, 40)))
    shares = np.random.default_rng(0).uniform(0, 1, (50, 2))
    x, y, z = (o + shares[:, :1] * u + shares[:, 1:] * v).T
    voxels = np.stack([shape[0] - 1 - np.floor(y), shape[1] - 1 - np.floor(z), np.floor(x)])
    true_um = SHARE_TO_UM @ np.column_stack([shares, np.ones(50)]).T
    assert (voxels == np.floor(true_um / um)).all()


@pytest.fixture
def listed(tmp_path):
    """Write a list that is anchored to another atlas."""
    atlas = phantom_atlas(image_shape=(40, 57), spacing_um=600)
    target = Target.of(atlas)
    anchoring = Anchoring.of_points_um(SHARE_TO_UM, (30, 40))
    vectors = target.vectors(anchoring).ravel().tolist()
    (tmp_path / "a.png").touch()
    entry = {"filename": "a.png", "nr": 1, "width": 40, "height": 30, "anchoring": vectors}
    content = {**target.to_json(), "slices": [entry]}
    (tmp_path / "l.json").write_text(json.dumps(content))
    return atlas, anchoring, tmp_path / "l.json", content


def test_sections_are_placed_in_the_atlas_of_their_list(listed):
    _, anchoring, path, _ = listed
    (section,) = read_list(path)
    assert section.target == "phantom_600um"
    assert section.anchoring.vectors == pytest.approx(anchoring.vectors)


def test_a_list_of_another_atlas_is_not_used_with_this_one(listed):
    atlas, _, path, _ = listed
    (job,) = find_jobs([path])
    references = AtlasReferences(atlas, (40, 57))
    assert references.of(job, None).plane.matrix[0, 2] == pytest.approx(6000, abs=500)
    other = AtlasReferences(replace(atlas, name="kim"), (40, 57))
    with pytest.raises(InputError, match=r"kim_600um.*phantom_600um"):
        other.of(job, None)


@pytest.mark.parametrize(
    ("voxels", "key"),
    [
        ({"shape": [1, 2]}, "shape"),
        ({"shape": [1, 2, 3], "size_um": [1, 2, "x"]}, "size_um"),
        ({"shape": [1, 2, 3], "size_um": [1, 2, 0], "corner_um": [0, 0, 0]}, "size_um"),
        (None, "shape"),
    ],
)
def test_invalid_voxels_are_reported(listed, voxels, key):
    _, _, path, content = listed
    path.write_text(json.dumps({**content, "voxels": voxels}))
    with pytest.raises(InputError, match=rf"l\.json: voxels.*{key}"):
        read_list(path)
