"""Settings that an evaluation leaves open, taken from the record of the network's training."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from atlalign.atlas.atlas import Atlas, allen_atlas, file_atlas, phantom_atlas
from atlalign.errors import InputError
from atlalign.models import ModelOrigin

_SPLIT_KEYS = ("val_fraction", "train_indexes", "val_indexes", "split_seed")
# Atlas functions that a checkpoint may call, with plain arguments. It may name nothing else, as files are not trusted.
_ATLASES = {
    f"atlalign.atlas.atlas.{make.__name__}": make for make in (phantom_atlas, file_atlas, allen_atlas)
}
_ATLAS_FILES = ("path", "annotation_path", "ontology_path")
_GIVE_ATLAS = (
    "name the atlas that the sections are registered to with atlas=file atlas.path=FILE or atlas=allen"
)


def as_trained(config: DictConfig, origin: ModelOrigin) -> DictConfig:
    """Return the configuration with its missing data settings taken from the network's training, and print them."""
    data = config.data
    found: dict[str, Any] = {}
    if data.image_shape is None:
        if origin.image_shape is None:
            raise InputError(
                f"{config.model.path} does not record the size of its images: set data.image_shape=[HEIGHT,WIDTH]"
            )
        found["image_shape"] = list(origin.image_shape)
    if "dark_ground" in data and data.dark_ground is None:
        trained = origin.config.get("data")
        known = trained if isinstance(trained, Mapping) else {}
        found["dark_ground"] = bool(known.get("dark_ground", True))
    for name, value in found.items():
        print(f"data.{name}={str(value).lower().replace(' ', '')}, as recorded in {config.model.path}")
    return cast(DictConfig, OmegaConf.merge(config, {"data": found}))


def on_an_atlas(config: DictConfig, origin: ModelOrigin) -> DictConfig:
    """Return the configuration with the network's training atlas if none is configured, and print the choice.

    If the model does not record its atlas, the phantom is used, which is correct only for sections of the phantom.

    Raises:
        InputError: If the atlas file is missing, or the atlas does not come from this package.
    """
    if "_target_" in config.atlas:
        return config
    trained = origin.config.get("atlas")
    if isinstance(trained, Mapping):
        target, of_whom = str(trained.get("_target_")), f"as recorded in {config.model.path}"
    else:
        trained, target = {}, "atlalign.atlas.atlas.phantom_atlas"
        of_whom = f"since {config.model.path} does not record its atlas"
    if target not in _ATLASES:
        raise InputError(f"atlas: {config.model.path} was trained with {target}: {_GIVE_ATLAS}")
    known = _plain_arguments(trained, _ATLASES[target], str(config.model.path))
    gone = [key for key in _ATLAS_FILES if known.get(key) and not Path(known[key]).expanduser().exists()]
    if gone:
        raise InputError(
            f"atlas: {config.model.path} was trained with {known[gone[0]]}, which is missing: {_GIVE_ATLAS}"
        )
    name = target.rpartition(".")[2].removesuffix("_atlas")
    path = f" atlas.path={known['path']}" if "path" in known else ""
    print(f"atlas={name}{path}, {of_whom}")
    given = {key: value for key, value in config.atlas.items() if key != "with_annotation"}
    of_evaluation = {"image_shape": list(config.data.image_shape), "with_annotation": config.segmentation}
    with open_dict(config):
        config.atlas = {"_target_": target, **known, **of_evaluation, **given}
    return config


def _plain_arguments(
    trained: Mapping[str, Any], make: Callable[..., Atlas], checkpoint: str
) -> dict[str, Any]:
    """Return the values that a configuration gives to the arguments of `make`; only plain values are allowed."""
    of_evaluation = ("image_shape", "with_annotation")
    taken = [key for key in inspect.signature(make).parameters if key not in of_evaluation]
    known = {key: trained[key] for key in taken if key in trained}
    for key, value in known.items():
        if not isinstance(value, str | int | float | None) or "${" in str(value):
            raise InputError(f"atlas: {checkpoint} has no plain value for {key}: {_GIVE_ATLAS}")
    return known


def check_like_training(config: DictConfig, origin: ModelOrigin) -> None:
    """Raise an InputError if the checkpoint was trained at another size, or on another split of the same data.

    Otherwise, training samples would be mistaken for samples that the network has not seen.
    """
    shape = tuple(config.data.image_shape)
    if origin.image_shape not in (None, shape):
        height, width = origin.image_shape
        raise InputError(
            f"data.image_shape is {shape}, but {config.model.path} was trained at {origin.image_shape}: "
            f"set data.image_shape=[{height},{width}]"
        )
    trained = origin.config.get("data")
    data = cast(dict[str, Any], OmegaConf.to_container(config.data, resolve=True))
    if not isinstance(trained, Mapping) or not _same_file(trained, data):
        return
    if config.split == "all":
        print(f"split=all: the measured samples include the training samples of {config.model.path}")
        return
    for key in _SPLIT_KEYS:
        if key in trained and trained[key] != data[key]:
            raise InputError(
                f"data.{key} is {data[key]}, but {config.model.path} was trained on these data with {trained[key]}: "
                f"set data.{key}={trained[key]}, or split=all"
            )


def _same_file(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two data configurations read the same file, or draw the same demo data."""
    paths = [Path(data.get("path") or "").expanduser().resolve() for data in (one, other)]
    return one.get("_target_") == other.get("_target_") and paths[0] == paths[1]
