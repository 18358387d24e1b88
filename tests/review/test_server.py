"""The server answers only requests with its token, and only about its folder."""

import errno
import http.client
import json
import shutil
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from atlalign.cli import main
from atlalign.cli.calls import read_calls
from atlalign.cli.register import _with_call
from atlalign.cli.review import registrar_of
from atlalign.io.tables import read_table
from atlalign.registration.batch import Outcome
from atlalign.registration.batch_tables import TABLE
from atlalign.registration.corrections import read_correction
from atlalign.registration.jobs import Job
from atlalign.registration.points import load_without_points
from atlalign.registration.record import read_record
from atlalign.review import folder as folder_module
from atlalign.review.folder import ReviewFolder
from atlalign.review.registrar import _with_place

NOTHING = {
    "anchoring": None, "moves_plane": False, "points": [], "areas": [], "verdict": None, "note": "",
    "hemisphere": None,
}  # fmt: skip


@pytest.fixture
def ask(address):
    """Return a function that sends a request, and returns its status and content."""
    parts = urlsplit(address)

    def ask(method: str, place: str, body=None, *, path: str | None = None, **headers: str):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        content = None if body is None else json.dumps(body)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, (parts.path if path is None else path) + place, content, names)
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        is_json = answer.getheader("Content-Type") == "application/json"
        return answer.status, json.loads(found) if is_json else found

    ask.address = parts
    return ask


def test_only_the_token_opens_the_page(ask):
    assert ask("GET", "")[0] == 200
    for path in ("/", "/sections", "/wrong/sections", ask.address.path[:-2] + "/sections", "//sections"):
        assert ask("GET", "", path=path)[0] == 403
    assert ask("GET", "sections")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.org"},
        {"Host": "127.0.0.1.example.org:80"},
        {"Origin": "http://example.org"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
    ],
)
def test_other_hosts_and_origins_are_refused(ask, headers):
    assert ask("GET", "sections", **headers)[0] == 403
    assert ask("PUT", "correction?name=a&revision=", NOTHING, **headers)[0] == 403


def test_a_forwarded_port_is_this_machine(ask):
    assert ask("GET", "sections", Host="localhost:9999", Origin="http://localhost:9999")[0] == 200


def test_nothing_outside_of_the_folder_is_read_or_written(ask, results, tmp_path):
    (results.parent / "secret.txt").write_text("secret")
    elsewhere = tmp_path / "elsewhere"
    (results / "c").rename(elsewhere)
    (results / "link").symlink_to(elsewhere)
    for name in ("..", "../out/a", "/etc", "link", "a/../a", "", "corrections", "a\0"):
        for request in (
            ("GET", f"section?name={quote(name)}"),
            ("PUT", f"correction?name={quote(name)}&revision=", NOTHING),
            ("POST", f"outlines?name={quote(name)}", NOTHING),
            ("POST", f"apply?name={quote(name)}", None),
        ):
            status, content = ask(*request)
            assert status == 422, request
            assert "name of a section" in content["error"]
    for place in ("../secret.txt", "..%2fsecret.txt", "static/review.js", "review.py", "%2e%2e/secret.txt"):
        assert ask("GET", place)[0] == 404
    assert not (elsewhere / "corrections").exists()
    names = [row["name"] for row in ask("GET", "sections")[1]["sections"] if row["opens"]]
    assert names == ["a", "b"]


def test_corrections_that_lead_elsewhere_are_not_written(ask, results, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (results / "corrections").symlink_to(tmp_path / "elsewhere")
    status, content = ask("PUT", "correction?name=a&revision=", NOTHING)
    assert status == 422
    assert "found a link" in content["error"]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_wrong_requests_are_answered_in_a_sentence(ask):
    for body in (None, [], {"points": 1}, NOTHING | {"points": [[1, 2, 3]]}, NOTHING | {"verdict": "maybe"},
                 NOTHING | {"areas": [[[[0, 0], [1, "x"]]]]}, NOTHING | {"moves_plane": True},
                 NOTHING | {"anchoring": [1] * 8}, NOTHING | {"points": [[1, 2, 3, float("nan")]]}):  # fmt: skip
        status, content = ask("PUT", "correction?name=a&revision=x", body)
        assert status == 422, body
        assert content["error"]
    box = "picture?name=a&left={}&top=0&right={}&bottom=10&width={}&height=10"
    for numbers in ((-1, 10, 10), (0, 10_000, 10), (0, 10, 10_000), (0, 10, "x"), (5, 5, 10), ("nan", 5, 10)):
        assert ask("GET", box.format(*numbers))[0] == 422
    assert ask("POST", "plane?name=a", {"position_um": 1})[0] == 422
    assert ask("POST", "stroke?radius=0", [[0, 0]])[0] == 422
    assert ask("DELETE", "correction?name=a")[0] == 501
    assert ask("GET", "nothing")[0] == 404


def test_a_correction_is_saved_unless_it_was_changed_elsewhere(ask, results):
    first = ask("GET", "section?name=a")[1]
    wanted = NOTHING | {"verdict": "unsure", "note": "μ", "areas": [[[[1, 1], [9, 1], [9, 9]]]]}
    status, saved = ask("PUT", f"correction?name=a&revision={first['revision']}", wanted)
    assert status == 200
    assert read_correction(results, "a").verdict == "unsure"
    assert ask("PUT", f"correction?name=a&revision={first['revision']}", NOTHING)[0] == 409
    assert read_correction(results, "a").note == "μ"
    second = ask("GET", "section?name=a")[1]
    assert second["revision"] == saved["revision"]
    assert second["correction"] | {"anchoring": None} == wanted


def test_the_verdict_stands_in_the_table(results):
    before = read_table(results / TABLE)
    folder = ReviewFolder(results)
    saved = folder.load("b")
    folder.save("b", replace(saved.correction, verdict="rejected", note="torn"), saved.revision)
    table = read_table(results / TABLE)
    rows = {cells["section"]: cells for _, cells in table.records(["section", "verdict", "note"])}
    assert [rows[name]["verdict"] for name in "abc"] == ["", "rejected", ""]
    assert rows["b"]["note"] == "torn"
    was = {cells["section"]: cells for _, cells in before.records(["section"])}
    assert rows == was | {"b": was["b"] | {"verdict": "rejected", "note": "torn"}}


def test_outlines_pass_through_the_points_that_are_set(ask, results):
    """A point of an outline that is dragged lies where it was dropped, within half a pixel of the network's grid."""
    section = ask("GET", "section?name=b")[1]

    def outlines(correction):
        found = ask("POST", "outlines?name=b", correction)[1]
        lines, points = np.frombuffer(found, np.int32, 2)
        places = np.frombuffer(found, np.float32, 4 * points, 8 + 4 * lines).reshape(2, points, 2)
        assert np.frombuffer(found, np.int32, lines, 8).sum() == points
        return places

    reference, before = outlines(NOTHING)
    number = int(np.argmin(np.linalg.norm(before - (150, 150), axis=1)))
    target = before[number] + (9, -6)
    pair = [*reference[number].tolist(), *target.tolist()]
    correction = NOTHING | {"anchoring": section["former"], "points": [pair]}
    _, after = outlines(correction)
    grid = load_without_points(results / "b").forward.grid.pixel_um[0]
    half_pixel = 0.5 * grid / section["pixel_um"][0]
    assert np.abs(after[number] - target).max() < half_pixel
    far = np.linalg.norm(before - before[number], axis=1) > 0.4 * section["size"][1]
    assert np.abs(after - before)[far].max() < half_pixel


def test_the_atlas_plane_follows_the_settings(ask):
    section = ask("GET", "section?name=b")[1]
    assert section["plane"]["position_um"] == pytest.approx(6000, abs=1)
    wanted = section["plane"] | {"position_um": 6500.0, "tilt_ml_deg": 6.0}
    anchoring = ask("POST", "plane?name=b", {"plane": wanted, "correction": NOTHING})[1]["anchoring"]
    moved = NOTHING | {"anchoring": anchoring, "moves_plane": True}
    assert ask("POST", "template?name=b", moved)[1] != ask("POST", "template?name=b", NOTHING)[1]
    ask("PUT", f"correction?name=b&revision={section['revision']}", moved)
    assert ask("GET", "section?name=b")[1]["plane"] == pytest.approx(wanted, abs=1e-6)


def test_planes_between_two_that_a_person_moved(ask):
    def move(name: str, by: float, tilt: float) -> None:
        section = ask("GET", f"section?name={name}")[1]
        wanted = section["plane"] | {
            "position_um": section["plane"]["position_um"] + by, "tilt_dv_deg": tilt,
        }  # fmt: skip
        body = {"plane": wanted, "correction": NOTHING}
        anchoring = ask("POST", f"plane?name={name}", body)[1]["anchoring"]
        moved = NOTHING | {"anchoring": anchoring, "moves_plane": True}
        assert ask("PUT", f"correction?name={name}&revision={section['revision']}", moved)[0] == 200

    assert ask("POST", "spread?name=a")[0] == 422  # nothing to spread
    move("a", 200, 2.0)
    move("c", 400, 4.0)
    assert ask("POST", "spread?name=a")[1]["changed"] == ["b"]
    plane = ask("GET", "section?name=b")[1]["plane"]
    assert plane["position_um"] == pytest.approx(6300, abs=5)
    assert plane["tilt_dv_deg"] == pytest.approx(3, abs=0.05)


def test_a_section_is_located_again_from_the_plane_that_is_shown(ask, results):
    section = ask("GET", "section?name=b")[1]
    wanted = section["plane"] | {"position_um": 6350.0, "tilt_ml_deg": 3.0}
    start = ask("POST", "plane?name=b", {"plane": wanted, "correction": NOTHING})[1]["anchoring"]
    status, found = ask("POST", "locate?name=b", NOTHING | {"anchoring": start, "moves_plane": True})
    assert status == 200
    assert found["is_moved"]
    assert found["likeness"] > found["likeness_before"]
    assert found["plane"]["position_um"] == pytest.approx(6000, abs=120)
    assert ask("GET", "section?name=b")[1]["revision"] == section["revision"]  # nothing is saved
    # Another setting leaves the proportions and the place in the plane that were found.
    moved = NOTHING | {"anchoring": found["anchoring"], "moves_plane": True}
    settings = found["plane"] | {"position_um": found["plane"]["position_um"] + 100}
    after = ask("POST", "plane?name=b", {"plane": settings, "correction": moved})[1]["anchoring"]
    off = np.reshape(after, (3, 3)) - np.reshape(found["anchoring"], (3, 3))
    np.testing.assert_allclose(off, [[0, -4, 0], [0] * 3, [0] * 3], atol=1e-6)


def test_half_of_the_atlas_is_shown_for_half_a_section(ask, results):
    section = ask("GET", "section?name=b")[1]
    assert section["hemisphere"] == "whole"

    def reach(hemisphere) -> tuple[float, float]:
        """Return the first and the last column of the section in which outlines lie."""
        found = ask("POST", "outlines?name=b", NOTHING | {"hemisphere": hemisphere})[1]
        lines, points = np.frombuffer(found, np.int32, 2)
        columns = np.frombuffer(found, np.float32, 4 * points, 8 + 4 * lines)[2 * points :: 2]
        return float(columns.min()), float(columns.max())

    ask("POST", "plane?name=b", {"plane": section["plane"], "correction": NOTHING})  # waits for the atlas
    (first, last), middle = reach(None), section["size"][1] / 2
    assert reach("left") == pytest.approx((first, middle), abs=6)
    assert reach("right") == pytest.approx((middle, last), abs=6)
    assert reach("whole") == (first, last)
    assert ask("POST", "outlines?name=b", NOTHING | {"hemisphere": "top"})[0] == 422
    wanted = NOTHING | {"hemisphere": "left"}
    assert ask("PUT", f"correction?name=b&revision={section['revision']}", wanted)[0] == 200
    assert read_correction(results, "b").hemisphere == "left"
    (row,) = (row for row in ask("GET", "sections")[1]["sections"] if row["name"] == "b")
    assert row["is_applied"] is False


def test_a_folder_that_cannot_be_written_refuses_every_change(ask, results, monkeypatch):
    monkeypatch.setattr("atlalign.review.folder.ReviewFolder.is_writable", False)
    section = ask("GET", "section?name=a")[1]
    assert ask("GET", "sections")[1]["is_writable"] is False
    for request in (
        ("PUT", f"correction?name=a&revision={section['revision']}", NOTHING | {"verdict": "accepted"}),
        ("POST", "apply?name=a"),
        ("POST", "spread?name=a"),
    ):
        status, content = ask(*request)
        assert status == 403
        assert "read-only" in content["error"]
    assert not (results / "corrections").exists()


def test_a_folder_becomes_unwritable_later(ask, results, monkeypatch):
    """What the system refuses is an error of the request, and nothing is left half-written."""
    section = ask("GET", "section?name=a")[1]

    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    status, content = ask("PUT", f"correction?name=a&revision={section['revision']}", NOTHING | {"note": "x"})
    assert status == 403
    assert "ead-only" in content["error"]
    monkeypatch.undo()
    assert read_correction(results, "a").note == ""
    assert ask("GET", "section?name=a")[1]["revision"] == section["revision"]


def test_two_clients_never_undo_each_other(ask, results):
    """Each is told of the other's change before it can write; both changes are kept."""
    first, second = (ask("GET", "section?name=a")[1] for _ in range(2))
    point = [3000.0, 2000.0, 50.0, 60.0]
    moved = NOTHING | {"anchoring": first["former"], "points": [point]}
    assert ask("PUT", f"correction?name=a&revision={first['revision']}", moved)[0] == 200
    judged = NOTHING | {"verdict": "accepted"}
    status, said = ask("PUT", f"correction?name=a&revision={second['revision']}", judged)
    assert status == 409
    assert "changed elsewhere" in said["error"]
    (row,) = (row for row in ask("GET", "sections")[1]["sections"] if row["name"] == "a")
    assert (
        row["revision"] != second["revision"]
    )  # by which the second page sees that it is to be loaded again
    again = ask("GET", "section?name=a")[1]
    both = again["correction"] | {"verdict": "accepted"}
    assert ask("PUT", f"correction?name=a&revision={again['revision']}", both)[0] == 200
    kept = read_correction(results, "a")
    assert (len(kept.points), kept.verdict) == (1, "accepted")


def test_a_change_while_a_correction_is_read_is_not_undone(ask, results, monkeypatch):
    read = folder_module.shown_correction

    def read_before_a_change(out, name):
        found = read(out, name)
        other = ReviewFolder(out)
        other.save(name, replace(found, note="theirs"), other.revision(name))
        return found

    monkeypatch.setattr(folder_module, "shown_correction", read_before_a_change)
    section = ask("GET", "section?name=c")[1]
    monkeypatch.undo()
    wanted = section["correction"] | {"note": "mine"}
    assert ask("PUT", f"correction?name=c&revision={section['revision']}", wanted)[0] == 409
    assert read_correction(results, "c").note == "theirs"


def test_edits_of_two_clients_at_one_time_are_all_kept_or_refused(ask, results):
    def edit(number: int) -> int:
        section = ask("GET", "section?name=c")[1]
        wanted = section["correction"] | {"note": section["correction"]["note"] + f"{number},"}
        return ask("PUT", f"correction?name=c&revision={section['revision']}", wanted)[0]

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(edit, range(24)))
    assert set(statuses) <= {200, 409}
    kept = read_correction(results, "c").note.split(",")[:-1]
    assert sorted(kept, key=int) == [str(n) for n, status in enumerate(statuses) if status == 200]


def test_edits_are_kept_while_the_folder_is_registered(ask, results):
    """Sections appear as `register` finishes them; it leaves the corrections of others alone, and applies them."""
    shutil.rmtree(results / "c")
    assert [row["name"] for row in ask("GET", "sections")[1]["sections"] if row["opens"]] == ["a", "b"]
    (call,) = json.loads((results / "calls.json").read_text())
    arguments = ["register", *call["arguments"], "--overwrite", "--out", str(results)]
    edits, seen = 0, set()
    with ThreadPoolExecutor(1) as pool:
        registering = pool.submit(main, arguments)
        while not registering.done() or edits < 3:
            section = ask("GET", "section?name=a")[1]
            wanted = section["correction"] | {"note": str(edits), "hemisphere": "left"}
            assert ask("PUT", f"correction?name=a&revision={section['revision']}", wanted)[0] == 200
            seen |= {row["name"] for row in ask("GET", "sections")[1]["sections"] if row["opens"]}
            edits += 1
    assert registering.result() == 0
    assert seen == {"a", "b", "c"}
    kept = read_correction(results, "a")
    assert (kept.note, kept.hemisphere) == (str(edits - 1), "left")
    assert main(arguments) == 0
    assert read_record(results / "a")["settings"]["correction"]["hemisphere"] == "left"


def test_the_page_hears_of_a_call_that_ends_while_it_is_open(registered, tmp_path):
    out = Path(shutil.copytree(registered, tmp_path / "out"))
    calls = (out / "calls.json").read_bytes()
    (out / "calls.json").unlink()
    registrar = registrar_of(out)
    assert "calls.json" in registrar.problem("a")
    (out / "calls.json").write_bytes(calls)
    assert registrar.problem("a") == ""
    assert registrar.calls is registrar.calls  # read once


def test_a_section_whose_position_was_found_is_registered_again_there(results):
    record = read_record(results / "b")
    record["settings"] |= {"position_um": 6000.0, "hemisphere": "left"}
    job = _with_place(Job(results / "b.png"), record)
    assert (job.position_um, job.anchoring, job.options["hemisphere"]) == (6000.0, None, "left")
    anchored = {**record, "settings": {**record["settings"], "anchoring": list(range(9, 0, -1))}}
    anchored["settings"]["anchoring"] = [0, 280, 320, 456, 0, 0, 0, 0, -320]
    found = _with_place(Job(results / "b.png"), anchored)
    assert found.anchoring.to_json() == anchored["settings"]["anchoring"]
    assert found.anchoring.size == tuple(record["section"]["shape"])
    own = Job(results / "b.png", 5000.0, options={"hemisphere": None})
    assert _with_place(own, anchored) == own


def test_how_sections_are_registered_is_known_from_the_first_result_on(results):
    (results / "calls.json").unlink()
    options = Namespace(out=results, arguments=["x.png", "--out", "y"])
    failed, done = Outcome({}, error="no such file"), Outcome({})
    outcomes = _with_call(iter([failed, done, done]), options)
    assert next(outcomes) == failed
    assert read_calls(results) == []
    assert next(outcomes) == done
    assert [call.arguments for call in read_calls(results)] == [options.arguments]
    assert list(outcomes) == [done]


def test_a_call_that_registers_nothing_is_not_repeated(results):
    """A call with another option is refused; Apply registers by the call that made the results."""
    before = read_calls(results)
    arguments = ["register", *before[0].arguments, "--out", str(results), "--place", "fit"]
    assert main(arguments) == 1
    assert read_calls(results) == before


def test_sections_that_cannot_be_shown_say_why_beside_the_others(ask, results):
    folder = results / "corrections" / "a"
    folder.mkdir(parents=True)
    (folder / "review.json").write_text('{"verdict": "great"}')
    (results / "b" / "transform.json").write_text("{")
    rows = {row["name"]: row for row in ask("GET", "sections")[1]["sections"]}
    assert [row["opens"] for row in rows.values()] == [False, False, True]
    assert "found 'great'" in rows["a"]["reason"]
    assert "transform.json" in rows["b"]["reason"]
    for name in "ab":
        assert ask("GET", f"section?name={name}")[0] == 422
        assert ask("PUT", f"correction?name={name}&revision=", NOTHING)[0] in (409, 422)
    assert (folder / "review.json").read_text() == '{"verdict": "great"}'
    assert ask("GET", "section?name=c")[0] == 200
