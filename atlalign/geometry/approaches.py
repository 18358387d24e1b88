"""Fields of named kinds, made from a user's numbers and arrays."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from atlalign.errors import InputError, checked_shape, unknown_name
from atlalign.geometry.dvf import affine_to_dvf
from atlalign.geometry.maps import AffineSimple, affine_simple, projective
from atlalign.geometry.random_fields import ControlPoints, control_points, draw_edge_stretching, smooth_field
from atlalign.geometry.scattered import GriddataMethod, RbfFunction, corners, interpolate_griddata, with_zeros

Shape = tuple[int, int]
ControlPointMethod = Literal["rbf", "griddata"]


def _identity(shape: Shape) -> Tensor:
    return torch.zeros(1, 2, *shape)


def _affine(shape: Shape, *, matrix: ArrayLike) -> Tensor:
    return field_of_matrix(np.asarray(matrix, dtype=np.float64), shape)[None]


def _affine_simple(
    shape: Shape,
    *,
    scale_x: float = 1,
    scale_y: float = 1,
    rotation: float = 0,
    translation_x: float = 0,
    translation_y: float = 0,
    shear: float = 0,
    apply_centering: bool = True,
) -> Tensor:
    values = (scale_x, scale_y, rotation, translation_x, translation_y, shear)
    parameters = AffineSimple(*(torch.tensor([float(value)]) for value in values))
    return affine_simple(parameters, shape, apply_centering=apply_centering)


def _control_points(
    shape: Shape,
    *,
    points: ArrayLike,
    values_delta_x: ArrayLike,
    values_delta_y: ArrayLike,
    interpolation_method: ControlPointMethod = "rbf",
    **options: Any,
) -> Tensor:
    arrays = [np.asarray(values, dtype=np.float32) for values in (points, values_delta_x, values_delta_y)]
    n = len(arrays[0])
    if [array.shape for array in arrays] != [(n, 2), (n,), (n,)]:
        raise InputError(
            "control points: expected points (N, 2), values_delta_x (N,) and values_delta_y (N,), got "
            + ", ".join(str(array.shape) for array in arrays)
        )
    rows_columns, x, y = map(torch.from_numpy, arrays)
    parameters = ControlPoints(rows_columns.flip(-1)[None], torch.stack([x, y], dim=-1)[None])
    return _interpolated(parameters, shape, interpolation_method, **options)


def _edge_stretching(
    shape: Shape,
    *,
    edge_mask: NDArray[np.bool_],
    n_points: int = 6,
    radius_max: float = 60,
    seed: int | None = None,
    interpolation_method: ControlPointMethod = "rbf",
    **options: Any,
) -> Tensor:
    mask = np.asarray(edge_mask, dtype=np.bool_)
    if mask.shape != tuple(shape):
        raise InputError(f"edge_mask: expected the field's shape {tuple(shape)}, got {mask.shape}")
    parameters = draw_edge_stretching(
        torch.from_numpy(mask)[None], n_points=n_points, radius_max=radius_max, generator=_generator(seed)
    )
    return _interpolated(parameters, shape, interpolation_method, **options)


def _projective(shape: Shape, *, matrix: ArrayLike) -> Tensor:
    return projective(torch.as_tensor(np.asarray(matrix, dtype=np.float64))[None], shape)


def _smooth(
    shape: Shape,
    *,
    mean_fraction: float = 0.02,
    largest_fraction: float = 0.06,
    spacing: float = 0.15,
    seed: int | None = None,
) -> Tensor:
    pair = smooth_field(
        1,
        shape,
        mean_fraction=mean_fraction,
        largest_fraction=largest_fraction,
        spacing=spacing,
        generator=_generator(seed),
    )
    return pair.dvf


_APPROACHES: dict[str, Callable[..., Tensor]] = {
    "identity": _identity,
    "affine": _affine,
    "affine_simple": _affine_simple,
    "projective": _projective,
    "control_points": _control_points,
    "edge_stretching": _edge_stretching,
    "smooth": _smooth,
}


def field_by_approach(shape: Shape, approach: str, parameters: Mapping[str, Any]) -> Tensor:
    """Return a field (1, 2, H, W) of the named kind; `DisplacementField.generate` has the table of parameters.

    Raises:
        InputError: If the approach is unknown, or its parameters are invalid.
    """
    shape = checked_shape("shape", shape)
    if approach not in _APPROACHES:
        raise unknown_name("approach", approach, _APPROACHES)
    return _called(_APPROACHES, approach, shape, options=parameters)


def _rbf(
    parameters: ControlPoints, shape: Shape, *, function: RbfFunction = "linear", smooth: float = 0
) -> Tensor:
    return control_points(parameters, shape, function=function, smooth=smooth)


def _griddata(parameters: ControlPoints, shape: Shape, *, method: GriddataMethod = "linear") -> Tensor:
    return interpolate_griddata(*with_zeros(*parameters, corners(shape)), shape, method=method)


_INTERPOLATIONS: dict[str, Callable[..., Tensor]] = {"rbf": _rbf, "griddata": _griddata}


def _interpolated(
    parameters: ControlPoints, shape: Shape, interpolation_method: str, **options: Any
) -> Tensor:
    if interpolation_method not in _INTERPOLATIONS:
        raise unknown_name("interpolation method", interpolation_method, _INTERPOLATIONS)
    return _called(_INTERPOLATIONS, interpolation_method, parameters, shape, options=options)


def _called(
    makers: Mapping[str, Callable[..., Tensor]], name: str, *given: Any, options: Mapping[str, Any]
) -> Tensor:
    """Return the result of the named maker, after a check that its options are complete and known."""
    has = inspect.getfullargspec(makers[name])
    for option in options:
        if option not in has.kwonlyargs and not has.varkw:
            raise unknown_name(f"parameter of {name}", option, has.kwonlyargs)
    needed = [key for key in has.kwonlyargs if key not in options and key not in (has.kwonlydefaults or {})]
    if needed:
        raise InputError(f"{name}: expected the parameters {', '.join(needed)}, which are missing")
    return makers[name](*given, **options)


def field_of_matrix(matrix: NDArray[np.float64], shape: Shape) -> Tensor:
    """Return the field (2, H, W) of an affine matrix (2, 3) or a projective one (3, 3)."""
    if matrix.shape == (2, 3):
        return affine_to_dvf(torch.from_numpy(matrix)[None], shape)[0]
    if matrix.shape == (3, 3):
        return projective(torch.from_numpy(matrix)[None], shape)[0]
    raise InputError(f"matrix: expected affine (2, 3) or projective (3, 3), got {matrix.shape}")


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)
