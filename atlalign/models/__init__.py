"""Models as files: saved, loaded, merged, imported and exported."""

from atlalign.models.model_file import (
    ModelOrigin,
    common_origin,
    load_model,
    merge_global_local,
    read_origin,
    save_model,
)

__all__ = ["ModelOrigin", "common_origin", "load_model", "merge_global_local", "read_origin", "save_model"]
