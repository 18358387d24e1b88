"""The training of the locator, as it is configured: a tiny one beats a constant guess."""

import json

import pytest
import torch

from atlalign.models import load_model
from atlalign.networks import PlaneLocatorNet
from atlalign.training.run import train

EASY = [
    "experiment=locator", "atlas=phantom", "atlas.spacing_um=300", "data.image_shape=[40,57]", "data.voxel_um=200",
    "data.view_px=32", "data.batch_size=32", "data.samples_per_epoch=1280", "data.n_val=64", "data.p_turned=0",
    "data.p_half=0", "data.p_expression=0", "data.largest_tilt=5", "model.widths=[8,16,16,16]", "model.hidden=32",
    "optimizer.lr=5e-3", "trainer.max_epochs=3", "trainer.precision=32-true", "trainer.enable_progress_bar=false",
    "callbacks.progress=null", "callbacks.summary=null", "logger=none",
]  # fmt: skip


@pytest.mark.parametrize(("axis", "cut"), [("AP", "coronal"), ("ML", "sagittal")])
def test_a_tiny_training_beats_a_constant_guess(configure, tmp_path, axis, cut):
    train(configure(*EASY, "require_ratio=0.7", f"data.cut_along=[{axis}]", tiny=()))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["val/plane_error"] < 0.7 * metrics["val/identity/plane_error"]
    network = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert isinstance(network, PlaneLocatorNet)
    assert network.extent_mm == pytest.approx((13.2, 8.2, 11.6), rel=1e-2)  # of the atlas as it was loaded
    assert (network.cut, network.atlas, len(network.regions) > 10) == (cut, "phantom", True)
    normal = torch.linalg.cross(*network(torch.rand(4, 1, 32, 32)).planes[:, 1:].unbind(1))
    assert (normal.abs().argmax(1) == ["AP", "DV", "ML"].index(axis)).all()
