"""Every `Example:` in a docstring does what it shows, and the functions that a user calls first have one."""

from doctest import DocTestFinder, DocTestRunner
from importlib import import_module
from pathlib import Path

import pytest

import atlalign

PACKAGE = Path(atlalign.__file__).parent
MODULES = [
    ".".join(("atlalign", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text()
]
EXAMPLES = [
    found for name in MODULES for found in DocTestFinder().find(import_module(name), name) if found.examples
]
CALLED_FIRST = {
    *("warp", "compose", "invert", "affine_to_dvf", "jacobian_determinant", "integrate", "resize"),
    *("GlobalAffineNet", "LocalUNet", "save_model", "load_model", "merge_global_local"),
    *("ncc", "NCC", "vector_distance", "VDClipper", "Mixer", "LossRegistry", "DVF2IMG", "PerceptualLoss"),
    *("DisplacementField", "generate", "save", "find_jobs", "atlas_recipe", "SectionTransform", "locate"),
    *("phantom_atlas", "separate", "find_sections", "PlaneSettings"),
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name.removeprefix("atlalign."))
def test_examples_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report: list[str] = []
    failed, _ = DocTestRunner(verbose=False).run(example, out=report.append)
    assert not failed, "".join(report)


def test_main_functions_have_an_example():
    assert {example.name.rpartition(".")[2] for example in EXAMPLES} >= CALLED_FIRST
    assert len(EXAMPLES) >= 15
