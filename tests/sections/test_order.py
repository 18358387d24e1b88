import numpy as np
import pytest

from atlalign.sections.order import in_order


def boxes(centres, width: float = 9.0, height: float = 6.0):
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (width / 2, height / 2)
    return [(corners + centre,) for centre in centres]


def grid(rows: int, columns: int) -> np.ndarray:
    """Centres row by row."""
    return np.array([(12.0 * column, 8.0 * row) for row in range(rows) for column in range(columns)])


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return points @ np.array([[cosine, sine], [-sine, cosine]])


@pytest.mark.parametrize("degrees", [0, 5, -5])
@pytest.mark.parametrize("shape", [(1, 5), (2, 4), (3, 4), (2, 1)])
def test_rows_are_found_on_a_tilted_slide_with_jitter(shape, degrees):
    random = np.random.default_rng(0)
    centres = turned(grid(*shape), degrees) + random.uniform(-1, 1, (np.prod(shape), 2))
    assert in_order(boxes(centres), "rows") == list(range(len(centres)))


def test_orders_of_a_grid():
    centres = boxes(grid(2, 3))
    assert in_order(centres, "serpentine") == [0, 1, 2, 5, 4, 3]
    assert in_order(centres, "columns") == [0, 3, 1, 4, 2, 5]
    assert in_order(centres, "serpentine-columns") == [0, 3, 4, 1, 2, 5]
    assert in_order([], "rows") == []
