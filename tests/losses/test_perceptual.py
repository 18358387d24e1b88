"""The perceptual loss against the package `lpips`, and where its weights come from."""

import logging
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch
from torch import nn

from atlalign.errors import InputError
from atlalign.losses import Backbone, PerceptualLoss
from atlalign.losses.perceptual import MODELS, NETS, _to_unit_length

# (channels in, channels out, side) of each convolution, at its place in torchvision's `features`.
ALEX = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}
VGG_CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG = {n: (*VGG_CHANNELS[i : i + 2], 3) for i, n in enumerate(VGG_PLACES)}
PUBLISHED = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}


def state_dict(layers=ALEX, prefix="features."):
    """Random weights of a size that neither kills nor blows up the activations."""
    state = {}
    for place, (channels_in, channels_out, side) in layers.items():
        fan_in = channels_in * side**2
        state[f"{prefix}{place}.weight"] = (
            torch.randn(channels_out, channels_in, side, side) * (2 / fan_in) ** 0.5
        )
        state[f"{prefix}{place}.bias"] = 0.1 * torch.randn(channels_out)
    return state


@pytest.fixture
def alex_file(tmp_path):
    torch.save(state_dict(), tmp_path / "alex.pth")
    return tmp_path / "alex.pth"


@pytest.fixture(scope="module")
def backbones():
    return {net: Backbone(net, "random") for net in NETS}


def pair(size=(40, 47)):
    y_true, noise = torch.rand(2, 2, 1, *size)
    return y_true, 0.7 * y_true + 0.3 * noise


def lpips_value(monkeypatch, model, backbone, y_true, y_pred):
    """What the package itself computes, made to take our backbone where it would build torchvision's."""
    import lpips

    builder = {"alex": "alexnet", "vgg": "vgg16"}[backbone.net]
    fake = SimpleNamespace(features=backbone.features)
    monkeypatch.setattr(lpips.pretrained_networks.tv, builder, lambda pretrained: fake)
    reference = lpips.LPIPS(net=backbone.net, lpips=model == "net-lin", verbose=False)
    rgb = (image.repeat(1, 3, 1, 1) for image in (y_true, y_pred))
    return reference(*rgb, normalize=True).mean().item()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("model", MODELS)
def test_values_match_lpips(monkeypatch, backbones, model, net):
    y_true, y_pred = pair()
    expected = lpips_value(monkeypatch, model, backbones[net], y_true, y_pred)
    assert expected > 1e-3
    assert PerceptualLoss(model, net, backbones[net])(y_true, y_pred).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("model", MODELS)
def test_alexnet_values_match_lpips(monkeypatch, test_data, model):
    backbone = Backbone("alex", test_data / "weights" / "alexnet_features.pth")
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 80), torch.linspace(-1, 1, 96), indexing="ij")
    y_true = torch.exp(-3 * (rows**2 + columns**2))[None, None]
    y_pred = y_true.roll(5, dims=-1)
    y_pred[..., 60:] = 0
    expected = lpips_value(monkeypatch, model, backbone, y_true, y_pred)
    assert PerceptualLoss(model, "alex", backbone)(y_true, y_pred).item() == pytest.approx(expected, rel=1e-5)


def test_the_mean_is_over_the_batch(backbones):
    y_true, y_pred = pair()
    loss = PerceptualLoss(backbone_weights=backbones["alex"])
    single = [loss(y_true[i : i + 1], y_pred[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(loss(y_true, y_pred), sum(single) / 2)


def test_values_outside_of_0_to_1_are_kept(backbones):
    y_true, y_pred = pair()
    loss = PerceptualLoss(backbone_weights=backbones["alex"])
    assert loss(3 * y_true, 3 * y_pred) != loss((3 * y_true).clamp(0, 1), (3 * y_pred).clamp(0, 1))


def test_features_count_as_at_least_1e_5_long_which_bounds_the_gradient():
    features = torch.tensor([0.0, 1e-12, 1e-5, 1.0], dtype=torch.float64).view(4, 1, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(_to_unit_length(features).sum(), features)
    torch.testing.assert_close(gradient.flatten()[:2], torch.tensor([1e5, 1e5], dtype=torch.float64))
    assert (gradient > 0).all()
    assert (gradient <= 1e5).all()


@pytest.mark.parametrize("net", NETS)
def test_gradient_is_finite_where_features_vanish(net):
    """So small that their squares are 0: there the gradient of lpips' own norm is infinite."""
    backbone = Backbone(net, "random")
    with torch.no_grad():
        backbone.shift.fill_(0)
        for layer in backbone.features:
            if isinstance(layer, nn.Conv2d):
                layer.bias.fill_(1e-25)
    grey = torch.full((1, 1, 40, 40), 0.5)  # 0 after scaling, so that only the biases are left
    y_pred = grey.clone().requires_grad_()
    value = PerceptualLoss("net-lin", net, backbone)(torch.rand(1, 1, 40, 40), y_pred)
    value.backward()
    assert value > 0
    assert y_pred.grad.isfinite().all()


def test_runs_in_float32_under_autocast_and_on_half_inputs(backbones):
    y_true, y_pred = (image.bfloat16() for image in pair())
    loss = PerceptualLoss(backbone_weights=backbones["alex"])
    expected = loss(y_true.float(), y_pred.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(y_true, y_pred), expected, rtol=0, atol=0)
    torch.testing.assert_close(loss(y_true.double(), y_pred.double()), expected, rtol=0, atol=0)


class Owner(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.head = nn.Linear(1, 1)
        self.loss = loss


def test_network_stays_out_of_checkpoint_and_optimiser(alex_file):
    with_loss, without = Owner(PerceptualLoss(backbone_weights=alex_file)), Owner(None)
    assert set(with_loss.state_dict()) == {"head.weight", "head.bias"}
    assert len(list(with_loss.parameters())) == 2
    with_loss.load_state_dict(without.state_dict(), strict=True)
    without.load_state_dict(with_loss.state_dict(), strict=True)


def test_network_is_frozen_and_stays_in_float32_and_in_eval(alex_file):
    loss = PerceptualLoss(backbone_weights=alex_file)
    Owner(loss).train().half().to(torch.bfloat16)
    weights = list(loss.backbone.parameters())
    assert len(weights) == 2 * 5 + 5
    assert all(weight.dtype == torch.float32 and not weight.requires_grad for weight in weights)
    assert not any(module.training for module in loss.backbone.modules())


def test_network_follows_to_another_device(alex_file):
    loss = PerceptualLoss(backbone_weights=alex_file)
    Owner(loss).to("meta", torch.float16)
    tensors = [*loss.backbone.parameters(), *loss.backbone.buffers()]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {("meta", torch.float32)}


@pytest.mark.parametrize(("net", "smallest"), [("alex", 31), ("vgg", 16)])
def test_smallest_image(backbones, net, smallest):
    loss = PerceptualLoss(net=net, backbone_weights=backbones[net])
    assert loss(*pair((smallest, smallest))) > 0
    with pytest.raises(ValueError, match=rf"'{net}': expected images .* at least {smallest}×{smallest}"):
        loss(*pair((50, smallest - 1)))


def test_field_is_refused_as_image(backbones):
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\).*got \(1, 2, 40, 40\)"):
        PerceptualLoss(backbone_weights=backbones["alex"])(torch.rand(1, 2, 40, 40), torch.rand(1, 2, 40, 40))


@pytest.mark.parametrize(
    ("prefix", "classifier"), [("features.", True), ("features.", False), ("", False)], ids=str
)
@pytest.mark.parametrize(("net", "layers"), [("alex", ALEX), ("vgg", VGG)])
def test_whole_networks_and_bare_features_load(tmp_path, net, layers, prefix, classifier):
    state = state_dict(layers, prefix)
    if classifier:
        state |= {"classifier.0.weight": torch.zeros(2, 2), "classifier.0.bias": torch.zeros(2)}
    torch.save(state, tmp_path / "weights.pth")
    backbone = Backbone(net, str(tmp_path / "weights.pth"))
    for place in layers:
        for name in ("weight", "bias"):
            loaded = getattr(backbone.features[place], name)
            torch.testing.assert_close(loaded.data, state[f"{prefix}{place}.{name}"], rtol=0, atol=0)


def test_weights_in_half_precision_load_as_float32(tmp_path):
    torch.save({key: value.half() for key, value in state_dict().items()}, tmp_path / "half.pth")
    assert {weight.dtype for weight in Backbone("alex", tmp_path / "half.pth").parameters()} == {
        torch.float32
    }


def test_loading_draws_no_random_numbers(alex_file):
    """The networks of a run must not depend on whether its loss is perceptual."""
    state = torch.get_rng_state()
    Backbone("alex", alex_file)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_problem_of_a_file_is_named(tmp_path):
    state = state_dict()
    del state["features.3.bias"]
    state["features.6.weight"] = torch.zeros(1, 2)
    state["features.8.bias"] = "none"
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(InputError) as error:
        Backbone("alex", tmp_path / "bad.pth")
    assert str(error.value) == (
        f"{tmp_path}/bad.pth: expected the state dict of torchvision's alexnet, but "
        "features.3.bias (192,) is missing, features.6.weight (384, 192, 3, 3) is (1, 2), "
        "features.8.bias (256,) is a str"
    )


def test_weights_of_the_other_network_are_refused(alex_file):
    with pytest.raises(
        InputError, match=r"state dict of torchvision's vgg16.*features\.2\.weight \(64, 64, 3, 3\)"
    ):
        Backbone("vgg", alex_file)


def test_files_without_state_dict_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.pth \(loss\.backbone_weights\), which does not exist"):
        Backbone("alex", tmp_path / "nowhere.pth")
    for content in (b"no weights", b"", b"a,b\n1,2\n"):
        (tmp_path / "other.pth").write_bytes(content)
        with pytest.raises(
            InputError, match=r"other\.pth: expected a state dict .*, got \w+Error on reading it$"
        ):
            Backbone("alex", tmp_path / "other.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(
        InputError, match=r"module\.pth: expected a state dict .* UnpicklingError on reading it$"
    ):
        Backbone("alex", tmp_path / "module.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(InputError, match=r"tensor\.pth: .* got a Tensor"):
        Backbone("alex", tmp_path / "tensor.pth")


@pytest.mark.parametrize("failure", [URLError("no route to host"), RuntimeError("invalid hash value")])
@pytest.mark.parametrize("net", NETS)
def test_without_a_network_the_error_says_what_to_do(monkeypatch, tmp_path, net, failure):
    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError) as error:
        PerceptualLoss(net=net)
    message = str(error.value)
    assert f"https://download.pytorch.org/models/{PUBLISHED[net]}" in message
    assert str(tmp_path / "hub" / "checkpoints" / PUBLISHED[net]) in message
    assert "loss.backbone_weights=FILE" in message


def test_published_weights_are_downloaded_once_and_checked(monkeypatch, tmp_path, caplog, capsys):
    calls = []

    def download(url, path, hash_prefix):
        calls.append((url, hash_prefix))
        torch.save(state_dict(), path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with caplog.at_level(logging.INFO):
        first, second = PerceptualLoss().backbone, PerceptualLoss("net").backbone
    assert calls == [("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79")]
    assert [f"from {calls[0][0]} to {tmp_path}" in message for message in caplog.messages] == [True]
    assert torch.equal(first.features[10].weight, second.features[10].weight)
    assert capsys.readouterr().out == ""


def test_random_weights_are_announced_each_time(caplog):
    first, second = Backbone("alex", "random"), Backbone("alex", "random")
    assert caplog.messages == ["the perceptual loss uses random 'alex' weights, as requested"] * 2
    assert not torch.equal(first.features[0].weight, second.features[0].weight)


def test_unknown_names_are_refused(backbones):
    with pytest.raises(
        InputError, match=r"unknown model of the perceptual loss 'net_lin'\. Did you mean net-lin"
    ):
        PerceptualLoss(model="net_lin")
    with pytest.raises(InputError, match="unknown net of the perceptual loss 'squeeze'"):
        PerceptualLoss(net="squeeze")
    with pytest.raises(InputError, match="expected a backbone of 'alex', got one of 'vgg'"):
        PerceptualLoss(net="alex", backbone_weights=backbones["vgg"])


def test_a_file_in_the_home_folder(monkeypatch, alex_file):
    monkeypatch.setenv("HOME", str(alex_file.parent))
    assert Backbone("alex", "~/alex.pth").net == "alex"
