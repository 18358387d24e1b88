"""The keys of a configuration against the arguments of what is built from them, before it is built."""

import inspect
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from atlalign.errors import InputError

# What the arguments that are declared so must be.
_KINDS: dict[str, tuple[Any, str]] = {
    "bool": (bool | None, "true or false"),
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
}

_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check_arguments(config: DictConfig, choices: Mapping[str, Any]) -> None:
    """Check that what `config` builds, parts included, takes its keys, and these have the kinds that it declares.

    Args:
        config: The node that names what is built.
        choices: As for `check_keys`.

    Raises:
        InputError: At the first key that is not.
    """
    check_keys(config, choices)
    _check_kinds(config)


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


def _check_kinds(config: DictConfig) -> None:
    """Check that arguments are numbers, or true or false, where what is built from them, parts included, says so.

    Otherwise most words are found out in the middle of a run, or count as true.
    """
    declared = _declared_arguments(config.get("_target_"))
    for key, value in config.items():
        kind = declared.get(str(key), "")
        name = kind.removeprefix("Optional[").removesuffix("]").removesuffix(" | None")
        if isinstance(value, DictConfig):
            _check_kinds(value)
        elif name in _KINDS and not (value is None and name != kind):
            known, words = _KINDS[name]
            if not isinstance(value, known) or (isinstance(value, bool) and name != "bool"):
                raise InputError(f"{config._get_full_key(str(key))}: expected {words}, got {value}")


def _declared_arguments(target: str | None) -> dict[str, str]:
    """Return the annotations of a function's arguments, or of those of a class and its parents."""
    functions = reversed([*_functions(_found(target))])
    declared = {name: kind for f in functions for name, kind in inspect.get_annotations(f).items()}
    return {n: k if isinstance(k, str) else inspect.formatannotation(k) for n, k in declared.items()}


def _found(target: Any) -> Any:
    """Return what is to be built; None where it cannot be imported, which building it will tell."""
    try:
        return pkgutil.resolve_name(str(target))
    except (ImportError, AttributeError, ValueError):
        return None
