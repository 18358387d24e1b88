"""Follows the tutorials and takes their pictures, in a browser: `python docs/scripts/screenshots.py [NAME …]`.

It needs Chromium with chromedriver, and the repository's folder in PYTHONPATH.
"""

import os
import sys
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from atlalign.review.server import page_address
from tests.browser import open_browser
from tests.review.test_page import Page
from tests.tutorials import follow

PICTURES = Path(__file__).parents[1] / "pictures"


@contextmanager
def browser(size: tuple[int, int]) -> Iterator[Any]:
    """Yield a driver of a new browser."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = open_browser(Path(profile), size)
        try:
            yield driver
        finally:
            driver.quit()


def keep(driver: Any, name: str) -> None:
    """Write what the browser shows."""
    picture = Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.save(PICTURES / f"{name}.jpg", quality=85, subsampling=0, optimize=True)


def counts() -> None:
    """The sections, and the page of all of them."""
    follow("counts")
    images = [np.asarray(Image.open(path)) for path in sorted(Path("my_sections").glob("*.png"))]
    Image.fromarray(np.hstack(images)[::2, ::2]).quantize(128).save(
        PICTURES / "counts_sections.png", optimize=True
    )
    with browser((1200, 2150)) as driver:  # down to the reason of the third section
        driver.get((Path("registered") / "index.html").absolute().as_uri())
        keep(driver, "counts_index")


def correct() -> None:
    """The page of the review: before, with the plane set, and after."""
    follow("counts")

    def by_hand(server: ThreadingHTTPServer) -> None:
        Thread(target=_serve, args=(server,), daemon=True).start()
        with browser((1300, 860)) as driver:
            page = Page(driver, page_address(server))
            page.open("brain_s280")
            keep(driver, "correct_before")
            page.slide("position_um", 7000)
            page.saved()
            page.wait("review.app.open.correction.moves_plane && review.view.lines")
            page.run(
                "const m = document.querySelector('#mode'); m.value = 'fade'; m.dispatchEvent(new Event('change'))"
            )
            page.wait("review.view.template", 60)
            keep(driver, "correct_plane")
            page.run(
                "const m = document.querySelector('#mode'); m.value = 'off'; m.dispatchEvent(new Event('change'))"
            )
            former = page.run("return review.app.open.record")
            page.click("#apply")
            is_done = "!document.body.textContent.includes('at work')"
            page.wait(f"review.app.open.record !== '{former}' && review.view.lines && {is_done}", 300)
            keep(driver, "correct_after")
        server.shutdown()

    with mock.patch.object(ThreadingHTTPServer, "serve_forever", by_hand):
        follow("correct")


_SERVE = ThreadingHTTPServer.serve_forever


def _serve(server: ThreadingHTTPServer) -> None:
    _SERVE(server, 0.05)


def train() -> None:
    """The validation sections of the trained network."""
    follow("train")
    _copy(Path("runs/my_network/registered.png"), "train_registered")


def sweep() -> None:
    """The picture of a sweep."""
    follow("sweep")
    _copy(Path("runs/sweeps/first/runs.png"), "sweep_runs")


def _copy(source: Path, name: str) -> None:
    Image.open(source).convert("RGB").quantize(192).save(PICTURES / f"{name}.png", optimize=True)


TAKEN: dict[str, Callable[[], None]] = {"counts": counts, "correct": correct, "train": train, "sweep": sweep}


def main() -> None:
    """Take the pictures of some tutorials, or of all."""
    with mock.patch.object(webbrowser, "open", return_value=True):
        for name in sys.argv[1:] or TAKEN:
            with TemporaryDirectory() as folder:
                os.chdir(folder)
                TAKEN[name]()
                os.chdir(PICTURES)


if __name__ == "__main__":
    main()
