"""Supervised registration of 2D brain sections to an atlas."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlalign.displacement_field import DisplacementField

__all__ = ["DisplacementField", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import DisplacementField only when it is used, because it imports torch."""
    if name == "DisplacementField":
        from atlalign.displacement_field import DisplacementField

        return DisplacementField
    raise AttributeError(f"module 'atlalign' has no attribute '{name}'")
