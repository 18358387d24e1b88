"""The objects of a training run, built from its configuration."""

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from atlalign.arguments import as_list, build, nodes_with_target
from atlalign.console import say
from atlalign.errors import InputError, check_numbers, mistakes_in, unknown_name
from atlalign.imports import imported, name_of
from atlalign.training.checkpoints import network_of_same_run
from atlalign.training.processes import is_first_process


def _build_function(config: DictConfig | None) -> Any:
    """Build a partial function that, when called, reports errors in its configured arguments by their keys."""
    function = build(config)
    if config is None or function is None:
        return None

    def call(*arguments: Any) -> Any:
        with mistakes_in(config._get_full_key(None)):
            return function(*arguments)

    return call


def build_loss(config: DictConfig) -> Any:
    """Return the loss; functions of (y_true, y_pred) among its terms are passed to it, not called while building.

    Raises:
        InputError: If the configured loss is not the weighted sum of terms (`RegistrationLoss`) but replaces it.
    """
    from atlalign.losses import RegistrationLoss

    node = copy.deepcopy(config.loss)
    for part in nodes_with_target(node or OmegaConf.create({})):
        if _is_loss_function(part):
            with open_dict(part):
                part["_partial_"] = True
    loss = build(node)
    if not isinstance(loss, RegistrationLoss) and _trains_registration(config):
        raise InputError(_no_weighted_sum(config.loss))
    return loss


def _is_loss_function(node: DictConfig) -> bool:
    """Return whether the target is a function that still needs two arguments: the truth and the prediction."""
    try:
        found = imported(str(node["_target_"]))
        parameters = inspect.signature(found).parameters.values()
    except (InputError, ValueError):  # reported when it is built; a function written in C
        return False
    given = {"_args_", "_partial_"} & set(map(str, node))
    needed = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    missing = [parameter for parameter in needed if parameter.name not in node]
    return not given and not isinstance(found, type) and len(missing) == 2


def _trains_registration(config: DictConfig) -> bool:
    from atlalign.training.module import RegistrationModule

    module = imported(str(config.module["_target_"]))
    return isinstance(module, type) and issubclass(module, RegistrationModule)


def _no_weighted_sum(config: DictConfig | None) -> str:
    target = None if config is None else config.get("_target_")
    name = "my_lab.MyLoss" if target is None else target
    return (
        f"loss: expected _target_: atlalign.losses.RegistrationLoss, the weighted sum of losses, got "
        f"{target or 'no _target_'}: place a loss of your own under image, dvf, inv_dvf or regularity, as in "
        f"dvf: {{_target_: {name}}}"
    )


def build_network(config: DictConfig, checkpoint: str | None) -> Any:
    """Return the network to train, with some parts frozen; a resumed run takes the network from its checkpoint."""
    network = network_of_same_run(config, checkpoint)
    if network is None:
        network = _network(config.model)
    network.train()
    _freeze(network, as_list(config.freeze))
    if config.compile:
        network.compile()
    return network


def _network(config: DictConfig) -> Any:
    """Return a new network that records the arguments of its constructor, so that it can be saved."""
    from torch import nn

    from atlalign.networks.architecture import record_arguments

    network = build(config)
    if not isinstance(network, nn.Module):
        raise InputError(f"model: expected the _target_ of a torch.nn.Module, got {config.get('_target_')}")
    if not any(True for _ in network.parameters()):
        raise InputError(
            f"model: expected a network with weights to train, got {name_of(network)}, which has none"
        )
    if isinstance(
        imported(str(config["_target_"])), type
    ):  # a function may have other arguments than the class
        arguments = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
        record_arguments(network, {key: value for key, value in arguments.items() if key != "_target_"})
    return network


def memory_format(channels_last: bool | None, device: Any) -> Any:
    """Return the configured memory format; None stands for the fastest one on this device."""
    import torch

    from atlalign.networks.memory_format import fastest_memory_format

    if channels_last is None:
        return fastest_memory_format(device)
    return torch.channels_last if channels_last else torch.contiguous_format


def _freeze(network: Any, parts: Sequence[str]) -> None:
    """Freeze the weights of the named parts of the network."""
    known = dict(network.named_modules())
    for part in parts:
        if part not in known:
            parts_known = [name for name, _ in network.named_children()]
            raise unknown_name("part of the network in freeze:", part, parts_known)
        known[part].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(f"freeze: expected at least one part to remain trainable, got {list(parts)}")


def build_datamodule(config: DictConfig, network: Any) -> Any:
    """Build the data; unless configured, inverse fields are loaded if the network predicts them."""
    objects = {"atlas": build(config.atlas), "augment": build(config.augment)}
    if is_first_process():
        say(objects["atlas"].description())
    if OmegaConf.select(config.data, "return_inverse", default=False) is None:
        objects["return_inverse"] = bool(getattr(network, "compute_inv", False))
    return build(config.data, **objects)


def build_module(config: DictConfig, network: Any, loss: Any, datamodule: Any) -> Any:
    """Build the Lightning module that trains the network."""
    origin = {
        "config": OmegaConf.to_container(config, resolve=True),
        "intensity_scale": float(datamodule.atlas.intensity_scale),
    }
    if "step_size" in (config.scheduler or ()):
        check_numbers({"scheduler.step_size": config.scheduler.step_size}, {"scheduler.step_size": 1})
    return build(config.module)(
        network,
        loss,
        optimizer=_build_function(config.optimizer),
        scheduler=_build_function(config.scheduler),
        monitor=config.objective,
        seed=config.seed,
        origin=origin,
    )


def build_logger(config: DictConfig | None) -> Any:
    """Build the logger, and create its folder."""
    logger = build(config)
    with mistakes_in("logger.save_dir"):
        if getattr(logger, "save_dir", None):
            Path(logger.save_dir).mkdir(parents=True, exist_ok=True)
    return logger


def build_callbacks(group: DictConfig | None) -> list[Any]:
    """Build the callbacks; null switches a callback off."""
    for name, node in cast(dict[str, Any], group or {}).items():
        if not isinstance(node, DictConfig | None):
            raise InputError(
                f"callbacks.{name}: expected a callback's _target_ and arguments, or null, got {node!r}"
            )
    return [build(node) for node in (group or {}).values() if node is not None]
