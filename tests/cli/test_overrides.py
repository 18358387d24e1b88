"""Values that Hydra's grammar rejects are quoted; valid values keep their meaning."""

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from atlalign.atlas.axes import parse_axes
from atlalign.cli.overrides import check_repeated, quoted_overrides
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
        ["--cfg", "job", "--config-dir=/x/a (1)", "seed=1"],
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


@pytest.mark.parametrize("written", ["LR,PA,VD", "[LR,PA,VD]", "LR, PA, VD"])
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_axes_are_one_value(written, mode):
    (axes,) = [a for a in quoted_overrides([*mode, f"atlas.axes={written}"]) if a != "-m"]
    parsed = OverridesParser.create().parse_override(axes)
    assert not parsed.is_sweep_override()
    assert parse_axes(parsed.value()) == ("LR", "PA", "VD")


def test_several_values_need_a_list_or_a_multirun():
    with pytest.raises(InputError, match=r"^data.image_shape: .*'data.image_shape=\[32,48\]'.* -m "):
        quoted_overrides(["data.image_shape=32,48"])
    assert quoted_overrides(["-m", "seed=1,2"]) == ["-m", "seed=1,2"]


@pytest.mark.parametrize("second", ["model=global", "+model=global", "model=local"])
def test_two_options_of_a_group_are_refused(second):
    with pytest.raises(InputError, match=rf"^model: .*model=local and {re.escape(second)}"):
        check_repeated(["model=local", "seed=1", second])
    check_repeated(["~model", "+model=local"])


def test_a_repeated_value_is_reported(capsys):
    check_repeated(["seed=1", "trainer.max_epochs=1", "seed=2"])
    assert "seed=2 replaces seed=1" in capsys.readouterr().err
