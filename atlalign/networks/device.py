"""The device that networks run on."""

import torch

from atlalign.errors import InputError, reason_of

_KINDS = ("cpu", "cuda", "mps", "xpu")


def chosen_device(name: str) -> torch.device:
    """Return the device of this name; `auto` is the first CUDA GPU, or the CPU if there is none.

    Raises:
        InputError: If this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wrong = f"device: expected a device of this machine (auto, cpu, cuda, cuda:N), got {name}"
    if not isinstance(name, str) or name.split(":")[0] not in _KINDS:
        raise InputError(wrong)
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"{wrong}: {reason_of(error)}") from error
