"""Whole training runs at tiny sizes, composed as the command line composes them and run in this process."""

import json
import re
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atlalign.errors import InputError, sentence
from atlalign.io.files import LockedError
from atlalign.losses import ALL_DVF_LOSSES
from atlalign.models import load_model, save_model
from atlalign.networks import LocalUNet
from atlalign.training import run
from atlalign.training.building import build_loss, build_network
from atlalign.training.module import RegistrationModule
from atlalign.training.run import train
from atlalign.training.runs import DivergedError, read_run
from tests.training.conftest import CONF, TINY, TINY_LOCAL, metrics_of


def test_training_beats_doing_nothing(configure, tmp_path):
    config = configure(
        "trainer.max_epochs=24", "data.n_sections=12", "data.fields_per_section=8", "atlas.spacing_um=300",
        "data.batch_size=8", "optimizer=adam", "optimizer.lr=5e-3", "loss=vector_distance", "scheduler=cosine",
        "model.start_filters=[8]", "model.downsample_filters=[16,16]", "model.middle_filters=[16]",
        "model.upsample_filters=[16,16]", "model.end_filters=[16]",
    )  # fmt: skip
    objective = train(config)
    metrics = metrics_of(tmp_path / "run")
    assert objective == metrics["val/vector_distance"]
    assert metrics["val/vector_distance"] < 0.8 * metrics["val/identity/vector_distance"]


def test_a_run_leaves_everything_needed_to_read_and_repeat_it(configure, tmp_path):
    config = configure("model.compute_inv=true")
    train(config)
    folder = tmp_path / "run"
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "events" not in p.name}
    assert names == {
        "config.yaml", "run.json", "metrics.json", "registered.png",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt",
    }  # fmt: skip
    assert OmegaConf.load(folder / "config.yaml") == OmegaConf.create(
        OmegaConf.to_container(config, resolve=True)
    )
    metrics = metrics_of(folder)
    for name in ("total", "image", "dvf", "inv_dvf"):
        assert f"val/loss/{name}" in metrics
    weights = config.loss.weights
    total = sum(weights[name] * metrics[f"val/loss/{name}"] for name in ("image", "dvf", "inv_dvf"))
    assert metrics["val/loss/total"] == pytest.approx(total, rel=1e-5)


def test_tensorboard_shows_scalars_pictures_and_hyperparameters(configure, tmp_path):
    figure = "callbacks.figure={_target_:atlalign.training.callbacks.RegistrationFigure}"
    train(configure("loss=vdclip2", "trainer.max_epochs=2", figure))
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    for split in ("train", "val"):
        for name in ("loss/total", "loss/dvf", "vector_distance", "folding_fraction", "correlation"):
            assert f"{split}/{name}" in scalars
    assert "final/val/vector_distance" in scalars
    assert len(events.Scalars("val/vector_distance")) >= 2
    assert len(events.Images("val/registration")) == 2
    assert events.Images("val/registration")[0].width > 1000
    rows = "".join(map(str, events.PluginTagToContent("hparams").values()))
    for shown in ("LocalUNet", "data/batch_size", "vdclip2", "final/val/vector_distance"):
        assert shown in rows


def test_checkpoints_hold_plain_data(configure, tmp_path):
    train(configure())
    for name in ("best", "last"):
        checkpoint = torch.load(tmp_path / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert all(key.startswith("network.") for key in checkpoint["state_dict"])
        assert checkpoint["atlalign"]["config"]["model"]["_target_"] == "atlalign.networks.LocalUNet"
        assert checkpoint["atlalign"]["intensity_scale"] == 255


def test_resumed_run_equals_an_uninterrupted_run(configure, tmp_path, capsys, recwarn):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    options = ["augment=kornia_1", "scheduler=step", "scheduler.step_size=1"]
    train(configure("trainer.max_epochs=2", *options, run_dir=whole))
    train(configure("trainer.max_epochs=1", *options, run_dir=halves))
    half = torch.load(halves / "checkpoints" / "last.ckpt", weights_only=True)
    train(configure("trainer.max_epochs=2", "ckpt_path=last", *options, run_dir=halves))
    assert f", in epoch 2 after step {half['global_step']}" in capsys.readouterr().out
    assert not [warning for warning in recwarn if "Checkpoint directory" in str(warning.message)]
    one, two = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (whole, halves))
    assert one["global_step"] == two["global_step"] == 2 * half["global_step"]
    for key, weights in one["state_dict"].items():
        assert torch.equal(weights, two["state_dict"][key]), key
        assert not torch.equal(weights, half["state_dict"][key]) or not weights.any(), key
    assert one["optimizer_states"][0]["param_groups"] == two["optimizer_states"][0]["param_groups"]


def test_a_run_does_not_overwrite_another(configure):
    train(configure())
    with pytest.raises(InputError, match=r"run .*ckpt_path=last.*hydra\.run\.dir"):
        train(configure())


def test_a_finished_run_says_so(configure, tmp_path, capsys, monkeypatch):
    result = train(configure())
    monkeypatch.setattr(run, "_train_in", lambda *_: pytest.fail("there is nothing to train"))
    capsys.readouterr()
    assert train(configure("ckpt_path=last")) == result
    assert "this run has finished" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["atlas.path", "atlas.annotation_path", "data.path"])
def test_a_mistyped_path_is_refused_at_once_and_leaves_no_folder(configure, tmp_path, monkeypatch, key):
    (tmp_path / "atlas.h5").touch()
    paths = {"atlas.path": "atlas.h5", "data.path": "atlas.h5", key: "atlas.h"}
    overrides = ["atlas=file", "data=h5", *(f"{k}={tmp_path / v}" for k, v in paths.items())]
    (tmp_path / "run").mkdir()  # as Hydra does
    tiny = [t for t in (*TINY, *TINY_LOCAL) if not t.startswith(("data.n_s", "data.fields", "atlas."))]
    config = configure(*overrides, tiny=tiny)
    monkeypatch.setattr(run, "_train_in", lambda *_: pytest.fail("it is too late"))
    with pytest.raises(InputError, match=rf"^{key}: .*atlas\.h.*Did you mean atlas\.h5"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_mistaken_resume_keeps_a_finished_run(configure, tmp_path):
    train(configure("require_ratio=100"))
    names = ("metrics.json", "config.yaml", "run.json")
    written = {name: (tmp_path / "run" / name).read_text() for name in names}
    for mistake in ("atlas.spacing_um=-1", "model.end_filters=[5]", "data.batch_size=100"):
        with pytest.raises(Exception):  # noqa: B017, PT011 - other tests have what each says
            train(configure("ckpt_path=last", "trainer.max_epochs=2", mistake))
        assert {name: (tmp_path / "run" / name).read_text() for name in written} == written
    train(configure("ckpt_path=last"))  # with nothing left to do
    assert json.loads(written["metrics.json"])["steps"] == metrics_of(tmp_path / "run")["steps"]
    assert "require_ratio: null" in (tmp_path / "run" / "config.yaml").read_text()


def test_half_of_the_metrics_never_has_their_name(configure, tmp_path, monkeypatch):
    write_text = type(tmp_path).write_text

    def write(path, text, *arguments, **options):
        if "metrics.json" in path.name:
            write_text(path, text[: len(text) // 2])
            raise KeyboardInterrupt
        return write_text(path, text, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "write_text", write)
        with pytest.raises(KeyboardInterrupt):
            train(configure("ckpt_path=auto"))
    assert not (tmp_path / "run" / "metrics.json").exists()
    train(configure("ckpt_path=auto"))
    assert metrics_of(tmp_path / "run")["steps"] == 5


def test_resuming_from_nothing_is_an_error(configure, tmp_path):
    with pytest.raises(InputError, match=r"there is no checkpoint .*last.ckpt"):
        train(configure("ckpt_path=last"))
    with pytest.raises(InputError, match=r"there is no checkpoint elsewhere.ckpt"):
        train(configure("ckpt_path=elsewhere.ckpt"))


def test_same_seed_same_numbers(configure, tmp_path):
    def run(name: str, seed: int) -> dict[str, float]:
        train(configure(f"seed={seed}", "augment=augmenter_1", run_dir=tmp_path / name))
        metrics = metrics_of(tmp_path / name)
        del metrics["seconds"]
        return metrics

    first = run("first", 1)
    assert run("again", 1) == first
    assert run("other", 2) != first


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adam", "scheduler=plateau"],
        ["scheduler=cosine", "trainer.max_epochs=2", "logger=csv"],
        ["callbacks=early_stopping", "logger=none"],
        ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.1"],
        ["trainer.precision=bf16-mixed"],
        ["trainer=debug"],
    ],
    ids=" ".join,
)
def test_options_run(configure, tmp_path, overrides):
    train(configure(*overrides))
    assert 0 < metrics_of(tmp_path / "run")["val/vector_distance"] < 100


def test_a_plateau_is_one_of_the_objective(configure, tmp_path):
    """The error of doing nothing never falls: after the first epoch each halves the learning rate."""
    objective = ["objective=val/identity/vector_distance", "trainer.max_epochs=3", "logger=none"]
    train(configure("scheduler=plateau", "scheduler.patience=0", *objective))
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["best"] == metrics_of(tmp_path / "run")["val/identity/vector_distance"]
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3 / 4


def test_patience_of_nothing_waits_for_the_first_epoch_without_gain(configure, tmp_path):
    patience = ["callbacks.early_stopping.patience=0", "callbacks.early_stopping.min_delta=-1000"]
    train(configure("callbacks=early_stopping", "trainer.max_epochs=2", *patience))
    assert metrics_of(tmp_path / "run")["epochs"] == 2


def test_early_stopping_stops(configure, tmp_path):
    patience = ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=1000"]
    train(configure("callbacks=early_stopping", "trainer.max_epochs=9", *patience))
    assert metrics_of(tmp_path / "run")["epochs"] == 2


def test_gradient_clipping_clips(configure, tmp_path):
    # With gradients clipped to nothing, plain SGD goes nowhere: everything but the clipping is as usual.
    sgd = ["optimizer._target_=torch.optim.SGD", "~optimizer.alpha", "~optimizer.eps"]
    moved = {}
    for clip in ("null", "1e-12"):
        train(configure(*sgd, f"trainer.gradient_clip_val={clip}", run_dir=tmp_path / clip))
        state = torch.load(tmp_path / clip / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        moved[clip] = max(w.abs().max() for k, w in state.items() if k.endswith("bias"))
    assert moved["null"] > 1e-6 > moved["1e-12"]


def test_missed_required_improvement_fails(configure):
    with pytest.raises(InputError, match=r"require_ratio: .*at most 0\.01 times .*got \d"):
        train(configure("require_ratio=0.01"))


def test_missing_values_are_reported(configure):
    config = configure()
    config.data.folder = "???"
    with pytest.raises(MissingMandatoryValue, match=r"data\.folder"):
        train(config)


def test_an_unknown_objective_says_what_exists_before_it_trains(configure, tmp_path):
    with pytest.raises(InputError, match=r"objective: 'val/dice'\. .*val/vector_distance"):
        train(configure("objective=val/dice"))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.lr=abc"], "optimizer.lr: expected a number"),
        (["scheduler=plateau", "scheduler.factor=2"], "scheduler: .*Factor should be < 1.0"),
        (["seed=-1"], "seed: expected at least 0, got -1"),
        (["require_ratio=abc"], "require_ratio: expected a number, got abc"),
        (["objective=val/correlation"], "objective: expected .*got val/correlation"),
        (["compile=maybe"], "compile: expected true or false, got maybe"),
        (["channels_last=auto"], "channels_last: expected true or false, got auto"),
        (["trainer.max_epochs=-3"], "trainer: .*max_epochs.* You passed in -3"),
        (["trainer.max_epochs=abc"], "trainer.max_epochs: expected a whole number, got abc"),
        (["trainer.max_epochs=1.5"], "trainer.max_epochs: expected a whole number, got 1.5"),
        (["trainer.limit_val_batches=0"], "trainer.limit_val_batches: expected null, a number of batches .*, got 0"),
        (["scheduler=cosine", "trainer.max_epochs=null", "trainer.max_steps=3"],
         "scheduler.T_max: expected a whole number, got None"),
        (["scheduler=step", "scheduler.step_size=0"], "scheduler.step_size: expected at least 1, got 0"),
        (["callbacks.last.every_n_minutes=abc"], "callbacks.last.every_n_minutes: expected a number, got abc"),
        (["callbacks.last.every_n_steps=abc"], "callbacks.last.every_n_steps: expected a whole number, got abc"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=abc"],
         "callbacks.early_stopping.patience: expected a whole number, got abc"),
        (["callbacks.best=foo"], "callbacks.best: expected a callback's _target_ and arguments, or null, got 'foo'"),
        (["callbacks.figure={_target_:atlalign.training.callbacks.RegistrationFigure,every_n_epochs:0}"],
         "callbacks.figure.every_n_epochs: expected at least 1, got 0"),
        (["callbacks.figure={_target_:atlalign.training.callbacks.RegistrationFigure,n_sections:0}"],
         "callbacks.figure.n_sections: expected at least 1, got 0"),
        (["logger=csv", "logger.save_dir=/proc/nope"], "logger.save_dir: .*No such file or directory: '/proc/nope'"),
        (["data.split_seed=abc"], "data.split_seed: expected a whole number, got abc"),
        (["data.split_seed=-1"], "data.split_seed: expected at least 0, got -1"),
        (["data.multiprocessing_context=foo"], "unknown data.multiprocessing_context 'foo'. There are: .*spawn"),
        (["data.return_inverse=abc"], "data.return_inverse: expected true or false, got abc"),
        (["model.compute_inv=abc"], "model.compute_inv: expected true or false, got abc"),
        (["model.velocity_steps=2.5"], "model.velocity_steps: expected a whole number, got 2.5"),
        (["model.start_filters=[0]"], r"start_filters\[0\]: expected at least 1, got 0"),
        (["loss.weights={image:0,dvf:0,inv_dvf:0}"], "loss.weights: expected .*image, dvf, inv_dvf"),
        (["freeze=global_net"], "freeze: 'global_net'. There are: down, end"),
        (["trainer.precision=bf16-true"], "trainer.precision: expected one of 32-true, 16-mixed, bf16-mixed, got"),
        (["data.batch_size=abc"], "data.batch_size: expected a whole number, got abc"),
        (["data.num_workers=-1"], "data.num_workers: expected at least 0, got -1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_mistakes_are_one_sentence(configure, overrides, words):
    with pytest.raises((InputError, HydraException)) as raised:
        train(configure(*overrides))
    assert re.search(words, sentence(raised.value))


def test_a_plateau_that_is_not_measured_is_one_sentence(configure, tmp_path):
    options = ["scheduler=plateau", "trainer.check_val_every_n_epoch=2", "trainer.num_sanity_val_steps=0"]
    with pytest.raises(Exception, match="ReduceLROnPlateau") as raised:
        train(configure(*options))
    assert "conditioned on metric val/vector_distance which is not available" in sentence(raised.value)
    assert read_run(tmp_path / "run").reason.startswith("ReduceLROnPlateau conditioned on metric")


def test_one_part_to_freeze_needs_no_list(configure, tmp_path):
    train(configure("freeze=start", run_dir=tmp_path / "frozen"))
    train(configure("freeze=start", "ckpt_path=last", run_dir=tmp_path / "frozen"))
    before = torch.load(tmp_path / "frozen" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(before["optimizer_states"][0]["param_groups"][0]["params"]) == len(before["state_dict"]) - 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_reported(configure):
    with pytest.raises(InputError, match=r"trainer: .*No supported gpu backend found"):
        train(configure("trainer=gpu"))


def test_a_checkpoint_of_another_network_or_optimiser(configure, tmp_path):
    train(configure(run_dir=tmp_path / "other"))
    checkpoint = f"ckpt_path={tmp_path / 'other' / 'checkpoints' / 'last.ckpt'}"
    with pytest.raises(InputError, match=r"ckpt_path: expected .*: network\.end\.0\.bias"):
        train(configure(checkpoint, "model.end_filters=[5]"))
    with pytest.raises(
        InputError, match=r"^optimizer, optimizer.alpha, .*: expected RMSprop, 0.9, .* got Adam, nothing"
    ):
        train(configure(checkpoint, "optimizer=adam"))
    with pytest.raises(InputError, match=r"freeze: expected \[\], .*got \['start'\]"):
        train(configure(checkpoint, "freeze=[start]"))


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (["scheduler=cosine"], ["scheduler=cosine", "trainer.max_epochs=8"],
         r"scheduler.T_max: expected 1, .*got 8: .* model.path=\S+last.ckpt$"),
        ([], ["optimizer.lr=1e-6"], r"optimizer.lr: expected 0.001, .*got 1e-06: "),
        (["scheduler=cosine"], [], r"scheduler, .*T_max: expected CosineAnnealingLR, .*, 1, .*got nothing"),
    ],
    ids=["cosine", "rate", "none"],
)  # fmt: skip
def test_resumed_run_needs_the_same_optimisation(configure, tmp_path, first, then, words):
    train(configure(*first))
    with pytest.raises(InputError, match=words):
        train(configure("ckpt_path=last", *then))
    assert metrics_of(tmp_path / "run")["epochs"] == 1
    train(configure("ckpt_path=last", *first, "callbacks.last.every_n_steps=1"))  # what else changes is fine


def test_a_misspelt_loss_says_what_exists(configure):
    with pytest.raises(Exception, match=r"vdclp2.*Did you mean vdclip2"):
        train(configure("loss.dvf=vdclp2"))


class PlainNet(torch.nn.Module):
    """A user's own network, in a module that atlalign does not know: one shift for the whole image."""

    def __init__(self, start_px: float) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.full((1, 2, 1, 1), start_px))

    def forward(self, reference, moving):
        from atlalign.geometry import warp
        from atlalign.networks import Registration

        dvf = self.shift.expand(len(moving), -1, *moving.shape[-2:]).contiguous()
        return Registration(registered=warp(moving, dvf), dvf=dvf)


def test_a_network_from_outside_of_the_package(configure, tmp_path):
    config = configure(tiny=TINY)
    config.model = OmegaConf.create({"_target_": f"{__name__}.PlainNet", "start_px": 0.5})
    train(config)
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert list(state) == ["network.shift"]
    assert state["network.shift"].ne(0.5).all()


def test_losses_named_by_target(configure, tmp_path):
    config = configure("loss=vdclip2")
    config.loss.dvf = {"_target_": "atlalign.losses.VDClipper", "threshold": 5, "power": 1}
    config.loss.weights = {}
    train(config)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["val/loss/dvf"] == pytest.approx(metrics["val/vector_distance"] / 5, rel=0.01)


def squared(y_true, y_pred, factor):
    return factor * (y_true - y_pred).square().mean()


def detached(y_true, y_pred):
    return (y_true - y_pred).square().mean().detach()


def test_functions_of_two_tensors_are_losses(configure):
    config = configure("loss=vdclip2")
    config.loss.inv_dvf = None
    for own, same in (
        ({"_target_": f"{__name__}.squared", "factor": 3}, "mse"),
        ({"_target_": "torch.nn.functional.l1_loss"}, "mae"),
        ({"_target_": "atlalign.losses.Mixer", "_args_": [{"_target_": "atlalign.losses.mse"}] * 2}, "mse"),
    ):
        config.loss.dvf = own
        y_true, y_pred = torch.rand(2, 1, 2, 4, 5)
        value = build_loss(config).terms["dvf"](y_true, y_pred)
        torch.testing.assert_close(value, own.get("factor", 1) * ALL_DVF_LOSSES[same](y_true, y_pred))
    assert "_partial_" not in config.loss.dvf  # the configuration stays as it was written


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (
            {"_target_": "atlalign.losses.VDClipper"},
            r"got atlalign\.losses\.VDClipper: .*dvf: \{_target_: atlalign",
        ),
        ({"_target_": "atlalign.losses.mse"}, r"got atlalign\.losses\.mse: "),
        ({"dvf": "mse"}, "got no _target_"),
        ({"_target_": "atlalign.localization.training.PlaneLoss"}, "got atlalign.localization"),
    ],
    ids=str,
)
def test_a_loss_in_the_place_of_the_weighted_sum_is_refused(configure, loss, words):
    config = configure()
    config.loss = OmegaConf.create(loss)
    with pytest.raises(
        InputError, match=rf"^loss: expected _target_: atlalign\.losses\.RegistrationLoss.*{words}"
    ):
        build_loss(config)


def test_a_loss_without_gradient_is_refused(configure):
    config = configure("loss=vdclip2")
    config.loss.dvf = {"_target_": f"{__name__}.detached"}
    with pytest.raises(InputError, match=r"^loss: expected a value with a gradient"):
        train(config)


@pytest.mark.parametrize(
    ("group", "target", "words"),
    [
        ("model", "no_such_lab.Net", r"model\._target_: there is no module 'no_such_lab'"),
        ("model", f"{__name__}.PlainNe", r"model\._target_: .*Did you mean PlainNet"),
        ("model", f"{__name__}.torch", r"model\._target_: expected a class or function, .* module"),
        ("model", f"{__name__}.PlainNet", r"model: .*missing 1 required positional argument: 'start_px'"),
        ("model", "pathlib.Path", r"model: expected the _target_ of a torch\.nn\.Module, got pathlib\.Path"),
        ("loss.dvf", f"{__name__}.squares", r"loss\.dvf\._target_: .*Did you mean squared"),
        ("loss.dvf", f"{__name__}.squared", r"loss\.dvf: .*missing 3 required positional arguments"),
    ],
)
def test_a_wrong_target_gives_the_cause(configure, group, target, words):
    config = configure("loss=vdclip2", tiny=TINY)
    OmegaConf.update(config, group, {"_target_": target}, merge=False)
    with pytest.raises(InputError, match=words):
        train(config)


def test_a_trained_network_of_the_user_can_be_saved(configure, tmp_path):
    config = configure(tiny=TINY)
    config.model = OmegaConf.create({"_target_": f"{__name__}.PlainNet", "start_px": 0.5})
    network = build_network(config, None)
    path = save_model(network, tmp_path / "plain.pt")
    assert load_model(path, allow=[f"{__name__}.PlainNet"]).hyperparameters == {"start_px": 0.5}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_a_compiled_network_trains_and_keeps_its_names(configure, tmp_path):
    train(configure("compile=true"))
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert "network.start.0.weight" in state


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_the_final_picture_is_drawn_without_a_compiler(configure, monkeypatch):
    compiled, drawn = [], []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def draw(*arguments):
        torch.compiler.reset()  # as when the network is brought to another device
        before = len(compiled)
        draw_result(*arguments)
        drawn.append((before, len(compiled)))

    draw_result = run._draw_result
    monkeypatch.setattr(run, "_draw_result", draw)
    monkeypatch.setattr(LocalUNet, "compile", lambda self: torch.nn.Module.compile(self, backend=backend))
    train(configure("compile=true"))
    ((before, after),) = drawn
    assert after == before > 0


@pytest.mark.parametrize("lr", ["1e30", "inf"])
def test_diverged_training_fails_with_its_place(configure, tmp_path, lr):
    with pytest.raises(DivergedError, match=r"diverged: (train|val)/\S+ is \S+ at step \d+; .*optimizer\.lr"):
        train(configure(f"optimizer.lr={lr}"))
    run = read_run(tmp_path / "run")
    assert (run.status, run.diverged) == ("failed", True)
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_validation_divergence_names_the_last_good_checkpoint(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(RegistrationModule, "_check_step", lambda self, values: None)  # as on a GPU
    train(configure())
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    state["optimizer_states"][0]["param_groups"][0]["lr"] = 1e30
    torch.save(state, checkpoint)
    with pytest.raises(DivergedError, match=r"val/\S+ is nan at step \d+; .* \S+best\.ckpt"):
        train(configure("ckpt_path=last", "trainer.max_epochs=3"))


def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(configure, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("of the first run")
    holder = "import sys, time; from pathlib import Path; from atlalign.io.files import lock\n"
    holder += "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(folder / "run")], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(LockedError, match=rf"process {other.pid} on \S+ trains in {folder}"):
            train(configure())
        assert not (folder / "failure.json").exists()
        # Other processes of the run that a cluster started do not ask for the lock.
        monkeypatch.setenv("SLURM_PROCID", "1")
        with run._only_run(folder):
            pass
        # Without a first process that holds the lock, they leave no word in the other run's folder.
        (folder / "failure.json").write_text("of the first run")
        with pytest.raises(InputError, match="accumulate_grad_batches"):
            train(configure("trainer.accumulate_grad_batches=-1"))
        assert (folder / "failure.json").read_text() == "of the first run"
        (folder / "failure.json").unlink()
        monkeypatch.delenv("SLURM_PROCID")
        other.kill()
    (folder / "config.yaml").unlink()
    train(configure())  # the lock of a killed process is none
    assert metrics_of(folder)["epochs"] == 1


def test_the_overrides_in_a_folder_are_those_of_the_run_that_trained_there(configure, tmp_path):
    folder = tmp_path / "run"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        started = compose("train", ["seed=5", f"hydra.run.dir={folder}"], return_hydra_config=True)
    assert started.hydra.output_subdir is None  # Hydra itself would not ask whether the folder is free
    HydraConfig.instance().set_config(started)
    try:
        train(configure("seed=5"))
        assert (folder / ".hydra" / "overrides.yaml").read_text() == "- seed=5\n"
        started = OmegaConf.create(OmegaConf.to_container(started))
        started.hydra.overrides.task = ["seed=6"]
        HydraConfig.instance().cfg = started
        with pytest.raises(InputError, match=r"ckpt_path=last"):
            train(configure("seed=6"))
        assert "seed=5" in (folder / ".hydra" / "overrides.yaml").read_text()
    finally:
        HydraConfig.instance().cfg = None


@pytest.mark.parametrize("key", ["accumulate_grad_batches", "gradient_clip_val"])
def test_a_negative_number_of_the_trainer_is_refused(configure, key):
    with pytest.raises(InputError, match=f"trainer.{key}: expected at least .*, got -1"):
        train(configure(f"trainer.{key}=-1"))
