"""The compared methods by name, and their fields, which are stored in a folder."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atlalign.data.dataset import RegistrationBatch
from atlalign.errors import unknown_name
from atlalign.evaluation.methods import baseline
from atlalign.geometry import identity_grid
from atlalign.io.files import written_whole
from atlalign.models import load_model
from atlalign.networks.memory_format import fastest_memory_format
from atlalign.registration.network import TrainedNetwork
from atlalign.registration.options import Placing
from atlalign.registration.placement import place
from atlalign.registration.register import register
from atlalign.registration.section import Section
from pairs import Pair

METHODS = {
    "identity": "not anchored",
    "anchoring": "anchoring only",
    "ants_affine": "ANTs affine",
    "ants_syn": "ANTs SyN",
    "ants_syncc": "ANTs SyN, cross-correlation",
    "elastix": "elastix affine + B-spline",
    "ours": "ours",
    "ours_refined": "ours, refined",
}
YARDSTICK = "ants_syn"


class Found(NamedTuple):
    """A field (1, 2, H, W) in pixels of the pair's grid, and the time that it took."""

    dvf: Tensor
    seconds: float


Method = Callable[[Pair], Found]


def placing(method: str) -> Placing:
    """Return the placement of sections for a method: `identity` shows them without their anchoring."""
    return "stretch" if method == "identity" else "auto"


def nothing(pair: Pair) -> Found:
    """Leave a section where it is."""
    return Found(torch.zeros(1, 2, *pair.reference.grid.shape), 0.0)


def classical(name: str) -> Method:
    """Return a baseline of `evaluate.py`."""
    method = baseline(name)

    def run(pair: Pair) -> Found:
        unknown = torch.zeros(1, 2, *pair.reference.grid.shape)
        ids = [torch.zeros(1)] * 3
        found = method(RegistrationBatch(pair.reference.image, pair.moving, pair.moving, unknown, None, *ids))
        assert found.seconds is not None
        return Found(found.dvf, found.seconds)

    return run


def ours(model: Path, refine: int) -> Method:
    """Return what `atlalign register` does with a section, at the size of the model's own images.

    The time covers all of `register`: the network in both directions, the field, its inverse and the quality measures.
    """
    shape = TrainedNetwork.load(model, device="cpu").image_shape
    network = load_model(model).to(memory_format=fastest_memory_format(torch.device("cpu")))

    def run(pair: Pair) -> Found:
        grid, reference = pair.reference.grid, pair.reference_at(shape)
        section = Section(pair.moving[0, 0], (1.0, 1.0), grid.shape, grid.pixel_um, "dark")
        placement = place(section, reference, by="stretch")
        started = time.perf_counter()
        found = register(
            network,
            reference,
            section,
            placement,
            refine=refine,
        )
        seconds = time.perf_counter() - started
        pixels = identity_grid(grid.shape, torch.float64, torch.device("cpu"))[0].flatten(1).T.numpy()
        moved = found.transform.to_section(grid.to_mm(pixels)) - pixels
        return Found(torch.from_numpy(moved.T.reshape(1, 2, *grid.shape)).float(), seconds)

    return run


def make_methods(names: Sequence[str], model: Path, steps: int) -> dict[str, Method]:
    """Return the methods with these names, in the order of `METHODS`."""
    makers: dict[str, Callable[[], Method]] = {
        "identity": lambda: nothing,
        "anchoring": lambda: nothing,
        "ours": partial(ours, model, 0),
        "ours_refined": partial(ours, model, steps),
    }
    for name in names:
        if name not in METHODS:
            raise unknown_name("method", name, METHODS)
    return {name: makers.get(name, partial(classical, name))() for name in METHODS if name in names}


class Kept:
    """Methods whose fields are stored in a folder, keyed by the images and their other inputs.

    Args:
        methods: By name.
        folder: The folder of the fields.
        made_with: Inputs of a method's fields besides the images.
        again: Methods whose stored fields are not reused.
    """

    def __init__(
        self, methods: Mapping[str, Method], folder: Path, made_with: Mapping[str, str], again: Sequence[str]
    ) -> None:
        self.methods = methods
        self.folder = folder
        self.made_with = made_with
        self.again = set(again)
        self._made: set[Path] = set()

    def __call__(self, name: str, pair: Pair) -> Found:
        """Return a method's field, stored or computed."""
        path = self._path(name, pair)
        if not path.exists() or (name in self.again and path not in self._made):
            found = self.methods[name](pair)
            with written_whole(path) as unfinished:
                np.savez_compressed(unfinished, dvf=found.dvf.numpy(), seconds=found.seconds)
            self._made.add(path)
        with np.load(path) as kept:
            return Found(torch.from_numpy(kept["dvf"]), float(kept["seconds"]))

    def _path(self, name: str, pair: Pair) -> Path:
        of_all = hashlib.sha256(self.made_with.get(name, "").encode())
        for image in (pair.reference.image, pair.moving):
            of_all.update(image.contiguous().numpy().tobytes())
        return self.folder / f"{pair.name}-{name}-{of_all.hexdigest()[:12]}.npz"
