"""Imports of objects by their importable names, such as `my_lab.Shift`."""

import inspect
import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any

from atlalign.errors import InputError, reason_of
from atlalign.hydra_messages import near

_MOST_NAMES = 12


def imported(name: str) -> Any:
    """Return the object with an importable name: the name of a module, followed by names inside it.

    Raises:
        InputError: If there is no such module, its import fails, or it contains no such name.
    """
    first, *rest = name.split(".")
    if not rest or not all(part.isidentifier() for part in (first, *rest)):
        raise InputError(
            f"expected the name of a module followed by that of a class or function in it, got '{name}'"
        )
    found: Any = _module(first)
    for part in rest:
        found = getattr(found, part) if hasattr(found, part) else _submodule(found, part)
    return found


def name_of(found: Any) -> str:
    """Return the importable name of a class, a function or a partial function; for an object, that of its class."""
    named = getattr(found, "func", found)
    named = named if hasattr(named, "__qualname__") else type(named)
    return f"{named.__module__}.{named.__qualname__}"


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise InputError(_missing_module(name)) from error
        raise InputError(f"{name} cannot be imported: {reason_of(error)}") from error
    except Exception as error:  # a user's module may raise anything
        kind = type(error).__name__
        raise InputError(f"{name} cannot be imported: {kind}: {reason_of(error)}") from error


def _missing_module(name: str) -> str:
    hint = near(name, {module.name for module in pkgutil.iter_modules()}, at_most=2)
    return (
        f"there is no module '{name}'.{hint} Set the environment variable PYTHONPATH to the folder of {name}.py "
        "(PYTHONPATH=. for this folder), or install its package"
    )


def _submodule(parent: Any, name: str) -> Any:
    """Return a module inside a package; if it is missing, the error lists the names that exist."""
    if hasattr(parent, "__path__"):
        full = f"{parent.__name__}.{name}"
        try:
            return import_module(full)
        except ModuleNotFoundError as error:
            if error.name != full:
                raise InputError(f"{full} cannot be imported: {reason_of(error)}") from error
        except Exception as error:
            raise InputError(f"{full} cannot be imported: {reason_of(error)}") from error
    raise InputError(_missing_name(parent, name))


def _missing_name(parent: Any, name: str) -> str:
    owner = parent.__name__ if isinstance(parent, ModuleType) else name_of(parent)
    public = [known for known in dir(parent) if not known.startswith("_")]
    if hint := near(name, public):
        return f"{owner} has no '{name}'.{hint}"
    own = [known for known in public if _is_made_in(getattr(parent, known, None), owner)]
    some = ", ".join(own[:_MOST_NAMES]) + ", …" * (len(own) > _MOST_NAMES)
    return f"{owner} has no '{name}'. There are: {some}" if own else f"{owner} has no '{name}'"


def _is_made_in(found: Any, module: str) -> bool:
    return (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__ == module
