"""TIFF files of all kinds: which image of them is read, its colours, its orientation, and whether it is all there."""

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from atlalign.errors import InputError
from atlalign.io import pixel_sizes
from atlalign.io.images import open_channels, read_image, read_labels, shrink_to_grey

GREY = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
COLOR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
SMOOTH = np.stack(np.broadcast_arrays(np.arange(32) * 3, np.arange(24)[:, None] * 9, 90), axis=2).astype(
    np.uint8
)


def write(path: Path, *images: np.ndarray, **options) -> Path:
    """Write each image as one of its own, with its own options under its place."""
    kinds = {name: options.pop(name) for name in ("bigtiff", "ome", "imagej") if name in options}
    each = options.pop("each", [{}] * len(images))
    with tifffile.TiffWriter(path, **kinds) as file:
        for image, own in zip(images, each, strict=True):
            file.write(
                image, **{"photometric": "rgb" if image.shape[-1] == 3 else "minisblack", **options, **own}
            )
    return path


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"imagej": True}])
def test_a_tiff_by_the_name_of_another_format_is_read(tmp_path, options):
    assert (read_image(write(tmp_path / "a.ndpi", GREY, **options)).pixels == GREY).all()
    assert (read_image(write(tmp_path / "a.jpg", GREY, **options)).pixels == GREY).all()


class TestWhichImage:
    @pytest.mark.parametrize("order", [1, -1])
    def test_of_several_images_the_largest_is_read_and_the_others_are_named(self, tmp_path, caplog, order):
        small = COLOR[:7, :9].copy()  # no level of a pyramid
        path = write(tmp_path / "a.tif", *[small, COLOR][::order], metadata=None)
        assert (read_image(path).pixels == COLOR).all()
        assert "a.tif" in caplog.text
        assert "7×9 px" in caplog.text
        assert "--scene" in caplog.text
        both = [read_image(path, scene=scene).pixels for scene in (0, 1)][::order]
        assert (both[0] == small).all()
        assert (both[1] == COLOR).all()

    def test_of_two_scenes_one_is_chosen_by_number_or_name_or_page(self, tmp_path, caplog):
        scenes = [{"metadata": {"Name": name}} for name in ("left", "right")]
        path = write(tmp_path / "a.ome.tif", COLOR, 255 - COLOR, ome=True, each=scenes)
        assert (read_image(path).pixels == COLOR).all()
        assert "(0: left, 20×30 px; 1: right, 20×30 px)" in caplog.text
        for choice in ({"scene": 1}, {"scene": "1"}, {"scene": "Right"}, {"page": 1}):
            assert (read_image(path, **choice).pixels == 255 - COLOR).all()
        with pytest.raises(InputError, match="of a scene, found none called 'up': there are 0 left, 1 right"):
            read_image(path, scene="up")
        with pytest.raises(InputError, match="a scene in 0 … 1, got 2"):
            read_image(path, scene=2)

    @pytest.mark.parametrize("name", ["label", "macro", "thumbnail"])
    def test_nobody_misses_the_label_of_a_slide(self, tmp_path, caplog, name):
        both = [{"metadata": {"Name": name}}, {"metadata": {"Name": "x"}}]
        path = write(tmp_path / "a.ome.tif", COLOR[::2].copy(), COLOR, ome=True, each=both)
        assert (read_image(path).pixels == COLOR).all()
        assert not caplog.text

    @pytest.mark.parametrize("subfiletype", [1, 4])
    def test_a_reduced_copy_or_a_mask_is_not_the_image(self, tmp_path, caplog, subfiletype):
        large = np.zeros((40, 60), bool if subfiletype == 4 else np.uint8)  # even where it is larger
        path = write(tmp_path / "a.tif", large, GREY, metadata=None, each=[{"subfiletype": subfiletype}, {}])
        assert (read_image(path).pixels == GREY).all()
        assert not caplog.text

    def test_of_a_pyramid_the_full_size_is_read(self, tmp_path, caplog):
        with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
            file.write(COLOR, photometric="rgb", subifds=1, tile=(16, 16))
            file.write(COLOR[::2, ::2].copy(), photometric="rgb", subfiletype=1, tile=(16, 16))
        assert (read_image(tmp_path / "a.ome.tif").pixels == COLOR).all()
        assert not caplog.text

    def test_the_name_does_not_matter(self, tmp_path):
        write(tmp_path / "a.tif", COLOR, bigtiff=True).rename(tmp_path / "a.png")
        assert (read_image(tmp_path / "a.png").pixels == COLOR).all()


class TestStacks:
    STACK = np.stack([GREY + k for k in range(5)])

    @pytest.mark.parametrize(
        "kind", [{}, {"imagej": True}, {"ome": True}, {"imagej": True, "truncate": True}]
    )
    def test_a_plane_of_a_z_stack_is_chosen(self, tmp_path, kind):
        truncate = {"truncate": True} if kind.get("truncate") else {}
        kinds = {name: True for name in kind if name != "truncate"}
        path = write(tmp_path / "a.tif", self.STACK, **kinds, metadata={"axes": "ZYX"}, **truncate)
        with pytest.raises(InputError, match=r"a\.tif: expected one image, found a z-stack of 5 planes.*--z"):
            read_image(path)
        assert (read_image(path, z=3).pixels == GREY + 3).all()
        assert (read_image(path, page=3).pixels == GREY + 3).all()
        assert (read_labels(path, z=4) == GREY + 4).all()
        with pytest.raises(InputError, match=r"a plane \(--z\) in 0 … 4, got 5"):
            read_image(path, z=5)

    def test_of_a_series_in_time_the_first_is_read(self, tmp_path, caplog):
        path = write(tmp_path / "a.tif", self.STACK, metadata={"axes": "TYX"})
        assert (read_image(path).pixels == GREY).all()
        assert "a.tif: holds 5 points in time" in caplog.text
        assert (read_image(path, page=2).pixels == GREY + 2).all()

    @pytest.mark.parametrize("options", [{"metadata": None}, {}])
    def test_a_page_of_many_is_chosen(self, tmp_path, options):
        path = write(tmp_path / "a.tif", self.STACK, **options)
        with pytest.raises(InputError, match=r"a\.tif: expected one image, found 5 pages.*--page"):
            read_image(path)
        assert (read_image(path, page=2).pixels == GREY + 2).all()
        with pytest.raises(InputError, match=r"a page \(--page\) in 0 … 4, got -1"):
            read_image(path, page=-1)

    def test_plane_and_channel_are_both_chosen(self, tmp_path):
        stack = np.stack([self.STACK, self.STACK + 100], axis=1)  # (z, c, h, w)
        path = write(tmp_path / "a.ome.tif", stack, ome=True, metadata={"axes": "ZCYX"})
        assert (read_image(path, z=3, channel=1).pixels == GREY + 103).all()
        assert [int(open_channels(path, z=2).read(channel=c)[0, 0]) for c in (0, 1)] == [2, 102]
        with pytest.raises(InputError, match=r"found 2 channels: .*with --channel"):
            read_image(path, z=3)

    def test_an_image_without_a_stack_has_one_plane_and_one_channel(self, tmp_path):
        path = write(tmp_path / "a.tif", GREY)
        assert (read_image(path, z=0, page=0, channel=0).pixels == GREY).all()
        for choice in ({"z": 1}, {"page": 1}, {"channel": 1}):
            with pytest.raises(InputError, match=rf"{next(iter(choice))}.* in 0 … 0, got 1"):
                read_image(path, **choice)

    def test_only_the_chosen_part_must_fit_into_memory(self, tmp_path, monkeypatch):
        monkeypatch.setattr("atlalign.errors.LARGEST_BYTES", GREY.nbytes)
        path = write(tmp_path / "a.tif", self.STACK, metadata={"axes": "CYX"})
        assert (read_image(path, channel=2).pixels == GREY + 2).all()
        monkeypatch.setattr("atlalign.errors.LARGEST_BYTES", GREY.nbytes - 1)
        with pytest.raises(InputError, match=r"a\.tif: expected at most .* 20×30"):
            read_image(path, channel=2)


class TestColours:
    PALETTE = np.random.default_rng(1).integers(0, 2**16, (3, 256), dtype=np.uint16)

    @pytest.mark.parametrize("scale", [0, 8])
    def test_a_palette_is_colour_and_as_labels_its_indices(self, tmp_path, scale):
        indices = COLOR[..., 0]
        colormap = self.PALETTE >> scale  # some programs write 8 bits
        path = write(tmp_path / "a.tif", indices, photometric="palette", colormap=colormap)
        assert (read_image(path).pixels == (self.PALETTE >> 8).T[indices]).all()
        assert (read_labels(path) == indices).all()

    def test_ycbcr_without_compression_becomes_rgb(self, tmp_path):
        Image.fromarray(SMOOTH).convert("YCbCr").save(tmp_path / "a.tif")
        assert np.abs(read_image(tmp_path / "a.tif").pixels.astype(int) - SMOOTH).max() <= 3

    @pytest.mark.parametrize("compression", [1, 8])
    def test_pixels_that_share_their_chroma_become_rgb(self, tmp_path, compression):
        path = write_subsampled(tmp_path / "a.tif", SMOOTH, compression)
        assert np.abs(read_image(path).pixels.astype(int) - SMOOTH).max() <= 12

    def test_jpeg_within_tiff_is_rgb(self, tmp_path):
        path = write(tmp_path / "a.tif", SMOOTH, compression="jpeg")
        assert np.abs(read_image(path).pixels.astype(int) - SMOOTH).max() <= 12

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_cmyk_becomes_rgb(self, tmp_path, dtype):
        largest = np.iinfo(dtype).max
        cmyk = np.zeros((4, 5, 4), dtype)
        cmyk[0, 0, 1:3] = largest  # red
        cmyk[1, 1, 3] = largest  # black
        path = write(tmp_path / "a.tif", cmyk, photometric="separated")
        pixels = read_image(path).pixels
        assert pixels.shape == (4, 5, 3)
        assert pixels.dtype == dtype
        assert pixels[0, 0].tolist() == [largest, 0, 0]
        assert pixels[1, 1].tolist() == [0, 0, 0]
        assert pixels[2, 2].tolist() == [largest] * 3

    def test_other_kinds_of_colour_are_named(self, tmp_path):
        with pytest.raises(InputError, match=r"a\.tif: expected grey or RGB, found CIELAB"):
            read_image(write(tmp_path / "a.tif", COLOR, photometric="cielab"))

    @pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.float16, np.float32])
    def test_white_is_zero_and_signed(self, tmp_path, dtype):
        dark = np.array([[0, 100, 127], [0, 5, 6]], dtype)
        path = write(tmp_path / "a.tif", dark, photometric="miniswhite")
        assert read_image(path).pixels.tolist() == [[127, 27, 0], [127, 122, 121]]

    def test_the_whole_range_is_turned_without_overflow(self, tmp_path):
        path = write(tmp_path / "a.tif", np.array([[-128, 127], [0, 1]], np.int8), photometric="miniswhite")
        assert read_image(path).pixels.tolist() == [[127, -128], [-1, -2]]

    @pytest.mark.parametrize("bits", [2, 4, 12])
    def test_few_bits_are_scaled_to_white_and_labels_are_not(self, tmp_path, bits):
        top = 2**bits - 1
        values = np.array([[0, 1], [2, top]], np.uint8 if bits < 8 else np.uint16)
        path = write(tmp_path / "a.tif", values, bitspersample=bits, photometric="miniswhite")
        scale = 255 // top if bits < 8 else 1
        assert read_image(path).pixels.tolist() == ((top - values.astype(int)) * scale).tolist()
        assert (read_labels(path) == values).all()

    def test_float16_stays(self, tmp_path):
        pixels = read_image(write(tmp_path / "a.tif", GREY.astype(np.float16))).pixels
        assert pixels.dtype == np.float16
        assert (pixels == GREY).all()

    def test_samples_declared_as_channels_are_not_color(self, tmp_path):
        planar = np.moveaxis(COLOR, 2, 0)
        options = {"photometric": "rgb", "planarconfig": "separate", "metadata": {"axes": "CYX"}}
        path = write(tmp_path / "a.tif", planar, **options)
        with pytest.raises(InputError, match=r"found 3 channels: .*with --channel"):
            read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_makes_the_image_upright_and_turns_its_pixel_size(tmp_path, orientation):
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(stored).save(tmp_path / "seen.png", exif=exif(orientation))
    path = write(
        tmp_path / "a.tif",
        stored,
        resolution=(5000, 4000),
        resolutionunit="CENTIMETER",
        extratags=[(274, 3, 1, orientation, True)],
    )
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }[orientation]
    image = read_image(path)
    assert (image.pixels == expected).all()
    assert image.pixel_um == ((2, 2.5) if orientation < 5 else (2.5, 2))
    assert (read_labels(path) == expected).all()
    assert (read_image(tmp_path / "seen.png").pixels == expected).all()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


class TestWhatIsNotThere:
    @pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
    @pytest.mark.parametrize("byteorder", ["<", ">"])
    def test_a_cut_file_is_refused_wherever_its_directory_stands(self, tmp_path, compression, byteorder):
        path = tmp_path / "a.tif"
        with tifffile.TiffWriter(path, byteorder=byteorder) as file:
            file.write(COLOR[::4, ::4].copy(), photometric="rgb", metadata=None)
            file.write(COLOR, photometric="rgb", metadata=None, compression=compression, rowsperstrip=16)
        content = path.read_bytes()
        with tifffile.TiffFile(path) as file:
            second = file.pages[1].offset
        for kept in (second - 9, second, second + 9, second + 99, len(content) * 2 // 3, len(content) - 9):
            path.write_bytes(content[:kept])
            with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image: .*ends early"):
                read_image(path, scene=1)

    def test_strips_beyond_the_end_are_not_there(self, tmp_path):
        path = write(tmp_path / "a.tif", COLOR, rowsperstrip=5, compression="zlib", metadata=None)
        with tifffile.TiffFile(path, mode="r+") as file:
            offsets = list(file.pages.first.dataoffsets)
            file.pages.first.tags["StripOffsets"].overwrite([*offsets[:-1], 10**6])
        with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image: .*ends early"):
            read_image(path)

    def test_truncated_imagej_stack_is_refused_for_every_plane(self, tmp_path):
        stack = np.stack([GREY] * 5)
        path = write(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZYX"}, truncate=True)
        path.write_bytes(path.read_bytes()[: -3 * GREY.nbytes])
        for choice in ({}, {"z": 0}):
            with pytest.raises(InputError, match="a\\.tif: cannot be read as an image"):
                read_image(path, **choice)

    def test_planes_in_files_that_are_missing_are_missing(self, tmp_path):
        path = write(tmp_path / "a.ome.tif", GREY, ome=True, metadata={"axes": "YX"})
        with tifffile.TiffFile(path) as file:
            metadata = file.ome_metadata
        second = '<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:1</UUID></TiffData>'
        metadata = metadata.replace('SizeC="1"', 'SizeC="2"').replace("</Pixels>", f"{second}</Pixels>")
        metadata = metadata.replace('IFD="0" PlaneCount="1"/>', 'FirstC="0" IFD="0" PlaneCount="1"/>', 1)
        tifffile.tiffcomment(path, metadata.encode())
        assert (read_image(path, channel=0).pixels == GREY).all()
        with pytest.raises(InputError, match="expected every plane"):
            read_image(path, channel=1)

    def test_a_declared_size_beyond_memory_is_refused_before_it_is_allocated(self, tmp_path):
        path = write(tmp_path / "a.tif", GREY, metadata=None)
        with tifffile.TiffFile(path, mode="r+") as file:
            for name in ("ImageWidth", "ImageLength"):
                file.pages.first.tags[name].overwrite(300_000)
        with pytest.raises(InputError, match=r"a\.tif: expected at most .*300000×300000"):
            read_image(path)


class TestIntensities:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e31, -1e300])
    def test_values_beyond_32_bits_are_reported(self, tmp_path, value):
        pixels = np.ones((4, 5))
        pixels[1, 2] = value
        with pytest.raises(
            InputError, match=r"a\.tif: expected finite .* at most 1e\+30, found (nan|inf|1e)"
        ):
            read_image(write(tmp_path / "a.tif", pixels))

    @pytest.mark.parametrize("scale", [1e-30, 1e27])
    def test_means_of_large_and_small_intensities_are_right(self, tmp_path, scale):
        pixels = GREY.astype(np.float64)
        found = shrink_to_grey(read_image(write(tmp_path / "a.tif", pixels * scale)).pixels, 5).numpy()
        assert found / scale == pytest.approx(shrink_to_grey(pixels, 5).numpy(), rel=1e-5)

    @pytest.mark.parametrize("ids", [[2**32, 2**53 + 1], [2**63 - 1, -(2**63)], [2**64 - 1, 0]])
    def test_no_id_is_changed(self, tmp_path, ids):
        labels = np.array([ids, [0, 997]], np.uint64 if max(ids) > 2**63 else np.int64)
        found = read_labels(write(tmp_path / "a.tif", labels))
        assert found.dtype == labels.dtype
        assert (found == labels).all()


def write_subsampled(path: Path, rgb: np.ndarray, compression: int) -> Path:
    """Write YCbCr of which blocks of 2×2 pixels share their chroma, as libtiff's tiffcp does."""
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    height, width = ycbcr.shape[:2]
    luma = (
        ycbcr[..., 0]
        .reshape(height // 2, 2, width // 2, 2)
        .swapaxes(1, 2)
        .reshape(height // 2, width // 2, 4)
    )
    chroma = ycbcr[..., 1:].reshape(height // 2, 2, width // 2, 2, 2).mean(axis=(1, 3)).astype(np.uint8)
    data = np.concatenate([luma, chroma], axis=2).tobytes()
    data = zlib.compress(data) if compression == 8 else data
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, 134),
        (259, 3, 1, compression),
        (262, 3, 1, 6),
    ]
    tags += [
        (273, 4, 1, 140),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
        (530, 3, 2, 2 | 2 << 16),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<HHH", 8, 8, 8) + data)
    return path


# --- pixel sizes ------------------------------------------------------------------------------------------------------


MICRO = (
    "µm",
    "μm",
    "um",
    "UM",
    "micron",
    "Microns",
    "micrometer",
    "micrometre",
    "Micrometers",
    "µ",
    r"\u00B5m",
    "Âµm",
    "&#181;m",
    "µm/px",
    "um / pixel",
    "microns per pixel",
    "[um]",
    "micromètre",
    "мкм",
)


@pytest.mark.parametrize(
    ("value", "unit", "um"),
    [
        *[("26.04", unit, 26.04) for unit in MICRO],
        ("26,04", "µm", 26.04),
        (" 2.6e-5 ", "m", 26),
        ("26040", "nm", 26.04),
        ("26040", "nanometers", 26.04),
        ("0.02604", "mm", 26.04),
        ("0,02604", "Millimetre", 26.04),
        ("0.002604", "cm", 26.04),
        ("0.002604", "centimeter", 26.04),
        ("0.001", "inch", 25.4),
        ("0.001", "in", 25.4),
        ("0.001", "Inches", 25.4),
        ("260400", "Å", 26.04),
        ("0", "µm", None),
        ("0.0", "inch", None),
        ("1", "pixel", None),
        ("1", "reference frame", None),
        ("2.604e7", "pm", 26.04),
        ("1", "", None),
    ],
)
def test_a_length_is_read_in_any_words(value, unit, um):
    assert pixel_sizes.parse_length(value, unit) == (None if um is None else pytest.approx(um))


@pytest.mark.parametrize(
    ("value", "unit", "named"), [("1", "furlong", "furlong"), ("wide", "µm", "wide"), ("-1", "µm", "-1"),
                                 ("2", "pixels/µm", "pixels/µm"), ("2", "1/µm", "1/µm"),
                                 ("nan", "µm", "nan"), ("inf", "µm", "inf"), ("1.234,5", "µm", "1.234,5")]
)  # fmt: skip
def test_no_length_is_named(value, unit, named):
    with pytest.raises(ValueError, match=named):
        pixel_sizes.parse_length(value, unit)


def ome(size: str, unit: str | None = None, axes: str = "XY", images: int = 1) -> str:
    sizes = "".join(
        f' PhysicalSize{axis}="{size}"' + (f' PhysicalSize{axis}Unit="{unit}"' if unit else "")
        for axis in axes
    )
    image = (
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" SizeX="30" SizeY="20" '
        f'SizeC="1" SizeZ="1" SizeT="1"{sizes}><TiffData/></Pixels></Image>'
    )
    return f'<?xml version="1.0"?><OME xmlns="{OME}">{image * images}</OME>'


class TestPixelSizeOfFiles:
    def write(self, path: Path, description: str, **options) -> Path:
        return write(path, GREY, description=description.encode(), metadata=None, **options)

    @pytest.mark.parametrize("unit", [None, "µm", "μm", "micrometer"])
    @pytest.mark.parametrize("size", ["26.04", "26,04"])
    def test_ome(self, tmp_path, size, unit, caplog):
        assert read_image(self.write(tmp_path / "a.ome.tif", ome(size, unit))).pixel_um == (26.04, 26.04)
        assert not caplog.text

    def test_zero_is_unknown_without_a_word_and_the_tags_are_asked(self, tmp_path, caplog):
        tags = {"resolution": (5000, 5000), "resolutionunit": "CENTIMETER"}
        assert read_image(self.write(tmp_path / "a.ome.tif", ome("0"))).pixel_um is None
        assert read_image(self.write(tmp_path / "b.ome.tif", ome("0"), **tags)).pixel_um == (2, 2)
        assert not caplog.text

    @pytest.mark.parametrize(
        ("description", "named"),
        [
            (ome("wide"), "wide"),
            (ome("1", "furlong"), "furlong"),
            (ome("2", axes="X"), "only one of width and height"),
            (ome("2")[:-9], "OME metadata is damaged"),
            ("Aperio Image Library|MPP = unknown|", "unknown"),
        ],
    )
    def test_unreadable_files_are_reported(self, tmp_path, caplog, description, named):
        assert read_image(self.write(tmp_path / "a.tif", description)).pixel_um is None
        assert "a.tif: the pixel size is unknown" in caplog.text
        assert named in caplog.text

    def test_a_companion_file_says_it(self, tmp_path, caplog):
        only = f'<OME xmlns="{OME}"><BinaryOnly MetadataFile="a.companion.ome"/></OME>'
        path = self.write(tmp_path / "a.ome.tif", only)
        assert (read_image(path).pixels == GREY).all()
        assert "a.companion.ome" in caplog.text
        (tmp_path / "a.companion.ome").write_text(ome("0,65"), encoding="utf-8")
        assert read_image(path).pixel_um == (0.65, 0.65)

    def test_philips(self, tmp_path):
        def spacing(y: float, x: float) -> str:
            return f'<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">"{y}" "{x}"</Attribute>'

        levels = spacing(0.0005, 0.00045) + spacing(0.00025, 0.000225) + spacing(0.001, 0.0009)
        described = f'<DataObject ObjectType="DPUfsImport">{levels}</DataObject>'
        path = tmp_path / "a.tiff"
        tifffile.imwrite(
            path, np.zeros((20, 30), np.uint8), description=described, software="Philips DP v1.0"
        )
        assert read_image(path).pixel_um == pytest.approx((0.225, 0.25))

    @pytest.mark.parametrize("mpp", ["0.4990", "0,4990"])
    def test_aperio(self, tmp_path, mpp):
        path = self.write(
            tmp_path / "a.svs", f"Aperio Image Library v1\n30x20|AppMag = 20|MPP = {mpp}|Left = 2"
        )
        assert read_image(path).pixel_um == (0.499, 0.499)

    @pytest.mark.parametrize("unit", ["Micron", "micrometer", r"\u00B5m", "um"])
    def test_imagej(self, tmp_path, unit):
        path = write(
            tmp_path / "a.tif", GREY, imagej=True, resolution=(1 / 40, 1 / 80), metadata={"unit": unit}
        )
        assert read_image(path).pixel_um == pytest.approx((40, 80))

    def test_imagej_in_inches_is_doubted_as_a_printers_resolution_is(self, tmp_path):
        for per_inch, um in ((1000, 25.4), (72, None)):
            options = {"imagej": True, "resolution": (per_inch, per_inch), "metadata": {"unit": "inch"}}
            found = read_image(write(tmp_path / "a.tif", GREY, **options)).pixel_um
            assert found == (None if um is None else pytest.approx((um, um)))

    @pytest.mark.parametrize("said", [{}, {"unit": "pixel"}])
    def test_imagej_without_a_unit_is_doubted_as_a_printers_resolution_is(self, tmp_path, said):
        for per_cm, um in ((20000, 0.5), (118.11, None)):
            options = {"imagej": True, "resolution": (per_cm, per_cm), "resolutionunit": 3, "metadata": said}
            found = read_image(write(tmp_path / "a.tif", GREY, **options)).pixel_um
            assert found == (None if um is None else pytest.approx((um, um)))

    @pytest.mark.parametrize(("state", "um"), [("on", (0.65, 0.325)), ("off", None)])
    def test_metaxpress(self, tmp_path, state, um):
        said = (
            f'<MetaData><PlaneInfo><prop id="spatial-calibration-state" type="bool" value="{state}"/>'
            '<prop id="spatial-calibration-x" type="float" value="0.65"/>'
            '<prop id="spatial-calibration-y" type="float" value="0.325"/>'
            '<prop id="spatial-calibration-units" type="string" value="um"/></PlaneInfo></MetaData>'
        )
        options = {"description": said, "software": "MetaSeries", "metadata": None}
        assert read_image(write(tmp_path / "a.tif", GREY, **options)).pixel_um == um

    def test_unknown_imagej_unit_is_reported(self, tmp_path, caplog):
        write(tmp_path / "a.tif", GREY, imagej=True, resolution=(1, 1), metadata={"unit": "furlong"})
        assert read_image(tmp_path / "a.tif").pixel_um is None
        assert "furlong" in caplog.text

    def test_each_scene_has_its_own(self, tmp_path, caplog):
        caplog.set_level(logging.ERROR)
        each = [{"metadata": {"PhysicalSizeX": um, "PhysicalSizeY": um}} for um in (8.0, 2.0)]
        path = write(tmp_path / "a.ome.tif", GREY[::4, ::4].copy(), GREY, ome=True, each=each)
        assert read_image(path, scene=1).pixel_um == (2, 2)
        assert read_image(path, page=0).pixel_um == (8, 8)
        path = write(tmp_path / "b.ome.tif", GREY, GREY + 1, ome=True, each=each)
        assert [read_image(path, page=page).pixel_um for page in (0, 1)] == [(8, 8), (2, 2)]

    def test_scan_metadata_does_not_apply_to_the_thumbnail(self, tmp_path):
        options = {"metadata": None, "description": "Aperio|MPP = 0.5"}
        path = write(tmp_path / "a.svs", COLOR, COLOR[:7, :9].copy(), **options)
        assert read_image(path, page=0).pixel_um == (0.5, 0.5)
        assert read_image(path, page=1).pixel_um is None
