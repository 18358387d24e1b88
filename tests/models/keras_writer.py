"""Writes networks of this package as the Keras predecessor saved its own."""

import json
from pathlib import Path

import h5py
from torch import nn

from atlalign.networks import GlobalAffineNet, LocalUNet

LEAKY = 0.20000000298023224  # as Keras stores it


def keras_layer(kind: str, name: str, *inputs: str, **config) -> dict:
    nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


class KerasWriter:
    """Describes networks of this package as the predecessor saved its own, without its code."""

    def __init__(self) -> None:
        self.layers: list[dict] = []
        self.weights: dict[str, nn.Module] = {}
        self.count = 0

    def add(self, kind: str, *inputs: str, **config) -> str:
        self.count += 1
        name = config.pop("name", f"{kind.lower()}_{self.count}")
        self.layers.append(keras_layer(kind, name, *inputs, **config))
        return name

    def conv(self, layer: nn.Conv2d, source: str, activation: str) -> str:
        name = self.add(
            "Conv2D", source, filters=layer.out_channels, kernel_size=[*layer.kernel_size], strides=[1, 1],
            padding="same", data_format="channels_last", activation=activation, use_bias=True,
        )  # fmt: skip
        self.weights[name] = layer
        return name

    def pool(self, source: str) -> str:
        return self.add("MaxPooling2D", source, pool_size=[2, 2], strides=[2, 2], padding="valid")

    def add_global(self, network: GlobalAffineNet, slicing: str = "Lambda") -> tuple[str, str]:
        height, width = network.image_shape
        last = source = self.add("InputLayer", batch_input_shape=[None, height, width, 2])
        for block in network.features:
            last = self.pool(self.conv(block[2], self.conv(block[0], last, "relu"), "relu"))
        last = self.add("Flatten", last, data_format="channels_last")
        for dense in (*network.dense, network.to_affine):
            last = self.add("Dense", last, units=dense.out_features, activation="linear", use_bias=True)
            self.weights[last] = dense
        field = self.add("Affine2DVF", self.add("Reshape", last, target_shape=[2, 3]), shape=[height, width])
        moving = self.add(slicing, source, function=["bm8gY29kZQ==", None, None])
        return source, self.add("BilinearInterpolation", moving, field)

    def add_local(self, network: LocalUNet, nested: bool = False, naming: str = "NoOp") -> str:
        def leaky(convs, last: str) -> str:
            for layer in convs:
                if isinstance(layer, nn.Conv2d):
                    last = self.add("LeakyReLU", self.conv(layer, last, "linear"), alpha=LEAKY)
            return last

        source = self.add("InputLayer", name="reg_mov", batch_input_shape=[None, 320, 456, 2])
        last = self.add("Cropping2D", source, cropping=[[0, 0], [4, 4]], data_format="channels_last")
        skips = [leaky(network.start, last)]
        for down in network.down:
            skips.append(leaky(down, self.pool(skips[-1])))
        last = leaky(network.middle, skips.pop())
        for up in network.up:
            last = leaky(
                up.before,
                self.add("UpSampling2D", last, size=[2, 2], interpolation="nearest"),
            )
            last = leaky(up.after, self.add("Concatenate", last, skips.pop(), axis=3))
        last = self.conv(network.to_dvf, leaky(network.end, last), "linear")
        field = self.add("ZeroPadding2D", last, padding=[[0, 0], [4, 4]], data_format="channels_last")
        if network.compute_inv and not nested:
            inner = KerasWriter()
            inner.add_local(network, nested=True)
            swapped = self.add("InputLayer", name="mov_reg", batch_input_shape=[None, 320, 456, 2])
            self.add("Functional", swapped, name="shared", layers=inner.layers)
            self.add(naming, "shared", name="inv_dvf", function=["bm8gY29kZQ==", None, None])
        return field

    @property
    def json(self) -> str:
        return json.dumps({"class_name": "Functional", "config": {"layers": self.layers}})

    def write_weights(self, group: h5py.Group, nested: bool = False) -> None:
        for name, layer in self.weights.items():
            place = group if nested else group.create_group(name)
            kernel = layer.weight.detach().numpy()
            place[f"{name}/kernel:0"] = kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T
            place[f"{name}/bias:0"] = layer.bias.detach().numpy()

    def file(self, path: Path) -> Path:
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = self.json
            self.write_weights(file.create_group("model_weights"))
        return path

    def folder(self, path: Path) -> Path:
        path.mkdir()
        (path / "net.json").write_text(json.dumps(self.json))
        with h5py.File(path / "net.h5", "w") as file:
            self.write_weights(file)
        return path
