"""Models as files: saved, loaded, merged, imported and exported."""

from atlalign.models.model_file import (
    SHIPPED_MODEL,
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
