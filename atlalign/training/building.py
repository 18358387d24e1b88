"""The objects of a training run, built from its configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from atlalign.arguments import as_list, build
from atlalign.console import say
from atlalign.errors import InputError, check_numbers, mistakes_in, unknown_name
from atlalign.training.checkpoints import network_of_same_run
from atlalign.training.processes import is_first_process


def _build_function(config: DictConfig | None) -> Any:
    """Build a partial function; when called, it reports errors in its configured arguments by their key."""
    function = build(config)
    if config is None or function is None:
        return None

    def call(*arguments: Any) -> Any:
        with mistakes_in(config._get_full_key(None)):
            return function(*arguments)

    return call


def build_network(config: DictConfig, checkpoint: str | None) -> Any:
    """Return the network to train, with its frozen parts; a resumed run takes it from the checkpoint."""
    network = network_of_same_run(config, checkpoint)
    if network is None:
        network = build(config.model)
    network.train()
    _freeze(network, as_list(config.freeze))
    if config.compile:
        network.compile()
    return network


def memory_format(channels_last: bool | None, device: Any) -> Any:
    """Return the memory format that the configuration asks for; None stands for the fastest on this device."""
    import torch

    from atlalign.networks.memory_format import fastest_memory_format

    if channels_last is None:
        return fastest_memory_format(device)
    return torch.channels_last if channels_last else torch.contiguous_format


def _freeze(network: Any, parts: Sequence[str]) -> None:
    """Freeze the weights of the parts."""
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
