"""A displacement field for interactive use, with the arrays, files, transforms and plots that belong to it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from atlalign import geometry
from atlalign.errors import InputError, check_numbers, checked_shape
from atlalign.geometry.approaches import Shape, field_by_approach, field_of_matrix
from atlalign.geometry.array_warp import BorderMode, Interpolation, warp_array
from atlalign.io.fields import read_field, write_field

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Transform = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[ArrayLike, ArrayLike]]


class DisplacementField:
    """An immutable displacement (delta_x, delta_y) in pixels for each pixel of an image.

    Fields map backward: `warp(image)(x, y) = image(x + delta_x(x, y), y + delta_y(x, y))`, with x along columns and y
    along rows. A positive delta_x moves the content to the left. In `a(b)`,
    points pass b first, and an image is warped by a first: `a(b).warp(image) = b.warp(a.warp(image))`, up to
    interpolation.

    Args:
        delta_x: (H, W) in pixels.
        delta_y: (H, W) in pixels.

    Raises:
        InputError: If the arrays differ in shape or are smaller than 2×2.

    Example:
        >>> field = DisplacementField(delta_x=np.ones((3, 5)), delta_y=np.zeros((3, 5)))
        >>> field.warp(np.arange(15).reshape(3, 5))[0]
        array([1, 2, 3, 4, 0])
    """

    # Otherwise a numpy number times a field would become an array of fields.
    __array_ufunc__ = None

    def __init__(self, delta_x: ArrayLike, delta_y: ArrayLike) -> None:
        x, y = (np.asarray(component, dtype=np.float32) for component in (delta_x, delta_y))
        if x.shape != y.shape or x.ndim != 2 or min(x.shape) < 2:
            raise InputError(
                "delta_x, delta_y: expected two arrays (H, W) of one shape, at least 2×2,"
                f" got {x.shape} and {y.shape}"
            )
        self._dvf = torch.from_numpy(np.stack([x, y])[None])

    def __repr__(self) -> str:
        return f"DisplacementField(shape={self.shape}, largest displacement {self.norm.max():.2f} px)"

    # --- creation -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_dvf(cls, dvf: Tensor) -> DisplacementField:
        """Return the field in a tensor (2, H, W), x first, such as one sample in a batch of `atlalign.geometry`."""
        if dvf.ndim != 3 or dvf.shape[0] != 2:
            raise InputError(f"dvf: expected (2, H, W), got {tuple(dvf.shape)}")
        return cls(*dvf.detach().cpu().float().numpy())

    @classmethod
    def from_transform(cls, transform: Transform | ArrayLike, shape: Shape) -> DisplacementField:
        """Return the displacement field of a map from pixel coordinates to pixel coordinates.

        Args:
            transform: A function of arrays x and y (H, W) that returns the new x and y, or a matrix: affine (2, 3), or
                projective (3, 3). Pixel (0, 0) is the origin.
            shape: (H, W).

        Raises:
            InputError: If a matrix has another shape, or its horizon crosses the grid.

        Example:
            >>> DisplacementField.from_transform(lambda x, y: (2 * x, y + 1), (3, 4)).delta_x[0]
            array([0., 1., 2., 3.], dtype=float32)
        """
        if not callable(transform):
            return cls.from_dvf(field_of_matrix(np.asarray(transform, dtype=np.float64), shape))
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
        new_x, new_y = (
            np.asarray(component, dtype=np.float64) for component in transform(x.copy(), y.copy())
        )
        return cls(new_x - x, new_y - y)

    @classmethod
    def from_file(cls, path: str | Path) -> DisplacementField:
        """Read a file that `save` has written, or an ITK displacement field from another program.

        ITK displacements are lengths in the frame of the image; its spacing and direction convert them to pixels.

        Raises:
            InputError: If the file is missing, damaged, of another type, not a 2D field, or not finite everywhere.
        """
        array = read_field(Path(path))
        return cls(array[..., 0], array[..., 1])

    @classmethod
    def generate(cls, shape: Shape, approach: str = "identity", **parameters: Any) -> DisplacementField:
        """Return a field of the named kind.

        | approach | parameters |
        |---|---|
        | identity | |
        | affine | matrix (2, 3) |
        | affine_simple | scale_x, scale_y, rotation, translation_x, translation_y, shear, apply_centering |
        | projective | matrix (3, 3) |
        | control_points | points (N, 2) as (row, col), values_delta_x, values_delta_y (N,); and those of both below |
        | edge_stretching | edge_mask (H, W), n_points, radius_max, seed; and those of both below |
        | both | interpolation_method: rbf (function: linear or thin_plate; smooth) or griddata (method) |
        | smooth | mean_fraction, largest_fraction, spacing, seed |

        Angles are in radians, lengths in pixels, and fractions refer to the width, as in `geometry.random_fields`.

        Raises:
            InputError: If the approach is unknown, or its parameters are invalid.

        Example:
            >>> DisplacementField.generate((40, 56), "affine_simple", translation_x=2, translation_y=1.5)
            DisplacementField(shape=(40, 56), largest displacement 2.50 px)
        """
        return cls.from_dvf(field_by_approach(shape, approach, parameters)[0])

    # --- properties ---------------------------------------------------------------------------------------------------

    @property
    def dvf(self) -> Tensor:
        """The field as a tensor (2, H, W), x first."""
        return self._dvf[0].clone()

    @property
    def delta_x(self) -> NDArray[np.float32]:
        """The displacement along columns (H, W) in pixels."""
        return _read_only(self._dvf[0, 0])

    @property
    def delta_y(self) -> NDArray[np.float32]:
        """The displacement along rows (H, W) in pixels."""
        return _read_only(self._dvf[0, 1])

    @property
    def shape(self) -> Shape:
        """The size (H, W) of the image."""
        return int(self._dvf.shape[-2]), int(self._dvf.shape[-1])

    @property
    def transformation(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The source position of each pixel: absolute x and y, both (H, W) in pixels."""
        x, y = self._target()[0]
        return _read_only(x), _read_only(y)

    @property
    def norm(self) -> NDArray[np.float32]:
        """The length of the displacement (H, W) in pixels."""
        return _read_only(self._dvf[0].square().sum(dim=0).sqrt())

    @property
    def jacobian(self) -> NDArray[np.float32]:
        """The determinant (H, W) of the map's Jacobian: the local change of area; the field folds where it is ≤ 0."""
        return _read_only(geometry.jacobian_determinant(self._dvf)[0])

    @property
    def outsiders(self) -> NDArray[np.bool_]:
        """The mask (H, W) of pixels whose source lies outside the image, beyond the centres of the outermost pixels."""
        x, y = self.transformation
        height, width = self.shape
        return (x < 0) | (x > width - 1) | (y < 0) | (y > height - 1)

    @property
    def is_valid(self) -> bool:
        """Whether all displacements are finite numbers."""
        return bool(self._dvf.isfinite().all())

    def summary(self) -> dict[str, float]:
        """Return key figures: displacements in pixels, determinants, and shares of all pixels."""
        return {
            "mean_displacement_px": float(self.norm.mean()),
            "largest_displacement_px": float(self.norm.max()),
            "smallest_jacobian": float(self.jacobian.min()),
            "largest_jacobian": float(self.jacobian.max()),
            "folded_share": float((self.jacobian <= 0).mean()),
            "outsider_share": float(self.outsiders.mean()),
        }

    # --- operations ---------------------------------------------------------------------------------------------------

    def warp(
        self,
        image: NDArray[Any],
        *,
        interpolation: Interpolation = "linear",
        border_mode: BorderMode = "constant",
    ) -> NDArray[Any]:
        """Return the warped image in the same data type; integers are rounded.

        Args:
            image: (H, W).
            interpolation: Linear, nearest or cubic.
            border_mode: The values beyond the border: 0 (constant), those of the border (replicate), or the image
                mirrored at the outer edge (reflect) or the centre (reflect_101) of the outermost pixels.

        Raises:
            InputError: If the image has another shape, a name is unknown, or displacements are not finite.
        """
        self._check_finite("warp")
        image = self._checked(image, "image")
        return warp_array(image, self._dvf, interpolation=interpolation, border_mode=border_mode)

    def warp_annotation(self, annotation: NDArray[Any]) -> NDArray[Any]:
        """Return the warped labels in the same data type: nearest neighbour, with the border replicated.

        Args:
            annotation: (H, W), of any integer type.

        Raises:
            InputError: If the annotation has another shape or is not integer, or displacements are not finite.
        """
        self._check_finite("warp_annotation")
        labels = self._checked(annotation, "annotation")
        if labels.dtype.kind not in "iub":
            raise InputError(f"annotation: expected integers, got {labels.dtype}")
        warped = geometry.warp(
            torch.from_numpy(labels)[None, None], self._dvf, mode="nearest", padding_mode="border"
        )
        return warped[0, 0].numpy()

    def __call__(self, other: DisplacementField) -> DisplacementField:
        """Return the composition: points pass through `other` first, images through `self` first.

        Example:
            >>> shift = DisplacementField.generate((40, 56), "affine_simple", translation_x=2)
            >>> shift(shift)
            DisplacementField(shape=(40, 56), largest displacement 4.00 px)
        """
        self._check_shape(other.shape, "the inner field")
        return self._with(geometry.compose(self._dvf, other._dvf))

    def __mul__(self, factor: float) -> DisplacementField:
        """Return the field with all displacements multiplied by `factor`."""
        if not isinstance(factor, (int, float, np.number)):
            return NotImplemented
        return self._with(self._dvf * float(factor))

    __rmul__ = __mul__

    def pseudo_inverse(self) -> DisplacementField:
        """Return the field v with `self(v) = 0`, accurate to 0.001 px; see `atlalign.geometry.invert`.

        Warns:
            UserWarning: If the field folds; the warning says how many pixels have no inverse.

        Raises:
            InputError: If displacements are not finite.
        """
        self._check_finite("pseudo_inverse")
        inverse = geometry.invert(self._dvf)
        missing = 1 - float(geometry.inverse_mask(self._dvf, inverse).float().mean())
        if missing > 0:
            warnings.warn(
                f"the field folds: {missing:.2%} of the pixels have no inverse (see inverse_mask)",
                stacklevel=2,
            )
        return self._with(inverse)

    def inverse_mask(self, inverse: DisplacementField) -> NDArray[np.bool_]:
        """Return the mask (H, W) of the pixels where `inverse` inverts this field.

        There, the composition is within 0.01 px of the identity, and no folded part of this field lands.
        """
        self._check_shape(inverse.shape, "the inverse")
        return cast(NDArray[np.bool_], geometry.inverse_mask(self._dvf, inverse._dvf)[0].numpy())

    def anchor(
        self, h_kept: float = 0.9, w_kept: float = 0.9, ds_f: int = 50, smooth: float = 0
    ) -> DisplacementField:
        """Return the field interpolated from its values at a regular grid of points, and 0 at the image's corners.

        Args:
            h_kept: Height of the centred rectangle that holds the points, as a share of the image's.
            w_kept: The same, for the width.
            ds_f: The distance between points in pixels.
            smooth: 0 meets the field exactly at the points; larger values smooth it.
        """
        return self._with(geometry.anchor(self._dvf, h_kept=h_kept, w_kept=w_kept, ds_f=ds_f, smooth=smooth))

    def adjust(
        self,
        delta_x_max: float | None = None,
        delta_y_max: float | None = None,
        force_inside_border: bool = True,
    ) -> DisplacementField:
        """Return the field with each component clipped.

        Args:
            delta_x_max: The largest |delta_x| in pixels; None for no limit.
            delta_y_max: The largest |delta_y| in pixels; None for no limit.
            force_inside_border: Clip source positions to the image, so that there are no outsiders.

        Raises:
            InputError: If a limit is below 0.
        """
        limits = {"delta_x_max": delta_x_max, "delta_y_max": delta_y_max}
        check_numbers(limits, {name: 0.0 for name, limit in limits.items() if limit is not None})
        dvf = torch.stack(
            [
                component if limit is None else component.clamp(-limit, limit)
                for component, limit in zip(self._dvf[0], limits.values(), strict=True)
            ]
        )[None]
        if not force_inside_border:
            return self._with(dvf)
        grid = geometry.identity_grid(self.shape, dvf.dtype, dvf.device)
        limit = torch.tensor([self.shape[1] - 1, self.shape[0] - 1]).view(1, 2, 1, 1)
        return self._with((grid + dvf).clamp(torch.zeros_like(limit), limit) - grid)

    def mask(self, mask_matrix: NDArray[np.bool_]) -> DisplacementField:
        """Return the field with displacement 0 outside a boolean mask (H, W)."""
        inside = self._checked(mask_matrix, "mask_matrix")
        if inside.dtype != np.bool_:
            raise InputError(f"mask_matrix: expected booleans, got {inside.dtype}")
        return self._with(torch.where(torch.from_numpy(inside), self._dvf, 0.0))

    def resize(self, new_shape: Shape) -> DisplacementField:
        """Return the same map on a grid of shape (H', W'): corners stay corners, displacements scale with the grid.

        Raises:
            InputError: If the grid is narrower than 2 pixels.
        """
        return self._with(geometry.resize(self._dvf, checked_shape("new_shape", new_shape)))

    # --- files and plots ----------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the field (H, W, 2), x first, in pixels, float32: .npy, or an ITK vector image (.nii.gz, .mha, .nrrd).

        ITK images get a spacing of 1, so that other programs also read displacements in pixels.

        Raises:
            InputError: If the file type is unknown, the folder does not exist, or the file cannot be written.

        Example:
            >>> field = DisplacementField.generate((40, 56), "smooth", seed=1)
            >>> field.save("field.nii.gz")
            >>> bool((DisplacementField.from_file("field.nii.gz").delta_x == field.delta_x).all())
            True
        """
        write_field(Path(path), np.moveaxis(self._dvf[0].numpy(), 0, -1))

    def plot_grid(self) -> Figure:
        """Draw the positions of a regular grid in the moving image."""
        from atlalign.plots import field_grid_figure

        return field_grid_figure(self.dvf)

    def plot_displacement(self, ds_f: int = 16) -> Figure:
        """Draw the length of the displacement, and an arrow at every `ds_f`-th pixel."""
        from atlalign.plots import field_displacement_figure

        return field_displacement_figure(self.dvf, step=ds_f)

    def plot_jacobian(self) -> Figure:
        """Draw the Jacobian determinant, and mark folded pixels."""
        from atlalign.plots import field_jacobian_figure

        return field_jacobian_figure(self.dvf)

    # --- private ------------------------------------------------------------------------------------------------------

    def _with(self, dvf: Tensor) -> DisplacementField:
        return self.from_dvf(dvf[0])

    def _target(self) -> Tensor:
        return geometry.identity_grid(self.shape, self._dvf.dtype, self._dvf.device) + self._dvf

    def _checked(self, array: NDArray[Any], name: str) -> NDArray[Any]:
        """Return an array of the field's shape in a form that torch accepts: contiguous, in native byte order."""
        array = np.asarray(array)
        self._check_shape(array.shape, name)
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))

    def _check_finite(self, what: str) -> None:
        if not self.is_valid:
            raise InputError(f"{what}: expected finite displacements, found some that are not")

    def _check_shape(self, shape: tuple[int, ...], name: str) -> None:
        if tuple(shape) != self.shape:
            raise InputError(f"{name}: expected the field's shape {self.shape}, got {tuple(shape)}")


def _read_only(tensor: Tensor) -> NDArray[Any]:
    array = tensor.numpy().view()
    array.setflags(write=False)
    return array
