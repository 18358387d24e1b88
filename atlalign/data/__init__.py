"""Batches for training from an h5 data set: the form of the file, data modules, and intensity augmenters."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlalign.data.augmenters import augmenter_1, kornia_1
    from atlalign.data.datamodule import RegistrationDataModule
    from atlalign.data.dataset import RegistrationBatch, RegistrationDataset
    from atlalign.data.demo import DemoDataModule
    from atlalign.data.schema import create, validate

__all__ = [
    "DemoDataModule",
    "RegistrationBatch",
    "RegistrationDataModule",
    "RegistrationDataset",
    "augmenter_1",
    "create",
    "kornia_1",
    "validate",
]

_MODULES = {
    "augmenter_1": "augmenters",
    "kornia_1": "augmenters",
    "RegistrationDataModule": "datamodule",
    "RegistrationBatch": "dataset",
    "RegistrationDataset": "dataset",
    "DemoDataModule": "demo",
    "create": "schema",
    "validate": "schema",
}


def __getattr__(name: str) -> Any:
    """Import a public name only when it is used, because it may import Lightning or albumentations."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
