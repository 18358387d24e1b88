"""Model files of plain data: save, load, merge.

A model file is a checkpoint without the state of the training. `state_dict` holds the weights under `network.`;
`atlalign` holds the architecture as a configuration: `_target_` and the constructor's arguments. Every checkpoint
therefore loads as a model, and a training that `save_model` saved can be resumed. A file whose name ends in
.safetensors can be read by other programs: it holds the weights, and everything else as JSON in its metadata.
"""

import io
import json
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from textwrap import shorten
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from atlalign import __version__
from atlalign.errors import InputError, check_size, reason_of
from atlalign.io.files import written_whole
from atlalign.networks import GlobalAffineNet, MergedNet
from atlalign.networks.architecture import architecture_of, construct

SHIPPED_MODEL = Path(__file__).parents[1] / "weights" / "real_sections.safetensors"
"""The network that comes with the package; README.md in the same folder describes it."""

_PREFIX = "network."
_SAFETENSORS = ".safetensors"
_METADATA = "atlalign"
_Value = TypeVar("_Value")


class ModelOrigin(NamedTuple):
    """Facts about a network that a model file stores besides architecture and weights; None or empty if unknown.

    Attributes:
        intensity_scale: The atlas intensity that was mapped to 1 in the reference images during training.
        image_shape: The (H, W) of the images that the network takes or was trained on.
        version: The version of atlalign that wrote the file.
        config: The resolved configuration of the training.
    """

    intensity_scale: float | None = None
    image_shape: tuple[int, int] | None = None
    version: str | None = None
    config: Mapping[str, Any] = MappingProxyType({})


@runtime_checkable
class Training(Protocol):
    """A module that trains a network and can write a checkpoint to resume from.

    Attributes:
        network: The network.
        model_origin: The facts to store with it.
    """

    network: nn.Module

    @property
    def model_origin(self) -> ModelOrigin:
        """The recorded origin of the network."""
        ...

    def save_checkpoint(self, path: Path) -> bool:
        """Write a checkpoint, or return False if there is no training to resume."""
        ...


def save_model(
    model: nn.Module, path: str | Path, *, separate: bool = False, origin: ModelOrigin | None = None
) -> Path:
    """Write a network to a file, and return its path.

    A `Training` in progress is saved with its configuration and the state of the optimiser;
    `atlalign train ckpt_path=…` resumes from it.

    Args:
        model: A network, or a `Training` of one, such as `atlalign.training.module.RegistrationModule`. The file
            records the arguments of the network's constructor. Networks of this package record them, and so do networks
            that were built by a training or by `load_model`. Your own class must store them in the attribute
            `hyperparameters`, a dict, unless its constructor takes none.
        path: The file to write; an existing file is replaced. With the ending .safetensors, it holds only the network
            and its origin.
        separate: Write a folder with `architecture.json` and `weights.pt`, without optimiser and configuration.
        origin: Facts about the network, as returned by `read_origin`; a `Training` provides its own.

    Raises:
        InputError: If the arguments of the network's constructor are unknown or not plain data.

    Example:
        >>> net = GlobalAffineNet(filters=(8, 8), dense_layers=(20,), image_shape=(32, 48))
        >>> load_model(save_model(net, "global.pt")).image_shape
        (32, 48)
    """
    path = Path(path)
    training = model if isinstance(model, Training) else None
    network, origin = (
        (training.network, training.model_origin) if training else (model, origin or ModelOrigin())
    )
    known = _known(network, origin)
    complete = {**known, "config": dict(origin.config)}
    if separate:
        _save_folder(network, known, path)
    elif path.suffix == _SAFETENSORS:
        _save_safetensors(network, complete, path)
    elif training is None or not _save_training(training, path):
        _save_network(network, complete, path)
    return path


def load_model(path: str | Path | None = None, *, allow: str | Collection[str] = ()) -> nn.Module:
    """Return the network in a model file, a folder or a training checkpoint, on the CPU in evaluation mode.

    Args:
        path: A model file, model folder or checkpoint; None means the network that comes with the package.
        allow: The importable name of your own network class that the file may use, such as `my_lab.Shift`, or several.

    Raises:
        InputError: If the file is missing, holds more than plain data, or names a class that is not allowed.

    Example:
        >>> network = load_model()
        >>> image = torch.rand(1, 1, 320, 456)
        >>> network(image, image).dvf.shape
        torch.Size([1, 2, 320, 456])
    """
    path = SHIPPED_MODEL if path is None else Path(path)
    known, weights = _read(path)
    try:
        network = construct(_architecture(known), allow)
        network.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a class may raise anything on wrong arguments
        reason = shorten(reason_of(error), 300)
        raise InputError(f"{path}: architecture and weights do not fit: {reason}") from error
    return network.eval()


def read_origin(path: str | Path) -> ModelOrigin:
    """Return the facts about a network in a model file, a folder or a training checkpoint.

    Raises:
        InputError: If the file is missing, or is not a file of any of these kinds.
    """
    known, _ = _read(Path(path))
    return origin_of(known)


def merge_global_local(
    global_: nn.Module | str | Path, local: nn.Module | str | Path, *, expose_global: bool = False
) -> MergedNet:
    """Return one network that registers globally, then locally; networks given as objects share their weights with it.

    Args:
        global_: The network for the affine map: an object, a model file, a folder or a checkpoint.
        local: The network for the remaining displacement, in any of these forms.
        expose_global: Return the globally registered image and the global field as well.

    Raises:
        InputError: If `global_` is not a `GlobalAffineNet`, `local` is one or is merged, or a file cannot be loaded.

    Example:
        >>> from atlalign.networks import LocalUNet
        >>> net = merge_global_local(GlobalAffineNet((8,), (8,), (32, 48)), LocalUNet((4,), (8,), (8,), (8,), (4,)))
        >>> net(torch.rand(1, 1, 32, 48), torch.rand(1, 1, 32, 48)).dvf.shape
        torch.Size([1, 2, 32, 48])
    """
    global_net, local_net = (
        part if isinstance(part, nn.Module) else load_model(part) for part in (global_, local)
    )
    if not isinstance(global_net, GlobalAffineNet):
        raise InputError(f"merge: expected the global network first, got a {type(global_net).__name__}")
    if isinstance(local_net, GlobalAffineNet | MergedNet):
        raise InputError(f"merge: expected a local network second, got a {type(local_net).__name__}")
    return MergedNet(global_net, local_net, expose_global=expose_global)


def common_origin(one: ModelOrigin, other: ModelOrigin) -> ModelOrigin:
    """Return the intensity scale and image size that two networks share, without their configurations.

    Raises:
        InputError: If the networks were trained on different intensity scales or image sizes.
    """
    return ModelOrigin(
        intensity_scale=_agreed("intensity scale", one.intensity_scale, other.intensity_scale),
        image_shape=_agreed("image size", one.image_shape, other.image_shape),
    )


def _agreed(what: str, one: _Value | None, other: _Value | None) -> _Value | None:
    if one is not None and other is not None and one != other:
        raise InputError(f"expected networks that were trained with the same {what}, got {one} and {other}")
    return other if one is None else one


def _known(network: nn.Module, origin: ModelOrigin) -> dict[str, Any]:
    """Return the content of a model file except the weights."""
    shape = getattr(network, "image_shape", origin.image_shape)
    return {
        "version": __version__,
        "architecture": architecture_of(network),
        "intensity_scale": origin.intensity_scale,
        "image_shape": None if shape is None else list(shape),
    }


def origin_of(known: Mapping[str, Any]) -> ModelOrigin:
    """Return the origin recorded in the plain data of a model file or checkpoint.

    In a checkpoint, the image size is part of the training's configuration.
    """
    scale, shape = known.get("intensity_scale"), None
    match known:
        case {"image_shape": [int(height), int(width)]} if min(height, width) > 0:
            shape = height, width
        case {"config": {"data": {"image_shape": [int(height), int(width)]}}} if min(height, width) > 0:
            shape = height, width
    return ModelOrigin(
        intensity_scale=float(scale) if isinstance(scale, int | float) and 0 < scale < inf else None,
        image_shape=shape,
        version=str(known["version"]) if "version" in known else None,
        config=known["config"] if isinstance(known.get("config"), Mapping) else {},
    )


def _save_training(training: Training, path: Path) -> bool:
    with written_whole(path) as unfinished:
        return training.save_checkpoint(unfinished)


def _save_folder(network: nn.Module, known: Mapping[str, Any], folder: Path) -> None:
    _write(folder / "weights.pt", _weights(network))
    with written_whole(folder / "architecture.json") as unfinished:
        unfinished.write_text(json.dumps(known, indent=2) + "\n")


def _save_network(network: nn.Module, known: Mapping[str, Any], path: Path) -> None:
    state = {_PREFIX + name: weight for name, weight in _weights(network).items()}
    _write(path, {"state_dict": state, "atlalign": known})


def _save_safetensors(network: nn.Module, known: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save

    # The format rejects tensors that two parts of a network share, so each gets a copy.
    weights = {
        name: weight.clone(memory_format=torch.contiguous_format)
        for name, weight in _weights(network).items()
    }
    content = save(weights, metadata={_METADATA: json.dumps(known)})
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()  # torch's own writer does not report a full disk
    torch.save(content, buffer)
    with written_whole(path) as unfinished:
        unfinished.write_bytes(buffer.getbuffer())


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().cpu() for name, weight in network.state_dict().items()}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description of a network and its weights by name."""
    match _read_folder(path) if path.is_dir() else _read_file(path):
        case dict(known), dict(weights):
            return known, weights
    raise InputError(f"{path}: expected a model file, model folder or checkpoint of atlalign")


def _read_folder(folder: Path) -> tuple[Any, Any]:
    try:
        known = json.loads((folder / "architecture.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: expected architecture.json and weights.pt: {error}") from error
    return known, _read_plain(folder / "weights.pt")


def _read_safetensors(path: Path) -> tuple[Any, Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"there is no model {path}")
    try:
        with safe_open(path, "pt") as file:
            known = json.loads((file.metadata() or {})[_METADATA])
            return known, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is not a mapping
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: expected a model file, but it is damaged or not from atlalign") from error


def _read_file(path: Path) -> tuple[Any, Any]:
    if path.suffix == _SAFETENSORS:
        return _read_safetensors(path)
    match _read_plain(path):
        case {"state_dict": dict(state), "atlalign": known}:
            weights = {name[len(_PREFIX) :]: w for name, w in state.items() if name.startswith(_PREFIX)}
            return known, weights
    return None, None


def _architecture(known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the network's architecture; without `hyperparameters`, it is part of the configuration."""
    match known:
        case {"architecture": dict(architecture)} | {"config": {"model": dict(architecture)}}:
            return architecture
    raise InputError("expected the architecture of a network, found none")


def _read_plain(path: Path) -> Any:
    """Return the content of a torch file of tensors and plain data; other objects are never created."""
    if not path.is_file():
        raise InputError(f"there is no model {path}")
    _check_declared_size(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file may raise anything
        hint = ": use `atlalign import-keras` for files of the Keras package" if path.suffix == ".h5" else ""
        raise InputError(
            f"{path}: expected a model file, but it is damaged, of another format, or holds more than plain data{hint}"
        ) from error


def _check_declared_size(path: Path) -> None:
    """Check that memory can hold the content of a torch file, which may be compressed."""
    sizes: list[int] = []
    with suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as archive:
        sizes = [entry.file_size for entry in archive.infolist()]
    check_size(str(path), [sum(sizes)])
