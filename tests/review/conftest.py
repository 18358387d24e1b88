"""Registered sections of the phantom, and the server of the page that reviews them."""

import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atlalign.atlas.atlas import phantom_atlas
from atlalign.cli import main
from atlalign.cli.review import registrar_of
from atlalign.review.folder import ReviewFolder
from atlalign.review.server import Review, page_address, review_server

SHAPE = (160, 228)
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="session")
def registered(tmp_path_factory) -> Path:
    """Three sections of the phantom, 4 to 8 mm behind its front, registered; their images lie beside."""
    folder = tmp_path_factory.mktemp("phantom")
    atlas = phantom_atlas(image_shape=(320, 456), spacing_um=100)
    rows = ["filename,p"]
    for name, position in zip(NAMES, (4000, 6000, 8000), strict=True):
        image = (atlas.section(position)[0] * 255).byte().numpy()
        Image.fromarray(255 - np.stack([image] * 3, -1)).save(folder / f"{name}.png")
        rows.append(f"{name}.png,{position}")
    (folder / "list.csv").write_text("\n".join(rows))
    arguments = ["register", str(folder / "list.csv"), "--atlas", "phantom", "--out", str(folder / "out")]
    assert main([*arguments, "--workers", "1"]) == 0
    return folder / "out"


@pytest.fixture
def results(registered, tmp_path) -> Path:
    """A copy of the results that a test may change."""
    return shutil.copytree(registered, tmp_path / "out")


@contextmanager
def served(out: Path):
    """Serve a folder, and yield the address of its page."""
    server = review_server(Review(ReviewFolder(out), registrar_of(out)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield page_address(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def address(results):
    with served(results) as found:
        yield found


def is_root() -> bool:
    return os.name == "posix" and os.geteuid() == 0
