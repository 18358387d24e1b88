import json
import shutil

import numpy as np
import pytest

from atlalign.errors import InputError
from atlalign.io.images import read_image
from atlalign.io.slides import open_slide
from atlalign.registration.jobs import find_jobs

zarr = pytest.importorskip("zarr")

AXES = {"c": {"name": "c", "type": "channel"}} | {
    name: {"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"
}
CHANNELS = [{"label": "DAPI", "color": "0000FF"}, {"label": "NeuN", "color": "FF0000"}]


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 200, shape).astype(np.uint8)


def multiscale(axes: str, levels: int = 2) -> dict:
    steps = {"c": 1.0, "z": 4.0, "y": 0.65, "x": 0.5}
    scales = [[steps[axis] * (2**level if axis in "yx" else 1) for axis in axes] for level in range(levels)]
    return {
        "axes": [AXES[axis] for axis in axes],
        "datasets": [
            {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            for level, scale in enumerate(scales)
        ],
    }


def write(path, array, axes="czyx", version=2, channels=CHANNELS, levels=2):
    group = zarr.create_group(str(path), zarr_format=version)
    for level in range(levels):
        small = array[..., :: 2**level, :: 2**level]
        chunks = (*(1,) * (small.ndim - 2), 64, 64)
        group.create_array(str(level), shape=small.shape, chunks=chunks, dtype=small.dtype)[:] = small
    said = {"multiscales": [multiscale(axes, levels)], "omero": {"channels": channels}}
    group.attrs.update(said if version == 2 else {"ome": {"version": "0.5", **said}})
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_levels_channels_planes_and_pixel_size_are_those_of_the_metadata(tmp_path, version):
    array = pixels(2, 3, 150, 201)
    (scene,) = open_slide(write(tmp_path / "brain.ome.zarr", array, version=version)).scenes
    assert scene.levels == ((150, 201), (75, 101))
    assert [(channel.name, channel.color) for channel in scene.channels] == [
        ("DAPI", (0, 0, 255)),
        ("NeuN", (255, 0, 0)),
    ]
    assert (scene.pixel_um, scene.z_count, scene.is_color) == ((0.5, 0.65), 3, False)
    part = scene.read(1, slice(10, 60), slice(70, 101), channel=1, z=2)
    np.testing.assert_array_equal(part, array[1, 2, ::2, ::2][10:60, 70:101])


def test_three_channels_in_red_green_and_blue_are_one_image_in_colour(tmp_path):
    array = pixels(3, 90, 120)
    colors = [
        {"label": f"Channel {k}", "color": color} for k, color in enumerate(("FF0000", "00FF00", "0000FF"))
    ]
    path = write(tmp_path / "brain.zarr", array, axes="cyx", channels=colors)
    np.testing.assert_array_equal(read_image(path).pixels, np.moveaxis(array, 0, -1))
    colors[0]["label"] = "Cy5"
    (scene,) = open_slide(write(tmp_path / "dyes.zarr", array, axes="cyx", channels=colors)).scenes
    assert (scene.is_color, len(scene.channels)) == (False, 3)


def test_an_image_without_a_unit_has_no_pixel_size(tmp_path):
    path = write(tmp_path / "brain.zarr", pixels(90, 120), axes="yx", channels=[])
    known = json.loads((path / ".zattrs").read_text())
    for axis in known["multiscales"][0]["axes"]:
        del axis["unit"]
    (path / ".zattrs").write_text(json.dumps(known))
    assert read_image(path).pixel_um is None


def test_several_images_in_a_folder_are_scenes(tmp_path):
    folder = tmp_path / "slide.zarr"
    group = zarr.create_group(str(folder), zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    arrays = [pixels(40, 50), pixels(60, 70)]
    for number, array in enumerate(arrays):
        write(folder / str(number), array, axes="yx", channels=[], levels=1)
    scenes = open_slide(folder).scenes
    assert [scene.shape for scene in scenes] == [(40, 50), (60, 70)]
    np.testing.assert_array_equal(scenes[1].read(), arrays[1])


def test_a_zarr_folder_counts_as_one_image(tmp_path):
    write(tmp_path / "brain_s012.ome.zarr", pixels(90, 120), axes="yx", channels=[])
    for given in (tmp_path, tmp_path / "brain_s012.ome.zarr"):
        (job,) = find_jobs([given])
        assert job.name == "brain_s012"


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"plate": {"wells": []}}, "plate"),
        ({}, "multiscales"),
        ({"multiscales": [{"axes": [], "datasets": []}]}, "metadata"),
        ({"multiscales": [{**multiscale("yx", 1), "axes": [{"name": "a"}, {"name": "x"}]}]}, "axes"),
        ({"multiscales": [{"axes": [], "datasets": [{"path": "7"}]}]}, "7"),
    ],
)
def test_other_zarr_folders_are_refused(tmp_path, said, named):
    path = write(tmp_path / "brain.zarr", pixels(90, 120), axes="yx", channels=[], levels=1)
    (path / ".zattrs").write_text(json.dumps(said))
    with pytest.raises(InputError, match=rf"brain\.zarr: .*{named}"):
        open_slide(path)


def test_damaged_folders_and_missing_chunks_are_noticed(tmp_path, caplog):
    path = write(tmp_path / "brain.zarr", pixels(90, 120), axes="yx", channels=[], levels=1)
    (path / "0" / "0.1").unlink()
    open_slide(path).scenes[0].check()
    assert "level 0 lacks 1 of 4 chunks" in caplog.text
    (path / "0" / "0.0").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"brain\.zarr"):
        open_slide(path).scenes[0].read()
    shutil.rmtree(path / "0")
    with pytest.raises(InputError, match=r"brain\.zarr"):
        open_slide(path)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match=r"empty\.zarr"):
        open_slide(tmp_path / "empty.zarr")
