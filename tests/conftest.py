import os
from pathlib import Path

# At these sizes a second thread gains nothing, and waiting for it costs much on a busy machine. numpy and scipy each
# read their number of threads when they are imported.
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


import h5py
import numpy as np
import pytest
import torch

from atlalign.atlas.atlas import Atlas

SHAPE = (32, 48)

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Keep the package's caches out of the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real atlas and section data."""
    folder = os.environ.get("ATLALIGN_TEST_DATA")
    if not folder:
        pytest.skip("ATLALIGN_TEST_DATA is not set: no real atlas or section to test with")
    return Path(folder)


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    """Ten planes of smooth blobs, each brighter and wider than the one before."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SHAPE[0]), torch.linspace(-1, 1, SHAPE[1]), indexing="ij")
    planes = [
        torch.exp(-((x / w) ** 2 + (y / w) ** 2)) * (80 + 10 * i)
        for i, w in enumerate(torch.linspace(0.4, 0.7, 10))
    ]
    template = torch.stack(planes).to(torch.uint8)
    return Atlas(
        template,
        annotation=None,
        spacing_um=100.0,
        name="blobs",
        intensity_scale=255.0,
        pixel_um=(250.0, 250.0),
    )


def write_h5(
    path: Path, n: int = 6, shape: tuple[int, int] = SHAPE, origin: str = "", **replace: np.ndarray | None
) -> Path:
    """Write a valid file of random samples, two of each image; `replace` overrides arrays, None drops one.

    With "phantom" as its `origin` it passes for sections of the phantom.
    """
    random = np.random.default_rng(0)
    arrays = {
        "img": random.integers(0, 256, (n, *shape), dtype=np.uint8),
        "deltas_xy": random.normal(0, 2, (n, *shape, 2)).astype(np.float16),
        "inv_deltas_xy": random.normal(0, 2, (n, *shape, 2)).astype(np.float16),
        "p": np.arange(n) * 100,
        "image_id": 1000 + np.arange(n) // 2,
        "dataset_id": np.full(n, 7),
    }
    with h5py.File(path, "w") as file:
        for name, array in {**arrays, **replace}.items():
            if array is not None:
                file[name] = array
        file.attrs["origin"] = origin
    return path


@pytest.fixture
def h5_file(tmp_path: Path) -> Path:
    return write_h5(tmp_path / "data.h5")
