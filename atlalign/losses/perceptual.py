"""LPIPS as a loss: the distance between two images in the feature space of a network trained on ImageNet.

Zhang et al., *The unreasonable effectiveness of deep features as a perceptual metric*, CVPR 2018, version 0.1. The
package `lpips` contains the calibrated weights; the backbone's weights come from torchvision or from a file.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from atlalign.errors import InputError, unknown_name
from atlalign.losses.image import as_pair

log = logging.getLogger(__name__)

Model = Literal["net-lin", "net"]
Net = Literal["alex", "vgg"]
MODELS: tuple[Model, ...] = ("net-lin", "net")
NETS: tuple[Net, ...] = ("alex", "vgg")

# lpips divides by norm + 1e-10, whose gradient is infinite at a norm of 0. Here the norm is at least 1e-5, which bounds
# the gradient. Features of brain sections have norms above 1.
_LOWEST_SQUARED_NORM = 1e-10


@dataclass(frozen=True)
class _Architecture:
    """A network of torchvision and the layers whose outputs LPIPS compares."""

    name: str
    compared_layers: tuple[int, ...]
    smallest_side_px: int


_ARCHITECTURES: dict[Net, _Architecture] = {
    "alex": _Architecture("alexnet", (1, 4, 7, 9, 11), smallest_side_px=31),
    "vgg": _Architecture("vgg16", (3, 8, 15, 22, 29), smallest_side_px=16),
}


class Backbone(nn.Module):
    """The frozen features of AlexNet or VGG16, and the calibrated LPIPS weight of each compared channel.

    Args:
        net: "alex" or "vgg".
        weights: A state-dict file of torchvision's whole network, or of its `features` alone; None for torchvision's
            published file, downloaded on first use; "random" for random weights.

    Raises:
        InputError: If `net` is unknown, or its weights cannot be loaded or do not fit.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net, weights: str | Path | None = None) -> None:
        super().__init__()
        if net not in NETS:
            raise unknown_name("net of the perceptual loss", net, NETS)
        self.net = net
        self.features = _load_features(net, weights)
        self.calibration = nn.ParameterList(_load_calibration(net))
        # The mean and standard deviation of ImageNet's colours; lpips states them for the range [−1, 1].
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return five feature maps (B, C, h, w), of unit length at each pixel, of a grey image (B, 1, H, W) in [0, 1].

        Raises:
            ValueError: If the image has colour channels, or is too small for the network's poolings.
        """
        _check_image(image, self.net)
        activation = (2 * image.expand(-1, 3, -1, -1) - 1 - self.shift) / self.scale
        maps = []
        for index, layer in enumerate(self.features):
            activation = layer(activation)
            if index in _ARCHITECTURES[self.net].compared_layers:
                maps.append(_to_unit_length(activation))
        return maps


class PerceptualLoss(nn.Module):
    """LPIPS v0.1 of two grey images (B, 1, H, W) in [0, 1], averaged over the batch, always in float32.

    The network is frozen, follows `.to(device)` and stays out of `state_dict`, so that a checkpoint neither contains
    nor requires it.

    Args:
        model: "net-lin" weights the channels as calibrated on human judgement, "net" weights all channels equally.
        net: "alex" or "vgg".
        backbone_weights: As for `Backbone`, or a `Backbone` of this `net` to share.

    Raises:
        InputError: If a name is unknown, or the weights cannot be loaded or do not fit.

    Example:
        >>> loss = PerceptualLoss("net-lin", "alex", backbone_weights="random")  # a test; None uses the published ones
        >>> image = torch.rand(1, 1, 32, 48)
        >>> loss(image, image)
        tensor(0.)
    """

    def __init__(
        self,
        model: Model = "net-lin",
        net: Net = "alex",
        backbone_weights: str | Path | Backbone | None = None,
    ) -> None:
        super().__init__()
        if model not in MODELS:
            raise unknown_name("model of the perceptual loss", model, MODELS)
        self.model = model
        # nn.Module does not see inside a tuple: no state_dict entry, no parameters, no .train() and no .half().
        self._unregistered = (_as_backbone(net, backbone_weights),)

    @property
    def backbone(self) -> Backbone:
        """The frozen network, which other losses may share."""
        return self._unregistered[0]

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss of two (B, 1, H, W) tensors; values outside [0, 1] are not clipped.

        Raises:
            ValueError: If a side is shorter than 31 pixels for AlexNet, 16 for VGG.
        """
        y_true, y_pred = (image.float() for image in as_pair(y_true, y_pred))
        with torch.autocast(y_pred.device.type, enabled=False):
            layers = zip(self.backbone(y_true), self.backbone(y_pred), self.backbone.calibration, strict=True)
            return torch.stack([self._distance(*layer) for layer in layers]).sum()

    def _distance(self, true: Tensor, pred: Tensor, calibration: Tensor) -> Tensor:
        squares = (true - pred).square()
        weighted = squares * calibration if self.model == "net-lin" else squares
        return weighted.sum(dim=1).mean()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the network to another device as well, but keep its precision."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.backbone.to(fn(torch.empty(0, device=self.backbone.shift.device)).device)
        return self

    def extra_repr(self) -> str:
        """Return the hyperparameters for `repr`."""
        return f"model='{self.model}', net='{self.backbone.net}'"


def _as_backbone(net: Net, weights: str | Path | Backbone | None) -> Backbone:
    if not isinstance(weights, Backbone):
        return Backbone(net, weights)
    if weights.net != net:
        raise InputError(f"perceptual loss: expected a backbone of '{net}', got one of '{weights.net}'")
    return weights


def _check_image(image: Tensor, net: Net) -> None:
    smallest = _ARCHITECTURES[net].smallest_side_px
    if image.shape[1] != 1 or min(image.shape[-2:]) < smallest:
        raise ValueError(
            f"perceptual loss with '{net}': expected images (B, 1, H, W) of at least {smallest}×{smallest}, "
            f"got {tuple(image.shape)}"
        )


def _to_unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True) + _LOWEST_SQUARED_NORM).sqrt()


def _load_calibration(net: Net) -> list[Tensor]:
    """Return the weight (1, C, 1, 1) of each channel in each of the five maps, from the package `lpips`."""
    package = find_spec("lpips")  # not imported: only this file of it is needed
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the perceptual losses need the package 'lpips': pip install lpips")
    path = Path(package.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    content = torch.load(path, map_location="cpu", weights_only=True)
    return [content[f"lin{index}.model.1.weight"] for index in range(5)]


def _load_features(net: Net, weights: str | Path | None) -> nn.Sequential:
    features = _empty_features(net)
    if weights == "random":
        log.warning("the perceptual loss uses random '%s' weights, as requested", net)
        return _randomise(features)
    path = _published_file(net) if weights is None else Path(weights).expanduser()
    state = _read_state(path, {key: tensor.shape for key, tensor in features.state_dict().items()}, net)
    features.load_state_dict(state, assign=True)
    return features


def _empty_features(net: Net) -> nn.Sequential:
    """Return the layers up to the last compared one, without allocating their weights."""
    # Imported here: slow, and few losses need it.
    from torchvision import models  # type: ignore[import-untyped]

    architecture = _ARCHITECTURES[net]
    # On the meta device: no 400 MB of classifier, no initialisation, no draw from the random generator.
    with torch.device("meta"):
        network = models.get_model(architecture.name, weights=None)
    return cast(nn.Sequential, network.features[: architecture.compared_layers[-1] + 1])


def _randomise(features: nn.Sequential) -> nn.Sequential:
    features.to_empty(device="cpu")
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, layer.bias))
    return features


def _published_file(net: Net) -> Path:
    """Return the path of torchvision's weights in the cache of torch hub; missing weights are downloaded."""
    from torchvision import models

    url: str = models.get_model_weights(_ARCHITECTURES[net].name)["IMAGENET1K_V1"].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        _download(url, path)
    return path


def _download(url: str, path: Path) -> None:
    """Download to `path` and check the content against its name, which ends in the start of its SHA-256."""
    log.info("downloading the weights of the perceptual loss from %s to %s", url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rpartition("-")[2])
    except (OSError, HTTPException, RuntimeError) as error:
        raise InputError(
            f"the perceptual loss needs {path.name} from {url}, but the download to {path} failed ({error}). Put the "
            f"file there by hand, or name a copy of it with loss.backbone_weights=FILE"
        ) from error


def _read_state(path: Path, shapes: Mapping[str, torch.Size], net: Net) -> dict[str, Tensor]:
    """Return the float32 tensors of `shapes` from the file of a whole network, its `features`, or their layers."""
    content = {str(key).removeprefix("features."): value for key, value in _load_mapping(path).items()}
    found = {key: _describe(content.get(key)) for key in shapes}
    problems = [
        f"features.{key} {tuple(shape)} is {found[key]}"
        for key, shape in shapes.items()
        if found[key] != str(tuple(shape))
    ]
    if problems:
        network = _ARCHITECTURES[net].name
        raise InputError(
            f"{path}: expected the state dict of torchvision's {network}, but {', '.join(problems)}"
        )
    return {key: cast(Tensor, content[key]).float() for key in shapes}


def _describe(value: object) -> str:
    if value is None:
        return "missing"
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _load_mapping(path: Path) -> Mapping[object, object]:
    if not path.is_file():
        raise InputError(
            f"the perceptual loss needs the file {path} (loss.backbone_weights), which does not exist"
        )
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises almost anything on foreign bytes, with many lines of text
        reason = type(error).__name__
        raise InputError(
            f"{path}: expected a state dict saved by torch.save, got {reason} on reading it"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: expected a state dict saved by torch.save, got a {type(content).__name__}")
    return content
