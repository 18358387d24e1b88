"""A section's way from its file to its registration: what options do, and how often the network runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from atlalign.networks.layers import Registration
from atlalign.registration import Job, Options, atlas_recipe, register_section
from atlalign.registration.network import TrainedNetwork
from atlalign.registration.references import ImageReference
from atlalign.registration.register import FARTHER_UM, NEARBY_UM

SHAPE = (40, 56)
POSITION_UM = 6000.0


class Counted(nn.Module):
    """Moves nothing, and keeps the images that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, reference, moving):
        self.pairs.append((reference, moving))
        dvf = torch.zeros(1, 2, *SHAPE)
        return Registration(moving, dvf)


@pytest.fixture(scope="module")
def phantom():
    return atlas_recipe("phantom", image_shape=SHAPE)


@pytest.fixture
def recipe(phantom):
    return replace(phantom, network=TrainedNetwork(Counted(), SHAPE, {}))


@pytest.fixture(scope="module")
def job(phantom, tmp_path_factory) -> Job:
    """A section of the phantom that lies upright and fills its image."""
    path: Path = tmp_path_factory.mktemp("section") / "a.tif"
    plane = phantom.references.of(Job(path, POSITION_UM), None)
    grey = (plane.image[0, 0].numpy() * 255).astype(np.uint8)
    tifffile.imwrite(path, np.pad(np.kron(grey, np.ones((3, 3), np.uint8)), 20))
    return Job(path, POSITION_UM)


def test_the_network_runs_once_for_each_place_and_once_back(recipe, job):
    """No pair of images is registered twice: not on the turn that is kept either."""
    register_section(job, replace(recipe, options=Options(place="fit")))
    pairs = recipe.network.module.pairs
    for place, (reference, moving) in enumerate(pairs):
        for other_reference, other_moving in pairs[:place]:
            assert not (torch.equal(reference, other_reference) and torch.equal(moving, other_moving))
    turns, back, planes = 2, 1, len(NEARBY_UM)
    assert len(pairs) in (turns + back + planes, turns + back + planes + len(FARTHER_UM))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_job_may_say_that_it_shows_a_half(recipe, job, side):
    whole = register_section(job, recipe)
    half = register_section(job._replace(options={"hemisphere": side}), recipe)
    middle = SHAPE[1] // 2
    own, other = np.s_[..., : middle - 1], np.s_[..., middle + 1 :]
    own, other = (own, other) if side == "left" else (other, own)
    assert torch.equal(half.reference.image[own], whole.reference.image[own])
    assert whole.reference.image[other].any()
    assert not half.reference.image[other].any()


def test_mirrored_half_of_a_reference_image_is_detected(recipe, job, tmp_path):
    image = tifffile.imread(job.path)
    image[:, : image.shape[1] // 2] = 0
    tifffile.imwrite(tmp_path / "right.tif", image)
    own = ImageReference(recipe.references.of(job, None), None, "own.png")
    options = Options(hemisphere="left", place="fit", turn=0.0)
    found = register_section(Job(tmp_path / "right.tif"), replace(recipe, references=own, options=options))
    assert found.registered.quality.turned == "mirrored"
    assert found.registered.quality.better_turned > 0
