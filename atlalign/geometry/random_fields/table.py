"""The one table of random fields, and the choice of one of several."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from atlalign.errors import InputError, check_finite_numbers, unknown_name
from atlalign.geometry.random_fields.affine import Affine
from atlalign.geometry.random_fields.affine_smooth import AffineSmooth
from atlalign.geometry.random_fields.kinds import InvertibleField, RandomField
from atlalign.geometry.random_fields.smooth import Smooth
from atlalign.geometry.random_fields.stretching import EdgeStretching, Stretching


class Mix(RandomField):
    """One of several kinds, chosen at random for each batch.

    Args:
        parts: The kinds by name.
        weights: The relative frequency of each kind, by the same names.
    """

    def __init__(self, *, parts: Mapping[str, RandomField], weights: Mapping[str, float]) -> None:
        if set(parts) != set(weights):
            raise InputError(
                f"weights: expected one weight for each part ({', '.join(parts)}), got weights for {', '.join(weights)}"
            )
        named = {f"weights.{name}": weights[name] for name in parts}
        check_finite_numbers(named, dict.fromkeys(named, 0.0))
        values = [float(weights[name]) for name in parts]
        if sum(values) == 0:
            raise InputError(f"weights: expected at least one above 0, got {values}")
        self._parts = list(parts.values())
        self._weights = torch.tensor(values)

    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[RandomField, Any]:
        """Return the chosen kind with its parameters."""
        chosen = self._parts[int(torch.multinomial(self._weights, 1, generator=generator))]
        return chosen, chosen.draw(images, generator=generator)

    def after(self, before: Tensor, drawn: tuple[RandomField, Any]) -> Tensor:
        """Return the composition of the chosen kind."""
        chosen, parameters = drawn
        return chosen.after(before, parameters)


RANDOM_FIELDS: dict[str, type[RandomField]] = {
    "affine": Affine,
    "smooth": Smooth,
    "affine_smooth": AffineSmooth,
    "control_points": Stretching,
    "edge_stretching": EdgeStretching,
    "mix": Mix,
}


INVERTIBLE_FIELDS: dict[str, type[Affine | Smooth]] = {
    name: kind for name, kind in RANDOM_FIELDS.items() if issubclass(kind, Affine | Smooth)
}


def invertible_field(name: str, **options: Any) -> InvertibleField:
    """Return the random field `name`; options that its class lacks are ignored.

    Raises:
        InputError: If there is no such kind, or it has no exact inverse.
    """
    if name not in INVERTIBLE_FIELDS:
        raise unknown_name("deformation", name, INVERTIBLE_FIELDS)
    kind = INVERTIBLE_FIELDS[name]
    return kind(**{key: options[key] for key in options.keys() & {item.name for item in fields(kind)}})
