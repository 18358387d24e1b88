"""Networks, penalties and samples for real sections, each as it is configured: a tiny training beats doing nothing."""

from functools import partial

import pytest
import torch

from atlalign.models import load_model, save_model
from atlalign.networks import CorrelationPyramidNet
from atlalign.training.run import train
from tests.training.conftest import metrics_of

EASY = [
    "data=online", "data.image_shape=[32,48]", "data.samples_per_epoch=128", "data.n_val=24", "data.batch_size=4",
    "data.contrast=null", "data.spacing=0.5", "data.mean_fraction=[0.03,0.05]", "data.largest_fraction=[0.06,0.15]",
    "data.position_range_um=[4000,9000]", "atlas.spacing_um=300", "trainer=cpu", "trainer.max_epochs=7",
    "trainer.enable_progress_bar=false", "callbacks.progress=null", "callbacks.summary=null",
    "callbacks.figure=null", "logger=none", "loss=vector_distance", "optimizer=adam", "optimizer.lr=5e-3",
    "scheduler=cosine",
]  # fmt: skip
REAL = [
    "data.position_error_um=300", "data.damage.p_holes=0.3", "data.damage.p_tears=0.3", "data.damage.p_cut=0.3",
    "data.damage.p_half=0.3", "data.p_half_reference=0.5", "data.p_mirrored=0.5",
]  # fmt: skip
LIGHT = ["loss.weights.regularity=0.1"]


def narrow(node: str) -> list[str]:
    widths = {"start": [8], "downsample": [16, 16], "middle": [16], "upsample": [16], "end": [16]}
    return [f"{node}.{part}_filters={filters}" for part, filters in widths.items()]


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("options", "folds_at_most"),
    [
        slow(["model=local_velocity", *narrow("model"), "loss.regularity=gradicon"], 0),
        slow(["model=coarse_to_fine", *narrow("model.net"), "model.reductions=[2,1]"], 0),
        (["model=correlation_pyramid", "model.encoder_filters=[8,16,16]", "model.radii=[2,2,2]"], 0),
        slow(["model=local", *narrow("model"), "loss.regularity='jacobian&grad'", *LIGHT], 1e-3),
    ],
    ids=["velocity, GradICON", "coarse to fine", "correlation pyramid", "folds and roughness"],
)
def test_a_tiny_training_beats_doing_nothing(options, folds_at_most, configure, tmp_path):
    train(configure(*EASY, *REAL, *options, tiny=()))
    metrics = metrics_of(tmp_path / "run")
    assert metrics["val/vector_distance"] < 0.85 * metrics["val/identity/vector_distance"]
    assert metrics["val/folding_fraction"] <= folds_at_most
    assert ("val/loss/regularity" in metrics) == any("regularity" in option for option in options)
    load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")


def test_a_merged_network_takes_a_coarse_to_fine_one(configure, tmp_path):
    options = [
        "model=merged", "model@model.local=coarse_to_fine", *narrow("model.local.net"),
        "model.global_.filters=[3,3]", "model.global_.dense_layers=[4]", "trainer.max_epochs=1",
        "data.samples_per_epoch=8",
    ]  # fmt: skip
    train(configure(*EASY, *options, tiny=()))
    assert metrics_of(tmp_path / "run")["steps"] == 2


def test_a_last_pass_corrects_the_errors_of_a_coarse_network(configure, tmp_path):
    """The coarse network leaves everything to it, and keeps its weights."""
    for name in ("coarse", "fine"):
        network = CorrelationPyramidNet([8, 16], [2, 2])
        save_model(network, tmp_path / f"{name}.pt")
    options = ["model=fine_pass", "freeze=[coarse,fine.encoder]", "trainer.max_epochs=3"]
    options += [f"model.{name}.path={tmp_path}/{name}.pt" for name in ("coarse", "fine")]
    train(configure(*EASY, *REAL, *options, tiny=()))
    metrics = metrics_of(tmp_path / "run")
    assert metrics["val/vector_distance"] < 0.9 * metrics["val/identity/vector_distance"]
    assert metrics["val/folding_fraction"] == 0
    trained = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    for part, name in (("coarse", "coarse"), ("fine.encoder", "fine")):
        before = load_model(tmp_path / f"{name}.pt").state_dict()
        for key, weight in trained.get_submodule(part).state_dict().items():
            assert torch.equal(weight, before[key if part == "coarse" else f"encoder.{key}"])
