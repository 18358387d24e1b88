"""Random displacement fields: one function draws the parameters and another applies them, so draws can be replayed.

A generator on the CPU draws the parameters, which are then moved to the device. The same seed gives the same parameters
on every device, and fields that agree up to rounding. Names with `fraction` or `spacing` are fractions of the image's
width; names with `px` are pixels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from atlalign.errors import InputError, check_numbers
from atlalign.geometry.dvf import affine_to_dvf, identity_grid, integrate, invert, jacobian_determinant
from atlalign.geometry.scattered import RbfFunction, corners, interpolate_rbf, with_zeros


class FieldPair(NamedTuple):
    """A batch of fields and their inverses, both (B, 2, H, W) in pixels."""

    dvf: Tensor
    inverse: Tensor


class AffinePair(NamedTuple):
    """A batch of affine maps and their inverses, both (B, 2, 3) on absolute pixel coordinates."""

    matrix: Tensor
    inverse: Tensor


class AffineSimple(NamedTuple):
    """The parameters of affine maps, one value (B,) for each map.

    `rotation` and `shear` are in radians, translations in pixels. Fields map backward: scale 2 shrinks the content, and
    a positive rotation turns it counter-clockwise on the screen.
    """

    scale_x: Tensor
    scale_y: Tensor
    rotation: Tensor
    translation_x: Tensor
    translation_y: Tensor
    shear: Tensor


# --- smooth fields, diffeomorphic by construction ---------------------------------------------------------------------


def draw_velocity(
    batch_size: int,
    shape: tuple[int, int],
    *,
    spacing: float = 0.15,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return random smooth velocities (B, 2, H, W): cubic B-splines with standard normal coefficients.

    They are zero along the border, so the field maps the image's rectangle onto itself and no content is lost.

    Args:
        batch_size: B.
        shape: (H, W).
        spacing: The distance between the splines' knots as a fraction of the width; smaller is rougher.
        generator: A generator on the CPU; None for the global one.
        device: The device of the result.

    Raises:
        InputError: If the spacing is not above 0.
    """
    if not spacing > 0:
        raise InputError(f"spacing: expected a fraction of the width above 0, got {spacing}")
    along_y, along_x = (_spline_basis(size, spacing * shape[1], device) for size in shape)
    knots = (batch_size, 2, along_y.shape[1], along_x.shape[1])
    coefficients = torch.randn(knots, generator=generator).to(device)
    return along_y @ coefficients @ along_x.T


def smooth_field(
    batch_size: int,
    shape: tuple[int, int],
    *,
    mean_fraction: float = 0.02,
    largest_fraction: float = 0.06,
    spacing: float = 0.15,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> FieldPair:
    """Return random fields without folds that are the identity at the border, with their inverses.

    Each field's mean displacement is at least `mean_fraction` of the width, and its largest at least
    `largest_fraction`. The residual of `compose(dvf, inverse)` is below 0.01 px.

    Raises:
        InputError: If such large displacements fold between knots as close as `spacing`.
    """
    velocity = draw_velocity(batch_size, shape, spacing=spacing, generator=generator, device=device)
    return integrate_pair(
        scale_velocity(velocity, mean_fraction=mean_fraction, largest_fraction=largest_fraction)
    )


def integrate_pair(velocity: Tensor) -> FieldPair:
    """Return the fields of `velocity` (B, 2, H, W) and their inverses, accurate to 0.01 px.

    Raises:
        InputError: If the grid is too coarse for the velocity, so that its field folds.
    """
    dvf = integrate(velocity)
    smallest = jacobian_determinant(dvf).amin()
    if smallest <= 0:
        raise InputError(
            f"velocity: expected one whose field does not fold, found a Jacobian determinant of {smallest:.3g};"
            " smaller displacements or a larger spacing help"
        )
    return FieldPair(dvf, invert(dvf, start=integrate(-velocity), tolerance_px=5e-3))


def scale_velocity(velocity: Tensor, *, mean_fraction: float, largest_fraction: float) -> Tensor:
    """Return each velocity times the smallest factor (within 1 %) at which its field reaches both sizes.

    Args:
        velocity: (B, 2, H, W).
        mean_fraction: The field's mean displacement is at least this fraction of the width.
        largest_fraction: The field's largest displacement is at least this fraction of the width.

    Raises:
        InputError: If no factor reaches both sizes.
    """
    velocity = velocity / _size(velocity, mean_fraction, largest_fraction)
    for _ in range(20):
        reached = _size(integrate(velocity), mean_fraction, largest_fraction)
        done = (reached >= 1) & (reached <= 1.01)
        if bool(done.all()):
            return velocity
        # A finished sample stays unchanged, so that its result does not depend on its batch.
        velocity = velocity * torch.where(done, 1, 1.005 / reached)
    raise InputError(
        f"velocity: no factor gives a mean displacement of {mean_fraction} and a largest of {largest_fraction} of the"
        " width; smaller displacements or a larger spacing help"
    )


def _spline_basis(size: int, spacing_px: float, device: torch.device | str) -> Tensor:
    """Return the values (size, knots) of the cubic B-splines inside 0 … size−1, odd about both ends."""
    intervals = max(2, round((size - 1) / spacing_px))
    x = torch.linspace(0, intervals, size, device=device)[:, None]
    knots = torch.arange(1, intervals, device=device)
    return _cubic_spline(x - knots) - _cubic_spline(x + knots) - _cubic_spline(x - (2 * intervals - knots))


def _cubic_spline(x: Tensor) -> Tensor:
    """Return the cubic B-spline with knots at the integers: 2/3 at 0, 1/6 at ±1, 0 beyond ±2."""
    x = x.abs()
    return ((2 - x).clamp(min=0) ** 3 - 4 * (1 - x).clamp(min=0) ** 3) / 6


def _size(dvf: Tensor, mean_fraction: float, largest_fraction: float) -> Tensor:
    """Return (B, 1, 1, 1): actual over requested displacement, the smaller ratio of mean and largest."""
    displacement = dvf.norm(dim=1).flatten(1) / dvf.shape[-1]
    reached = torch.minimum(displacement.mean(1) / mean_fraction, displacement.amax(1) / largest_fraction)
    return reached.view(-1, 1, 1, 1)


# --- affine maps ------------------------------------------------------------------------------------------------------


def draw_affine_simple(
    batch_size: int,
    shape: tuple[int, int],
    *,
    scale: float = 0.1,
    rotation: float = 0.15,
    translation_fraction: float = 0.05,
    shear: float = 0.1,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> AffineSimple:
    """Return uniform random parameters (B,), each between − and + its argument.

    Args:
        batch_size: B.
        shape: (H, W).
        scale: Largest |log| of a scale: growing is as likely as shrinking.
        rotation: Largest rotation in radians.
        translation_fraction: Largest translation as a fraction of the width.
        shear: Largest shear in radians.
        generator: A generator on the CPU; None for the global one.
        device: The device of the result.
    """
    uniform = 2 * torch.rand(6, batch_size, generator=generator).to(device) - 1
    translation_px = translation_fraction * shape[1]
    return AffineSimple(
        scale_x=(scale * uniform[0]).exp(),
        scale_y=(scale * uniform[1]).exp(),
        rotation=rotation * uniform[2],
        translation_x=translation_px * uniform[3],
        translation_y=translation_px * uniform[4],
        shear=shear * uniform[5],
    )


def affine_simple_matrix(
    parameters: AffineSimple, shape: tuple[int, int], *, apply_centering: bool = True
) -> Tensor:
    """Return the matrices (B, 2, 3) on absolute pixel coordinates.

    The linear part is [[sx cos r, −sy sin(r + s)], [sx sin r, sy cos(r + s)]] with rotation r and shear s.

    Args:
        parameters: The parameters of the maps.
        shape: (H, W).
        apply_centering: Scale, rotate and shear about the image's centre; otherwise about pixel (0, 0).
    """
    scale_x, scale_y, rotation, translation_x, translation_y, shear = (value.double() for value in parameters)
    sheared = rotation + shear
    row_x = torch.stack([scale_x * rotation.cos(), -scale_y * sheared.sin()], dim=-1)
    row_y = torch.stack([scale_x * rotation.sin(), scale_y * sheared.cos()], dim=-1)
    linear = torch.stack([row_x, row_y], dim=-2)
    translation = torch.stack([translation_x, translation_y], dim=-1)
    if apply_centering:
        centre = _centre(shape, linear.device)
        translation = translation + centre - linear @ centre
    matrix = torch.cat([linear, translation[..., None]], dim=-1)
    return matrix.to(parameters.scale_x.dtype)


def affine_simple(
    parameters: AffineSimple, shape: tuple[int, int], *, apply_centering: bool = True
) -> Tensor:
    """Return the fields (B, 2, H, W) of the maps of `affine_simple_matrix`."""
    return affine_to_dvf(affine_simple_matrix(parameters, shape, apply_centering=apply_centering), shape)


def affine_map(
    batch_size: int,
    shape: tuple[int, int],
    *,
    mean_fraction: float = 0.02,
    largest_fraction: float = 0.06,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> AffinePair:
    """Return random affine maps about the image's centre and their exact inverses.

    Each map's mean displacement is at least `mean_fraction` of the width, and its largest at least `largest_fraction`.
    """
    parameters = draw_affine_simple(batch_size, shape, generator=generator, device=device)
    matrix = scale_affine(
        affine_simple_matrix(parameters, shape),
        shape,
        mean_fraction=mean_fraction,
        largest_fraction=largest_fraction,
    )
    return AffinePair(matrix, invert_affine(matrix.double()).to(matrix.dtype))


def scale_affine(
    matrix: Tensor, shape: tuple[int, int], *, mean_fraction: float, largest_fraction: float
) -> Tensor:
    """Return I + s (matrix − I) with the smallest s whose field of `shape` reaches both fractions of the width.

    Raises:
        InputError: If a map is the identity, or folds after scaling.
    """
    reached = _size(affine_to_dvf(matrix, shape), mean_fraction, largest_fraction)[:, 0]
    if bool((reached == 0).any()):
        raise InputError("matrix: expected maps that move something, found the identity")
    identity = torch.eye(2, 3, dtype=matrix.dtype, device=matrix.device)
    scaled = identity + (matrix - identity) / reached
    if bool((torch.linalg.det(scaled[:, :, :2]) <= 0).any()):
        raise InputError(
            f"matrix: expected maps that do not fold at a mean displacement of {mean_fraction} and a largest of"
            f" {largest_fraction} of the width"
        )
    return scaled


def invert_affine(matrix: Tensor) -> Tensor:
    """Return the matrices (B, 2, 3) of the inverse maps in the same precision; not finite where a map is singular."""
    # Written out because ONNX has no inverse, and autocast would compute matrix products in reduced precision.
    a, b, x = matrix[:, 0].unbind(dim=1)
    c, d, y = matrix[:, 1].unbind(dim=1)
    adjugate = torch.stack([d, -b, b * y - d * x, -c, a, c * x - a * y], dim=1)
    return adjugate.view(-1, 2, 3) / (a * d - b * c)[:, None, None]


def _centre(shape: tuple[int, int], device: torch.device) -> Tensor:
    return torch.tensor([(shape[1] - 1) / 2, (shape[0] - 1) / 2], dtype=torch.float64, device=device)


# --- projective maps --------------------------------------------------------------------------------------------------


def projective(matrix: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the field of projective maps: `dvf(x, y) = (u, v) / w − (x, y)` with (u, v, w) = matrix · (x, y, 1).

    Args:
        matrix: (B, 3, 3) on absolute pixel coordinates around (0, 0).
        shape: (H, W) of the field.

    Raises:
        InputError: If `matrix` is not (B, 3, 3), or the line at infinity crosses the grid.
    """
    if matrix.ndim != 3 or tuple(matrix.shape[1:]) != (3, 3):
        raise InputError(f"matrix: expected (B, 3, 3), got {tuple(matrix.shape)}")
    grid = identity_grid(shape, torch.float64, matrix.device)[0]
    mapped = (
        torch.einsum("bij,jhw->bihw", matrix[:, :, :2].double(), grid) + matrix.double()[:, :, 2, None, None]
    )
    depth = mapped[:, 2:]
    if bool((depth * depth[:, :, :1, :1] <= 0).any()):
        raise InputError(f"matrix: expected a projective map without a horizon on the grid of {tuple(shape)}")
    return (mapped[:, :2] / depth - grid).to(matrix.dtype)


# --- control points ---------------------------------------------------------------------------------------------------


class ControlPoints(NamedTuple):
    """Points of the image and their displacements, both (B, N, 2) as (x, y) in pixels."""

    points: Tensor
    displacements: Tensor


def draw_control_points(
    batch_size: int,
    shape: tuple[int, int],
    *,
    n_points: int = 6,
    radius_max: float = 60.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> ControlPoints:
    """Return random pixels other than the corners, with the random displacements of `draw_edge_stretching`."""
    everywhere = torch.ones(batch_size, *shape, dtype=torch.bool)
    return draw_edge_stretching(
        everywhere, n_points=n_points, radius_max=radius_max, generator=generator, device=device
    )


def draw_edge_stretching(
    edge_mask: Tensor,
    *,
    n_points: int = 6,
    radius_max: float = 60.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> ControlPoints:
    """Return `n_points` different edge pixels of each image, each displaced at a uniform angle by a uniform radius.

    Args:
        edge_mask: (B, H, W), true on the edges, as `edges` returns it. The image's corners are never drawn.
        n_points: The number of points.
        radius_max: The largest radius in pixels.
        generator: A generator on the CPU; None for the global one.
        device: The device of the result; None for the mask's.

    Raises:
        InputError: If an image has fewer than `n_points` edge pixels, `n_points` is below 1, or the radius below 0.
    """
    check_numbers({"n_points": n_points, "radius_max": radius_max}, {"n_points": 1, "radius_max": 0.0})
    points = torch.stack([_draw_pixels(mask, n_points, generator) for mask in edge_mask.cpu()])
    uniform = torch.rand(2, *points.shape[:2], generator=generator)
    radius, angle = radius_max * uniform[0], 2 * math.pi * uniform[1]
    displacements = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    device = edge_mask.device if device is None else device
    return ControlPoints(points.to(device), displacements.to(device))


def control_points(
    parameters: ControlPoints,
    shape: tuple[int, int],
    *,
    function: RbfFunction = "linear",
    smooth: float = 0.0,
) -> Tensor:
    """Return the fields (B, 2, H, W) of `interpolate_rbf` with these displacements and fixed image corners."""
    points, displacements = with_zeros(*parameters, corners(shape))
    return interpolate_rbf(points, displacements, shape, function=function, smooth=smooth)


def edges(images: Tensor) -> Tensor:
    """Return the edges (B, H, W) of images (B, 1, H, W) in [0, 1]: ridges of the gradient above 0.1.

    Canny's detector (IEEE PAMI 1986), sigma 1, without the last stage, which drops uniformly weak ridges.
    """
    # Kornia is slow to import and needed only here; its last stage takes ten times as long as all others.
    from kornia.filters import canny

    return canny(images, hysteresis=False)[1][:, 0] > 0


def _draw_pixels(mask: Tensor, n_points: int, generator: torch.Generator | None) -> Tensor:
    """Return `n_points` different pixels (N, 2) as (x, y) of the mask (H, W), never its corners."""
    allowed = mask.clone()
    allowed[[0, 0, -1, -1], [0, -1, 0, -1]] = False
    rows_columns = allowed.nonzero()
    if len(rows_columns) < n_points:
        raise InputError(f"edge mask: expected at least {n_points} edge pixels, found {len(rows_columns)}")
    chosen = torch.randperm(len(rows_columns), generator=generator)[:n_points]
    return rows_columns[chosen].flip(1).float()
