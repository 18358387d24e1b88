"""The versions of what numbers depend on, and on which packages they do."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from atlalign import __version__

OF_RUNS = (
    "atlalign", "torch", "torchvision", "pytorch-lightning", "hydra-core", "h5py", "kornia", "lpips",
    "albumentations", "numpy", "scipy", "SimpleITK",
)  # fmt: skip
"""What the numbers of a training or an evaluation depend on."""

OF_DATA_SETS = ("atlalign", "torch", "kornia", "h5py", "numpy")
"""What the bytes of a generated data set depend on. They stand in it in this order: its bytes depend on that, too."""


def versions(packages: Sequence[str] = OF_RUNS) -> dict[str, str | None]:
    """Return the versions of Python and of packages; None for what is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    if package == "atlalign":  # on the index, this name is another package's
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None
