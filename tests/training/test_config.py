"""Every configuration file composes and builds; mistakes on the command line are answered with what exists."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from atlalign.arguments import build, check_keys
from atlalign.errors import InputError, readable_errors
from atlalign.models import SHIPPED_MODEL

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
OPTIONS = sorted(
    str(path.relative_to(CONF).with_suffix(""))
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("source", "deformation")  # those of generate.py
)


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", ["run_dir=unused", *overrides])


@pytest.mark.parametrize(
    "option",
    [
        o
        for o in OPTIONS
        if not o.startswith(("loss/vgg", "loss/alex", "atlas/", "data/", "experiment/", "sweep/"))
    ],
)
def test_every_option_builds(option):
    group, name = option.split("/")
    config = composed(f"{group}={name}")
    if group == "trainer" and name in ("gpu", "ddp", "cluster"):
        config.trainer.accelerator, config.trainer.devices = "cpu", 1  # the device of these is not everywhere
    for node in config[group].values() if group in ("callbacks", "augment") else [config[group]]:
        build(node)


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith(("loss/vgg", "loss/alex"))])
def test_every_perceptual_loss_builds(option, caplog):
    build(composed(f"loss={option.split('/')[1]}", "loss.backbone_weights=random").loss)
    assert "random" in caplog.text


@pytest.mark.parametrize("group", ["atlas", "data"])
def test_every_key_of_data_and_atlas_is_an_argument(group):
    for option in (o.split("/")[1] for o in OPTIONS if o.startswith(f"{group}/")):
        node = composed(f"{group}={option}", "atlas.path=x.h5" if option == "file" else "seed=0")[group]
        function = (
            hydra.utils.get_method(node._target_)
            if group == "atlas"
            else hydra.utils.get_class(node._target_)
        )
        names = {key for key in node if key != "_target_"}

        accepted = set(inspect.signature(function).parameters)
        for parent in function.__mro__[1:3] if inspect.isclass(function) else []:
            accepted |= set(inspect.signature(parent).parameters)
        assert names <= accepted, option


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith(("experiment/", "sweep/"))])
def test_every_experiment_and_sweep_composes_and_its_parts_build(option):
    # The locator's loss has no backbone.
    needed = [] if option == "experiment/locator" else ["loss.backbone_weights=random"]
    if option == "experiment/fine_pass":
        needed += [f"model.{part}.path={SHIPPED_MODEL}" for part in ("coarse", "fine")]
    config = composed(option.replace("/", "="), *needed)
    for group in ("model", "loss", "augment", "optimizer", "scheduler", "trainer"):
        build(config[group])


def test_documented_groups_exist():
    promised = {"model", "loss", "augment", "data", "atlas", "trainer", "logger", "experiment"}
    assert promised <= {option.split("/")[0] for option in OPTIONS}
    assert {"cpu", "gpu", "ddp", "cluster", "debug"} <= {
        o.split("/")[1] for o in OPTIONS if o.startswith("trainer/")
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modl=local", "unknown key 'modl'. Did you mean model or"),
        (
            "model.start_filter=[4]",
            "model.start_filter: unknown key 'start_filter'. Did you mean start_filters",
        ),
        ("trainer.max_epoch=3", "Did you mean max_epochs"),
        ("loss=vdclip4", "loss=vdclip4: unknown option 'vdclip4'. Did you mean vdclip3 or vdclip2"),
        ("experiment=atlas_alon", "Did you mean atlas_alone?"),
        ("model=unet", "There are: coarse_to_fine, correlation_pyramid, fine_pass, "),
        ("atlas.path=a.h5", "atlas=file"),
        ("data.path=a.h5", "data=h5"),
        ("source=images", "source: this program has no such group"),
        ("+seed=3", "seed: this key exists"),
        ("seed", "seed: expected KEY=VALUE"),
        (
            "augment=null",
            "augment=none or logger=none, got null",
        ),
        ("callbacks=null", "callbacks.NAME=null switches one callback off"),
    ],
)
def test_a_mistake_names_what_exists(override, message, capsys):
    with pytest.raises(SystemExit) as stopped, readable_errors():
        composed(override)
    assert stopped.value.code == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert shown.count("\n") == 1
    assert not re.search(r"provider=|append to|\\t|\+", shown.replace("the +", ""))


def test_input_errors_are_shown_as_sentences_and_others_in_full(capsys, monkeypatch):
    with pytest.raises(SystemExit), readable_errors():
        raise RuntimeError("wrapped") from InputError("expected this, got that")
    assert capsys.readouterr().err == "error: expected this, got that\n"
    with pytest.raises(ZeroDivisionError), readable_errors():
        _ = 1 / 0
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InputError), readable_errors():
        raise InputError("in full")


@pytest.mark.parametrize(
    ("overrides", "group", "message"),
    [
        (
            ["experiment=demo", "model=global"],
            "model",
            "model.compute_inv: GlobalAffineNet takes no compute_inv;",
        ),
        (["+model.extra=1"], "model", "model.extra: LocalUNet takes no extra; it takes compute_inv, "),
        (
            ["data=online", "+data.contrast.extra=1"],
            "data",
            "data.contrast.extra: draw_contrast takes no extra;",
        ),
        (["+optimizer.extra=1"], "optimizer", "optimizer.extra: RMSprop takes no extra; it takes alpha, "),
    ],
)
def test_unknown_key_error_lists_the_known_keys(overrides, group, message):
    with pytest.raises(InputError, match=re.escape(message)):
        build(composed(*overrides)[group])


def test_functions_with_free_keywords_accept_any_key():
    check_keys(composed("+logger.purge_step=1"), {})
    check_keys(OmegaConf.create({"a": {"_target_": "tests.no_such.Thing", "b": 1}}), {})


def run_train(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_lists_groups_and_examples():
    shown = run_train("--help").stdout
    assert "model: coarse_to_fine, correlation_pyramid, fine_pass, global, local" in shown
    assert "atlalign train model=local loss=vgg_vdclip2" in shown


def test_a_misspelt_loss_fails_before_lightning_is_imported(tmp_path):
    finished = run_train("loss.dvf=vdclp2", f"hydra.run.dir={tmp_path}")
    assert finished.returncode == 1
    assert "unknown" in finished.stderr
    assert "vdclip2, vdclip3" in finished.stderr
    assert "Traceback" not in finished.stderr
