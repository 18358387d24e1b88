"""Images of all kinds, as microscopes and other programs write them."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from imagecodecs import png_encode

from atlalign.errors import InputError
from atlalign.io import images as module
from atlalign.io.images import read_image, read_labels, shrink_to_grey

GREY = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
COLOR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, **options) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **options)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
    return path


@pytest.mark.parametrize(
    ("name", "pixels", "options"),
    [
        ("grey.png", GREY.astype(np.uint8), {}),
        ("grey16.png", GREY, {}),
        ("color.png", COLOR, {}),
        ("color16.png", COLOR.astype(np.uint16) * 257, {}),
        ("grey16.tif", GREY, {}),
        ("float.tif", GREY.astype(np.float32) / 7, {}),
        ("color.tif", COLOR, {"photometric": "rgb"}),
        ("tiled.tif", COLOR, {"photometric": "rgb", "tile": (16, 16), "compression": "zlib"}),
        ("lzw.tif", COLOR, {"photometric": "rgb", "compression": "lzw", "predictor": True}),
    ],
)
def test_written_image_is_read_back(tmp_path, name, pixels, options):
    read = read_image(write(tmp_path / name, pixels, **options))
    assert read.pixels.dtype == pixels.dtype
    assert (read.pixels == pixels).all()
    assert read.pixel_um is None


def test_a_jpeg_is_read_nearly(tmp_path):
    smooth = np.add.outer(np.arange(20), np.arange(30)).astype(np.uint8)
    assert np.abs(read_image(write(tmp_path / "a.jpg", smooth)).pixels.astype(int) - smooth).max() < 4


def test_opacity_is_left_out(tmp_path):
    opaque = np.concatenate([COLOR, np.full((20, 30, 1), 9, np.uint8)], axis=2)
    assert (read_image(write(tmp_path / "a.png", opaque)).pixels == COLOR).all()
    path = write(tmp_path / "a.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    assert (read_image(path).pixels == COLOR).all()


def test_opacity_of_grey_is_left_out(tmp_path):
    grey = COLOR[..., 0]
    opaque = COLOR[..., :2]
    (tmp_path / "a.png").write_bytes(png_encode(np.ascontiguousarray(opaque)))
    write(
        tmp_path / "a.tif",
        opaque,
        photometric="minisblack",
        planarconfig="contig",
        extrasamples=["unassalpha"],
    )
    for name in ("a.png", "a.tif"):
        assert (read_image(tmp_path / name).pixels == grey).all()


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_one_bit_a_pixel_is_black_and_white(tmp_path, photometric):
    bits = COLOR[..., 0] > 99
    pixels = read_image(write(tmp_path / "a.tif", bits, photometric=photometric)).pixels
    assert (pixels == 255 * (bits if photometric == "minisblack" else ~bits)).all()


@pytest.mark.parametrize("planar", ["separate", "contig"])
def test_colour_is_read_however_it_is_laid_out(tmp_path, planar):
    pixels = np.moveaxis(COLOR, 2, 0) if planar == "separate" else COLOR
    path = write(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig=planar)
    assert (read_image(path).pixels == COLOR).all()


def test_white_is_zero_in_some_files(tmp_path):
    path = write(tmp_path / "a.tif", GREY.astype(np.uint8), photometric="miniswhite")
    assert (read_image(path).pixels == 255 - GREY.astype(np.uint8)).all()


class TestPixelSize:
    def test_ome(self, tmp_path):
        metadata = {"axes": "YX", "PhysicalSizeX": 0.65, "PhysicalSizeY": 1.3, "PhysicalSizeYUnit": "µm"}
        path = write(tmp_path / "a.ome.tif", GREY, ome=True, metadata=metadata)
        assert read_image(path).pixel_um == (0.65, 1.3)

    def test_ome_in_another_unit(self, tmp_path):
        metadata = {"axes": "YX"} | {
            f"PhysicalSize{a}{u}": v for a in "XY" for u, v in (("", 650.0), ("Unit", "nm"))
        }
        path = write(tmp_path / "a.ome.tif", GREY, ome=True, metadata=metadata)
        assert read_image(path).pixel_um == pytest.approx((0.65, 0.65))

    @pytest.mark.parametrize("unit", ["pixel", "parsec"])
    def test_unknown_ome_unit_gives_no_pixel_size(self, tmp_path, unit):
        metadata = {f"PhysicalSize{a}{u}": v for a in "XY" for u, v in (("", 2.0), ("Unit", unit))}
        path = write(tmp_path / "a.ome.tif", GREY, ome=True, metadata={"axes": "YX"} | metadata)
        assert read_image(path).pixel_um is None

    def test_imagej(self, tmp_path):
        path = write(
            tmp_path / "a.tif", GREY, imagej=True, resolution=(1 / 40, 1 / 80), metadata={"unit": "um"}
        )
        assert read_image(path).pixel_um == pytest.approx((40, 80))

    def test_tags(self, tmp_path):
        path = write(tmp_path / "a.tif", GREY, resolution=(5000, 4000), resolutionunit="CENTIMETER")
        assert read_image(path).pixel_um == pytest.approx((2, 2.5))

    @pytest.mark.parametrize(
        ("dpi", "unit"), [(72, "INCH"), (300, "INCH"), (100, "CENTIMETER"), (5000, "NONE")]
    )
    def test_printer_resolution_gives_no_pixel_size(self, tmp_path, dpi, unit):
        assert (
            read_image(write(tmp_path / "a.tif", GREY, resolution=(dpi, dpi), resolutionunit=unit)).pixel_um
            is None
        )


class TestSeveralChannels:
    @pytest.fixture
    def path(self, tmp_path):
        return write(tmp_path / "a.ome.tif", np.stack([GREY, GREY + 7]), ome=True, metadata={"axes": "CYX"})

    def test_one_is_chosen(self, path):
        assert (read_image(path, channel=1).pixels == GREY + 7).all()
        assert (read_image(path, channel=0).pixels == GREY).all()

    @pytest.mark.parametrize("channels", [2, 3, 4])
    @pytest.mark.parametrize("kind", ["ome", "imagej"])
    def test_without_a_choice_it_says_so(self, tmp_path, channels, kind):
        """Three or four of them are not taken for colour and opacity: the file tells them apart."""
        pixels = np.stack([GREY + k for k in range(channels)])
        path = write(
            tmp_path / "b.tif", pixels, photometric="minisblack", metadata={"axes": "CYX"}, **{kind: True}
        )
        with pytest.raises(InputError, match=rf"found {channels} channels: .*with --channel"):
            read_image(path)
        assert (read_image(path, channel=channels - 1).pixels == GREY + channels - 1).all()

    def test_samples_are_channels_unless_they_are_colour(self, tmp_path):
        several = np.stack([GREY, GREY + 1, GREY + 2], axis=2)
        path = write(tmp_path / "b.tif", several, photometric="minisblack", planarconfig="contig")
        with pytest.raises(InputError, match=r"found 3 channels: .*with --channel"):
            read_image(path)

    def test_the_choice_exists(self, path):
        with pytest.raises(InputError, match="expected a channel in 0 … 1, got 2"):
            read_image(path, channel=2)

    def test_colour_has_channels_too(self, tmp_path):
        assert (read_image(write(tmp_path / "a.png", COLOR), channel=2).pixels == COLOR[..., 2]).all()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_unreadable_images_are_reported(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(InputError, match=f"{name}: no such file"):
        read_image(path)
    for content in (b"", b"no image", write(path, COLOR).read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: cannot be read as an image"):
            read_image(path)


def test_nan_intensities_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected finite intensities"):
        read_image(write(tmp_path / "a.tif", np.full((4, 5), np.nan, np.float32)))


def test_labels_come_through_unchanged(tmp_path):
    labels = np.array([[0, 614454277], [997, 2**32 - 1]], np.uint32)
    assert (read_labels(write(tmp_path / "a.tif", labels)) == labels).all()
    with pytest.raises(InputError, match="expected labels, one integer per pixel"):
        read_labels(write(tmp_path / "b.tif", GREY.astype(np.float32)))
    with pytest.raises(InputError, match="expected labels, one integer per pixel"):
        read_labels(write(tmp_path / "c.png", COLOR))


@pytest.mark.parametrize("strip", [1, 2**22])
def test_shrinking_takes_the_mean_of_blocks(monkeypatch, strip):
    monkeypatch.setattr(module, "_STRIP_PX", strip)
    shrunk = shrink_to_grey(GREY, 3)
    assert shrunk.shape == (6, 10)
    assert float(shrunk[1, 2]) == pytest.approx(GREY[3:6, 6:9].mean())
    grey = COLOR @ np.array([0.299, 0.587, 0.114])
    assert torch.allclose(shrink_to_grey(COLOR), torch.from_numpy(grey).float(), atol=1e-3)
