"""Written images: small ones in strips, large ones as pyramids that QuPath, napari and Fiji open at once."""

import numpy as np
import pytest
import tifffile

from atlalign.io.scenes import Channel
from atlalign.io.slides import open_slide
from atlalign.io.tiff_writer import LARGEST_FLAT_PX, write_tiff

RNG = np.random.default_rng(0)


def write(path, image: np.ndarray, *, band: int = 100, **options) -> None:
    channels = options.setdefault("channels", (Channel(),))
    planes = image if len(channels) > 1 else image[None]
    bands = (plane[top : top + band] for plane in planes for top in range(0, plane.shape[0], band))
    write_tiff(path, bands, shape=planes.shape[1:], dtype=image.dtype, pixel_um=(0.5, 0.25), **options)


@pytest.mark.parametrize(
    ("shape", "channels", "dtype"),
    [
        ((2301, 77, 3), 1, np.uint8),
        ((3, 300, 2100), 3, np.uint16),
        ((2049, 30), 1, np.float32),
        ((30, 2500), 1, np.uint64),
    ],
)
@pytest.mark.parametrize("band", [100, 256, 999])
def test_a_large_image_is_a_pyramid_of_means(tmp_path, shape, channels, dtype, band):
    image = (RNG.random(shape) * 250).astype(dtype)
    write(tmp_path / "a.tif", image, band=band, channels=(Channel(),) * channels)
    scene = open_slide(tmp_path / "a.tif").scene()
    assert scene.is_color == (shape[-1] == 3)
    assert scene.dtype == dtype
    assert max(scene.levels[-1]) <= LARGEST_FLAT_PX // 4
    planes = image if channels > 1 else image[None]
    for channel, expected in enumerate(planes):
        assert (scene.read(channel=channel) == expected).all()
        for level in range(1, len(scene.levels)):
            height, width = (size // 2 * 2 for size in expected.shape[:2])
            even = expected[:height, :width].astype(float)
            means = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
            expected = scene.read(level, channel=channel)
            found = expected[: height // 2, : width // 2]
            assert np.abs(found - means).max() <= (0.5 if np.dtype(dtype).kind == "u" else 1e-4)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages.first.is_tiled
        assert file.is_ome == (dtype != np.uint64)  # a type that OME does not have
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_smaller_copies_of_labels_hold_labels(tmp_path):
    labels = RNG.choice(np.array([0, 997, 2**31], np.uint32), (2201, 301))
    write(tmp_path / "a.tif", labels, labels=True)
    scene = open_slide(tmp_path / "a.tif", labels=True).scene()
    assert (scene.read(1) == labels[::2, ::2]).all()
    assert (scene.read(2) == labels[::4, ::4]).all()


def test_a_small_image_is_in_strips_and_no_pyramid(tmp_path):
    write(tmp_path / "a.tif", RNG.integers(0, 9, (LARGEST_FLAT_PX, 5), dtype=np.uint8))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert not file.pages.first.is_tiled
        assert not file.is_ome
        assert len(file.series[0].levels) == 1


def test_a_named_channel_keeps_its_name(tmp_path):
    write(tmp_path / "a.tif", np.zeros((20, 30), np.uint16), channels=(Channel("DAPI", (1, 2, 255)),))
    assert open_slide(tmp_path / "a.tif").scene().channels == (Channel("DAPI", (1, 2, 255)),)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """The levels lie beside the file while it is written."""
    from atlalign.io import tiff_writer

    def full(band):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiff_writer, "_half", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "a.tif", np.zeros((2100, 30), np.uint8))
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tif"}
