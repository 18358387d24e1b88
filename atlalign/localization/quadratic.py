"""The peak of a function known at a few points, found by a quadratic fit."""

from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from atlalign.io.pixels import Floats

_FLAT = 1e-4  # a curvature that does not fall is treated as nearly flat


def design(n: int) -> Floats:
    """Return points in n dimensions that determine a quadratic: the centre and the middles of a cube's edges.

    Box and Behnken, *Some new three level designs for the study of quantitative variables*, Technometrics 1960.
    """
    points = [np.zeros(n)]
    for first, second in combinations(range(n), 2):
        for signs in product((-1.0, 1.0), repeat=2):
            point = np.zeros(n)
            point[[first, second]] = signs
            points.append(point)
    return np.array(points)


class Quadratic(NamedTuple):
    """A function f(x) = c + g·x + x·H·x / 2.

    Attributes:
        gradient: g, (n,).
        curvature: H, (n, n), negative definite.
    """

    gradient: Floats
    curvature: Floats

    @classmethod
    def through(cls, points: Floats, values: Floats) -> "Quadratic":
        """Return the function nearest to values (N,) at points (N, n), with a curvature that has a peak."""
        n = points.shape[1]
        pairs = list(combinations(range(n), 2))
        mixed = np.stack([points[:, i] * points[:, j] for i, j in pairs], axis=1)
        terms = np.column_stack([np.ones(len(points)), points, points**2 / 2, mixed])
        found: Floats = np.linalg.lstsq(terms, values, rcond=None)[0].astype(np.float64)
        curvature = np.diag(found[1 + n : 1 + 2 * n])
        for (i, j), value in zip(pairs, found[1 + 2 * n :], strict=True):
            curvature[i, j] = curvature[j, i] = value
        eigenvalues, vectors = np.linalg.eigh(curvature)
        bent: Floats = (vectors * np.minimum(eigenvalues, -_FLAT)) @ vectors.T
        return cls(found[1 : 1 + n], bent)

    @classmethod
    def of_parts(cls, points: Floats, directions: Floats, values: Floats) -> "Quadratic":
        """Return the sum of parts that each depend on one direction alone.

        Each part is the parabola nearest to values[:, c] over points (N, n) @ directions[c]; it has a peak, or is flat.
        """
        gradient, curvature = np.zeros(points.shape[1]), np.zeros((points.shape[1],) * 2)
        for direction, own in zip(directions, values.T, strict=True):
            along = points @ direction
            terms = np.column_stack([np.ones(len(along)), along, along**2 / 2])
            _, slope, bend = np.linalg.lstsq(terms, own, rcond=None)[0]
            gradient += slope * direction
            curvature += min(float(bend), 0.0) * np.outer(direction, direction)
        return cls(gradient, curvature)

    def plus(self, other: "Quadratic") -> "Quadratic":
        """Return the sum of both functions, up to a constant."""
        return Quadratic(self.gradient + other.gradient, self.curvature + other.curvature)

    def with_prior(self, centre: Floats, precision: Floats) -> "Quadratic":
        """Return the function minus precision (n,) · (x − centre)² / 2."""
        return Quadratic(self.gradient + precision * centre, self.curvature - np.diag(precision))

    @property
    def peak(self) -> Floats:
        """The position of the maximum."""
        return np.asarray(np.linalg.solve(-self.curvature, self.gradient))

    @property
    def variances(self) -> Floats:
        """The variances (n,) of a normal distribution whose logarithm is this function."""
        return np.diag(np.linalg.inv(-self.curvature))
