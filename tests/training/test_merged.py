"""The merged network in training: from two checkpoints, from scratch, with a part that stays, and going on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from atlalign.errors import InputError
from atlalign.models import load_model, merge_global_local, read_origin
from atlalign.networks import MergedNet
from atlalign.training.run import train

CONF = Path(__file__).parents[2] / "conf"
SHAPE = (32, 48)
TINY = [
    "data.image_shape=[32,48]", "data.n_sections=6", "data.fields_per_section=2", "data.batch_size=2",
    "atlas.spacing_um=600", "trainer=cpu", "trainer.max_epochs=1", "trainer.enable_progress_bar=false",
    "callbacks.progress=null", "callbacks.summary=null", "callbacks.figure=null", "logger=none",
]  # fmt: skip
GLOBAL = ["filters=[3,3]", "dense_layers=[4]"]
LOCAL = ["start_filters=[4]", "downsample_filters=[4,4]", "middle_filters=[4]",
         "upsample_filters=[4,4]", "end_filters=[4]"]  # fmt: skip
Configure = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def configure(tmp_path_factory) -> Configure:
    data = tmp_path_factory.mktemp("demo_data")

    def configure(run_dir: Path, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", [*TINY, f"run_dir={run_dir}", f"data.folder={data}", *overrides])

    return configure


@pytest.fixture(scope="module")
def checkpoints(configure, tmp_path_factory) -> tuple[Path, Path]:
    """The checkpoints of a global and of a local network with inverse, each trained for an epoch."""
    folder = tmp_path_factory.mktemp("trained")
    for name, options in (("global", GLOBAL), ("local", LOCAL)):
        model = [f"model={name}", *(f"model.{option}" for option in options)]
        train(configure(folder / name, *model, "optimizer.lr=0.01"))
    return tuple(folder / name / "checkpoints" / "last.ckpt" for name in ("global", "local"))


@pytest.fixture
def files(checkpoints, tmp_path) -> list[Path]:
    """Copies of both checkpoints, to be removed."""
    copies = [tmp_path / "G.ckpt", tmp_path / "L.ckpt"]
    for copy, checkpoint in zip(copies, checkpoints, strict=True):
        copy.write_bytes(checkpoint.read_bytes())
    return copies


def pair_of(files: list[Path]) -> list[str]:
    return ["model=merged", f"model.global_={files[0]}", f"model.local={files[1]}"]


def outputs(network: torch.nn.Module) -> list[Tensor]:
    images = torch.rand(2, 2, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [output for output in network(*images) if output is not None]


def changed(network: MergedNet, start: MergedNet) -> set[str]:
    """Return the parts of which any weight differs."""
    weights = start.state_dict()
    return {
        name.partition(".")[0]
        for name, w in network.state_dict().items()
        if not torch.equal(w, weights[name])
    }


def step_of(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["global_step"])


def test_tuning_starts_exactly_at_the_pair(configure, files, tmp_path):
    start = merge_global_local(*files, expose_global=True)
    train(configure(tmp_path / "run", *pair_of(files), "model.expose_global=true", "optimizer.lr=0"))
    for file in files:
        file.unlink()
    loaded = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    expected, found = outputs(start), outputs(loaded)
    assert len(expected) == len(found) == 5  # the inverse, the global image and the global field among them
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(expected[0], expected[3])


def test_tuning_changes_both_parts_and_resumes_without_the_initial_files(configure, files, tmp_path):
    start = merge_global_local(*files)
    command = (tmp_path / "run", *pair_of(files))
    train(configure(*command))
    for file in files:
        file.unlink()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    once, steps = load_model(last), step_of(last)
    assert changed(once, start) == {"global_net", "local_net"}
    train(configure(*command, "trainer.max_epochs=2", "ckpt_path=last"))
    assert step_of(last) == 2 * steps
    assert changed(load_model(last), once) == {"global_net", "local_net"}
    with pytest.raises(Exception, match=r"there is no model .*G\.ckpt"):
        train(configure(tmp_path / "other", *pair_of(files)))


def test_a_part_that_is_frozen_stays(configure, files, tmp_path):
    train(configure(tmp_path / "run", *pair_of(files), "freeze=[global_net]"))
    network = load_model(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert changed(network, merge_global_local(*files)) == {"local_net"}


@pytest.mark.parametrize(
    ("freeze", "words"),
    [
        ("[golbal_net]", "Did you mean global_net"),
        ("[global_net,local_net]", "freeze: expected"),
    ],
)
def test_invalid_freeze_is_reported(freeze, words, configure, files, tmp_path):
    with pytest.raises(InputError, match=words):
        train(configure(tmp_path / "run", *pair_of(files), f"freeze={freeze}"))


def test_from_scratch_with_its_losses(configure, tmp_path):
    parts = [f"model.global_.{option}" for option in GLOBAL] + [f"model.local.{option}" for option in LOCAL]
    train(configure(tmp_path / "run", "model=merged", *parts, "logger=csv"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    network = load_model(path)
    assert isinstance(network, MergedNet)
    assert network.compute_inv
    origin = read_origin(path)
    assert (origin.image_shape, origin.intensity_scale) == (SHAPE, 255.0)
    assert "val/loss/inv_dvf" in (tmp_path / "run" / "metrics.json").read_text()


def test_a_pair_of_another_image_size(configure, files, tmp_path):
    with pytest.raises(InputError, match="takes images of 32×48 px, got 32×64"):
        train(
            configure(
                tmp_path / "run", *pair_of(files), "data.image_shape=[32,64]", f"data.folder={tmp_path}"
            )
        )
