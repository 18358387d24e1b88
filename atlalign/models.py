"""Models as files of plain data: save, load, merge.

A model file is a checkpoint without the training: `state_dict` holds the weights under `network.`, `atlalign` the
architecture as a configuration names it: `_target_` and the constructor's arguments. So whatever training wrote can be
loaded, and what `save_model` wrote of a training can be resumed.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from atlalign import __version__, networks
from atlalign.errors import InputError, unknown_name
from atlalign.networks import GlobalAffineNet, LocalUNet, MergedNet

if TYPE_CHECKING:
    from atlalign.training.module import RegistrationModule

__all__ = ["load_model", "merge_global_local", "save_model"]

_NETWORKS: dict[str, type[nn.Module]] = {
    f"{networks.__name__}.{cls.__name__}": cls for cls in (GlobalAffineNet, LocalUNet, MergedNet)
}
_PREFIX = "network."


def save_model(model: nn.Module, path: str | Path, *, separate: bool = False) -> Path:
    """Write a network to `path` and return it.

    A `RegistrationModule` that has trained is written with its configuration and the optimiser's state, from which
    `python train.py ckpt_path=…` goes on.

    Args:
        model: A network with the attribute `hyperparameters` (its constructor's arguments), or a `RegistrationModule`.
        path: The file, written under a temporary name first; what was there is replaced.
        separate: Write a folder of `architecture.json` and `weights.pt` instead, without anything of the training.

    Raises:
        InputError: If the network cannot say its hyperparameters.
    """
    from atlalign.training.module import RegistrationModule

    path = Path(path)
    network = model.network if isinstance(model, RegistrationModule) else model
    architecture = _architecture(network)
    if separate:
        _save_folder(network, architecture, path)
    elif isinstance(model, RegistrationModule):
        _save_training(model, architecture, path)
    else:
        _save_network(network, {"architecture": architecture}, path)
    return path


def load_model(path: str | Path, *, allow: Collection[str] = ()) -> nn.Module:
    """Return the network in a model file, a folder or a training checkpoint, on the CPU and ready to be applied.

    Args:
        path: What `save_model` or training wrote.
        allow: Importable names of further network classes that the file may name, such as `my_lab.Shift`.

    Raises:
        InputError: If there is no such file, it holds more than plain data, or names a class that is not allowed.
    """
    path = Path(path)
    architecture, weights = _read_folder(path) if path.is_dir() else _read_file(path)
    try:
        network = _build(architecture, allow)
        network.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: architecture and weights do not fit: {error}") from error
    return network.eval()


def merge_global_local(global_: nn.Module, local: nn.Module, *, expose_global: bool = False) -> MergedNet:
    """Return one network that registers globally, then locally; it shares the weights with both.

    Args:
        global_: Predicts the affine map.
        local: Predicts what is left.
        expose_global: Return the globally registered image and the global field as well.

    Raises:
        InputError: If the first is no `GlobalAffineNet`.
    """
    if not isinstance(global_, GlobalAffineNet):
        raise InputError(f"merge: expected the global network first, got a {type(global_).__name__}")
    return MergedNet(global_, local, expose_global=expose_global)


def _architecture(network: nn.Module) -> dict[str, Any]:
    """Return `_target_` and the constructor's arguments, those of its parts nested."""
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
        key: _architecture(value) if isinstance(value, nn.Module) else value
        for key, value in hyperparameters.items()
    }
    return {"_target_": target, **arguments}


def _build(architecture: Mapping[str, Any], allow: Collection[str]) -> nn.Module:
    """Build the network that an architecture describes; nothing but allowed classes is called."""
    arguments = {
        key: _build(value, allow) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in architecture.items()
        if key != "_target_"
    }
    return _network_class(architecture.get("_target_"), allow)(**arguments)


def _network_class(target: Any, allow: Collection[str]) -> Callable[..., nn.Module]:
    if target in _NETWORKS:
        return _NETWORKS[target]
    if target not in allow:
        raise unknown_name(
            "network, and not among those that `allow` names:", str(target), [*_NETWORKS, *allow]
        )
    module, _, name = str(target).rpartition(".")
    return cast(Callable[..., nn.Module], getattr(import_module(module), name))


def _save_folder(network: nn.Module, architecture: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "weights.pt", lambda path: torch.save(_weights(network), path))
    text = json.dumps(architecture, indent=2) + "\n"
    _write(folder / "architecture.json", lambda path: path.write_text(text))


def _save_training(module: "RegistrationModule", architecture: dict[str, Any], path: Path) -> None:
    module.origin["architecture"] = architecture  # kept in each of its checkpoints
    try:
        trainer = module.trainer
    except RuntimeError:  # it has none: nothing was trained
        _save_network(module.network, module.origin, path)
    else:
        _write(path, lambda temporary: trainer.save_checkpoint(temporary, weights_only=False))


def _save_network(network: nn.Module, origin: Mapping[str, Any], path: Path) -> None:
    content = {
        "state_dict": {_PREFIX + name: weight for name, weight in _weights(network).items()},
        "atlalign": {"version": __version__, **origin},
    }
    _write(path, lambda temporary: torch.save(content, temporary))


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().cpu() for name, weight in network.state_dict().items()}


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name first, so that nobody ever finds half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        if temporary.exists():  # of several training processes only one writes
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        architecture = json.loads((folder / "architecture.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: expected architecture.json and weights.pt: {error}") from error
    return _checked(folder, architecture, _read_plain(folder / "weights.pt"))


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return architecture and weights of a model file or a training checkpoint."""
    content = _read_plain(path)
    match content:
        case {"state_dict": dict(state), "atlalign": {"architecture": architecture}}:
            pass
        case {"state_dict": dict(state), "atlalign": {"config": {"model": architecture}}}:
            pass
        case _:
            raise InputError(f"{path}: expected a model file or a checkpoint of atlalign")
    weights = {name[len(_PREFIX) :]: value for name, value in state.items() if name.startswith(_PREFIX)}
    return _checked(path, architecture, weights)


def _checked(path: Path, architecture: Any, weights: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not isinstance(architecture, dict) or not isinstance(weights, dict):
        raise InputError(f"{path}: expected an architecture and weights, both by name")
    return architecture, weights


def _read_plain(path: Path) -> Any:
    """Return the content of a torch file that holds tensors and plain data; nothing else is ever built."""
    if not path.is_file():
        raise InputError(f"there is no model {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file may raise anything
        raise InputError(
            f"{path} is no model file: it is damaged, of another format, or holds more than plain data"
        ) from error
