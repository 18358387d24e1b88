"""A kind of random field: its parameters are drawn once and can be applied repeatedly."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atlalign.geometry.dvf import compose, grid_shape


class FieldPair(NamedTuple):
    """A batch of fields and their inverses.

    Attributes:
        dvf: (B, 2, H, W) in pixels, the fields.
        inverse: (B, 2, H, W) in pixels, their inverses.
    """

    dvf: Tensor
    inverse: Tensor


class RandomField(ABC):
    """A kind of random field.

    The parameters are a NamedTuple of tensors, each with the batch as its first axis. A field's parameters do not
    depend on how they are applied, and a field does not depend on the rest of its batch.
    """

    @abstractmethod
    def draw(self, images: Tensor, *, generator: torch.Generator | None = None) -> Any:
        """Return random parameters for images (B, 1, H, W) in [0, 1], drawn by a generator on the CPU.

        Raises:
            TooFewEdgesError: If an image has too few edges for the points to be drawn.
        """

    @abstractmethod
    def after(self, before: Tensor, drawn: Any) -> Tensor:
        """Return `compose(outer=before, inner=m)` with the drawn fields m, (B, 2, H, W) in pixels."""


class InvertibleField(RandomField):
    """A kind of random field with a known inverse."""

    def after(self, before: Tensor, drawn: Any) -> Tensor:
        """Return the composition."""
        return compose(before, self.apply(drawn, grid_shape(before)))

    @abstractmethod
    def apply(self, drawn: Any, shape: tuple[int, int]) -> Tensor:
        """Return the fields (B, 2, H, W) in pixels of the drawn parameters."""

    @abstractmethod
    def pair(self, drawn: Any, shape: tuple[int, int]) -> FieldPair:
        """Return the fields of the drawn parameters and their inverses."""
