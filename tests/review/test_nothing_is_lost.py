"""Changes are on disk at once, whatever ends the server; large folders stay usable."""

import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from atlalign.registration.corrections import read_correction
from atlalign.review.folder import ReviewFolder, to_json
from tests.browser import running_browser
from tests.review.conftest import served
from tests.review.test_page import Page

SERVE = """
import sys
from pathlib import Path
from atlalign.review.folder import ReviewFolder
from atlalign.review.registrar import Calls, Registrar
from atlalign.review.server import Review, page_address, review_server
out = Path(sys.argv[1])
server = review_server(Review(ReviewFolder(out), Registrar(out, lambda calls=Calls(): calls)))
print(page_address(server), flush=True)
server.serve_forever()
"""
SIZE = (320, 456)


def started(out: Path) -> tuple[subprocess.Popen, str]:
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(out)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


def edited(former: dict, chance: random.Random) -> dict:
    """Return a correction after one random edit."""
    kind = chance.choice(("point", "point", "delete", "verdict", "note", "area"))
    place = [chance.uniform(0, SIZE[1]), chance.uniform(0, SIZE[0])]
    if kind == "point":
        pair = [round(1000 * chance.random(), 3) for _ in range(2)] + [round(x, 3) for x in place]
        return former | {"points": [*former["points"], pair]}
    if kind == "delete":
        return former | {"points": former["points"][:-1]}
    if kind == "area":
        x, y = map(round, place)
        return former | {"areas": [*former["areas"][-5:], [[[x, y], [x + 9, y], [x + 9, y + 9]]]]}
    if kind == "verdict":
        return former | {"verdict": chance.choice(("accepted", "rejected", "unsure", None))}
    return former | {"note": "".join(chance.choices('aβ\n"\\', k=20))}


def same(one: dict, other: dict) -> bool:
    """Return whether corrections are the same but for the rounding of markers in their file."""
    plain = [{**found, "anchoring": None, "points": None} for found in (one, other)]
    pairs = [[value for pair in found["points"] for value in pair] for found in (one, other)]
    return plain[0] == plain[1] and pairs[0] == pytest.approx(pairs[1], abs=0.5)


@pytest.mark.slow
def test_edits_survive_kills(results):
    """200 random edits, the server killed five times in the midst of one: at most that one is missing."""
    chance = random.Random(0)
    folder = ReviewFolder(results)
    known = to_json(folder.load("b").correction, SIZE)
    edits = 0
    for round_ in range(5):
        server, address = started(results)
        parts = urlsplit(address)
        revision = folder.revision("b")
        for number in range(40):
            edits += 1
            wanted = edited(known, chance)
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
            connection.request(
                "PUT", f"{parts.path}correction?name=b&revision={revision}", json.dumps(wanted)
            )
            if number == 39:
                time.sleep(chance.uniform(0, 0.02))
                os.kill(server.pid, signal.SIGKILL)
                server.wait()
                server.stdout.close()
                connection.close()
                break
            answer = connection.getresponse()
            content = json.loads(answer.read())
            assert answer.status == 200, content
            known, revision = wanted, content["revision"]
            connection.close()
        found = to_json(folder.load("b").correction, SIZE)  # it always loads
        # A file each for points, areas and verdict: one edit changes one of them.
        assert same(found, known) or same(found, wanted), round_
        known = found
    assert edits == 200


@pytest.mark.slow
def test_300_sections_are_usable_within_3_seconds(registered, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for number in range(300):
        shutil.copytree(registered / "b", out / f"s{number:03}", copy_function=os.link)
    running = running_browser(tmp_path / "profile")
    driver = next(running)
    try:
        with served(out) as address:
            start = time.monotonic()
            page = Page(driver, address)
            seconds = time.monotonic() - start
            assert page.run("return document.querySelectorAll('#list li').length") == 300
            start = time.process_time()
            page.run("return fetch('sections').then((answer) => answer.text())")
            assert time.process_time() - start < 0.5  # each poll
            busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
            assert seconds < 3 * busy
    finally:
        running.close()


def test_the_address_is_all_that_is_printed_of_the_token(results, monkeypatch, capsys):
    from atlalign.cli import main

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", lambda self: None)
    assert main(["review", str(results), "--no-browser"]) == 0
    assert re.search(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", capsys.readouterr().out.replace("\n", ""))
    assert main(["review", str(results / "nothing")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert main(["review", str(results / "a"), "--no-browser"]) == 1
    assert "found no section in it" in capsys.readouterr().err
    assert read_correction(results, "a").verdict is None
