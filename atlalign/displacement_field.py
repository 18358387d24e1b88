"""One displacement field for interactive use: arrays, files, transforms and plots around `atlalign.geometry`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from atlalign import geometry
from atlalign.errors import InputError, check_numbers, checked_shape, unknown_name
from atlalign.geometry.scattered import GriddataMethod, RbfFunction, corners, with_zeros
from atlalign.io.files import itk_name, written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Shape = tuple[int, int]
Transform = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[ArrayLike, ArrayLike]]
Interpolation = Literal["linear", "nearest", "cubic"]
BorderMode = Literal["constant", "replicate", "reflect", "reflect_101"]
ControlPointMethod = Literal["rbf", "griddata"]

_MODES: dict[str, geometry.SamplingMode] = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
_PADDINGS: dict[str, geometry.PaddingMode] = {
    "constant": "zeros",
    "replicate": "border",
    "reflect": "border",  # after the coordinates themselves were reflected
    "reflect_101": "reflection",
}
# Half a pixel outside the image, cubic interpolation needs this many pixels beyond the border.
_CUBIC_REACH_PX = 2
_ITK_SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")


class DisplacementField:
    """An immutable displacement (delta_x, delta_y) in pixels for each pixel of an image.

    Fields map backward: `warp(image)(x, y) = image(x + delta_x(x, y), y + delta_y(x, y))`, with x along columns and y
    along rows. A positive delta_x moves the content to the left. `a(b)` warps by a first and by b second:
    `a(b).warp(image) = b.warp(a.warp(image))`, up to interpolation.

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
        """Return the field of a tensor (2, H, W), x first: one sample of a batch of `atlalign.geometry`."""
        if dvf.ndim != 3 or dvf.shape[0] != 2:
            raise InputError(f"dvf: expected (2, H, W), got {tuple(dvf.shape)}")
        return cls(*dvf.detach().cpu().float().numpy())

    @classmethod
    def from_transform(cls, transform: Transform | ArrayLike, shape: Shape) -> DisplacementField:
        """Return the field of a map from pixel coordinates to pixel coordinates.

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
            return cls.from_dvf(_matrix_to_dvf(np.asarray(transform, dtype=np.float64), shape))
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
        new_x, new_y = (
            np.asarray(component, dtype=np.float64) for component in transform(x.copy(), y.copy())
        )
        return cls(new_x - x, new_y - y)

    @classmethod
    def from_file(cls, path: str | Path) -> DisplacementField:
        """Read a file of `save`, or an ITK displacement field of another program.

        ITK displacements are lengths in the frame of the image; its spacing and direction convert them to pixels.

        Raises:
            InputError: If the file is missing, damaged, of another type, not a 2D field, or not finite everywhere.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: expected a file with a displacement field, found none")
        array = _read_npy(path) if _suffix(path) == ".npy" else _read_itk(path)
        if array.ndim != 3 or array.shape[2] != 2 or array.dtype.kind not in "fiu":
            raise InputError(
                f"{path}: expected a field (H, W, 2) of numbers, found {array.shape} of {array.dtype}"
            )
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(
                f"{path}: expected finite displacements, found {int((~np.isfinite(array)).sum())} that are not"
            )
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
        shape = checked_shape("shape", shape)
        if approach not in _APPROACHES:
            raise unknown_name("approach", approach, _APPROACHES)
        return cls.from_dvf(_called(_APPROACHES, approach, shape, options=parameters)[0])

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
        """The image's (H, W)."""
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
        if interpolation not in _MODES:
            raise unknown_name("interpolation", interpolation, _MODES)
        if border_mode not in _PADDINGS:
            raise unknown_name("border mode", border_mode, _PADDINGS)
        image = self._checked(image, "image")
        # Wide integers need the precision of float64.
        values = image.astype(np.result_type(image.dtype, np.float32))
        dvf, margin = (self._reflected(), _CUBIC_REACH_PX) if border_mode == "reflect" else (self._dvf, 0)
        padded = torch.from_numpy(np.pad(values, margin, mode="symmetric"))[None, None]
        warped = geometry.warp(
            padded,
            F.pad(dvf.to(padded.dtype), [margin] * 4),
            mode=_MODES[interpolation],
            padding_mode=_PADDINGS[border_mode],
        )
        height, width = self.shape
        warped = warped[0, 0, margin : margin + height, margin : margin + width]
        return _cast(warped.numpy(), image.dtype)

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
        """Return the mask (H, W) where `inverse` inverts this field within 0.01 px and no folded part lands."""
        self._check_shape(inverse.shape, "the inverse")
        return cast(NDArray[np.bool_], geometry.inverse_mask(self._dvf, inverse._dvf)[0].numpy())

    def anchor(
        self, h_kept: float = 0.9, w_kept: float = 0.9, ds_f: int = 50, smooth: float = 0
    ) -> DisplacementField:
        """Return the field interpolated from its values at a regular grid of points, and 0 at the image's corners.

        Args:
            h_kept: Height of the centred rectangle that holds the points, as a share of the image's.
            w_kept: The same for the width.
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

        ITK images have spacing 1, so that other programs read pixels too.

        Raises:
            InputError: If the file type is unknown, the folder does not exist, or the file cannot be written.

        Example:
            >>> field = DisplacementField.generate((40, 56), "smooth", seed=1)
            >>> field.save("field.nii.gz")
            >>> bool((DisplacementField.from_file("field.nii.gz").delta_x == field.delta_x).all())
            True
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise InputError(f"{path}: expected an existing folder to write to")
        array = np.moveaxis(self._dvf[0].numpy(), 0, -1)
        write = _write_npy if _suffix(path) == ".npy" else _write_itk
        with written_whole(path) as unfinished:
            write(unfinished, array)

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

    def _reflected(self) -> Tensor:
        """Return the field with source positions mirrored into the image at the outer edge of the outermost pixels."""
        size = torch.tensor([self.shape[1], self.shape[0]]).view(1, 2, 1, 1)
        target = (self._target() + 0.5).remainder(2 * size)
        mirrored = torch.minimum(target, 2 * size - target) - 0.5
        return mirrored - geometry.identity_grid(self.shape, mirrored.dtype, mirrored.device)

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


# --- generators -------------------------------------------------------------------------------------------------------


def _identity(shape: Shape) -> Tensor:
    return torch.zeros(1, 2, *shape)


def _affine(shape: Shape, *, matrix: ArrayLike) -> Tensor:
    return _matrix_to_dvf(np.asarray(matrix, dtype=np.float64), shape)[None]


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
    parameters = geometry.AffineSimple(*(torch.tensor([float(value)]) for value in values))
    return geometry.affine_simple(parameters, shape, apply_centering=apply_centering)


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
    parameters = geometry.ControlPoints(rows_columns.flip(-1)[None], torch.stack([x, y], dim=-1)[None])
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
    parameters = geometry.draw_edge_stretching(
        torch.from_numpy(mask)[None], n_points=n_points, radius_max=radius_max, generator=_generator(seed)
    )
    return _interpolated(parameters, shape, interpolation_method, **options)


def _projective(shape: Shape, *, matrix: ArrayLike) -> Tensor:
    return geometry.projective(torch.as_tensor(np.asarray(matrix, dtype=np.float64))[None], shape)


def _smooth(
    shape: Shape,
    *,
    mean_fraction: float = 0.02,
    largest_fraction: float = 0.06,
    spacing: float = 0.15,
    seed: int | None = None,
) -> Tensor:
    pair = geometry.smooth_field(
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


def _rbf(
    parameters: geometry.ControlPoints, shape: Shape, *, function: RbfFunction = "linear", smooth: float = 0
) -> Tensor:
    return geometry.control_points(parameters, shape, function=function, smooth=smooth)


def _griddata(
    parameters: geometry.ControlPoints, shape: Shape, *, method: GriddataMethod = "linear"
) -> Tensor:
    return geometry.interpolate_griddata(*with_zeros(*parameters, corners(shape)), shape, method=method)


_INTERPOLATIONS: dict[str, Callable[..., Tensor]] = {"rbf": _rbf, "griddata": _griddata}


def _interpolated(
    parameters: geometry.ControlPoints, shape: Shape, interpolation_method: str, **options: Any
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
        raise InputError(f"{name}: expected the parameters {', '.join(needed)}, got none of that name")
    return makers[name](*given, **options)


def _matrix_to_dvf(matrix: NDArray[np.float64], shape: Shape) -> Tensor:
    if matrix.shape == (2, 3):
        return geometry.affine_to_dvf(torch.from_numpy(matrix)[None], shape)[0]
    if matrix.shape == (3, 3):
        return geometry.projective(torch.from_numpy(matrix)[None], shape)[0]
    raise InputError(f"matrix: expected affine (2, 3) or projective (3, 3), got {matrix.shape}")


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


# --- files and arrays -------------------------------------------------------------------------------------------------


def _suffix(path: Path) -> str:
    """Return the known ending of a file's name."""
    for suffix in (".npy", *_ITK_SUFFIXES):
        if path.name.lower().endswith(suffix):
            return suffix
    raise InputError(f"{path}: expected a name that ends in .npy, {', '.join(_ITK_SUFFIXES)}")


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            # Unlike `np.load`, this never falls back to a zip archive or a pickle, which can run code.
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, MemoryError) as error:
        raise InputError(f"{path}: expected an .npy array of numbers, cannot read it ({error})") from error


def _write_npy(path: Path, array: NDArray[np.float32]) -> None:
    np.save(path, array)


def _write_itk(path: Path, array: NDArray[np.float32]) -> None:
    import SimpleITK

    try:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, isVector=True), itk_name(path))
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[-1]) from error


def _read_itk(path: Path) -> NDArray[Any]:
    """Return the displacements (H, W, 2) in pixels of an ITK vector image."""
    import SimpleITK

    try:
        # SimpleITK does not recognise .MHA in capitals.
        image: Any = SimpleITK.ReadImage(
            itk_name(path), imageIO="MetaImageIO" if _suffix(path) == ".mha" else ""
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[-1]
        raise InputError(f"{path}: expected an ITK image, cannot read it ({reason})") from error
    if image.GetDimension() != 2 or image.GetNumberOfComponentsPerPixel() != 2:
        raise InputError(
            f"{path}: expected a 2D image of 2 components, found {image.GetDimension()}D"
            f" of {image.GetNumberOfComponentsPerPixel()}"
        )
    to_length = np.reshape(image.GetDirection(), (2, 2)) * np.asarray(image.GetSpacing())
    return SimpleITK.GetArrayFromImage(image) @ np.linalg.inv(to_length).T


def _cast(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the values in another data type; for integers they are rounded, and cubic overshoots are clipped."""
    if dtype.kind not in "iub":
        return values.astype(dtype)
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.round().clip(*limits).astype(dtype)


def _read_only(tensor: Tensor) -> NDArray[Any]:
    array = tensor.numpy().view()
    array.setflags(write=False)
    return array
