"""Values that Hydra's grammar rejects are quoted; valid values keep their meaning."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from atlalign.cli.overrides import quoted_overrides
from atlalign.errors import InputError


def values(*arguments: str) -> list:
    parsed = [OverridesParser.create().parse_override(a) for a in quoted_overrides(arguments) if a != "-m"]
    return [list(o.sweep_string_iterator()) if o.is_sweep_override() else o.value() for o in parsed]


@pytest.mark.parametrize(
    "path",
    [
        "/x/My data (1)/made.h5", "/x/a=b.h5", "/x/Mäuse.h5", "checkpoints/epoch=3-step=120.ckpt", "/x/a,b.h5",
        "/x/it's.h5", '/x/"a".h5', "C:\\My data (1)\\", "/x/#1 & 2;.h5", "/x/a\tb!.h5", "50%.h5",
    ],
)  # fmt: skip
def test_any_path_arrives_as_it_was_typed(path):
    assert values(f"data.path={path}", f"+ckpt_path={path}") == [path, path]


def test_the_home_folder_is_found():
    assert values("data.path=~/a.h5", "out=~/b (1).h5") == [
        str(Path.home() / "a.h5"),
        str(Path.home() / "b (1).h5"),
    ]


def test_multirun_values_are_quoted_separately():
    assert values("-m", "data.path=/x/a (1).h5,/x/b.h5", "seed=1,2") == [
        ['"/x/a (1).h5"', "/x/b.h5"],
        ["1", "2"],
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["data.path=\"/x/a (1).h5\"", "seed=3", "augment=none", "data.image_shape=[32,48]", "~optimizer.alpha", "out="],
        ["-m", "optimizer.lr=interval(1e-4,1e-2)", "seed=1,2", "model=local,global"],
        ["--cfg", "job", "--config-dir=/x/a (1)", "seed=1,2"],
        ["callbacks.figure={_target_:a.B,n:0}", "data.path=${oc.env:HOME}/a.h5"],
    ],
)  # fmt: skip
def test_valid_overrides_stay_unchanged(arguments):
    assert quoted_overrides(arguments) == arguments


@pytest.mark.parametrize("override", ["data.image_shape=[1,2", 'data.path="/x/a', "x={a:1", "x=interval(1,2"])
def test_a_mistake_in_the_grammar_shows_how_to_quote(override):
    key = override.split("=")[0]
    with pytest.raises(InputError, match=f"^{key}: .*'{key}="):
        quoted_overrides([override])


def test_a_key_of_an_earlier_version_is_refused_with_its_new_name():
    with pytest.raises(InputError, match=r"^checkpoint: .*model\.path=runs/X/best\.ckpt"):
        quoted_overrides(["checkpoint=runs/X/best.ckpt", "out=x"])
