"""Register sections with a trained network: placement, maps, batches, and files for other programs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlalign.atlas.planes import Plane
    from atlalign.registration.batch import Outcome, register_batch
    from atlalign.registration.displacement import Displacement
    from atlalign.registration.grid import Grid
    from atlalign.registration.jobs import Job, find_jobs
    from atlalign.registration.options import Options
    from atlalign.registration.placement import Placement
    from atlalign.registration.quality import Quality
    from atlalign.registration.recipe import Recipe, atlas_recipe, image_recipe
    from atlalign.registration.references import Reference
    from atlalign.registration.register import register_section
    from atlalign.registration.registered import Registered, RegisteredSection
    from atlalign.registration.transform import SectionTransform

__all__ = [
    "Displacement",
    "Grid",
    "Job",
    "Options",
    "Outcome",
    "Placement",
    "Plane",
    "Quality",
    "Recipe",
    "Reference",
    "Registered",
    "RegisteredSection",
    "SectionTransform",
    "atlas_recipe",
    "find_jobs",
    "image_recipe",
    "register_batch",
    "register_section",
]

_MODULES = ("options", "jobs", "transform", "recipe", "register", "batch")


def __getattr__(name: str) -> Any:
    """Import a public name, and thereby torch, only on first use: --help needs only the options."""
    if name in __all__:
        modules = (import_module(f"{__name__}.{module}") for module in _MODULES)
        return next(vars(module)[name] for module in modules if name in vars(module))
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
