"""The site is built without a warning, reads nothing from a network, and shows all that the code declares."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the site, built strictly: a broken link, anchor or forgotten page is an error."""
    commands = pytest.importorskip("mkdocs.commands.build", reason="the extra docs is not installed")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        commands.build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


class Loaded(HTMLParser):
    """Collects the addresses that a browser loads by itself when it shows a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "video", "source"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.found.append(given["href"])


@pytest.mark.slow
def test_no_page_loads_anything_from_a_network(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        assert not [found for found in Loaded(page).found if re.match(r"(https?:)?//", found)], page


@pytest.mark.slow
def test_every_loaded_file_exists(site):
    for page in site.rglob("*.html"):
        for found in filter(None, Loaded(page).found):
            if not found.startswith(("data:", "/")):
                assert (page.parent / found.split("?")[0]).exists(), (page, found)
