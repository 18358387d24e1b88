"""Builds what a configuration describes, once its keys and values suit the arguments of what is built."""

import inspect
import math
import pkgutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from textwrap import shorten
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from atlalign.errors import InputError, mistakes_in

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    NoneType: "null",
}
_LARGEST = 2**63 - 1  # what arrays and files hold

_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def build(config: DictConfig | None, **objects: Any) -> Any:
    """Build what `config` names by `_target_` with plain arguments and `objects`; None where it names nothing.

    Raises:
        InputError: If what it names does not take these arguments.
    """
    if not config:
        return None
    import hydra

    with mistakes_in(config._get_full_key(None)):
        check_arguments(config, _choices(), objects)
        if not objects:
            return hydra.utils.instantiate(config, _convert_="all")
        # Hydra would turn objects among the arguments into configurations: they are given afterwards.
        return hydra.utils.instantiate(config, _convert_="all", _partial_=True)(**objects)


def check_arguments(config: DictConfig, choices: Mapping[str, Any], given: Collection[str] = ()) -> None:
    """Check that what `config` builds, parts included, takes its keys, and these have the kinds that it declares.

    Args:
        config: The node that names what is built.
        choices: As for `check_keys`.
        given: Arguments that take the place of what the configuration says.

    Raises:
        InputError: At the first key that is not.
    """
    check_keys(config, choices)
    _check_kinds(config, given)


def check_keys(config: DictConfig, choices: Mapping[str, Any]) -> None:
    """Check that whatever is built anywhere in `config` takes the keys that it is given.

    Nothing is resolved, so that the configuration of a run that is still to come can be checked.

    Args:
        config: A configuration, or a node of one.
        choices: The option that was chosen in each group, by the group's name; where it lacks one, classes are named.

    Raises:
        InputError: At the first key that is not taken.
    """
    target = _node(config, "_target_")
    known = None if target is None else _parameters(_found(target._value()))
    for key in map(str, config):
        if known is not None and key not in known and not key.startswith("_"):
            raise _unknown(config, key, known, choices)
        node = _node(config, key)
        if isinstance(node, DictConfig) and isinstance(node._value(), dict):  # nothing that stands elsewhere
            check_keys(node, choices)


def _unknown(config: DictConfig, key: str, known: Iterable[str], choices: Mapping[str, Any]) -> InputError:
    name = config._get_full_key(None)
    group = name.split(".")[0]
    owner = (
        f"{group}={choices[group]}" if choices.get(group) else str(_node(config, "_target_")).split(".")[-1]
    )
    # The command line is told by Hydra itself of keys that are not there: another file has brought this one.
    others = [f"{other}={choices[other]}" for other in ("experiment", "sweep") if choices.get(other)]
    brought = f" (set by {' or '.join(others)}?)" if others else ""
    return InputError(f"{name}.{key}: {owner} takes no {key}{brought}; it takes {', '.join(sorted(known))}")


def _node(config: DictConfig, key: str) -> Any:
    """Return a node as it is written, None where there is none."""
    return config._get_node(key, validate_access=False)


def _parameters(found: Any) -> set[str] | None:
    """Return the names of the arguments that a function or class takes; None where it takes, or may take, any."""
    names: set[str] = set()
    for function in _functions(found):
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # of what is written in C
            return None
        kinds = {parameter.name: parameter.kind for parameter in parameters}
        names |= {name for name, kind in kinds.items() if kind not in _ANY_NUMBER}
        if inspect.Parameter.VAR_KEYWORD not in kinds.values():
            return names - {"self"}
    return None


def _functions(found: Any) -> Iterator[Any]:
    """Yield what takes the arguments: of a class its own `__init__`, and then those that it may hand the others to."""
    if isinstance(found, type):
        yield from filter(None, (vars(cls).get("__init__") for cls in found.__mro__))
    elif found is not None:
        yield found


def _check_kinds(config: DictConfig, given: Collection[str] = ()) -> None:
    """Check that arguments are what is declared, such as numbers or lists of them, parts included.

    Otherwise most words are found out in the middle of a run, or count as true.
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
    """Check settings that are no arguments of anything that is built, as `check_kind` does."""
    for name, kind in kinds.items():
        check_kind(name, config[name], kind)


def check_kind(name: str, value: Any, declared: Any) -> None:
    """Check that a setting is what a type says: plain data, lists of it, or null.

    Raises:
        InputError: If it is not; NaN is no number, and whole numbers have up to 63 bits.
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
        if "_target_" in value:  # which describes an object to be built
            return True
        return issubclass(kind, Mapping) and (not parts or all(_fits(v, parts[1]) for v in value.values()))
    return _is_instance(value, kind)


def _is_instance(value: Any, kind: type) -> bool:
    with suppress(TypeError):  # of protocols that cannot be asked
        return isinstance(value, kind) and not isinstance(value, bool)
    return False


def _fit(values: Sequence[Any], origin: type, parts: tuple[Any, ...]) -> bool:
    """Return whether a list's values are those of a tuple of this length, or all of one type."""
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
        return "a configuration"
    if parts:
        inner = list(dict.fromkeys(_in_words(part) for part in parts if part is not ...))
        number = f"{len(parts)}: " if origin is tuple and ... not in parts else ""
        return f"a list ({number}{', '.join(inner)})"
    return _WORDS.get(declared, getattr(declared, "__name__", str(declared)))


@cache
def _declared_arguments(target: str | None) -> dict[str, Any]:
    """Return the annotations of a function's arguments, or of those of a class and its parents."""
    declared: dict[str, Any] = {}
    for function in reversed([*_functions(_found(target))]):
        # Names that stand for types to a checker alone do not resolve.
        with suppress(NameError, TypeError, AttributeError):
            declared |= get_type_hints(function)
    return declared


def _found(target: Any) -> Any:
    """Return what is to be built; None where it cannot be imported, which building it will tell."""
    try:
        return pkgutil.resolve_name(str(target))
    except (ImportError, AttributeError, ValueError):
        return None


def _choices() -> Mapping[str, Any]:
    """Return which option of each group was chosen; nothing outside of a Hydra job, as in a process it started."""
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
