"""Hooks of mkdocs: pages that lie outside `docs/`, and the parts of the reference that are made from the code.

A line `<!-- made: NAME ARGUMENT -->` of a page becomes the text of the function NAME in `reference.py`.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "atlalign/weights/README.md",
    "benchmarks/README.md",
    "tests/registration/SITUATIONS.md",
    "experiments/README.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "experiments").glob("*/README.md"))),
)
"""Pages of the repository that the site shows as they are."""
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
_MADE = re.compile(r"^<!-- made: (\w+) ?(.*?) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `OUTSIDE`, and their pictures."""
    for name in OUTSIDE:
        files.append(File.generated(config, place_on_site(name), abs_src_path=str(ROOT / name)))
        for target in _LINK.findall(outside_code((ROOT / name).read_text(encoding="utf-8"))):
            picture = os.path.normpath(Path(name).parent / target[1])
            if target[0].startswith("!") and not picture.startswith("docs/"):
                files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write what is made from the code, and point links of the repository at pages of the site."""
    made = _MADE.sub(lambda found: maker(found[1])(*found[2].split()), markdown)
    source = page.file.src_uri
    place = next((name for name in OUTSIDE if place_on_site(name) == source), f"docs/{source}")
    return "".join(
        part if part.startswith("`") else _LINK.sub(lambda link: _relinked(link, place), part)
        for part in _CODE.split(made)
    )


def place_on_site(name: str) -> str:
    """Return where the site has a file of the repository; a folder's README is the folder's page."""
    return re.sub(r"/README\.md$", ".md", name.removeprefix("docs/"))


def outside_code(markdown: str) -> str:
    """Return a page without its code."""
    return _CODE.sub("", markdown)


def maker(name: str) -> Callable[..., str]:
    """Return the function that makes a part of a page."""
    return getattr(reference, name)  # type: ignore[no-any-return]


def _relinked(link: re.Match[str], place: str) -> str:
    """Return a link of the repository's file `place` as a link of its page."""
    before, target, anchor = link[1], link[2], link[3] or ""
    if re.match(r"[a-z]+:", target):
        return link[0]
    path = os.path.normpath(Path(place).parent / target)
    if (ROOT / path).is_dir():
        path = f"{path}/README.md"
    return f"{before}{os.path.relpath(place_on_site(path), Path(place_on_site(place)).parent)}{anchor})"
