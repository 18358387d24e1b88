"""Combinations of losses, the keys of all losses, and the weighted sum that trains a registration.

A key is one name or a mixture `a&b`, the mean of two or more losses in any order.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from atlalign.errors import InputError, unknown_name
from atlalign.imports import name_of
from atlalign.losses.dvf import (
    Grad,
    VDClipper,
    as_fields,
    jacobian,
    jacobian_distance,
    mse_po,
    vector_distance,
)
from atlalign.losses.image import NCC, mae, mse, pearson, psnr, ssim
from atlalign.losses.perceptual import MODELS, NETS, Backbone, Model, Net, PerceptualLoss
from atlalign.losses.regularity import OfEachField, gradicon, inverse_consistency

Loss = Callable[[Tensor, Tensor], Tensor]
BackboneSource = Callable[[Net], Backbone]
LossFactory = Callable[[BackboneSource], Loss]


class FunctionLoss(nn.Module):
    """Wraps a loss function as a module, so that containers treat all losses the same."""

    def __init__(self, function: Loss) -> None:
        super().__init__()
        self.function = function

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss of two tensors of one shape."""
        return self.function(y_true, y_pred)

    def extra_repr(self) -> str:
        """Return the function's name for `repr`."""
        return getattr(self.function, "__name__", repr(self.function))


def as_module(loss: Loss, name: str = "loss") -> nn.Module:
    """Return `loss` itself if it is a module, and a module around it otherwise.

    Args:
        loss: A function or module `loss(y_true, y_pred)`.
        name: Its name in errors.

    Raises:
        InputError: If it cannot be called with two tensors.
    """
    if isinstance(loss, type):
        raise InputError(
            f"{name}: expected an object such as {loss.__name__}(), got the class {loss.__name__} itself"
        )
    if not callable(loss):
        raise InputError(f"{name}: expected something to call as loss(y_true, y_pred), got {loss!r}")
    module = loss if isinstance(loss, nn.Module) else FunctionLoss(loss)
    _check_takes_pairs(module, name)
    return module


def _check_takes_pairs(loss: nn.Module, name: str) -> None:
    function = loss.function if isinstance(loss, FunctionLoss) else loss.forward
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function written in C
        return
    try:
        signature.bind("y_true", "y_pred")
    except TypeError as error:
        raise InputError(
            f"{name}: expected a loss of two tensors (y_true, y_pred), got {_name_of(loss)}{signature}"
        ) from error


def _name_of(loss: nn.Module) -> str:
    return name_of(loss.function if isinstance(loss, FunctionLoss) else loss)


def value_of(loss: nn.Module, y_true: Tensor, y_pred: Tensor | None, name: str = "loss") -> Tensor:
    """Return the value of a loss.

    Raises:
        InputError: If it is not a scalar tensor: the sum of losses would silently add up the samples of a batch.
    """
    value = loss(y_true, y_pred)
    if not isinstance(value, Tensor) or value.ndim:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"{name}: expected {_name_of(loss)} to return a scalar tensor, such as the mean over the batch, got {got}"
        )
    return value


class Mixer(nn.Module):
    """The convex combination of two or more losses.

    Args:
        losses: Functions or modules `loss(y_true, y_pred)`.
        weights: One for each loss, none negative, with sum 1; None for the mean.

    Raises:
        InputError: If there are fewer than two losses, the weights are invalid, or a loss returns no scalar.

    Example:
        >>> black, grey = torch.zeros(1, 1, 4, 5), torch.full((1, 1, 4, 5), 0.5)
        >>> Mixer(mae, mse, weights=(0.2, 0.8))(black, grey)  # 0.2 · 0.5 + 0.8 · 0.25
        tensor(0.3000)
    """

    def __init__(self, *losses: Loss, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if len(losses) < 2:
            raise InputError(f"Mixer: expected at least 2 losses, got {len(losses)}")
        self.losses = nn.ModuleList(as_module(loss) for loss in losses)
        self.weights = _convex_weights(weights, len(losses))

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the weighted sum of the losses of two tensors of one shape."""
        values = [value_of(loss, y_true, y_pred) for loss in self.losses]
        return torch.stack([weight * value for weight, value in zip(self.weights, values, strict=True)]).sum()

    def extra_repr(self) -> str:
        """Return the hyperparameters for `repr`."""
        return f"weights={self.weights}"


def _convex_weights(weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise InputError(f"Mixer: expected {count} weights, none negative and 1 in sum, got {list(weights)}")
    return tuple(weights)


class DVF2IMG(nn.Module):
    """Applies an image loss f to fields: ½ f(dx/scale) + ½ f(dy/scale), of truth and prediction, without clipping.

    Args:
        image_loss: The loss f of two tensors (B, 1, H, W).
        scale: The displacement in pixels that corresponds to intensity 1.

    Raises:
        InputError: If `scale` is not positive.

    Example:
        >>> truth, shifted = torch.zeros(1, 2, 4, 5), torch.full((1, 2, 4, 5), 5.0)
        >>> DVF2IMG(mae, scale=10)(truth, shifted)
        tensor(0.5000)
    """

    def __init__(self, image_loss: Loss, scale: float = 10) -> None:
        super().__init__()
        if not scale > 0:
            raise InputError(f"DVF2IMG: expected a scale above 0 pixels, got {scale}")
        self.image_loss = as_module(image_loss)
        self.scale = scale

    def forward(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss of two fields (B, 2, H, W)."""
        # Convert before the division: in half precision it would round once more.
        y_true, y_pred = as_fields(y_true, y_pred)
        y_true, y_pred = y_true / self.scale, y_pred / self.scale
        along_x: Tensor = self.image_loss(y_true[:, :1], y_pred[:, :1])
        along_y: Tensor = self.image_loss(y_true[:, 1:], y_pred[:, 1:])
        return (along_x + along_y) / 2

    def extra_repr(self) -> str:
        """Return the hyperparameters for `repr`."""
        return f"scale={self.scale}"


class UnknownLossError(InputError, KeyError):
    """An unknown loss key: an InputError for users, and the KeyError that `Mapping` requires."""

    __str__ = Exception.__str__  # KeyError would show the repr


class LossRegistry(Mapping[str, Loss]):
    """Losses by key, each built on access; it iterates over the single keys and accepts their mixtures `a&b`.

    A `perceptual_loss_…` needs weights: `registry[key]` uses the published ones, `build` any others.

    Example:
        >>> truth, shifted = torch.zeros(1, 2, 4, 5), torch.full((1, 2, 4, 5), 20.0)
        >>> ALL_DVF_LOSSES["mae&mse_po"](truth, shifted)  # (20 + 800) / 2
        tensor(410.)
    """

    def __init__(self, kind: str, factories: Mapping[str, LossFactory]) -> None:
        self._kind = kind
        self._factories = dict(factories)

    def build(self, key: str, backbone_weights: str | Path | None = None) -> Loss:
        """Return the loss of `key`; `backbone_weights` are those of `PerceptualLoss`.

        Raises:
            UnknownLossError: If a part of the key names no loss; it is an InputError and a KeyError.
            InputError: If the weights of a perceptual loss cannot be had.
        """
        return self.build_sharing(key, shared_backbones(backbone_weights))

    def build_sharing(self, key: str, backbones: BackboneSource) -> Loss:
        """Return the loss of `key`, whose perceptual losses take their networks from `backbones`."""
        factories = [self._factory(name) for name in key.split("&")]
        losses = [factory(backbones) for factory in factories]
        return Mixer(*losses) if len(losses) > 1 else losses[0]

    def _factory(self, name: str) -> LossFactory:
        if name not in self._factories:
            raise UnknownLossError(str(self._unknown(name)))
        return self._factories[name]

    def _unknown(self, name: str) -> InputError:
        if "." in name:
            return InputError(
                f"unknown {self._kind} '{name}': name a class or function of your own by _target_, as in "
                f"{{_target_: {name}}}"
            )
        return unknown_name(self._kind, name, self._factories)

    def __getitem__(self, key: str) -> Loss:
        return self.build(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and all(name in self._factories for name in key.split("&"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._factories)

    def __len__(self) -> int:
        return len(self._factories)


def shared_backbones(weights: str | Path | None = None) -> BackboneSource:
    """Return a function that builds each perceptual network on first use and returns the same one afterwards."""
    return cache(partial(Backbone, weights=weights))


def _constant(loss: Loss) -> LossFactory:
    return lambda backbones: loss


def _built(build: Callable[[], Loss]) -> LossFactory:
    return lambda backbones: build()


def _perceptual(model: Model, net: Net) -> LossFactory:
    return lambda backbones: PerceptualLoss(model, net, backbones(net))


def _on_fields(image_loss: LossFactory) -> LossFactory:
    return lambda backbones: DVF2IMG(image_loss(backbones))


_DIFFERENCES: dict[str, LossFactory] = {"mae": _constant(mae), "mse": _constant(mse)}
_SIMILARITIES: dict[str, LossFactory] = {
    **{f"ncc_{window}": _built(partial(NCC, window)) for window in (5, 9, 12, 20)},
    "pearson": _constant(pearson),
    "psnr": _constant(psnr),
    "ssim": _constant(ssim),
    **{f"perceptual_loss_{model}_{net}": _perceptual(model, net) for model in MODELS for net in NETS},
}
ALL_IMAGE_LOSSES = LossRegistry("image loss", _DIFFERENCES | _SIMILARITIES)
ALL_DVF_LOSSES = LossRegistry(
    "displacement loss",
    {
        **_DIFFERENCES,
        "mse_po": _constant(mse_po),
        "vector_distance": _constant(vector_distance),
        "vdclip2": _built(partial(VDClipper, power=2)),
        "vdclip3": _built(partial(VDClipper, power=3)),
        "grad": _built(Grad),
        "jacobian": _constant(jacobian),
        "jacobian_distance": _constant(jacobian_distance),
        "vector_jacobian_distance": _built(partial(Mixer, vector_distance, jacobian_distance)),
        "vector_jacobian_distance_02": _built(
            partial(Mixer, vector_distance, jacobian_distance, weights=(0.2, 0.8))
        ),
        **{key: _on_fields(factory) for key, factory in _SIMILARITIES.items()},
    },
)
ALL_REGULARITY_LOSSES = LossRegistry(
    "regularity loss",
    {
        "gradicon": _constant(gradicon),
        "inverse_consistency": _constant(inverse_consistency),
        "grad": _built(lambda: OfEachField(Grad())),
        "jacobian": _built(lambda: OfEachField(FunctionLoss(jacobian))),
    },
)
"""Losses of the predicted fields alone: `loss(dvf, inv_dvf)`."""


class LossInput(Protocol):
    """The fields that a loss compares between a network's output and a batch with the truth."""

    @property
    def registered(self) -> Tensor:
        """The registered image (B, 1, H, W) in [0, 1]."""

    @property
    def dvf(self) -> Tensor:
        """The field (B, 2, H, W) in pixels, from reference to moving."""

    @property
    def inv_dvf(self) -> Tensor | None:
        """The field from moving to reference, or None."""


_TERMS: dict[str, LossRegistry] = {
    "image": ALL_IMAGE_LOSSES,
    "dvf": ALL_DVF_LOSSES,
    "inv_dvf": ALL_DVF_LOSSES,
    "regularity": ALL_REGULARITY_LOSSES,
}


class RegistrationLoss(nn.Module):
    """The weighted sum of a loss on registered images, one on fields, one on inverse fields and one on regularity.

    Args:
        image: A key of ALL_IMAGE_LOSSES, any `loss(y_true, y_pred)`, or None to omit the term.
        dvf: A key of ALL_DVF_LOSSES, any `loss(y_true, y_pred)`, or None.
        inv_dvf: The same for inverse fields; skipped if the network predicts no inverse.
        regularity: A key of ALL_REGULARITY_LOSSES, or any `loss(dvf, inv_dvf)` of the prediction alone.
        weights: Weights ≥ 0 by term (image, dvf, inv_dvf, regularity), 1 where not given. At least one term that uses
            the truth needs a weight above 0.
        backbone_weights: As for `PerceptualLoss`; all perceptual losses given by key share one network.

    Raises:
        InputError: If no term that uses the truth has a weight above 0, a key or the name of a weight is unknown, a
            weight is negative, or a loss does not take two tensors.

    Example:
        >>> from atlalign.networks import Registration
        >>> truth = Registration(torch.zeros(1, 1, 4, 5), torch.zeros(1, 2, 4, 5))
        >>> found = Registration(torch.full((1, 1, 4, 5), 0.5), torch.ones(1, 2, 4, 5))
        >>> RegistrationLoss(image="mse", dvf="mae", weights={"dvf": 0.1})(found, truth)  # 0.25 + 0.1 · 1
        {'image': tensor(0.2500), 'dvf': tensor(1.), 'total': tensor(0.3500)}
    """

    def __init__(
        self,
        image: str | Loss | None = None,
        dvf: str | Loss | None = None,
        inv_dvf: str | Loss | None = None,
        regularity: str | Loss | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        terms = {"image": image, "dvf": dvf, "inv_dvf": inv_dvf, "regularity": regularity}
        if image is dvf is inv_dvf is None:
            raise InputError("loss: expected at least one of loss.image, loss.dvf and loss.inv_dvf, got none")
        self.weights = _term_weights(weights or {})
        with_truth = [name for name, term in terms.items() if term is not None and name != "regularity"]
        if not any(self.weights[name] for name in with_truth):
            raise InputError(
                f"loss.weights: expected at least one above 0 among {', '.join(with_truth)}, got 0 for all"
            )
        backbones = shared_backbones(backbone_weights)
        self.terms = nn.ModuleDict(
            {
                name: as_module(
                    _TERMS[name].build_sharing(term, backbones) if isinstance(term, str) else term,
                    f"loss.{name}",
                )
                for name, term in terms.items()
                if term is not None
            }
        )

    def forward(self, output: LossInput, batch: LossInput) -> dict[str, Tensor]:
        """Return the unweighted value of each active term by its name, and their weighted sum as "total".

        Raises:
            InputError: If the batch lacks the inverse field that inv_dvf needs, the network predicts none although
                inv_dvf is the only term with a truth or the regularity needs it, or a term is not a scalar.
        """
        values = {
            name: value_of(loss, *_arguments(name, output, batch), f"loss.{name}")
            for name, loss in self.terms.items()
            if name != "inv_dvf" or output.inv_dvf is not None
        }
        if not any(self.weights[name] for name in values.keys() - {"regularity"}):
            raise InputError(
                "loss: expected a network with an inverse, since loss.inv_dvf is the only term with a truth, got one "
                "without; set loss.dvf, or model.compute_inv=true where the model has that key"
            )
        weighted = [self.weights[name] * value for name, value in values.items()]
        return {**values, "total": torch.stack(weighted).sum()}


def _term_weights(weights: Mapping[str, float]) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in _TERMS:
            raise unknown_name("term in loss.weights", name, _TERMS)
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise InputError(f"loss.weights.{name}: expected a finite number of at least 0, got {weight}")
    return {name: float(weights.get(name, 1)) for name in _TERMS}


def _arguments(name: str, output: LossInput, batch: LossInput) -> tuple[Tensor, Tensor | None]:
    """Return the truth and the prediction; for the regularity, both predicted fields."""
    if name == "regularity":
        return output.dvf, output.inv_dvf
    attribute = "registered" if name == "image" else name
    truth, prediction = getattr(batch, attribute), getattr(output, attribute)
    if truth is None:
        raise InputError(
            "loss.inv_dvf: expected a batch with inverse fields, got none; set data.return_inverse=true"
        )
    return truth, prediction
