"""Registering sections with a trained network: where they lie, the maps to files, batches, and what others read."""

from atlalign.registration.batch import Outcome, register_batch
from atlalign.registration.jobs import Job, find_jobs
from atlalign.registration.recipe import (
    Options,
    Recipe,
    RegisteredSection,
    atlas_recipe,
    image_recipe,
    register_section,
)
from atlalign.registration.transform import SectionTransform

__all__ = [
    "Job",
    "Options",
    "Outcome",
    "Recipe",
    "RegisteredSection",
    "SectionTransform",
    "atlas_recipe",
    "find_jobs",
    "image_recipe",
    "register_batch",
    "register_section",
]
