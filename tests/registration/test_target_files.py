"""Files of results name the atlas that was used, and their anchorings count in its voxels."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from atlalign.atlas.atlas import Atlas
from atlalign.atlas.phantom import phantom_volume
from atlalign.atlas.planes import Anchoring
from atlalign.atlas.section_lists import read_list
from atlalign.atlas.targets import ALLEN, Target
from atlalign.errors import InputError
from atlalign.registration import Recipe, atlas_recipe, find_jobs, register_batch
from atlalign.registration.corrections import (
    MARKERS,
    Correction,
    corrected,
    correction_folder,
    read_correction,
    shown_correction,
)
from atlalign.registration.record import RECORD, read_record
from atlalign.registration.references import AtlasReferences
from atlalign.review.folder import ReviewFolder

SIZE = (60, 90)
RAT = "rat_120um"
SHARE_TO_UM = np.array([[200.0, -100.0, 9000.0], [50.0, 9500.0, 200.0], [15800.0, 100.0, 300.0]])


def recipe_of(name: str, shape: tuple[int, int, int], um: float) -> Recipe:
    """Return the recipe of an atlas with cubic voxels; sections are placed without a network."""
    template, ids = phantom_volume(shape=shape, seed=0)
    atlas = Atlas(
        torch.from_numpy(template),
        torch.from_numpy(ids.astype(np.int32)),
        um,
        name,
        255.0,
        pixel_um=(um, um),
        origin_um=(um / 2, um / 2),
    )
    recipe = atlas_recipe("phantom", model="none", image_shape=(40, 57))
    return replace(recipe, references=AtlasReferences(atlas, (40, 57)))


@pytest.fixture(scope="module")
def rat() -> Recipe:
    return recipe_of("rat", (180, 80, 136), 120.0)


@pytest.fixture
def results(tmp_path, rat):
    """Register a section that is anchored to the rat; return the anchoring, the jobs and the folder of results."""
    target = rat.references.target
    anchoring = Anchoring.of_points_um(SHARE_TO_UM, SIZE)
    tifffile.imwrite(tmp_path / "a.tif", np.full(SIZE, 90, np.uint8))
    entry = {"filename": "a.tif", "nr": 4, "width": SIZE[1], "height": SIZE[0]}
    entry["anchoring"] = target.vectors(anchoring).ravel().tolist()
    (tmp_path / "list.json").write_text(json.dumps({**target.to_json(), "slices": [entry]}))
    jobs = find_jobs([tmp_path / "list.json"])
    (outcome,) = register_batch(jobs, rat, tmp_path / "out")
    assert not outcome.error
    return anchoring, jobs, tmp_path / "out"


def in_voxels(path) -> tuple[str, np.ndarray]:
    """Return the atlas that a file names, and the anchoring of its one section."""
    series = json.loads(path.read_text())
    (entry,) = series["slices"]
    return series["target"], np.array(entry["anchoring"]).reshape(3, 3)


def test_the_record_and_the_file_for_visualign_name_the_atlas(results, rat):
    anchoring, _, out = results
    record = read_record(out / "a")
    assert record["target"] == RAT
    assert Target.of_head(record, RECORD) == rat.references.target
    name, vectors = in_voxels(out / "visualign.json")
    assert name == RAT
    # 120 µm: the width of the image in voxels from left to right.
    assert vectors[1, 0] == pytest.approx(SHARE_TO_UM[2, 0] / 120)
    assert vectors == pytest.approx(rat.references.target.vectors(anchoring))


def test_the_file_for_visualign_can_be_registered_again(results, rat, tmp_path):
    anchoring, _, out = results
    moved = tmp_path / "again.json"
    moved.write_text((out / "visualign.json").read_text().replace("a.tif", str(tmp_path / "a.tif")))
    (job,) = find_jobs([moved])
    assert (job.target, job.anchoring.vectors) == (RAT, pytest.approx(anchoring.vectors))
    (outcome,) = register_batch([job], rat, tmp_path / "again")
    assert outcome.row["position_um"] == pytest.approx(anchoring.position_um)


def test_a_correction_on_the_page_names_the_atlas(results, rat):
    anchoring, jobs, out = results
    shown = shown_correction(out, "a")
    assert (shown.target.name, shown.anchoring.vectors) == (RAT, pytest.approx(anchoring.vectors))
    to_back = np.array([[0.0, 0, 600], [0, 0, 0], [0, 0, 0]])
    further = Anchoring.of_points_um(SHARE_TO_UM + to_back, SIZE)
    folder = ReviewFolder(out)
    # The page sends no target: it is that of the results.
    folder.save("a", Correction(further, moves_plane=True), folder.revision("a"))
    name, vectors = in_voxels(correction_folder(out, "a") / MARKERS)
    assert (name, vectors) == (RAT, pytest.approx(rat.references.target.vectors(further)))
    (outcome,) = register_batch(jobs, rat, out)
    assert outcome.row["position_um"] == pytest.approx(anchoring.position_um + 600)


def test_a_correction_in_one_atlas_is_not_used_in_another(results):
    anchoring, jobs, out = results
    folder = ReviewFolder(out)
    folder.save("a", Correction(anchoring, moves_plane=True), folder.revision("a"))
    mouse = recipe_of("mouse", (66, 40, 57), 200.0)
    unplaced = jobs[0]._replace(target="", anchoring=None)
    (outcome,) = register_batch([unplaced], mouse, out, overwrite=True)
    assert RAT in outcome.error
    assert "mouse_200um" in outcome.error
    assert corrected(unplaced, read_correction(out, "a")).target == RAT


def test_a_correction_without_voxels_counts_in_those_of_the_allen_atlas(results):
    """Earlier versions wrote such files whatever the atlas."""
    anchoring, jobs, out = results
    path = correction_folder(out, "a") / MARKERS
    path.parent.mkdir(parents=True)
    entry = {"filename": "a", "width": SIZE[1], "height": SIZE[0], "anchoring": anchoring.to_json()}
    path.write_text(json.dumps({"target": ALLEN, "slices": [entry]}))
    found = read_correction(out, "a")
    assert (found.target, found.anchoring.vectors) == (Target(), pytest.approx(anchoring.vectors))
    assert corrected(jobs[0]._replace(target=""), found).target == ""


def test_a_damaged_description_of_voxels_is_refused(results):
    _, _, out = results
    path = correction_folder(out, "a") / MARKERS
    path.parent.mkdir(parents=True)
    series = json.loads((out / "visualign.json").read_text())
    series["voxels"]["size_um"] = [120, 0, 120]
    path.write_text(json.dumps(series))
    with pytest.raises(InputError, match="size_um"):
        read_correction(out, "a")


def test_a_file_for_visualign_holds_the_sections_of_one_atlas(results, tmp_path, caplog):
    """Two atlases in one folder: a file can name only one."""
    _, jobs, out = results
    mouse = recipe_of("mouse", (66, 40, 57), 200.0)
    for name in ("b", "c"):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.full(SIZE, 90, np.uint8))
    others = [jobs[0]._replace(path=tmp_path / f"{name}.tif", target="") for name in ("b", "c")]
    with caplog.at_level(logging.WARNING):
        outcomes = list(register_batch(others, mouse, out))
    assert not any(outcome.error for outcome in outcomes)
    assert [record.levelname for record in caplog.records if "mouse_200um" in record.message] == ["WARNING"]
    assert json.loads((out / "visualign.json").read_text())["target"] == "mouse_200um"
    assert {listed.path.name for listed in read_list(out / "visualign.json")} == {"b.tif", "c.tif"}
