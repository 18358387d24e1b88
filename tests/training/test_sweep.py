"""Sweeps as a user types them: grids and searches whose runs fail, are stopped and resume."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from atlalign.atlas.phantom import phantom_volume
from atlalign.cli.programs import train
from atlalign.errors import InputError
from atlalign.io.files import lock
from atlalign.training.comparison import compare
from atlalign.training.runs import DivergedError, find_runs, read_run, record_failure
from atlalign.training.study import Pruning, SweepStudy, _storage, search_space
from tests.conftest import SHAPE, write_h5
from tests.training.conftest import TINY, TINY_LOCAL

ROOT = Path(__file__).parents[2]
RATE = "optimizer.lr=tag(log,interval(1e-3,1e-2))"


@pytest.fixture
def arguments(tmp_path, demo_folder):
    """Return the arguments of a tiny sweep with further ones; its folder is `tmp_path`/sweep."""

    def arguments(*others: str) -> list[str]:
        places = [f"data.folder={demo_folder}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
        return ["train.py", "-m", *TINY, *TINY_LOCAL, *places, *others]

    return arguments


@pytest.fixture
def sweep(arguments, monkeypatch, tmp_path):
    """Run a sweep in this process and return its folder; a mistake ends it as it ends the command."""

    def sweep(*others: str) -> Path:
        monkeypatch.setattr(sys, "argv", arguments(*others))
        train()
        return tmp_path / "sweep"

    return sweep


@pytest.fixture
def own(monkeypatch, tmp_path):
    """Run a sweep on an h5 file and an atlas of one's own and return its folder."""
    write_h5(tmp_path / "my.h5", n=8)
    np.save(tmp_path / "atlas.npy", phantom_volume(shape=(12, *SHAPE), seed=0)[0])
    files = [
        "data=h5",
        f"data.path={tmp_path / 'my.h5'}",
        "atlas=file",
        f"atlas.path={tmp_path / 'atlas.npy'}",
    ]
    of_demo = ("data.n_sections", "data.fields_per_section", "atlas.spacing_um")
    tiny = [option for option in (*TINY, *TINY_LOCAL) if not option.startswith(of_demo)]

    def own(*others: str) -> Path:
        place = f"hydra.sweep.dir={tmp_path / 'sweep'}"
        arguments = [
            "train.py",
            "-m",
            *files,
            *tiny,
            "atlas.spacing_um=1100",
            place,
        ]
        monkeypatch.setattr(sys, "argv", [*arguments, *others])
        train()
        return tmp_path / "sweep"

    return own


@pytest.fixture
def launcher():
    """The class of the launcher that runs jobs one after the other."""
    return Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]


def search(n_trials: int, *others: str) -> list[str]:
    return ["hydra/sweeper=optuna", f"hydra.sweeper.n_trials={n_trials}", *others]


def trials(folder: Path):
    return _storage(folder).get_all_trials(0)


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in trials(folder)]


def test_the_sweeps_run_on_own_data(own):
    folder = own("sweep=losses", "seed=1")
    runs = find_runs([folder])
    assert [run.status for run in runs] == ["finished"] * 5
    assert {run.config["data"] for run in runs} == {"RegistrationDataModule"}
    assert compare(runs).keys[0].startswith("loss")


def test_the_search_runs_on_own_data(own):
    assert states(own("sweep=learning_rate", "hydra.sweeper.n_trials=1")) == ["COMPLETE"]


@pytest.mark.parametrize("sweeper", ["grid", "optuna"])
def test_a_key_that_the_data_do_not_take_ends_a_sweep_before_its_first_run(own, tmp_path, capsys, sweeper):
    with pytest.raises(SystemExit):
        own("experiment=first_local", "seed=1,2", f"hydra/sweeper={sweeper}")
    shown = capsys.readouterr().err
    assert "data.n_sections: data=h5 takes no n_sections (set by experiment=first_local?); it takes" in shown
    assert "val_fraction" in shown
    assert "Traceback" not in shown
    assert not [path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]
    assert not (tmp_path / "sweep" / "study.journal").exists()


def test_grid_continues_after_a_failed_run(sweep, tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep("data.batch_size=-1,2", "seed=1,2")
    assert "data.batch_size: expected at least 1, got -1" in capsys.readouterr().err
    table = compare(find_runs([tmp_path / "sweep"]))
    assert [run.status for run in table.runs] == ["finished", "finished", "failed", "failed"]
    assert table.keys == ["data.batch_size", "seed"]
    assert sorted(table.names[:2]) == ["2", "3"]
    assert table.runs[3].reason == "data.batch_size: expected at least 1, got -1"


def test_search_continues_after_failed_trials(sweep):
    folder = sweep(*search(4, "data.batch_size=2,-1", "loss=vdclip2,nothing_such", "seed=range(1,5)"))
    runs = [read_run(folder / str(number)) for number in range(4)]
    assert states(folder) == [{"finished": "COMPLETE", "failed": "FAIL"}[run.status] for run in runs]
    reasons = " ".join(run.reason for run in runs)
    assert "expected at least 1, got -1" in reasons
    assert "unknown option 'nothing_such'" in reasons
    for trial, run in zip(trials(folder), runs, strict=True):
        if run.status == "finished":
            assert trial.value == run.metrics["val/vector_distance"]
            assert str(run.config["seed"]) == str(trial.params["seed"])


def test_a_resumed_study_is_the_study_left_alone(sweep, tmp_path):
    options = (RATE, "loss=vdclip2,vdclip3", "hydra.sweeper.sampler.n_startup_trials=3")
    whole = [(t.params, t.value) for t in trials(sweep(*search(4, *options)))]
    shutil.rmtree(tmp_path / "sweep")
    folder = sweep(*search(2, *options))
    written = {p: p.stat().st_mtime_ns for p in folder.glob("*/metrics.json")}
    sweep(*search(4, *options))
    assert [(t.params, t.value) for t in trials(folder)] == whole
    assert len({str(params) for params, _ in whole}) == 4
    assert len(written) == 2
    assert all(path.stat().st_mtime_ns == at for path, at in written.items())


def test_killed_search_resumes_its_open_trial(arguments, sweep, tmp_path, monkeypatch):
    folder, n_epochs = tmp_path / "sweep", 30
    options = search(
        1, RATE, f"trainer.max_epochs={n_epochs}", "logger=none", "trainer.limit_train_batches=1"
    )
    with subprocess.Popen(
        [sys.executable, *arguments(*options)], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as process:
        wait_for((folder / "0" / "checkpoints" / "last.ckpt").exists)
        wait_for(lambda: len(trials(folder)[0].intermediate_values) > 2)
        process.send_signal(signal.SIGKILL)
    assert states(folder) == ["RUNNING"]
    assert read_run(folder / "0").status == "unfinished"
    reported = trials(folder)[0].intermediate_values
    assert 0 < len(reported) < n_epochs

    seen: list[int] = []
    monkeypatch.setattr(Pruning, "_falls_behind", following(Pruning._falls_behind, seen))
    sweep(*options)
    assert states(folder) == ["COMPLETE"]
    assert seen[0] > 0  # from the checkpoint, not from the start
    finished = trials(folder)[0].intermediate_values
    assert list(finished) == list(range(n_epochs))
    assert reported.items() <= finished.items()


def following(method, seen: list[int]):
    """Return the method, noting the epochs that it is called for."""

    def noted(self, epoch: int, value: float) -> bool:
        seen.append(epoch)
        return method(self, epoch, value)

    return noted


def wait_for(condition, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_trial_that_ends_without_a_word_twice_at_one_point_is_stuck(tmp_path):
    study = SweepStudy(tmp_path, {"seed": IntDistribution(1, 9)}, [], sampler=RandomSampler)
    number = study.ask()
    assert [study.is_stuck(number) for _ in range(3)] == [False] * 3  # the run never began
    checkpoint = tmp_path / str(number) / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    (tmp_path / str(number) / "config.yaml").touch()
    assert not study.is_stuck(number)
    assert study.is_stuck(number)
    checkpoint.touch()
    assert not SweepStudy(tmp_path, study.space, [], sampler=RandomSampler).is_stuck(number)
    assert study.is_stuck(number)


def test_trials_that_fall_behind_are_pruned(sweep):
    options = ("optimizer.lr=1e-3,0.1", "seed=range(1,9)", "trainer.max_epochs=3")
    early = ("callbacks.pruning.pruner.n_startup_trials=1", "callbacks.pruning.pruner.n_warmup_steps=1")
    folder = sweep(*search(6, *options, *early))
    complete = [t for t in trials(folder) if t.state == TrialState.COMPLETE]
    pruned = [t for t in trials(folder) if t.state == TrialState.PRUNED]
    assert len(complete) + len(pruned) == 6
    assert pruned
    for trial in pruned:
        assert max(trial.intermediate_values) == 1  # not in the warm-up, not in the last epoch
        run = read_run(folder / str(trial.number))
        assert run.status == "pruned"
        assert run.reason.startswith("after epoch 1 with val/vector_distance")
    best = min(complete, key=lambda trial: trial.value)
    assert best.params["optimizer.lr"] == "0.001"


HARSH = (
    "callbacks.pruning.pruner._target_=optuna.pruners.ThresholdPruner", "+callbacks.pruning.pruner.upper=0",
    "~callbacks.pruning.pruner.n_startup_trials", "callbacks.pruning.pruner.n_warmup_steps=0",
)  # fmt: skip


@pytest.mark.parametrize(
    ("error", "state"), [(DivergedError("loss is nan"), "PRUNED"), (InputError("no disk"), "FAIL")]
)
def test_a_trial_that_diverged_is_settled_as_pruned_and_one_that_failed_as_failed(tmp_path, error, state):
    study = SweepStudy(tmp_path, {"seed": IntDistribution(1, 9)}, [], sampler=RandomSampler)
    number = study.ask()
    (tmp_path / str(number)).mkdir(exist_ok=True)
    record_failure(tmp_path / str(number), error)
    study.settle(number)
    assert states(tmp_path) == [state]


def test_the_last_epoch_is_never_pruned(sweep):
    assert states(sweep(*search(1, RATE, *HARSH))) == ["COMPLETE"]


def test_a_search_in_which_no_trial_ends_says_so(sweep, capsys):
    with pytest.raises(SystemExit):
        sweep(*search(1, RATE, *HARSH, "trainer.max_epochs=2"))
    assert "no trial finished" in capsys.readouterr().err


def test_pruning_can_be_switched_off(sweep):
    folder = sweep(*search(1, RATE, "callbacks.pruning=null"))
    assert not trials(folder)[0].intermediate_values


def test_a_job_that_dies_does_not_end_the_search(sweep, monkeypatch, launcher):
    launch = launcher.launch

    def dying(self, job_overrides, initial_job_idx):
        if initial_job_idx == 0:
            (Path(self.config.hydra.sweep.dir) / "0").mkdir()
            (Path(self.config.hydra.sweep.dir) / "0" / "config.yaml").write_text("run_dir: ''")
            raise RuntimeError("job 0 was killed")
        return launch(self, job_overrides, initial_job_idx)

    monkeypatch.setattr(launcher, "launch", dying)
    folder = sweep(*search(2, RATE))
    assert states(folder) == ["RUNNING", "COMPLETE"]
    monkeypatch.setattr(launcher, "launch", launch)
    sweep(*search(2, RATE))
    assert states(folder) == ["COMPLETE", "COMPLETE"]


def test_a_launcher_that_begins_nothing_ends_the_search(sweep, monkeypatch, launcher, tmp_path, capsys):
    def broken(self, job_overrides, initial_job_idx):
        raise FileNotFoundError("sbatch")

    with monkeypatch.context() as patched:
        patched.setattr(launcher, "launch", broken)
        for _ in range(3):
            with pytest.raises(SystemExit):
                sweep(*search(2, RATE))
    assert "FileNotFoundError: sbatch" in capsys.readouterr().err
    assert states(tmp_path / "sweep") == ["RUNNING"]
    sweep(*search(2, RATE))
    assert states(tmp_path / "sweep") == ["COMPLETE", "COMPLETE"]


def test_a_folder_is_of_one_search_and_one_process(sweep, tmp_path, capsys):
    sweep(*search(1, RATE))
    with pytest.raises(SystemExit):
        sweep(*search(2, RATE, "loss=vdclip3"))
    assert "holds a study of other trials" in capsys.readouterr().err
    with lock(tmp_path / "sweep" / "study"), pytest.raises(SystemExit):
        sweep(*search(2, RATE))
    assert "runs the sweep in" in capsys.readouterr().err
    assert states(tmp_path / "sweep") == ["COMPLETE"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([RATE, "hydra.sweeper.n_trials=abc"], "hydra.sweeper.n_trials: expected a whole number, got abc"),
        ([RATE, "hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs: expected at least 1, got 0"),
        (
            ["optimizer.lr=interval(0.1,0.01)"],
            "optimizer.lr=interval(0.1,0.01): ValueError: `low <= high` must hold",
        ),
        ([], "hydra/sweeper=optuna: expected"),
    ],
)
def test_a_search_that_cannot_be_is_one_sentence(sweep, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        sweep(*search(1), *options)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sweep" / "study.journal").exists()


def test_a_search_without_optuna_says_what_to_install(sweep, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "optuna" else find_spec(n, *a)
    )
    with pytest.raises(SystemExit):
        sweep(*search(1, RATE))
    assert "pip install 'atlalign-torch[sweep]'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_a_launcher_that_is_not_installed(sweep, capsys):
    with pytest.raises(SystemExit):
        sweep("hydra/launcher=ray", "seed=1,2")
    assert "hydra/launcher=ray is not installed: pip install 'hydra-ray-launcher'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=tag(log,interval(1e-4,1))", FloatDistribution(1e-4, 1, log=True)),
        ("a=interval(0,2)", FloatDistribution(0, 2)),
        ("a=int(interval(1,5))", IntDistribution(1, 5)),
        ("a=range(1,6,2)", IntDistribution(1, 5, step=2)),
        ("a=range(1,6)", IntDistribution(1, 5)),
        ("a=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("a=range(3,0,-1)", IntDistribution(1, 3)),
        ("a=x,y", CategoricalDistribution(["x", "y"])),
        ("a=[4,8],null,'b&c'", CategoricalDistribution(["[4,8]", "null", "'b&c'"])),
    ],
)
def test_hydra_overrides_define_the_search_space(override, expected):
    parse = OverridesParser.create().parse_overrides
    assert search_space(parse([override, "b=3"])) == {"a": expected}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joblib", "submitit_local"])
def test_launchers_run_trials_side_by_side(arguments, tmp_path, name):
    options = search(2, RATE, "hydra.sweeper.n_jobs=2", f"hydra/launcher={name}")
    subprocess.run([sys.executable, *arguments(*options)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    folder = tmp_path / "sweep"
    assert states(folder) == ["COMPLETE", "COMPLETE"]
    first, second = trials(folder)
    assert max(first.datetime_start, second.datetime_start) < min(
        first.datetime_complete, second.datetime_complete
    )
    assert len({str(t.params) for t in trials(folder)}) == 2
    assert all(len(t.intermediate_values) == 1 for t in trials(folder))


def test_stopped_grid_resumes_with_the_missing_runs(sweep, tmp_path):
    folder = sweep("seed=1,2", "ckpt_path=auto")
    (folder / "1" / "metrics.json").unlink()
    ends = {n: (folder / n / "checkpoints" / "best.ckpt").stat().st_mtime_ns for n in "01"}
    sweep("seed=1,2", "ckpt_path=auto")
    assert [run.status for run in find_runs([folder])] == ["finished", "finished"]
    assert not [*folder.glob("*/train.log"), *folder.glob("*/hparams.yaml")]  # there is nothing in them
    assert (folder / "0" / "checkpoints" / "best.ckpt").stat().st_mtime_ns == ends["0"]
    metrics = (folder / "0" / "metrics.json").stat().st_mtime_ns
    sweep("seed=1,2", "ckpt_path=auto", "trainer.max_epochs=2")
    assert [run.metrics["epochs"] for run in find_runs([folder])] == [2, 2]
    assert (folder / "0" / "metrics.json").stat().st_mtime_ns > metrics


@pytest.mark.slow
def test_a_pruned_run_of_two_processes_ends_in_both(sweep, tmp_path):
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=2")
    with pytest.raises(SystemExit):
        sweep(*search(1, RATE, *HARSH, *two))
    assert states(tmp_path / "sweep") == ["PRUNED"]
    assert read_run(tmp_path / "sweep" / "0").reason.startswith("after epoch 0")
