"""Fields through pairs of points: exact where they are set, smooth and without folds elsewhere."""

import time

import numpy as np
import pytest
import torch
from scipy.interpolate import LinearNDInterpolator

from atlalign.errors import InputError
from atlalign.geometry import compose, jacobian_determinant, smooth_field, warp_points
from atlalign.geometry.landmarks import TriangleMap, move_points

SHAPE = (160, 228)
REACH_PX = 57.0


def pairs(number: int, distance_px: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points between pixels, and targets that smoothly lie up to a distance from the field's."""
    drawn = torch.Generator().manual_seed(seed)
    points = 10 + torch.rand(number, 2, generator=drawn) * torch.tensor([SHAPE[1] - 20.0, SHAPE[0] - 20.0])
    moves = smooth_field(1, SHAPE, generator=drawn).dvf
    return points, warp_points(points[None], moves / moves.abs().max() * distance_px)[0]


@pytest.mark.parametrize(("number", "distance_px"), [(1, 40.0), (6, 10.0), (60, 8.0)])
def test_points_reach_their_targets_and_nothing_folds(number, distance_px):
    network = smooth_field(1, SHAPE, generator=torch.Generator().manual_seed(5)).dvf
    network = network / network.abs().max() * 8
    assert jacobian_determinant(network).min() > 0
    points, targets = pairs(number, distance_px)
    moved = move_points(network, points, targets, reach_px=REACH_PX)
    assert (warp_points(points[None], moved)[0] - targets).norm(dim=1).max() < 0.05
    assert jacobian_determinant(moved).min() > 0


def test_points_beyond_the_reach_do_not_move():
    network = smooth_field(1, SHAPE, generator=torch.Generator().manual_seed(5)).dvf * 0.1
    point = torch.tensor([[60.0, 80.0]])
    moved = move_points(network, point, point + torch.tensor([[4.0, -7.0]]), reach_px=REACH_PX)
    assert torch.equal(moved[..., 125:], network[..., 125:])
    assert (moved - network)[0, :, 80, 80].norm() > 2  # halfway it follows


def test_points_where_the_field_takes_them_change_nothing():
    network = smooth_field(1, SHAPE, generator=torch.Generator().manual_seed(5)).dvf * 0.1
    points, _ = pairs(9, 5.0)
    targets = warp_points(points[None], network)[0]
    assert torch.equal(move_points(network, points, targets, reach_px=REACH_PX), network)
    none = torch.zeros(0, 2)
    assert torch.equal(move_points(network, none, none, reach_px=REACH_PX), network)


def test_the_field_is_smooth_between_points():
    """One step of the field differs from its neighbours' mean by little: there are no kinks, as at triangles."""
    points, targets = pairs(6, 10.0)
    moved = move_points(torch.zeros(1, 2, *SHAPE), points, targets, reach_px=REACH_PX)
    bend = torch.diff(moved, n=2, dim=-1).abs().max()
    assert bend < 0.12


def test_the_moving_side_is_where_points_pull():
    """A large field first: the points' effect follows their targets, not their places in the reference."""
    far = torch.zeros(1, 2, *SHAPE)
    far[:, 0] = 60.0
    point = torch.tensor([[40.0, 80.0]])
    moved = move_points(far, point, torch.tensor([[104.0, 80.0]]), reach_px=REACH_PX)
    by_hand = move_points(torch.zeros_like(far), point + torch.tensor([[60.0, 0.0]]), torch.tensor([[104.0, 80.0]]),
                          reach_px=REACH_PX)  # fmt: skip
    inside = slice(None), slice(None), slice(None), slice(0, SHAPE[1] - 61)
    assert (moved - compose(outer=by_hand, inner=far))[inside].abs().max() < 0.02


def test_points_that_cross_fold_and_still_arrive():
    points = torch.tensor([[80.0, 80.0], [100.0, 80.0]])
    targets = torch.tensor([[120.0, 80.0], [90.0, 80.0]])
    moved = move_points(torch.zeros(1, 2, *SHAPE), points, targets, reach_px=REACH_PX)
    assert (warp_points(points[None], moved)[0] - targets).norm(dim=1).max() < 0.5
    assert (jacobian_determinant(moved) <= 0).float().mean() > 1e-3


def test_one_place_with_two_targets_is_refused():
    points = torch.tensor([[80.0, 80.0], [20.0, 20.0], [80.2, 80.0]])
    with pytest.raises(InputError, match="points 1 and 3"):
        move_points(
            torch.zeros(1, 2, *SHAPE), points, points + torch.tensor([[0.0], [0.0], [9.0]]), reach_px=REACH_PX
        )
    move_points(torch.zeros(1, 2, *SHAPE), points[[0, 0]], points[[0, 0]] + 5, reach_px=REACH_PX)


@pytest.mark.slow
def test_a_dragged_point_takes_less_than_half_a_second():
    points, targets = pairs(20, 15.0)
    start = time.perf_counter()
    move_points(torch.zeros(1, 2, 320, 456), 2 * points, 2 * targets, reach_px=114)
    assert time.perf_counter() - start < 0.5


# --- triangles --------------------------------------------------------------------------------------------------------


def random_map(amount: float) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.random.default_rng(1)
    points = np.vstack([[[0, 0], [100, 0], [0, 80], [100, 80]], drawn.uniform(10, 70, (12, 2))]).astype(float)
    mapped = points.copy()
    mapped[4:] += drawn.uniform(-amount, amount, (12, 2))
    return points, mapped


def test_triangle_map_matches_scipy():
    points, mapped = random_map(20.0)
    queries = np.random.default_rng(2).uniform(0, 80, (500, 2))
    triangles = TriangleMap.delaunay(points, mapped)
    assert triangles.is_folded.any()
    assert triangles(queries) == pytest.approx(LinearNDInterpolator(points, mapped)(queries), abs=1e-9)
    assert triangles(points) == pytest.approx(mapped, abs=1e-7)


def test_inverse_triangle_map_undoes_the_map():
    triangles = TriangleMap.delaunay(*random_map(0.5))
    assert not triangles.is_folded.any()
    queries = np.random.default_rng(2).uniform(0, 80, (500, 2))
    assert triangles.inverse()(triangles(queries)) == pytest.approx(queries, abs=1e-6)


def test_beyond_the_triangles_nothing_moves():
    triangles = TriangleMap.delaunay(*random_map(20.0))
    outside = np.array([[-5.0, 3.0], [101.0, 90.0]])
    assert (triangles(outside) == outside).all()


def test_inverse_ignores_flipped_triangles():
    """A point is dragged across the opposite edge: two places of the section show one of the reference."""
    points = np.array([[0, 0], [100, 0], [0, 100], [100, 100], [50, 40]], float)
    mapped = points.copy()
    mapped[4] = [50, -20]
    triangles = TriangleMap.delaunay(points, mapped)
    assert triangles.is_folded.sum() == 1
    queries = np.array([[30.0, 30.0], [50.0, 80.0], [50.0, 5.0]])
    assert triangles(triangles.inverse()(queries)) == pytest.approx(queries, abs=1e-6)
