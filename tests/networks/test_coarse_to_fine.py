"""The coarse-to-fine network against its definition: what passes see, one interpolation, the order of fields."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlalign.geometry import compose, jacobian_determinant, stays_inside, warp
from atlalign.networks import CoarseToFineNet, LocalUNet, Registration

SHAPE = (64, 96)


class Push(nn.Module):
    """Moves by a constant, a sixteenth of its images' rows, and back by its exact inverse; notes what it sees."""

    compute_inv = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        self.seen.append((reference, moving))
        shift = torch.tensor([1.0, -0.5]).view(1, 2, 1, 1) * reference.shape[-2] / 16
        dvf = shift.expand(len(moving), -1, *moving.shape[-2:])
        return Registration(warp(moving, dvf), dvf, -dvf)


def images() -> tuple[Tensor, Tensor]:
    small = torch.rand(2, 2, 1, 6, 9)
    reference, moving = (F.interpolate(one, SHAPE, mode="bicubic", align_corners=True) for one in small)
    return reference, moving


def test_passes_see_shrunk_images_warped_so_far_and_their_fields_add_up():
    net = Push()
    reference, moving = images()
    output = CoarseToFineNet(net, (4, 2, 1), shared_weights=True)(reference, moving)
    assert [tuple(seen[1].shape[-2:]) for seen in net.seen] == [(16, 24), (32, 48), SHAPE]
    # 1, 2 and 4 px of grids that are 23, 47 and 95 px wide; −0.5, −1 and −2 px of 15, 31 and 63 px
    x = 1 * 95 / 23 + 2 * 95 / 47 + 4
    y = -0.5 * 63 / 15 - 1 * 63 / 31 - 2
    torch.testing.assert_close(output.dvf[:, 0], torch.full((2, *SHAPE), x))
    torch.testing.assert_close(output.dvf[:, 1], torch.full((2, *SHAPE), y))
    torch.testing.assert_close(output.inv_dvf, -output.dvf)
    torch.testing.assert_close(output.registered, warp(moving, output.dvf))
    before_last = torch.tensor([x - 4, y + 2]).view(1, 2, 1, 1).expand(2, -1, *SHAPE)
    torch.testing.assert_close(net.seen[2][1], warp(moving, before_last, padding_mode="border"))
    assert torch.equal(net.seen[2][0], reference)


def test_a_shrunk_image_shows_the_same_at_the_same_relative_place():
    net = Push()
    row = torch.linspace(0, 1, 97).expand(1, 1, 64, 97)
    CoarseToFineNet(net, (4,))(row, row)
    expected = torch.linspace(0, 1, 24).expand(1, 1, 16, 24)
    torch.testing.assert_close(net.seen[0][0][..., 1:-1], expected[..., 1:-1])


def velocity_net() -> LocalUNet:
    network = LocalUNet((4,), (4, 4), (4,), (4,), (4,), compute_inv=True, velocity_steps=7)
    nn.init.normal_(network.to_dvf.weight, std=2.0)
    return network


def test_the_overall_field_is_composed_the_last_pass_first():
    network = CoarseToFineNet(velocity_net(), (1, 1))
    nn.init.normal_(network.nets[1].to_dvf.weight, std=2.0)
    reference, moving = images()
    first = network.nets[0](reference, moving)
    second = network.nets[1](reference, warp(moving, first.dvf, padding_mode="border"))
    output = network(reference, moving)
    torch.testing.assert_close(output.dvf, compose(outer=first.dvf, inner=second.dvf))
    torch.testing.assert_close(output.inv_dvf, compose(outer=second.inv_dvf, inner=first.inv_dvf))
    swapped = compose(outer=second.dvf, inner=first.dvf)
    assert (output.dvf - swapped).abs().max() > 0.1


def test_passes_of_velocities_stay_without_folds_and_inverse_to_each_other():
    network = CoarseToFineNet(velocity_net(), (4, 2))
    output = network(*images())
    assert output.dvf.abs().max() > 2
    assert jacobian_determinant(output.dvf).min() > 0.03
    inside = stays_inside(output.inv_dvf)
    residual = compose(output.dvf, output.inv_dvf).square().sum(1).sqrt()[inside]
    assert residual.mean() < 0.3


def test_own_weights_start_alike_and_part_in_training_shared_ones_are_the_same():
    own = CoarseToFineNet(velocity_net(), (2, 1))
    shared = CoarseToFineNet(velocity_net(), (2, 1), shared_weights=True)
    count = sum(p.numel() for p in velocity_net().parameters())
    assert sum(p.numel() for p in own.parameters()) == 2 * count
    assert sum(p.numel() for p in shared.parameters()) == count
    one, other = (net.to_dvf.weight for net in own.nets)
    assert one is not other
    assert torch.equal(one, other)
    for network in (own, shared):
        output = network(*images())
        (output.dvf.square().mean() + output.inv_dvf.square().mean()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert not torch.equal(one.grad, other.grad)


def test_inverse_field_is_optional():
    network = CoarseToFineNet(LocalUNet((2,), (2,), (2,), (2,), (2,)), (2, 1))
    assert not network.compute_inv
    assert network(*images()).inv_dvf is None


def test_one_pass_at_full_size_is_the_network_itself():
    net = velocity_net()
    pair = images()
    torch.testing.assert_close(CoarseToFineNet(net, (1,))(*pair).dvf, net(*pair).dvf)


@pytest.mark.parametrize("reductions", [(), (2, 0)])
def test_wrong_reductions(reductions):
    with pytest.raises(ValueError, match="reductions: expected factors of at least 1"):
        CoarseToFineNet(Push(), reductions)
