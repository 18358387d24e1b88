"""Times the geometry of displacement fields against scipy's way: `python benchmarks/geometry.py`.

The inverse is compared with scattered-data interpolation from every eighth pixel, which is how it was done before.
Wanted: at least 20 times as fast, at a smaller error.
"""

import argparse
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, Rbf
from scipy.ndimage import map_coordinates
from timing import Row, in_turns, print_table
from torch import Tensor

from atlalign.geometry import (
    ControlPoints,
    affine_map,
    affine_to_dvf,
    anchor,
    compose,
    control_points,
    draw_control_points,
    draw_velocity,
    identity_grid,
    integrate,
    invert,
    jacobian_determinant,
    warp,
)
from atlalign.geometry.scattered import anchor_points, corners

Array = NDArray[Any]
ScipyMode = Literal["grid-constant", "nearest"]


# --- scipy's way ------------------------------------------------------------------------------------------------------


def scattered_inverse(dvf: Array, every: int = 8) -> Array:
    """Return the inverse of a field (2, H, W) from every eighth displaced pixel; not-a-number outside of their hull."""
    y, x = np.mgrid[: dvf.shape[1], : dvf.shape[2]]
    points = np.stack([x + dvf[0], y + dvf[1]], axis=-1).reshape(-1, 2)[::every]
    components = [LinearNDInterpolator(points, -component.ravel()[::every])(x, y) for component in dvf]
    return np.stack(components).astype(np.float32)


def scipy_warp(image: Array, dvf: Array, mode: ScipyMode) -> Array:
    """Return image(q + dvf(q)) for one image (H, W)."""
    y, x = np.mgrid[: dvf.shape[1], : dvf.shape[2]]
    points = np.stack([y + dvf[1], x + dvf[0]])
    return np.asarray(map_coordinates(image, points, order=1, mode=mode))


def scipy_compose(outer: Array, inner: Array) -> Array:
    """Return the composition of two fields (2, H, W)."""
    return np.stack([scipy_warp(component, inner, "nearest") for component in outer]) + inner


def numpy_determinant(dvf: Array) -> Array:
    """Return det(I + ∇dvf) of a field (2, H, W)."""
    (x_along_y, x_along_x), (y_along_y, y_along_x) = np.gradient(dvf[0]), np.gradient(dvf[1])
    determinant: Array = (1 + x_along_x) * (1 + y_along_y) - x_along_y * y_along_x
    return determinant


def scipy_rbf(points: Array, displacements: Array, shape: tuple[int, int]) -> Array:
    """Return the field (2, H, W) of linear radial basis functions through points (N, 2) and the image's corners."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    nodes = np.concatenate([points, corners(shape).numpy()]).astype(np.float64)
    values = np.concatenate([displacements, np.zeros((4, 2))])
    return np.stack([Rbf(*nodes.T, component, function="linear")(x, y) for component in values.T])


def scipy_anchor(dvf: Array) -> Array:
    """Return the field (2, H, W) through a grid of its own values 50 px apart."""
    shape = (dvf.shape[1], dvf.shape[2])
    points = anchor_points(shape, 0.9, 0.9, 50, torch.device("cpu")).numpy()
    x, y = points.T
    displacements = np.stack(
        [map_coordinates(component, np.stack([y, x]), order=1) for component in dvf], axis=1
    )
    return scipy_rbf(points, displacements, shape)


# --- the fields -------------------------------------------------------------------------------------------------------


def smooth(shape: tuple[int, int], largest_px: float) -> Tensor:
    """Return a smooth field (1, 2, H, W) of about this largest displacement."""
    velocity = draw_velocity(1, shape, generator=torch.Generator().manual_seed(0))
    return integrate(velocity * largest_px / velocity.norm(dim=1).amax())


def fields(shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return fields (1, 2, H, W) of the kinds that registration and augmentation meet."""
    generator = torch.Generator().manual_seed(1)
    affine = affine_to_dvf(
        affine_map(1, shape, largest_fraction=30 / shape[1], generator=generator).matrix, shape
    )
    stretched = control_points(draw_control_points(1, shape, radius_max=30, generator=generator), shape)
    return {
        "smooth, 8 px": smooth(shape, 8),
        "smooth, 30 px": smooth(shape, 30),
        "affine, 30 px": affine,
        "affine after smooth": compose(affine, smooth(shape, 15)),
        "edge stretching, 30 px": stretched,
    }


# --- the tables -------------------------------------------------------------------------------------------------------


def residuals(dvf: Tensor, inverse: Tensor, other: Tensor) -> str:
    """Return mean and largest |v(q) + dvf(q + v(q))| of two inverses, over the q that both know and send inside."""
    height, width = dvf.shape[-2:]
    limit = torch.tensor([width - 1, height - 1]).view(1, 2, 1, 1).to(dvf)
    target = identity_grid((height, width), dvf.dtype, dvf.device) + inverse
    counted = ((target >= 0) & (target <= limit) & other.isfinite()).all(dim=1)
    errors = [compose(dvf, candidate).norm(dim=1)[counted] for candidate in (inverse, other)]
    return " against ".join(f"{error.mean():.1e} / {error.max():.1e}" for error in errors)


def inverse_rows(shape: tuple[int, int], device: str, repeats: int) -> list[Row]:
    """Return the times and residuals of the inverse of each kind of field."""
    rows = []
    for name, field in fields(shape).items():
        dvf, array = field.to(device), field[0].numpy()
        ours, other = in_turns(partial(invert, dvf), partial(scattered_inverse, array), repeats=repeats)
        note = residuals(dvf, invert(dvf), torch.from_numpy(scattered_inverse(array))[None].to(device))
        rows.append(Row(f"inverse: {name}", ours, "LinearND, every 8th pixel", other, note))
    batch = torch.cat([*fields(shape).values()] * 2)[:8]
    batch_there, arrays = batch.to(device), batch.numpy()
    ours, other = in_turns(
        lambda: invert(batch_there), lambda: [scattered_inverse(array) for array in arrays], repeats=repeats
    )
    return [*rows, Row("inverse: batch of 8", ours, "the same, one by one", other)]


def other_rows(shape: tuple[int, int], device: str, repeats: int) -> list[Row]:
    """Return the times of everything else."""
    dvf = smooth(shape, 15)
    image = torch.rand(1, 1, *shape)
    parameters = draw_control_points(1, shape, generator=torch.Generator().manual_seed(2))
    on_device, image_there = dvf.to(device), image.to(device)
    parameters_there = ControlPoints(*(part.to(device) for part in parameters))
    array, picture = dvf[0].numpy(), image[0, 0].numpy()
    points, displacements = (part[0].numpy() for part in parameters)
    pairs = {
        ("warp", "map_coordinates"): (
            lambda: warp(image_there, on_device),
            lambda: scipy_warp(picture, array, "grid-constant"),
        ),
        ("composition", "map_coordinates"): (
            lambda: compose(on_device, on_device),
            lambda: scipy_compose(array, array),
        ),
        ("Jacobian determinant", "numpy.gradient"): (
            lambda: jacobian_determinant(on_device),
            lambda: numpy_determinant(array),
        ),
        ("edge stretching, 6 points", "scipy Rbf"): (
            lambda: control_points(parameters_there, shape),
            lambda: scipy_rbf(points, displacements, shape),
        ),
        ("anchoring, ds_f 50", "scipy Rbf"): (lambda: anchor(on_device), lambda: scipy_anchor(array)),
    }
    rows = []
    for (what, name), (ours, other) in pairs.items():
        ours_ms, other_ms = in_turns(ours, other, repeats=repeats)
        rows.append(Row(what, ours_ms, name, other_ms))
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="where atlalign runs; scipy always runs on the CPU")
    parser.add_argument("--shape", type=int, nargs=2, default=(320, 456), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=5, help="turns for each row")
    arguments = parser.parse_args()
    shape = (arguments.shape[0], arguments.shape[1])
    where = f"{shape[0]}×{shape[1]}, {arguments.device}, {torch.get_num_threads()} torch threads, medians"
    print_table(
        f"Inverse: {where}; residuals (px): mean / largest where the point stays inside",
        inverse_rows(shape, arguments.device, arguments.repeats),
    )
    print_table(f"Other geometry: {where}", other_rows(shape, arguments.device, arguments.repeats))


if __name__ == "__main__":
    main()
