"""Models as files: saved, loaded, merged, imported and exported."""

from pathlib import Path

from atlalign.models.model_file import (
    ModelOrigin,
    common_origin,
    load_model,
    merge_global_local,
    read_origin,
    save_model,
)

__all__ = [
    "SHIPPED_MODEL",
    "ModelOrigin",
    "common_origin",
    "load_model",
    "merge_global_local",
    "read_origin",
    "save_model",
]

SHIPPED_MODEL = Path(__file__).parents[1] / "weights" / "real_sections.safetensors"
"""The network that comes with the package; README.md beside it says what it can do."""
