"""Evaluation: a trained network beside baselines on annotated sections, as tables, JSON and a report.

Each sample is measured by itself. Means are over sections: samples that show one section (one `image_id`) are averaged
first. Confidence intervals come from a bootstrap over sections, since samples of one section are not independent.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from atlalign.arguments import as_list, check_kind, check_kinds_of
from atlalign.errors import InputError, check_numbers, check_size, unknown_name
from atlalign.evaluation import report
from atlalign.evaluation.as_trained import as_trained, check_like_training, on_an_atlas
from atlalign.evaluation.means_table import print_table
from atlalign.evaluation.methods import baseline, network_method
from atlalign.evaluation.summary import NETWORK, summarize
from atlalign.evaluation.trial import Trial
from atlalign.io.files import folder_written_whole
from atlalign.models import load_model, read_origin
from atlalign.networks.device import chosen_device
from atlalign.versions import versions

_KINDS: Mapping[str, Any] = {
    "out": str,
    "split": str,
    "baselines": str | list[str],
    "segmentation": bool,
    "landmarks": str | None,
    "perceptual_weights": str | None,
    "n_viewers": int,
    "n_resamples": int,
    "device": str,
    "allow": str | list[str],
    "seed": int,
}
_SPLITS = ("val", "train", "all")
_LEAST = {"n_viewers": 0, "n_resamples": 1, "seed": 0}
_BYTES_A_RESAMPLE = 2**13  # of the bootstrap draws over some hundred sections


def evaluate(config: DictConfig) -> Path:
    """Evaluate as `conf/evaluate.yaml` describes and return the folder with tables and report.

    Raises:
        InputError: If the configuration, the model or the data are invalid; nothing is written in this case.
    """
    # Missing values are reported here by their key; later, a constructor would only report a missing argument.
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    check_kinds_of(config, _KINDS)
    check_kind("model.path", config.model.path, str)
    origin = read_origin(config.model.path)
    config = on_an_atlas(as_trained(config, origin), origin)
    out = Path(config.out).expanduser()
    if out.exists():
        raise InputError(f"out: {out} already exists: choose another folder")
    _check_values(config)
    check_like_training(config, origin)
    baselines = {name: baseline(name) for name in as_list(config.baselines)}
    network = load_model(config.model.path, allow=as_list(config.allow))
    methods = {NETWORK: network_method(network, chosen_device(config.device)), **baselines}
    trial = Trial.of(config)
    rows = trial.run(methods)
    views = trial.views(methods[NETWORK], rows, config.n_viewers)
    summaries = summarize(rows, n_resamples=config.n_resamples, seed=config.seed)
    with folder_written_whole(out) as folder:
        report.write(folder, _describe(config, trial), rows, summaries, views)
    print_table(summaries)
    Console().print(f"tables and report.html are in [bold]{out}[/bold]")
    return out


def _check_values(config: DictConfig) -> None:
    """Check the settings that are not passed to any object, which would check them itself."""
    if config.split not in _SPLITS:
        raise unknown_name("split", config.split, _SPLITS)
    check_numbers(config, _LEAST)
    check_size("n_resamples", [config.n_resamples], _BYTES_A_RESAMPLE)


def _describe(config: DictConfig, trial: Trial) -> dict[str, Any]:
    """Return a description with everything that is needed to repeat the evaluation."""
    return {
        "model": str(config.model.path),
        "data": str(trial.dataset.path),
        "split": config.split,
        "atlas": trial.atlas.name,
        "image_shape": list(trial.atlas.image_shape),
        "pixel_um": list(trial.atlas.pixel_um),
        "n_samples": len(trial.samples),
        "n_sections": len(np.unique(trial.dataset.image_ids.numpy()[trial.samples])),
        "versions": versions(),
        "config": OmegaConf.to_container(config, resolve=True),
    }
