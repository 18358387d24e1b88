"""Settings of all programs with values of wrong kinds: accepted, or one sentence that names the setting."""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from atlalign.arguments import build, check_kinds_of
from atlalign.atlas.atlas import Atlas, phantom_atlas
from atlalign.errors import MOST_PROCESSES, InputError, sentence
from atlalign.evaluation import evaluate as evaluation
from atlalign.synthesis import generate as generation
from atlalign.training import settings
from atlalign.training.building import build_callbacks
from tests.training.test_config import CONF, composed

SHAPE = (32, 48)
WRONG = ["abc", [], None, -3, 0, 1e30, math.nan, True, [1, "x"], 10**12]
# An empty list of samples is found out where the samples are counted; an atlas as fine as that is only slow.
SIZES = ["data.image_shape=[32,48]", "atlas.spacing_um=2200"]


class Group(NamedTuple):
    """Settings that are checked together."""

    program: str
    name: str
    check: Callable[[DictConfig], Any]
    overrides: tuple[str, ...] = ()


@cache
def atlas() -> Atlas:
    return phantom_atlas(image_shape=SHAPE, spacing_um=1100)


def build_group(name: str, **objects: Any) -> Callable[[DictConfig], Any]:
    return lambda config: build(config[name], **objects)


def build_on_atlas(name: str) -> Callable[[DictConfig], Any]:
    return lambda config: build(config[name], atlas=atlas())


def build_trainer(config: DictConfig) -> None:
    settings._check_trainer(config.trainer)
    build(config.trainer, logger=False, callbacks=[])


GROUPS = [
    *(Group("train", name, build_group(name)) for name in ("model", "loss", "optimizer", "atlas")),
    Group("train", "scheduler", build_group("scheduler"), ("scheduler=plateau",)),
    Group("train", "data", build_on_atlas("data"), ("data.folder=unused", "data.return_inverse=false")),
    Group("train", "data", build_on_atlas("data"), ("data=online", "data.return_inverse=false")),
    Group(
        "train",
        "data",
        build_on_atlas("data"),
        ("data=h5", "data.path=unused.h5", "data.return_inverse=false"),
    ),
    Group("train", "augment", build_group("augment"), ("augment=augmenter_1",)),
    Group("train", "augment", build_group("augment"), ("augment=kornia_1",)),
    Group("train", "trainer", build_trainer, ("trainer=cpu",)),
    Group("train", "callbacks", lambda c: build_callbacks(c.callbacks), ("callbacks=early_stopping",)),
    Group("train", "logger", build_group("logger"), ("logger=csv",)),
    Group("train", "logger", build_group("logger")),
    Group("generate", "source", build_on_atlas("source")),
    Group("generate", "source", build_group("source"), ("source=images", "source.path=unused.csv")),
    Group("generate", "source", build_group("source"), ("source=annotated", "source.path=unused.h5")),
    *(
        Group("generate", "deformation", build_group("deformation"), (f"deformation={name}",))
        for name in ("edge_stretching", "affine", "smooth", "mix")
    ),
]


def configuration(program: str, *overrides: str) -> DictConfig:
    given = {
        "train": ["run_dir=unused"],
        "generate": ["out=unused.h5"],
        "evaluate": ["model.path=x", "out=x"],
    }
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, [*given[program], *SIZES[: 2 if program != "evaluate" else 1], *overrides])


def keys(node: DictConfig, prefix: str) -> Iterator[str]:
    """Yield the settings under a node, those that stand elsewhere included, and mappings of them."""
    for key in map(str, node):
        child = node._get_node(key)
        if isinstance(child, DictConfig) and isinstance(child._value(), dict):
            yield from keys(child, f"{prefix}{key}.")
        elif not key.startswith("_"):
            yield f"{prefix}{key}"


def said_of(config: DictConfig, key: str, value: Any, check: Callable[[DictConfig], Any]) -> str | None:
    """Return the sentence about a value; None where it is accepted."""
    changed = config.copy()
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(changed, parent) if parent else changed
    node[leaf] = value
    try:
        check(changed)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        return said
    return None


def is_named(key: str, value: Any, said: str) -> bool:
    """Return whether a sentence names the setting itself, its word, or a file that is not there."""
    names = [key.rpartition(".")[2], "unused."]
    return any(name in said for name in names) or (value == "abc" and value in said)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: "-".join((*group[:2], *group.overrides[:1])))
def test_a_wrong_value_of_a_part_is_accepted_or_named(group, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configuration(group.program, *group.overrides)
    missed = []
    for key in keys(config[group.name], f"{group.name}."):
        for value in WRONG:
            said = said_of(config, key, value, group.check)
            if said is not None and not is_named(key, value, said):
                missed.append(f"{key}={value}: {said}")
    # What an interpolation stands for is named where it stands.
    assert [m for m in missed if not m.startswith(("atlas.image_shape", "source.image_shape"))] == []
    assert not any(tmp_path.iterdir())


def check_train(config: DictConfig) -> None:
    check_kinds_of(config, settings.KINDS)
    settings.check_values(config)


def check_evaluate(config: DictConfig) -> None:
    check_kinds_of(config, evaluation._KINDS)
    evaluation._check_values(config)


@pytest.mark.parametrize(
    ("program", "kinds", "check"),
    [
        ("train", settings.KINDS, check_train),
        ("generate", generation._KINDS, generation._check_values),
        ("evaluate", evaluation._KINDS, check_evaluate),
    ],
)
def test_a_wrong_value_of_a_program_is_accepted_or_named(program, kinds, check):
    config = configuration(program)
    for key in kinds:
        for value in WRONG:
            said = said_of(config, key, value, check)
            assert said is None or key in said, value


@pytest.mark.parametrize(
    ("group", "override"),
    [
        ("data", "n_sections=-3"),
        ("data", "fields_per_section=0"),
        ("data", "fields_per_section=1000000000"),  # terabytes
        ("data", f"num_workers={MOST_PROCESSES + 1}"),
        ("data", "val_fraction=1"),
        ("source", "n_sections=0"),
        ("source", "n_sections=1000000000"),
        ("trainer", f"devices={MOST_PROCESSES + 1}"),
        ("trainer", "max_time=abc"),
        ("callbacks", "last.every_n_minutes=-1"),
        ("atlas", "spacing_um=1e-3"),
    ],
)
def test_a_wrong_value_of_a_part_is_refused(group, override):
    found = next(g for g in GROUPS if g.name == group)
    key, _, text = override.partition("=")
    said = said_of(
        configuration(found.program, *found.overrides),
        f"{group}.{key}",
        OmegaConf.create({"a": text}).a if text == "abc" else float(text) if "e" in text else int(text),
        found.check,
    )
    assert said is not None
    assert said.startswith(f"{group}.{key}:")


@pytest.mark.parametrize("override", ["freeze=5", "ckpt_path=5", "seed=12345678901234567890123", "run_dir=5"])
def test_known_mistakes_of_single_settings(override):
    key = override.split("=")[0]
    with pytest.raises(InputError, match=f"^{key}: expected"):
        check_kinds_of(composed(override), settings.KINDS)


@pytest.mark.parametrize(
    ("program", "override"),
    [
        ("generate", "workers=-1"),
        ("generate", "workers=100000"),
        ("generate", "out=5"),
        ("generate", "seed=12345678901234567890123"),
        ("generate", "per_original=0"),
        ("evaluate", "baselines=5"),
        ("evaluate", "out=5"),
        ("evaluate", "n_resamples=1000000000000"),
        ("evaluate", "split=half"),
        ("evaluate", "n_viewers=-1"),
    ],
)
def test_known_mistakes_of_generate_and_evaluate(program, override):
    key = override.split("=")[0]
    check = generation._check_values if program == "generate" else check_evaluate
    with pytest.raises(InputError, match=key):
        check(configuration(program, override))


def test_samples_of_an_original_that_memory_cannot_hold_are_refused(tmp_path: Path):
    config = configuration("generate", f"out={tmp_path / 'a.h5'}", "per_original=1000000000")
    with pytest.raises(InputError, match=r"^per_original: .*GiB"):
        generation.generate(config)
    assert not any(tmp_path.iterdir())
