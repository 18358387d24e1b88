"""Sagittal and horizontal sections are registered to planes across their own axis, and flagged with a network."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.planes import IN_PLANE, KINDS, Anchoring
from atlalign.atlas.section_lists import read_list
from atlalign.networks.layers import Registration
from atlalign.registration import Job, Options, Recipe, atlas_recipe, register_batch
from atlalign.registration.network import TrainedNetwork
from atlalign.registration.quality import LIMITS, Limit
from atlalign.registration.references import AtlasReferences
from atlalign.registration.transform import SectionTransform
from atlalign.review.folder import ReviewFolder, result_anchoring

UM = 200.0
SHAPE = (40, 57)
EXTENT_UM = np.array([13_200.0, 8_000.0, 11_400.0])  # AP, DV, ML
POSITION_UM = {"horizontal": 4300.0, "sagittal": 3900.0}


class Still(nn.Module):
    """A network that moves nothing."""

    def forward(self, reference, moving):
        return Registration(moving, torch.zeros(len(moving), 2, *moving.shape[-2:]))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    atlas = phantom_atlas(image_shape=SHAPE, spacing_um=UM)
    atlas = replace(atlas, pixel_um=(UM, UM), origin_um=(UM / 2, UM / 2))  # as if it were its own resolution
    return replace(
        atlas_recipe("phantom", model="none", image_shape=SHAPE), references=AtlasReferences(atlas, SHAPE)
    )


@pytest.fixture(params=["horizontal", "sagittal"])
def cut(request, recipe, tmp_path):
    """Write the image of a plane, a little oblique; return its kind, its anchoring, and the regions that it shows."""
    kind = request.param
    across = KINDS.index(kind)
    x, y = IN_PLANE[across]
    share_to_um = np.zeros((3, 3))
    share_to_um[x, 0], share_to_um[y, 1] = EXTENT_UM[x], EXTENT_UM[y]
    share_to_um[across] = 500, -300, POSITION_UM[kind]
    size = (round(EXTENT_UM[y] / 100), round(EXTENT_UM[x] / 100))
    anchoring = Anchoring.of_points_um(share_to_um, size)
    atlas = recipe.references.atlas
    t, s = np.meshgrid(*((np.arange(n) + 0.5) / n for n in size), indexing="ij")
    points = share_to_um @ np.stack([s, t, np.ones_like(s)]).reshape(3, -1)
    ap, dv, ml = np.floor(points / UM).astype(int)
    regions = atlas.annotation.numpy()[ap, dv, ml].reshape(size)
    tifffile.imwrite(tmp_path / "a.tif", atlas.template.numpy()[ap, dv, ml].reshape(size))
    return kind, anchoring, regions


def register(recipe, folder, anchoring, **options):
    job = Job(folder / "a.tif", anchoring.position_um, anchoring=anchoring, options=options)
    (outcome,) = register_batch([job], recipe, folder / "out", overwrite=True)
    return outcome


def test_each_pixel_lies_in_its_place_and_region(recipe, cut, tmp_path):
    kind, anchoring, regions = cut
    outcome = register(recipe, tmp_path, anchoring)
    assert (outcome.error, outcome.row["flag"]) == ("", "pass")  # nothing but the anchoring was used
    assert outcome.row["position_um"] == pytest.approx(POSITION_UM[kind] + 100)  # at the centre
    transform = SectionTransform.load(tmp_path / "out" / "a")
    pixels = np.random.default_rng(0).uniform(5, 70, (50, 2))
    height, width = regions.shape
    shares = np.column_stack([(pixels + 0.5) / (width, height), np.ones(50)])
    assert transform.to_atlas(pixels) == pytest.approx(shares @ anchoring.share_to_um.T, abs=1)
    points_mm, off_um = transform.plane.from_atlas(transform.to_atlas(pixels))
    assert off_um == pytest.approx(0, abs=1e-6)
    assert points_mm == pytest.approx(transform.to_reference(pixels))
    labels = tifffile.imread(tmp_path / "out" / "a" / "labels.tif")
    assert len(np.unique(regions)) > 8
    assert (labels == regions).mean() > 0.9  # voxels are two pixels wide
    with (tmp_path / "out" / "a" / "regions.csv").open() as file:
        columns = next(csv.reader(file))
    assert ("left_mm2" in columns) == (kind == "horizontal")  # a sagittal section has one side


def test_the_file_for_visualign_and_the_page_take_such_a_section(recipe, cut, tmp_path):
    kind, anchoring, _ = cut
    register(recipe, tmp_path, anchoring)
    (listed,) = read_list(tmp_path / "out" / "visualign.json")
    assert (listed.anchoring.kind, listed.anchoring.vectors) == (kind, pytest.approx(anchoring.vectors))
    folder = ReviewFolder(tmp_path / "out")
    assert result_anchoring(folder.record("a")) is None  # the page moves coronal planes only


def test_with_a_network_it_is_flagged(recipe, cut, tmp_path):
    kind, anchoring, _ = cut
    network = TrainedNetwork(Still(), SHAPE, {"model": "still"})
    limits = dict.fromkeys(LIMITS, Limit(1e9, 1e9))
    lenient = replace(recipe, network=network, options=Options(limits=limits))
    outcome = register(lenient, tmp_path, anchoring)
    assert (outcome.error, outcome.row["flag"], kind in outcome.row["reason"]) == ("", "look", True)
    job = Job(tmp_path / "a.tif", anchoring.position_um, anchoring=anchoring)
    (again,) = register_batch([job], lenient, tmp_path / "out")
    assert (again.is_new, again.row["flag"]) == (False, "look")


def test_only_a_section_with_two_sides_has_halves(recipe, cut, tmp_path):
    kind, anchoring, _ = cut
    outcome = register(recipe, tmp_path, anchoring, hemisphere="left")
    assert ("--hemisphere" in outcome.error) == (kind == "sagittal")


def test_a_position_beyond_the_axis_is_refused(recipe, cut, tmp_path):
    kind, anchoring, _ = cut
    across = KINDS.index(kind)
    shifted = anchoring.share_to_um.copy()
    shifted[across, 2] += EXTENT_UM[across]
    outcome = register(recipe, tmp_path, Anchoring.of_points_um(shifted, anchoring.size))
    assert f"0 to {EXTENT_UM[across]:g}" in outcome.error


def test_a_doubt_before_the_registration_is_kept(recipe, cut, tmp_path):
    _, anchoring, _ = cut
    job = Job(tmp_path / "a.tif", anchoring.position_um, anchoring=anchoring, doubt="two places fit")
    (outcome,) = register_batch([job], recipe, tmp_path / "out")
    assert (outcome.row["flag"], outcome.row["reason"]) == ("look", "two places fit")
    assert json.loads((tmp_path / "out" / "a" / "transform.json").read_text())["doubt"] == "two places fit"
    (outcome,) = register_batch([job._replace(doubt="")], recipe, tmp_path / "out")
    assert (outcome.is_new, outcome.row["flag"]) == (False, "pass")
