"""`atlalign transform`: images, labels, points and shapes against SimpleITK and against each other, both ways."""

import csv
import json
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import SimpleITK
import torch

from atlalign.atlas.planes import Plane
from atlalign.cli import main
from atlalign.geometry import smooth_field
from atlalign.io.images import read_image, read_labels
from atlalign.io.tiff_writer import write_tiff
from atlalign.registration.displacement import Displacement
from atlalign.registration.grid import Grid
from atlalign.registration.record import FORWARD, INVERSE, LABELS, RECORD, REGIONS, read_record, write_record
from atlalign.registration.regions import RegionAreas, write_regions
from atlalign.registration.transform import SectionTransform
from tests.registration.test_visualign import ONTOLOGY

REFERENCE = Grid((60, 80), (50.0, 60.0))
SECTION = Grid((180, 240), (20.0, 21.0))
PLANE = Plane.at(5000, (100.0, 200.0), per_x=0.1)


@cache
def maps() -> SectionTransform:
    """Return a smooth map that moves by up to half a mm, with its inverse on the section's own grid."""
    drawn = smooth_field(1, REFERENCE.shape, generator=torch.Generator().manual_seed(3)).dvf[0]
    mm = drawn * torch.tensor([0.05, 0.06]).view(2, 1, 1) + torch.tensor([0.3, 0.1]).view(2, 1, 1)
    forward = Displacement(REFERENCE, mm.float())
    y, x = np.mgrid[: SECTION.shape[0], : SECTION.shape[1]]
    points = SECTION.to_mm(np.stack([x, y], axis=-1).reshape(-1, 2).astype(float))
    found = points.copy()
    for _ in range(50):  # q = p − u(q)
        found = points - (forward(found) - found)
    shift = torch.from_numpy((found - points).T.reshape(2, *SECTION.shape))
    return SectionTransform(forward, Displacement(SECTION, shift.float()), SECTION, PLANE)


LABEL_IMAGE = np.zeros((30, 40), np.uint32)
LABEL_IMAGE[8:24, 5:30] = 997
LABEL_IMAGE[10:20, 10:25] = 8
LABEL_IMAGE[13:16, 14:20] = 997


@pytest.fixture
def transform(tmp_path) -> SectionTransform:
    return save(maps(), tmp_path / "s1")


def save(
    transform: SectionTransform, folder: Path, record: Mapping[str, object] = MappingProxyType({})
) -> SectionTransform:
    folder.mkdir()
    transform.save(folder, record)
    grid = REFERENCE.with_shape(LABEL_IMAGE.shape)
    write(folder / LABELS, LABEL_IMAGE, grid)
    areas = RegionAreas(SECTION.pixel_um)
    list(areas.counted(transform.label(LABEL_IMAGE)))
    write_regions(folder / REGIONS, areas, ONTOLOGY)
    return transform


def write(path: Path, image: np.ndarray, grid: Grid) -> Path:
    write_tiff(path, [image], shape=image.shape, dtype=image.dtype, pixel_um=grid.pixel_um)
    return path


def run(source: Path, to: str, out: str, *options: str) -> Path:
    """Run the command on a file beside the folder s1 of results, and return what it writes there."""
    folder = source.parent
    arguments = [source, "--with", folder / "s1", "--to", to, "--out", folder / out, *options]
    assert main(["transform", *map(str, arguments)]) == 0
    return folder / out


def centres(grid: Grid) -> np.ndarray:
    """Return the pixels (h, w, 2) of a grid in mm."""
    y, x = np.mgrid[: grid.shape[0], : grid.shape[1]]
    return grid.to_mm(np.stack([x, y], axis=-1).astype(float))


def resampled(
    folder: Path, field: str, image: np.ndarray, source: Grid, target: Grid, interpolator: int
) -> np.ndarray:
    """Return what SimpleITK makes of an image with a file of a field alone."""
    moving = SimpleITK.GetImageFromArray(image)
    moving.SetSpacing([size / 1000 for size in source.pixel_um])
    reference = SimpleITK.Image(target.shape[1], target.shape[0], SimpleITK.sitkUInt8)
    reference.SetSpacing([size / 1000 for size in target.pixel_um])
    return SimpleITK.GetArrayFromImage(
        SimpleITK.Resample(moving, reference, read_by_itk(folder / field), interpolator, 0)
    )


def read_by_itk(path: Path) -> SimpleITK.Transform:
    field = SimpleITK.ReadImage(str(path))
    return SimpleITK.DisplacementFieldTransform(SimpleITK.Cast(field, SimpleITK.sitkVectorFloat64))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, table: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


# --- images -----------------------------------------------------------------------------------------------------------


def test_an_image_goes_to_the_reference_as_in_simpleitk(transform, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 250, SECTION.shape).astype(np.uint8)
    image[[0, -1]] = image[:, [0, -1]] = 0
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(tmp_path / "other.png"))
    registered = read_image(run(tmp_path / "other.png", "reference", "registered.tif"))
    assert registered.pixel_um == pytest.approx(transform.reference.pixel_um, rel=1e-6)
    theirs = resampled(tmp_path / "s1", FORWARD, image, SECTION, transform.reference, SimpleITK.sitkLinear)
    assert np.abs(registered.pixels.astype(int) - theirs).max() <= 1
    assert "180×240 px of 20 × 21 µm, given the extent of the section" in capsys.readouterr().out


def test_labels_go_to_the_section_as_in_simpleitk(transform, tmp_path):
    run(tmp_path / "s1" / LABELS, "section", "../labels.tif", "--with", str(tmp_path / "s1"), "--labels")
    labels = read_labels(tmp_path / "labels.tif")
    theirs = resampled(
        tmp_path / "s1",
        INVERSE,
        LABEL_IMAGE,
        REFERENCE.with_shape(LABEL_IMAGE.shape),
        SECTION,
        SimpleITK.sitkNearestNeighbor,
    )
    assert labels.dtype == np.uint32
    assert set(np.unique(labels)) == {0, 8, 997}
    assert (labels == theirs).mean() > 0.9995


@pytest.mark.parametrize("shape", [(180, 240), (90, 120), (45, 60), (360, 480), (26, 34)])
def test_an_image_of_another_size_shows_the_same_section(transform, tmp_path, shape):
    """Each pixel holds where it lies in mm, so that the registered image must hold where forward says."""
    size = [SECTION.pixel_um[i] * SECTION.shape[1 - i] / shape[1 - i] for i in (0, 1)]
    x, y = ((np.arange(shape[1 - i]) + 0.5) * size[i] - SECTION.pixel_um[i] / 2 for i in (0, 1))
    mapped = transform.forward(centres(transform.reference).reshape(-1, 2)).reshape(
        *transform.reference.shape, 2
    )
    inner = (mapped > 0.3).all(axis=-1) & (mapped < (4.4, 3.4)).all(axis=-1)
    assert inner.mean() > 0.5
    for axis, ramp in enumerate((np.tile(x, (shape[0], 1)), np.tile(y[:, None], (1, shape[1])))):
        source = write(tmp_path / "ramp.tif", ramp.astype(np.float32), SECTION)
        found = read_image(run(source, "reference", "out.tif", "--overwrite")).pixels
        assert np.abs(found / 1000 - mapped[..., axis])[inner].max() < 1e-4


@pytest.mark.parametrize("shape", [(60, 80), (30, 40), (119, 159), (72, 80)])
def test_an_image_of_the_reference_goes_to_the_section_at_any_size(transform, tmp_path, shape):
    grid = REFERENCE.with_shape(shape)
    mapped = transform.to_reference(SECTION.to_pixels(centres(SECTION).reshape(-1, 2))).reshape(
        *SECTION.shape, 2
    )
    inner = (mapped > 0.1).all(axis=-1) & (mapped < (3.8, 3.4)).all(axis=-1)
    for axis in (0, 1):
        source = write(tmp_path / "ramp.tif", centres(grid)[..., axis].astype(np.float32), grid)
        found = read_image(run(source, "section", "out.tif", "--overwrite")).pixels
        assert np.abs(found - mapped[..., axis])[inner].max() < 1e-4


def test_one_channel_of_several_is_taken(transform, tmp_path):
    import tifffile

    channels = np.random.default_rng(0).integers(0, 999, (2, *SECTION.shape)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "two.ome.tif", channels, metadata={"axes": "CYX"})
    found = read_image(run(tmp_path / "two.ome.tif", "reference", "out.tif", "--channel", "1")).pixels
    write(tmp_path / "one.tif", channels[1], SECTION)
    assert (found == read_image(run(tmp_path / "one.tif", "reference", "same.tif")).pixels).all()


@pytest.mark.parametrize(("axes", "option"), [("ZYX", "--z"), ("TYX", "--page")])
@pytest.mark.parametrize("labels", [[], ["--labels"]])
def test_one_plane_of_a_stack_is_taken(transform, tmp_path, capsys, axes, option, labels):
    import tifffile

    stack = np.random.default_rng(0).integers(0, 999, (3, *SECTION.shape)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack", metadata={"axes": axes})
    write(tmp_path / "one.tif", stack[1], SECTION)
    found = read_image(run(tmp_path / "stack.tif", "reference", "out.tif", option, "1", *labels)).pixels
    assert (found == read_image(run(tmp_path / "one.tif", "reference", "same.tif", *labels)).pixels).all()
    command = [
        "transform",
        str(tmp_path / "stack.tif"),
        "--with",
        str(tmp_path / "s1"),
        "--to",
        "reference",
        *labels,
    ]
    # Of a series in time the first image is taken, of a z-stack none.
    assert main([*command, "--out", str(tmp_path / "none.tif")]) == (axes == "ZYX")
    assert ("choose a plane with --z" in capsys.readouterr().err) == (axes == "ZYX")


@pytest.mark.parametrize("to", ["reference", "section"])
@pytest.mark.parametrize("count", [2, 3])
def test_all_channels_move_like_single_ones(transform, tmp_path, monkeypatch, capsys, count, to):
    """Three of them are no colours, and what comes out is taken for what it is by the next call and by others."""
    import tifffile

    monkeypatch.setattr("atlalign.registration.bands._TILE_PX", 50)
    grid, target = (SECTION, transform.reference) if to == "reference" else (REFERENCE, SECTION)
    channels = np.random.default_rng(0).integers(100, 999, (count, *grid.shape)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "all.tif", channels, metadata={"axes": "CYX"}, photometric="minisblack")
    out = run(tmp_path / "all.tif", to, "out.tif")
    assert f"{count} channels of {target.shape[0]}×{target.shape[1]} px" in capsys.readouterr().out
    with tifffile.TiffFile(out) as file:
        assert (file.series[0].axes, file.series[0].shape) == ("CYX", (count, *target.shape))
    for channel in range(count):
        found = read_image(out, channel=channel)
        alone = read_image(run(tmp_path / "all.tif", to, f"{channel}.tif", "--channel", str(channel)))
        assert (found.pixels == alone.pixels).all()
        assert found.pixel_um == pytest.approx(target.pixel_um, rel=1e-6)
        assert found.pixels.std() > 50
    assert SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(out))).shape == (count, *target.shape)


def test_channels_that_no_ome_tiff_holds_are_refused(transform, tmp_path, capsys):
    import tifffile

    tifffile.imwrite(tmp_path / "two.tif", np.zeros((2, *SECTION.shape), np.int64), planarconfig="separate")
    command = ["transform", str(tmp_path / "two.tif"), "--with", str(tmp_path / "s1"), "--to", "reference"]
    assert main([*command, "--out", str(tmp_path / "none.tif")]) == 1
    assert "int64: choose one with --channel" in capsys.readouterr().err


# --- points -----------------------------------------------------------------------------------------------------------


def test_points_go_to_the_atlas_as_in_simpleitk(transform, tmp_path):
    pixels = np.random.default_rng(0).uniform((40, 30), (200, 150), (200, 2))
    cells = [{"name": f"n°{i}", "x": x, "y": y} for i, (x, y) in enumerate(pixels)]
    found = rows(run(write_rows(tmp_path / "cells.csv", cells), "reference", "atlas.csv"))
    assert [row["name"] for row in found] == [cell["name"] for cell in cells]
    field = read_by_itk(tmp_path / "s1" / INVERSE)
    grid = REFERENCE.with_shape(LABEL_IMAGE.shape)
    names = {0: ("", ""), 997: ("root", "root"), 8: ("grey", "Basic cell groups, and regions")}
    for row, point in zip(found, SECTION.to_mm(pixels), strict=True):
        x, y = field.TransformPoint(point.tolist())
        registered = np.array([float(row["x_reference"]), float(row["y_reference"])])
        assert transform.reference.to_mm(registered) == pytest.approx((x, y), abs=1e-4)
        atlas = [float(row[name]) for name in ("ap_um", "dv_um", "ml_um")]
        assert atlas == pytest.approx((5000 + 100 * x, 200 + 1000 * y, 100 + 1000 * x), abs=0.1)
        column, line = np.rint(grid.to_pixels(np.array([x, y]))).astype(int)
        assert int(row["region_id"]) == LABEL_IMAGE[line, column]
        assert (row["region_acronym"], row["region_name"]) == names[int(row["region_id"])]
        assert row["region_path"] == {0: "", 997: "root", 8: "root>grey"}[int(row["region_id"])]
        # The middle of the reference's 80 pixels of 50 µm.
        assert row["hemisphere"] == ("left" if float(row["ml_um"]) < 100 + 79 * 50 / 2 else "right")
    assert {row["hemisphere"] for row in found} == {"left", "right"}
    assert {row["region_id"] for row in found} == {"0", "8", "997"}


def test_a_path_goes_down_to_a_region_that_may_have_no_name(transform, tmp_path):
    """And is left out where the table of regions, an older one, does not say what is part of what."""
    header = "id,acronym,name,color,area_mm2,pixels,share"
    above = "997,root,root,,0,0,0,\n22,,,,0,0,0,997\n"
    table = tmp_path / "s1" / REGIONS
    source = write_rows(tmp_path / "cells.csv", [{"x": 70, "y": 80}, {"x": -9, "y": 0}])
    table.write_text(f"{header},parent_id\n{above}8,VISp2/3,Layer 2/3,,1,1,1,22\n")
    found = rows(run(source, "reference", "path.csv"))
    assert [row["region_path"] for row in found] == ["root>22>VISp2/3", ""]
    table.write_text(f"{header},parent_id\n22,a,a,,1,1,1,8\n8,b,b,,1,1,1,22\n")
    assert rows(run(source, "reference", "ring.csv"))[0]["region_path"] == "a>b"
    table.write_text(f"{header}\n8,b,b,,1,1,1\n")
    (row, _) = rows(run(source, "reference", "old.csv"))
    assert "region_path" not in row
    assert row["region_acronym"] == "b"


def test_points_of_other_sections_are_refused(transform, tmp_path, capsys):
    table = [{"section": "s1", "x": 70, "y": 80}, {"section": "", "x": 1, "y": 1}]
    assert len(rows(run(write_rows(tmp_path / "own.csv", table), "reference", "out.csv"))) == 2
    source = write_rows(tmp_path / "cells.csv", [*table, {"section": "s2", "x": 70, "y": 80}])
    command = ["transform", str(source), "--with", str(tmp_path / "s1"), "--to", "reference"]
    assert main([*command, "--out", str(tmp_path / "none.csv")]) == 1
    assert "line 4, section: expected points of s1, found points of 's2'" in capsys.readouterr().err
    assert main([*command, "--channel", "0", "--unit", "px", "--out", str(tmp_path / "none.csv")]) == 1
    assert "--unit and --off-plane-um" in capsys.readouterr().err


def test_points_of_several_sections_each_go_by_their_own(transform, tmp_path, capsys):
    """As they go one by one; rows stay in their order, and the columns of all sections are there."""
    shutil.copytree(tmp_path / "s1", tmp_path / "s2")
    (tmp_path / "s2" / REGIONS).unlink()
    (tmp_path / "s2" / LABELS).unlink()
    points = {"s1": [(70, 80), (90, 60)], "s2": [(60, 50), (-9, 0)]}
    table = [
        {"section": name, "x": x, "y": y}
        for k in (0, 1)
        for name, ((x, y)) in ((n, points[n][k]) for n in points)
    ]
    source = write_rows(tmp_path / "cells.csv", table)
    out = tmp_path / "all.csv"
    assert (
        main(["transform", str(source), "--with", str(tmp_path), "--to", "reference", "--out", str(out)]) == 0
    )
    assert "4 points, in 2 sections, 1 left out" in capsys.readouterr().out
    found = rows(out)
    assert [row["section"] for row in found] == ["s1", "s2", "s1", "s2"]
    for name in points:
        alone = write_rows(tmp_path / "alone.csv", [{"x": x, "y": y} for x, y in points[name]])
        command = [
            "transform",
            str(alone),
            "--with",
            str(tmp_path / name),
            "--to",
            "reference",
            "--overwrite",
        ]
        assert main([*command, "--out", str(tmp_path / "one.csv")]) == 0
        of_section = [row for row in found if row["section"] == name]
        for one, other in zip(of_section, rows(tmp_path / "one.csv"), strict=True):
            assert {**other, "section": name} == {k: v for k, v in one.items() if k in other or v}
    source = write_rows(tmp_path / "cells.csv", [*table, {"section": "s3", "x": 1, "y": 1}])
    again = [
        "transform",
        str(source),
        "--with",
        str(tmp_path),
        "--to",
        "reference",
        "--out",
        str(tmp_path / "b.csv"),
    ]
    assert main(again) == 1
    assert "line 6, section: expected the name" in capsys.readouterr().err


@pytest.mark.parametrize("by", [("ap_um", "dv_um", "ml_um"), ("x_reference", "y_reference")])
def test_points_survive_a_round_trip(transform, tmp_path, by):
    pixels = np.random.default_rng(0).uniform((40, 30), (200, 150), (200, 2))
    cells = write_rows(tmp_path / "cells.csv", [{"x": x, "y": y} for x, y in pixels])
    there = rows(run(cells, "reference", "there.csv"))
    back = run(
        write_rows(tmp_path / "kept.csv", [{k: row[k] for k in by} for row in there]), "section", "back.csv"
    )
    found = np.array([[float(row["x"]), float(row["y"])] for row in rows(back)])
    assert np.abs(found - pixels).max() < 0.05
    if "ap_um" in by:
        assert max(abs(float(row["off_plane_um"])) for row in rows(back)) < 0.01


def test_points_before_and_behind_the_plane_say_so(transform, tmp_path, capsys):
    x, y = 1.5, 2.0
    point = {"dv_um": 200 + 1000 * y, "ml_um": 100 + 1000 * x}
    table = [{"ap_um": 5000 + 100 * x + off, **point} for off in (0, 250, -40)]
    source = write_rows(tmp_path / "atlas.csv", [*table, {"ap_um": 5000, "dv_um": -900, "ml_um": 0}])
    found = rows(run(source, "section", "out.csv", "--off-plane-um", "250"))
    assert [float(row["off_plane_um"]) for row in found[:3]] == [0, 250, -40]
    expected = read_by_itk(tmp_path / "s1" / FORWARD).TransformPoint((x, y))
    for row in found[:3]:
        assert SECTION.to_mm(np.array([float(row["x"]), float(row["y"])])) == pytest.approx(
            expected, abs=1e-4
        )
    assert (
        "4 points, 0 more than 250 µm from the section's plane (off_plane_um), 1 outside"
        in capsys.readouterr().out
    )
    # Without the option 100 µm is far enough.
    found = rows(run(source, "section", "near.csv"))
    assert [row["off_plane_um"] for row in found[:3]] == ["0.000", "250.000", "-40.000"]
    assert (
        [bool(row["x"]) for row in found] == [bool(row["y"]) for row in found] == [True, False, True, False]
    )
    assert (
        "4 points, 1 more than 100 µm from the section's plane (off_plane_um), 1 outside"
        in capsys.readouterr().out
    )
    assert [bool(row["x"]) for row in rows(run(source, "section", "z.csv", "--off-plane-um", "0"))][1:3] == [
        False
    ] * 2


def test_points_that_lie_outside_keep_their_rows(transform, tmp_path, capsys):
    table = [
        {"x": 100, "y": 90, "n": "a"},
        {"x": -0.6, "y": 9, "n": "b"},
        {"x": 2, "y": 2, "n": "c"},
        {"x": "", "y": 1, "n": "d"},
    ]
    found = rows(run(write_rows(tmp_path / "cells.csv", table), "reference", "out.csv"))
    assert [row["n"] for row in found] == ["a", "b", "c", "d"]
    assert found[0]["region_id"] != ""
    for row in found[1:]:
        assert {cell for name, cell in row.items() if name not in (*table[0], "section")} == {""}
    assert (
        "4 points, 2 outside the section or the reference, 0 in no region, 1 without numbers"
        in capsys.readouterr().out
    )
    atlas = [{"x_reference": 0, "y_reference": 0}, {"x_reference": 4000, "y_reference": 0}]
    found = rows(run(write_rows(tmp_path / "far.csv", atlas), "section", "far_out.csv"))
    assert found[0]["x"]
    assert found[1]["x"] == ""


def test_points_of_a_german_spreadsheet_come_out_with_commas_and_points(transform, tmp_path):
    (tmp_path / "german.csv").write_bytes("\ufeffX ; Y;n\r\n100,5;90;ä, b\r\n;;\r\n".encode())
    found = run(tmp_path / "german.csv", "reference", "out.csv")
    cells = write_rows(tmp_path / "cells.csv", [{"X": 100.5, "Y": 90, "n": "ä, b"}])
    assert found.read_bytes() == run(cells, "reference", "known.csv").read_bytes()


HEADERS = {
    "px": ("Centroid X px", "Centroid Y px"),
    "µm": ("Centroid X µm", "Centroid Y µm"),
    "Greek": ("Centroid X \u03bcm", "Centroid Y \u03bcm"),
    "ImageJ": ("X", "Y"),
    "plain": ("x", "y"),
}


@pytest.mark.parametrize("ending", ["csv", "tsv", "txt"])
@pytest.mark.parametrize(
    ("header", "unit", "of_pixels"),
    [
        ("px", [], lambda p: p + 0.5),
        ("µm", [], lambda p: (p + 0.5) * SECTION.pixel_um),
        ("Greek", [], lambda p: (p + 0.5) * SECTION.pixel_um),
        ("ImageJ", ["--unit", "um"], lambda p: p * SECTION.pixel_um),
        ("plain", ["--unit", "px"], lambda p: p),
    ],
)
def test_points_of_qupath_and_imagej_are_those_in_pixels(
    transform, tmp_path, capsys, ending, header, unit, of_pixels
):
    pixels = np.array([[100.0, 90.0], [60.25, 50.5], [-0.4, -0.4]])
    mark = "," if ending == "csv" else "\t"
    lines = [mark.join(("Name", *HEADERS[header]))]
    lines += [mark.join(("a", f"{x:.6f}", f"{y:.6f}")) for x, y in of_pixels(pixels)]
    (tmp_path / f"q.{ending}").write_text("\n".join(lines), encoding="utf-8")
    found = rows(run(tmp_path / f"q.{ending}", "reference", "out.csv", *unit))
    said = "in µm at pixels of 20 × 21 µm" in capsys.readouterr().out
    assert said == (header in ("µm", "Greek", "ImageJ"))
    table = write_rows(tmp_path / "p.csv", [dict(zip("xy", point, strict=True)) for point in pixels.tolist()])
    expected = rows(run(table, "reference", "known.csv"))
    for row, known in zip(found, expected, strict=True):
        assert [row[name] for name in known if name not in "xy"] == [
            known[name] for name in known if name not in "xy"
        ]


@pytest.mark.parametrize(("origin", "status"), [("file", 0), ("user", 0), ("fit", 1), ("anchoring", 1)])
def test_points_in_um_need_pixels_of_a_known_size(transform, tmp_path, capsys, origin, status):
    folder = tmp_path / "s1"
    write_record(folder, read_record(folder) | {"pixel_size_from": origin})
    (tmp_path / "q.csv").write_text("Centroid X µm,Centroid Y µm\n2000,1800\n", encoding="utf-8")
    arguments = [tmp_path / "q.csv", "--with", tmp_path / "s1", "--out", tmp_path / "out.csv"]
    assert main(["transform", *map(str, arguments), "--to", "reference"]) == status
    sentence = f"estimated from the placement ({origin}): give points in pixels"
    assert (sentence in capsys.readouterr().err) == (status == 1)


def test_points_of_napari_are_y_and_x(transform, tmp_path, capsys):
    (tmp_path / "own.csv").write_text("x,y\n70,80\n")
    (tmp_path / "napari.csv").write_text("index,axis-0,axis-1\n0,80,70\n")
    (own,), (found,) = (
        rows(run(tmp_path / f"{name}.csv", "reference", f"{name}_out.csv")) for name in ("own", "napari")
    )
    assert {name: found[name] for name in own if name not in "xy"} == {
        k: v for k, v in own.items() if k not in "xy"
    }
    (tmp_path / "stack.csv").write_text("index,axis-0,axis-1,axis-2\n0,3,80,70\n")
    command = ["transform", str(tmp_path / "stack.csv"), "--with", str(tmp_path / "s1"), "--to", "reference"]
    assert main([*command, "--out", str(tmp_path / "none.csv")]) == 1
    assert "axis-2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../s1", "./s1", ".", "..", "s1/", "a\0b", "s" * 300])
def test_a_section_is_named_by_its_folder_alone(transform, tmp_path, capsys, name):
    """A name that leads elsewhere would be a section that `atlalign count` does not know."""
    (tmp_path / "all").mkdir()
    shutil.copytree(tmp_path / "s1", tmp_path / "all" / "s1")
    source = write_rows(tmp_path / "cells.csv", [{"section": name, "x": 70, "y": 80}])
    command = ["transform", str(source), "--with", str(tmp_path / "all"), "--to", "reference"]
    assert main([*command, "--out", str(tmp_path / "none.csv")]) == 1
    assert "line 2, section: " in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize("name", [LABELS, REGIONS, FORWARD, INVERSE])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "folder"])
def test_points_need_the_files_that_were_written(transform, tmp_path, capsys, name, damage):
    """Without them points would silently have no region, or another one."""
    folder = tmp_path / "s1"
    transform.save(folder, {})  # the record now lists all files
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "folder":
        (folder / name).mkdir()
    elif damage != "gone":
        (folder / name).write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    source = write_rows(tmp_path / "cells.csv", [{"x": 70, "y": 80}])
    command = ["transform", str(source), "--with", str(folder), "--to", "reference"]
    assert main([*command, "--out", str(tmp_path / "none.csv")]) == 1
    assert f"{folder / name}: " in capsys.readouterr().err
    assert not (tmp_path / "none.csv").exists()


def test_without_plane_and_labels_points_have_reference_pixels_alone(tmp_path):
    known = maps()
    save(SectionTransform(known.forward, known.inverse, SECTION, None), tmp_path / "s1")
    (tmp_path / "s1" / LABELS).unlink()
    source = write_rows(tmp_path / "cells.csv", [{"x": 100, "y": 90}])
    (row,) = rows(run(source, "reference", "out.csv"))
    assert list(row) == ["x", "y", "section", "x_reference", "y_reference"]


@pytest.mark.parametrize("to", ["reference", "section"])
def test_the_image_of_a_spot_and_its_point_land_at_the_same_place(transform, tmp_path, to):
    grid, target = (SECTION, transform.reference) if to == "reference" else (transform.reference, SECTION)
    place = np.array([110.0, 80.0])
    pixels = grid.to_pixels(centres(grid))
    spot = np.exp(-((pixels - place) ** 2).sum(axis=-1) / 2 / 4**2).astype(np.float32)
    image = read_image(run(write(tmp_path / "spot.tif", spot, grid), to, "moved.tif")).pixels
    weights = np.where(image > 0.05, image, 0)[..., None]
    seen = (weights * target.to_pixels(centres(target))).sum(axis=(0, 1)) / weights.sum()
    names = ("x", "y") if to == "reference" else ("x_reference", "y_reference")
    table = write_rows(tmp_path / "spot.csv", [dict(zip(names, place, strict=True))])
    (row,) = rows(run(table, to, "moved.csv"))
    said = [
        float(row[name]) for name in (("x_reference", "y_reference") if to == "reference" else ("x", "y"))
    ]
    assert np.abs(seen - said).max() < 0.5
    # It has moved by many times that.
    assert np.linalg.norm(target.to_mm(np.array(said)) - grid.to_mm(place)) > 0.1


# --- shapes -----------------------------------------------------------------------------------------------------------


def geojson(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def polygon(*rings: list) -> dict:
    return {"type": "Polygon", "coordinates": list(rings), "plane": {"c": -1, "z": 0, "t": 0}}


RING = [[50, 40], [150, 40], [150, 120], [50, 120], [50, 40]]
HOLE = [[80, 60], [80, 80], [100, 80], [80, 60]]


def test_shapes_move_as_points_half_a_pixel_apart(transform, tmp_path):
    places = [[100.5, 90.5], [60.5, 50.5]]
    scattered = {"type": "MultiPoint", "coordinates": places}
    single = {"type": "Point", "coordinates": places[0]}
    source = geojson(
        tmp_path / "a.geojson", [{"type": "Feature", "geometry": g} for g in (scattered, single)]
    )
    moved = json.loads(run(source, "reference", "b.geojson").read_text())
    table = write_rows(tmp_path / "a.csv", [{"x": x - 0.5, "y": y - 0.5} for x, y in places])
    found = rows(run(table, "reference", "b.csv"))
    expected = [[float(row["x_reference"]) + 0.5, float(row["y_reference"]) + 0.5] for row in found]
    assert np.allclose(moved[0]["geometry"]["coordinates"], expected, atol=2e-3)
    assert np.allclose(moved[1]["geometry"]["coordinates"], expected[0], atol=2e-3)
    back = json.loads(run(tmp_path / "b.geojson", "section", "c.geojson").read_text())
    assert np.allclose(back[0]["geometry"]["coordinates"], places, atol=0.05)


def test_points_that_leave_the_reference_are_counted(transform, tmp_path, capsys):
    pixels = centres(SECTION).reshape(-1, 2) / (np.array(SECTION.pixel_um) / 1000)
    mapped = transform.reference.to_pixels(transform.to_reference(pixels))
    height, width = transform.reference.shape
    outside = ((mapped < -0.5) | (mapped >= (width - 0.5, height - 0.5))).any(axis=1)
    assert 0 < outside.sum() < len(pixels)
    places = [*(pixels[~outside][:3] + 0.5).tolist(), *(pixels[outside][:2] + 0.5).tolist(), [-9.0, 5.0]]
    run(
        geojson(tmp_path / "a.geojson", {"type": "MultiPoint", "coordinates": places}),
        "reference",
        "b.geojson",
    )
    assert "3 points outside the section or the reference" in capsys.readouterr().out


def test_a_document_keeps_all_but_its_coordinates(transform, tmp_path):
    child = {"type": "Feature", "geometry": polygon(HOLE), "properties": {"objectType": "detection"}}
    cell = {
        "type": "Feature",
        "id": "6f3b",
        "geometry": {**polygon(RING, HOLE), "isEllipse": True},
        "nucleusGeometry": polygon(HOLE),
        "properties": {"name": "é", "measurements": {"Area µm^2": 3.5}, "childObjects": [child]},
    }
    empty = {"type": "Feature", "geometry": None, "properties": None}
    parts = {"type": "MultiPolygon", "coordinates": [[RING, HOLE], [HOLE]]}
    lines = {"type": "GeometryCollection", "geometries": [{"type": "LineString", "coordinates": RING[:2]}]}
    features = [cell, empty, *({"type": "Feature", "geometry": g} for g in (parts, lines))]
    source = geojson(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": features, "kept": 1})
    moved = json.loads(run(source, "reference", "b.geojson").read_text(encoding="utf-8"))
    assert (moved["type"], moved["kept"]) == ("FeatureCollection", 1)
    first, second, third, fourth = moved["features"]
    assert "isEllipse" not in first["geometry"]
    assert first["geometry"]["plane"] == {"c": -1, "z": 0, "t": 0}
    assert first["properties"]["measurements"] == {"Area µm^2": 3.5}
    assert second == empty
    outer, hole = first["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    assert hole[0] == hole[-1]
    grandchild = first["properties"]["childObjects"][0]["geometry"]["coordinates"]
    assert grandchild == first["nucleusGeometry"]["coordinates"] == [hole]
    assert third["geometry"]["coordinates"] == [[outer, hole], [hole]]
    assert fourth["geometry"]["geometries"][0]["coordinates"][0] == outer[0]


def test_long_edges_bend_with_the_field(transform, tmp_path):
    """Between any two points in the file the true curve is less than a tenth of a pixel away."""
    source = geojson(
        tmp_path / "a.geojson", {"type": "LineString", "coordinates": [[20.5, 90.5], [220.5, 90.5]]}
    )
    line = np.array(json.loads(run(source, "reference", "b.geojson").read_text())["coordinates"]) - 0.5
    x = np.linspace(20, 220, 5000)
    curve = transform.reference.to_pixels(transform.to_reference(np.column_stack([x, np.full(5000, 90.0)])))
    inside = (curve[:, 0] > line[0, 0]) & (curve[:, 0] < line[-1, 0])
    away = np.abs(np.interp(curve[inside, 0], line[:, 0], line[:, 1]) - curve[inside, 1])
    assert away.max() < 0.1
    straight = np.interp(curve[inside, 0], line[[0, -1], 0], line[[0, -1], 1])
    assert np.abs(straight - curve[inside, 1]).max() > 1


def shoelace(ring: list) -> float:
    x, y = np.array(ring).T
    return 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))


def test_outlines_of_an_unmoved_map_are_its_pixels_edges(tmp_path):
    """The ring of 997 around 8, an island of 997 in it, and holes: areas are pixels but for cut corners."""
    grid = Grid(LABEL_IMAGE.shape, (100.0, 100.0))
    nothing = Displacement(grid, torch.zeros(2, *grid.shape))
    folder = tmp_path / "s1"
    save(SectionTransform(nothing, nothing, grid, None), folder)
    run(folder / LABELS, "section", "../a.geojson", "--with", str(folder), "--labels")
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    found = {feature["properties"]["metadata"]["region_id"]: feature for feature in features}
    assert set(found) == {"8", "997"}
    assert found["8"]["properties"] == {
        "objectType": "annotation",
        "name": "Basic cell groups, and regions",
        "classification": {"name": "grey", "color": [191, 218, 227]},
        "metadata": {"region_id": "8"},
    }
    for region_id, rings in (("8", 2), ("997", 3)):
        parts = found[region_id]["geometry"]["coordinates"]
        assert sum(map(len, parts)) == rings
        assert all(ring[0] == ring[-1] for part in parts for ring in part)
        area = sum(abs(shoelace(part[0])) - sum(abs(shoelace(hole)) for hole in part[1:]) for part in parts)
        assert area == pytest.approx(np.count_nonzero(int(region_id) == LABEL_IMAGE), abs=0.5 * rings + 0.01)
    ring = np.array(found["8"]["geometry"]["coordinates"][0][0])
    assert ring.min(axis=0) == pytest.approx((10, 10))
    assert ring.max(axis=0) == pytest.approx((25, 20))


def test_outlines_in_the_section_enclose_its_labels(transform, tmp_path):
    from matplotlib.path import Path as Outline

    folder = tmp_path / "s1"
    run(folder / LABELS, "section", "../a.geojson", "--with", str(folder), "--labels")
    labels = np.concatenate(list(transform.label(LABEL_IMAGE)))
    centre = SECTION.to_pixels(centres(SECTION)).reshape(-1, 2) + 0.5
    for feature in json.loads((tmp_path / "a.geojson").read_text())["features"]:
        rings = [ring for part in feature["geometry"]["coordinates"] for ring in part]
        # A point is inside if an odd number of rings encloses it.
        inside = np.sum([Outline(ring).contains_points(centre) for ring in rings], axis=0) % 2 == 1
        region_id = int(feature["properties"]["metadata"]["region_id"])
        assert (inside.reshape(labels.shape) == (labels == region_id)).mean() > 0.995


# --- images of other sizes --------------------------------------------------------------------------------------------


@pytest.fixture
def still(tmp_path) -> Path:
    """Save a registration of 30×40 px that moves nothing, so that only conventions move points."""
    grid = Grid(LABEL_IMAGE.shape, (100.0, 100.0))
    nothing = Displacement(grid, torch.zeros(2, *grid.shape))
    save(SectionTransform(nothing, nothing, grid, None), tmp_path / "s1")
    return tmp_path


def scan(path: Path, shape: tuple[int, int]) -> Path:
    """Write an image of the section at another size."""
    return write(path, np.zeros(shape, np.uint8), Grid(shape, (10.0, 10.0)))


@pytest.mark.parametrize(
    ("header", "given", "scale", "expected"),
    [
        # Pixel 0 of a 16 times larger image ends at a 16th of the first pixel, whose centre is 0: (0 + ½)/16 − ½.
        ("x,y", (0, 160), "16", (-0.46875, 9.53125)),
        ("x,y", (7.5, 167.5), "16", (0, 10)),
        ("Centroid X px,Centroid Y px", (0, 160), "16", (-0.5, 9.5)),
        ("Centroid X px,Centroid Y px", (8, 168), "16", (0, 10)),
        ("x,y", (4.5, 2), "0.5", (9.5, 4.5)),
        ("x,y", (10, 20), "1", (10, 20)),
    ],
)
def test_points_of_a_larger_scan_keep_their_place(still, header, given, scale, expected):
    (still / "a.csv").write_text(f"{header}\n{given[0]},{given[1]}\n")
    (row,) = rows(run(still / "a.csv", "reference", "b.csv", "--scale", scale))
    found = (float(row["x_reference"]), float(row["y_reference"]))
    assert found == pytest.approx(expected, abs=6e-4)
    back = write_rows(still / "c.csv", [{k: row[k] for k in ("x_reference", "y_reference")}])
    (row,) = rows(run(back, "section", "d.csv", "--scale", scale))
    corner = 0.5 if header.startswith("C") else 0
    assert (float(row["x"]) + corner, float(row["y"]) + corner) == pytest.approx(given, abs=0.01)


def test_shapes_of_a_larger_scan_keep_their_place(still):
    """Corners of pixels are multiples: (160, 80) at 16 times the size is (10, 5)."""
    places = [[160, 80], [168, 88], [0, 0], [640, 480]]
    source = geojson(still / "a.geojson", {"type": "MultiPoint", "coordinates": places})
    there = run(source, "reference", "b.geojson", "--scale", "16")
    assert json.loads(there.read_text())["coordinates"] == [[10, 5], [10.5, 5.5], [0, 0], [40, 30]]
    back = run(there, "section", "c.geojson", "--scale", "16")
    assert json.loads(back.read_text())["coordinates"] == places


def test_edges_on_a_larger_scan_are_as_long_in_um(still):
    ring = {"type": "LineString", "coordinates": [[0, 0], [640, 0]]}
    moved = json.loads(
        run(geojson(still / "a.json", ring), "reference", "b.json", "--scale", "16").read_text()
    )
    assert moved["coordinates"] == [[x, 0] for x in range(41)]


def test_outlines_come_at_the_size_of_the_scan(still):
    options = ("../a.geojson", "--with", str(still / "s1"), "--labels", "--scale", "16")
    run(still / "s1" / LABELS, "section", *options)
    features = json.loads((still / "a.geojson").read_text())["features"]
    (grey,) = (f for f in features if f["properties"]["metadata"]["region_id"] == "8")
    ring = np.array(grey["geometry"]["coordinates"][0][0])
    assert (ring.min(axis=0).tolist(), ring.max(axis=0).tolist()) == ([160, 160], [400, 320])


def test_the_scale_may_be_an_image(still):
    """Along each axis by itself: a scan of 483×641 px was made 30×40 px."""
    image = str(scan(still / "scan.tif", (483, 641)))
    (still / "a.csv").write_text("x,y\n640.5,482.5\n")
    (row,) = rows(run(still / "a.csv", "reference", "b.csv", "--scale", image))
    assert (float(row["x_reference"]), float(row["y_reference"])) == pytest.approx((39.5, 29.5), abs=6e-4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "x,y\n10,10\n60,10\n"),
        ("a.csv", "x,y\n10,-10\n"),
        ("a.csv", "Centroid X px,Centroid Y px\n600,10\n"),
        ("a.geojson", '{"type": "Point", "coordinates": [10, 60]}'),
        ("a.geojson", '{"type": "LineString", "coordinates": [[0, 0], [1e12, 0]]}'),
    ],
)
def test_points_far_outside_ask_for_the_scale(still, capsys, name, content):
    (still / name).write_text(content)
    out = still / f"out{Path(name).suffix}"
    command = [
        "transform",
        str(still / name),
        "--with",
        str(still / "s1"),
        "--to",
        "reference",
        "--out",
        str(out),
    ]
    assert main(command) == 1
    assert "--scale N" in capsys.readouterr().err
    assert not out.exists()


def test_points_on_the_border_are_inside_and_points_close_by_are_left_out(still, capsys):
    table = [{"x": -0.5, "y": -0.5}, {"x": 39.5, "y": 29.5}, {"x": 39.51, "y": 0}, {"x": 45, "y": 5}]
    found = rows(run(write_rows(still / "a.csv", table), "reference", "b.csv"))
    assert [bool(row["x_reference"]) for row in found] == [True, True, False, False]
    ring = [[0, 0], [40, 0], [40, 30], [0, 30], [0, 0]]
    run(geojson(still / "a.geojson", {"type": "Polygon", "coordinates": [ring]}), "reference", "b.geojson")
    assert "0 points outside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *(
            (["--scale", text], f"--scale: expected a number from 1e-6 to 1e6, got {text}")
            for text in ("0", "-2")
        ),
        *((["--scale", text], f"1e6, got {text}") for text in ("nan", "inf", "1e-07")),
        (["--scale", "none.tif"], "--scale: expected a number or an image, found no file none.tif"),
        (["--scale", "square.tif"], "square.tif: expected the proportions of the section's image"),
        (["--scale", "2", "--unit", "um"], "--scale cannot be combined with points in µm"),
        (["--scale", "2", "--labels"], "expected a name that ends in"),
    ],
)
def test_a_scale_of_nothing_is_refused(still, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(still)
    scan(Path("square.tif"), (50, 50))
    Path("a.csv").write_text("x,y\n1,1\n")
    command = ["transform", "a.csv", "--with", "s1", "--to", "reference", "--out", "b.csv"]
    assert main([*command, *options]) == 1
    assert sentence in capsys.readouterr().err
    image = ["transform", "square.tif", "--with", "s1", "--to", "reference", "--out", "b.tif", "--scale", "2"]
    assert main(image) == 1
    assert "square.tif: --scale cannot be combined with an image" in capsys.readouterr().err


# --- dialects of points and shapes ------------------------------------------------------------------------------------


def test_rows_without_numbers_keep_their_place_and_are_counted(still, capsys):
    (still / "a.csv").write_text("x,y,n\n1,2,a\nNaN,NaN,b\nNA,NA,c\n3,,d\n,,\n5,6,e\n")
    found = rows(run(still / "a.csv", "reference", "b.csv"))
    assert [row["n"] for row in found] == ["a", "b", "c", "d", "", "e"]
    assert [row["x_reference"] for row in found] == ["1.000", "", "", "", "", "5.000"]
    assert "6 points, 0 outside the section or the reference, 2 in no region, 4 without numbers" in (
        capsys.readouterr().out
    )


def test_names_of_cells_that_a_spreadsheet_would_run_are_marked(still):
    source = write_rows(
        still / "a.csv", [{"x": 1, "y": 2, "n": "=HYPERLINK(1)"}, {"x": -0.25, "y": 2, "n": "-x"}]
    )
    out = run(source, "reference", "b.csv")
    assert [(row["n"], row["x"]) for row in rows(out)] == [("'=HYPERLINK(1)", "1"), ("'-x", "-0.25")]
    again = out.read_text().replace("x_reference", "xr").replace("y_reference", "yr").replace("region", "r")
    (still / "c.csv").write_text(again)
    assert [row["n"] for row in rows(run(still / "c.csv", "reference", "d.csv"))] == ["'=HYPERLINK(1)", "'-x"]


def test_parts_of_a_table_give_the_same_as_the_whole(transform, tmp_path, monkeypatch, capsys):
    shutil.copytree(tmp_path / "s1", tmp_path / "s2")
    points = np.random.default_rng(0).uniform((0, 0), (239, 179), (50, 2))
    table = [{"x": x, "y": y, "section": f"s{1 + i % 2}"} for i, (x, y) in enumerate(points)]
    source = write_rows(tmp_path / "a.csv", table)
    command = ["transform", str(source), "--with", str(tmp_path), "--to", "reference", "--out"]
    assert main([*command, str(tmp_path / "b.csv")]) == 0
    said = capsys.readouterr().out.removeprefix(f"{tmp_path}/b.csv")
    monkeypatch.setattr("atlalign.io.tables.read_parts.__kwdefaults__", {"n_rows": 7})
    assert main([*command, str(tmp_path / "c.csv")]) == 0
    assert (tmp_path / "c.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert capsys.readouterr().out.removeprefix(f"{tmp_path}/c.csv") == said


def test_a_third_number_and_boxes_follow(still):
    ring = [[8, 8, 0], [24, 8, 16], [24, 16, 0], [8, 8, 0]]
    feature = {
        "type": "Feature",
        "bbox": [8, 8, 24, 16],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    empty = {"type": "Feature", "bbox": [1, 1, 2, 2], "geometry": None}
    box = [8, 8, 0, 24, 16, 16]
    content = {
        "type": "FeatureCollection",
        "bbox": box,
        "features": [feature, empty],
        "crs": {"type": "name"},
    }
    moved = json.loads(
        run(geojson(still / "a.json", content), "reference", "b.json", "--scale", "8").read_text()
    )
    first = moved["features"][0]
    assert first["geometry"]["coordinates"][0][:3] == [[1, 1, 0], [2, 1, 8], [3, 1, 16]]
    assert (moved["bbox"], first["bbox"]) == ([1, 1, 0, 3, 2, 16], [1, 1, 3, 2])
    assert "bbox" not in moved["features"][1]
    assert moved["crs"] == {"type": "name"}


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Point", "coordinates": []},
        {"type": "MultiPoint", "coordinates": []},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon", "coordinates": [[]]},
        {"type": "MultiPolygon", "coordinates": [[], [[]]]},
        {"type": "GeometryCollection", "geometries": []},
    ],
)
def test_empty_geometries_stay_empty(still, geometry):
    content = {"type": "Feature", "geometry": geometry, "properties": {"name": "\ud800"}}
    source = still / "a.geojson"
    source.write_text(json.dumps([content]))
    assert json.loads(run(source, "reference", "b.geojson").read_text()) == [content]


# --- what goes wrong --------------------------------------------------------------------------------------------------

NESTED = '{"type": "GeometryCollection", "geometries": [' * 2000 + "]}" * 2000
FEATURE = '{"type": "Feature", "geometry": {"type": "%s", "coordinates": %s}}'


@pytest.mark.parametrize(
    ("name", "content", "options", "sentence"),
    [
        ("a.csv", "x,y\n1,two\n", [], "a.csv, line 2, y: expected a number, found 'two'"),
        ("a.csv", "x,y\n1,inf\n", [], "expected a number, found 'inf'"),
        ("a.csv", "x,z\n1,2\n", [], "expected the columns x, y, separated by commas, semicolons or tabs, found"),
        ("a.csv", "x,y\n1\n", [], "a.csv, line 2: expected 2 cells, found 1"),
        ("a.csv", "x,y\n", [], "a.csv: expected"),
        ("a.csv", "", [], "a.csv: expected"),
        ("a.csv", "x,x,y\n1,1,2\n", [], "expected each column once"),
        ("a.csv", "x,y,AP_um\n1,1,2\n", [], "found ap_um"),
        ("a.csv", "x,y\n1,1\n", ["--to", "section"], "expected the columns x_reference, y_reference, separated"),
        ("a.csv", "ap_um,dv_um\n1,1\n", ["--to", "section"], "expected the columns ap_um, dv_um, ml_um"),
        ("a.csv", "ap_um,dv_um,ml_um\n5000,9,9\n7.19,4,5\n", ["--to", "section"], "line 3, ap_um: expected a position"),
        ("a.csv", "x_reference,y_reference\n1,1\n", ["--to", "section", "--off-plane-um", "9"], "--off-plane-um needs"),
        ("a.csv", "x,y\n1,1\n", ["--off-plane-um", "9"], "--off-plane-um needs --to section"),
        ("a.csv", "x,y\n1,1\n", ["--off-plane-um", "-1"], "off_plane_um: expected at least 0, got -1"),
        ("a.csv", "x,y\n1,1\n", ["--off-plane-um", "nan"], "off_plane_um: "),
        ("a.csv", "x,y,Centroid X µm,Centroid Y µm\n1,1,1,1\n", [], "found x and y as well as centroid x µm and"),
        ("a.csv", "Centroid X px,Centroid Y px\n1,1\n", ["--unit", "um"], "--unit cannot be combined"),
        ("a.csv", "ap_um,dv_um,ml_um\n5000,9,9\n", ["--to", "section", "--unit", "px"], "--unit needs --to reference"),
        ("a.geojson", "{}", ["--unit", "px"], "expected a name that ends in one of .csv"),
        ("a.tsv", "x\ty\n1\t1\n", [], "--out: expected a name that ends in .csv"),
        ("a.geojson", "{}", ["--off-plane-um", "9"], "expected a name that ends in one of .csv"),
        ("a.csv", b"\xff\xfe\x00", [], "cannot be read as UTF-8 text: save it as CSV UTF-8"),
        ("a.csv", "x,y\n1,2\n", ["--labels"], "expected a name that ends in one of .tif"),
        ("a.geojson", "", [], "cannot be read as GeoJSON"),
        ("a.geojson", "{", [], "cannot be read as GeoJSON"),
        ("a.geojson", "[" * 100_000, [], "too deeply nested"),
        ("a.geojson", '{"a": 1}', [], "expected GeoJSON, found"),
        ("a.geojson", '{"type": ["x"], "coordinates": [1, 2]}', [], "expected GeoJSON, found"),
        ("a.geojson", '{"type": {}, "coordinates": [1, 2]}', [], "expected GeoJSON, found"),
        ("a.geojson", '{"type": "Feature", "geometry": null, "properties": [1]}', [], "expected GeoJSON, found"),
        ("a.geojson", '{"type": "Feature", "geometry": 5}', [], "expected GeoJSON, found"),
        ("a.geojson", '{"type": "FeatureCollection", "features": {}}', [], "list of features"),
        ("a.geojson", '{"type": "GeometryCollection", "geometries": null}', [], "list of geometries"),
        ("a.geojson", "null", [], "expected GeoJSON, found"),
        ("a.geojson", FEATURE % ("Polygon", "[" * 500 + "]" * 500), [], "expected positions"),
        ("a.geojson", NESTED, [], "too deeply nested"),
        ("a.geojson", FEATURE % ("Point", "[1000, 2]"), ["--to", "section"], "178×199 px"),
        ("a.geojson", '["a"]', [], "expected GeoJSON, found"),
        ("a.geojson", '{"type": "FeatureCollection"}', [], "expected GeoJSON, found"),
        ("a.geojson", FEATURE % ("Point", '["a", 1]'), [], "expected positions"),
        ("a.geojson", FEATURE % ("Point", "[1]"), [], "expected positions"),
        ("a.geojson", FEATURE % ("Point", '["1", "2"]'), [], "expected positions"),
        ("a.geojson", FEATURE % ("LineString", "[[1, 2], [3, 4, 5]]"), [], "expected positions"),
        ("a.geojson", FEATURE % ("Point", "[1, 2, null]"), [], "expected positions"),
        ("a.geojson", FEATURE % ("Point", "[1e400, 2]"), [], "expected positions"),
        ("a.geojson", FEATURE % ("Point", "[NaN, 2]"), [], "expected positions"),
        ("a.geojson", FEATURE % ("Polygon", "[[1, 2], [3, 4]]"), [], "expected positions"),
        ("a.geojson", FEATURE % ("Polygon", "3"), [], "expected positions"),
        ("a.geojson", FEATURE % ("MultiPolygon", "[[1]]"), [], "expected positions"),
        ("a.geojson", '{"type": "Point"}', [], "expected positions"),
        ("a.doc", "", [], "expected a name that ends in one of .tif, .tiff"),
        ("a.png", "no image", ["--out", "out.tif"], "cannot be read as an image"),
        ("wrong_size.tif", None, [], "expected the proportions of the section's image, 180×240 px, found 100×240"),
        ("wrong_size.tif", None, ["--to", "section"], "expected the proportions of the reference, 60×80 px"),
        ("wrong_size.tif", None, ["--labels", "--channel", "0"], "--labels cannot be"),
        ("wrong_size.tif", None, ["--labels"], "expected labels"),
        ("wrong_size.tif", None, ["--channel", "3"], "expected a channel in 0"),
        ("wrong_size.tif", None, ["--labels", "--out", "a.geojson"], "need --to section"),
        ("wrong_size.tif", None, ["--out", "a.png"], "--out: expected a name that ends in .tif or .tiff"),
        ("wrong_size.tif", None, ["--with", "none"], "none: expected a section's folder"),
        ("none.csv", None, [], "no such file"),
        ("a.csv", "x,y\n1,2\n", ["--out", "there.csv"], "there.csv exists: "),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_nothing_is_written(
    transform, tmp_path, monkeypatch, capsys, name, content, options, sentence
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    write(Path("wrong_size.tif"), np.zeros((100, 240), np.float32), SECTION)
    Path("there.csv").write_text("kept")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    defaults = ["--with", "s1", "--to", "reference", "--out", f"out{Path(name).suffix}"]
    assert main(["transform", name, *defaults, *options]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", [FORWARD, INVERSE, RECORD, LABELS, REGIONS])
def test_a_damaged_registration_is_named(transform, tmp_path, capsys, name):
    damaged = tmp_path / "s1" / name
    content = damaged.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    (tmp_path / "a.csv").write_text("x,y\n100,90\n")
    arguments = [
        tmp_path / "a.csv",
        "--with",
        tmp_path / "s1",
        "--to",
        "reference",
        "--out",
        tmp_path / "b.csv",
    ]
    assert main(["transform", *map(str, arguments)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "b.csv").exists()


def test_full_disk_keeps_the_existing_file(transform, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.csv").write_text("x,y\n100,90\n")
    (tmp_path / "b.csv").write_text("kept")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("atlalign.io.tables.csv.writer", full)
    arguments = [
        tmp_path / "a.csv",
        "--with",
        tmp_path / "s1",
        "--to",
        "reference",
        "--out",
        tmp_path / "b.csv",
    ]
    assert main(["transform", *map(str, arguments), "--overwrite"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (tmp_path / "b.csv").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_closed_pipe_gives_no_traceback(still, monkeypatch):
    (still / "a.csv").write_text("x,y\n1,2\n")
    reading, writing = os.pipe()
    os.close(reading)
    command = ["transform", str(still / "a.csv"), "--with", str(still / "s1"), "--to", "reference"]
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--out", str(still / "b.csv")])
    assert stopped.value.code == 141
    assert len(rows(still / "b.csv")) == 1


def test_a_file_is_replaced_on_request(transform, tmp_path):
    source = write_rows(tmp_path / "a.csv", [{"x": 100, "y": 90}])
    first = run(source, "reference", "b.csv").read_text()
    (tmp_path / "b.csv").write_text("old")
    assert run(source, "reference", "b.csv", "--overwrite").read_text() == first
