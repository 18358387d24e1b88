"""Settings of a training with values of wrong kinds: accepted, or one sentence that names the setting."""

import math
import re

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from atlalign.errors import InputError, sentence
from atlalign.training.arguments import check_kinds_of
from atlalign.training.run import _KINDS, _check_values, build
from tests.training.test_config import composed

WRONG = ["abc", -3, None, [1, "x"], 10**23, math.nan, True]


def keys(node, prefix=""):
    for key in node:
        if isinstance(node[key], DictConfig):
            yield from keys(node[key], f"{prefix}{key}.")
        elif not str(key).startswith("_") and not isinstance(node._get_node(key), ListConfig):
            yield f"{prefix}{key}"


def check(config, group) -> None:
    if group in config and isinstance(config[group], DictConfig):
        build(config[group])
    else:
        check_kinds_of(config, _KINDS)
        _check_values(config)


CHECKED = ("model", "loss", "optimizer", "scheduler")
CONFIG = composed("scheduler=plateau")
KEYS = [*_KINDS, *(f"{group}.{key}" for group in CHECKED for key in keys(CONFIG[group]))]


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_value_is_accepted_or_named(key):
    for value in WRONG:
        config = CONFIG.copy()
        OmegaConf.update(config, key, value)
        said = said_of(config, key.split(".")[0])
        assert said is None or {key.split(".")[0], key.split(".")[-1]} & set(re.findall(r"\w+", said)), value


def said_of(config, group) -> str | None:
    """Return the sentence about a mistake; None where there is none."""
    try:
        check(config, group)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        return said
    return None


@pytest.mark.parametrize("override", ["freeze=5", "ckpt_path=5", "seed=12345678901234567890123", "run_dir=5"])
def test_known_mistakes_of_single_settings(override):
    key = override.split("=")[0]
    with pytest.raises(InputError, match=f"^{key}: expected"):
        check_kinds_of(composed(override), _KINDS)
