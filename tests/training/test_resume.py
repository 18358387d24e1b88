"""A killed or stopped run resumes to exactly the weights, metrics and logs of an uninterrupted run."""

import csv
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import IO, ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atlalign.errors import InputError
from atlalign.geometry import warp
from atlalign.networks import Registration
from atlalign.training.resume import AtomicCheckpointIO, rewind_log
from atlalign.training.run import train
from tests.training.conftest import TINY, TINY_LOCAL, metrics_of, wait_for

ROOT = Path(__file__).parents[2]
# Two epochs of five steps; last.ckpt within epochs as well.
STEPS = 5
OFTEN = ["trainer.max_epochs=2", "callbacks.last.every_n_steps=1", "logger=csv", "optimizer=adam"]


class KillAt(pl.Callback):
    """Sends this process a signal at one moment of the run."""

    def __init__(self, hook: str, batch: int, number: int = signal.SIGKILL) -> None:
        self.batch, self.number, self.seen = batch, number, 0
        setattr(self, hook, self.kill)

    def kill(self, *_: object) -> None:
        if self.seen == self.batch:
            os.kill(os.getpid(), self.number)
        self.seen += 1


@pytest.fixture(scope="module")
def killed() -> Iterator[Callable[..., int]]:
    """Train in a process of its own, send it the signal, and return its status: −9 for SIGKILL.

    It is forked from a process that computes nothing. Where there is a GPU, or a network was exported before, torch
    starts threads at a process' first gradients, and computes none in what is forked from it since.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (1,)) as idle:
        idle.submit(os.getpid)  # it imports while the first run is left alone

        def killed(config: DictConfig, hook: str, batch: int, number: int = signal.SIGKILL) -> int:
            kill = {"_target_": f"{__name__}.KillAt", "hook": hook, "batch": batch, "number": int(number)}
            with open_dict(config):
                config.callbacks.kill = kill
            shown = Path(f"{config.run_dir}.txt")
            status = idle.submit(train_in_fork, config, shown).result()
            sys.stderr.write(shown.read_text())  # or nobody would know
            return status

        yield killed


def train_in_fork(config: DictConfig, shown: Path) -> int:
    with shown.open("w") as file:
        os.dup2(file.fileno(), 2)
    child = multiprocessing.get_context("fork").Process(target=train, args=(config,))
    child.start()
    child.join()
    return child.exitcode


def checkpoint_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def final_state(folder: Path) -> dict:
    """Return everything in which two runs could differ."""
    last = checkpoint_of(folder)
    metrics = metrics_of(folder)
    del metrics["seconds"]
    best = next(state for key, state in last["callbacks"].items() if key.startswith("ModelCheckpoint"))
    scores = {key: best[key] for key in ("best_model_score", "kth_value")}
    with (folder / "csv" / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return {
        "weights": last["state_dict"],
        "optimizer": last["optimizer_states"],
        "schedule": last["lr_schedulers"],
        "best": scores,
        "loops": last["loops"]["fit_loop"]["epoch_loop.state_dict"],
        "metrics": metrics,
        "rows": rows,
    }


def assert_same(one: object, other: object, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}/{i}")
    else:
        assert one == other, f"{where}: {one} and {other}"


@pytest.fixture(scope="module")
def runs_left_alone() -> dict[tuple[str, ...], dict]:
    """The final states of runs that were not stopped, by their options."""
    return {}


@pytest.fixture
def assert_resumes(configure, killed, tmp_path, runs_left_alone):
    """Kill a run at each moment in turn, resume it, and compare it with the uninterrupted run."""

    def assert_resumes(*options: str, moments: list[tuple[str, int]], **places: object) -> None:
        if options not in runs_left_alone:
            train(configure(*options, run_dir=tmp_path / "whole", **places))
            runs_left_alone[options] = final_state(tmp_path / "whole")
        stopped = tmp_path / "stopped"
        for hook, batch in moments:
            assert killed(configure(*options, "ckpt_path=auto", run_dir=stopped, **places), hook, batch) == -9
        train(configure(*options, "ckpt_path=last", run_dir=stopped, **places))
        assert_same(final_state(stopped), runs_left_alone[options])

    return assert_resumes


def test_killed_again_and_again(assert_resumes):
    """Before the first step, within the second of these, within the validation after these, at the last one of all."""
    moments = [("on_train_batch_start", 0), ("on_before_optimizer_step", 2), ("on_validation_batch_start", 0)]
    assert_resumes(*OFTEN, moments=[*moments, ("on_train_batch_start", 5)])


MOMENTS = [
    ("on_train_batch_start", 3),  # between steps
    ("on_train_batch_end", 4),  # after the last step of an epoch
    ("on_validation_batch_start", 2),  # within validation (the first two are the sanity check's)
    ("on_validation_end", 1),  # after validation, the best is saved or not
    ("on_train_epoch_end", 0),
    ("on_train_epoch_start", 1),
    ("on_train_batch_end", 6),
    ("on_train_batch_start", 9),  # the last step of all
    ("on_train_end", 0),
    ("on_validation_start", 3),  # the final measure
]


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "batch"), MOMENTS, ids=lambda v: str(v))
def test_killed_at_any_moment(assert_resumes, hook, batch):
    assert_resumes(*OFTEN, moments=[(hook, batch)])


class NoisyNet(torch.nn.Module):
    """A user's network that draws at random in training, from three generators."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(1, 2, 1, 1))

    def forward(self, reference, moving):
        noise = torch.rand(()) + random.random() + np.random.random() if self.training else 0  # noqa: NPY002
        dvf = (self.shift + noise).expand(len(moving), -1, *moving.shape[-2:]).contiguous()
        return Registration(registered=warp(moving, dvf), dvf=dvf)


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.accumulate_grad_batches=2"],
        ["scheduler=plateau", "scheduler.patience=0", "+scheduler.mode=max"],
        ["augment=augmenter_1", "data.num_workers=2"],
        pytest.param(["scheduler=cosine", "augment=kornia_1", "trainer.precision=bf16-mixed"], marks=pytest.mark.slow),
        pytest.param(["trainer.max_steps=9", "trainer.max_epochs=null"], marks=pytest.mark.slow),
        pytest.param(["callbacks=early_stopping", "callbacks.early_stopping.patience=1",
                      "callbacks.early_stopping.min_delta=9", "trainer.max_epochs=4"], marks=pytest.mark.slow),
        pytest.param(["+trainer.val_check_interval=2"], marks=pytest.mark.slow),
        pytest.param(["trainer.check_val_every_n_epoch=2"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize(
    "moment",
    [("on_train_batch_start", 8), pytest.param(("on_train_epoch_start", 1), marks=pytest.mark.slow)],
    ids=str,
)
def test_killed_with_options(assert_resumes, options, moment):
    assert_resumes(*OFTEN, *options, moments=[moment])


def test_killed_with_samples_drawn_online(assert_resumes):
    online = ["data=online", "data.samples_per_epoch=10", "data.n_val=4", "data.image_shape=[32,48]"]
    tiny = [
        option for option in (*TINY, *TINY_LOCAL) if "fields_per" not in option and "n_sections" not in option
    ]
    assert_resumes(*OFTEN, *online, moments=[("on_train_batch_start", 7)], tiny=tiny)


@pytest.mark.slow
def test_killed_with_a_network_that_draws_at_random(configure, killed, tmp_path):
    for name, ckpt in (("whole", "null"), ("stopped", "null"), ("stopped", "last")):
        config = configure(*OFTEN, f"ckpt_path={ckpt}", run_dir=tmp_path / name, tiny=TINY)
        config.model = OmegaConf.create({"_target_": f"{__name__}.NoisyNet"})
        if name == "stopped" and ckpt == "null":
            assert killed(config, "on_train_batch_start", 7) == -9
        else:
            train(config)
    assert_same(final_state(tmp_path / "stopped"), final_state(tmp_path / "whole"))


class TestStopped:
    """SIGTERM and Ctrl-C save, say so, and end with the status that shells expect."""

    @pytest.mark.parametrize(
        "number",
        [signal.SIGTERM, signal.SIGINT, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)],
        ids=lambda n: n.name,
    )
    def test_within_an_epoch(self, configure, killed, tmp_path, capfd, number):
        seldom = ["trainer.max_epochs=2", "logger=csv", "optimizer=adam"]
        assert killed(configure(*seldom), "on_train_batch_start", 6, number) == 128 + number
        shown = capfd.readouterr().err
        assert f"{number.name} after step 7" in shown
        assert "ckpt_path=last" in shown
        assert checkpoint_of(tmp_path / "run")["global_step"] == 7
        train(configure(*seldom, "ckpt_path=last"))
        train(configure(*seldom, run_dir=tmp_path / "whole"))
        assert_same(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))

    def test_within_accumulation_and_validation_it_waits(self, configure, killed, tmp_path):
        options = ["trainer.max_epochs=2", "trainer.accumulate_grad_batches=3"]
        stop = signal.SIGTERM
        assert killed(configure(*options, run_dir=tmp_path / "a"), "on_train_batch_start", 1, stop) == 143
        assert checkpoint_of(tmp_path / "a")["global_step"] == 1  # of the first three batches
        assert killed(configure(*options, run_dir=tmp_path / "b"), "on_train_batch_start", 4, stop) == 143
        assert checkpoint_of(tmp_path / "b")["epoch"] == 1  # after the epoch's end

    def test_before_the_first_step(self, configure, killed, tmp_path):
        assert killed(configure(), "on_sanity_check_start", 0, signal.SIGTERM) == 143
        assert checkpoint_of(tmp_path / "run")["global_step"] == 0

    @pytest.mark.slow
    def test_a_program_from_the_command_line(self, configure, tmp_path, demo_folder):
        train(configure())  # the demo data is there
        options = [*TINY, *TINY_LOCAL, f"data.folder={demo_folder}", "trainer.max_epochs=1000", "logger=none"]
        program = subprocess.Popen(
            [sys.executable, "train.py", *options, f"hydra.run.dir={tmp_path / 'long'}"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for(tmp_path / "long" / "checkpoints" / "best.ckpt", program)
        program.send_signal(signal.SIGINT)
        _, shown = program.communicate(timeout=240)
        assert program.returncode == 130
        assert "stopped by SIGINT after step" in shown
        assert "Traceback" not in shown


@pytest.mark.parametrize(("minutes", "saved"), [("0", 3), ("60", 0), ("null", 0)])
def test_saves_within_an_epoch_when_it_is_time(configure, killed, tmp_path, minutes, saved):
    config = configure(f"callbacks.last.every_n_minutes={minutes}")
    assert killed(config, "on_train_batch_start", 3) == -9
    assert checkpoint_of(tmp_path / "run")["global_step"] == saved


def test_half_a_checkpoint_never_has_its_name(tmp_path, monkeypatch):
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"step": 1}, path)

    def save(content: dict, file: IO[bytes]) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 1}


def test_a_truncated_checkpoint_is_one_sentence(configure, tmp_path):
    train(configure())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"last\.ckpt: expected a model file.*damaged"):
        train(configure("ckpt_path=last", "trainer.max_epochs=2"))


def test_auto_starts_or_resumes(configure, tmp_path):
    train(configure("ckpt_path=auto"))
    train(configure("ckpt_path=auto", "trainer.max_epochs=2"))
    assert metrics_of(tmp_path / "run")["steps"] == 2 * STEPS


class MetricsAtTheStart(pl.Callback):
    """Notes which metrics a callback sees in the first step of each run."""

    seen: ClassVar[list[dict[str, torch.Tensor]]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.seen.append(dict(trainer.callback_metrics))


def test_callbacks_see_the_metrics_of_before_the_stop(configure, tmp_path):
    spy = f"+callbacks.spy={{_target_:{__name__}.MetricsAtTheStart}}"
    train(configure("trainer.max_epochs=1", run_dir=tmp_path / "run"))
    before = checkpoint_of(tmp_path / "run")["callback_metrics"]["val/vector_distance"]
    train(configure("trainer.max_epochs=2", "ckpt_path=last", spy))
    (seen,) = MetricsAtTheStart.seen
    assert seen["val/vector_distance"] == before


def test_csv_log_is_rewound_before_a_repeated_step(tmp_path):
    log = CSVLogger(tmp_path, name="csv", version="")
    for step in (3, 4, 5, 6):
        log.log_metrics({"x": step}, step=step)
    log.save()
    again = CSVLogger(tmp_path, name="csv", version="")
    rewind_log(again, 5)  # the checkpoint is that after the steps 0 to 4
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "4"]


def test_tensorboard_shows_repeated_steps_once(configure, killed, tmp_path):
    options = ["trainer.max_epochs=3", "logger=tensorboard"]
    assert killed(configure(*options), "on_train_epoch_end", 1) == -9
    # TensorBoard reads files in the order of their names, which begin with the second of their start.
    time.sleep(1.1)
    train(configure(*options, "ckpt_path=last"))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for name in ("train/loss/total", "val/vector_distance"):
        assert [event.step for event in events.Scalars(name)] == [4, 9, 14]
