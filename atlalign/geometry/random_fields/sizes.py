"""Sizes of random displacements: a mean and a largest one, as fractions of the width."""

from collections.abc import Sequence

import torch
from torch import Tensor

from atlalign.errors import check_finite_numbers, check_range

# A number, or a range (lowest, highest) from which each field's value is drawn uniformly.
Size = float | Sequence[float]


def draw_sizes(
    mean_fraction: Size | None,
    largest_fraction: Size | None,
    batch_size: int,
    generator: torch.Generator | None,
) -> list[Tensor]:
    """Return the mean and the largest size, each (B, 1, 1, 1), drawn if a range is given."""
    sizes = []
    for size in (mean_fraction or 0.0, largest_fraction or 0.0):
        low, high = size if isinstance(size, Sequence) else (size, size)
        share = torch.rand(batch_size, 1, 1, 1, generator=generator) if low < high else torch.zeros(())
        sizes.append(torch.lerp(torch.full((batch_size, 1, 1, 1), low), torch.tensor(float(high)), share))
    return sizes


def share_reached(dvf: Tensor, width: float, mean_fraction: Tensor, largest_fraction: Tensor) -> Tensor:
    """Return (B, 1, 1, 1): actual over requested displacement, the smaller ratio of mean and largest."""
    displacement = dvf.square().sum(1).sqrt().flatten(1) / width
    mean, largest = (size.view(-1, 1, 1, 1) for size in (displacement.mean(1), displacement.amax(1)))
    # A size of 0 asks for nothing; a field without any size shrinks to a millionth of the width.
    return torch.minimum(mean / mean_fraction.clamp(min=1e-6), largest / largest_fraction.clamp(min=1e-6))


def check_sizes(mean_fraction: Size | None, largest_fraction: Size | None) -> None:
    """Check that each size is a number of at least 0, or a range within 0 to 1."""
    for name, size in (("mean_fraction", mean_fraction), ("largest_fraction", largest_fraction)):
        if isinstance(size, Sequence):
            check_range(size, name=name, lowest=0, highest=1)
        elif size is not None:
            check_at_least(0.0, **{name: size})


def check_at_least(least: float, **values: float) -> None:
    """Check that each named value is a finite number ≥ `least`."""
    check_finite_numbers(values, dict.fromkeys(values, least))
