"""The server answers whoever knows its token, about its folder alone."""

import http.client
import json
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from atlalign.registration.corrections import read_correction
from atlalign.registration.points import load_without_points

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
    assert "leads elsewhere" in content["error"]
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
