"""The terminal output of a training."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar

from atlalign.training.callbacks import NetworkSummary, Progress
from atlalign.training.run import train
from tests.training.conftest import TINY, TINY_LOCAL


@pytest.mark.parametrize(
    ("max_epochs", "shown"), [(3, ["Epoch 1/3", "Epoch 3/3"]), (-1, ["Epoch 1", "Epoch 3"])]
)
def test_epochs_count_from_one(max_epochs, shown):
    progress = Progress()
    progress._trainer = SimpleNamespace(max_epochs=max_epochs)
    assert [progress._get_train_description(epoch).rstrip() for epoch in (0, 2)] == shown


@pytest.mark.parametrize(("width", "n_columns"), [(80, 3), (120, 5)])
def test_a_narrow_terminal_has_no_bar(monkeypatch, width, n_columns):
    monkeypatch.setattr("atlalign.training.callbacks.get_console", lambda: SimpleNamespace(width=width))
    assert len(Progress().configure_columns(SimpleNamespace())) == n_columns


def test_of_the_last_step_the_loss_is_shown_alone(monkeypatch):
    values = {"train loss": 1.0, "train px": 2.0, "val loss": 3.0, "val px": 4.0}
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: values)
    shown = Progress().get_metrics(SimpleNamespace(), SimpleNamespace())
    assert shown == {"loss": 1.0, "val loss": 3.0, "val px": 4.0}


def test_the_summary_counts_parameters(capsys):
    module = pl.LightningModule()
    module.network, module.loss = torch.nn.Linear(100, 20), torch.nn.Linear(10, 1).requires_grad_(False)
    NetworkSummary().on_fit_start(SimpleNamespace(is_global_zero=False), module)
    assert not capsys.readouterr().out
    NetworkSummary().on_fit_start(SimpleNamespace(is_global_zero=True), module)
    shown = capsys.readouterr().out
    assert "2,020 of 2,031 parameters are trained" in shown
    assert "network" in shown
    assert "FLOP" not in shown


def test_a_log_gets_a_line_after_each_epoch(configure, capsys):
    options = ["callbacks.summary=null", "callbacks.figure=null", "trainer.enable_progress_bar=true"]
    tiny = [
        option for option in (*TINY, *TINY_LOCAL) if not option.startswith(("callbacks", "trainer.enable"))
    ]
    train(configure("trainer.max_epochs=2", *options, tiny=tiny))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch")]
    assert [line.split(",")[0] for line in lines] == ["Epoch 1/2: 5 of 5 steps", "Epoch 2/2: 5 of 5 steps"]
    assert all("loss" in line and "val px" in line for line in lines)
