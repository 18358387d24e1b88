"""Model files: round trips, imports from Keras, and no execution of code from a file."""

import errno
import json
import zipfile
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from atlalign import __version__, errors
from atlalign.cli import main
from atlalign.data.dataset import RegistrationBatch
from atlalign.errors import InputError
from atlalign.geometry import warp
from atlalign.losses import RegistrationLoss
from atlalign.models import ModelOrigin, load_model, merge_global_local, read_origin, save_model
from atlalign.models.keras_import import import_keras
from atlalign.networks import (
    CoarseToFineNet,
    CorrelationPyramidNet,
    FinePassNet,
    GlobalAffineNet,
    LocalUNet,
    MergedNet,
    Registration,
)
from atlalign.networks.architecture import architecture_of
from atlalign.training.module import RegistrationModule
from tests.models.keras_writer import KerasWriter

SHAPE = (32, 48)


def tiny_global() -> GlobalAffineNet:
    return moved(GlobalAffineNet((2, 3), (4,), SHAPE))


def tiny_local(compute_inv: bool = False) -> LocalUNet:
    return moved(LocalUNet((2,), (3, 4), (5,), (6, 4), (3,), compute_inv=compute_inv))


def tiny_velocity() -> LocalUNet:
    return moved(LocalUNet((2,), (3, 4), (5,), (6,), (3,), compute_inv=True, velocity_steps=5))


def moved(network: nn.Module) -> nn.Module:
    """Move every parameter off its initial value, so that none that is lost goes unseen."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return network


def pair(shape: tuple[int, int] = SHAPE) -> tuple[Tensor, Tensor]:
    return torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)


def assert_same(one: nn.Module, other: nn.Module, shape: tuple[int, int] = SHAPE) -> None:
    images = pair(shape)
    with torch.no_grad():
        for a, b in zip(one(*images), other(*images), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=0)


CONFIG = {"data": {"image_shape": [64, 96]}, "seed": 3}
NETWORKS = {
    "global": tiny_global,
    "local": tiny_local,
    "local with inverse": lambda: tiny_local(compute_inv=True),
    "velocity": lambda: tiny_velocity(),
    "coarse to fine": lambda: moved(CoarseToFineNet(tiny_velocity(), (2, 1))),
    "coarse to fine, shared": lambda: CoarseToFineNet(tiny_velocity(), (3, 2), shared_weights=True),
    "correlation pyramid": lambda: CorrelationPyramidNet((3, 4), (1, 2), (4,), compute_inv=True),
    "last pass": lambda: FinePassNet(CorrelationPyramidNet((3,), (1,), (4,)), tiny_velocity(), reduction=3),
    "merged": lambda: merge_global_local(tiny_global(), tiny_local(), expose_global=True),
    "merged, coarse to fine": lambda: merge_global_local(
        tiny_global(), CoarseToFineNet(tiny_velocity(), (2,))
    ),
}


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_saved_network_is_loaded(make, separate, tmp_path):
    network = make()
    path = save_model(network, tmp_path / "new" / "model.pt", separate=separate)
    loaded = load_model(path)
    assert type(loaded) is type(network)
    assert_same(network, loaded)
    names = {p.name for p in path.iterdir()} if separate else {path.name}
    assert names == ({"architecture.json", "weights.pt"} if separate else {"model.pt"})
    assert {p.name for p in path.parent.iterdir()} == {"model.pt"}


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_safetensors_keep_network_and_origin(make, tmp_path):
    network = make().to(memory_format=torch.channels_last)
    origin = ModelOrigin(303.0, SHAPE, config=CONFIG)
    path = save_model(network, tmp_path / "model.safetensors", origin=origin)
    assert_same(network.to(memory_format=torch.contiguous_format), load_model(path))
    assert read_origin(path) == ModelOrigin(303.0, SHAPE, __version__, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(network.state_dict())


def test_foreign_safetensors_file_is_refused(tmp_path):
    path = save_model(tiny_local(), tmp_path / "model.safetensors")
    whole = path.read_bytes()
    for content in (whole[:-50], b"", b"text", save({"a": torch.zeros(2)})):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors: expected a model file"):
            load_model(path)
    with pytest.raises(InputError, match="there is no model"):
        load_model(tmp_path / "none.safetensors")
    architecture = json.dumps({"architecture": {"_target_": "pathlib.Path.touch"}})
    path.write_bytes(save({"a": torch.zeros(2)}, metadata={"atlalign": architecture}))
    with pytest.raises(InputError, match="unknown network"):
        load_model(path)


class Shift(nn.Module):
    """A user's own network."""

    def __init__(self, start_px: float) -> None:
        super().__init__()
        self.hyperparameters = {"start_px": start_px}
        self.shift = nn.Parameter(torch.full((1, 2, 1, 1), start_px))

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        dvf = self.shift.expand(len(moving), -1, *moving.shape[-2:])
        return Registration(warp(moving, dvf), dvf)


def test_a_network_of_the_user_loads_only_where_it_is_allowed(tmp_path):
    path = save_model(Shift(1.5), tmp_path / "shift.pt")
    with pytest.raises(InputError, match="Shift"):
        load_model(path)
    assert_same(load_model(path, allow=[f"{__name__}.Shift"]), Shift(1.5))
    assert_same(load_model(path, allow=f"{__name__}.Shift"), Shift(1.5))
    with pytest.raises(InputError, match=rf"unknown network .*allow=\['{__name__}.Shift'\]"):
        load_model(path, allow=f"{__name__}.Shifted")  # a part of a name is not the name


class Silent(nn.Module):
    """A user's own network that does not record the arguments of its constructor."""

    def __init__(self, start_px: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((1, 2, 1, 1), start_px))

    forward = Shift.forward


class WithoutArguments(Silent):
    def __init__(self) -> None:
        super().__init__(2.5)


def test_a_loaded_network_can_be_saved_again(tmp_path):
    allow = [f"{__name__}.Silent"]
    network = Silent(1.5)
    trained = module(network, config={"model": {"_target_": allow[0], "start_px": 1.5}})
    run = trainer(tmp_path, 1)
    run.fit(trained, batches(), batches())
    run.save_checkpoint(tmp_path / "best.ckpt")
    loaded = load_model(tmp_path / "best.ckpt", allow=allow)
    again = load_model(save_model(loaded, tmp_path / "again.safetensors"), allow=allow)
    assert_same(again, network)
    assert again.hyperparameters == {"start_px": 1.5}


def test_a_network_whose_constructor_takes_no_arguments_can_be_saved(tmp_path):
    path = save_model(WithoutArguments(), tmp_path / "without.pt")
    assert_same(load_model(path, allow=[f"{__name__}.WithoutArguments"]), WithoutArguments())


def test_a_part_of_a_merged_network_is_recorded_too(tmp_path):
    local = Silent(1.5)
    local.hyperparameters = {"start_px": 1.5}
    path = save_model(merge_global_local(tiny_global(), local), tmp_path / "merged.pt")
    loaded = load_model(path, allow=[f"{__name__}.Silent"])
    assert read_origin(save_model(loaded, tmp_path / "again.pt")).image_shape == SHAPE


def test_the_error_of_unknown_arguments_gives_the_line_to_add(tmp_path):
    with pytest.raises(InputError, match=r'self\.hyperparameters = \{"start_px": start_px\} in Silent'):
        save_model(Silent(1.5), tmp_path / "silent.pt")
    assert not (tmp_path / "silent.pt").exists()


@pytest.mark.parametrize("value", [Path("a"), torch.zeros(2), {1, 2}], ids=str)
def test_arguments_that_no_file_can_hold_are_refused(value, tmp_path):
    network = Silent()
    network.hyperparameters = {"start_px": value}
    with pytest.raises(InputError, match=r"Silent\.start_px cannot be saved: .*" + type(value).__name__):
        save_model(network, tmp_path / "silent.pt")


def test_a_class_that_no_file_can_name_is_refused(tmp_path):
    class Inner(WithoutArguments):
        pass

    with pytest.raises(InputError, match=r"Inner cannot be saved: .*top level"):
        save_model(Inner(), tmp_path / "inner.pt")


def test_an_allowed_class_that_does_not_exist_gives_the_cause(tmp_path):
    path = save_model(WithoutArguments(), tmp_path / "without.pt")
    content = torch.load(path, weights_only=True)
    name = f"{__name__}.WithoutArgument"
    content["atlalign"]["architecture"]["_target_"] = name
    torch.save(content, path)
    with pytest.raises(InputError, match=r"has no 'WithoutArgument'\. Did you mean WithoutArguments"):
        load_model(path, allow=[name])


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_no_code_in_a_file_is_run(tmp_path):
    trace, path = tmp_path / "ran", tmp_path / "model.pt"
    torch.save({"state_dict": {}, "atlalign": Malicious(trace)}, path)
    with pytest.raises(InputError, match="more than plain data"):
        load_model(path)
    architecture = {"_target_": "pathlib.Path.touch", "self": str(trace)}
    torch.save({"state_dict": {}, "atlalign": {"architecture": architecture}}, path)
    with pytest.raises(InputError, match=r"unknown network.*pathlib\.Path\.touch"):
        load_model(path)
    torch.save({"state_dict": {}, "atlalign": {"architecture": {"_target_": "atlalign.networks.nn"}}}, path)
    with pytest.raises(InputError, match="unknown network"):
        load_model(path)
    assert not trace.exists()


def test_file_that_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no model"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"architecture\.json"):
        load_model(tmp_path)
    path = save_model(tiny_global(), tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"expected a model file"):
        load_model(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(InputError, match="expected a model file"):
        load_model(path)
    save_model(tiny_local(), tmp_path / "other", separate=True)
    folder = save_model(tiny_global(), tmp_path / "folder", separate=True)
    (tmp_path / "other" / "weights.pt").replace(folder / "weights.pt")
    with pytest.raises(InputError, match="do not fit"):
        load_model(folder)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_model(tiny_global(), tmp_path / "model.pt")
    before = path.read_bytes()

    def full_disk(place, content):
        place.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(place))

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match=r"model\.pt cannot be written: No space left on device"):
        save_model(tiny_local(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def module(network: nn.Module, **origin) -> RegistrationModule:
    optimizer = partial(torch.optim.RMSprop, lr=1e-3)
    return RegistrationModule(network, RegistrationLoss(dvf="mse"), optimizer=optimizer, origin=origin)


def trainer(folder: Path, steps: int) -> pl.Trainer:
    return pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip


def batches() -> DataLoader:
    zeros = torch.zeros(1, dtype=torch.long)
    batch = RegistrationBatch(
        *pair(), torch.rand(1, 1, *SHAPE), torch.rand(1, 2, *SHAPE), None, zeros, zeros, zeros
    )
    return DataLoader([batch] * 4, batch_size=None)


def test_training_resumes_from_a_saved_training(tmp_path):
    trained = module(tiny_local(), config={"loss": {"dvf": "mse"}, "model": {"_target_": "unused"}})
    trainer(tmp_path, 4).fit(trained, batches(), batches())
    path = save_model(trained, tmp_path / "model.pt")
    assert_same(load_model(path), trained.network)
    saved = torch.load(path, weights_only=True)
    assert saved["atlalign"]["config"]["loss"] == {"dvf": "mse"}
    assert saved["optimizer_states"][0]["state"][0]["step"] == 4
    resumed = trainer(tmp_path, 8)
    resumed.fit(module(tiny_local()), batches(), batches(), ckpt_path=str(path), weights_only=True)
    assert resumed.global_step == 8
    assert resumed.optimizers[0].state_dict()["state"][0]["step"] == 8


def test_a_training_checkpoint_is_a_model_file(tmp_path):
    network = tiny_global()
    config = {"model": {"_target_": "atlalign.networks.GlobalAffineNet", **network.hyperparameters}}
    trained = module(network, config=config)
    run = trainer(tmp_path, 1)
    run.fit(trained, batches(), batches())
    run.save_checkpoint(tmp_path / "best.ckpt")
    assert_same(load_model(tmp_path / "best.ckpt"), network)


# --- what a file tells besides


@pytest.mark.parametrize("separate", [False, True])
def test_saved_network_records_its_origin(separate, tmp_path):
    origin = ModelOrigin(516.0, (64, 96), config=CONFIG)
    path = save_model(tiny_local(), tmp_path / "model", separate=separate, origin=origin)
    config = {} if separate else CONFIG  # apart from the weights there is nothing of the training
    assert read_origin(path) == ModelOrigin(516.0, (64, 96), __version__, config)
    unknown = save_model(tiny_local(), tmp_path / "other", separate=separate)
    assert read_origin(unknown) == ModelOrigin(version=__version__)
    # What the network itself fixes counts.
    assert read_origin(save_model(tiny_global(), path, separate=separate, origin=origin)).image_shape == SHAPE


@pytest.mark.parametrize("separate", [False, True])
def test_training_records_its_origin(separate, tmp_path):
    trained = module(tiny_local(), config=CONFIG, intensity_scale=516.0)
    trainer(tmp_path, 1).fit(trained, batches(), batches())
    origin = read_origin(save_model(trained, tmp_path / "model", separate=separate))
    assert origin == ModelOrigin(516.0, (64, 96), __version__, {} if separate else CONFIG)


@pytest.mark.parametrize(
    "known",
    [{}, {"image_shape": "64"}, {"image_shape": [0, 9]}, {"intensity_scale": float("nan")}, {"config": [1]}],
    ids=str,
)
def test_missing_information_is_not_guessed(known, tmp_path):
    torch.save({"state_dict": {}, "atlalign": known}, tmp_path / "model.pt")
    assert read_origin(tmp_path / "model.pt") == ModelOrigin()


def test_a_checkpoint_of_a_network_that_cannot_describe_itself_names_its_configuration(tmp_path):
    network = Shift(1.5)
    del network.hyperparameters
    trained = module(network, config={"model": {"_target_": f"{__name__}.Shift", "start_px": 0.0}})
    run = trainer(tmp_path, 1)
    run.fit(trained, batches(), batches())
    run.save_checkpoint(tmp_path / "best.ckpt")
    assert_same(load_model(tmp_path / "best.ckpt", allow=[f"{__name__}.Shift"]), network)


# --- on the command line


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_merge_command_keeps_what_both_have_in_common(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    global_net, local_net = tiny_global(), tiny_local(compute_inv=True)
    save_model(global_net, "global.pt", origin=ModelOrigin(516.0, config=CONFIG))
    save_model(local_net, "local", separate=True, origin=ModelOrigin(None, SHAPE))
    assert main(["merge", "global.pt", "local", "--out", "merged.pt"]) == 0
    assert_same(load_model("merged.pt"), merge_global_local(global_net, local_net))
    assert read_origin("merged.pt") == ModelOrigin(516.0, SHAPE, __version__)
    save_model(local_net, "small.pt", origin=ModelOrigin(516.0, (16, 24)))
    save_model(local_net, "other.pt", origin=ModelOrigin(255.0, SHAPE))
    before = files(tmp_path)
    for arguments, words in (
        (["global.pt", "small.pt"], "image size, got (32, 48) and (16, 24)"),
        (["global.pt", "other.pt"], "intensity scale, got 516.0 and 255.0"),
        (["local", "global.pt"], "expected the global network first, got a LocalUNet"),
        (["global.pt", "global.pt"], "expected a local network second, got a GlobalAffineNet"),
    ):
        assert main(["merge", *arguments, "--out", "new.pt"]) == 1
        assert words in capsys.readouterr().err
    assert files(tmp_path) == before


def malicious(path: Path) -> None:
    torch.save({"state_dict": {}, "atlalign": Malicious(path.with_name("ran"))}, path)


def truncated(path: Path) -> None:
    path.write_bytes(save_model(tiny_global(), path).read_bytes()[:-300])


def of_another_program(path: Path) -> None:
    torch.save(
        {"state_dict": {"conv.weight": torch.zeros(2)}, "epoch": 1, "pytorch-lightning_version": "2"}, path
    )


def without_weights(path: Path) -> None:
    torch.save({"state_dict": {}, "atlalign": {"architecture": architecture_of(tiny_global())}}, path)


BROKEN = {
    malicious: "expected a model file, but it is damaged, of another format, or holds more than plain data",
    truncated: "expected a model file, but it is damaged",
    of_another_program: "expected a model file, model folder or checkpoint of atlalign",
    without_weights: "architecture and weights do not fit: ",
    lambda path: path.write_bytes(b""): "expected a model file, but it is damaged",
    lambda path: path.write_text("hello"): "expected a model file",
    lambda path: path.mkdir(): "expected architecture.json and weights.pt",
    lambda path: None: "there is no model",
}


@pytest.mark.parametrize("spoil", BROKEN, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("command", ["merge", "export"])
def test_a_broken_model_gives_one_sentence_and_no_file(command, spoil, tmp_path, capsys):
    path = tmp_path / "model.pt"
    spoil(path)
    local = save_model(tiny_local(), tmp_path / "local.pt")
    before = files(tmp_path)
    out = tmp_path / "out.pt2"
    models = [str(path), str(local)] if command == "merge" else [str(path)]
    assert main([command, *models, "--out", str(out)]) == 1
    shown = capsys.readouterr().err
    assert BROKEN[spoil] in shown
    assert shown.startswith("error: ")
    assert str(path) in shown
    assert shown.count("\n") == 1
    assert files(tmp_path) == before


# --- Keras


def keras_local(depth: int, compute_inv: bool = False) -> LocalUNet:
    """Return a network of this depth, cropped as the predecessor cropped all of them."""
    network = LocalUNet(
        (2, 3), [3, 4, 2][:depth], (5,), [4, 2, 3][:depth], (3,), compute_inv=compute_inv, size_multiple=16
    )
    return moved(network)


@pytest.mark.parametrize("slicing", ["ExtractMoving", "Lambda"])
def test_import_of_a_global_network_with_any_filters(slicing, tmp_path):
    network = moved(GlobalAffineNet((3, 2), (5, 4), SHAPE))
    writer = KerasWriter()
    writer.add_global(network, slicing)
    assert_same(import_keras(writer.file(tmp_path / "net.h5")), network)
    assert_same(import_keras(writer.folder(tmp_path / "net")), network)


@pytest.mark.parametrize(("depth", "compute_inv"), [(1, False), (2, True), (3, False)])
def test_import_of_a_local_network_with_any_filters(depth, compute_inv, tmp_path):
    network = keras_local(depth, compute_inv)
    writer = KerasWriter()
    writer.add_local(network)
    imported = import_keras(writer.folder(tmp_path / "net"))
    assert_same(imported, network, (320, 456))
    assert (imported(*pair((320, 456))).dvf[..., :4] == 0).all()  # the predecessor's margin


def test_import_of_a_merged_network_whose_parts_share_names(tmp_path):
    network = MergedNet(moved(GlobalAffineNet((2,), (), (320, 456))), keras_local(2))
    local, writer = KerasWriter(), KerasWriter()
    local.add_local(network.local_net)
    source, registered = writer.add_global(network.global_net)
    both = writer.add("Concatenate", writer.add("Lambda", source), registered, axis=-1)
    inner = writer.add("Functional", both, name="model", layers=local.layers)
    field = next(layer["name"] for layer in writer.layers if layer["class_name"] == "Affine2DVF")
    assert set(local.weights) & set(writer.weights)
    writer.add("DVFComposition", field, inner)
    path = writer.file(tmp_path / "net.h5")
    with h5py.File(path, "a") as file:
        local.write_weights(file["model_weights"].create_group("model"), nested=True)
    assert_same(import_keras(path), network, (320, 456))

    writer.layers[-1]["inbound_nodes"][0].reverse()
    with pytest.raises(InputError, match=r"dvfcomposition.*Affine2DVF"):
        import_keras(writer.file(path))


def changed(writer: KerasWriter, kind: str, **config) -> str:
    layer = next(layer for layer in writer.layers if layer["class_name"] == kind)
    layer["config"].update(config)
    return str(layer["name"])


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        ("InputLayer", {"batch_input_shape": [None, 32, 48, 3]}, "batch_input_shape"),
        ("Conv2D", {"activation": "elu"}, "activation relu, found elu"),
        ("Conv2D", {"kernel_size": [5, 5]}, r"kernel_size \[3, 3\], found \[5, 5\]"),
        ("MaxPooling2D", {"pool_size": [3, 3]}, "pool_size"),
        ("Dense", {"activation": "relu"}, "activation linear, found relu"),
    ],
)
def test_another_architecture_names_the_layer(kind, config, words, tmp_path):
    writer = KerasWriter()
    writer.add_global(tiny_global())
    name = changed(writer, kind, **config)
    with pytest.raises(InputError, match=f"layer '{name}'.*{words}"):
        import_keras(writer.file(tmp_path / "net.h5"))


def test_foreign_layers_and_lambdas_are_refused(tmp_path):
    writer = KerasWriter()
    source, registered = writer.add_global(tiny_global())
    writer.add("LSTM", source, name="memory")
    with pytest.raises(InputError, match=r"layer 'memory': .*LSTM"):
        import_keras(writer.file(tmp_path / "net.h5"))
    writer.layers.pop()
    writer.add("Lambda", registered, name="surprise")
    with pytest.raises(InputError, match="layer 'surprise' is a Lambda"):
        import_keras(writer.file(tmp_path / "net.h5"))


def layer_of(writer: KerasWriter, name: str) -> dict:
    return next(layer for layer in writer.layers if layer["name"] == name)


@pytest.mark.parametrize("kind", ["NoOp", "Lambda"])
def test_import_of_a_local_network_with_any_layer_that_names_its_inverse(kind, tmp_path):
    network = keras_local(1, compute_inv=True)
    writer = KerasWriter()
    writer.add_local(network, naming=kind)
    imported = import_keras(writer.folder(tmp_path / "net"))
    assert imported.compute_inv
    assert_same(imported, network, (320, 456))


def renamed(writer: KerasWriter) -> None:
    layer_of(writer, "inv_dvf")["name"] = "scale"


def moved_elsewhere(writer: KerasWriter) -> None:
    layer_of(writer, "inv_dvf")["inbound_nodes"] = [[["reg_mov", 0, 0, {}], ["shared", 0, 0, {}]]]


def used(writer: KerasWriter) -> None:
    writer.add("NoOp", "inv_dvf")


@pytest.mark.parametrize("change", [renamed, moved_elsewhere, used], ids=lambda change: change.__name__)
def test_a_lambda_that_may_do_more_than_name_the_inverse_is_refused(change, tmp_path):
    writer = KerasWriter()
    writer.add_local(keras_local(1, compute_inv=True), naming="Lambda")
    change(writer)
    with pytest.raises(InputError, match=r"layer '(scale|inv_dvf)' is a Lambda"):
        import_keras(writer.folder(tmp_path / "net"))


def test_an_inverse_of_the_pair_that_is_not_swapped_is_refused(tmp_path):
    writer = KerasWriter()
    writer.add_local(keras_local(1, compute_inv=True), naming="Lambda")
    layer_of(writer, "shared")["inbound_nodes"] = [[["reg_mov", 0, 0, {}]]]
    with pytest.raises(InputError, match=r"layer 'shared': expected .*found reg_mov"):
        import_keras(writer.folder(tmp_path / "net"))


def test_a_skip_connection_from_elsewhere_is_refused(tmp_path):
    writer = KerasWriter()
    writer.add_local(keras_local(2))
    join = next(layer for layer in writer.layers if layer["class_name"] == "Concatenate")
    join["inbound_nodes"][0][1][0] = "elsewhere"
    with pytest.raises(InputError, match=f"layer '{join['name']}'.*elsewhere"):
        import_keras(writer.folder(tmp_path / "net"))


def test_weights_that_do_not_fit_and_damaged_files(tmp_path):
    writer = KerasWriter()
    writer.add_global(tiny_global())
    path = writer.file(tmp_path / "net.h5")
    name = next(iter(writer.weights))
    with h5py.File(path, "a") as file:
        del file[f"model_weights/{name}/{name}/bias:0"]
        file[f"model_weights/{name}/{name}/bias:0"] = np.zeros(7)
    with pytest.raises(InputError, match=rf"layer '{name}': expected \(2,\), found \(7,\)"):
        import_keras(path)
    with h5py.File(path, "a") as file:
        del file[f"model_weights/{name}"]
    with pytest.raises(InputError, match=f"not a complete Keras model.*{name}"):
        import_keras(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="truncated"):
        import_keras(path)
    path.write_text("hello")
    with pytest.raises(InputError, match="not a Keras file"):
        import_keras(path)
    with pytest.raises(InputError, match="no such file"):
        import_keras(tmp_path / "none.h5")
    with pytest.raises(InputError, match="use the folder"):
        import_keras(writer.folder(tmp_path / "net") / "net.h5")
    (tmp_path / "net" / "net.json").unlink()
    with pytest.raises(InputError, match=r"one \.json file in the folder, found 0"):
        import_keras(tmp_path / "net")


TERABYTES = {
    "_target_": "atlalign.networks.GlobalAffineNet",
    "image_shape": [32, 48],
    "dense_layers": [2**20] * 2,
}


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_an_architecture_of_terabytes_is_refused_before_it_is_built(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    known = {"architecture": TERABYTES}
    if ending == ".pt":
        torch.save({"state_dict": {}, "atlalign": known}, path)
    else:
        path.write_bytes(save({"a": torch.zeros(1)}, metadata={"atlalign": json.dumps(known)}))
    with pytest.raises(InputError, match=r"weights: expected at most 8 GiB"):
        load_model(path)


def test_a_small_model_file_with_a_huge_content_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**20))
    monkeypatch.setattr(errors, "LARGEST_BYTES", 2**19)
    with pytest.raises(InputError, match=r"a\.ckpt: expected at most .*1048576"):
        load_model(path)


def test_a_keras_file_that_declares_terabytes_is_refused_unread(tmp_path):
    writer = KerasWriter()
    writer.add_global(tiny_global())
    path = writer.file(tmp_path / "net.h5")
    name = next(iter(writer.weights))
    with h5py.File(path, "a") as file:
        del file[f"model_weights/{name}/{name}/kernel:0"]
        shape = (3, 3, 2, 2**40)  # nothing of which is stored
        file.create_dataset(f"model_weights/{name}/{name}/kernel:0", shape, "f4", chunks=(3, 3, 2, 64))
    with pytest.raises(InputError, match=rf"layer '{name}': expected .* found \({2**40}, 2, 3, 3\)"):
        import_keras(path)
    monster = KerasWriter()
    monster.add_global(tiny_global())
    for layer in monster.layers:
        if layer["class_name"] == "Dense" and layer["config"]["units"] != 6:
            layer["config"]["units"] = 2**40
    with pytest.raises(InputError, match=r"weights: expected at most 8 GiB"):
        import_keras(monster.file(tmp_path / "monster.h5"))


def test_weights_in_another_file_are_not_followed(tmp_path):
    writer = KerasWriter()
    writer.add_global(tiny_global())
    path = writer.file(tmp_path / "net.h5")
    name = next(iter(writer.weights))
    with h5py.File(path, "a") as file:
        del file[f"model_weights/{name}/{name}/bias:0"]
        file[f"model_weights/{name}/{name}/bias:0"] = h5py.ExternalLink("other.h5", "a")
    with pytest.raises(InputError, match=r"other\.h5"):
        import_keras(path)


def test_real_networks_of_the_predecessor_agree(test_data):
    """Measured agreement is 6e-5 px and 5e-5 in intensity; the merged one is wrong beyond the border itself."""
    folder = test_data / "keras"
    images = np.load(folder / "inputs.npz")
    reference, moving = (
        torch.from_numpy(images[key]).permute(0, 3, 1, 2) / 255 for key in ("ref_u8", "mov_u8")
    )
    merged = import_keras(folder / "merged.h5")
    assert isinstance(merged, MergedNet)
    inner: list[Tensor] = []
    merged.local_net.register_forward_hook(lambda _, images, output: inner.append(output.dvf))
    with torch.no_grad():
        merged_dvf = merged(reference, moving).dvf
        outputs = {
            "global": import_keras(folder / "global.h5")(reference, moving),
            "local": import_keras(folder / "local")(reference, moving),
            "local_lambda": import_keras(folder / "local_lambda.h5")(reference, moving),
        }
    for name, output in outputs.items():
        expected = np.load(folder / f"{name}_expected.npz")
        for key, found in zip(("img_registered", "dvf", "inv_dvf"), output, strict=True):
            assert (found is None) == (key not in expected)
            if found is not None:
                assert np.abs(sampled(found) - expected[key]).max() < 1e-3, (name, key)
    y, x = torch.meshgrid(torch.arange(320), torch.arange(456), indexing="ij")
    target = torch.stack([x, y]) + inner[0]
    inside = ((target >= 0) & (target <= torch.tensor([455, 319]).view(2, 1, 1))).all(1)[:, ::4, ::4].numpy()
    assert inside.mean() > 0.95
    error = np.abs(sampled(merged_dvf) - np.load(folder / "merged_expected.npz")["dvf"])
    assert error[inside].max() < 1e-3


def sampled(output: Tensor) -> np.ndarray:
    return output[:, :, ::4, ::4].permute(0, 2, 3, 1).numpy()


# --- The command line


def test_import_and_merge_on_the_command_line(tmp_path, capsys):
    first, second = moved(GlobalAffineNet((2,), (), (320, 456))), keras_local(2)
    global_writer, local_writer = KerasWriter(), KerasWriter()
    global_writer.add_global(first)
    local_writer.add_local(second)
    global_writer.file(tmp_path / "global.h5")
    local_writer.folder(tmp_path / "local")
    paths = {name: str(tmp_path / f"{name}.pt") for name in ("global", "local", "merged")}
    assert main(["import-keras", str(tmp_path / "global.h5"), "--out", paths["global"]]) == 0
    assert main(["import-keras", str(tmp_path / "local"), "--out", paths["local"]]) == 0
    assert main(["merge", paths["global"], paths["local"], "--out", paths["merged"]]) == 0
    assert "MergedNet" in capsys.readouterr().out
    assert_same(load_model(paths["merged"]), MergedNet(first, second), (320, 456))
    for path in paths.values():
        assert read_origin(path) == ModelOrigin(255.0, (320, 456), __version__)

    assert main(["merge", paths["local"], paths["global"], "--out", paths["merged"]]) == 1
    assert "got a LocalUNet" in capsys.readouterr().err
    assert main(["import-keras", paths["global"], "--out", str(tmp_path / "no.pt")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "no.pt").exists()
