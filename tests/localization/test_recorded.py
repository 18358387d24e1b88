"""Sections that were located before are known again, until something changes that their planes depend on."""

import json
import os

import numpy as np
import pytest

from atlalign.atlas.planes import Anchoring
from atlalign.atlas.targets import Target
from atlalign.localization import Located, Recorded, write_located
from atlalign.localization.recorded import LOCATED, RECORD
from atlalign.registration.jobs import Job

SETTINGS = {"atlas_sha256": "a", "locator_sha256": "b", "independent": False, "section_spacing_um": None}
PLACE = Anchoring.of_points_um(np.array([[0, 100, 6000.0], [0, 8000, 0], [11400, 0, 0]]), (64, 96))


@pytest.fixture
def job(tmp_path):
    (tmp_path / "a_s3.png").write_bytes(b"image")
    return Job(tmp_path / "a_s3.png", brain="one", options={"background": "auto"})


@pytest.fixture
def located(job):
    return Located(
        job, "one", 3, side="left", anchoring=PLACE, position_um=6050.0, tilt_deg=(0.0, 0.7), error_um=80.0,
        error_deg=(1.0, 2.0), likeness=0.9, flag="look", reason="it fits about as well at 7000 µm", other_um=7000.0,
    )  # fmt: skip


def test_what_was_located_is_known_again(tmp_path, job, located):
    assert Recorded(tmp_path / "out", SETTINGS).unchanged([job]) == {}
    (tmp_path / "out").mkdir()
    Recorded(tmp_path / "out", SETTINGS).write([located])
    (found,) = Recorded(tmp_path / "out", SETTINGS).unchanged([job]).values()
    assert found.anchoring.vectors == pytest.approx(PLACE.vectors)
    for name in (
        "job",
        "brain",
        "number",
        "side",
        "position_um",
        "tilt_deg",
        "error_deg",
        "flag",
        "reason",
        "other_um",
    ):
        assert getattr(found, name) == getattr(located, name)
    assert np.isnan(found.elsewhere_um)


def test_a_plane_that_a_person_moved_stays_where_it_was_moved(tmp_path, job, located):
    Recorded(tmp_path, SETTINGS).write([located])
    write_located(tmp_path / LOCATED, [located], Target())
    (found,) = Recorded(tmp_path, SETTINGS).unchanged([job]).values()
    assert (found.position_um, found.flag) == (6050, "look")
    content = json.loads((tmp_path / LOCATED).read_text())
    content["slices"][0]["anchoring"][1] -= 10  # voxels from the back
    (tmp_path / LOCATED).write_text(json.dumps(content))
    (found,) = Recorded(tmp_path, SETTINGS).unchanged([job]).values()
    assert found.position_um == pytest.approx(PLACE.position_um + 250)
    assert (found.side, found.reason) == ("left", "moved by hand")


@pytest.mark.parametrize("change", ["image", "time", "options", "brain", "atlas", "spacing", "damage"])
def test_a_change_is_seen(tmp_path, job, located, change):
    settings = dict(SETTINGS)
    Recorded(tmp_path, settings).write([located])
    if change == "image":
        job.path.write_bytes(b"another")
    elif change == "time":
        os.utime(job.path, ns=(1, 1))
    elif change == "options":
        job = job._replace(options={"background": "dark"})
    elif change == "brain":
        job = job._replace(brain="two")
    elif change == "damage":
        (tmp_path / RECORD).write_text('{"' + str(job.path) + '": 3}')
    else:
        settings |= {"atlas_sha256": "c"} if change == "atlas" else {"section_spacing_um": 50.0}
    assert Recorded(tmp_path, settings).unchanged([job]) == {}


def test_sections_of_other_calls_remain(tmp_path, job, located):
    Recorded(tmp_path, SETTINGS).write([located])
    (tmp_path / "b.png").write_bytes(b"image")
    other = Job(tmp_path / "b.png")
    record = Recorded(tmp_path, SETTINGS)
    assert [one.job.path for one in record.others([other])] == [job.path]
    assert record.others([job]) == []
    assert Recorded(tmp_path, SETTINGS | {"atlas_sha256": "c"}).others([other]) == []
