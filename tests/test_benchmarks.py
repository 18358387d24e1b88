"""Each row runs at a tiny size, so that the benchmarks never rot, and its arithmetic is what the page says."""

import json
import re
import sys

import pytest
import torch

from atlalign.networks import LocalUNet
from benchmarks import __main__ as bench
from benchmarks import programs
from benchmarks.measure import NotMeasuredError, Size, Turns, Wanted, in_turns, turn_numbers
from benchmarks.networks import forward_multiply_adds, local_layers, step_multiply_adds

TINY = Size(
    shape=(32, 48), repeats=1, block_s=0, matrix=64, samples=8, sections=1, section_shape=(67, 102), steps=1, planes=20
)  # fmt: skip
SLOW = {"start_cli", "start_train", "memory"}


@pytest.fixture(autouse=True)
def _only_synthetic(monkeypatch):
    monkeypatch.delenv("ATLALIGN_TEST_DATA", raising=False)


@pytest.mark.parametrize(
    "name",
    [
        n if n not in SLOW else pytest.param(n, marks=pytest.mark.slow)
        for n in bench.ROWS
        if not n.startswith("register")
    ],
)
def test_each_row_runs(name):
    result = bench.measured(bench.ROWS[name], TINY)
    assert result["value"] is not None, result["note"]
    assert all(ours > 0 and other > 0 for ours, other in zip(*result["turns"].values(), strict=True))


@pytest.mark.parametrize("name", ["register", "register_large"])
def test_registering_is_compared_with_passes_of_the_network(name):
    result = bench.measured(bench.ROWS[name], TINY)
    n_passes, n_networks = map(int, re.search(r"passes: (\d+), networks: (\d+)", result["note"]).groups())
    assert n_passes >= TINY.sections
    assert n_networks <= 2  # one for the batch, and its one-sided half for second opinions
    # One pass of a network takes a millisecond at least, and a section not a thousand times as long.
    assert min(result["turns"]["other"]) > 1e-3
    assert 1 < result["value"] < 1000


def test_registration_without_a_network_is_not_measured(monkeypatch):
    monkeypatch.setattr(programs, "atlalign", lambda arguments: 0)
    with pytest.raises(RuntimeError, match="ran no network"):
        bench.measured(bench.ROWS["register"], TINY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", bench.GPU_ROWS)
def test_gpu_rows_without_a_gpu_are_marked(name):
    result = bench.measured(bench.GPU_ROWS[name], TINY)
    assert result["value"] is None
    assert result["note"] == "needs a GPU"


@pytest.mark.parametrize("name", bench.GPU_ROWS)
def test_the_rows_of_a_gpu_run_on_a_cpu_as_well(name, monkeypatch):
    """All but the device, its memory's meter and the compiler: what they would measure is not looked at."""
    for constant, value in {
        "_DEVICE": "cpu",
        "_TRAINED_ON": "cpu",
        "_BATCH": 4,
        "_COPIED": 2**20,
        "_STEPS": 2,
    }.items():
        monkeypatch.setattr(bench.gpu, constant, value)
    monkeypatch.setattr(bench.gpu, "_check_device", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 4e6)
    monkeypatch.setattr(LocalUNet, "compile", lambda network: None)
    result = bench.measured(bench.GPU_ROWS[name], TINY)
    assert result["value"] > 0
    assert all(ours > 0 and other > 0 for ours, other in zip(*result["turns"].values(), strict=True))


def test_the_command_prints_a_table_and_writes_json_with_the_machine(tmp_path, monkeypatch, capsys):
    def unavailable(size):
        raise NotMeasuredError("needs luck")

    found = bench.Measured(3.0, Turns([3.0], [1.0]), "why")
    rows = {
        "quick": bench.Row("a", "b", Wanted("≤", 2.0, "×"), lambda size: found),
        "none": bench.Row("c", "d", Wanted("≥", 0.5, "%"), unavailable),
    }
    monkeypatch.setattr(bench, "ROWS", rows)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path / "new" / "bench.json")])
    bench.main()
    printed = capsys.readouterr().out
    for word in ("quick", "3.00 ×", "≤ 2.00 ×", "no", "why", "≥ 50 %", "not measured", "needs luck"):
        assert word in printed
    written = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert written["rows"]["quick"]["is_met"] is False
    assert {"cpu", "cores", "torch_threads", "versions", "load_before", "load_after"} <= set(
        written["machine"]
    )


def test_ratios_are_taken_turn_by_turn():
    # The second turn was slow for both, the third for ours alone.
    turns = Turns([2.0, 20.0, 9.0], [1.0, 10.0, 1.0])
    assert (turns.times_as_long(), turns.times_as_fast(), turns.longer_by()) == (2.0, 0.5, 8.0)


def test_turns_alternate_and_each_comes_first_as_often():
    order = []
    turns = in_turns(lambda: order.append("ours"), lambda: order.append("other"), Size(repeats=4), block_s=0)
    assert order[2:] == ["other", "ours", "ours", "other", "other", "ours", "ours", "other"]
    assert [len(times) for times in turns] == [4, 4]


def test_a_row_that_takes_long_gets_three_turns():
    patient, hasty = Size(repeats=5), Size(repeats=5, patience_s=0)
    assert [list(turn_numbers(size)) for size in (patient, hasty)] == [[0, 1, 2, 3, 4], [0, 1, 2]]


def test_nominal_multiply_adds_are_those_of_the_plain_architecture():
    # What torch's FlopCounterMode counts of convolutions written one after the other.
    layers = local_layers(LocalUNet().hyperparameters, (320, 456))
    assert forward_multiply_adds(layers) == 12_635_176_960
    assert step_multiply_adds(layers) == 3 * 12_635_176_960 - 2 * 16 * 9 * 320 * 448
