"""Networks against hand-computed values: an independent NumPy forward pass and closed-form parameter counts."""

import numpy as np
import pytest
import torch

from atlalign.geometry import compose, integrate, jacobian_determinant, stays_inside, warp
from atlalign.networks import Affine2DVF, BilinearInterpolation, DVFComposition, GlobalAffineNet, LocalUNet
from atlalign.networks.local_unet import convolve_doubled


def n_parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def conv(x: np.ndarray, layer: torch.nn.Conv2d, before: int, after: int) -> np.ndarray:
    """Correlate x (C, H, W) with the layer's kernel after zero padding, as a plain sum over taps."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    size = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (before, after), (before, after)))
    out = np.zeros((weight.shape[0], *x.shape[1:])) + bias[:, None, None]
    for row in range(size):
        for column in range(size):
            window = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
            out += np.einsum("oc,chw->ohw", weight[:, :, row, column], window)
    return out


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def pool(x):
    c, h, w = x.shape[0], x.shape[1] // 2, x.shape[2] // 2
    return x[:, : 2 * h, : 2 * w].reshape(c, h, 2, w, 2).max(axis=(2, 4))


def up(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def test_parameter_counts_of_the_best_known_choices():
    assert n_parameters(GlobalAffineNet()) == 237_630
    assert n_parameters(LocalUNet()) == 192_578
    assert n_parameters(LocalUNet(compute_inv=True)) == 192_578


def test_parameter_count_from_the_layer_table():
    def c(i, o, k=3):
        return k * k * i * o + o

    blocks = c(2, 4) + c(4, 4) + c(4, 6) + c(6, 6)
    network = GlobalAffineNet(filters=(4, 6), dense_layers=(5, 3), image_shape=(33, 50))
    assert n_parameters(network) == blocks + (8 * 12 * 6 * 5 + 5) + (5 * 3 + 3) + (3 * 6 + 6)

    network = LocalUNet((3,), (4, 5), (6,), (7, 8), (9,))
    levels = c(2, 3) + c(3, 4) + c(4, 5) + c(5, 6) + c(6, 7) + c(7 + 4, 7) + c(7, 8) + c(8 + 3, 8)
    assert n_parameters(network) == levels + c(8, 9) + c(9, 2, k=2)


def test_global_forward_equals_numpy_layer_by_layer():
    network = GlobalAffineNet(filters=(3, 4), dense_layers=(5,), image_shape=(33, 46))
    torch.nn.init.normal_(network.to_affine.weight, std=0.01)
    torch.nn.init.normal_(network.dense[0].bias)
    reference, moving = torch.rand(2, 1, 1, 33, 46)
    x = torch.cat([reference, moving], 1)[0].numpy()
    for block in network.features:
        x = np.maximum(conv(x, block[0], 1, 1), 0)
        x = pool(np.maximum(conv(x, block[2], 1, 1), 0))
    flat = x.transpose(1, 2, 0).ravel()  # (row, column, channel)
    dense, last = network.dense[0], network.to_affine
    hidden = dense.weight.detach().numpy() @ flat + dense.bias.detach().numpy()
    matrix = (last.weight.detach().numpy() @ hidden + last.bias.detach().numpy()).reshape(2, 3)
    columns, rows = np.meshgrid(np.arange(46), np.arange(33))
    mapped = np.einsum("ij,jhw->ihw", matrix, np.stack([columns, rows, np.ones_like(rows)]))
    output = network(reference, moving)
    np.testing.assert_allclose(output.dvf[0].detach().numpy(), mapped - np.stack([columns, rows]), atol=1e-3)


def test_global_starts_as_the_identity():
    reference, moving = torch.rand(2, 2, 1, 32, 40)
    output = GlobalAffineNet(image_shape=(32, 40))(reference, moving)
    assert output.dvf.abs().max() == 0
    torch.testing.assert_close(output.registered, moving, atol=1e-5, rtol=0)


def test_local_forward_equals_numpy_layer_by_layer():
    network = LocalUNet((2,), (3, 4), (5,), (4, 3), (6,))
    reference, moving = torch.rand(2, 1, 1, 32, 38)  # 38 = 36 + 2: one column is cropped at each side
    x = torch.cat([reference, moving], 1)[0].numpy()[:, :, 1:-1]
    skips = [leaky(conv(x, network.start[0], 1, 1))]
    for down in network.down:
        skips.append(leaky(conv(pool(skips[-1]), down[0], 1, 1)))
    x = leaky(conv(skips[-1], network.middle[0], 1, 1))
    for layer, skip in zip(network.up, skips[-2::-1], strict=True):
        x = leaky(conv(up(x), layer.before[0], 1, 1))
        x = leaky(conv(np.concatenate([x, skip]), layer.after[0], 1, 1))
    x = leaky(conv(x, network.end[0], 1, 1))
    expected = np.pad(conv(x, network.to_dvf, 0, 1), ((0, 0), (0, 0), (1, 1)))
    dvf = network(reference, moving).dvf[0].detach().numpy()
    np.testing.assert_allclose(dvf, expected, atol=1e-5)


def test_convolving_upsampled_features_needs_no_copy():
    generator = torch.Generator().manual_seed(0)
    features, weight, bias = (
        torch.rand(size, generator=generator, dtype=torch.float64) for size in ((2, 3, 4, 5), (2, 3, 3, 3), 2)
    )
    doubled = features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = torch.nn.functional.conv2d(doubled, weight, bias, padding=1)
    torch.testing.assert_close(convolve_doubled(features, weight, bias), expected, rtol=0, atol=1e-12)
    inputs = [part.requires_grad_() for part in (features, weight, bias)]
    assert torch.autograd.gradcheck(convolve_doubled, inputs)
    assert torch.autograd.gradgradcheck(convolve_doubled, inputs)


def test_inverse_is_the_same_network_on_swapped_images():
    network = LocalUNet((2,), (3,), (3,), (3,), (4,), compute_inv=True)
    reference, moving = torch.rand(2, 2, 1, 32, 36)
    there, back = network(reference, moving), network(moving, reference)
    torch.testing.assert_close(there.inv_dvf, back.dvf)
    assert not torch.allclose(there.inv_dvf, there.dvf, atol=1e-3)
    assert LocalUNet((2,), (3,), (3,), (3,), (4,))(reference, moving).inv_dvf is None


# --- velocities, and coarser grids


def rough(network: LocalUNet, gain: float = 1000.0) -> LocalUNet:
    """Make an untrained network predict hundreds of pixels that vary from pixel to pixel."""
    torch.nn.init.normal_(network.to_dvf.weight, std=gain)
    return network


def smooth(network: LocalUNet) -> LocalUNet:
    """Make an untrained network predict some pixels that vary slowly."""
    torch.nn.init.normal_(network.to_dvf.weight, std=1.0)
    return network


@pytest.mark.parametrize("levels", [3, 2, 1])  # the whole grid, a half and a quarter of it
@pytest.mark.parametrize("shape", [(64, 86), (96, 136)], ids=str)  # the former's width is cropped to 80
def test_a_velocity_network_never_folds(shape, levels):
    images = torch.rand(2, 2, 1, *shape)
    plain = rough(LocalUNet((4,), (4,) * 3, (4,), (4,) * levels, (4,)))(*images)
    assert (jacobian_determinant(plain.dvf) <= 0).float().mean() > 0.05
    network = rough(LocalUNet((4,), (4,) * 3, (4,), (4,) * levels, (4,), compute_inv=True, velocity_steps=7))
    output = network(*images)
    assert output.dvf.abs().max() > 0.5
    for dvf in (output.dvf, output.inv_dvf):
        assert jacobian_determinant(dvf).min() > 0.03


@pytest.mark.parametrize(("levels", "mean_px", "largest_px"), [(3, 0.2, 1.5), (2, 0.1, 1.5), (1, 0.1, 1.5)])
def test_the_inverse_of_the_roughest_velocity_is_exact_to_interpolation(levels, mean_px, largest_px):
    network = LocalUNet((4,), (4,) * 3, (4,), (4,) * levels, (4,), compute_inv=True, velocity_steps=7)
    output = rough(network)(*torch.rand(2, 2, 1, 96, 136))
    inside = stays_inside(output.inv_dvf)
    residual = compose(output.dvf, output.inv_dvf).square().sum(1).sqrt()[inside]
    assert residual.mean() < mean_px
    assert residual.max() < largest_px


def test_a_velocity_is_integrated_forwards_and_backwards_in_one_pass():
    network = smooth(LocalUNet((4,), (4, 4), (4,), (4,), (4,), compute_inv=True, velocity_steps=6))
    passes = []
    network.middle.register_forward_hook(lambda *_: passes.append(1))
    reference, moving = torch.rand(2, 2, 1, 32, 38)
    output = network(reference, moving)
    assert len(passes) == 1
    velocity = network.velocity(reference, moving)
    assert velocity.abs().max() > 0.5
    torch.testing.assert_close(output.dvf, integrate(velocity, 6))
    torch.testing.assert_close(output.inv_dvf, integrate(-velocity, 6))
    torch.testing.assert_close(network.displacement(reference, moving), output.dvf)
    torch.testing.assert_close(output.registered, warp(moving, output.dvf))


def test_velocity_extends_into_the_cropped_margin():
    network = LocalUNet((1,), (1,) * 4, (1,), (1,) * 4, (1,), velocity_steps=7)
    torch.nn.init.constant_(network.to_dvf.bias, 3.0)
    torch.nn.init.zeros_(network.to_dvf.weight)
    dvf = network(*torch.rand(2, 1, 1, 32, 40)).dvf  # cropped to 32
    torch.testing.assert_close(dvf, torch.full((1, 2, 32, 40), 3.0))


def test_fewer_upsamplings_predict_on_a_coarser_grid():
    network = smooth(LocalUNet((2,), (3, 4), (5,), (4,), (6,)))
    reference, moving = torch.rand(2, 1, 1, 32, 40)
    coarse = network._unet(torch.cat([reference, moving], 1)).detach()
    assert coarse.shape == (1, 2, 16, 20)
    dvf = network(reference, moving).dvf.detach()
    # Corners stay corners: displacements grow by 31/15 and 39/19.
    scale = torch.tensor([39 / 19, 31 / 15])
    torch.testing.assert_close(dvf[0, :, 31, 39], coarse[0, :, 15, 19] * scale)
    torch.testing.assert_close(dvf[0, :, 0, 0], coarse[0, :, 0, 0] * scale)


@pytest.mark.parametrize(
    ("size", "cropped"), [(32, 32), (40, 32), (41, 41), (47, 47), (48, 48), (456, 448), (457, 457)]
)
def test_local_crops_up_to_four_pixels_a_side_and_pads_beyond(size, cropped):
    network = LocalUNet((1,), (1,) * 4, (1,), (1,) * 4, (1,))
    torch.nn.init.ones_(network.to_dvf.bias)  # the network's own output is not 0 anywhere
    torch.nn.init.zeros_(network.to_dvf.weight)
    dvf = network(*torch.rand(2, 1, 1, 32, size)).dvf
    assert dvf.shape == (1, 2, 32, size)
    predicted = (dvf[0, 0, 0] == 1).nonzero()
    assert len(predicted) == cropped
    assert predicted.min() == (size - cropped) // 2


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (63, 100)])
def test_any_image_size_trains(shape):
    reference, moving = torch.rand(2, 1, 1, *shape)
    diffeomorphic = LocalUNet(compute_inv=True, upsample_filters=(8, 8, 8), velocity_steps=7)
    for network in (LocalUNet(compute_inv=True), diffeomorphic, GlobalAffineNet(image_shape=shape)):
        output = network(reference, moving)
        assert output.dvf.shape == (1, 2, *shape)
        torch.testing.assert_close(output.registered, warp(moving, output.dvf))
        output.dvf.square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_wrong_hyperparameters_say_what_is_wrong():
    with pytest.raises(ValueError, match="5 blocks need at least 32 px per side, got 20×40"):
        GlobalAffineNet(image_shape=(20, 40))
    with pytest.raises(ValueError, match=r"^upsample_filters: expected .*, got 2 and 1"):
        LocalUNet(upsample_filters=(4, 4), downsample_filters=(4,))
    with pytest.raises(ValueError, match="velocity_steps: expected at least 0, got -1"):
        LocalUNet(velocity_steps=-1)
    with pytest.raises(ValueError, match=r"end_filters\[1\]: expected a whole number, got 1.5"):
        LocalUNet(end_filters=(4, 1.5))
    with pytest.raises(ValueError, match=r"^filters\[0\]: expected at least 1, got 0"):
        GlobalAffineNet(filters=(0,))
    with pytest.raises(ValueError, match="takes images of 32×40 px, got 32×48"):
        GlobalAffineNet(image_shape=(32, 40))(*torch.rand(2, 1, 1, 32, 48))


def test_layers_are_the_geometry_functions():
    shift = torch.tensor([[[1.0, 0, 2], [0, 1, -1]]])
    dvf = Affine2DVF((5, 6))(shift)
    assert torch.equal(dvf[0, 0], torch.full((5, 6), 2.0))
    assert torch.equal(dvf[0, 1], torch.full((5, 6), -1.0))
    image = torch.arange(30.0).view(1, 1, 5, 6)
    warped = BilinearInterpolation()(image, dvf)
    torch.testing.assert_close(warped[0, 0, 3, 1], image[0, 0, 2, 3])
    twice = DVFComposition()(dvf, dvf)
    torch.testing.assert_close(twice[0, :, 2, 2], torch.tensor([4.0, -2.0]))


def is_finer_than_bfloat16(values: torch.Tensor) -> bool:
    return values.dtype == torch.float32 and not torch.equal(values, values.bfloat16().float())


@pytest.mark.parametrize("velocity_steps", [None, 7])
def test_half_precision_keeps_the_local_field_in_float32(velocity_steps):
    network = LocalUNet((4,), (4, 4), (4,), (4, 4), (4,), compute_inv=True, velocity_steps=velocity_steps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.end[0](torch.rand(1, 4, 8, 8)).dtype == torch.bfloat16
        output = network(*torch.rand(2, 1, 1, 32, 48))
    assert is_finer_than_bfloat16(output.dvf)
    assert is_finer_than_bfloat16(output.inv_dvf)
    assert output.registered.dtype == torch.float32


def test_half_precision_keeps_the_global_map_in_float32():
    """1.003 is 1 in bfloat16: at 456 px that is an error of more than a pixel."""
    network = GlobalAffineNet(image_shape=(32, 48))
    exact = torch.tensor([[1.003, 0.001, 20.06], [-0.001, 0.998, -7.03]])
    with torch.no_grad():
        network.to_affine.bias.copy_(exact.flatten())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matrix = network.affine(*torch.rand(2, 1, 1, 32, 48))
    torch.testing.assert_close(matrix[0], exact, rtol=0, atol=1e-7)
