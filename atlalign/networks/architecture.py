"""Networks as plain data: a class and its arguments, written as in a configuration."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from torch import nn

from atlalign.errors import InputError, check_size
from atlalign.imports import imported
from atlalign.networks.coarse_to_fine import CoarseToFineNet
from atlalign.networks.correlation_pyramid import CorrelationPyramidNet
from atlalign.networks.fine_pass import FinePassNet
from atlalign.networks.global_affine import GlobalAffineNet
from atlalign.networks.local_unet import LocalUNet
from atlalign.networks.merged import MergedNet
from atlalign.networks.plane_locator import PlaneLocatorNet

_NETWORKS: dict[str, type[nn.Module]] = {
    f"atlalign.networks.{cls.__name__}": cls
    for cls in (
        CoarseToFineNet,
        CorrelationPyramidNet,
        FinePassNet,
        GlobalAffineNet,
        LocalUNet,
        MergedNet,
        PlaneLocatorNet,
    )
}


def architecture_of(network: nn.Module) -> dict[str, Any]:
    """Return `_target_` and the constructor's arguments; networks among the arguments are nested in the same form.

    The arguments are the network's attribute `hyperparameters`. If its class does not define this attribute,
    `construct` and the training set it. A class whose constructor takes no arguments needs none.

    Raises:
        InputError: If the arguments of the network or of a part are unknown or not plain data, or the class cannot be
            imported.
    """
    cls = type(network)
    hyperparameters = getattr(network, "hyperparameters", None if _arguments_of(cls) else {})
    if not isinstance(hyperparameters, Mapping):
        raise InputError(_unknown_arguments(cls))
    known = [name for name, of_package in _NETWORKS.items() if of_package is cls]
    target = known[0] if known else _importable(cls)
    arguments = {
        key: architecture_of(value)
        if isinstance(value, nn.Module)
        else _plain(f"{cls.__name__}.{key}", value)
        for key, value in hyperparameters.items()
    }
    return {"_target_": target, **arguments}


def record_arguments(network: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Record the constructor's arguments of a network whose class does not, so that it can be saved."""
    if not hasattr(network, "hyperparameters"):
        network.hyperparameters = dict(arguments)  # type: ignore[assignment]


def _arguments_of(cls: type[nn.Module]) -> list[str]:
    """Return the names of the constructor's arguments."""
    if cls.__init__ is nn.Module.__init__:
        return []
    return list(inspect.signature(cls).parameters)


def _unknown_arguments(cls: type[nn.Module]) -> str:
    names = _arguments_of(cls)
    assigned = ", ".join(f'"{name}": {name}' for name in names)
    return (
        f"{cls.__name__} cannot be saved: expected its attribute `hyperparameters` to hold the constructor's "
        f"arguments, found none: write self.hyperparameters = {{{assigned}}} in {cls.__name__}.__init__, or set the "
        "attribute on the network"
    )


def _importable(cls: type[nn.Module]) -> str:
    name = f"{cls.__module__}.{cls.__qualname__}"
    if "<locals>" in name:
        raise InputError(
            f"{cls.__name__} cannot be saved: expected a class at the top level of a module, from where a model file "
            f"can import it, got {name}"
        )
    return name


def _plain(name: str, value: Any) -> Any:
    """Return a value as plain data that a model file can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(name, part) for part in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise InputError(
        f"{name} cannot be saved: expected a number, text, true, false, null, a network, or a list or dict of these, "
        f"got a {type(value).__name__}"
    )


def construct(architecture: Mapping[str, Any], allow: str | Collection[str] = ()) -> nn.Module:
    """Build the network that an architecture describes, calling only allowed classes.

    Args:
        architecture: The result of `architecture_of`.
        allow: Importable name or names of allowed classes besides the networks of this package.

    Raises:
        InputError: If a class is not allowed or cannot be imported, or memory cannot hold the weights.
    """
    allowed = [allow] if isinstance(allow, str) else allow
    return built_within_memory(lambda: _construct(architecture, allowed))


def built_within_memory(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that `make` builds, after checking its size: a few bytes in a file can declare terabytes.

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
    network = _network_class(architecture.get("_target_"), allow)(**arguments)
    record_arguments(network, arguments)
    return network


def _network_class(target: Any, allow: Collection[str]) -> Callable[..., nn.Module]:
    if target in _NETWORKS:
        return _NETWORKS[target]
    if target not in allow:
        raise InputError(
            f"unknown network '{target}': if it is a class of your own, allow it by --allow {target} for atlalign "
            f"register, 'allow=[{target}]' for evaluate, 'model.allow=[{target}]' for train, or allow=['{target}'] in "
            "Python"
        )
    return cast(Callable[..., nn.Module], imported(str(target)))
