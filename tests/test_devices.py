"""What runs on a GPU stays there: on a device as strict as one, values are the CPU's, and nothing waits for them."""

import copy
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.planes import Plane
from atlalign.data.augmenter_kinds import as_augmenter
from atlalign.data.augmenters import kornia_1
from atlalign.data.dataset import RegistrationBatch, complete
from atlalign.evaluation.methods import network_method
from atlalign.geometry import (
    anchor,
    draw_affine_simple,
    draw_control_points,
    draw_velocity,
    integrate,
    inverse_mask,
    invert,
    smooth_field,
    warp,
)
from atlalign.geometry.random_fields import INVERTIBLE_FIELDS
from atlalign.io.images import ImageFile
from atlalign.losses import Backbone, PerceptualLoss, RegistrationLoss
from atlalign.networks import (
    CoarseToFineNet,
    CorrelationPyramidNet,
    FinePassNet,
    GlobalAffineNet,
    LocalUNet,
    MergedNet,
)
from atlalign.registration import register as registration
from atlalign.registration.placement import place
from atlalign.registration.references import atlas_reference
from atlalign.registration.section import read_section
from atlalign.synthesis.contrast import draw_contrast
from atlalign.synthesis.damage import draw_damage
from atlalign.synthesis.online import OnlineDataModule
from atlalign.training.module import RegistrationModule
from tests.otherdevice import OTHER, OtherDevice

SHAPE = (32, 48)
SMALL = {
    "start_filters": [4], "downsample_filters": [4, 4], "middle_filters": [4], "upsample_filters": [4, 4],
    "end_filters": [4],
}  # fmt: skip
NETWORKS = {
    "local": lambda: LocalUNet(**SMALL, compute_inv=True),
    "local_velocity": lambda: LocalUNet(**SMALL, velocity_steps=3, compute_inv=True),
    "coarse_to_fine": lambda: CoarseToFineNet(LocalUNet(**SMALL, velocity_steps=3), reductions=[2]),
    "correlation_pyramid": lambda: CorrelationPyramidNet(
        encoder_filters=[4, 4], radii=[1, 2], decoder_filters=[4], compute_inv=True, mirrored=True
    ),
    "fine_pass": lambda: FinePassNet(
        *(NETWORKS["correlation_pyramid"]() for _ in range(2)), compute_inv=True
    ),
    "global": lambda: GlobalAffineNet(image_shape=SHAPE, filters=[4, 4], dense_layers=[4]),
    "merged": lambda: MergedNet(NETWORKS["global"](), NETWORKS["local"](), expose_global=True),
}


@pytest.fixture
def other():
    with OtherDevice() as device:
        yield device


def there(parts):
    """Return tensors, in whatever structure, on the other device."""
    return tree_map(lambda part: part.to(OTHER) if isinstance(part, torch.Tensor) else part, parts)


def assert_same(found, expected) -> None:
    """Assert that these tensors lie on the other device, and have the values of those."""
    for one, wanted in zip(found, expected, strict=True):
        if wanted is None:
            assert one is None
        else:
            assert one.device == OTHER
            torch.testing.assert_close(one.cpu(), wanted, atol=1e-5, rtol=1e-5)


def batch_of(n: int = 2) -> RegistrationBatch:
    images = torch.rand(n, 1, *SHAPE)
    pair = smooth_field(n, SHAPE)
    ids = torch.arange(n)
    return RegistrationBatch(
        images.flip(-1), images, warp(images, pair.dvf), pair.dvf, pair.inverse, ids, ids, ids
    )


def step(network: nn.Module, loss: nn.Module, batch: RegistrationBatch) -> dict[str, torch.Tensor]:
    """Return what a training step finds: losses, measures and gradients."""
    module = RegistrationModule(network, loss, optimizer=torch.optim.Adam)
    total, values = module.measured(batch)
    total.backward()
    module._train_means.add(values, len(batch.dvf))
    gradients = {name: weight.grad for name, weight in network.named_parameters()}
    return {**module._train_means.sums, **gradients}


def assert_same_step(network, loss, other, **needs) -> None:
    batch = batch_of()
    expected = step(network, loss, batch)
    moved = copy.deepcopy(network).to(OTHER), copy.deepcopy(loss).to(OTHER), there(batch)
    other.waits.clear()
    found = step(*moved)
    assert not other.waits
    assert found.keys() == expected.keys()
    assert_same(found.values(), expected.values())


def test_the_device_is_as_strict_as_a_gpu(other):
    here = torch.rand(3)
    moved = here.to(OTHER)
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        moved + here
    assert torch.equal((moved + torch.tensor(1.0)).cpu(), here + 1)
    assert other.waits == {"aten._to_copy.default": 1}
    assert bool((moved < 2).all())
    assert float(moved[torch.tensor([1])]) == float(here[1])
    assert sum(other.waits.values()) == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_of_each_network(name, other):
    network = NETWORKS[name]()
    weights = {"image": 1.0, "dvf": 0.1}
    assert_same_step(network, RegistrationLoss(image="mse", dvf="vector_distance", weights=weights), other)


@pytest.mark.parametrize(
    "terms",
    [
        {"image": "ncc_9&ssim", "dvf": "vdclip2", "inv_dvf": "vdclip3", "regularity": "gradicon"},
        {"image": "mae&psnr", "dvf": "jacobian_distance&mse_po", "inv_dvf": "grad", "regularity": "jacobian"},
        {"image": "pearson", "dvf": "vector_jacobian_distance_02", "regularity": "inverse_consistency"},
        {"image": "ncc_20", "dvf": "ncc_5&jacobian", "regularity": "grad"},
    ],
    ids=str,
)
def test_a_training_step_with_each_loss(terms, other):
    loss = RegistrationLoss(**terms, weights=dict.fromkeys(terms, 1.0))
    assert_same_step(NETWORKS["local"](), loss, other)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_perceptual_loss(net, other):
    loss = PerceptualLoss(net=net, backbone_weights=Backbone(net, "random"))
    images = torch.rand(2, 2, 1, 40, 48)
    expected = loss(*images)
    moved = copy.deepcopy(loss).to(OTHER), images.to(OTHER)
    other.waits.clear()
    found = moved[0](*moved[1])
    assert not other.waits
    assert_same([found], [expected])


@pytest.mark.parametrize("deformation", INVERTIBLE_FIELDS)
def test_batches_of_online_data(deformation, other):
    """Only scaling and inversion ask whether they are done; nothing else is fetched from the device."""
    datamodule = OnlineDataModule(
        atlas=phantom_atlas(image_shape=(64, 96), spacing_um=1100.0), image_shape=(64, 96), deformation=deformation,
        contrast=draw_contrast, damage=partial(draw_damage, p_holes=0.5, p_tears=0.5, p_cut=0.5, p_half=0.5),
        p_half_reference=0.5, p_mirrored=0.5, position_error_um=300.0, n_val_blocks=1, return_inverse=True,
    )  # fmt: skip
    datamodule.setup()
    raw = next(iter(datamodule.train_dataloader()))
    moved = there(raw)
    other.waits.clear()
    found = datamodule.complete(moved)
    assert set(other.waits) <= {"aten.nonzero.default", "aten._local_scalar_dense.default"}
    assert sum(other.waits.values()) <= (0 if deformation == "affine" else 20)
    assert_same(found, datamodule.complete(raw))


@pytest.mark.parametrize("shape", [SHAPE, (16, 24)], ids=str)
def test_batches_of_a_file(shape, other):
    ids = torch.arange(3)
    raw = {
        "reference": torch.randint(256, (3, 1, *SHAPE), dtype=torch.uint8), "moving": torch.rand(3, 1, *SHAPE),
        "dvf": torch.randn(3, *shape, 2).half(), "inv_dvf": torch.randn(3, *shape, 2).half(),
        "position_um": ids, "image_id": ids, "dataset_id": ids,
    }  # fmt: skip
    moved = there(raw)
    other.waits.clear()
    found = complete(moved)
    assert not other.waits
    assert_same(found, complete(raw))


def test_augmentation_in_batches(other):
    augmenter, images = as_augmenter(kornia_1(p=1.0)), torch.rand(12, 1, *SHAPE)
    torch.manual_seed(3)
    expected = augmenter(images)
    torch.manual_seed(3)
    assert_same([augmenter(images.to(OTHER))], [expected])


def test_fields_and_their_inverses(other):
    here, moved = (
        smooth_field(2, SHAPE, generator=torch.Generator().manual_seed(1), device=device)
        for device in ("cpu", OTHER)
    )
    assert_same(moved, here)
    torch.manual_seed(0)
    folded = 3 * integrate(draw_velocity(2, SHAPE) * 4)
    assert_same([anchor(folded.to(OTHER))], [anchor(folded)])
    expected, found = invert(folded), invert(folded.to(OTHER))
    mask, found_mask = inverse_mask(folded, expected), inverse_mask(folded.to(OTHER), found)
    # Where a field folds, the best iterate depends on the last bit.
    assert (mask == found_mask.cpu()).float().mean() > 0.99
    both = (mask & found_mask.cpu())[:, None]
    assert both.float().mean() > 0.3
    assert_same([found * both.to(OTHER)], [expected * both])
    for draw in (draw_affine_simple, draw_control_points):
        expected, found = (
            draw(2, SHAPE, generator=torch.Generator().manual_seed(1), device=device)
            for device in ("cpu", OTHER)
        )
        assert_same(found, expected)


def test_an_evaluated_network(other):
    network, batch = NETWORKS["local_velocity"](), batch_of(1)
    expected = network_method(network, torch.device("cpu"))(batch)
    found = network_method(copy.deepcopy(network), OTHER)(batch)
    for name in ("dvf", "inv_dvf"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_a_registered_section(other, monkeypatch):
    atlas = phantom_atlas(image_shape=(80, 113), spacing_um=1200)
    reference = atlas_reference(atlas, Plane.at(6000.0, atlas.origin_um), SHAPE)
    pixels = (reference.image[0, 0].numpy() * 255).round().astype(np.uint8)
    section = read_section(ImageFile(pixels[2:, 3:], None), SHAPE, background="dark")
    network = NETWORKS["merged"]()
    where = section, place(section, reference, by="stretch")
    for name in ("attempt", "_completed"):  # the device's tensors know no inference mode
        monkeypatch.setattr(registration, name, getattr(registration, name).__wrapped__)
    with torch.no_grad():
        expected, found = (
            registration.register(net, reference, *where, refine=2)
            for net in (network, copy.deepcopy(network).to(OTHER))
        )
    torch.testing.assert_close(found.registered, expected.registered)
    assert asdict(found.quality) == pytest.approx(asdict(expected.quality), abs=1e-4, nan_ok=True)
