"""Importing objects by name, and the reason that an error gives if there is no such object."""

import pytest
import torch

from atlalign.errors import InputError
from atlalign.imports import imported, name_of
from atlalign.losses import NCC, mae


def test_classes_functions_and_modules_are_found():
    assert imported("atlalign.losses.NCC") is NCC
    assert imported("torch.nn.functional.l1_loss") is torch.nn.functional.l1_loss
    assert name_of(NCC()) == name_of(NCC) == "atlalign.losses.image.NCC"
    assert name_of(mae) == "atlalign.losses.image.mae"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_lab.Huber", r"no module 'no_such_lab'.*PYTHONPATH.*no_such_lab\.py"),
        ("atlaling.losses.NCC", r"no module 'atlaling'\. Did you mean .*atlalign"),
        ("atlalign.loses.NCC", r"atlalign has no 'loses'\. Did you mean .*losses"),
        ("atlalign.losses.NC", r"atlalign\.losses has no 'NC'\. Did you mean .*NCC"),
        ("atlalign.losses.image.zzz", r"atlalign\.losses\.image has no 'zzz'\. There are: .*pearson"),
        ("Huber", "expected the name of a module followed by that of a class or function in it, got 'Huber'"),
        ("my-lab.Huber", "got 'my-lab.Huber'"),
    ],
)
def test_a_missing_name_gives_the_cause(name, words):
    with pytest.raises(InputError, match=words):
        imported(name)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("class Huber(", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_fails_gives_the_cause(code, cause, tmp_path, monkeypatch):
    (tmp_path / "broken_lab.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"broken_lab cannot be imported: {cause}"):
        imported("broken_lab.Huber")
