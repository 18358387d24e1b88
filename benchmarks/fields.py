"""Rows for fields: inverses, generated samples and samples drawn while training, beside the earlier scipy methods."""

from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import LinearNDInterpolator, Rbf
from scipy.ndimage import map_coordinates
from torch import Tensor

from atlalign.atlas.atlas import phantom_atlas
from atlalign.data.dataset import RegistrationBatch
from atlalign.geometry import (
    compose,
    control_points,
    draw_control_points,
    identity_grid,
    invert,
)
from atlalign.geometry.random_fields import Affine, EdgeStretching
from atlalign.geometry.scattered import anchor_points, corners
from atlalign.networks import LocalUNet
from atlalign.synthesis.contrast import draw_contrast
from atlalign.synthesis.online import OnlineDataModule
from atlalign.synthesis.parts import one_thread
from atlalign.synthesis.samples import SampleRecipe, make_sample
from atlalign.synthesis.sources import AnnotatedSource
from benchmarks.loading import data_module
from benchmarks.measure import Measured, Size, in_turns, scratch
from benchmarks.networks import smooth_fields, stepper

Array = NDArray[Any]


# --- earlier methods, with scipy --------------------------------------------------------------------------------------


def scattered_inverse(dvf: Array, every: int = 8) -> Array:
    """Return the inverse of a field (2, H, W) from every eighth displaced pixel; NaN outside of their hull."""
    y, x = np.mgrid[: dvf.shape[1], : dvf.shape[2]]
    points = np.stack([x + dvf[0], y + dvf[1]], axis=-1).reshape(-1, 2)[::every]
    components = [LinearNDInterpolator(points, -component.ravel()[::every])(x, y) for component in dvf]
    return np.stack(components).astype(np.float32)


def scipy_compose(outer: Array, inner: Array) -> Array:
    """Return the composition of two fields (2, H, W)."""
    y, x = np.mgrid[: inner.shape[1], : inner.shape[2]]
    points = np.stack([y + inner[1], x + inner[0]])
    return np.stack([map_coordinates(part, points, order=1, mode="nearest") for part in outer]) + inner


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
    values = [map_coordinates(component, np.stack([y, x]), order=1) for component in dvf]
    return scipy_rbf(points, np.stack(values, axis=1), shape)


def scipy_sample(moving: Array, dvf: Array, generator: torch.Generator) -> tuple[Array, Array, Array]:
    """Return an image with both of its fields, made from an annotated sample as the predecessor did.

    The field to the registered image is inverted (only the finite part is used), composed with an edge stretching and
    anchored. The result is inverted again.
    """
    shape = (moving.shape[0], moving.shape[1])
    points, displacements = draw_control_points(1, shape, radius_max=60, generator=generator)
    stretched = 0.7 * scipy_rbf(points[0].numpy(), displacements[0].numpy(), shape)
    before = np.nan_to_num(scattered_inverse(dvf))
    overall = scipy_anchor(scipy_compose(before, stretched))
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = map_coordinates(moving, np.stack([y + stretched[1], x + stretched[0]]), order=1)
    return image, scattered_inverse(overall), overall


# --- rows -------------------------------------------------------------------------------------------------------------


def kinds_of_fields(shape: tuple[int, int]) -> Tensor:
    """Return fields (5, 2, H, W) of the kinds that occur in registration and augmentation, up to 30 px large."""
    generator = torch.Generator().manual_seed(1)
    scale = shape[1] / 456
    large = Affine(mean_fraction=0.02, largest_fraction=30 / 456)
    affine = large.apply(large.draw(torch.empty(1, 1, *shape), generator=generator), shape)
    smooth = smooth_fields(1, shape, 15 * scale)
    points = draw_control_points(1, shape, radius_max=30 * scale, generator=generator)
    return torch.cat([smooth / 2, 2 * smooth, affine, compose(affine, smooth), control_points(points, shape)])


def inverting(size: Size) -> Measured:
    """Compare the inverses of five kinds of fields; the remark gives the residuals of both methods."""
    dvf = kinds_of_fields(size.shape)
    arrays = dvf.numpy()
    before = torch.from_numpy(np.stack([scattered_inverse(array) for array in arrays]))
    turns = in_turns(lambda: invert(dvf), lambda: [scattered_inverse(array) for array in arrays], size)
    return Measured(turns.times_as_fast(), turns, f"residual {_residuals(dvf, invert(dvf), before)}")


def _residuals(dvf: Tensor, inverse: Tensor, other: Tensor) -> str:
    """Return the mean |v(q) + dvf(q + v(q))| of two inverses, over all q that both define and map inside the image."""
    height, width = dvf.shape[-2:]
    target = identity_grid((height, width), dvf.dtype, dvf.device) + inverse
    limit = torch.tensor([width - 1, height - 1]).view(1, 2, 1, 1)
    counted = ((target >= 0) & (target <= limit) & other.isfinite()).all(dim=1)
    means = [compose(dvf, candidate).norm(dim=1)[counted].mean() for candidate in (inverse, other)]
    return " and ".join(f"{mean:.1e}" for mean in means) + " px"


def generating(size: Size) -> Measured:
    """Compare samples that generate.py makes from an annotated one, with all checks, on one thread as in use."""
    with scratch() as folder:
        path = data_module(folder, size).path
        recipe = SampleRecipe(
            source=AnnotatedSource(path, image_shape=size.shape),
            deformation=EdgeStretching(),
            per_original=10,
            max_trials=5,
            max_corrupted_pixels=500,
            max_difference=0.01,
            seed=0,
        )
        with h5py.File(path, "r") as file:
            moving = file["img"][0].astype(np.float32) / 255
            dvf = file["deltas_xy"][0].astype(np.float32).transpose(2, 0, 1)
        numbers = iter(range(10**9))
        generator = torch.Generator().manual_seed(0)
        with one_thread():
            turns = in_turns(
                lambda: make_sample(recipe, 0, next(numbers)),
                lambda: scipy_sample(moving, dvf, generator),
                size,
            )
    return Measured(turns.times_as_fast(), turns, " and ".join(f"{min(times):.3g} s" for times in turns))


def online(size: Size) -> Measured:
    """Compare batches drawn while training, of the slowest kind, with a training step on such a batch."""
    module = online_module(size, batch_size=4)
    batches = iter(module.train_dataloader())

    def make() -> RegistrationBatch:
        return module.complete(next(batches))

    network = LocalUNet().to(memory_format=torch.channels_last)
    turns = in_turns(make, stepper(network, make()), size)
    return Measured(turns.times_as_long(), turns, " and ".join(f"{min(times):.3g} s" for times in turns))


def online_module(size: Size, **options: Any) -> OnlineDataModule:
    """Return the data module of `data=online` with its slowest deformation."""
    atlas = phantom_atlas(image_shape=size.shape, spacing_um=1100.0)
    options = {"deformation": "affine_smooth", "contrast": draw_contrast, "n_val_blocks": 1, **options}
    module = OnlineDataModule(atlas=atlas, image_shape=size.shape, **options)
    module.setup()
    return module
