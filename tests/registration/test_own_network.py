"""A network from outside the package registers sections, where a person allows its class."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from atlalign.atlas.atlas import phantom_atlas
from atlalign.cli import main
from atlalign.errors import InputError
from atlalign.geometry import warp
from atlalign.models import ModelOrigin, save_model
from atlalign.networks import FinePassNet, Registration
from atlalign.registration.network import TrainedNetwork

NAME = f"{__name__}.Still"
SHAPE = (64, 96)


class Still(nn.Module):
    """Moves everything by the same distance."""

    def __init__(self, px: float = 0.0) -> None:
        super().__init__()
        self.px = nn.Parameter(torch.tensor(px))
        self.hyperparameters = {"px": px}

    def forward(self, reference: torch.Tensor, moving: torch.Tensor) -> Registration:
        dvf = self.px.expand(len(moving), 2, *moving.shape[-2:])
        return Registration(registered=warp(moving, dvf), dvf=dvf)


@pytest.fixture
def model(tmp_path) -> Path:
    save_model(Still(), tmp_path / "still.pt", origin=ModelOrigin(image_shape=SHAPE))
    return tmp_path / "still.pt"


def test_it_is_built_only_where_it_is_allowed(model):
    with pytest.raises(InputError, match="allow"):
        TrainedNetwork.load(model)
    assert isinstance(TrainedNetwork.load(model, allow=[NAME]).module, Still)


def test_it_registers_sections(model, tmp_path):
    section = phantom_atlas(image_shape=(160, 228), spacing_um=100).section(6000)[0]
    Image.fromarray((255 * section).byte().numpy()).save(tmp_path / "s.png")
    asked = ["register", str(tmp_path / "s.png"), "--position", "6000", "--atlas", "phantom", "--turn", "0"]
    asked += ["--model", str(model), "--out", str(tmp_path / "out")]
    assert main(asked) == 1
    assert main([*asked, "--allow", NAME]) == 0
    assert (tmp_path / "out" / "s" / "transform.json").is_file()


def test_a_last_pass_is_kept_for_the_final_placement(tmp_path):
    """Everything else happens at the size of the coarse network."""
    network = FinePassNet(Still(), Still(), reduction=2)
    save_model(network, tmp_path / "fine.pt", origin=ModelOrigin(image_shape=SHAPE))
    loaded = TrainedNetwork.load(tmp_path / "fine.pt", allow=[NAME])
    assert loaded.image_shape == (32, 48)
    assert isinstance(loaded.module, Still)
    assert loaded.last_pass is not None
    assert loaded.last_pass.coarse is loaded.module
    assert loaded.origin["image_shape"] == list(SHAPE)
