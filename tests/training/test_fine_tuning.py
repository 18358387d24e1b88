"""Training begins with the weights of a model file: where that network was, and with its architecture."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from atlalign.errors import InputError
from atlalign.models import SHIPPED_MODEL, load_model, save_model
from atlalign.networks import LocalUNet
from atlalign.training.run import train
from tests.training.conftest import CONF, TINY, metrics_of


def changed(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return any(not torch.equal(w, v) for w, v in zip(one.parameters(), other.parameters(), strict=True))


def test_fine_tuning_starts_from_the_given_network(configure, tmp_path):
    # A shift of 3 px, which no network begins with.
    network = LocalUNet((4,), (4,), (4,), (4,), (4,))
    torch.nn.init.constant_(network.to_dvf.bias, 3.0)
    save_model(network, tmp_path / "start.pt")
    start = load_model(tmp_path / "start.pt")
    options = ["model=pretrained", f"model.path={tmp_path / 'start.pt'}"]
    train(configure(*options, "optimizer.lr=0", run_dir=tmp_path / "still", tiny=TINY))
    assert not changed(load_model(tmp_path / "still" / "checkpoints" / "best.ckpt"), start)
    train(configure(*options, run_dir=tmp_path / "tuned", tiny=TINY))
    (tmp_path / "start.pt").unlink()
    last = tmp_path / "tuned" / "checkpoints" / "last.ckpt"
    tuned = load_model(last)  # the checkpoint holds the architecture
    assert changed(tuned, start)
    train(
        configure(*options, "trainer.max_epochs=2", "ckpt_path=last", run_dir=tmp_path / "tuned", tiny=TINY)
    )
    assert changed(load_model(last), tuned)


def test_the_shipped_network_on_labelled_sections(configure, demo_folder, tmp_path):
    train(configure("model.end_filters=[4]"))  # writes the demo data
    data = [f"data.path={next(demo_folder.glob('*.h5'))}", "data.image_shape=[32,48]", "data.batch_size=2"]
    quiet = [option for option in TINY if option.startswith(("trainer", "callbacks"))]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        places = ["atlas=phantom", "atlas.spacing_um=600", f"run_dir={tmp_path / 'tuned'}"]
        train(compose("train", ["experiment=fine_tuning", *data, *quiet, *places]))
    metrics = metrics_of(tmp_path / "tuned")
    # From random weights, one epoch at this learning rate leaves the error of doing nothing.
    assert metrics["val/vector_distance"] < 0.9 * metrics["val/identity/vector_distance"]
    assert type(load_model(tmp_path / "tuned" / "checkpoints" / "best.ckpt")) is type(load_model())


def test_model_file_cannot_be_resumed(configure, tmp_path):
    with pytest.raises(InputError, match=r"^ckpt_path: .*model=pretrained model\.path=.*safetensors"):
        train(configure(f"ckpt_path={SHIPPED_MODEL}"))
