"""`atlalign register` as a user calls it: batches, errors, and resuming."""

import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from markupsafe import escape

from atlalign.atlas.atlas import phantom_atlas
from atlalign.atlas.phantom_anatomy import phantom_ontology
from atlalign.atlas.planes import Anchoring
from atlalign.atlas.section_lists import read_list
from atlalign.cli import calls, main
from atlalign.cli.calls import read_calls, record_call
from atlalign.errors import InputError
from atlalign.io.images import read_image, read_labels
from atlalign.io.tiff_writer import write_tiff
from atlalign.localization import Located
from atlalign.models import save_model
from atlalign.networks import LocalUNet, PlaneLocatorNet
from atlalign.registration import (
    Job,
    Options,
    atlas_recipe,
    batch_tables,
    find_jobs,
    image_recipe,
    register_batch,
    register_section,
    section_files,
    section_folder,
)
from atlalign.registration.quality import LIMITS, MEASURES, Limit
from atlalign.registration.record import check_whole, read_record, write_record
from atlalign.registration.transform import SectionTransform

SHAPE = (32, 48)
FILES = {
    "forward.nii.gz",
    "inverse.nii.gz",
    "labels.tif",
    "overlay.png",
    "preview.json",
    "reference.tif",
    "reference_labels.tif",
    "regions.csv",
    "registered.tif",
    "transform.json",
}
TABLES = {"registrations.csv", "visualign.json", "index.html"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A network that moves everything a little, in some direction."""
    torch.manual_seed(0)
    network = LocalUNet(
        start_filters=(4,),
        downsample_filters=(4,),
        middle_filters=(4,),
        upsample_filters=(4,),
        end_filters=(4,),
    )
    return save_model(network, tmp_path_factory.mktemp("model") / "local.pt")


@pytest.fixture
def sections(tmp_path) -> Path:
    """Three sections of the phantom, each its own way, and their list."""
    atlas = phantom_atlas(image_shape=(96, 144), spacing_um=1200)
    folder = tmp_path / "sections"
    folder.mkdir()
    rows = ["filename,p"]
    for name, position in (("a.png", 4000), ("b.tif", 6000), ("c.jpg", 8000)):
        image = (atlas.section(position)[0] * 255).byte().numpy()
        pixels = {
            "a.png": 255 - np.stack([image] * 3, -1),
            "b.tif": image.astype(np.uint16) * 200,
            "c.jpg": image,
        }
        write(folder / name, pixels[name])
        rows.append(f"{name},{position}")
    (folder / "list.csv").write_text("\n".join(rows))
    return folder


def write(path: Path, pixels: np.ndarray) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))


@pytest.fixture
def run(model, tmp_path, capsys):
    """Run the command, and return its exit status and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str]:
        options = ["--model", model, "--atlas", "phantom", "--out", tmp_path / "out", "--image-shape", *SHAPE]
        given = {str(argument) for argument in arguments}
        for name, replacing in (("--model", "--model"), ("--atlas", "--atlas"), ("--atlas", "--reference")):
            if replacing in given:
                place = options.index(name)
                del options[place : place + 2]
        status = main([str(argument) for argument in ("register", *options, *arguments)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def table(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "registrations.csv").open() as file:
        return {row["section"]: row for row in csv.DictReader(file)}


def test_a_list_is_registered_and_each_section_has_its_files(run, sections, tmp_path):
    status, printed = run(sections)
    out = tmp_path / "out"
    assert status == 0
    assert "atlas phantom: 13.2 × 8.0 × 11.4 mm (AP × DV × ML), 132 planes of 100 µm" in printed
    assert "3 of 3 sections registered: " in printed
    assert {path.name for path in out.iterdir()} == {"a", "b", "c", "calls.json", *TABLES}
    rows = table(out)
    for name, background, kind in (
        ("a", "bright", np.uint8),
        ("b", "dark", np.uint16),
        ("c", "dark", np.uint8),
    ):
        assert {path.name for path in (out / name).iterdir()} == FILES
        registered = read_image(out / name / "registered.tif")
        transform = SectionTransform.load(out / name)
        assert registered.pixels.dtype == kind
        assert registered.pixels.shape[:2] == transform.reference.shape
        assert registered.pixel_um == pytest.approx(transform.reference.pixel_um, rel=1e-5)
        labels = read_labels(out / name / "labels.tif")
        assert labels.shape == (96, 144)
        with (out / name / "regions.csv").open() as file:
            table_of_regions = list(csv.DictReader(file))
        regions = {int(row["id"]): int(row["pixels"]) for row in table_of_regions}
        check_sides_and_parts(table_of_regions, labels, transform)
        ids, counts = np.unique(labels[labels > 0], return_counts=True)
        assert {i: n for i, n in regions.items() if n} == dict(
            zip(ids.tolist(), counts.tolist(), strict=True)
        )
        assert rows[name]["background"] == background
        assert rows[name]["flag"] in ("pass", "look", "fail")
        assert float(rows[name]["pixel_um_x"]) == pytest.approx(11400 / 143, rel=0.1)  # by fit
    assert json.loads((out / "visualign.json").read_text())["slices"][2]["filename"] == "c.jpg"
    assert SimpleITK.ReadImage(str(out / "a" / "overlay.png")).GetSize()[1] == 640


def check_sides_and_parts(
    rows: list[dict[str, str]], labels: np.ndarray, transform: SectionTransform
) -> None:
    """Check areas against the labels, the sides on which their pixels lie, and the tree of the phantom."""
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    points_mm = transform.to_reference(np.stack([x, y], axis=-1).reshape(-1, 2).astype(float))
    is_left = (transform.plane.to_atlas(points_mm)[:, 2] < 11400 / 2).reshape(labels.shape)
    pixel_mm2 = np.prod(transform.section.pixel_um) / 1e6
    for row in rows:
        parts = [region.id for region in phantom_ontology() if int(row["id"]) in region.path]
        for ids, suffix in (([int(row["id"])], ""), (parts, "_with_parts")):
            found = np.isin(labels, ids)
            expected = [found.sum(), (found & is_left).sum(), (found & ~is_left).sum()]
            areas = [float(row[f"{side}{suffix}_mm2"]) / pixel_mm2 for side in ("area", "left", "right")]
            assert areas == pytest.approx(expected, rel=1e-4, abs=1)
    top = rows[0]
    assert (top["acronym"], top["parent_id"], top["pixels"]) == ("root", "", "0")
    assert 0.4 < float(top["left_with_parts_mm2"]) / float(top["area_with_parts_mm2"]) < 0.6


def test_second_run_registers_only_missing_sections(run, sections, tmp_path):
    run(sections)
    out = tmp_path / "out"
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*")}
    content = (out / "b" / "forward.nii.gz").read_bytes()
    first = (out / "registrations.csv").read_bytes()
    shutil.rmtree(out / "b")
    status, printed = run(sections)
    assert status == 0
    assert "3 of 3 sections registered (2 in earlier calls)" in printed
    changed = {path.parent.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"b"}
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out / "b" / "forward.nii.gz"))).any()
    assert len((out / "b" / "forward.nii.gz").read_bytes()) == len(content)
    without_time = [line.split(",")[:-2] for line in first.decode().splitlines()]
    assert [
        line.split(",")[:-2] for line in (out / "registrations.csv").read_text().splitlines()
    ] == without_time


def test_tables_list_the_sections_of_all_calls(run, sections, tmp_path):
    """As of one call for each image, one of which fails, or a call that ends early."""

    def shown() -> tuple[set[str], set[str]]:
        slices = json.loads((tmp_path / "out" / "visualign.json").read_text())["slices"]
        return set(table(tmp_path / "out")), {entry["filename"] for entry in slices}

    run(sections / "b.tif", "--position", "6000")
    run(sections / "a.png", "--position", "4000")
    assert shown() == ({"a", "b"}, {"a.png", "b.tif"})
    assert table(tmp_path / "out")["b"]["file"] == "b.tif"
    slices = json.loads((tmp_path / "out" / "visualign.json").read_text())["slices"]
    assert [entry["nr"] for entry in slices] == [1, 2]
    assert run(sections / "c.jpg", "--position", "14000")[0] == 1
    assert shown() == ({"a", "b", "c"}, {"a.png", "b.tif"})
    assert table(tmp_path / "out")["c"]["flag"] == "fail"
    assert run(sections / "a.png", "--position", "5000")[0] == 1  # other results are there
    assert shown() == ({"a", "b", "c"}, {"a.png", "b.tif"})


def test_failures_of_all_calls_stay_in_the_tables_until_they_are_mended(run, sections, tmp_path):
    """Whichever call writes the tables last, and in whatever order the images are tried."""
    out, whole = tmp_path / "out", (sections / "b.tif").read_bytes()
    for name in ("a.png", "b.tif"):
        (sections / name).write_bytes(whole[:300])
        run(sections / name, "--position", "6000")
    run(sections / "missing.png", "--position", "6000")
    run(sections / "c.jpg", "--position", "8000")
    rows = table(out)
    assert [rows[name]["flag"] == "fail" for name in ("a", "b", "c", "missing")] == [True, True, False, True]
    assert "a.png: cannot be read" in rows["a"]["reason"]
    assert rows["b"]["file"] == "b.tif"
    assert "no such file" in rows["missing"]["reason"]
    shutil.copy(sections / "b.tif", sections / "missing.png")
    (sections / "a.png").unlink()
    for name in ("b.tif", "missing.png"):
        (sections / name).write_bytes(whole)
        run(sections / name, "--position", "6000")
    assert set(table(out)) == {"b", "c", "missing"}  # of a deleted image there is no row
    assert "fail" not in {row["flag"] for name, row in table(out).items() if name != "c"}
    (sections / "a.png").write_bytes(whole)
    run(sections / "a.png", "--position", "6000")
    assert not (out / "failures.json").exists()
    assert set(table(out)) == {"a", "b", "c", "missing"}


def test_results_of_a_version_that_measured_less_are_made_again(run, sections, tmp_path):
    image = [sections / "b.tif", "--position", "6000"]
    run(*image)
    record = read_record(tmp_path / "out" / "b")
    write_record(tmp_path / "out" / "b", {name: value for name, value in record.items() if name != "gap"})
    assert "registered: " in run(*image)[1]
    assert read_record(tmp_path / "out" / "b")["gap"] == record["gap"]
    assert "(1 in earlier calls)" in run(*image)[1]


def test_nan_measure_fails_with_its_name(run, sections, tmp_path, monkeypatch):
    def nowhere(job, recipe):
        found = register_section(job, recipe)
        quality = replace(found.registered.quality, inverse_consistency_um=math.nan)
        return found._replace(registered=found.registered._replace(quality=quality))

    monkeypatch.setattr(section_folder, "register_section", nowhere)
    for _ in range(2):  # new, and judged again
        run(sections / "b.tif", "--position", "6000")
        row = table(tmp_path / "out")["b"]
        assert row["flag"] == "fail"
        assert "inverse_consistency_um nan, fail above 500" in row["reason"]


@pytest.mark.parametrize("content", ["", "{}", '{"aligner": "atlalign 1", "failures": [3]}'])
def test_damaged_failures_are_forgotten(content, run, sections, tmp_path):
    run(sections / "a.png", "--position", "4000")
    (tmp_path / "out" / "failures.json").write_text(f'{{"aligner": "atlalign 1"}}{content}')
    assert run(sections / "a.png", "--position", "4000")[0] == 0
    assert set(table(tmp_path / "out")) == {"a"}


def test_tables_are_written_by_one_process_at_a_time(run, sections, tmp_path, monkeypatch):
    """A table that is begun before another process finishes a section never replaces that process's table."""
    run(sections / "a.png", "--position", "4000")
    out, begun = tmp_path / "out", threading.Event()

    def slowly(*arguments):
        if not begun.is_set():
            begun.set()
            shutil.copytree(out / "a", out / "b")
            later.start()
            later.join(timeout=0.3)
        write_table(*arguments)

    write_table = batch_tables.write_table
    later = threading.Thread(target=lambda: batch_tables.write_tables(out))
    monkeypatch.setattr(batch_tables, "write_table", slowly)
    run(sections / "a.png", "--position", "4000")
    later.join()
    assert set(table(out)) == {"a", "b"}


def test_calls_that_end_together_are_all_kept(tmp_path, monkeypatch):
    begun = threading.Event()

    def slowly(out):
        found = read_calls(out)
        if not begun.is_set():
            begun.set()
            later.start()
            later.join(timeout=0.3)
        return found

    later = threading.Thread(target=record_call, args=(tmp_path, ["two"]))
    monkeypatch.setattr(calls, "read_calls", slowly)
    record_call(tmp_path, ["one"])
    later.join()
    assert [call.arguments for call in read_calls(tmp_path)] == [["one"], ["two"]]


def test_a_broken_image_does_not_stop_the_others_and_is_named_at_the_end(run, sections, tmp_path):
    whole = (sections / "b.tif").read_bytes()
    (sections / "b.tif").write_bytes(whole[:300])
    write(sections / "c.jpg", np.zeros((50, 60), np.uint8))
    status, printed = run(sections)
    out = tmp_path / "out"
    assert status == 1
    assert "2 of 3 sections could not be registered:\n  b.tif: cannot be read as an image" in printed
    assert "c.jpg: expected a section, but every pixel is 0" in printed
    assert {path.name for path in out.iterdir()} == {"a", "calls.json", "failures.json", *TABLES}
    assert table(out)["b"]["flag"] == "fail"
    assert "cannot be read" in table(out)["b"]["reason"]
    (sections / "b.tif").write_bytes(whole)
    assert "2 of 3 sections registered (1 in earlier calls)" in run(sections)[1]
    assert (out / "b" / "transform.json").is_file()


def test_a_section_with_half_an_anchoring_fails_alone(run, sections, tmp_path):
    slices = [{"filename": str(sections / name), "width": 144, "height": 96} for name in ("a.png", "b.tif")]
    slices[0]["anchoring"] = [456, 284, 320, -456]
    slices[1]["anchoring"] = [456, 284, 320, -456, 0, 0, 0, 0, -320]
    (tmp_path / "list.json").write_text(json.dumps({"slices": slices}))
    status, printed = run(tmp_path / "list.json")
    assert status == 1
    assert "1 of 2 sections registered" in printed
    assert "a.png: anchoring: expected nine numbers, found 4" in printed
    assert table(tmp_path / "out")["a"]["flag"] == "fail"
    own = ["--reference", sections / "c.jpg", "--reference-pixel-um", "80", "--out", tmp_path / "own"]
    assert "2 of 2 sections registered" in run(tmp_path / "list.json", *own)[1]  # nor does it matter there


def test_other_options_do_not_mix_with_existing_results(run, sections, tmp_path):
    run(sections)
    status, printed = run(sections, "--background", "dark")
    assert status == 1
    assert "a holds results made with another --background" in printed
    assert table(tmp_path / "out")["a"]["flag"] != "fail"  # what is there is still good
    shutil.rmtree(tmp_path / "out" / "b")
    status, printed = run(sections, "--background", "dark")
    assert status == 1
    assert "1 of 3 sections registered" in printed  # b, past the others
    assert table(tmp_path / "out")["b"]["background"] == "dark"
    status, printed = run(sections, "--background", "dark", "--overwrite")
    assert status == 0
    assert "(1 in earlier calls)" in printed
    assert table(tmp_path / "out")["a"]["background"] == "dark"


def test_results_that_lack_a_file_are_made_again(run, sections, tmp_path):
    run(sections)
    lost = tmp_path / "out" / "a" / "labels.tif"
    lost.unlink()
    own = lost.with_name("cells.csv")
    own.touch()
    assert "a holds files other than results (cells.csv)" in run(sections)[1]
    own.unlink()
    assert "3 of 3 sections registered (2 in earlier calls)" in run(sections)[1]
    assert lost.exists()


def test_another_reference_of_the_same_name_is_another_one(run, sections, tmp_path):
    """Each of its files counts by its content, and so do the size of its voxels and the names of its regions."""
    atlas = phantom_atlas(image_shape=(64, 96), spacing_um=1200)

    def volumes(folder: Path, labels: np.ndarray) -> tuple[Path, Path]:
        folder.mkdir()
        np.save(folder / "atlas.npy", atlas.template.numpy())
        np.save(folder / "ids.npy", labels)
        return folder / "atlas.npy", folder / "ids.npy"

    names = tmp_path / "names.csv"
    names.write_text("id,acronym,name,structure_id_path,color_hex_triplet\n1,a,A,/1/,ff0000\n")
    template, ids = volumes(tmp_path / "one", atlas.annotation.numpy())
    _, other_ids = volumes(tmp_path / "two", atlas.annotation.numpy() * 2)
    first = [sections / "b.tif", "--position", "6000", "--spacing-um", "1200", "--atlas"]
    assert run(*first, template, "--annotation", ids)[0] == 0
    named = [*first, template, "--annotation", ids, "--ontology", names, "--out", tmp_path / "named"]
    for arguments, lacks_names in (
        ([*first, template, "--annotation", ids], True),
        (named, False),
        ([*first, template, "--out", tmp_path / "without_regions"], False),
    ):
        assert ("--ontology CSV" in run(*arguments)[1]) == lacks_names
    assert "(1 in earlier calls)" in run(*first, template, "--annotation", ids)[1]
    for changed in (
        [template, "--annotation", other_ids],
        [template],
        [template, "--annotation", ids, "--ontology", names],
        [template, "--annotation", ids, "--spacing-um", "1210"],
    ):
        status, printed = run(*first, *changed)
        assert (status, "b holds results made with another reference:" in printed) == (1, True), changed


@pytest.mark.parametrize(("shift", "stored"), [(0, np.uint32), (2**40, np.uint64), (2**62, np.uint64)])
def test_ids_of_any_size_come_through_unchanged(run, sections, tmp_path, shift, stored):
    atlas = phantom_atlas(image_shape=(64, 96), spacing_um=1200)
    ids = atlas.annotation.numpy().astype(np.uint64)
    ids[ids > 0] += np.uint64(shift)
    turned = [tmp_path / "atlas.npy", "--annotation", tmp_path / "ids.npy", "--axes", "RL,AP,DV"]
    for path, volume in ((turned[0], atlas.template.numpy()), (turned[2], ids)):
        np.save(path, volume[:, :, ::-1].transpose(2, 0, 1))
    assert run(sections / "b.tif", "--position", "6000", "--spacing-um", "1200", "--atlas", *turned)[0] == 0
    out = tmp_path / "out" / "b"
    reference, labels = read_labels(out / "reference_labels.tif"), read_labels(out / "labels.tif")
    assert (reference == ids[5]).all()
    assert reference.dtype == labels.dtype == stored
    with (out / "regions.csv").open() as file:
        pixels = {int(row["id"]): int(row["pixels"]) for row in csv.DictReader(file)}
    assert pixels.keys() == set(ids[5][ids[5] > 0].tolist())
    assert {i: n for i, n in pixels.items() if n} == {
        i: n for i, n in zip(*(a.tolist() for a in np.unique(labels, return_counts=True)), strict=True) if i
    }
    shapes = tmp_path / "regions.geojson"  # what QuPath reads whatever the ids
    back = ["--labels", "--with", out, "--to", "section", "--out", shapes]
    assert main([str(word) for word in ("transform", out / "reference_labels.tif", *back)]) == 0
    features = json.loads(shapes.read_text())["features"]
    assert {int(feature["properties"]["metadata"]["region_id"]) for feature in features} == pixels.keys()


def test_negative_labels_of_a_reference_are_refused(run, sections, tmp_path):
    tifffile.imwrite(tmp_path / "l.tif", np.full((96, 144), -3, np.int32))
    given = ["--reference", sections / "c.jpg", "--reference-labels", tmp_path / "l.tif"]
    status, printed = run(sections / "b.tif", *given, "--reference-pixel-um", "80")
    assert status == 1
    assert "l.tif: expected integer ids from 0" in printed
    assert "-3" in printed


def test_another_image_of_the_same_name_is_another_reference(run, sections, tmp_path):
    atlas = phantom_atlas(image_shape=(64, 96), spacing_um=1200)
    for folder, position in (("one", 6000), ("two", 8000)):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "r.png", (atlas.section(position)[0] * 255).byte().numpy())
    write(tmp_path / "l.tif", atlas.labels(6000)[0].numpy().astype(np.uint16))
    one, two = (["--reference", tmp_path / folder / "r.png"] for folder in ("one", "two"))
    size = ["--reference-pixel-um", "120"]
    assert run(sections / "b.tif", *one, *size)[0] == 0
    assert "(1 in earlier calls)" in run(sections / "b.tif", *one, *size)[1]
    for changed in (
        [*two, *size],
        [*one, *size, "--reference-labels", tmp_path / "l.tif"],
        [*one, "--reference-pixel-um", "121"],
    ):
        status, printed = run(sections / "b.tif", *changed)
        assert (status, "b holds results made with another reference:" in printed) == (1, True), changed


def empty(folder: Path) -> None:
    (folder / "forward.nii.gz").write_bytes(b"")


def change_a_byte(folder: Path) -> None:
    with (folder / "labels.tif").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def cut_record(folder: Path) -> None:
    (folder / "transform.json").write_text("{")


def change_record(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "transform.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))

    return change


DAMAGES = {
    "empty": empty,
    "byte": change_a_byte,
    "cut": cut_record,
    "null": lambda folder: (folder / "transform.json").write_text("null"),
    "binary": lambda folder: (folder / "transform.json").write_bytes(b"\xff\x00"),
    "files": change_record("files", None),
    "settings": change_record("settings", []),
    "visualign": change_record("visualign", {}),
    "pixels": change_record("pixel_um", "80"),
    "measure": change_record("folding", None),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_result_is_made_again(damage, run, sections, tmp_path):
    first, second = ([sections / name, "--position", "6000"] for name in ("b.tif", "c.jpg"))
    run(*first)
    folder = tmp_path / "out" / "b"
    good = {name: (folder / name).read_bytes() for name in FILES - {"transform.json"}}
    damage(folder)
    assert run(*second)[0] == 0  # of which it is no business
    assert table(tmp_path / "out")["b"]["flag"] == "fail"
    assert "damaged" in table(tmp_path / "out")["b"]["reason"]
    status, printed = run(*first)
    assert (status, "registered: " in printed) == (0, True)
    assert {name: (folder / name).read_bytes() for name in good} == good
    assert "damaged" not in table(tmp_path / "out")["b"]["reason"]
    assert "(1 in earlier calls)" in run(*first)[1]
    assert not (tmp_path / "out" / "errors.log").exists()


def test_copied_results_are_still_whole(run, sections, tmp_path):
    """Their files have other times, so that their contents are compared."""
    image = [sections / "b.tif", "--position", "6000"]
    run(*image)
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copyfile)
    assert "(1 in earlier calls)" in run(*image, "--out", tmp_path / "copy")[1]


@pytest.mark.parametrize("name", ["thesis.txt", "labels.tif"])
def test_a_foreign_folder_is_left_alone(run, sections, tmp_path, name):
    own = tmp_path / "out" / "a" / name
    own.parent.mkdir(parents=True)
    own.write_text("years of work")
    for more in ([], ["--overwrite"]):
        status, printed = run(sections, *more)
        assert status == 1
        assert f"a holds files other than results ({name})" in printed
        assert own.read_text() == "years of work"


def test_user_files_beside_results_are_kept(run, sections, tmp_path):
    run(sections)
    own = tmp_path / "out" / "a" / "cells.csv"
    own.write_text("x,y")
    (own.parent / ".DS_Store").touch()
    again = [sections, "--background", "dark", "--overwrite"]
    assert "a holds files other than results (cells.csv): move it away" in run(*again)[1]
    own.rename(tmp_path / "cells.csv")
    assert run(*again)[0] == 0
    assert {path.name for path in own.parent.iterdir()} == FILES


def test_a_file_in_place_of_the_folder_of_results_is_named(run, sections, tmp_path):
    (tmp_path / "out").write_text("a file")
    status, printed = run(sections)
    assert status == 1
    assert "out is not a folder" in printed
    assert (tmp_path / "out").read_text() == "a file"


def test_interrupted_batch_prints_one_line_and_resumes(run, sections, tmp_path, monkeypatch):
    def interrupted(path, *args, **kwargs):
        if path.parent.name.endswith("-b"):
            raise KeyboardInterrupt
        write_tiff(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(section_files, "write_tiff", interrupted)
        status, printed = run(sections, "--workers", "1")
    assert status == 130
    assert "interrupted" in printed
    assert set(table(tmp_path / "out")) == {"a"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a", "calls.json", *TABLES}
    assert run(sections)[0] == 0
    assert set(table(tmp_path / "out")) > {"a", "b"}


def test_ctrl_c_ends_several_workers_when_they_have_finished_their_sections(
    run, sections, tmp_path, monkeypatch
):
    both_at_work = threading.Barrier(2)

    def interrupting(*args, **kwargs):
        if args[0].parent.name.endswith("-b") and args[0].name == "registered.tif":
            both_at_work.wait(timeout=60)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        elif args[0].parent.name.endswith("-a") and args[0].name == "registered.tif":
            both_at_work.wait(timeout=60)
            time.sleep(0.5)
        write_tiff(*args, **kwargs)

    threads = torch.get_num_threads()
    monkeypatch.setattr(section_files, "write_tiff", interrupting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    status, printed = run(sections, "--workers", "2")
    signal.signal(signal.SIGINT, before)
    assert status == 130
    assert "interrupted" in printed
    assert set(table(tmp_path / "out")) == {"a", "b"}  # c had not begun
    assert {path.name for path in (tmp_path / "out" / "a").iterdir()} == FILES
    assert torch.get_num_threads() == threads


def test_any_number_of_workers_comes_to_the_same(run, sections, tmp_path):
    outs = {}
    for workers in ("1", "2", "5"):
        assert run(sections, "--workers", workers)[0] == 0
        outs[workers] = (tmp_path / "out").rename(tmp_path / f"out{workers}")
    for path in sorted(outs["1"].rglob("*.tif")):
        for other in (outs["2"], outs["5"]):
            image = tifffile.imread(other / path.relative_to(outs["1"]))
            # Sums of another number of threads differ in their last bits.
            assert np.abs(image.astype(float) - tifffile.imread(path)).max() <= 1
    assert {name: row["flag"] for name, row in table(outs["5"]).items()} == {
        name: row["flag"] for name, row in table(outs["1"]).items()
    }
    status, printed = run(sections, "--workers", "0")
    assert status == 1
    assert "--workers: expected at least 1, got 0" in printed


@pytest.mark.parametrize("fails", ["write_tiff", "_write_overlay"])
def test_without_space_nothing_half_written_stays(run, sections, tmp_path, monkeypatch, fails):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(section_files, fails, full)
    status, printed = run(sections)
    assert status == 1
    assert "a cannot be written: No space left on device" in printed
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS])
def test_unwritable_folder_ends_the_batch(number, run, sections, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(section_files, "write_tiff", refuse)
    status, printed = run(sections)
    assert status == 1
    assert printed.count("cannot be written") == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("37 GiB"), "MemoryError: 37 GiB"),
        (RuntimeError("can't allocate memory"), "RuntimeError: can't allocate memory"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (ZeroDivisionError("\udcff"), "ZeroDivisionError: %FF"),
    ],
)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_any_error_of_one_section_is_a_row(error, said, workers, run, sections, tmp_path, monkeypatch):
    def fail_for_b(job, recipe):
        if job.name == "b":
            raise error
        return register_section(job, recipe)

    monkeypatch.setattr(section_folder, "register_section", fail_for_b)
    status, printed = run(sections, "--workers", workers)
    assert status == 1
    assert "2 of 3 sections registered" in printed
    assert f"b.tif: {said}" in printed or f"b.tif: OSError: [Errno 5] {said}" in printed
    assert "Traceback" not in printed
    rows = table(tmp_path / "out")
    assert [rows[name]["flag"] == "fail" for name in "abc"] == [False, True, False]
    log = (tmp_path / "out" / "errors.log").read_text()
    assert log.count("Traceback (most recent call last)") == 1
    assert "fail_for_b" in log
    assert str(sections / "b.tif") in log


def test_exit_is_not_recorded_as_failure(run, sections, monkeypatch):
    monkeypatch.setattr(section_folder, "register_section", lambda *_: sys.exit(3))
    with pytest.raises(SystemExit):
        run(sections)


NAMES = [
    "x" * 245 + ".png",
    "x" * 246 + ".png",
    os.fsdecode(b"m_\xfc.png"),
    "registrations.csv.png",
]


def test_any_name_of_a_file_has_its_results(run, sections, tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(sections / "a.png", folder / name)
    status, printed = run(folder, "--position", "4000")
    assert status == 1
    assert "3 of 4 sections registered" in printed
    assert "registrations.csv.png: " in printed
    rows = table(tmp_path / "out")
    assert {row["file"] for row in rows.values()} == {*NAMES} - {NAMES[2]} | {"m_%FC.png"}
    assert {path.parent.name for path in (tmp_path / "out").glob("*/transform.json")} == {*rows} - {
        "registrations.csv"
    }
    slices = json.loads((tmp_path / "out" / "visualign.json").read_text(encoding="utf-8"))["slices"]
    assert "m_%FC.png" in {entry["filename"] for entry in slices}
    assert "(3 in earlier calls)" in run(folder, "--position", "4000")[1]
    assert {path.name for path in tmp_path.iterdir()} == {"sections", "names", "out"}


def test_an_output_folder_that_ends_itk_is_a_sentence(run, sections, tmp_path):
    """ITK aborts the process at names that are not valid text."""
    out = tmp_path / os.fsdecode(b"\xfc")
    status, printed = run(sections, "--out", out)
    assert (status, "%FC: expected a name" in printed) == (1, True)
    assert not out.exists()


@pytest.mark.parametrize("name", ["\ud800.png", "a\0.png", "../..", "."])
def test_list_with_an_impossible_file_name(name, run, sections, tmp_path):
    slices = [
        {"filename": file, "width": 144, "height": 96, "anchoring": [456, 284, 320, -456, 0, 0, 0, 0, -320]}
        for file in (name, str(sections / "b.tif"))
    ]
    (tmp_path / "list.json").write_text(json.dumps({"slices": slices}))
    status, printed = run(tmp_path / "list.json")
    assert status == 1
    assert "1 of 2 sections registered" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"sections", "list.json", "out"}


# --- several runs in one folder ---------------------------------------------------------------------------------------


def test_two_runs_share_the_sections_of_a_folder(sections, model, tmp_path, monkeypatch):
    """Each section is made by one of them, all are whole, and both know all of them in the end."""
    made: list[str] = []
    both_at_work = threading.Barrier(2)

    def count(job, recipe):
        made.append(job.name)
        if len(made) <= 2:
            both_at_work.wait(timeout=60)
        return register_section(job, recipe)

    def register(rows: list[dict[str, str]]) -> None:
        recipe = atlas_recipe("phantom", model=model, image_shape=SHAPE)
        rows += [outcome.row for outcome in register_batch(find_jobs([sections]), recipe, tmp_path / "out")]

    monkeypatch.setattr(section_folder, "register_section", count)
    one: list[dict[str, str]] = []
    two: list[dict[str, str]] = []
    thread = threading.Thread(target=register, args=(one,))
    thread.start()
    register(two)
    thread.join()
    assert sorted(made) == ["a", "b", "c"]
    assert one == two
    assert [row["section"] for row in one] == ["a", "b", "c"]
    out = tmp_path / "out"
    assert set(table(out)) == {"a", "b", "c"}
    assert {path.name for path in out.iterdir()} == {"a", "b", "c", *TABLES}
    for name in "abc":
        assert {path.name for path in (out / name).iterdir()} == FILES
        check_whole(out / name)


def test_the_page_shows_all_sections_of_all_calls_and_the_reasons(run, sections, tmp_path):
    (sections / "broken.png").write_text("no image")
    run(sections / "a.png", "--position", "4000")
    run(sections / "broken.png", "--position", "4000")
    page = (tmp_path / "out" / "index.html").read_text()
    found = re.findall(r'data-title="(\w+)" data-flag="(\w+)"', page)
    assert found == [("a", table(tmp_path / "out")["a"]["flag"]), ("broken", "fail")]
    assert page.count('data-name="template"') == page.count('data-name="section"') == 1
    assert escape(table(tmp_path / "out")["broken"]["reason"]) in page
    assert "4000 µm" in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("registrations.csv", "date,animal\n"),
        ("index.html", "<!doctype html><title>my brain</title>"),
        (
            "visualign.json",
            '{"name":"","target":"ABA_Mouse_CCFv3_2017_25um.cutlas","slices":[]}',
        ),  # VisuAlign's own
        ("failures.json", '{"failures": 3}'),
    ],
)
def test_tables_of_the_users_own_are_kept(name, content, run, sections, tmp_path):
    own = tmp_path / "out" / name
    own.parent.mkdir()
    own.write_text(content)
    for more in ([], ["--overwrite"]):
        status, printed = run(sections, *more)
        assert (status, f"{name} was not written by `atlalign register`" in printed) == (1, True)
        assert own.read_text() == content
        assert list(own.parent.iterdir()) == [own]


def test_a_file_put_into_a_result_while_it_is_made_again_is_kept(run, sections, tmp_path, monkeypatch):
    image = [sections / "b.tif", "--position", "6000"]
    run(*image)
    own = tmp_path / "out" / "b" / "notes.txt"

    def slowly(job, recipe):
        own.write_text("mine")
        return register_section(job, recipe)

    monkeypatch.setattr(section_folder, "register_section", slowly)
    status, printed = run(*image, "--background", "dark", "--overwrite")
    assert (status, "b holds files other than results (notes.txt)" in printed) == (1, True)
    assert own.read_text() == "mine"


def test_section_without_position_is_located(run, sections, tmp_path, monkeypatch):
    def located(jobs, locator, **options):
        place = Anchoring.of_points_um(np.array([[0, 0, 6000.0], [0, 8000, 0], [11400, 0, 0]]), (64, 96))
        first, second = jobs
        return [
            Located(first, "", 1, side="left", anchoring=place),
            Located(second, "", 2, reason="it fits nowhere"),
        ]

    monkeypatch.setattr("atlalign.localization.unplaced.locate", located)
    status, printed = run(sections / "a.png", sections / "b.tif")
    assert (status, "b.tif: it fits nowhere" in printed) == (1, True)
    settings = json.loads((tmp_path / "out" / "a" / "transform.json").read_text())["settings"]
    assert (settings["position_um"], settings["hemisphere"]) == (6000, "left")
    assert [s.path.name for s in read_list(tmp_path / "out" / "located.json")] == ["a.png"]


def test_another_network_may_locate_the_sections(run, sections, tmp_path, monkeypatch):
    """`--locator` is used, named, and its planes are not those of the package's network."""
    network = PlaneLocatorNet((13.2, 8.0, 11.4), view_px=32, widths=(4, 4, 4, 4), hidden=4, atlas="fish")
    mine = save_model(network, tmp_path / "mine.safetensors")
    used = []

    def located(jobs, locator, *, known, **_):
        used.append((locator.network.atlas, sorted(known)))
        place = Anchoring.of_points_um(np.array([[0, 0, 6000.0], [0, 8000, 0], [11400, 0, 0]]), (64, 96))
        return [Located(job, "", 1, side="whole", anchoring=place) for job in jobs]

    monkeypatch.setattr("atlalign.localization.unplaced.locate", located)
    status, printed = run(sections / "a.png", "--locator", mine)
    assert (status, str(mine) in printed, "fish" in printed) == (0, True, True)
    assert "another --locator: choose another --out, or add --overwrite" in run(sections / "a.png")[1]
    status, printed = run(sections / "a.png", "--overwrite")
    assert (status, "the package's locator" in printed) == (0, True)
    assert used == [("fish", []), ("Allen Mouse Brain CCFv3", [])]
    status, printed = run(sections / "a.png", "--locator", tmp_path / "none.ckpt")
    assert (status, "--locator" in printed) == (1, True)


def test_located_sections_keep_their_planes(run, sections, tmp_path, monkeypatch):
    """A second run keeps the planes, a new section is located beside them, and a changed one anew."""
    asked: list[tuple[list[str], list[int]]] = []

    def located(jobs, locator, *, known, **_):
        asked.append(([job.path.name for job in jobs], sorted(known)))
        place = Anchoring.of_points_um(np.array([[0, 0, 6000.0], [0, 8000, 0], [11400, 0, 0]]), (64, 96))
        return [
            known.get(i, Located(job, "", i, side="whole", anchoring=place)) for i, job in enumerate(jobs)
        ]

    monkeypatch.setattr("atlalign.localization.unplaced.locate", located)
    assert run(sections / "a.png")[0] == 0
    status, printed = run(sections / "a.png")
    assert (status, "1 of 1 sections located earlier" in printed, len(asked)) == (0, True, 1)
    assert run(sections / "a.png", sections / "b.tif")[0] == 0
    assert asked[1] == (["a.png", "b.tif"], [0])
    os.utime(sections / "b.tif", ns=(1, 1))
    assert run(sections / "a.png", sections / "b.tif", "--overwrite")[0] == 0
    assert asked[2] == (["a.png", "b.tif"], [0])
    assert run(sections / "a.png", "--section-spacing-um", "50", "--overwrite")[0] == 0
    assert asked[3] == (["a.png"], [])
    assert [s.path.name for s in read_list(tmp_path / "out" / "located.json")] == ["a.png", "b.tif"]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--pixel-size-um", "80"], "--pixel-size-um"),
        (["--background", "dark"], "--background"),
        (["--refine", "20"], "--refine"),
        (["--independent"], "--independent"),
        (["--section-spacing-um", "50"], "--section-spacing-um"),
    ],
)
def test_results_of_other_options_are_refused_before_anything_is_located(
    run, sections, tmp_path, monkeypatch, options, name
):
    asked: list[list[str]] = []

    def located(jobs, locator, **_):
        asked.append([job.path.name for job in jobs])
        place = Anchoring.of_points_um(np.array([[0, 0, 6000.0], [0, 8000, 0], [11400, 0, 0]]), (64, 96))
        return [Located(job, "", 1, side="left", anchoring=place) for job in jobs]

    monkeypatch.setattr("atlalign.localization.unplaced.locate", located)
    assert run(sections / "a.png")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.glob("out/located*") if path.is_file()}
    assert len(before) == 3
    status, printed = run(sections / "a.png", *options)
    assert (status, f"another {name}: choose another --out, or add --overwrite" in printed) == (1, True)
    assert {path: path.read_bytes() for path in before} == before
    status, printed = run(sections / "a.png")
    assert (status, "1 of 1 sections located earlier" in printed) == (0, True)
    assert asked == [["a.png"]]
    status, printed = run(sections / "a.png", sections / "b.tif", *options)
    assert (status, asked[1:]) == (1, [["b.tif"]])  # a refused section does not stop the others
    assert run(sections / "a.png", *options, "--overwrite")[0] == 0
    assert asked[2:] == ([] if name == "--refine" else [["a.png"]])


def test_it_is_said_before_how_many_sections_are_located(run, sections, monkeypatch):
    def located(jobs, locator, *, progress, **_):
        place = Anchoring.of_points_um(np.array([[0, 0, 6000.0], [0, 8000, 0], [11400, 0, 0]]), (64, 96))
        return [Located(job, "", 1, side="whole", anchoring=place) for job in progress(jobs)]

    monkeypatch.setattr("atlalign.localization.unplaced.locate", located)
    (sections / "list.csv").write_text("filename,p\na.png,4000\nb.tif,\nc.jpg,\n")
    printed = run(sections)[1].splitlines()
    first, second = (
        next(place for place, line in enumerate(printed) if line.startswith(start))
        for start in ("2 of 3 sections without a position: locating", "locating: 2 of 2, ")
    )
    assert first < second


def test_every_measure_with_a_limit_is_a_column(run, sections, tmp_path):
    run(sections / "a.png", "--position", "4000")
    row = {
        name: float(cell)
        for name, cell in table(tmp_path / "out")["a"].items()
        if name in {*MEASURES, *LIMITS} - {"turned"} and cell
    }
    assert row.keys() >= set(LIMITS)
    assert row["similarity_loss"] == pytest.approx(
        row["similarity_before"] - row["similarity_after"], abs=1e-4
    )
    for place in ("turned", "elsewhere"):
        gain = row[f"likeness_{place}"] / row["likeness"] - 1
        assert row[f"better_{place}"] == pytest.approx(gain, abs=1e-4)
    record = json.loads((tmp_path / "out" / "a" / "transform.json").read_text())
    assert record["better_turned"] == pytest.approx(row["better_turned"], rel=1e-4)


def test_the_end_names_the_sections_to_look_at(run, sections, tmp_path):
    printed = run(sections, "--limit", "bending_um=-1,1e9")[1]
    rows = table(tmp_path / "out")
    for flag in ("look", "fail"):
        flagged = sorted(name for name in rows if rows[name]["flag"] == flag)
        assert (f"flagged {flag}: {', '.join(flagged)}\n" in printed) == bool(flagged)
    assert all(row["flag"] != "pass" for row in rows.values())
    assert str(tmp_path / "out" / "index.html") in printed
    again = run(sections, "--limit", "bending_um=-1,1e9")[1]
    assert "nothing to do: 3 of 3 sections registered (3 in earlier calls): 0 pass" in again


def test_results_at_a_given_position_are_refused_before_the_section_is_located(run, sections, monkeypatch):
    monkeypatch.setattr("atlalign.localization.unplaced.locate", lambda *_, **__: pytest.fail("located"))
    assert run(sections / "a.png", "--position", "4000")[0] == 0
    status, printed = run(sections / "a.png")
    assert (status, "another position: choose" in printed) == (1, True)


def test_one_image_takes_its_position_from_the_command(run, sections, tmp_path):
    status, _ = run(sections / "a.png", "--position", "4000", "--pixel-size-um", "80")
    assert status == 0
    row = table(tmp_path / "out")["a"]
    assert (row["pixel_um_x"], row["pixel_size_from"], row["placed_by"]) == ("80", "user", "scale")


def test_the_position_lies_in_the_atlas(run, sections):
    status, printed = run(sections / "a.png", "--position", "14000")
    assert status == 1
    assert "position: expected 0 to 13200 µm (atlas 'phantom'), got 14000" in printed
    assert "registered (" not in printed  # the reason is all there is to say


def test_custom_reference_image(run, sections, tmp_path):
    atlas = phantom_atlas(image_shape=(64, 96), spacing_um=1200)
    write(tmp_path / "r.png", (atlas.section(4000)[0] * 255).byte().numpy())
    write(tmp_path / "l.tif", atlas.labels(4000)[0].numpy().astype(np.uint16))
    own = ("--reference", tmp_path / "r.png", "--reference-labels", tmp_path / "l.tif")
    status, printed = run(sections / "a.png", *own)
    assert status == 1
    assert "--reference-pixel-um" in printed
    status, _ = run(sections / "a.png", *own, "--reference-pixel-um", "120")
    assert status == 0
    out = tmp_path / "out" / "a"
    assert {path.name for path in out.iterdir()} == FILES
    assert SectionTransform.load(out).plane is None
    assert not (tmp_path / "out" / "visualign.json").exists()


def test_half_a_section(run, sections, tmp_path):
    image = read_image(sections / "b.tif").pixels
    image[:, 72:] = 0
    write(sections / "b.tif", image)
    assert run(sections / "b.tif", "--position", "6000", "--hemisphere", "left")[0] == 0
    labels = read_labels(tmp_path / "out" / "b" / "labels.tif")
    assert (labels[:, :60] > 0).mean() > 5 * (labels[:, 84:] > 0).mean()


@pytest.mark.parametrize("how", ["seen from behind", "mirrored", "anchored"])
def test_ml_counts_from_the_left_of_the_brain(run, sections, tmp_path, how):
    """It is at the image's left, but where --mirrored or an anchoring whose x falls along the image say otherwise."""
    anchored = {"filename": str(sections / "b.tif"), "width": 144, "height": 96, "nr": 1}
    anchored["anchoring"] = [456, 284, 320, -456, 0, 0, 0, 0, -320]
    (tmp_path / "list.json").write_text(json.dumps({"slices": [anchored]}))
    image = [sections / "b.tif", "--position", "6100", "--place", "stretch"]
    options = {
        "seen from behind": image,
        "mirrored": [*image, "--mirrored"],
        "anchored": [tmp_path / "list.json"],
    }
    assert run(*options[how])[0] == 0
    transform = SectionTransform.load(tmp_path / "out" / "b")
    left, right = transform.plane.to_atlas(transform.to_reference(np.array([[30.0, 48.0], [114.0, 48.0]])))
    assert (left[2] < 5700 < right[2]) if how == "seen from behind" else (right[2] < 5700 < left[2])


def test_refinement_raises_the_similarity(run, sections, tmp_path):
    run(sections / "a.png", "--position", "4000")
    before = float(table(tmp_path / "out")["a"]["similarity_after"])
    status, _ = run(sections / "a.png", "--position", "4000", "--refine", "20", "--overwrite")
    assert status == 0
    closely = float(table(tmp_path / "out")["a"]["similarity_after"])
    assert closely > before
    again = ("--position", "4000", "--refine", "20", "--refine-smoothness", "0.01")
    assert "--overwrite" in run(sections / "a.png", *again)[1]  # it would be another result
    assert run(sections / "a.png", *again, "--overwrite")[0] == 0
    assert float(table(tmp_path / "out")["a"]["similarity_after"]) != closely
    assert "expected 0.005 to 0.2" in run(sections / "a.png", *again[:-1], "2")[1]
    assert (
        "refine: expected at least 0, got -1"
        in run(sections / "a.png", "--position", "4000", "--refine", "-1")[1]
    )


@pytest.mark.parametrize(
    ("position", "better"),
    [
        ("6600", None),
        ("7600", "1000 µm further to the front"),
        ("5600", "1000 µm further back"),
    ],
)
def test_wrong_position_is_flagged_with_a_better_one(run, sections, tmp_path, position, better):
    """The section shows the middle of the plane from 6000 to 7200 µm."""
    run(sections / "b.tif", "--position", position, "--place", "stretch")
    row = table(tmp_path / "out")["b"]
    elsewhere, here = float(row["likeness_elsewhere"]), float(row["likeness"])
    assert (elsewhere > here) is (better is not None)
    if better:
        assert float(row["elsewhere_um"]) == 6600 - float(position)
        assert f"fits better on a plane {better} (better_elsewhere" in row["reason"]


def test_a_section_that_lies_upside_down_is_turned_unless_its_turn_is_given(run, sections, tmp_path):
    upright = read_image(sections / "b.tif").pixels
    write(sections / "b.tif", np.ascontiguousarray(upright[::-1, ::-1]))
    b = [sections / "b.tif", "--position", "6600", "--overwrite"]
    run(*b, "--place", "fit")
    row = table(tmp_path / "out")["b"]
    assert abs(float(row["turn"])) == pytest.approx(180, abs=5)
    assert "fits better turned" not in row["reason"]
    for given in (["--place", "fit", "--turn", "0"], ["--place", "stretch"]):
        run(*b, *given)
        row = table(tmp_path / "out")["b"]
        assert float(row["turn"]) == 0
        assert "fits better turned by " in row["reason"], given


def test_mirrored_half_section_is_flagged(run, sections, tmp_path):
    image = read_image(sections / "b.tif").pixels
    image[:, :72] = 0
    write(sections / "b.tif", image)
    half = [sections / "b.tif", "--position", "6600", "--hemisphere", "left", "--place", "fit"]
    run(*half)
    assert "fits better mirrored (better_turned" in table(tmp_path / "out")["b"]["reason"]
    run(*half, "--mirrored", "--overwrite")
    assert "fits better" not in table(tmp_path / "out")["b"]["reason"]


def test_only_turns_are_tried_for_a_reference_image(run, sections, tmp_path):
    own = ["--reference", sections / "c.jpg", "--reference-pixel-um", "80", "--place", "stretch"]
    run(sections / "b.tif", *own)
    row = table(tmp_path / "out")["b"]
    assert (row["turned"].split("by")[0], float(row["elsewhere_um"])) == ("turned ", 0)


def test_limits_can_be_set(run, sections, tmp_path):
    run(sections / "a.png", "--position", "4000", "--limit", "displacement_max_um=0,0.001")
    row = table(tmp_path / "out")["a"]
    assert row["flag"] == "fail"
    assert "displacement_max_um" in row["reason"]


def test_new_limits_apply_to_earlier_results(run, sections, tmp_path):
    image = [sections / "a.png", "--position", "4000", "--limit"]
    flags = []
    for limit in ("displacement_max_um=0,0.001", "displacement_max_um=0,9e9"):
        assert run(*image, limit)[0] == 0
        flags.append(table(tmp_path / "out")["a"]["flag"])
    assert "(1 in earlier calls): 0 pass, 1 look, 0 fail" in run(*image, limit)[1]
    assert flags == ["fail", "look"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--limit", "fold=1,2"], "unknown measure 'fold'"),
        (["--limit", "folding=1"], "expected folding=LOOK,FAIL"),
        (["--limit", "folding=2,1"], "--limit folding=2,1: "),
        (["--limit", "folding=nan,nan"], "--limit folding=nan,nan: "),
        (["--image-shape", "100000", "100000"], "image_shape: expected at most 8 GiB"),
        (["--images", "no"], "--images: expected the folder of the images"),
        (["--image-shape", "1", "96"], "image_shape: expected (H, W), whole numbers of at least 2 px"),
        (
            ["--pixel-size-um", "0"],
            "pixel_size_um: expected at least",
        ),
        (["--reference-labels", "l.tif"], "--reference-labels needs --reference"),
        (["--device", "toaster"], "expected a device of this machine"),
        (["--model", "nothing.pt"], "there is no model nothing.pt"),
        (["--atlas", "no.h5"], "no.h5: no such file"),
        (["--place", "anchoring"], "expected an anchored section"),
        (["--place", "scale"], "--place scale: expected"),
        (["--channel", "5"], "a.png: expected a channel in 0 … 2, got 5"),
        (["--turn", "400"], "turn: expected -360° to 360°, got 400"),
        (["--reference", "no.png"], "--position-um cannot be combined with --reference"),
        (["--spacing-um", "10"], "atlas 'phantom' has its own annotation, ontology, spacing and axes"),
        (["--axes", "AP,DV,ML"], "atlas 'phantom' has its own annotation, ontology, spacing and axes"),
    ],
)
def test_bad_options_give_one_sentence(run, sections, tmp_path, arguments, sentence):
    status, printed = run(sections / "a.png", "--position", "4000", *arguments)
    assert status == 1
    assert sentence in printed
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("listing", ["list.csv", "brain.json"])
def test_results_may_lie_beside_the_images_and_their_list(run, sections, listing):
    """Run again, the tables of results do not count as lists."""
    if listing == "brain.json":
        (sections / "list.csv").unlink()
        entry = {"width": 144, "height": 96, "anchoring": [456, 264.5, 320, -456, 0, 0, 0, 0, -320]}
        slices = [{"filename": name, **entry} for name in ("a.png", "damaged.png")]
        (sections / listing).write_text(json.dumps({"slices": slices}))
    else:
        (sections / listing).write_text((sections / listing).read_text() + "\ndamaged.png,6000")
    (sections / "damaged.png").write_text("no image")
    for before in (0, 3 if listing == "list.csv" else 1):
        status, printed = run(sections, "--out", sections)
        assert (status, "damaged.png" in printed) == (1, True)
        assert (f"registered ({before} in earlier calls)" if before else "registered: ") in printed
    assert {"registrations.csv", "visualign.json"} < {path.name for path in sections.iterdir()}


def test_results_never_replace_the_list_that_they_come_from(run, sections):
    numbers = [456, 264.5, 320, -456, 0, 0, 0, 0, -320]
    slices = [{"filename": "a.png", "width": 144, "height": 96, "anchoring": numbers}]
    content = json.dumps({"slices": slices})
    (sections / "list.csv").unlink()
    (sections / "visualign.json").write_text(content)
    for given in (sections, sections / "visualign.json"):
        status, printed = run(given, "--out", sections)
        assert (status, (sections / "visualign.json").read_text()) == (1, content)
        assert "visualign.json: the results would overwrite" in printed


def test_a_registered_image_has_a_limit(sections, monkeypatch):
    """A small image of fine pixels asks for many more pixels all over the reference."""
    recipe = atlas_recipe("phantom", image_shape=SHAPE)
    job = Job(sections / "a.png", 4000.0, options={"pixel_size_um": 20.0})
    monkeypatch.setattr("atlalign.registration.output_size._LARGEST_PX", 100_000)
    with pytest.raises(InputError, match=r"a\.png: --output-um: expected"):
        register_section(job._replace(options={**job.options, "output_um": 20.0}), recipe)


def test_images_of_one_name_are_distinguished_by_their_folders(run, sections, tmp_path):
    other = shutil.copytree(sections, tmp_path / "second")
    status, _ = run(sections / "b.tif", other / "b.tif", other / "a.png", "--position", "6000")
    assert status == 0
    assert {path.parent.name for path in (tmp_path / "out").glob("*/transform.json")} == {
        "sections_b", "second_b", "a",
    }  # fmt: skip


def test_a_list_may_say_how_each_image_is_to_be_read_and_placed(run, sections, tmp_path):
    """What it says of one holds for that one alone; what it leaves open is what the command says."""
    rows = ["filename;p;Mirrored;turn;place;background;pixel_size_um;channel",
            "a.png;4000;yes;;stretch;bright;;", "b.tif;6000;;-12,5;;;70,5;", "c.jpg;8000;no;;;;;"]  # fmt: skip
    (sections / "list.csv").write_text("\n".join(rows))
    assert run(sections, "--mirrored", "--place", "fit")[0] == 0
    names = ("mirrored", "turn", "place", "background", "pixel_size_um", "channel")
    records = {name: json.loads((tmp_path / "out" / name / "transform.json").read_text()) for name in "abc"}
    found = {key: tuple(record["settings"][name] for name in names) for key, record in records.items()}
    assert found["a"] == (True, None, "stretch", "bright", None, None)
    assert found["b"] == (True, -12.5, "fit", "auto", 70.5, None)
    assert found["c"] == (False, None, "fit", "auto", None, None)
    assert records["b"]["pixel_um"] == [70.5, 70.5]


def test_the_pages_of_one_file_are_sections_of_their_own(run, sections, tmp_path):
    pixels = read_image(sections / "b.tif").pixels
    tifffile.imwrite(sections / "b.tif", np.stack([pixels[::-1], pixels]), photometric="minisblack")
    image = (sections / "b.tif", "--position", "6000")
    assert "b.tif: expected one image, found 2 pages: for a section, choose one with --page" in run(*image)[1]
    assert run(*image, "--page", "1")[0] == 0
    (sections / "list.csv").write_text("filename,p,page\nb.tif,6000,1\nb.tif,6000,0\n")
    assert run(sections)[0] == 0
    found = {
        name: read_image(tmp_path / "out" / name / "registered.tif").pixels
        for name in ("b", "b_page1", "b_page0")
    }
    assert (found["b"] == found["b_page1"]).all()
    assert (found["b"] != found["b_page0"]).any()
    (sections / "list.csv").write_text("filename,p,page\nb.tif,6000,2\n")
    assert "b.tif: expected a page (--page) in 0 … 1, got 2" in run(sections, "--overwrite")[1]


def test_a_plane_of_a_stack_is_registered(run, sections, tmp_path):
    pixels = read_image(sections / "b.tif").pixels
    tifffile.imwrite(
        sections / "z.tif", np.stack([pixels * 0, pixels]), photometric="minisblack", metadata={"axes": "ZYX"}
    )
    assert (
        "z.tif: expected one image, found a z-stack of 2 planes"
        in run(sections / "z.tif", "--position", "6000")[1]
    )
    assert run(sections / "z.tif", sections / "b.tif", "--position", "6000", "--z", "1")[0] == 1
    (sections / "list.csv").write_text("filename,p,z\nz.tif,6000,1\nb.tif,6000,\n")
    assert run(sections, "--overwrite")[0] == 0
    found = [read_image(tmp_path / "out" / name / "registered.tif").pixels for name in "zb"]
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize(
    ("column", "cell", "sentence"),
    [
        (
            "mirrored",
            "perhaps",
            "a.png: line 2, mirrored: expected one of yes, no, true, false, 1, 0, found 'perhaps'",
        ),
        ("channel", "DAPI", "a.png: expected the number or name of a channel, found none called 'DAPI'"),
        ("page", "first", "a.png: line 2, page: expected a number, found 'first'"),
        ("z", "1.5", "a.png: z: expected the number of a plane, max or best, got 1.5"),
        ("z", "1", "a.png: expected a plane (--z) in 0 … 0, got 1"),
        ("turn", "left", "a.png: line 2, turn: expected a number, found 'left'"),
        ("turn", "nan", "a.png: line 2, turn: expected a number, found 'nan'"),
        ("turn", "-450", "a.png: turn: expected at least -360, got -450.0"),
        ("quarter_turns", "1", "a.png: line 2, quarter_turns: expected a column turn in degrees"),
        (
            "place",
            "left",
            "a.png: line 2, place: expected one of auto, anchoring, scale, fit, stretch, found 'left'",
        ),
    ],
)
def test_wrong_entry_of_a_list_fails_only_its_image(run, sections, column, cell, sentence):
    (sections / "list.csv").write_text(f"filename,p,{column}\na.png,4000,{cell}\nb.tif,6000,\n")
    status, printed = run(sections)
    assert status == 1
    assert "1 of 2 sections registered" in printed
    assert sentence in printed


def test_a_section_is_registered_in_python_as_by_the_command(run, model, sections, tmp_path):
    assert run(sections)[0] == 0
    recipe = atlas_recipe("phantom", model=model, image_shape=SHAPE)
    jobs = find_jobs([str(sections)])
    for job, outcome in zip(jobs, register_batch(jobs, recipe, str(tmp_path / "python")), strict=True):
        written, here = (SectionTransform.load(tmp_path / name / job.name) for name in ("out", "python"))
        found = register_section(job, recipe).registered
        for transform in (written, found.transform):
            assert torch.equal(transform.forward.mm, here.forward.mm)
        assert outcome.row["similarity_after"] == found.quality.similarity_after
    point = np.array([[40.0, 30.0]])
    assert np.array_equal(here.to_atlas(point), here.plane.to_atlas(here.to_reference(point)))
    with pytest.raises(InputError, match=r"a\.png: expected the position"):
        register_section(Job(sections / "a.png"), recipe)
    own = image_recipe(sections / "b.tif", reference_pixel_um=80, model=model, image_shape=SHAPE)
    with pytest.raises(InputError, match="expected a registration to an atlas"):
        register_section(jobs[0], own).registered.transform.to_atlas(point)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"place": "left"}, "unknown place 'left'"),
        ({"background": "grey"}, "unknown background 'grey'"),
        ({"turn": "left"}, "turn: expected a number, got left"),
        ({"limits": {"fold": Limit(0, 1)}}, "unknown measure 'fold'"),
    ],
)
def test_options_are_checked_where_they_are_made(given, sentence):
    with pytest.raises(InputError, match=sentence):
        Options(**given)
    assert Options(limits={"folding": Limit(0, 1)}).limits == {**LIMITS, "folding": Limit(0, 1)}


def test_a_list_of_a_german_spreadsheet_is_registered_but_for_its_bad_rows(run, sections, tmp_path):
    (sections / "list.csv").write_text("Filename; P\na.png;4000,5\n;6000\nc.jpg;far\n;\n\n")
    status, printed = run(sections)
    assert status == 1
    assert "line 3: expected a filename, found none" in printed
    assert "c.jpg: line 4, p: expected a number, found 'far'" in printed
    assert SectionTransform.load(tmp_path / "out" / "a").plane.matrix[0, 2] == 4000.5
    assert {name: row["flag"] for name, row in table(tmp_path / "out").items() if name != "a"} == {
        "line 3": "fail",
        "c": "fail",
    }


@pytest.mark.slow
def test_an_image_of_300_megapixels_fits_into_4_gb(model, tmp_path):
    """In a process of its own, whose peak of memory can be told from that of the tests."""
    section = (phantom_atlas(image_shape=(150, 200), spacing_um=1200).section(6000)[0] * 255).byte().numpy()
    bands = (
        np.kron(rows, np.ones((100, 100), np.uint8))[..., None].repeat(3, axis=2) for rows in section[:, None]
    )
    huge = {"shape": (15000, 20000, 3), "dtype": np.dtype(np.uint8), "pixel_um": (0.55, 0.55)}
    write_tiff(tmp_path / "huge.tif", bands, **huge)
    options = (
        f"--model {model} --atlas phantom --position 6000 --image-shape 160 224 --out {tmp_path / 'out'}"
    )
    command = ["register", str(tmp_path / "huge.tif"), *options.split()]
    code = f"""
import resource
from atlalign.cli import calls, main
from atlalign.cli.calls import read_calls, record_call
assert main({command!r}) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) < 4e9
    out = tmp_path / "out" / "huge"
    with tifffile.TiffFile(out / "registered.tif") as file:
        assert file.pages.first.shape == (*SectionTransform.load(out).reference.shape, 3)
    with tifffile.TiffFile(out / "labels.tif") as file:
        assert file.pages.first.shape == (15000, 20000)


def test_real_sections_open_in_simpleitk_with_equal_results(run, test_data, tmp_path):
    """From the original image and the files alone: the registered image, and the labels in section space."""
    content = json.loads((test_data / "sections" / "sections.json").read_text())
    content["slices"] = [
        entry | {"filename": str(test_data / "sections" / entry["filename"])}
        for entry in content["slices"][4:6]
    ]
    (tmp_path / "two.json").write_text(json.dumps(content))
    atlas = (
        "--atlas",
        test_data / "allen_ccf_25um.h5",
        "--ontology",
        test_data / "structure_tree_safe_2017.csv",
    )
    status, _ = run(tmp_path / "two.json", *atlas)
    assert status == 0
    for entry in content["slices"]:
        out = tmp_path / "out" / Path(entry["filename"]).stem
        section = SimpleITK.ReadImage(entry["filename"])
        labels = SimpleITK.ReadImage(str(out / "labels.tif"))
        section.SetSpacing(labels.GetSpacing())
        for moving, name, transform, interpolator in (
            (section, "registered.tif", "forward.nii.gz", SimpleITK.sitkLinear),
            (SimpleITK.ReadImage(str(out / "reference_labels.tif")), "labels.tif", "inverse.nii.gz",
             SimpleITK.sitkNearestNeighbor),
        ):  # fmt: skip
            ours = SimpleITK.ReadImage(str(out / name))
            read = SimpleITK.ReadImage(str(out / transform), SimpleITK.sitkVectorFloat64)
            field = SimpleITK.DisplacementFieldTransform(read)
            theirs = SimpleITK.GetArrayFromImage(SimpleITK.Resample(moving, ours, field, interpolator))
            theirs = theirs[..., :3] if theirs.ndim == 3 else theirs  # the files have an opacity
            ours = SimpleITK.GetArrayFromImage(ours)
            covered = theirs != 0  # beyond the section ours is as bright as the slide
            assert covered.mean() > 0.2
            difference = np.abs(ours.astype(np.int64) - theirs)[covered]
            assert (difference > 1).mean() < 2e-3
    with (out / "regions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"CP", "PIR", "BST"} <= {row["acronym"] for row in rows}
    cortex = next(row for row in rows if row["acronym"] == "CTX")
    assert float(cortex["area_mm2"]) < 0.1
    assert 10 < float(cortex["left_with_parts_mm2"]) < 14
    assert 10 < float(cortex["right_with_parts_mm2"]) < 14
