"""The table of runs, from folders of finished, failed, pruned and killed runs."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from atlalign.cli import main as atlalign
from atlalign.errors import InputError
from atlalign.training.comparison import compare, reasons, rich_table, rows
from atlalign.training.runs import Pruned, begin, find_runs, read_run, record_failure, recorded_failure

DISTANCE = "val/vector_distance"


def write_run(folder: Path, metrics: dict[str, float] | None = None, **choices) -> Path:
    """Write what a run leaves: its configuration, and metrics where it finished."""
    folder.mkdir(parents=True)
    fixed = {"objective": DISTANCE, "data": {"seed": choices.get("seed", 0), "path": "my.h5"}}
    config = OmegaConf.create({"run_dir": str(folder), "log": f"{folder}/log", **fixed, **choices})
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A sweep of every fate: the best run in the middle, two that ended early, and one that was killed."""
    identity = {"val/identity/vector_distance": 9.0}
    folder = tmp_path / "sweep"
    write_run(folder / "0", {DISTANCE: 3.0, "seconds": 10, **identity}, loss={"dvf": "a"}, seed=1)
    write_run(folder / "2", {DISTANCE: 1.5, "seconds": 20, **identity}, loss={"dvf": "b"}, seed=1)
    write_run(folder / "9", {DISTANCE: float("nan"), "seconds": 1, **identity}, loss={"dvf": "b"}, seed=2)
    failed = write_run(folder / "10", loss={"dvf": "a|b"}, seed=2)
    record_failure(failed, InputError("loss.dvf: expected a key, got 'a|b'"), seconds=0.5)
    record_failure(write_run(folder / "11", loss={"dvf": "c"}, seed=2), Pruned("after epoch 3"))
    write_run(folder / "12", loss={"dvf": "c"}, seed=3)
    return folder


def test_best_run_comes_first_and_unfinished_runs_last(sweep):
    table = compare(find_runs([sweep]))
    assert table.names == ["2", "0", "9", "10", "11", "12"]
    assert [run.status for run in table.runs] == ["finished"] * 3 + ["failed", "pruned", "unfinished"]
    assert compare(find_runs([sweep]), descending=True).names[:3] == ["0", "2", "9"]
    assert compare(find_runs([sweep]), "seconds").names[:4] == ["10", "9", "0", "2"]


def test_only_differing_keys_are_shown(sweep):
    # run_dir and what lies below it differ by place alone; data.seed always equals seed; objective never differs.
    assert compare(find_runs([sweep])).keys == ["loss.dvf", "seed"]


def test_among_several_sizes_the_best_is_far_better_than_nothing(tmp_path, capsys):
    small, large = {"image_shape": [32, 48]}, {"image_shape": [64, 96]}
    baseline = "val/identity/vector_distance"
    write_run(tmp_path / "0", {DISTANCE: 2.0, baseline: 4.0}, data=small)
    write_run(tmp_path / "1", {DISTANCE: 2.5, baseline: 10.0}, data=large)
    table = compare(find_runs([tmp_path]))
    assert (table.names, table.metric) == (["1", "0"], "val/ratio")
    assert table.runs[0].metrics["val/ratio"] == 0.25
    assert compare(find_runs([tmp_path]), DISTANCE).names == ["0", "1"]
    assert atlalign(["runs", str(tmp_path)]) == 0
    assert "sorted by val/ratio" in capsys.readouterr().out
    assert "sorted by val/ratio" in (tmp_path / "runs.md").read_text()
    assert compare(find_runs([tmp_path / "0"])).note == ""


def test_runs_that_are_no_better_than_doing_nothing_are_reported(tmp_path):
    for name, after in enumerate([2.113, 2.1, 1.0]):
        write_run(tmp_path / str(name), {DISTANCE: after, "val/identity/vector_distance": 2.1}, seed=name)
    assert any(
        line.startswith("2 of 3 runs do not reduce the error")
        for line in reasons(compare(find_runs([tmp_path])))
    )
    assert ["2", "finished", "2", "1", "0.4762"] in list(rows(compare(find_runs([tmp_path]))))
    assert not reasons(compare(find_runs([tmp_path / "2"])))


def test_the_ratio_is_that_of_the_objective(tmp_path):
    metrics = {"val/plane_error": 1.0, "val/identity/plane_error": 4.0, "epochs": 3}
    write_run(tmp_path / "0", metrics, objective="val/plane_error")
    assert compare(find_runs([tmp_path])).runs[0].metrics["val/ratio"] == 0.25


def shown_at(width: int, folder: Path) -> str:
    console = Console(width=width, file=StringIO())
    console.print(rich_table(compare(find_runs([folder])), width))
    return console.file.getvalue()


def test_terminal_table_fits_the_width(tmp_path):
    local = {"_target_": "a.Local", "width": 3, "only_local": 1, "path": "x" * 50 + "1"}
    write_run(tmp_path / "0", {DISTANCE: 2.0}, model=local, seed=1)
    write_run(
        tmp_path / "1", {DISTANCE: 3.0}, model={"_target_": "a.Global", "width": 4, "path": "y" * 51}, seed=2
    )
    write_run(tmp_path / "2", {DISTANCE: 4.0}, model={**local, "width": 5}, seed=3)
    assert "model.only_local" in compare(find_runs([tmp_path])).keys
    wide = shown_at(1000, tmp_path)
    assert "only_" not in wide  # the model says it
    assert "width" in wide
    assert "xxx1 " in wide
    assert "x" * 40 not in wide
    narrow = shown_at(60, tmp_path)
    assert max(map(len, narrow.splitlines())) <= 60
    assert "xxx1" not in narrow
    assert "Global" in narrow
    assert "keys left out: 1 " in wide
    assert "keys left out: 2 " in narrow


def test_markdown_csv_and_picture(sweep, tmp_path, capsys):
    out = tmp_path / "made" / "table"
    assert atlalign(["runs", str(sweep), "--out", str(out)]) == 0
    lines = out.with_suffix(".md").read_text().splitlines()
    assert lines[0] == "| run | status | loss.dvf | seed | val/vector_distance | val/ratio | seconds |"
    assert lines[2] == "| 2 | finished | b | 1 | 1.5 | 0.1667 | 20 |"
    assert r"| 10 | failed | a\|b | 2 |  |  | 0.5 |" in lines
    assert "- 10 failed: loss.dvf: expected a key, got 'a|b'" in lines
    assert "- 11 pruned: after epoch 3" in lines
    with out.with_suffix(".csv").open() as file:
        records = list(csv.DictReader(file))
    assert float(records[0]["val/identity/vector_distance"]) == 9
    assert records[3]["reason"] == "loss.dvf: expected a key, got 'a|b'"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "10 failed: loss.dvf: expected a key" in shown
    assert shown.index(" 2    finished") < shown.index(" 0    finished")
    assert len(list(out.parent.iterdir())) == 3


def test_table_beside_the_runs_is_not_taken_for_a_run(sweep):
    assert atlalign(["runs", str(sweep)]) == 0
    assert {p.name for p in sweep.glob("runs.*")} == {"runs.md", "runs.csv", "runs.png"}
    assert len(find_runs([sweep])) == 6


def test_runs_of_several_folders_have_distinct_names(tmp_path):
    folders = [write_run(tmp_path / a / "0", {DISTANCE: 1.0}).parent for a in ("first", "second")]
    assert sorted(compare(find_runs(folders)).names) == ["first/0", "second/0"]
    assert compare(find_runs(folders[:1])).names == ["0"]


def test_a_sweep_in_which_nothing_finished(tmp_path):
    record_failure(write_run(tmp_path / "0", seed=1), RuntimeError("out of memory"))
    (tmp_path / "1" / ".hydra").mkdir(parents=True)
    table = compare(find_runs([tmp_path]))
    assert list(rows(table)) == [["0", "failed", ""], ["1", "unfinished", ""]]
    assert table.runs[0].reason == "RuntimeError: out of memory"
    assert atlalign(["runs", str(tmp_path)]) == 0


def test_a_failing_run_leaves_its_reason_and_configuration(tmp_path):
    config = OmegaConf.create({"run_dir": str(tmp_path), "seed": 1, "data": {"seed": "${seed}"}})
    with pytest.raises(MemoryError), recorded_failure(tmp_path, config):
        raise MemoryError("no\nroom")
    run = read_run(tmp_path)
    assert (run.status, run.reason, run.config["data.seed"]) == ("failed", "MemoryError: no room", 1)
    assert run.metrics["seconds"] >= 0
    with recorded_failure(tmp_path, config):
        assert read_run(tmp_path).status == "unfinished"


def test_a_run_that_had_finished_stays_until_the_new_attempt_begins(tmp_path):
    config = OmegaConf.create({"run_dir": str(tmp_path), "seed": 2})
    folder = write_run(tmp_path / "run", {DISTANCE: 3.0}, seed=1)
    with pytest.raises(InputError), recorded_failure(folder, config):
        raise InputError("there is no atlas")
    assert (read_run(folder).status, read_run(folder).config["seed"]) == ("finished", 1)
    with pytest.raises(InputError), recorded_failure(folder, config):
        raise InputError(str(begin(folder, config)))
    run = read_run(folder)
    assert (run.status, run.config["seed"], list(run.metrics)) == ("failed", 2, ["seconds"])


def test_a_run_that_missed_its_goal_keeps_its_metrics(tmp_path):
    folder = write_run(tmp_path / "run", {DISTANCE: 3.0})
    record_failure(folder, InputError("require_ratio: expected less"))
    assert (read_run(folder).status, read_run(folder).metrics[DISTANCE]) == ("failed", 3.0)


def test_mistakes_are_answered(sweep, tmp_path, capsys):
    assert atlalign(["runs", str(sweep), "--sort", "val/vector_distanc"]) == 1
    assert "unknown metric 'val/vector_distanc'. Did you mean val/vector_distance" in capsys.readouterr().err
    assert atlalign(["runs", str(tmp_path / "nowhere")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert atlalign(["runs", str(tmp_path / "empty")]) == 1
    assert f"{tmp_path / 'empty'}: " in capsys.readouterr().err
    (sweep / "0" / "metrics.json").write_text("{")
    assert atlalign(["runs", str(sweep)]) == 1
    shown = capsys.readouterr().err
    assert "metrics.json: expected JSON" in shown
    assert "ckpt_path=auto" in shown


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("metrics.json", "[]", "a JSON object"),
        ("metrics.json", '{"seconds": "a"}', "a number for seconds"),
        ("metrics.json", "{", "JSON"),
        ("metrics.json", "[" * 100_000, "JSON"),
        ("failure.json", "[]", "a JSON object"),
        ("failure.json", "{}", "the end of a run"),
        ("failure.json", '{"status": 5, "reason": "x", "metrics": {}}', "the end of a run"),
        ("failure.json", '{"status": "failed", "reason": "x", "metrics": []}', "the end of a run"),
        ("config.yaml", "run_dir: [", "the configuration of a run"),
        ("config.yaml", "- 5", "the configuration of a run"),
    ],
    ids=str,
)
def test_a_damaged_file_of_a_run_is_named(name, content, key, tmp_path):
    (tmp_path / "config.yaml").write_text("run_dir: x\nmodel: {_target_: 5}\n")
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: expected {key}"):
        read_run(tmp_path)
