"""Training in several processes: order of the data, means over samples, what batch means become, files, sweeps."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from atlalign.data.datamodule import RegistrationDataModule
from atlalign.errors import InputError
from atlalign.training.processes import free_port, run_in_processes
from atlalign.training.run import train
from tests.conftest import SHAPE
from tests.training.conftest import TINY, TINY_LOCAL, metrics_of, wait_for

ROOT = Path(__file__).parents[2]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=1"]
# Plain gradient descent shows a gradient's scale, which RMSprop and Adam would hide.
SGD = ["optimizer._target_=torch.optim.SGD", "~optimizer.alpha", "~optimizer.eps", "optimizer.lr=1e-2"]
# An odd number of samples that validate, so that the processes have not as many.
UNEVEN = ["data.train_indexes=[0,1,2,3,4]", "data.val_indexes=[6,7,8]"]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def assert_close(one: Path, other: Path) -> None:
    for key, weights in weights_of(one).items():
        torch.testing.assert_close(weights, weights_of(other)[key], rtol=1e-4, atol=1e-6)
    got, want = metrics_of(one), metrics_of(other)
    del got["seconds"], want["seconds"]
    assert got == pytest.approx(want, rel=1e-5)


def test_two_processes_train_like_one_with_twice_the_batch(configure, tmp_path):
    options = [*SGD, *UNEVEN, "loss=vector_distance", "trainer.max_epochs=2", "augment=augmenter_1"]
    train(configure(*options, run_dir=tmp_path / "one"))
    train(configure(*options, *TWO, run_dir=tmp_path / "two"))
    assert_close(tmp_path / "two", tmp_path / "one")
    assert metrics_of(tmp_path / "two")["steps"] == 4  # one of 5 samples is left out in each epoch
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def files_of(folder: Path) -> list[str]:
    """Return the names of a run's files, without host, process and time."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name.split(".tfevents.")[0] for name in names)


@pytest.mark.slow
def test_a_power_of_a_batch_mean_is_taken_in_each_process_as_in_accumulation(configure, tmp_path):
    options = [*SGD, *UNEVEN, "loss=vdclip2", "trainer.max_epochs=2", "data.shuffle=false"]
    train(configure(*options, *TWO, run_dir=tmp_path / "two"))
    once = ["data.batch_size=1", "data.train_indexes=[0,1,2,3]", "trainer.accumulate_grad_batches=2"]
    train(configure(*options, *once, run_dir=tmp_path / "accumulated"))
    for key, weights in weights_of(tmp_path / "two").items():
        torch.testing.assert_close(weights, weights_of(tmp_path / "accumulated")[key], rtol=1e-4, atol=1e-7)
    train(configure(*options, run_dir=tmp_path / "one"))
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert any((one[key] - two[key]).abs().max() > 1e-6 for key in one)


@pytest.mark.slow
def test_mistakes_in_several_processes_read_as_in_one(configure, tmp_path):
    with pytest.raises(InputError, match=r"require_ratio: .*at most 0\.01 times"):
        train(configure(*TWO, "require_ratio=0.01"))
    assert "require_ratio" in json.loads((tmp_path / "run" / "failure.json").read_text())["reason"]


class TwoWordsError(Exception):
    """Cannot be unpickled, and its message is larger than what a pipe holds."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def fail(kind: str) -> None:
    if kind == "no copy":
        raise TwoWordsError("too " * 25_000, "long")
    try:
        raise InputError("expected " + "much " * 25_000 + "more")
    except InputError as cause:
        raise ValueError("without a sentence") from cause


@pytest.mark.parametrize(
    ("kind", "expected", "ending"),
    [("no copy", RuntimeError, "too long"), ("its cause tells", InputError, "much more")],
)
def test_errors_of_any_size_and_class_arrive(kind, expected, ending):
    with pytest.raises(expected) as raised:
        run_in_processes(fail, [kind], 2)
    assert str(raised.value).endswith(ending)
    assert "in fail" in raised.value.__notes__[0]


def test_each_process_needs_something_to_validate(atlas, h5_file, monkeypatch):
    module = RegistrationDataModule(h5_file, atlas=atlas, image_shape=SHAPE, batch_size=1, val_indexes=[0])
    monkeypatch.setattr(module, "_processes", lambda: (0, 2))
    with pytest.raises(InputError, match="each of 2 processes, found 1"):
        module.setup()


class TestCommandLine:
    """Programs as a user starts them."""

    def program(self, demo_folder: Path, *options: str, launcher=(sys.executable,)) -> subprocess.Popen:
        command = [*launcher, "train.py", *TINY, *TINY_LOCAL, f"data.folder={demo_folder}", *options]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, program: subprocess.Popen) -> str:
        _, shown = program.communicate(timeout=240)
        assert program.returncode == 0, shown
        return shown

    @pytest.mark.slow
    def test_a_multirun(self, demo_folder, tmp_path):
        self.finish(self.program(demo_folder, *TWO, "seed=1,2", f"hydra.sweep.dir={tmp_path}", "-m"))
        one, two = (metrics_of(tmp_path / number) for number in "01")
        assert one["val/vector_distance"] != two["val/vector_distance"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "multirun.yaml"]
        assert len(list((tmp_path / "1").glob("*.log"))) == 1

    @pytest.mark.slow
    @pytest.mark.parametrize("n_machines", [1, 2])
    def test_torchrun(self, configure, demo_folder, tmp_path, n_machines):
        port, n_here = free_port(), 2 // n_machines
        options = ["trainer=cluster", "trainer.accelerator=cpu", "data.batch_size=1"]
        programs = []
        for machine in range(n_machines):
            where = [f"--nnodes={n_machines}", f"--node-rank={machine}", f"--nproc-per-node={n_here}"]
            where += ["--master-addr=127.0.0.1", f"--master-port={port}"]
            torchrun = [sys.executable, "-m", "torch.distributed.run", *where]
            run_dir = f"hydra.run.dir={tmp_path / 'run'}"
            programs.append(self.program(demo_folder, *options, run_dir, launcher=torchrun))
        for program in programs:
            self.finish(program)
        train(configure(*TWO, run_dir=tmp_path / "ddp"))
        assert_close(tmp_path / "run", tmp_path / "ddp")

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)], ids=str)
    def test_stopped_run_resumes(self, configure, demo_folder, tmp_path, number, status):
        options = [*TWO, "trainer.max_epochs=30", "callbacks.last.every_n_minutes=null"]
        program = self.program(demo_folder, *options, f"hydra.run.dir={tmp_path / 'run'}")
        wait_for(tmp_path / "run" / "checkpoints" / "best.ckpt", program)
        program.send_signal(number)
        _, shown = program.communicate(timeout=240)  # ends when all processes have ended
        assert program.returncode == status, shown
        assert shown.count("stopped by SIG") == 1  # the processes of one that is killed stop as for Ctrl-C
        last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert 0 < last["global_step"] < 5 * 30
        train(configure(*options, "ckpt_path=last"))
        train(configure(*options, run_dir=tmp_path / "whole"))
        assert_close(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("environment", "nodes", "devices"),
    [
        ({}, 1, "auto"),
        ({"SLURM_NNODES": "3", "SLURM_NTASKS_PER_NODE": "4"}, 3, 4),
        (
            {"GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "8", "SLURM_NNODES": "2"},
            2,
            8,
        ),  # torchrun within SLURM
    ],
)
def test_a_cluster_s_environment_says_how_many(configure, monkeypatch, environment, nodes, devices):
    for name in ("SLURM_NNODES", "SLURM_NTASKS_PER_NODE", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    trainer = configure("trainer=cluster").trainer
    assert (trainer.num_nodes, trainer.devices) == (nodes, devices)


def test_several_machines_need_a_launcher(configure):
    with pytest.raises(InputError, match=r"num_nodes=2: .*trainer=cluster"):
        train(configure(*TWO, "trainer.num_nodes=2"))
