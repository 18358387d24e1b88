"""Builds the objects of a configuration, after checking that its keys and values suit their arguments."""

import inspect
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from textwrap import shorten
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from atlalign.errors import InputError, mistakes_in, reason_of
from atlalign.imports import imported

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    NoneType: "null",
}
_LARGEST = 2**63 - 1  # the largest number that arrays and files can hold

_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def build(config: DictConfig | None, **objects: Any) -> Any:
    """Build the `_target_` of `config` with plain arguments and `objects`; None if the configuration is empty.

    Raises:
        InputError: If the target does not accept these arguments.
    """
    if not config:
        return None
    import hydra

    with mistakes_in(config._get_full_key(None)), _full_names(config):
        check_arguments(config, _choices(), objects)
        if not objects:
            return hydra.utils.instantiate(config, _convert_="all")
        # Hydra would turn objects among the arguments into configurations, so they are passed afterwards.
        return hydra.utils.instantiate(config, _convert_="all", _partial_=True)(**objects)


@contextmanager
def _full_names(config: DictConfig) -> Iterator[None]:
    """Replace an argument's name in an error by its full key: `deformation.anchor.h_kept` instead of `h_kept`."""
    try:
        yield
    except Exception as error:
        mistake = error.__cause__ or error
        # Hydra appends the path of the object that it was building.
        place = re.search(r"^full_key: (.+)$", str(error), re.MULTILINE)
        name = place[1] if place else config._get_full_key(None)
        node = OmegaConf.select(config._get_root(), name)
        if place and isinstance(mistake, TypeError):  # such as a missing argument
            raise InputError(f"{name}: {reason_of(mistake)}") from error
        if not isinstance(mistake, InputError) or str(mistake).split(":")[0] not in (node or ()):
            raise
        raise InputError(f"{name}.{mistake}") from error


def check_arguments(config: DictConfig, choices: Mapping[str, Any], given: Collection[str] = ()) -> None:
    """Check that the targets in `config`, including nested ones, accept its keys and the types of its values.

    Args:
        config: The node with the target.
        choices: As for `check_keys`.
        given: Names of arguments that are passed as objects instead of being configured.

    Raises:
        InputError: At the first invalid key or value.
    """
    check_targets(config)
    check_keys(config, choices)
    _check_kinds(config, given)


def check_targets(config: DictConfig) -> None:
    """Check that every target in `config`, including those in lists, is a class or function that can be imported.

    Raises:
        InputError: If a target cannot be imported; the first one is named.
    """
    for node in nodes_with_target(config):
        name = f"{node._get_full_key(None)}._target_"
        with mistakes_in(name):
            target = node["_target_"]
        try:
            found = imported(str(target))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        if not callable(found):
            raise InputError(f"{name}: expected a class or function, got {target}, a {type(found).__name__}")


def nodes_with_target(config: DictConfig | ListConfig) -> Iterator[DictConfig]:
    """Yield `config` and the nodes inside it that have a target."""
    if isinstance(config, DictConfig) and _node(config, "_target_") is not None:
        yield config
    keys = range(len(config)) if isinstance(config, ListConfig) else list(config)
    for key in keys:
        node = config._get_node(key)
        if isinstance(node, DictConfig | ListConfig) and isinstance(node._value(), dict | list):
            yield from nodes_with_target(node)


def check_keys(config: DictConfig, choices: Mapping[str, Any]) -> None:
    """Check that every target in `config` accepts its keys.

    Nothing is resolved, so the configuration of a future run can be checked.

    Args:
        config: A configuration, or a node of one.
        choices: The chosen option of each group, for messages; for a group without one, messages name its class.

    Raises:
        InputError: At the first unknown key.
    """
    target = _node(config, "_target_")
    known = None if target is None else _parameters(_found(target._value()))
    for key in map(str, config):
        if known is not None and key not in known and not key.startswith("_"):
            raise _unknown(config, key, known, choices)
        node = _node(config, key)
        if isinstance(node, DictConfig) and isinstance(node._value(), dict):  # not an interpolation
            check_keys(node, choices)


def _unknown(config: DictConfig, key: str, known: Iterable[str], choices: Mapping[str, Any]) -> InputError:
    name = config._get_full_key(None)
    group = name.split(".")[0]
    owner = (
        f"{group}={choices[group]}" if choices.get(group) else str(_node(config, "_target_")).split(".")[-1]
    )
    # Hydra itself refuses unknown keys on the command line, so this key comes from another file.
    others = [f"{other}={choices[other]}" for other in ("experiment", "sweep") if choices.get(other)]
    brought = f" (set by {' or '.join(others)}?)" if others else ""
    return InputError(f"{name}.{key}: {owner} takes no {key}{brought}; it takes {', '.join(sorted(known))}")


def _node(config: DictConfig, key: str) -> Any:
    """Return a node without resolving it; None if it does not exist."""
    return config._get_node(key, validate_access=False)


def _parameters(found: Any) -> set[str] | None:
    """Return the argument names of a function or class; None if it accepts, or may accept, any name."""
    names: set[str] = set()
    for function in _functions(found):
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # functions written in C
            return None
        kinds = {parameter.name: parameter.kind for parameter in parameters}
        names |= {name for name, kind in kinds.items() if kind not in _ANY_NUMBER}
        if inspect.Parameter.VAR_KEYWORD not in kinds.values():
            return names - {"self"}
    return None


def _functions(found: Any) -> Iterator[Any]:
    """Yield the functions that take the arguments: for a class, its `__init__` and then those of its parents."""
    if isinstance(found, type):
        yield from filter(None, (vars(cls).get("__init__") for cls in found.__mro__))
    elif found is not None:
        yield found


def _check_kinds(config: DictConfig, given: Collection[str] = ()) -> None:
    """Check that arguments, including nested ones, have the declared types, such as numbers or lists of numbers.

    Otherwise, an invalid word would cause an error in the middle of a run, or count as true.
    """
    declared = _declared_arguments(config.get("_target_"))
    for key, value in config.items():
        if isinstance(value, DictConfig) and "_target_" in value:
            _check_kinds(value)
        elif str(key) in declared and key not in given:
            check_kind(config._get_full_key(str(key)), value, declared[str(key)])
        elif isinstance(value, DictConfig):
            _check_kinds(value)


def check_kinds_of(config: DictConfig, kinds: Mapping[str, Any]) -> None:
    """Check settings that are not passed to any object, with `check_kind`."""
    for name, kind in kinds.items():
        check_kind(name, config[name], kind)


def check_kind(name: str, value: Any, declared: Any) -> None:
    """Check that a setting has the declared type: plain data, lists of it, or null.

    Raises:
        InputError: If it does not. NaN does not count as a number, and whole numbers have at most 63 bits.
    """
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    if not _fits(plain, declared):
        raise InputError(f"{name}: expected {_in_words(declared)}, got {shorten(str(plain), 80)}")


def _fits(value: Any, declared: Any) -> bool:
    origin, parts = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if declared in (bool, NoneType, str):
        return isinstance(value, declared)
    if declared in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
        return whole or (declared is float and isinstance(value, float) and not math.isnan(value))
    if declared is Path:
        return isinstance(value, str | Path)
    kind = origin or declared
    if declared in (Any, object) or not isinstance(kind, type):
        return True
    if issubclass(kind, Collection) and not issubclass(kind, Mapping):
        return isinstance(value, list | tuple) and (not parts or _fit(value, kind, parts))
    if isinstance(value, dict):
        if "_target_" in value:  # it describes an object to be built
            return True
        return issubclass(kind, Mapping) and (not parts or all(_fits(v, parts[1]) for v in value.values()))
    return _is_instance(value, kind)


def _is_instance(value: Any, kind: type) -> bool:
    with suppress(TypeError):  # not every protocol supports isinstance
        return isinstance(value, kind) and not isinstance(value, bool)
    return False


def _fit(values: Sequence[Any], origin: type, parts: tuple[Any, ...]) -> bool:
    """Return whether the values of a list fit a tuple of this length, or all have one type."""
    if origin is tuple and ... not in parts:
        return len(values) == len(parts) and all(map(_fits, values, parts))
    return all(_fits(value, parts[0]) for value in values)


def _in_words(declared: Any) -> str:
    origin, parts = get_origin(declared), get_args(declared)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_in_words(part) for part in parts if part is not NoneType))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if isinstance(origin, type) and (issubclass(origin, Mapping) or not issubclass(origin, Collection)):
        return "a configuration with a _target_"
    if parts:
        inner = list(dict.fromkeys(_in_words(part) for part in parts if part is not ...))
        number = f"{len(parts)}: " if origin is tuple and ... not in parts else ""
        return f"a list ({number}{', '.join(inner)})"
    return _WORDS.get(declared, getattr(declared, "__name__", str(declared)))


@cache
def _declared_arguments(target: str | None) -> dict[str, Any]:
    """Return the annotations of the arguments of a function, or of a class and its parents."""
    declared: dict[str, Any] = {}
    for function in reversed([*_functions(_found(target))]):
        # Annotations with names that are imported only for type checkers cannot be resolved.
        with suppress(NameError, TypeError, AttributeError):
            declared |= get_type_hints(function)
    return declared


def _found(target: Any) -> Any:
    """Return the target; None if it cannot be imported, which is reported when it is built."""
    try:
        return imported(str(target))
    except InputError:
        return None


def _choices() -> Mapping[str, Any]:
    """Return the chosen option of each group; empty outside a Hydra job, as in a process that the job started."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}


def as_list(names: str | Sequence[str]) -> Sequence[str]:
    """Return the names as a list; a single name may be given as a string."""
    return [names] if isinstance(names, str) else names
