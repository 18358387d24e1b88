"""A device that is not the CPU, for machines that have none: it computes on the CPU and is as strict as a GPU.

Its tensors say that they lie on torch's device "meta". What fails on a GPU, a computation with a tensor of the CPU,
fails here; what the CPU has to wait for a GPU for, a value that Python asks for or a copy, is counted.
"""

from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

OTHER = torch.device("meta")
_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
# Indices may lie on the CPU: a GPU takes them, too.
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten._index_put_impl_.default}
_ASKING = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default}
_CONSTRUCTORS = {torch.tensor, torch.as_tensor, torch.asarray}


class OtherDevice(TorchDispatchMode):
    """Within this context tensors can be made on `OTHER` and moved there.

    Attributes:
        waits: How often the CPU would have had to wait for the device, by what for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._others = ExitStack()

    def __enter__(self) -> "OtherDevice":
        self._others.enter_context(_Constructors())
        for function in (torch.autocast, torch.is_autocast_enabled):
            self._others.enter_context(patch.object(torch, function.__name__, _as_on_cpu(function)))
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        self._others.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {}, self.waits)


def _as_on_cpu(function: Any) -> Any:
    """Return a function of mixed precision, which "meta" knows nothing of."""

    def known(given: Any) -> Any:
        return tree_map(lambda value: "cpu" if value == OTHER.type else value, given)

    return lambda *args, **kwargs: function(*known(args), **known(kwargs))


class _Constructors(TorchFunctionMode):
    """Values of Python are first made a tensor on the CPU: torch itself would forget them, "meta" having none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _CONSTRUCTORS and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.new_tensor:
            like, data = args
            return torch.tensor(data, **{"dtype": like.dtype, **kwargs}).to(like.device)
        return func(*args, **kwargs)


class _There(torch.Tensor):
    """A tensor of the other device, around the one on the CPU that holds its values."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "_There":
        there = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=OTHER,
        )
        there.values = values
        return there

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {}, Counter())


def _call(func: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, torch.Tensor)]
    there = [part for part in tensors if isinstance(part, _There)]
    here = [part for part in tensors if not isinstance(part, _There) and part.ndim]
    if there and here and func not in _COPIES | _INDEXING:
        raise RuntimeError(f"{func}: expected all tensors on one device, found {OTHER} and cpu")
    stays = bool(there)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]) == OTHER
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif func is _aten.copy_.default:
        stays = isinstance(args[0], _There)
    if there and (not stays or func in _ASKING):
        waits[str(func)] += 1
    known = {id(part.values): part for part in there}
    found = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    if not stays:
        return found

    def wrapped(part: Any) -> Any:
        if not isinstance(part, torch.Tensor):
            return part
        return known[id(part)] if id(part) in known else _There(part)

    return tree_map(wrapped, found)


def _values(part: Any) -> Any:
    return part.values if isinstance(part, _There) else part
