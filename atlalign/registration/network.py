"""The network that registers sections, or none."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from atlalign.errors import OF_NETWORK, InputError, checked_shape
from atlalign.io.files import fingerprint
from atlalign.models import SHIPPED_MODEL, load_model, read_origin
from atlalign.networks import FinePassNet
from atlalign.networks.device import chosen_device
from atlalign.networks.memory_format import fastest_memory_format
from atlalign.registration.expected_error import SHIPPED, Calibration, one_sided

NONE = "none"
"""The model name that means no network: anchorings and corrections alone place the sections."""


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A loaded network on its device.

    Attributes:
        module: Takes (reference, moving) and returns a `Registration`; None for no network.
        image_shape: The (H, W) of its input or, without a network, of the grid of the fields.
        origin: Plain data that identifies the network.
        calibration: Converts its disagreements to an error; None if it has not been calibrated.
        last_pass: The network that corrects the field of `module` on larger images; None if there is no such pass. Only
            a section's final placement gets this pass; placements and planes are compared without it.
    """

    module: nn.Module | None
    image_shape: tuple[int, int]
    origin: Mapping[str, Any]
    calibration: Calibration | None = None
    last_pass: FinePassNet | None = None

    @cached_property
    def one_sided(self) -> nn.Module | None:
        """The network for second opinions, which takes half the time; see `expected_error.one_sided`."""
        return None if self.module is None else one_sided(self.module)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        image_shape: Sequence[int] | None = None,
        device: str = "auto",
        allow: Collection[str] = (),
    ) -> "TrainedNetwork":
        """Load a network.

        Args:
            model: A model file, a model folder or a checkpoint; None means the network that comes with the package, and
                "none" means no network.
            image_shape: The (H, W) of its input; None means the size used in training.
            device: auto, cpu, cuda, …; auto takes a GPU if there is one.
            allow: Importable names of your own network classes that the file may use.

        Raises:
            InputError: If the file holds no network, or does not record the size of its input and none is given.
        """
        is_none = str(model) == NONE
        path = SHIPPED_MODEL if model is None or is_none else Path(model)
        shape = image_shape or read_origin(path).image_shape
        if shape is None:
            raise InputError(
                f"{path}: the model does not record its image size: give one (--image-shape HEIGHT WIDTH)"
            )
        shape = checked_shape("image_shape", shape, bytes_a_pixel=OF_NETWORK)
        if is_none:
            return cls(None, shape, {"model": NONE, "model_sha256": None, "image_shape": list(shape)})
        where = chosen_device(device)
        network = load_model(path, allow=allow).to(where).to(memory_format=fastest_memory_format(where))
        module, last_pass = passes_of(network)
        seen = shape if last_pass is None else last_pass.coarse_shape(shape)
        weights = fingerprint(path)
        origin = {"model": path.name, "model_sha256": weights, "image_shape": list(shape)}
        # A calibration is valid only at the size used in training.
        calibration = None if image_shape else SHIPPED.get(weights)
        return cls(module, seen, origin, calibration, last_pass)


def passes_of(network: nn.Module) -> tuple[nn.Module, FinePassNet | None]:
    """Return the network that finds a field, and the network of the last pass, which corrects it; None without one."""
    return (network.coarse, network) if isinstance(network, FinePassNet) else (network, None)
