"""Networks of another form than `Registration` are refused with a sentence that names the class."""

import pytest
import torch
from torch import nn

from atlalign.errors import InputError
from atlalign.geometry import warp
from atlalign.models import merge_global_local
from atlalign.networks import CoarseToFineNet, GlobalAffineNet, MergedRegistration, Registration
from atlalign.networks.contract import call_network
from atlalign.registration.attempt import network_field

SHAPE = (16, 24)


class Returning(nn.Module):
    """Returns what a function makes of the right output."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, reference, moving):
        dvf = torch.ones_like(moving).expand(-1, 2, -1, -1)
        return self.change(Registration(warp(moving, dvf), dvf))


class OneImage(nn.Module):
    def forward(self, pair):
        return pair


class WithoutForward(nn.Module):
    pass


def pair() -> torch.Tensor:
    return torch.rand(2, 2, 1, *SHAPE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tuple, "got a tuple"),
        (lambda output: output.dvf, "got a Tensor"),
        (lambda output: None, "got None"),
        (lambda output: output._asdict(), "got a dict"),
        (lambda output: output._replace(dvf=3), "whose dvf is of type int"),
        (lambda output: output._replace(inv_dvf=3), "whose inv_dvf is of type int"),
        (
            lambda output: Registration(output.dvf, output.registered),
            r"`registered` of shape \(2, 1, 16, 24\)",
        ),
        (lambda output: output._replace(dvf=output.dvf[..., ::2, ::2]), r"`dvf` of shape .*\(2, 2, 8, 12\)"),
        (lambda output: output._replace(dvf=output.dvf.movedim(1, -1)), r"`dvf` of shape .*\(2, 16, 24, 2\)"),
        (lambda output: output._replace(inv_dvf=output.dvf[:1]), r"`inv_dvf` of shape .*\(1, 2, 16, 24\)"),
    ],
)
def test_an_output_of_another_form_is_refused_in_training_and_register(change, words):
    network = Returning(change)
    for call in (call_network, network_field):
        with pytest.raises(InputError, match=rf"^network .*\.Returning: expected .*{words}"):
            call(network, *pair())


@pytest.mark.parametrize(
    ("network", "words"), [(OneImage(), r"got forward\(pair\)"), (WithoutForward(), "got none")]
)
def test_a_network_of_another_call_is_refused(network, words):
    for call in (call_network, network_field):
        with pytest.raises(InputError, match=rf"expected a method forward\(reference, moving\), {words}"):
            call(network, *pair())


def test_registrations_pass_unchanged():
    network = Returning(lambda output: output._replace(inv_dvf=-output.dvf))
    assert isinstance(call_network(network, *pair()), Registration)
    merged = Returning(lambda output: MergedRegistration(*output))
    assert isinstance(call_network(merged, *pair()), MergedRegistration)


def test_a_part_of_a_network_is_named():
    merged = merge_global_local(GlobalAffineNet((4,), (4,), SHAPE), Returning(tuple))
    for network in (merged, CoarseToFineNet(Returning(tuple), (1,))):
        with pytest.raises(InputError, match=r"^network .*\.Returning: .*got a tuple"):
            network(*pair())
