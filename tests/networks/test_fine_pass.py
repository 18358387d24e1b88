"""The network with a last pass against its definition: the images that each network sees, and the order of fields."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atlalign.errors import InputError
from atlalign.geometry import compose, jacobian_determinant, resize, warp
from atlalign.networks import CorrelationPyramidNet, FinePassNet, Registration
from atlalign.networks.coarse_to_fine import shrink

SHAPE = (64, 96)


class Shift(nn.Module):
    """Moves by a constant in its own pixels, and back by its exact inverse; notes the images that it sees."""

    compute_inv = True

    def __init__(self, x: float, y: float) -> None:
        super().__init__()
        self.by = torch.tensor([x, y]).view(1, 2, 1, 1)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, reference: Tensor, moving: Tensor) -> Registration:
        self.seen.append((reference, moving))
        dvf = self.by.expand(len(moving), -1, *moving.shape[-2:])
        return Registration(warp(moving, dvf), dvf, -dvf)


def images() -> tuple[Tensor, Tensor]:
    small = torch.rand(2, 2, 1, 6, 9)
    reference, moving = (F.interpolate(one, SHAPE, mode="bicubic", align_corners=True) for one in small)
    return reference, moving


def pyramid(std: float) -> CorrelationPyramidNet:
    network = CorrelationPyramidNet((4, 4), (2, 2), (4,), compute_inv=True)
    for decoder in network.decoders:
        nn.init.normal_(decoder[-1].weight, std=std)
    return network


def test_the_last_pass_sees_full_images_after_the_coarse_field():
    coarse, fine = Shift(1.0, -0.5), Shift(0.25, 0.5)
    reference, moving = images()
    output = FinePassNet(coarse, fine, compute_inv=True)(reference, moving)
    assert [tuple(image.shape[-2:]) for image in coarse.seen[0]] == [(32, 48)] * 2
    assert torch.equal(fine.seen[0][0], reference)
    so_far = torch.tensor([95 / 47, -0.5 * 63 / 31]).view(1, 2, 1, 1).expand(2, -1, *SHAPE)
    torch.testing.assert_close(fine.seen[0][1], warp(moving, so_far, padding_mode="border"))
    torch.testing.assert_close(output.dvf, so_far + fine.by)
    torch.testing.assert_close(output.inv_dvf, -output.dvf)
    torch.testing.assert_close(output.registered, warp(moving, output.dvf))


def test_the_fine_field_is_applied_first_and_nothing_folds():
    network = FinePassNet(pyramid(0.05), pyramid(0.05), compute_inv=True)
    reference, moving = images()
    output = network(reference, moving)
    coarse = network.coarse(shrink(reference, 2), shrink(moving, 2))
    fine = network.last_pass(reference, moving, coarse.dvf)
    there, back = (resize(field, SHAPE) for field in (coarse.dvf, coarse.inv_dvf))
    torch.testing.assert_close(output.dvf, compose(outer=there, inner=fine.dvf))
    torch.testing.assert_close(output.inv_dvf, compose(outer=fine.inv_dvf, inner=back))
    assert (output.dvf - compose(outer=fine.dvf, inner=there)).abs().max() > 0.1
    assert jacobian_determinant(output.dvf).min() > 0


def test_the_coarse_images_are_smaller_by_the_reduction():
    assert FinePassNet(pyramid(0.0), pyramid(0.0), reduction=4).coarse_shape((320, 456)) == (80, 114)


def test_it_needs_a_size_and_inverses():
    with pytest.raises(InputError, match="reduction"):
        FinePassNet(Shift(0, 0), Shift(0, 0), reduction=0)
    with pytest.raises(InputError, match=r"compute_inv: .* fine"):
        FinePassNet(Shift(0, 0), CorrelationPyramidNet((2,), (1,), (2,)), compute_inv=True)
