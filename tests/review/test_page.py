"""The page as a person uses it: with the mouse and the keys, in a browser."""

import errno
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from atlalign.registration.corrections import Correction, read_correction, write_correction
from atlalign.registration.record import read_record, write_record
from tests.browser import running_browser
from tests.review.conftest import served


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    yield from running_browser(tmp_path_factory.mktemp("profile"))


class Page:
    """The page as the user sees and operates it."""

    def __init__(self, driver, address: str) -> None:
        self.driver = driver
        driver.get(address)
        self.wait("review.view.lines && review.view.overview && !review.app.isSaving")

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait(self, what: str, seconds: float = 60) -> float:
        """Wait until an expression is true, and return how long that took."""
        start = time.monotonic()
        while not self.run(f"return Boolean(window.review && ({what}))"):
            assert time.monotonic() - start < seconds, f"{what}: {self.message}"
            time.sleep(0.02)
        return time.monotonic() - start

    @property
    def message(self) -> str:
        return self.run("return document.querySelector('#message').textContent")

    @property
    def name(self) -> str:
        return self.run("return review.app.open.name")

    def open(self, name: str) -> None:
        self.click(f'#list li[data-name="{name}"]')
        self.wait(f"review.app.open.name === '{name}' && review.view.lines && review.view.overview")

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()

    def saved(self) -> None:
        time.sleep(0.05)
        self.wait("!review.app.isSaving")

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains, Keys

        chain = ActionChains(self.driver)
        *held, last = keys
        for key in held:
            chain.key_down(getattr(Keys, key))
        chain.send_keys(getattr(Keys, last, last))
        for key in held:
            chain.key_up(getattr(Keys, key))
        chain.perform()

    def drag(self, start, end, *, shift: bool = False) -> None:
        """Drag the mouse from one place of the section to another."""
        from selenium.webdriver import ActionChains, Keys
        from selenium.webdriver.common.actions.action_builder import ActionBuilder

        corner = self.run(
            "const r = document.querySelector('#overlay').getBoundingClientRect(); return [r.x, r.y]"
        )
        places = [start, np.mean([start, end], axis=0).tolist(), end]
        at = [
            np.rint(np.add(corner, self.run("return review.view.toScreen(arguments[0])", place))).astype(int)
            for place in places
        ]
        if shift:
            ActionChains(self.driver).key_down(Keys.SHIFT).perform()
        actions = ActionBuilder(self.driver, duration=30)
        actions.pointer_action.move_to_location(*map(int, at[0])).pointer_down()
        for place in at[1:]:
            actions.pointer_action.move_to_location(*map(int, place))
        actions.pointer_action.pointer_up()
        actions.perform()
        if shift:
            ActionChains(self.driver).key_up(Keys.SHIFT).perform()

    def slide(self, name: str, value: float) -> None:
        """Move a slider of the plane, as a drag does: it says so on the way and at the end."""
        self.run(
            "const s = document.querySelector(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change'));",
            f"#{name}",
            value,
        )

    def outline_near(self, place) -> list[float]:
        """Return the point of an outline that is closest to a place."""
        return self.run("const l = review.view.lines; return l.at(l.closest(arguments[0], 1e6))", place)

    def distance_to_outline(self, place) -> float:
        return float(np.linalg.norm(np.subtract(self.outline_near(place), place)))


@pytest.fixture
def page(driver, address):
    return Page(driver, address)


def test_a_dragged_outline_follows_and_is_saved(page, results):
    page.open("b")
    start = page.outline_near([228, 60])
    end = [start[0] + 3, start[1] - 14]
    assert page.distance_to_outline(end) > 2.5
    began = time.monotonic()
    page.drag(start, end)
    page.saved()
    page.wait(f"review.view.lines.closest([{end[0]}, {end[1]}], 1.5) >= 0")
    assert time.monotonic() - began < 30  # a busy machine; idle it takes a fraction of a second
    points = read_correction(results, "b").points
    assert len(points) == 1
    assert np.abs(points.section[0] + 0.5 - end).max() < 1
    page.press("CONTROL", "z")
    page.saved()
    assert len(read_correction(results, "b").points) == 0
    page.wait(f"review.view.lines.closest([{end[0]}, {end[1]}], 2) < 0")
    page.press("CONTROL", "SHIFT", "z")
    page.saved()
    assert len(read_correction(results, "b").points) == 1
    page.drag(end, [end[0] + 9, end[1]])  # the same point again
    page.saved()
    (moved,) = read_correction(results, "b").points.section
    assert np.abs(moved + 0.5 - [end[0] + 9, end[1]]).max() < 1
    page.press("DELETE")
    page.saved()
    assert len(read_correction(results, "b").points) == 0


def test_verdicts_by_key_go_on_to_the_next_section(page, results):
    page.open("a")
    page.press("a")
    page.wait("review.app.open.name === 'b'")
    assert read_correction(results, "a").verdict == "accepted"
    page.press("r")
    page.wait("review.app.open.name === 'c'")
    assert read_correction(results, "b").verdict == "rejected"
    page.wait(
        "document.querySelector('#counts').textContent.startsWith('1 of 3 to review · 1 accepted · 1 rej')"
    )
    page.press("ARROW_UP")
    page.wait("review.app.open.name === 'b'")
    page.run(
        "const n = document.querySelector('#note'); n.value = 'torn'; n.dispatchEvent(new Event('input'));"
    )
    time.sleep(0.6)
    page.saved()
    assert read_correction(results, "b").note == "torn"


def test_letters_typed_into_a_menu_are_no_verdict(page, results):
    page.open("c")
    page.run("document.querySelector('#mode').focus()")
    page.driver.find_element("css selector", "#mode").send_keys("fade")
    page.wait("review.view.mode === 'fade'")
    time.sleep(0.3)
    assert page.run("return review.app.open.name") == "c"
    assert read_correction(results, "c").verdict is None


def test_painted_damage_is_an_area_that_can_be_removed(page, results):
    page.open("b")
    page.press("b")
    page.drag([150, 150], [220, 150])
    page.wait("review.app.open.correction.areas.length === 1")
    page.saved()
    mask = read_correction(results, "b").ignored.on((320, 456), (320, 456))
    radius = page.run("return Number(document.querySelector('#brush').value) / review.view.zoom")
    assert mask[150, 150:220].all()
    expected = 2 * radius * 70 + np.pi * radius**2
    assert mask.sum() == pytest.approx(expected, rel=0.15)  # pixels that the edge only touches count
    page.drag([180, 150], [180, 150], shift=True)
    page.wait("review.app.open.correction.areas.length === 0")
    page.saved()
    assert not read_correction(results, "b").ignored


def test_the_plane_follows_its_sliders(page, results):
    page.open("b")
    before = page.run("return [...review.view.lines.section]")
    page.slide("position_um", 6500)
    page.wait("review.app.open.correction.moves_plane")
    page.saved()
    correction = read_correction(results, "b")
    assert correction.moves_plane
    assert correction.anchoring.position_um == pytest.approx(6500, abs=13)
    page.wait(f"review.view.lines.section.length !== {len(before)}")
    page.click("#reset-plane")
    page.wait("!review.app.open.correction.moves_plane")
    page.wait(f"review.view.lines.section.length === {len(before)}")


def test_the_template_is_shown_in_every_way(page, driver):
    page.open("b")
    page.run("document.querySelector('#outlines').click()")
    shots = {}
    for mode in ("off", "fade", "wipe", "checker"):
        page.run("const m = document.querySelector('#mode'); m.value = arguments[0];"
                 "m.dispatchEvent(new Event('change'))", mode)  # fmt: skip
        page.wait("review.view.mode === 'off' || review.view.template")
        time.sleep(0.1)
        shots[mode] = page.run("""
            const c = document.querySelector('#template');
            const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            let n = 0; for (let k = 3; k < p.length; k += 4) n += p[k] > 0; return 4 * n / p.length""")
    assert shots["off"] == 0
    assert shots["fade"] > 0.5
    assert shots["wipe"] == pytest.approx(shots["fade"] / 2, rel=0.02)
    assert shots["checker"] == pytest.approx(shots["fade"] / 2, rel=0.1)


def test_two_browsers_on_one_folder(page, driver, address, results, tmp_path):
    page.open("a")
    other = Page.__new__(Page)
    (window,) = driver.window_handles
    driver.switch_to.new_window("window")
    try:
        other.__init__(driver, address)
        other.open("a")
        other.press("u")
        other.wait("review.app.open.name === 'b'")
        assert read_correction(results, "a").verdict == "unsure"
    finally:
        driver.close()
        driver.switch_to.window(window)
    page.wait("review.app.open.correction.verdict === 'unsure'")  # the first one has heard of it
    page.press("r")
    page.saved()
    assert read_correction(results, "a").verdict == "rejected"


def test_a_folder_that_cannot_be_written_is_only_shown(driver, results, monkeypatch):
    from atlalign.review.folder import ReviewFolder

    monkeypatch.setattr(ReviewFolder, "is_writable", False)
    with served(results) as address:
        page = Page(driver, address)
        assert "read-only" in page.run("return document.querySelector('#state').textContent")
        assert page.run("return document.querySelector('#saved').textContent") == "read-only"
        enabled = page.run(
            "const controls = '#edit-pane :is(button, input, select, textarea):enabled';"
            "return [...document.querySelectorAll(controls)].map((control) => control.id)"
        )
        assert set(enabled) == {"brush", "before"}
        page.press("a")
        page.press("b")
        page.drag([150, 150], [220, 150])
        time.sleep(0.2)
        assert not page.run("return review.app.isSaving")
        assert not (results / "corrections").exists()


def test_the_page_loads_nothing_from_elsewhere_and_complains_of_nothing(page, driver):
    driver.get_log("browser")
    page.open("c")
    page.press("t")
    page.wait("review.view.template")
    assert driver.get_log("browser") == []
    loaded = page.run("return performance.getEntriesByType('resource').map((e) => new URL(e.name).host)")
    assert set(loaded) == {page.run("return location.host")}


def test_apply_registers_again_and_shows_before_and_after(page, results):
    from atlalign.registration.record import read_record
    from atlalign.registration.transform import SectionTransform

    page.open("b")
    start = page.outline_near([150, 200])
    end = [start[0] + 10, start[1] + 4]
    page.drag(start, end)
    page.saved()
    page.wait("document.querySelector('#apply').classList.contains('needed')")
    reference = page.run("return review.app.open.correction.points[0].slice(0, 2)")
    former = page.run("return review.app.open.record")
    page.click("#apply")
    page.wait(f"review.app.open.record !== '{former}' && review.view.lines && review.view.before", 120)
    page.wait("document.querySelector('#state').textContent === ''")
    assert len(read_record(results / "b")["settings"]["correction"]["points"]) == 1
    transform = SectionTransform.load(results / "b")
    place_mm = (np.array(reference) - transform.plane.matrix[[2, 1], 2]) / 1000
    assert transform.to_section(place_mm[None])[0] + 0.5 == pytest.approx(end, abs=1)
    assert 'data-title="b"' in (results / "index.html").read_text()


@pytest.mark.slow
def test_a_plane_that_is_found_is_kept_or_taken_back(page, results):
    page.open("b")
    page.slide("position_um", 6350)
    page.wait("review.app.open.correction.moves_plane")
    page.saved()
    started = read_correction(results, "b").anchoring.to_json()
    page.click("#locate")
    assert page.run("return document.querySelector('#locate').textContent") == "searching …"
    page.press("o")  # the page answers meanwhile
    assert not page.run("return review.view.hasOutlines")
    page.press("o")
    page.wait("!document.querySelector('#offer').hidden")
    assert "Likeness" in page.message
    page.saved()
    assert read_correction(results, "b").anchoring.position_um == pytest.approx(6000, abs=150)
    assert page.run("return Number(document.querySelector('#position_um').value)") == pytest.approx(
        6000, abs=150
    )
    page.click("#take-back")
    page.saved()
    assert read_correction(results, "b").anchoring.to_json() == pytest.approx(started, abs=1e-3)
    page.wait(
        "document.querySelector('#notice').hidden && Math.abs(review.app.open.plane.position_um - 6350) < 1"
    )
    page.press("l")
    page.wait("!document.querySelector('#offer').hidden")
    page.click("#keep")
    page.wait("document.querySelector('#notice').hidden && !review.view.before")
    page.saved()
    kept = read_correction(results, "b").anchoring
    page.slide("position_um", 6200)
    page.wait("review.app.open.correction.anchoring && !review.app.isTurning")
    page.saved()
    page.wait(f"review.app.open.correction.anchoring[4] !== {kept.to_json()[4]}")
    page.saved()
    moved = read_correction(results, "b").anchoring
    assert moved.position_um == pytest.approx(6200, abs=1)
    assert moved.to_json()[3] == pytest.approx(kept.to_json()[3], abs=1e-3)  # the width that was found stays


def test_the_half_is_chosen_and_applied(page, results):
    from atlalign.registration.record import read_record

    page.open("b")
    page.wait("!review.app.sections[1].why_not")
    page.run(
        "const m = document.querySelector('#hemisphere'); m.value = 'left'; m.dispatchEvent(new Event('change'))"
    )
    page.saved()
    assert read_correction(results, "b").hemisphere == "left"
    page.wait("Math.max(...review.view.lines.section.filter((_, k) => k % 2 === 0)) < 240")
    page.wait("document.querySelector('#apply').classList.contains('needed')")
    former = page.run("return review.app.open.record")
    page.click("#apply")
    page.wait(f"review.app.open.record !== '{former}' && review.view.lines", 120)
    assert read_record(results / "b")["settings"]["correction"]["hemisphere"] == "left"
    page.press("CONTROL", "z")
    page.saved()
    assert read_correction(results, "b").hemisphere is None


def test_undo_works_after_a_reload_and_after_other_sections(page, driver, address, results):
    page.open("b")
    start = page.outline_near([228, 60])
    page.drag(start, [start[0] + 3, start[1] - 14])
    page.saved()
    page = Page(driver, address)
    page.open("a")
    page.open("b")
    assert page.run("return review.app.open.correction.points.length") == 1
    page.press("CONTROL", "z")
    page.saved()
    assert len(read_correction(results, "b").points) == 0
    page = Page(driver, address)
    page.open("b")
    page.press("CONTROL", "SHIFT", "z")
    page.saved()
    assert len(read_correction(results, "b").points) == 1
    elsewhere = replace(read_correction(results, "b"), note="by another program")
    write_correction(results, "b", elsewhere, size=(320, 456))
    page.wait("review.app.open.correction.note === 'by another program'")
    assert page.run("return document.querySelector('#undo').disabled")  # it would undo the other change too


def test_a_note_is_saved_although_the_section_is_left_at_once(page, driver, results):
    page.open("a")
    driver.find_element("css selector", "#note").send_keys("torn at the left")
    page.click('#list li[data-name="b"]')
    page.wait("review.app.open.name === 'b'")
    page.saved()
    assert read_correction(results, "a").note == "torn at the left"
    assert read_correction(results, "b").note == ""
    driver.find_element("css selector", "#note").send_keys("folded")
    driver.get("about:blank")
    time.sleep(0.5)
    assert read_correction(results, "b").note == "folded"


def test_a_change_that_meets_another_ones_is_taken_back_and_said(page, results):
    page.open("a")
    page.run("review.app.isUnsaved = true")  # the page does not look at the folder for a while
    write_correction(results, "a", Correction(verdict="rejected", note="mine"), size=(320, 456))
    page.press("b")
    page.drag([150, 150], [220, 150])
    page.wait("document.querySelector('#message').textContent.includes('changed elsewhere')")
    page.saved()
    assert page.run("return [review.app.open.correction.note, review.app.open.correction.areas.length]") == [
        "mine",
        0,
    ]
    kept = read_correction(results, "a")
    assert (kept.verdict, kept.note, bool(kept.ignored)) == ("rejected", "mine", False)


def test_a_change_that_cannot_be_saved_is_not_pretended(page, results, monkeypatch):
    page.open("a")

    def refuse(path, *arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    page.press("b")
    page.drag([150, 150], [220, 150])
    page.wait("document.querySelector('#message').textContent.includes('could not be saved')")
    assert "No space left" in page.message
    assert page.run("return review.app.open.correction.areas.length") == 0
    monkeypatch.undo()
    page.drag([150, 150], [220, 150])
    page.wait("review.app.open.correction.areas.length === 1")
    page.saved()
    assert len(read_correction(results, "a").ignored.areas) == 1


def test_a_change_without_an_answer_is_sent_again(page, results):
    page.open("a")
    page.run("review.fetch = window.fetch; window.fetch = () => Promise.reject(new TypeError('offline'))")
    page.press("u")
    page.wait("document.querySelector('#saved').textContent === 'not saved'")
    assert "does not answer" in page.message
    assert read_correction(results, "a").verdict is None
    page.run("window.fetch = review.fetch")
    page.wait("document.querySelector('#saved').textContent === 'saved'")
    assert page.message == ""
    assert read_correction(results, "a").verdict == "unsure"


def test_a_plane_is_saved_although_the_section_is_left_at_once(page, results):
    """Apply, another section and a search wait for the slider that was moved last."""
    page.open("a")
    position = page.run("return review.app.open.plane.position_um") + 250
    page.slide("position_um", position)
    page.press("ARROW_DOWN")
    page.wait("review.app.open.name === 'b' && !review.app.opening")
    page.saved()
    found = read_correction(results, "a")
    assert found.moves_plane
    assert found.anchoring.position_um == pytest.approx(position, abs=1)


def test_a_folder_fills_while_it_is_open(driver, results, tmp_path):
    out = tmp_path / "being registered"
    out.mkdir()
    with served(out) as address:
        driver.get_log("browser")  # of other tests
        driver.get(address)
        page = object.__new__(Page)
        page.driver = driver
        page.wait("document.querySelector('#counts').textContent === 'no section registered yet'")
        assert page.run("return document.querySelector('#empty').checkVisibility()")
        for key in "lta":  # keys have nothing to act on yet
            page.press(key)
        shutil.copytree(results / "b", tmp_path / "b")
        (tmp_path / "b").rename(out / "b")
        page.wait("review.app.open?.name === 'b' && review.view.lines && review.view.overview")
        assert not page.run("return document.querySelector('#empty').checkVisibility()")
        assert page.run("return document.querySelector('#counts').textContent") == "1 of 1 to review"
        assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", [1400, 800, 500])
def test_the_whole_section_is_shown_in_a_window_of_any_size(page, driver, width):
    driver.set_window_size(width, 700)
    try:
        page.wait("review.view.window[0] > 150")
        page.wait(
            "(() => { const [w, h] = review.view.window, [x, y] = review.view.toScreen([228, 160]);"
            "return Math.abs(x - w / 2) < 1 && Math.abs(y - h / 2) < 1 && review.view.zoom * 456 <= w; })()"
        )
    finally:
        driver.set_window_size(1400, 900)


def test_reasons_are_listed_one_a_line(page, results):
    record = read_record(results / "a")
    write_record(results / "a", record | {"flag": "look", "reason": "one thing (gap 2); another (beyond 3)"})
    page.open("a")
    page.wait("document.querySelector('#flag').textContent === 'look'")
    items = page.run("return [...document.querySelectorAll('#reason li')].map((item) => item.textContent)")
    assert items == ["one thing (gap 2)", "another (beyond 3)"]
