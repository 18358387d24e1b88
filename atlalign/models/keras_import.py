"""Import of networks that the Keras predecessor saved with its `save_model`, without TensorFlow.

The architecture is read as JSON and compared with the predecessor's, layer by layer. No code in the file is run. A
Lambda layer is accepted only in the two places where the predecessor used one: to slice an input, or to name the
inverse field. Its code is ignored.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from atlalign.errors import InputError
from atlalign.io.h5 import find_dataset
from atlalign.models import ModelOrigin
from atlalign.networks import GlobalAffineNet, LocalUNet, MergedNet
from atlalign.networks.architecture import built_within_memory

_SHAPE = [320, 456]  # the only image size of the predecessor's local network
ORIGIN = ModelOrigin(intensity_scale=255.0, image_shape=(320, 456))
_CROPPED_TO_MULTIPLES_OF = 16
_TRUNK = {
    "InputLayer", "Conv2D", "LeakyReLU", "MaxPooling2D", "UpSampling2D", "Concatenate", "Cropping2D", "ZeroPadding2D",
    "Flatten", "Dense", "Reshape", "Affine2DVF",
}  # fmt: skip
_AROUND = {
    "ExtractMoving",
    "BilinearInterpolation",
    "NoOp",
    "DVFComposition",
    "Functional",
    "Model",
    "Lambda",
}
_NESTED = {"Functional", "Model"}  # "Model" is the name before Keras 2.4
_INVERSE = "inv_dvf"

Expected = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class _Layer:
    """A layer of the architecture: its class, name, options and the names of the layers that feed it."""

    kind: str
    name: str
    config: dict[str, Any]
    inputs: tuple[str, ...]


Layers = dict[str, _Layer]


def import_keras(path: str | Path) -> nn.Module:
    """Return the network in a single .h5 file, or in a folder of one architecture .json and one weights .h5.

    Raises:
        InputError: If the file is damaged, holds no network of the predecessor, or its weights do not fit the network.
    """
    path = Path(path)
    with _readable(path), h5py.File(_single(path, "h5")) as file:
        if path.is_dir():
            architecture: str | bytes = _single(path, "json").read_bytes()
            weights = file
        else:
            if "model_config" not in file.attrs:
                raise InputError(
                    f"{path} holds no architecture: use the folder that holds the .json and the .h5 file"
                )
            architecture, weights = file.attrs["model_config"], file["model_weights"]
        return _build(_layers(_decoded(architecture)), weights)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors while reading the file into InputErrors that name it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a Keras file, or it is truncated: {error}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a complete Keras model: {error!r}") from error


def _single(path: Path, suffix: str) -> Path:
    """Return `path` itself, or the only file with the suffix in a folder."""
    if not path.exists():
        raise InputError("no such file or folder")
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*.{suffix}"))
    if len(found) != 1:
        raise InputError(f"expected one .{suffix} file in the folder, found {len(found)}")
    return found[0]


def _decoded(text: str | bytes) -> Any:
    """Return the architecture, which the predecessor's folders encode as JSON twice."""
    content = json.loads(text)
    return json.loads(content) if isinstance(content, str) else content


def _layers(model: dict[str, Any]) -> Layers:
    """Return the layers of a functional model by name.

    Raises:
        InputError: If the predecessor uses no layers of this class.
    """
    layers = {}
    for entry in model["config"]["layers"]:
        kind, name = entry["class_name"].rpartition(">")[2], entry["name"]
        if kind not in _TRUNK | _AROUND:
            raise InputError(
                f"layer '{name}': expected a layer type of the Keras predecessor's networks, found {kind}: import only "
                "networks that the predecessor saved"
            )
        inputs = tuple(source[0] for node in entry["inbound_nodes"][:1] for source in node)
        layers[name] = _Layer(kind, name, entry["config"], inputs)
    for layer in layers.values():
        if layer.kind == "Lambda" and not _slices_input(layer, layers) and not _names_inverse(layer, layers):
            raise InputError(
                f"layer '{layer.name}' is a Lambda: expected a Lambda that slices an input, or '{_INVERSE}' with the "
                "output of the shared network"
            )
    return layers


def _slices_input(layer: _Layer, layers: Layers) -> bool:
    return [layers[name].kind for name in layer.inputs] == ["InputLayer"]


def _names_inverse(layer: _Layer, layers: Layers) -> bool:
    """Return whether a Lambda only names the field of the shared network, as in older releases."""
    used = any(layer.name in other.inputs for other in layers.values())
    return (
        layer.name == _INVERSE
        and not used
        and [layers[name].kind in _NESTED for name in layer.inputs] == [True]
    )


def _build(layers: Layers, weights: h5py.Group) -> nn.Module:
    compositions = [layer for layer in layers.values() if layer.kind == "DVFComposition"]
    if compositions:
        return _merged(layers, compositions[0], weights)
    if any(layer.kind == "Affine2DVF" for layer in layers.values()):
        return _global(layers, weights)
    return _local(layers, weights)


def _merged(layers: Layers, composition: _Layer, weights: h5py.Group) -> MergedNet:
    outer, inner = (layers[name] for name in composition.inputs)
    if outer.kind != "Affine2DVF" or inner.kind not in _NESTED:
        raise InputError(
            f"layer '{composition.name}': expected the field of Affine2DVF as the outer and the local network's as "
            f"the inner input, found {outer.kind} and {inner.kind}"
        )
    local = _local(_layers({"config": inner.config}), weights[inner.name], nested=True)
    return MergedNet(_global(layers, weights), local)


def _global(layers: Layers, weights: h5py.Group) -> GlobalAffineNet:
    trunk = _trunk(layers, "Affine2DVF")
    shape = trunk[0].config["batch_input_shape"][1:3]
    filters = [layer.config["filters"] for layer in trunk if layer.kind == "Conv2D"][::2]
    *dense, _ = [layer.config["units"] for layer in trunk if layer.kind == "Dense"] or [0]
    _compare(trunk, _expected_global(filters, dense, shape))
    network = built_within_memory(lambda: GlobalAffineNet(filters, dense, tuple(shape)))
    assert isinstance(network, GlobalAffineNet)
    _copy_weights(network, trunk, weights, nested=False)
    return network


def _local(layers: Layers, weights: h5py.Group, *, nested: bool = False) -> LocalUNet:
    trunk = _trunk(layers, "ZeroPadding2D")
    start, down, middle, up, end = _local_filters(trunk)
    _compare(trunk, _expected_local(start, down, middle, up, end))
    _check_skips(trunk)
    inverses = [layer for layer in layers.values() if layer.kind in _NESTED]
    for inverse in inverses:
        if [layers[name].kind for name in inverse.inputs] != ["InputLayer"] or inverse.inputs == trunk[
            1
        ].inputs:
            raise InputError(
                f"layer '{inverse.name}': expected both images in swapped order as its input, "
                f"found {', '.join(inverse.inputs)}"
            )
        same = _trunk(_layers({"config": inverse.config}), "ZeroPadding2D")
        if [layer.name for layer in same] != [layer.name for layer in trunk]:
            raise InputError(f"layer '{inverse.name}': expected the same layers as in the forward direction")
    multiple = max(_CROPPED_TO_MULTIPLES_OF, 2 ** len(down))
    has_inverse = bool(inverses)
    network = built_within_memory(
        lambda: LocalUNet(start, down, middle, up, end, compute_inv=has_inverse, size_multiple=multiple)
    )
    assert isinstance(network, LocalUNet)
    _copy_weights(network, trunk, weights, nested=nested)
    return network


def _trunk(layers: Layers, last_kind: str) -> list[_Layer]:
    """Return the chain of layers from the input to the only layer of `last_kind`, whose output is the field."""
    ends = [layer for layer in layers.values() if layer.kind == last_kind]
    if len(ends) != 1:
        names = ", ".join(layer.name for layer in ends) or "none"
        raise InputError(f"expected one {last_kind} layer that returns the displacement field, found {names}")
    chain = ends
    while chain[0].inputs:
        if len(chain) > len(layers):
            raise InputError(f"layer '{chain[0].name}' feeds itself")
        chain = [layers[chain[0].inputs[0]], *chain]
    return chain


def _local_filters(trunk: Sequence[_Layer]) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Return the start, downsample, middle, upsample and end filters without checking their values."""
    levels: list[list[int]] = [[]]
    ups = 0
    for layer in trunk:
        if layer.kind in ("MaxPooling2D", "UpSampling2D"):
            levels.append([])
            ups += layer.kind == "UpSampling2D"
        elif layer.kind == "Conv2D":
            levels[-1].append(layer.config["filters"])
    downs = len(levels) - 1 - ups
    if downs != ups or any(not level for level in levels[1:]):
        raise InputError(
            f"expected as many poolings as upsamplings, each followed by a Conv2D, found {downs} and {ups}"
        )
    levels[-1].pop()  # the output, which always has two channels
    start, middle, end = levels[0], levels[downs][1:], levels[-1][2:]
    if not downs:
        return start, [], [], [], []
    return (
        start,
        [level[0] for level in levels[1 : downs + 1]],
        middle,
        [x[0] for x in levels[downs + 1 :]],
        end,
    )


def _compare(trunk: Sequence[_Layer], expected: Sequence[Expected]) -> None:
    """Raise an InputError for the first layer that differs from the predecessor's network."""
    for layer, (kind, options) in zip(trunk, expected, strict=False):
        if layer.kind != kind:
            raise InputError(f"layer '{layer.name}': expected a {kind}, found a {layer.kind}")
        for key, value in options.items():
            found = layer.config.get(key, value)  # older versions did not store every default
            if found != value:
                raise InputError(f"layer '{layer.name}' ({kind}): expected {key} {value}, found {found}")
    if len(trunk) != len(expected):
        raise InputError(f"expected {len(expected)} layers up to '{trunk[-1].name}', found {len(trunk)}")


def _expected_global(filters: Sequence[int], dense: Sequence[int], shape: Sequence[int]) -> list[Expected]:
    blocks = [layer for n in filters for layer in (_conv(n, "relu"), _conv(n, "relu"), _POOL)]
    return [
        _input(shape),
        *blocks,
        ("Flatten", {"data_format": "channels_last"}),
        *(("Dense", {"units": n, "activation": "linear", "use_bias": True}) for n in (*dense, 6)),
        ("Reshape", {"target_shape": [2, 3]}),
        ("Affine2DVF", {"shape": list(shape)}),
    ]


def _expected_local(
    start: Sequence[int], down: Sequence[int], middle: Sequence[int], up: Sequence[int], end: Sequence[int]
) -> list[Expected]:
    margins = [[0, 0], [4, 4]]
    return [
        _input(_SHAPE),
        ("Cropping2D", {"cropping": margins, "data_format": "channels_last"}),
        *_leaky_convs(start),
        *(layer for n in down for layer in (_POOL, *_leaky_convs([n]))),
        *_leaky_convs(middle),
        *(layer for n in up for layer in (_UP, *_leaky_convs([n]), _JOIN, *_leaky_convs([n]))),
        *_leaky_convs(end),
        _conv(2, "linear", size=2),
        ("ZeroPadding2D", {"padding": margins, "data_format": "channels_last"}),
    ]


_POOL: Expected = ("MaxPooling2D", {"pool_size": [2, 2], "strides": [2, 2], "padding": "valid"})
_UP: Expected = ("UpSampling2D", {"size": [2, 2], "interpolation": "nearest"})
_JOIN: Expected = ("Concatenate", {"axis": 3})


def _input(shape: Sequence[int]) -> Expected:
    return "InputLayer", {"batch_input_shape": [None, *shape, 2]}


def _conv(filters: int, activation: str, size: int = 3) -> Expected:
    return "Conv2D", {
        "filters": filters,
        "kernel_size": [size, size],
        "strides": [1, 1],
        "dilation_rate": [1, 1],
        "groups": 1,
        "padding": "same",
        "data_format": "channels_last",
        "activation": activation,
        "use_bias": True,
    }


def _leaky_convs(filters: Sequence[int]) -> list[Expected]:
    # Keras stores the slope after rounding to float32.
    leaky: Expected = ("LeakyReLU", {"alpha": float(np.float32(0.2))})
    return [layer for n in filters for layer in (_conv(n, "linear"), leaky)]


def _check_skips(trunk: Sequence[_Layer]) -> None:
    """Check that each upsampled level is concatenated, in this order, with the features before its pooling."""
    pooled = [layer.inputs[0] for layer in trunk if layer.kind == "MaxPooling2D"]
    joins = [layer for layer in trunk if layer.kind == "Concatenate"]
    for join, skip in zip(joins, reversed(pooled), strict=True):
        if join.inputs[1:] != (skip,):
            raise InputError(
                f"layer '{join.name}': expected '{skip}' as the second input, found {join.inputs[1:]}"
            )


def _copy_weights(network: nn.Module, trunk: Sequence[_Layer], weights: h5py.Group, *, nested: bool) -> None:
    """Copy convolution kernels (H, W, in, out) to (out, in, H, W), dense ones (in, out) to (out, in), and biases."""
    targets = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    sources = [layer.name for layer in trunk if layer.kind in ("Conv2D", "Dense")]
    for name, target in zip(sources, targets, strict=True):
        group = weights if nested else weights[name]
        assert target.bias is not None
        for part, parameter in (("kernel", target.weight), ("bias", target.bias)):
            values = _weights(group, f"{name}/{part}:0", tuple(parameter.shape))
            parameter.data.copy_(torch.from_numpy(values))


def _weights(group: h5py.Group, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a kernel or a bias in torch's order of axes, after checking its shape."""
    dataset = find_dataset(group.file, f"{group.name}/{name}")
    if dataset is None:
        raise KeyError(name)
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(dataset.ndim, (0,))
    found = tuple(dataset.shape[axis] for axis in axes)
    if found != shape:  # before anything is read: a small file can declare a large shape
        layer = name.rpartition("/")[0]
        raise InputError(f"weights of layer '{layer}': expected {shape}, found {found}")
    return np.ascontiguousarray(dataset[()].transpose(axes), np.float32)
