"""The merged network against its definition: composition, one interpolation, the order of the inverses."""

import torch
from torch import Tensor, nn

from atlalign.geometry import affine_to_dvf, compose, invert, warp
from atlalign.networks import GlobalAffineNet, LocalUNet, MergedNet, Registration

SHAPE = (64, 96)
MATRIX = torch.tensor([[[1.1, 0.1, -6.0], [-0.1, 0.95, 4.0]]])


def global_net() -> GlobalAffineNet:
    """Return a network that always predicts MATRIX."""
    network = GlobalAffineNet((2,), (), SHAPE)
    network.to_affine.bias.data = MATRIX.flatten().clone()
    return network


class Bump(nn.Module):
    """Predicts a smooth field of up to 4 px and its inverse, and remembers what it was shown."""

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        self.shown = moving
        y, x = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
        bump = torch.exp(-6 * (x**2 + y**2))
        dvf = torch.stack([4 * bump, -3 * bump])[None].expand(len(moving), -1, -1, -1)
        return Registration(registered=warp(moving, dvf), dvf=dvf, inv_dvf=invert(dvf))


def pair() -> tuple[Tensor, Tensor]:
    return torch.rand(1, 1, *SHAPE), torch.rand(1, 1, *SHAPE)


def test_overall_field_is_local_first_then_global():
    reference, moving = pair()
    local = Bump()
    output = MergedNet(global_net(), local, expose_global=True)(reference, moving)
    field = affine_to_dvf(MATRIX, SHAPE)
    torch.testing.assert_close(local.shown, warp(moving, field))
    torch.testing.assert_close(output.global_registered, local.shown)
    torch.testing.assert_close(output.global_dvf, field)
    # By hand at the centre of the bump: matrix · (q + local(q)) − q
    q = torch.tensor([47.0, 31.0])
    inner = local(reference, moving).dvf[0, :, 31, 47]
    expected = MATRIX[0] @ torch.cat([q + inner, torch.ones(1)]) - q
    torch.testing.assert_close(output.dvf[0, :, 31, 47], expected, atol=1e-4, rtol=0)


def test_moving_image_is_interpolated_once():
    reference, moving = pair()
    output = MergedNet(global_net(), Bump())(reference, moving)
    torch.testing.assert_close(output.registered, warp(moving, output.dvf))
    assert output.global_registered is None
    assert output.global_dvf is None


def test_inverse_field_undoes_the_overall_field():
    output = MergedNet(global_net(), Bump())(*pair())
    inside = (..., slice(16, -16), slice(24, -24))
    assert output.dvf[inside].abs().max() > 5
    assert compose(output.dvf, output.inv_dvf)[inside].abs().max() < 0.02


def test_shape_and_inverse_come_from_the_parts():
    network = MergedNet(global_net(), LocalUNet((), (), (), (), (), compute_inv=True))
    assert network.image_shape == SHAPE
    assert network.compute_inv
    assert not MergedNet(global_net(), nn.Identity()).compute_inv


def test_gradients_reach_both_networks():
    local = nn.Conv2d(2, 2, 3, padding="same")
    network = global_net()

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = local

        def forward(self, reference, moving):
            dvf = self.conv(torch.cat([reference, moving], 1))
            return Registration(warp(moving, dvf), dvf)

    output = MergedNet(network, Learned())(*pair())
    assert output.inv_dvf is None
    output.registered.square().mean().backward()
    for parameter in (network.to_affine.bias, local.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
