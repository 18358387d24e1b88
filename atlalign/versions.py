"""The versions of Python and of the packages that numerical results depend on."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from atlalign import __version__

OF_RUNS = (
    "atlalign", "torch", "torchvision", "pytorch-lightning", "hydra-core", "h5py", "kornia", "lpips",
    "albumentations", "numpy", "scipy", "SimpleITK",
)  # fmt: skip
"""Packages that the numbers of a training or an evaluation depend on."""

OF_DATA_SETS = ("atlalign", "torch", "kornia", "h5py", "numpy")
"""Packages that the bytes of a generated data set depend on. Their order matters, because the file stores it."""


def versions(packages: Sequence[str] = OF_RUNS) -> dict[str, str | None]:
    """Return the versions of Python and of packages; None for a package that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    if package == "atlalign":  # on the package index, this name belongs to another package
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None
