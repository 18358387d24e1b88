"""Baselines find known maps, and name the missing package if they cannot run."""

import sys

import pytest
import torch
from torch import nn

from atlalign.atlas.atlas import phantom_atlas
from atlalign.data.dataset import RegistrationBatch
from atlalign.errors import InputError
from atlalign.evaluation.methods import baseline, fit_affine, network_method
from atlalign.geometry import affine_to_dvf, warp
from atlalign.networks import Registration


def batch_of(dvf: torch.Tensor, reference: torch.Tensor | None = None, moving: torch.Tensor | None = None):
    return RegistrationBatch(reference, moving, moving, dvf, None, *[torch.zeros(1)] * 3)


def test_the_affine_baseline_is_the_least_squares_fit():
    matrix = torch.tensor([[[1.1, 0.05, -3.0], [-0.02, 0.95, 2.0]]], dtype=torch.float64)
    dvf = affine_to_dvf(matrix, (20, 30))
    torch.testing.assert_close(fit_affine(dvf.float()), matrix, atol=1e-5, rtol=0)
    bent = dvf.float() + torch.randn(1, 2, 20, 30)
    best = baseline("affine")(batch_of(bent)).dvf

    def mean_square(matrix: torch.Tensor) -> float:
        return float((affine_to_dvf(matrix, (20, 30)) - bent).square().mean())

    fitted = fit_affine(bent)
    assert float((best - bent).square().mean()) == pytest.approx(mean_square(fitted), rel=1e-5)
    for step in 1e-3 * torch.randn(20, 1, 2, 3, dtype=torch.float64):
        assert mean_square(fitted) < mean_square(fitted + step)


class BrightnessShift(nn.Module):
    """Shifts along x by what the images' brightness gives, and says nothing of the inverse."""

    def forward(self, reference, moving):
        dvf = torch.zeros_like(reference).expand(-1, 2, -1, -1).clone()
        dvf[:, 0] = 5 * reference.mean() - 2 * moving.mean()
        return Registration(registered=warp(moving, dvf), dvf=dvf)


def test_the_inverse_of_a_network_without_one_is_that_of_the_swapped_pair():
    reference, moving = torch.full((1, 1, 8, 8), 1.0), torch.full((1, 1, 8, 8), 0.5)
    batch = batch_of(torch.zeros(1, 2, 8, 8), reference, moving)
    found = network_method(BrightnessShift(), torch.device("cpu"))(batch)
    assert found.dvf[0, 0].unique().tolist() == [4]  # 5 · 1 − 2 · 0.5
    assert found.inv_dvf[0, 0].unique().tolist() == [0.5]  # 5 · 0.5 − 2 · 1


@pytest.mark.parametrize("name", ["ants_affine", "ants_syn", "ants_syncc", "elastix"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of their own
def test_classical_baselines_find_a_shift_and_its_inverse(name):
    module = "itk" if name == "elastix" else "ants"
    pytest.importorskip(module, reason="the optional extra 'baselines' is not installed")
    reference = phantom_atlas(image_shape=(64, 96), spacing_um=1100.0).section(6000)[None]
    shift = torch.tensor([4.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 64, 96).contiguous()
    found = baseline(name)(batch_of(shift, reference, warp(reference, -shift)))
    inner = (slice(None), slice(None), slice(16, -16), slice(24, -24))
    torch.testing.assert_close(found.dvf[inner], shift[inner], atol=0.5, rtol=0)
    torch.testing.assert_close(found.inv_dvf[inner], -shift[inner], atol=0.5, rtol=0)
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("name", "module", "package"), [("ants_syn", "ants", "antspyx"), ("elastix", "itk", "itk-elastix")]
)
def test_a_missing_package_says_what_to_install(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"needs? {package}: pip install 'atlalign-torch\[baselines\]'"):
        baseline(name)


def test_misspelt_baseline_error_lists_the_choices():
    with pytest.raises(InputError, match="Did you mean ants_syn"):
        baseline("ants_synn")
