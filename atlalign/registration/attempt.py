"""The network's registration of a placed section, before refinement and before comparison with other places."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from atlalign.errors import InputError, describe
from atlalign.geometry import compose, resize, warp
from atlalign.networks import FinePassNet
from atlalign.networks.contract import check_takes_pairs, checked_registration
from atlalign.registration.likeness import likeness
from atlalign.registration.placed_image import antialiased, placed_ignored, placed_image, sampled_image
from atlalign.registration.placement import Placement, at_size
from atlalign.registration.references import Reference
from atlalign.registration.section import Section


class Attempt(NamedTuple):
    """A placed section, and the network's registration of it.

    Attributes:
        placement: Its placement on the reference.
        placed: (1, 1, H, W), the placed section.
        dvf: (1, 2, H, W), the network's field.
        registered: (1, 1, H, W), the section warped by that field.
        seen: The reference without the parts that fall on ignored tissue; measures use this image.
        likeness: The likeness of the registered section to the reference.
    """

    placement: Placement
    placed: Tensor
    dvf: Tensor
    registered: Tensor
    seen: Reference
    likeness: float


@torch.inference_mode()
def attempt(network: nn.Module, reference: Reference, section: Section, placement: Placement) -> Attempt:
    """Return the network's registration of a placed section.

    Raises:
        InputError: If the network fails, or its field is not finite.
    """
    placed = sampled_image(antialiased(section, placement), placement, shape=reference.grid.shape)
    dvf = network_field(network, reference.image, placed)
    ignored = placed_ignored(section, placement, reference.grid.shape)
    registered, seen = compared(reference, placed, ignored, dvf)
    return Attempt(placement, placed, dvf, registered, seen, float(likeness(seen.image, registered)))


def compared(
    reference: Reference, placed: Tensor, ignored: Tensor | None, dvf: Tensor
) -> tuple[Tensor, Reference]:
    """Return the warped section and the reference, both 0 where tissue is ignored."""
    registered = warp(placed, dvf)
    if ignored is None:
        return registered, reference
    hidden = warp(ignored, dvf) > 0
    return registered * ~hidden, reference.without(hidden[0, 0])


@torch.inference_mode()
def after_last_pass(network: FinePassNet, reference: Reference, section: Section, found: Attempt) -> Tensor:
    """Return an attempt's field (1, 2, H, W) after the network's last pass, which sees larger images.

    Raises:
        InputError: If the network fails, or its field is not finite.
    """
    height, width = reference.grid.shape
    larger = (network.reduction * height, network.reduction * width)
    moving = placed_image(section, at_size(found.placement, reference.grid.shape, larger), larger)
    so_far = resize(found.dvf, larger)
    moved = warp(moving, so_far, padding_mode="border")
    inner = network_field(network.fine, reference.image_at(larger), moved)
    return resize(compose(outer=so_far, inner=inner), reference.grid.shape)


def network_field(network: nn.Module, reference: Tensor, moving: Tensor) -> Tensor:
    """Return the network's field (1, 2, H, W) on the CPU.

    Raises:
        InputError: If the network fails, or its field is not finite.
    """
    check_takes_pairs(network)
    device = next((parameter.device for parameter in network.parameters()), moving.device)
    try:
        output = network(reference.to(device), moving.to(device))
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:
        height, width = reference.shape[-2:]
        raise InputError(f"the network fails on images of {height}×{width} px: {describe(error)}") from error
    dvf = checked_registration(network, output, moving).dvf.float().cpu()
    if not bool(dvf.isfinite().all()):
        raise InputError("the network returned displacements that are not finite")
    return dvf
