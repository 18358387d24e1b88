"""Keys and mixtures of losses, image losses on fields, and the loss of a registration."""

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from atlalign.errors import InputError
from atlalign.losses import (
    ALL_DVF_LOSSES,
    ALL_IMAGE_LOSSES,
    ALL_REGULARITY_LOSSES,
    DVF2IMG,
    Mixer,
    PerceptualLoss,
    RegistrationLoss,
    VDClipper,
    gradicon,
    mae,
    mse,
    vector_distance,
)
from atlalign.losses.combine import shared_backbones

SIMILARITIES = {
    *("ncc_5", "ncc_9", "ncc_12", "ncc_20", "pearson", "psnr", "ssim"),
    *("perceptual_loss_net-lin_alex", "perceptual_loss_net-lin_vgg"),
    *("perceptual_loss_net_alex", "perceptual_loss_net_vgg"),
}
DVF_ONLY = {
    *("grad", "jacobian", "jacobian_distance", "mse_po", "vector_distance", "vdclip2", "vdclip3"),
    *("vector_jacobian_distance", "vector_jacobian_distance_02"),
}


@pytest.fixture(scope="module")
def backbones():
    return shared_backbones("random")


def fields(shape=(2, 2, 32, 40)):
    y_true, noise = 4 * torch.randn(2, *shape)
    return y_true, y_true + 0.5 * noise


def test_the_keys():
    assert set(ALL_IMAGE_LOSSES) == SIMILARITIES | {"mae", "mse"}
    assert set(ALL_DVF_LOSSES) == SIMILARITIES | DVF_ONLY | {"mae", "mse"}
    assert (len(ALL_IMAGE_LOSSES), len(ALL_DVF_LOSSES)) == (13, 22)


@pytest.mark.parametrize("key", sorted(SIMILARITIES))
def test_image_losses_on_fields_are_the_mean_of_both_components_in_tens_of_pixels(backbones, key):
    y_true, y_pred = fields()
    image_loss = ALL_IMAGE_LOSSES.build_sharing(key, backbones)
    components = [image_loss(y_true[:, i, None] / 10, y_pred[:, i, None] / 10) for i in (0, 1)]
    assert components[0] != components[1]
    loss = ALL_DVF_LOSSES.build_sharing(key, backbones)
    torch.testing.assert_close(loss(y_true, y_pred), (components[0] + components[1]) / 2)


def test_dvf2img_by_hand():
    """dx off by 5 px, dy by 10 px: 0.5 and 1 at scale 10; far outside of [0, 1] nothing is clipped."""
    y_true = torch.full((1, 2, 3, 4), 100.0)
    y_pred = y_true + torch.tensor([5.0, 10.0]).view(1, 2, 1, 1)
    assert DVF2IMG(mse)(y_true, y_pred).item() == pytest.approx((0.25 + 1) / 2)
    assert DVF2IMG(mse, scale=5)(y_true, y_pred).item() == pytest.approx((1 + 4) / 2)
    with pytest.raises(InputError, match="scale above 0 pixels, got 0"):
        DVF2IMG(mse, scale=0)


@pytest.mark.parametrize(
    ("registry", "channels", "size"), [(ALL_IMAGE_LOSSES, 1, 0.5), (ALL_DVF_LOSSES, 2, 30.0)]
)
@pytest.mark.parametrize("case", ["equal", "constant prediction", "constant truth", "flat patch", "zero"])
def test_values_and_gradients_are_finite_on_degenerate_inputs(backbones, registry, channels, size, case):
    y_true = size * torch.rand(2, channels, 32, 40)
    y_pred = {
        "equal": y_true.clone(),
        "constant prediction": torch.full_like(y_true, 0.6 * size),
        "constant truth": size * torch.rand_like(y_true),
        "flat patch": torch.where(torch.arange(40) < 28, 0.97 * size, y_true),
        "zero": torch.zeros_like(y_true),
    }[case].requires_grad_()
    if case == "zero":
        y_true = torch.zeros_like(y_true)
    if case == "constant truth":
        y_true = torch.full_like(y_true, 0.6 * size)
    for key in registry:
        (value,) = values = registry.build_sharing(key, backbones)(y_true, y_pred)[None]
        (gradient,) = torch.autograd.grad(value, y_pred)
        assert values.isfinite().all(), key
        assert gradient.isfinite().all(), key
        assert gradient.abs().max() < 1e4, key


def test_a_mixture_is_the_mean_in_any_order():
    y_true, y_pred = fields()
    parts = ["ncc_5", "vdclip2", "grad"]
    mean = sum(ALL_DVF_LOSSES[part](y_true, y_pred) for part in parts) / 3
    for key in ("ncc_5&vdclip2&grad", "grad&ncc_5&vdclip2", "vdclip2&grad&ncc_5"):
        torch.testing.assert_close(ALL_DVF_LOSSES[key](y_true, y_pred), mean)
    pair = (ALL_DVF_LOSSES["mae"](y_true, y_pred) + ALL_DVF_LOSSES["mse_po"](y_true, y_pred)) / 2
    torch.testing.assert_close(ALL_DVF_LOSSES["mae&mse_po"](y_true, y_pred), pair)
    torch.testing.assert_close(ALL_DVF_LOSSES["mse_po&mae"](y_true, y_pred), pair)


def test_a_registry_is_a_mapping():
    assert isinstance(ALL_DVF_LOSSES, Mapping)
    assert "vdclip2" in ALL_DVF_LOSSES
    assert "perceptual_loss_net-lin_vgg&vdclip2" in ALL_DVF_LOSSES  # asks for no weights
    assert "vdclip2" not in ALL_IMAGE_LOSSES
    assert "vdclip2&" not in ALL_DVF_LOSSES
    assert "vdclip2&nothing" not in ALL_DVF_LOSSES
    assert 5 not in ALL_DVF_LOSSES
    assert ALL_DVF_LOSSES.get("nothing") is None
    assert ALL_DVF_LOSSES.get("mse") is mse
    assert not any("&" in key for key in ALL_DVF_LOSSES)


@pytest.mark.parametrize(
    "key", ["vdclip4", "mse&vdclip4", "vdclip4&mse", "perceptual_loss_net-lin_vgg&vdclip4"]
)
def test_an_unknown_key_names_the_bad_part(key):
    with pytest.raises(KeyError) as error:
        ALL_DVF_LOSSES[key]
    assert isinstance(error.value, InputError)
    assert str(error.value).startswith("unknown displacement loss 'vdclip4'. Did you mean vdclip3 or vdclip2")


def test_each_call_builds_new_losses():
    assert ALL_IMAGE_LOSSES["ncc_5"] is not ALL_IMAGE_LOSSES["ncc_5"]


def test_weights_reach_every_perceptual_loss_of_a_mixture(tmp_path):
    with pytest.raises(InputError, match=r"here\.pth \(loss\.backbone_weights\)"):
        ALL_DVF_LOSSES.build("mse&perceptual_loss_net_alex", tmp_path / "here.pth")


def test_mixer_by_hand():
    y_true, y_pred = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    assert Mixer(mae, mse)(y_true, y_pred).item() == pytest.approx(6)
    assert Mixer(mae, mse, weights=[0.25, 0.75])(y_true, y_pred).item() == pytest.approx(0.75 + 6.75)
    assert Mixer(mae, mse, mae)(y_true, y_pred).item() == pytest.approx(5)


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [1.0], [float("nan"), 1]])
def test_mixer_is_convex(weights):
    with pytest.raises(InputError, match="expected 2 weights, none negative and 1 in sum"):
        Mixer(mae, mse, weights=weights)


def test_mixer_takes_two_or_more_callables():
    with pytest.raises(InputError, match="at least 2 losses, got 1"):
        Mixer(mae)
    with pytest.raises(InputError, match="call as loss"):
        Mixer(mae, "mse")


class Fields(NamedTuple):
    registered: Tensor
    dvf: Tensor
    inv_dvf: Tensor | None = None


def registration(inverse=True):
    y_true, y_pred = fields()
    return Fields(torch.rand(2, 1, 32, 40), y_true, y_pred if inverse else None)


def test_total_is_the_weighted_sum_of_unweighted_terms():
    output, batch = registration(), registration()
    loss = RegistrationLoss("mae", VDClipper(power=3), vector_distance, weights={"dvf": 0.1, "inv_dvf": 0})
    values = loss(output, batch)
    assert list(values) == ["image", "dvf", "inv_dvf", "total"]
    torch.testing.assert_close(values["image"], mae(batch.registered, output.registered))
    torch.testing.assert_close(values["dvf"], VDClipper(power=3)(batch.dvf, output.dvf))
    torch.testing.assert_close(values["inv_dvf"], vector_distance(batch.inv_dvf, output.inv_dvf))
    torch.testing.assert_close(values["total"], values["image"] + 0.1 * values["dvf"])


def test_truth_and_prediction_are_not_swapped():
    """`grad` looks at the prediction only."""
    output, batch = registration(), registration()
    smooth = output._replace(dvf=torch.zeros_like(output.dvf))
    loss = RegistrationLoss(dvf="grad")
    assert loss(smooth, batch)["dvf"] == 0
    assert loss(batch, smooth)["dvf"] > 0


def test_inverse_term_is_skipped_where_the_network_gives_none():
    loss = RegistrationLoss(dvf="mse", inv_dvf="mse")
    assert set(loss(registration(inverse=False), registration())) == {"dvf", "total"}
    with pytest.raises(InputError, match=r"data\.return_inverse=true"):
        loss(registration(), registration(inverse=False))
    with pytest.raises(InputError, match=r"^loss: .*loss\.inv_dvf.*model\.compute_inv=true"):
        RegistrationLoss(inv_dvf="mse")(registration(inverse=False), registration())


def test_regularity_is_a_term_of_the_prediction_alone():
    output, batch = registration(), registration(inverse=False)
    values = RegistrationLoss(dvf="mse", regularity="gradicon", weights={"regularity": 0.3})(output, batch)
    assert list(values) == ["dvf", "regularity", "total"]
    torch.testing.assert_close(values["regularity"], gradicon(output.dvf, output.inv_dvf))
    torch.testing.assert_close(values["total"], values["dvf"] + 0.3 * values["regularity"])
    mixed = RegistrationLoss(dvf="mse", regularity="gradicon&grad")(output, batch)["regularity"]
    grad = ALL_REGULARITY_LOSSES["grad"](output.dvf, output.inv_dvf)
    torch.testing.assert_close(mixed, (values["regularity"] + grad) / 2)
    own = RegistrationLoss(dvf="mse", regularity=lambda dvf, inv_dvf: inv_dvf.sum())
    torch.testing.assert_close(own(output, batch)["regularity"], output.inv_dvf.sum())
    with pytest.raises(InputError, match=r"^loss: .*model\.compute_inv=true"):
        RegistrationLoss(inv_dvf="mse", regularity="grad")(registration(inverse=False), batch)
    with pytest.raises(InputError, match=r"^loss\.regularity: gradicon.*model\.compute_inv=true"):
        RegistrationLoss(dvf="mse", regularity="gradicon")(registration(inverse=False), batch)


def test_wrong_terms_and_weights_are_refused():
    with pytest.raises(InputError, match="at least one of"):
        RegistrationLoss()
    with pytest.raises(InputError, match="at least one of"):
        RegistrationLoss(regularity="grad")
    with pytest.raises(InputError, match=r"unknown regularity loss 'gradicn'\. Did you mean gradicon"):
        RegistrationLoss(dvf="mse", regularity="gradicn")
    with pytest.raises(InputError, match=r"loss\.weights: expected .* among dvf, got 0"):
        RegistrationLoss(dvf="mse", regularity="grad", weights={"dvf": 0})
    without_inverse = RegistrationLoss(dvf="mse", inv_dvf="mse", weights={"dvf": 0})
    with pytest.raises(InputError, match=r"^loss: .*loss\.inv_dvf"):
        without_inverse(registration(inverse=False), registration())
    with pytest.raises(InputError, match=r"unknown term in loss\.weights 'inverse'.*dvf, image, inv_dvf"):
        RegistrationLoss(dvf="mse", weights={"inverse": 1})
    for weight in (-0.1, float("nan"), float("inf"), "much"):
        with pytest.raises(InputError, match=r"loss\.weights\.dvf: expected a finite number"):
            RegistrationLoss(dvf="mse", weights={"dvf": weight})
    with pytest.raises(InputError, match="unknown image loss 'vdclip2'"):
        RegistrationLoss(image="vdclip2")
    with pytest.raises(InputError, match="unknown displacement loss 'nothing'"):
        RegistrationLoss(dvf="mse&nothing")


def test_perceptual_terms_share_one_network(caplog):
    loss = RegistrationLoss(
        image="perceptual_loss_net-lin_alex",
        dvf="perceptual_loss_net_alex&vdclip2",
        inv_dvf="perceptual_loss_net-lin_alex&perceptual_loss_net_alex",
        backbone_weights="random",
    )
    perceptual = [module for module in loss.modules() if isinstance(module, PerceptualLoss)]
    assert [module.model for module in perceptual] == ["net-lin", "net", "net-lin", "net"]
    assert len({id(module.backbone) for module in perceptual}) == 1
    assert len(caplog.messages) == 1  # random weights are announced once for each network that is built
    assert loss.state_dict() == {}
    loss.to("meta")
    assert perceptual[0].backbone.shift.device.type == "meta"


def per_sample(y_true: Tensor, y_pred: Tensor) -> Tensor:
    return (y_true - y_pred).abs().mean((1, 2, 3))


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (per_sample, r"per_sample to return a scalar tensor.*shape \(2,\)"),
        (lambda y_true, y_pred: per_sample(y_true, y_pred).mean(0, keepdim=True)[None], r"shape \(1, 1\)"),
        (lambda y_true, y_pred: 0.5, "got float"),
        (lambda y_true, y_pred: None, "got NoneType"),
    ],
)
def test_a_loss_that_returns_no_scalar_is_refused(loss, got):
    with pytest.raises(InputError, match=rf"^loss\.dvf: expected .*{got}"):
        RegistrationLoss(dvf=loss)(registration(), registration())
    with pytest.raises(InputError, match=got):
        Mixer(mse, loss)(*fields())


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (VDClipper, "expected an object such as VDClipper"),
        (lambda y: y, r"expected a loss of two tensors \(y_true, y_pred\), got .*\(y\)"),
        (lambda a, b, power: a, r"expected a loss of two tensors .*\(a, b, power\)"),
        ({"target": "my_lab.Huber"}, "my_lab.Huber"),
    ],
)
def test_something_that_is_no_loss_is_refused_before_training(loss, words):
    with pytest.raises(InputError, match=rf"^loss\.image: {words}" if callable(loss) else words):
        RegistrationLoss(image=loss)


def test_a_loss_of_the_user_is_named_by_its_target():
    with pytest.raises(InputError, match=r"unknown image loss 'my_lab\.Huber'.*\{_target_: my_lab\.Huber\}"):
        RegistrationLoss(image="my_lab.Huber")
