"""The terminal output of a training."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar

from atlalign.training.callbacks import NetworkSummary, Progress


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
