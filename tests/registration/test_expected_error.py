"""The error to expect: zero disagreement, known disagreement, and where it is written."""

import json

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.planes import Plane
from atlalign.geometry import affine_to_dvf, compose
from atlalign.io.files import fingerprint
from atlalign.models import SHIPPED_MODEL, load_model
from atlalign.networks import Registration
from atlalign.registration import Job, Options, atlas_recipe, register_batch
from atlalign.registration.expected_error import (
    SHIPPED,
    Calibration,
    _about_the_centre,
    disagreements_um,
    expected_error_um,
    one_sided,
)
from atlalign.registration.network import TrainedNetwork
from atlalign.registration.references import Reference, atlas_reference

SHAPE = (40, 56)


@pytest.fixture(scope="module")
def reference() -> Reference:
    atlas = phantom_atlas(image_shape=(80, 113), spacing_um=1200)
    return atlas_reference(atlas, Plane.at(6000.0, atlas.origin_um), SHAPE)


class Sees(nn.Module):
    """Registers each view so that the section, seen without it, is registered by one field (1, 2, H, W)."""

    def __init__(self, dvf: torch.Tensor) -> None:
        super().__init__()
        self.dvf = dvf

    def forward(self, reference: torch.Tensor, moving: torch.Tensor) -> Registration:
        matrices = _about_the_centre(SHAPE)
        full = torch.cat([matrices, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(matrices), 1, 3)], dim=1)
        undone = affine_to_dvf(torch.linalg.inv(full)[:, :2], SHAPE)
        return Registration(registered=moving, dvf=compose(undone, self.dvf.expand(len(moving), -1, -1, -1)))


def shift(x_px: float, y_px: float) -> torch.Tensor:
    return torch.tensor([x_px, y_px]).view(1, 2, 1, 1).expand(1, 2, *SHAPE)


def disagreements(reference, seen, dvf, return_um=0.0):
    return disagreements_um(Sees(seen), reference, reference.image, dvf, torch.full(SHAPE, return_um))


def test_a_network_that_registers_every_view_alike_does_not_disagree(reference):
    y, x = torch.meshgrid(*(torch.arange(size) / 1.0 for size in SHAPE), indexing="ij")
    sheared = torch.stack([0.3 * (y - 20), 0.2 * (x - 28)])[None]
    views_um, return_um = disagreements(reference, sheared, sheared)
    inside = reference.tissue.numpy()
    assert np.median(views_um[inside]) < 10  # the border holds points that the shear takes beyond it
    assert np.median(disagreements(reference, 0.9 * sheared, sheared)[0][inside]) > 30
    assert return_um[inside] == pytest.approx(0)


def test_disagreement_is_the_distance_between_views_in_um(reference):
    views_um, return_um = disagreements(reference, shift(3.0, -4.0), shift(0.0, 0.0), return_um=70.0)
    x_um, y_um = reference.grid.pixel_um
    inside = reference.tissue.numpy()
    assert views_um[inside] == pytest.approx(
        float(np.hypot(3 * x_um, 4 * y_um)), rel=0.01
    )  # the border holds
    assert return_um[inside] == pytest.approx(70, rel=1e-4)  # smoothing knows tissue only


def test_unknown_errors_are_filled_from_their_surroundings(reference):
    return_um = torch.full(SHAPE, 70.0)
    rows, columns = torch.nonzero(reference.tissue, as_tuple=True)
    return_um[rows[50], columns[50]] = torch.nan
    dvf = torch.zeros(1, 2, *SHAPE)
    _, smooth = disagreements_um(Sees(shift(0.0, 0.0)), reference, reference.image, dvf, return_um)
    assert smooth[rows[50], columns[50]] == pytest.approx(70, rel=1e-4)


def test_the_calibration_is_a_product_of_powers(reference):
    calibration = Calibration(constant=1.0, of_views=0.5, of_return=0.25)
    expected = np.exp(1) * (45 + 5) ** 0.5 * (75 + 5) ** 0.25 - 5
    assert calibration.error_um(np.array([45.0]), np.array([75.0])) == pytest.approx(expected)
    assert Calibration(-9.0, 0.5, 0.25).error_um(np.array([45.0]), np.array([75.0])) == 0
    x_um, _ = reference.grid.pixel_um
    dvf, back = torch.zeros(1, 2, *SHAPE), torch.full(SHAPE, 75.0)
    error_um = expected_error_um(Sees(shift(2.0, 0.0)), calibration, reference, reference.image, dvf, back)
    inside = reference.tissue.numpy()
    known = calibration.error_um(np.array([2 * x_um]), np.array([75.0]))
    assert error_um[inside] == pytest.approx(float(known[0]), rel=0.01)
    assert np.isnan(error_um[~inside]).all()


def test_the_light_network_shares_weights_and_leaves_the_full_one_as_it_was():
    full = load_model()
    light = one_sided(full)
    assert [module.mirrored for module in full.modules() if hasattr(module, "mirrored")] == [True]
    assert [module.mirrored for module in light.modules() if hasattr(module, "mirrored")] == [False]
    pairs = zip(full.parameters(), light.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


def test_the_network_that_ships_is_calibrated_and_others_are_not(tmp_path):
    """A new network needs `experiments/07-real-sections/expected_error.py` to be run again."""
    assert fingerprint(SHIPPED_MODEL) in SHIPPED
    assert TrainedNetwork.load().calibration == SHIPPED[fingerprint(SHIPPED_MODEL)]
    assert TrainedNetwork.load(image_shape=(80, 114)).calibration is None


def test_the_expected_error_is_a_file_a_picture_and_a_number(tmp_path):
    atlas = phantom_atlas(image_shape=(96, 144), spacing_um=1200)
    image = (atlas.section(6600)[0] * 255).byte().numpy()
    tifffile.imwrite(tmp_path / "a.tif", image)
    recipe = atlas_recipe("phantom", options=Options())
    (outcome,) = register_batch([Job(tmp_path / "a.tif", position_um=6600)], recipe, tmp_path / "out")
    folder = tmp_path / "out" / "a"
    error_um = tifffile.imread(folder / "expected_error.tif")
    shown = tifffile.imread(folder / "reference.tif")
    assert error_um.shape == shown.shape
    assert error_um.dtype == np.float32
    assert np.isfinite(error_um).mean() == pytest.approx((shown > 0).mean(), abs=0.05)
    assert np.nanmedian(error_um) == pytest.approx(outcome.row["expected_error_um"])
    assert 5 < outcome.row["expected_error_um"] < 200
    assert "expected error" in json.loads((folder / "preview.json").read_text())["images"]
