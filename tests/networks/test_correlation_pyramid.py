"""The correlation pyramid: cosines that can be computed by hand, no folds, an inverse, and that it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlalign.geometry import compose, jacobian_determinant, stays_inside, warp
from atlalign.networks import CorrelationPyramidNet
from atlalign.networks.correlation_pyramid import correlate

SHAPE = (64, 96)


def images(n: int = 2, shape: tuple[int, int] = SHAPE) -> Tensor:
    small = torch.rand(n, 1, shape[0] // 6, shape[1] // 6)
    return F.interpolate(small, shape, mode="bicubic", align_corners=True).clamp(0, 1)


def small_net(**others: object) -> CorrelationPyramidNet:
    return CorrelationPyramidNet((8, 8, 8), (2, 2, 2), (8,), **others)


def steep(network: CorrelationPyramidNet) -> CorrelationPyramidNet:
    """Random corrections at each level, as no training would give."""
    for decoder in network.decoders:
        nn.init.normal_(decoder[-1].weight, std=0.5)
    return network


def test_correlation_is_the_cosine_of_deviations_from_the_mean():
    # Two features of mean 0: (1, 0) left, (−1, 0) right; (0, 1) and (0, −1), so the cosine of row 0 with itself is 1.
    fixed = torch.tensor([[[[1.0, -1.0], [0.0, 0.0]], [[0.0, 0.0], [2.0, -2.0]]]])
    cosines = correlate(fixed, fixed + 5, radius=1)
    assert cosines.shape == (1, 9, 2, 2)
    expected = {
        (0, 0): [[1, 1], [1, 1]],  # itself
        (1, 0): [[-1, 0], [-1, 0]],  # its neighbour to the right; beyond the border nothing
        (0, 1): [[0, 0], [0, 0]],  # below: at right angles
    }
    for (x, y), values in expected.items():
        found = cosines[0, (y + 1) * 3 + x + 1]
        torch.testing.assert_close(found, torch.tensor(values, dtype=torch.float32))


def test_correlation_finds_a_displacement_x_before_y():
    fixed = torch.randn(1, 16, 20, 30)
    other = torch.roll(
        fixed, shifts=(-1, 2), dims=(-2, -1)
    )  # what lies at (x, y) lies there at (x + 2, y − 1)
    best = correlate(fixed, other, radius=3).argmax(1)
    assert (best[:, 3:-3, 3:-3] == (-1 + 3) * 7 + (2 + 3)).all()


def test_flat_features_match_nothing_and_have_finite_gradients():
    flat = torch.full((1, 4, 6, 6), 0.3, requires_grad=True)
    cosines = correlate(flat, flat, radius=1)
    cosines.sum().backward()
    assert cosines.abs().max() < 1e-3
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_it_begins_as_the_identity():
    moving = images()
    output = CorrelationPyramidNet(compute_inv=True)(images(), moving)
    assert torch.equal(output.dvf, torch.zeros(2, 2, *SHAPE))
    assert torch.equal(output.inv_dvf, output.dvf)
    torch.testing.assert_close(output.registered, moving)


def test_whatever_it_predicts_does_not_fold_and_has_its_inverse():
    output = steep(small_net(compute_inv=True))(images(), images())
    assert output.dvf.abs().max() > 3
    assert jacobian_determinant(output.dvf).min() > 0
    residual = compose(output.dvf, output.inv_dvf).square().sum(1).sqrt()[stays_inside(output.inv_dvf)]
    assert residual.mean() < 0.1
    assert residual.max() < 1


def test_the_field_warps_the_moving_image_and_needs_no_inverse():
    moving = images()
    output = steep(small_net())(images(), moving)
    assert output.inv_dvf is None
    torch.testing.assert_close(output.registered, warp(moving, output.dvf))


@pytest.mark.parametrize("shape", [(33, 50), (32, 32), (67, 41)])
def test_images_of_any_size_will_do(shape):
    assert steep(small_net())(images(1, shape), images(1, shape)).dvf.shape == (1, 2, *shape)


def test_a_sample_does_not_depend_on_its_batch():
    network, reference, moving = steep(small_net()).eval(), images(), images()
    together = network(reference, moving).dvf
    torch.testing.assert_close(network(reference[1:], moving[1:]).dvf, together[1:], rtol=1e-4, atol=1e-4)


def test_half_precision_keeps_fields_in_float32():
    network, reference, moving = steep(small_net()), images(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        dvf = network(reference, moving).dvf
    assert dvf.dtype == torch.float32
    assert not torch.equal(dvf, dvf.bfloat16().float())


def test_it_learns_to_match_in_few_steps():
    network = small_net()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    errors = []
    for _ in range(80):
        moving, shift = images(4), (torch.rand(4, 2, 1, 1) * 2 - 1) * 5
        truth = shift.expand(-1, -1, *SHAPE)
        # Dark where the moving image is bright: no intensities could be compared.
        reference = 1 - warp(moving, truth, padding_mode="border")
        error = (network(reference, moving).dvf - truth).square().sum(1).add(1e-6).sqrt().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item() / shift.square().sum(1).sqrt().mean().item())
    assert sum(errors[-10:]) / 10 < 0.5


@pytest.mark.parametrize("radii", [(), (2, 2), (2, 2, 2, 0)])
def test_each_level_needs_a_radius(radii):
    with pytest.raises(ValueError, match="radius of at least 1 for each of encoder_filters"):
        CorrelationPyramidNet(radii=radii)


def test_squarings_and_channels_are_whole_numbers():
    with pytest.raises(ValueError, match="velocity_steps: expected at least 0, got -1"):
        CorrelationPyramidNet(velocity_steps=-1)
    with pytest.raises(ValueError, match=r"decoder_filters\[1\]: expected at least 1, got 0"):
        CorrelationPyramidNet(decoder_filters=(8, 0))


def test_mirrored_images_give_the_mirrored_field_if_it_looks_at_both():
    reference, moving = images(), images()
    torch.manual_seed(0)
    one_sided, both = steep(small_net()).eval(), small_net(mirrored=True).eval()
    both.load_state_dict(one_sided.state_dict())
    sign = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    with torch.inference_mode():
        for network, alike in ((one_sided, False), (both, True)):
            plain = network.velocity(reference, moving)
            mirrored = network.velocity(reference.flip(-1), moving.flip(-1)).flip(-1) * sign
            assert torch.allclose(plain, mirrored, atol=1e-4) is alike
