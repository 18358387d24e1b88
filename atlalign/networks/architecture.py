"""Networks as plain data: a class and its arguments, written as in a configuration."""

from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from atlalign.errors import InputError, check_size, unknown_name
from atlalign.networks.coarse_to_fine import CoarseToFineNet
from atlalign.networks.correlation_pyramid import CorrelationPyramidNet
from atlalign.networks.global_affine import GlobalAffineNet
from atlalign.networks.local_unet import LocalUNet
from atlalign.networks.merged import MergedNet
from atlalign.networks.plane_locator import PlaneLocatorNet

_NETWORKS: dict[str, type[nn.Module]] = {
    f"atlalign.networks.{cls.__name__}": cls
    for cls in (
        CoarseToFineNet,
        CorrelationPyramidNet,
        GlobalAffineNet,
        LocalUNet,
        MergedNet,
        PlaneLocatorNet,
    )
}


def architecture_of(network: nn.Module) -> dict[str, Any]:
    """Return `_target_` and the constructor's arguments; networks among the arguments are nested in the same form.

    Raises:
        InputError: If the network or a part of it has no attribute `hyperparameters`.
    """
    cls = type(network)
    hyperparameters = getattr(network, "hyperparameters", None)
    if not isinstance(hyperparameters, Mapping):
        raise InputError(
            f"{cls.__name__} cannot be saved: expected an attribute `hyperparameters`, a dict of the constructor's "
            "arguments"
        )
    known = [name for name, of_package in _NETWORKS.items() if of_package is cls]
    target = known[0] if known else f"{cls.__module__}.{cls.__qualname__}"
    arguments = {
        key: architecture_of(value) if isinstance(value, nn.Module) else value
        for key, value in hyperparameters.items()
    }
    return {"_target_": target, **arguments}


def construct(architecture: Mapping[str, Any], allow: Collection[str] = ()) -> nn.Module:
    """Build the network that an architecture describes; only allowed classes are called.

    Args:
        architecture: The result of `architecture_of`.
        allow: Importable names of allowed classes besides the networks of this package.

    Raises:
        InputError: If a class is not allowed, or memory cannot hold the weights.
    """
    return built_within_memory(lambda: _construct(architecture, allow))


def built_within_memory(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that `make` builds, once its size is known: a few bytes of a file can declare terabytes.

    Raises:
        InputError: If memory cannot hold the weights.
    """
    try:
        with torch.device("meta"):  # where a tensor has a shape but takes no memory
            planned = make()
    except InputError:
        raise
    except Exception:  # a user's class may need real tensors; the mistakes of others come again
        return make()
    tensors = [*planned.parameters(), *planned.buffers()]
    check_size("the network's weights", [sum(tensor.nbytes for tensor in tensors)])
    return make()


def _construct(architecture: Mapping[str, Any], allow: Collection[str]) -> nn.Module:
    arguments = {
        key: _construct(value, allow) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in architecture.items()
        if key != "_target_"
    }
    return _network_class(architecture.get("_target_"), allow)(**arguments)


def _network_class(target: Any, allow: Collection[str]) -> Callable[..., nn.Module]:
    if target in _NETWORKS:
        return _NETWORKS[target]
    if target not in allow:
        raise unknown_name(
            "network (own classes must be named in `allow`)", str(target), [*_NETWORKS, *allow]
        )
    module, _, name = str(target).rpartition(".")
    return cast(Callable[..., nn.Module], getattr(import_module(module), name))
