"""The site is built without a warning, reads nothing from a network, and shows all that the code declares."""

import re
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import atlalign
from atlalign.localization.results import COLUMNS as LOCATED
from atlalign.registration.batch_tables import COLUMNS as REGISTRATIONS
from atlalign.registration.quality import LIMITS
from atlalign.registration.series import COLUMNS as SERIES
from atlalign.sections.listing import _COLUMNS as SECTIONS
from tests.browser import running_browser

ROOT = Path(__file__).parents[1]
PUBLIC = ("atlalign", *(f"atlalign.{room}" for room in ("geometry", "networks", "losses", "data", "models")))
PUBLIC = (*PUBLIC, "atlalign.registration", "atlalign.localization")


@pytest.fixture
def reference(monkeypatch):
    """The module that makes parts of the pages."""
    pytest.importorskip("griffe", reason="the extra docs is not installed")
    monkeypatch.syspath_prepend(ROOT / "docs" / "scripts")
    import reference

    yield reference
    for name in ("reference", "conf_files"):
        sys.modules.pop(name, None)


def columns_in(markdown: str) -> set[str]:
    """Return the names in the first column of tables."""
    cells = re.findall(r"^\| ([^|]*) \|", markdown, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def described(table: str) -> set[str]:
    """Return the columns of a table that the page on files describes."""
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    return columns_in(page.split(f"## {table}\n")[1].split("\n## ")[0])


@pytest.mark.parametrize(
    ("table", "columns"),
    [("located.csv", LOCATED), ("series.csv", SERIES), ("sections.csv", SECTIONS)],
)
def test_the_page_on_files_has_every_column(table, columns):
    assert described(table) == set(columns)


def test_the_page_on_files_has_every_column_of_registrations(reference):
    assert described("registrations.csv") | columns_in(reference.quality_columns()) == set(REGISTRATIONS)


def test_every_key_of_the_configuration_has_a_meaning(reference):
    import conf_files

    shown = reference.groups()
    for path in (ROOT / "conf").rglob("*.yaml"):
        read = conf_files.read(path)
        assert read.purpose, path
        if path.parent.name not in ("experiment", "sweep"):
            assert not [key.name for key in read.keys if not key.meaning], path
        if path.parent != ROOT / "conf":
            assert f"#### {path.parent.relative_to(ROOT / 'conf').as_posix()}={path.stem}\n" in shown


def test_the_meaning_of_a_key_is_its_comment_or_its_docstring(reference):
    import conf_files

    meanings = {key.name: key.meaning for key in conf_files.read(ROOT / "conf/model/local.yaml").keys}
    assert meanings["compute_inv"].startswith("Return the inverse field as well")  # the comment
    assert meanings["middle_filters"] == "Channels of the convolutions at the lowest resolution."  # LocalUNet
    velocity = {
        key.name: key.meaning for key in conf_files.read(ROOT / "conf/model/local_velocity.yaml").keys
    }
    assert velocity["velocity_steps"] == meanings["velocity_steps"]  # it begins with local


def test_every_command_and_option_is_shown(reference):
    from atlalign.cli import _parser

    page = reference.command_line()
    commands = next(a for a in _parser()._actions if isinstance(a.choices, dict)).choices
    for name, parser in commands.items():
        assert f"## atlalign {name}\n" in page
        for action in parser._actions:
            flags = [option for option in action.option_strings[:1] if option != "-h"]
            assert all(f"`{option}" in page for option in flags), (name, action.dest)


def test_every_measure_that_flags_a_section_comes_with_advice(reference):
    assert set(reference.ADVICE) == set(LIMITS)
    assert all(advice in reference.measures() for advice in reference.ADVICE.values())


@pytest.mark.parametrize("term", ["image", "dvf", "regularity"])
def test_every_loss_has_its_formula(reference, term):
    from atlalign import losses

    table = reference.losses(term) + reference.losses("image") * (term == "dvf")
    assert columns_in(table) == set(getattr(losses, f"ALL_{term.upper()}_LOSSES"))
    assert "(`vector_distance` / threshold)^power" in reference.losses("dvf")


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_documented(reference, module):
    names = [name for name in __import__(module, fromlist=["x"]).__all__ if not name.startswith("__")]
    assert names
    assert all(f"::: {module}.{name}" in reference.python(module) for name in names)
    page = (ROOT / "docs/reference/python" / f"{module.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    assert f"<!-- made: python {module} -->" in page


def test_named_tuples_are_shown_with_their_values_in_order(reference):
    assert "`Registration(registered, dvf, inv_dvf=None)`" in reference.python("atlalign.networks")


def test_the_citation_is_complete_and_of_this_version():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(found)
    assert found["version"] == atlalign.__version__
    assert all("name" in author or "family-names" in author for author in found["authors"])
    assert all({"type", "title", "authors"} <= set(entry) for entry in found["references"])


def test_a_report_of_a_result_asks_for_its_transform():
    (form,) = (ROOT / ".github" / "ISSUE_TEMPLATE").glob("result.yml")
    fields = yaml.safe_load(form.read_text(encoding="utf-8"))["body"]
    asked = next(field for field in fields if field["id"] == "transform")
    assert "transform.json" in asked["attributes"]["label"]
    assert asked["validations"]["required"]


def test_pipeline_types_are_in_the_modules_named_by_the_page():
    page = (ROOT / "docs" / "concepts" / "pipeline.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| `([\w/.]+)` \|", page, re.MULTILINE)
    assert len(rows) >= 7
    for name, place in rows:
        path = ROOT / place
        files = path.glob("*.py") if path.is_dir() else [path]
        assert any(
            f"class {name}(" in file.read_text() or f"class {name}:" in file.read_text() for file in files
        ), name


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
def test_a_page_from_disk_finds_words(site, tmp_path):
    for driver in running_browser(tmp_path / "profile"):
        driver.get((site / "index.html").as_uri())
        driver.find_element("css selector", "[data-md-component=search-query]").send_keys(
            "inverse_consistency_um"
        )
        for _ in range(200):
            found = driver.execute_script(
                "return document.querySelectorAll('.md-search-result__link').length"
            )
            if found:
                break
            time.sleep(0.1)
        assert found
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.slow
def test_every_loaded_file_exists(site):
    for page in site.rglob("*.html"):
        for found in filter(None, Loaded(page).found):
            if not found.startswith(("data:", "/")):
                assert (page.parent / found.split("?")[0]).exists(), (page, found)
