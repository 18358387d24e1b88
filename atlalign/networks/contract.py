"""The interface of every network that registers, checked at each call because a user's own network may differ."""

import inspect
from typing import Any

from torch import Tensor, nn

from atlalign.errors import InputError
from atlalign.imports import name_of
from atlalign.networks.layers import Registration

_EXPECTED = "return an atlalign.networks.Registration(registered, dvf) with tensors of images and fields"


def call_network(network: nn.Module, reference: Tensor, moving: Tensor) -> Registration:
    """Return the network's registration of `moving` to `reference`, both (B, 1, H, W).

    Raises:
        InputError: If the network does not take two images, or does not return a `Registration` of their size.
    """
    check_takes_pairs(network)
    output = network(reference, moving)
    return checked_registration(network, output, moving)


def check_takes_pairs(network: nn.Module) -> None:
    """Check that the network's `forward` takes two images.

    Raises:
        InputError: If it does not.
    """
    signature = inspect.signature(network.forward)
    try:
        signature.bind("reference", "moving")
    except TypeError as error:
        raise InputError(
            f"network {name_of(network)}: expected a method forward(reference, moving), got forward{signature}"
        ) from error
    if type(network).forward is nn.Module.forward:
        raise InputError(
            f"network {name_of(network)}: expected a method forward(reference, moving), got none"
        )


def checked_registration(network: nn.Module, output: Any, moving: Tensor) -> Registration:
    """Check that the output of a network is a `Registration` of the images that it received, and return it.

    Raises:
        InputError: If it is not, or an image or a field does not have the shape that follows from `moving`.
    """
    registration = as_registration(network, output)
    size, (height, width) = len(moving), moving.shape[-2:]
    field = (size, 2, height, width)
    for name, shape in {"registered": (size, 1, height, width), "dvf": field, "inv_dvf": field}.items():
        part = getattr(registration, name)
        if part is not None and tuple(part.shape) != shape:
            raise InputError(
                f"network {name_of(network)}: expected `{name}` of shape {shape} for images of {height}×{width} px, "
                f"got {tuple(part.shape)}"
            )
    return registration


def as_registration(network: nn.Module, output: Any) -> Registration:
    """Check that the output of a network has the tensors of a `Registration`, of any shape, and return it.

    A network may call this for its parts: a comparison of shapes would fix the batch size in an exported graph.

    Raises:
        InputError: If it lacks one of them.
    """
    for name in Registration._fields:
        part = getattr(output, name, None)
        may_be_none = name == "inv_dvf" and hasattr(output, name)
        if not (isinstance(part, Tensor) or (may_be_none and part is None)):
            raise InputError(
                f"network {name_of(network)}: expected forward(reference, moving) to {_EXPECTED}, "
                f"got {_described(output, name)}"
            )
    return output  # type: ignore[no-any-return]


def _described(output: Any, name: str) -> str:
    if hasattr(output, name):
        return f"a {type(output).__name__} whose {name} is of type {type(getattr(output, name)).__name__}"
    return "None" if output is None else f"a {type(output).__name__}"
