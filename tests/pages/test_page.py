"""A page is self-contained, and its controls work in a browser without a network."""

import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from atlalign.pages import (
    Charts,
    Facts,
    Heading,
    Table,
    TableRow,
    Text,
    View,
    Views,
    outline_path,
    picture_uri,
    render_page,
)
from tests.browser import running_browser

SHAPE = (40, 60)


def grey(value: int) -> str:
    return picture_uri(np.full(SHAPE, value, np.uint8))


def flat_view(title: str = "section 1", **others) -> View:
    """A black reference, a white registered image, and an outline down the middle of both."""
    labels = np.ones(SHAPE)
    labels[:, 30:] = 2
    images = {"reference": grey(0), "moving": grey(128), "registered": grey(255)}
    return View(title, "as seen", images, SHAPE, outline_path(labels), **others)


def page_of(*views: View) -> str:
    return render_page("Sections", [Views(views, left="reference", right="registered")])


def test_outlines_run_between_labels():
    labels = np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])
    assert outline_path(labels) == "m0 2h3m-1-2v2"
    assert outline_path(np.ones((3, 4))) == ""


@pytest.mark.parametrize("channels", [(), (3,)])
def test_picture_survives_its_uri(channels):
    pixels = np.linspace(0, 255, 60).round().astype(np.uint8)
    pixels = np.broadcast_to(pixels.reshape(1, 60, *[1 for _ in channels]), (40, 60, *channels))
    kind, _, data = picture_uri(pixels).partition(",")
    assert kind == "data:image/webp;base64"
    back = np.asarray(Image.open(BytesIO(b64decode(data))), np.float32)
    assert np.abs(back[..., 0] - pixels.reshape(40, 60, -1)[..., 0]).max() < 10


def test_every_block_is_shown_and_escaped():
    page = render_page(
        "a < b",
        [
            Facts({"net<work": "x & y"}),
            Heading("<h>"),
            Text("1 < 2"),
            Table("sums<", ["one<"], [[TableRow("row<", ["cell<"])]]),
            Charts({"chart<": "<svg><text>curve</text></svg>"}),
            Views([flat_view("<i>s1", flag="look", values={'"': 1.0})], left="reference", right="registered"),
        ],
        note="v<1>",
    )
    for shown in ("a &lt; b", "net&lt;work", "x &amp; y", "&lt;h&gt;", "1 &lt; 2", "sums&lt;", "one&lt;"):
        assert shown in page
    for shown in ("row&lt;", "cell&lt;", "chart&lt;", "<svg><text>curve", "&lt;i&gt;s1", "v&lt;1&gt;"):
        assert shown in page
    assert "<i>s1" not in page


def test_a_page_names_nothing_to_load():
    page = page_of(flat_view())
    assert "default-src 'none'" in page  # the browser would refuse it
    assert all(uri.startswith("data:") for uri in re.findall(r'(?:src|href)="(?!#)([^"]*)"', page))
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|<iframe|<object", page)


# --- in a browser -----------------------------------------------------------------------------------------------------

# The first section fills the window's upper left corner, without what lies over its pictures.
STAGED = """
  .view:first-child { position: fixed; inset: 0; z-index: 9; padding: 0; border: 0; border-radius: 0; width: 600px; }
  .view:not(:first-child), .view > :is(header, p), .name, .edge { display: none !important; }
  .stage { border-radius: 0; }
"""
HELPERS = """
  const find = (s) => document.querySelector(s);
  const put = (s, value, event = 'input') => { find(s).value = value; find(s).dispatchEvent(new Event(event)); };
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    yield from running_browser(tmp_path_factory.mktemp("profile"), (700, 700))


@pytest.fixture
def browse(driver, tmp_path):
    """Return a function that opens a page, runs a script in it, and returns the script's value."""

    def browse(page: str, script: str = ""):
        path = tmp_path / "page.html"
        path.write_text(page.replace("</body>", f"<style>{STAGED}</style></body>"))
        driver.get(path.as_uri())
        found = driver.execute_script(HELPERS + script)
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        return found

    return browse


@pytest.fixture
def look(browse, driver):
    """Return a function that does the same, and returns a picture of the first section (400, 600, 3)."""

    def look(page: str, script: str = "") -> np.ndarray:
        browse(page, script)
        shot = Image.open(BytesIO(driver.get_screenshot_as_png()))
        return np.asarray(shot, np.float32)[:400, :600, :3] / 255

    return look


def shares(pixels: np.ndarray) -> tuple[float, float]:
    """Return the shares of black and of white pixels."""
    return float((pixels.max(-1) < 0.05).mean()), float((pixels.min(-1) > 0.95).mean())


def test_the_slider_wipes_and_outlines_can_be_taken_away(look):
    shown = look(page_of(flat_view()))
    assert shares(shown[:, :290]) == pytest.approx((1, 0), abs=0.02)  # left of the edge the reference
    assert shares(shown[:, 310:]) == pytest.approx((0, 1), abs=0.02)
    yellow = shown[:, 295:305, 0] - shown[:, 295:305, 2] > 0.3
    assert yellow.any(axis=1).mean() > 0.95  # the outline, from top to bottom
    wiped = look(page_of(flat_view()), "put('.share', 80); find('.outlined').click();")
    assert shares(wiped[:, :475]) == pytest.approx((1, 0), abs=0.02)
    assert shares(wiped[:, 485:]) == pytest.approx((0, 1), abs=0.02)
    assert (wiped[..., 0] - wiped[..., 2]).max() < 0.1  # no yellow is left


def test_pictures_can_be_chosen_and_fade_and_blink(look):
    bare = "find('.outlined').click();"
    chosen = look(page_of(flat_view()), f"{bare} put('.left', 'moving', 'change'); put('.all', 100);")
    assert chosen.min() > 0.4  # the grey moving image fills the stage
    assert chosen.max() < 0.6
    faded = look(page_of(flat_view()), f"{bare} find('[data-mode=fade]').click(); put('.all', 20);")
    assert np.abs(faded - 0.8).max() < 0.03  # a fifth of black on white
    blinked = look(page_of(flat_view()), f"{bare} find('[data-mode=blink]').click();")
    assert max(shares(blinked)) > 0.99  # one picture at a time


def test_sections_are_sorted_and_filtered(browse):
    views = [
        flat_view("first", flag="pass", values={"bend": 1.0}),
        flat_view("second", flag="fail", values={"bend": 3.0, "position": 9.0}),
        flat_view("third", flag="look", values={"bend": 2.0, "position": 4.0}),
    ]

    def titles(act: str = "") -> str:
        shown = (
            "return [...document.querySelectorAll('.view:not([hidden])')].map((v) => v.dataset.title).join()"
        )
        return browse(page_of(*views), act + shown)

    assert titles() == "first,second,third"
    assert titles("put('.sort', 'bend', 'change');") == "second,third,first"
    assert titles("put('.sort', 'flag', 'change');") == "second,third,first"
    assert titles("put('.sort', 'position', 'change');") == "third,second,first"
    assert titles("find('[data-flag=fail].filter').click();") == "first,third"
    assert titles("put('.search', 'SECO');") == "second"


def test_the_browser_refuses_and_reports_what_would_be_loaded(browse):
    page = page_of(flat_view()).replace("<main>", '<main><img src="https://example.org/x.png">')
    with pytest.raises(AssertionError, match="'source': 'security'"):
        browse(page)
