"""Scans with pyramids, scenes and channels, registered from the level that serves and written at the size asked for."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from torch import nn

from atlalign.cli import main
from atlalign.errors import InputError
from atlalign.io import tiff_tiles, tiff_writer
from atlalign.io.images import read_labels
from atlalign.io.scenes import Channel
from atlalign.io.slides import open_slide
from atlalign.networks.layers import Registration
from atlalign.registration import Job, Options, atlas_recipe, register_section
from atlalign.registration import output_size as module
from atlalign.registration.grid import Grid
from atlalign.registration.network import TrainedNetwork
from atlalign.registration.section_files import write_section_files

SHAPE = (40, 56)
POSITION_UM = 6000.0
CHANNELS = (Channel("DAPI", (0, 0, 255)), Channel("x", (255, 0, 0)), Channel("y", (0, 255, 0)))
PER_PX = 20  # in channels x and y, each pixel holds where it lies, times this


class Still(nn.Module):
    """Moves nothing."""

    def forward(self, reference, moving):
        return Registration(moving, torch.zeros(1, 2, *SHAPE))


@pytest.fixture(scope="module")
def recipe():
    return replace(atlas_recipe("phantom", image_shape=SHAPE), network=TrainedNetwork(Still(), SHAPE, {}))


@pytest.fixture(scope="module")
def planes(recipe) -> np.ndarray:
    """A section of the phantom, and two ramps, (3, h, w)."""
    plane = recipe.references.of(Job(Path("a.tif"), POSITION_UM), None)
    grey = np.kron((plane.image[0, 0].numpy() * 60_000).astype(np.uint16), np.ones((20, 20), np.uint16))
    y, x = np.indices(grey.shape)
    return np.stack([grey, x * PER_PX, y * PER_PX]).astype(np.uint16)


@pytest.fixture
def scan(planes, tmp_path, monkeypatch) -> Path:
    """A pyramid of all three channels."""
    monkeypatch.setattr(tiff_writer, "LARGEST_FLAT_PX", 512)
    monkeypatch.setattr(tiff_tiles, "_WHOLE_PX", 0)
    write(tmp_path / "scan.ome.tif", planes)
    return tmp_path / "scan.ome.tif"


def write(path: Path, planes: np.ndarray) -> None:
    tiff_writer.write_tiff(path, planes, shape=planes.shape[1:], dtype=planes.dtype, pixel_um=(10.0, 10.0),
                           channels=CHANNELS[: len(planes)])  # fmt: skip


def written(found, recipe, folder: Path) -> Path:
    folder.mkdir()
    write_section_files(folder, found, recipe.references.ontology)
    return folder


@pytest.mark.parametrize("output_um", [None, 10.0, 23.0, 80.0, 250.0])
def test_each_pixel_of_the_registered_image_shows_its_place_in_the_scan(scan, recipe, tmp_path, output_um):
    options = Options(channel="DAPI", place="scale", turn=0, output_um=output_um)
    found = register_section(Job(scan, POSITION_UM), replace(recipe, options=options))
    scene = open_slide(written(found, recipe, tmp_path / "out") / "registered.tif").scene()
    transform = found.registered.transform
    assert scene.channels == CHANNELS
    assert scene.shape == transform.reference.shape
    assert scene.pixel_um == pytest.approx((output_um or 10.0,) * 2, rel=0.05)
    y, x = (axis.reshape(-1) for axis in np.indices(scene.shape))
    places = transform.to_section(transform.reference.to_mm(np.stack([x, y], axis=1).astype(float)))
    margin = 20 + (output_um or 0) / 10  # at the border coarse pixels would show what lies beyond
    inside = ((places > margin) & (places < np.array(found.image.shape[::-1]) - margin)).all(axis=1)
    assert inside.sum() > 300
    shown = np.stack([scene.read(channel=k).reshape(-1) for k in (1, 2)], axis=1) / PER_PX
    assert np.abs(shown - places)[inside].max() < 0.2


@pytest.mark.parametrize("output_um", [23.0, 80.0])
def test_labels_match_those_of_the_whole_scan(scan, recipe, tmp_path, output_um):
    job = Job(scan, POSITION_UM)
    options = Options(channel="DAPI", place="scale", turn=0)
    found = register_section(job, replace(recipe, options=options))
    large = read_labels(written(found, recipe, tmp_path / "large") / "labels.tif")
    found = register_section(job, replace(recipe, options=replace(options, output_um=output_um)))
    small = open_slide(written(found, recipe, tmp_path / "small") / "labels.tif", labels=True).scene()
    assert large.shape == found.image.shape
    assert small.pixel_um == pytest.approx((output_um,) * 2, rel=0.05)
    rows, columns = (
        ((np.arange(size) + 0.5) * whole / size).astype(int)
        for size, whole in zip(small.shape, large.shape, strict=True)
    )
    assert (small.read() == large[np.ix_(rows, columns)]).mean() > 0.99
    areas = [
        dict(line.split(",")[:2] for line in (tmp_path / name / "regions.csv").read_text().splitlines())
        for name in ("large", "small")
    ]
    assert areas[0].keys() == areas[1].keys()


def test_registration_reads_no_more_than_it_needs(scan, recipe, tmp_path, monkeypatch):
    """Of the pyramid 800×1120, 400×560, …, 50×70, the fourth level has twice the network's resolution of 40×56."""
    decoded = []
    original = tiff_tiles._decoded
    monkeypatch.setattr(
        tiff_tiles,
        "_decoded",
        lambda plane, *rest: decoded.append(plane.keyframe.shape) or original(plane, *rest),
    )
    options = Options(channel=0, place="scale", turn=0, output_um=50.0, one_section=True)
    found = register_section(Job(scan, POSITION_UM), replace(recipe, options=options))
    assert set(decoded) == {(100, 140)}
    written(found, recipe, tmp_path / "out")
    # At 50 µm the third level has 40 µm; the slide's colour and the overlay are seen on a picture of 1280 px.
    assert set(decoded) == {(100, 140), (200, 280), (800, 1120)}
    assert found.section.shape == (800, 1120)
    assert found.section.pixel_um == (10.0, 10.0)


def test_the_level_makes_next_to_no_difference(scan, recipe, planes, tmp_path):
    """The same section, once a pyramid and once not, is placed in the same way in pixels of the scan."""
    tifffile.imwrite(tmp_path / "flat.tif", planes[0], resolution=(1000, 1000), resolutionunit="CENTIMETER")
    options = Options(place="scale", turn=0)
    flat = register_section(Job(tmp_path / "flat.tif", POSITION_UM), replace(recipe, options=options))
    found = register_section(
        Job(scan, POSITION_UM), replace(recipe, options=replace(options, channel="DAPI"))
    )
    # In pixels of the scan, of which one of the network's has 20: thresholds are found at the level.
    assert np.abs(found.placement.matrix - flat.placement.matrix)[:, 2].max() < 4
    assert found.registered.transform.section == flat.registered.transform.section


class TestOutputSize:
    def register(self, path: Path, recipe, **options):
        recipe = replace(recipe, options=Options(channel=0, place="scale", turn=0, **options))
        return register_section(Job(path, POSITION_UM), recipe)

    def test_outputs_of_large_scans_are_coarser_with_a_notice(self, scan, recipe, monkeypatch, caplog):
        monkeypatch.setattr(module, "LARGEST_DEFAULT_PX", 800 * 1120 // 9)
        transform = self.register(scan, recipe).registered.transform
        assert transform.output_um is not None
        assert transform.reference.shape[0] * transform.reference.shape[1] == pytest.approx(
            800 * 1120 / 9, rel=0.3
        )
        assert "scan.ome.tif: images are written with pixels of" in caplog.text
        assert "--output-um" in caplog.text

    def test_requested_output_size_is_kept(self, scan, recipe, monkeypatch, caplog):
        monkeypatch.setattr(module, "LARGEST_DEFAULT_PX", 1000)
        assert self.register(scan, recipe, output_um=10.0).registered.transform.output_um == 10
        assert not caplog.text

    @pytest.mark.parametrize("output_um", [0, -3.0, np.nan, np.inf])
    def test_a_size_is_a_length(self, output_um):
        with pytest.raises(InputError, match="output_um"):
            Options(output_um=output_um)

    def test_a_grid_of_larger_pixels_keeps_the_outer_edges(self):
        grid = Grid((80, 120), (10.0, 5.0)).resampled((20, 40))
        assert grid.pixel_um == (30.0, 20.0)
        edges = grid.to_mm(np.array([[-0.5, -0.5], [39.5, 19.5]]))
        assert edges == pytest.approx(np.array([[-0.005, -0.0025], [1.195, 0.3975]]))
        assert grid.to_pixels(grid.to_mm(edges)) == pytest.approx(edges)


def test_the_command_names_scene_channel_and_size(planes, tmp_path, capsys):
    """What a user types ends up in the record, and files of the section can be transformed at the size they have."""
    path = tmp_path / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for name in ("left", "right"):
            metadata = {"axes": "CYX", "Name": name, "Channel": {"Name": ["DAPI", "x", "y"]},
                        "PhysicalSizeX": 10.0, "PhysicalSizeY": 10.0}  # fmt: skip
            file.write(planes, photometric="minisblack", metadata=metadata)
    command = ["register", str(path), "--atlas", "phantom", "--position", str(POSITION_UM),
               "--out", str(tmp_path / "out"), "--image-shape", "40", "56", "--turn", "0"]  # fmt: skip
    assert main([*command, "--channel", "DAPI", "--scene", "up"]) == 1
    assert "0 left, 1 right" in capsys.readouterr().err
    assert main([*command, "--channel", "dapi", "--scene", "right", "--output-um", "40"]) == 0
    folder = tmp_path / "out" / "slide"
    record = json.loads((folder / "transform.json").read_text())
    assert record["output_um"] == 40
    assert record["section"]["shape"] == [800, 1120]
    assert {name: record["settings"][name] for name in ("scene", "channel", "output_um")} == {
        "scene": "right", "channel": "dapi", "output_um": 40.0,
    }  # fmt: skip
    registered = open_slide(folder / "registered.tif").scene()
    back = ["transform", str(path), "--with", str(folder), "--to", "reference", "--scene", "1"]
    assert main([*back, "--out", str(tmp_path / "again.tif")]) == 0
    again = open_slide(tmp_path / "again.tif").scene()
    assert [channel.name for channel in again.channels] == ["DAPI", "x", "y"]
    assert again.shape == registered.shape
    for k in range(3):  # the field is stored in 32 bits
        difference = again.read(channel=k).astype(int) - registered.read(channel=k)
        assert np.percentile(np.abs(difference), 99) <= 2
    assert main([*back, "--output-um", "100", "--channel", "y", "--out", str(tmp_path / "coarse.tif")]) == 0
    assert open_slide(tmp_path / "coarse.tif").scene().pixel_um == pytest.approx((100, 100), rel=0.05)
