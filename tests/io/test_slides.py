"""Slides: pyramids, channels, scenes and stacks of many programs, read part by part at the level that is needed."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from atlalign.errors import InputError
from atlalign.io import tiff_tiles, views
from atlalign.io.images import open_channels, open_image, read_image
from atlalign.io.pixels import upright
from atlalign.io.scenes import Channel, array_scene
from atlalign.io.slides import open_slide
from atlalign.io.tiff_writer import write_tiff
from atlalign.io.views import at_scale, overview

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (200, 150, 3), dtype=np.uint8)
GREY = RNG.integers(0, 2**16, (200, 150), dtype=np.uint16)
PARTS = [
    (slice(None), slice(None)),
    (slice(30, 99), slice(17, 130)),
    (slice(0, 1), slice(149, 150)),
    (slice(150, 300), slice(140, 150)),
]


def smaller(image: np.ndarray) -> np.ndarray:
    return image[..., ::2, ::2, :].copy() if image.shape[-1] == 3 else image[..., ::2, ::2].copy()


def write_pyramid(path: Path, image: np.ndarray, *, levels: int = 3, **options) -> list[np.ndarray]:
    """Write a pyramid with levels within the image's page, as OME has it, and return its levels."""
    ome = options.pop("ome", None)
    metadata = options.pop("metadata", None)
    photometric = "rgb" if image.shape[-1] == 3 else "minisblack"
    common = {"photometric": photometric, "tile": (32, 64)} | options
    images = [image]
    with tifffile.TiffWriter(path, ome=ome) as file:
        file.write(image, subifds=levels - 1, metadata=metadata, **common)
        for _ in range(levels - 1):
            images.append(smaller(images[-1]))
            file.write(images[-1], subfiletype=1, **common)
    return images


def write_pages(path: Path, pages: list[np.ndarray], each: list[dict]) -> None:
    with tifffile.TiffWriter(path) as file:
        for page, own in zip(pages, each, strict=True):
            file.write(page, photometric="rgb" if page.shape[-1] == 3 else "minisblack", metadata=None, **own)


def write_ndpi(path: Path, pages: list[np.ndarray], magnifications: list[float], per_cm: int) -> None:
    """Write pages as NDPI has them: a TIFF file with offsets of 64 bits, whose high halves follow each directory."""
    content = bytearray(b"II*\0" + bytes(8))
    link = 4  # where the offset of the next directory stands
    for page, magnification in zip(pages, magnifications, strict=True):
        pixels, samples = len(content), page.shape[2] if page.ndim == 3 else 1
        content += page.tobytes()
        make, per_sample, resolution = len(content), len(content) + 10, len(content) + 16
        content += b"Hamamatsu\0" + struct.pack("<3H2I", 8, 8, 8, per_cm, 1)
        tags = [
            (256, 3, 1, page.shape[1]), (257, 3, 1, page.shape[0]), (258, 3, samples, per_sample if samples > 1 else 8),
            (259, 3, 1, 1), (262, 3, 1, 2 if samples > 1 else 1), (271, 2, 10, make), (273, 4, 1, pixels),
            (277, 3, 1, samples), (278, 3, 1, page.shape[0]), (279, 4, 1, page.nbytes), (282, 5, 1, resolution),
            (283, 5, 1, resolution), (296, 3, 1, 3), (65420, 4, 1, 1),
            (65421, 11, 1, int.from_bytes(struct.pack("<f", magnification), "little")),
        ]  # fmt: skip
        content[link : link + 8] = struct.pack("<Q", len(content))
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<2H2I", *tag) for tag in tags)
        link = len(content)
        content += bytes(8 + 4 * len(tags))
    path.write_bytes(content)


class TestPyramids:
    @pytest.mark.parametrize("image", [COLOR, GREY], ids=["color", "grey"])
    @pytest.mark.parametrize(
        "options", [{}, {"compression": "zlib"}, {"compression": "lzw", "predictor": True}]
    )
    @pytest.mark.parametrize("ome", [True, None])
    def test_any_part_of_any_level_is_read(self, tmp_path, monkeypatch, image, options, ome):
        monkeypatch.setattr(tiff_tiles, "_WHOLE_PX", 1000)  # larger pages are read tile by tile
        levels = write_pyramid(tmp_path / "a.tif", image, ome=ome, **options)
        scene = open_slide(tmp_path / "a.tif").scene()
        assert scene.levels == tuple(level.shape[:2] for level in levels)
        assert (scene.is_color, scene.dtype) == (image.ndim == 3, image.dtype)
        for number, level in enumerate(levels):
            for part in PARTS:
                assert (scene.read(number, *part) == level[part]).all()

    @pytest.mark.parametrize("options", [{}, {"subsampling": (2, 2)}, {"photometric": "rgb"}])
    def test_jpeg_tiles_make_up_the_whole(self, tmp_path, monkeypatch, options):
        smooth = np.add.outer(np.arange(200), np.arange(150)).astype(np.uint8)[..., None] // np.array(
            [2, 3, 4], np.uint8
        )
        write_pyramid(tmp_path / "a.tif", smooth, compression="jpeg", **options)
        whole = read_image(tmp_path / "a.tif").pixels
        monkeypatch.setattr(tiff_tiles, "_WHOLE_PX", 0)
        scene = open_slide(tmp_path / "a.tif").scene()
        assert np.abs(whole.astype(int) - smooth).mean() < 4
        for part in PARTS:
            assert (scene.read(0, *part) == whole[part]).all()

    @pytest.mark.parametrize("planar", ["separate", "contig"])
    @pytest.mark.parametrize("strips", [7, None])
    def test_strips_and_samples_apart_are_read_in_parts(self, tmp_path, monkeypatch, planar, strips):
        monkeypatch.setattr(tiff_tiles, "_WHOLE_PX", 1000)
        pixels = np.moveaxis(COLOR, 2, 0) if planar == "separate" else COLOR
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig=planar, compression="zlib",
                         rowsperstrip=strips)  # fmt: skip
        scene = open_slide(tmp_path / "a.tif").scene()
        for part in PARTS:
            assert (scene.read(0, *part) == COLOR[part]).all()

    def test_only_the_tiles_that_show_a_part_are_decoded_and_each_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(tiff_tiles, "_WHOLE_PX", 0)
        write_pyramid(tmp_path / "a.tif", GREY, compression="zlib")
        decoded = []
        original = tiff_tiles._decoded
        monkeypatch.setattr(
            tiff_tiles,
            "_decoded",
            lambda plane, number, lock: decoded.append(number) or original(plane, number, lock),
        )
        scene = open_slide(tmp_path / "a.tif").scene()
        for _ in range(2):
            scene.read(0, slice(40, 60), slice(70, 120))  # rows 32 to 63, columns 64 to 127
        assert decoded == [4]

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_part_of_a_turned_image_is_upright(self, tmp_path, monkeypatch, orientation):
        monkeypatch.setattr(tiff_tiles, "_WHOLE_PX", 0)
        write_pyramid(
            tmp_path / "a.tif", GREY, compression="zlib", extratags=[(274, 3, 1, orientation, True)]
        )
        scene = open_slide(tmp_path / "a.tif").scene()
        whole = scene.read()
        assert whole.shape == scene.shape == ((200, 150) if orientation < 5 else (150, 200))
        assert (scene.read(0, slice(5, 77), slice(60, 140)) == whole[5:77, 60:140]).all()
        assert (scene.read(1) == upright(GREY[::2, ::2], orientation)).all()

    def test_levels_in_pages_of_their_own_are_levels(self, tmp_path):
        """As libvips and scanners write them."""
        pages = [COLOR, smaller(COLOR), smaller(smaller(COLOR))]
        write_pages(
            tmp_path / "a.tif", pages, [{"tile": (32, 32)}, *[{"tile": (32, 32), "subfiletype": 1}] * 2]
        )
        scene = open_slide(tmp_path / "a.tif").scene()
        assert [scene.read(level).shape for level in range(3)] == [page.shape for page in pages]
        assert (scene.read(2) == pages[2]).all()

    def test_different_image_of_half_size_is_not_a_level(self, tmp_path):
        write_pages(tmp_path / "a.tif", [COLOR, 255 - smaller(COLOR)], [{}, {}])
        scene = open_slide(tmp_path / "a.tif").scenes[0]
        assert scene.levels == ((200, 150),)

    def test_aperio(self, tmp_path):
        """The scan, its thumbnail in the second page, a level, and the pictures of label and slide."""
        said = "Aperio Image Library v12.0\r\n150x200 [0,0 150x200] (32x32) J2K|AppMag = 20|MPP = 0.5"
        tile = {"tile": (32, 32)}
        write_pages(
            tmp_path / "a.svs",
            [
                COLOR,
                COLOR[::9, ::9].copy(),
                COLOR[::4, ::4].copy(),
                COLOR[:30, :40].copy(),
                COLOR[:50, :90].copy(),
            ],
            [
                {**tile, "description": said},
                {"description": said},
                tile,
                {"subfiletype": 1},
                {"subfiletype": 9},
            ],
        )
        slide = open_slide(tmp_path / "a.svs")
        [scene] = slide.scenes
        assert scene.levels == ((200, 150), (50, 38))
        assert scene.pixel_um == (0.5, 0.5)
        assert (scene.read(1) == COLOR[::4, ::4]).all()

    def test_hamamatsu(self, tmp_path):
        """Levels in pages of their own, then the picture of the slide and a map, told by their magnifications."""
        levels = [COLOR, COLOR[::4, ::4].copy()]
        macro, where = COLOR[:60, :99].copy(), COLOR[:20, :20, 0].copy()
        write_ndpi(tmp_path / "a.ndpi", [*levels, macro, where], [20, 5, -1, -2], per_cm=22_000)
        [scene] = open_slide(tmp_path / "a.ndpi").scenes
        assert scene.levels == ((200, 150), (50, 38))
        assert scene.pixel_um == pytest.approx((1e4 / 22_000,) * 2)
        for level, pixels in enumerate(levels):
            assert (scene.read(level) == pixels).all()

    def test_leica(self, tmp_path):
        """The levels of two areas and the picture of the slide, which its XML names by page."""
        areas = [COLOR, 255 - COLOR[:120]]
        pages = [
            COLOR[:30, :40].copy(),
            *(page for area in areas for page in (area.copy(), area[::4, ::4].copy())),
        ]
        sizes = [(page.shape[1], page.shape[0]) for page in pages]
        images = "".join(
            f'<image name="{name}"><pixels sizeX="{sizes[first][0]}" sizeY="{sizes[first][1]}">'
            + "".join(
                f'<dimension sizeX="{sizes[ifd][0]}" sizeY="{sizes[ifd][1]}" r="{ifd - first}" ifd="{ifd}"/>'
                for ifd in range(first, last)
            )
            + "</pixels></image>"
            for name, first, last in (("macro", 0, 1), ("area 1", 1, 3), ("area 2", 3, 5))
        )
        said = f'<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection>{images}</collection></scn>'
        options = {"tile": (32, 32), "resolutionunit": "CENTIMETER"}
        each = [{**options, "resolution": (40_000 / scale,) * 2} for scale in (40, 1, 4, 1, 4)]
        each[0]["description"] = said
        write_pages(tmp_path / "a.scn", pages, each)
        scenes = open_slide(tmp_path / "a.scn").scenes
        assert [scene.name for scene in scenes] == ["area 1", "area 2"]
        assert [scene.levels for scene in scenes] == [((200, 150), (50, 38)), ((120, 150), (30, 38))]
        assert [scene.pixel_um for scene in scenes] == [pytest.approx((0.25, 0.25))] * 2
        assert (scenes[1].read(1) == areas[1][::4, ::4]).all()

    @pytest.mark.parametrize(
        ("size", "small", "scale"),
        [(1000, 500, 2), (1001, 500, 2), (1001, 501, 2), (1000, 333, 3), (1000, 400, 2.5)],
    )
    def test_a_level_covers_a_whole_number_of_pixels_where_its_size_says_so(self, size, small, scale):
        scene = array_scene(np.zeros((4, size), np.uint8), is_color=False)
        scene = type(scene)(**{**scene.__dict__, "levels": ((4, size), (2, small))})
        assert scene.scale(1) == (scale, 2)


class TestChannels:
    CHANNELS = (Channel("DAPI", (0, 0, 255)), Channel("GFP", (0, 255, 0)), Channel("Cy5µ", (255, 0, 9)))

    @pytest.mark.parametrize("size", [100, 2100])  # in strips, and as a pyramid
    def test_names_and_colours_survive_writing(self, tmp_path, size):
        pixels = RNG.integers(0, 2**16, (3, 40, size), dtype=np.uint16)
        write_tiff(tmp_path / "a.tif", pixels, shape=(40, size), dtype=pixels.dtype, pixel_um=(0.5, 0.25),
                   channels=self.CHANNELS)  # fmt: skip
        scene = open_slide(tmp_path / "a.tif").scene()
        assert scene.channels == self.CHANNELS
        assert scene.pixel_um == (0.5, 0.25)
        assert all((scene.read(channel=k) == pixels[k]).all() for k in range(3))

    @pytest.mark.parametrize("chosen", [1, "1", "GFP", "gfp"])
    def test_one_is_chosen_by_number_or_name(self, tmp_path, chosen):
        pixels = np.stack([GREY, GREY // 2, GREY // 3])
        write_tiff(tmp_path / "a.tif", pixels, shape=GREY.shape, dtype=pixels.dtype, pixel_um=(1, 1),
                   channels=self.CHANNELS)  # fmt: skip
        assert (read_image(tmp_path / "a.tif", channel=chosen).pixels == GREY // 2).all()

    def test_unknown_name_error_lists_the_choices(self, tmp_path):
        write_tiff(tmp_path / "a.tif", [GREY] * 3, shape=GREY.shape, dtype=GREY.dtype, pixel_um=(1, 1),
                   channels=self.CHANNELS)  # fmt: skip
        with pytest.raises(
            InputError, match=r"a\.tif: .*found none called 'NeuN': there are 0 DAPI, 1 GFP, 2 Cy5µ"
        ):
            read_image(tmp_path / "a.tif", channel="NeuN")
        with pytest.raises(
            InputError, match=r"a\.tif: .*found 3 channels: .*choose one of 0 DAPI, 1 GFP.* with --channel"
        ):
            read_image(tmp_path / "a.tif")

    def test_names_that_are_numbers(self):
        scene = array_scene(np.dstack([GREY, GREY + 1]), is_color=False)
        scene = type(scene)(**{**scene.__dict__, "channels": (Channel("405"), Channel("488"))})
        assert scene.of_channel("488").channels == (Channel("488"),)
        assert scene.of_channel("0").channels == (Channel("405"),)

    def test_a_colour_of_a_colour_image_is_a_channel(self, tmp_path):
        write_pyramid(tmp_path / "a.tif", COLOR)
        for chosen in (2, "blue"):
            assert (open_image(tmp_path / "a.tif", channel=chosen).read(1) == COLOR[::2, ::2, 2]).all()

    def test_imagej_says_colours_and_names(self, tmp_path):
        tables = [
            np.outer([0, 1, 0], np.arange(256)).astype(np.uint8),
            np.outer([1, 0, 1], np.arange(256)).astype(np.uint8),
        ]
        metadata = {"axes": "CYX", "LUTs": tables, "Labels": ["GFP", "Cy5"], "mode": "composite"}
        tifffile.imwrite(tmp_path / "a.tif", np.stack([GREY, GREY]), imagej=True, metadata=metadata)
        assert open_slide(tmp_path / "a.tif").scene().channels == (
            Channel("GFP", (0, 255, 0)), Channel("Cy5", (255, 0, 255)),
        )  # fmt: skip

    def test_akoya_describes_each_page(self, tmp_path):
        def said(name: str, color: str) -> str:
            return (
                "<?xml version='1.0'?><PerkinElmer-QPI-ImageDescription><ImageType>FullResolution</ImageType>"
                f"<Name>{name}</Name><Color>{color}</Color></PerkinElmer-QPI-ImageDescription>"
            )

        tile = {
            "tile": (32, 32),
            "software": "PerkinElmer-QPI",
            "resolution": (20000, 20000),
            "resolutionunit": 3,
        }
        names = [("DAPI", "0,0,255"), ("CD3", "255,255,0")]
        write_pages(
            tmp_path / "a.qptiff",
            [GREY, GREY + 1, GREY[::9, ::9].copy(), GREY[::2, ::2].copy(), GREY[::2, ::2] + 1],
            [*({**tile, "description": said(*name)} for name in names), tile,
             *({**tile, "subfiletype": 1, "description": said(*name)} for name in names)],
        )  # fmt: skip
        [scene] = open_slide(tmp_path / "a.qptiff").scenes
        assert scene.channels == (Channel("DAPI", (0, 0, 255)), Channel("CD3", (255, 255, 0)))
        assert scene.levels == ((200, 150), (100, 75))
        assert scene.pixel_um == (0.5, 0.5)
        assert (scene.read(1, channel=1) == GREY[::2, ::2] + 1).all()

    @pytest.mark.parametrize("whole_px", [0, 2**24])
    def test_channels_in_separate_files_are_distinguished(self, tmp_path, monkeypatch, whole_px):
        """Their files have the same layout, so that tiles stand at the same place in each."""
        monkeypatch.setattr(tiff_tiles, "_WHOLE_PX", whole_px)
        written = [GREY // 2, GREY // 2 + 1]
        for name, pixels in zip("ab", written, strict=True):
            write_pyramid(
                tmp_path / f"{name}.ome.tif",
                pixels,
                levels=1,
                ome=True,
                metadata={"axes": "YX"},
                compression="zlib",
            )
        with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
            metadata = file.ome_metadata
        second = '<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:1</UUID></TiffData>'
        metadata = metadata.replace('SizeC="1"', 'SizeC="2"').replace("</Pixels>", f"{second}</Pixels>")
        metadata = metadata.replace('IFD="0" PlaneCount="1"/>', 'FirstC="0" IFD="0" PlaneCount="1"/>', 1)
        tifffile.tiffcomment(tmp_path / "a.ome.tif", metadata.encode())
        scene = open_slide(tmp_path / "a.ome.tif").scene()
        for part in PARTS:
            assert [(scene.read(0, *part, channel=c) == written[c][part]).all() for c in (0, 1)] == [
                True,
                True,
            ]


class TestStacks:
    def planes(self) -> np.ndarray:
        """Return five planes of which the fourth is sharp, and the first the brightest."""
        sharp = RNG.integers(100, 200, (64, 80)).astype(np.uint16)
        blurred = np.full_like(sharp, 150)
        return np.stack([blurred + 90, blurred, blurred + 1, sharp, blurred])

    @pytest.mark.parametrize("channels", [1, 2])
    def test_the_sharpest_the_brightest_or_any_plane(self, tmp_path, channels):
        planes = self.planes()
        stack = np.stack([planes] * channels, axis=1)
        tifffile.imwrite(tmp_path / "a.ome.tif", stack, ome=True, metadata={"axes": "ZCYX"})
        channel = {} if channels == 1 else {"channel": 1}
        for z, expected in (
            (2, planes[2]),
            ("2", planes[2]),
            ("best", planes[3]),
            ("max", planes.max(axis=0)),
        ):
            assert (read_image(tmp_path / "a.ome.tif", z=z, **channel).pixels == expected).all()
        with pytest.raises(InputError, match=r"a\.ome\.tif: .*--z.*got 'mean'"):
            read_image(tmp_path / "a.ome.tif", z="mean", **channel)

    def test_a_picture_has_one_plane(self):
        scene = array_scene(GREY, is_color=False)
        for z in (0, "max", "best"):
            assert (scene.in_focus(z).pixels == GREY).all()


class TestViews:
    @pytest.fixture
    def scene(self, tmp_path):
        write_pyramid(tmp_path / "a.tif", np.kron(COLOR, np.ones((4, 4, 1), np.uint8)), levels=4)
        return open_image(tmp_path / "a.tif")

    @pytest.mark.parametrize(
        ("least", "shape"),
        [((800, 600), (800, 600)), ((900, 1), (800, 600)), ((300, 300), (400, 300)), ((9, 9), (100, 75))],
    )
    def test_the_smallest_level_that_serves_is_in_the_overview(self, scene, least, shape):
        found = overview(scene, least)
        assert found.pixels.shape == (*shape, 3)
        assert found.scale == (800 / shape[0],) * 2

    def test_a_large_image_without_levels_is_averaged(self, monkeypatch):
        monkeypatch.setattr(views, "_IN_MEMORY_PX", 1000)
        monkeypatch.setattr(views, "_BAND_PX", 700)  # several bands
        found = overview(array_scene(GREY, is_color=False), (40, 40))
        means = GREY[:198].reshape(66, 3, 50, 3).mean(axis=(1, 3))
        assert found.scale == (3, 3)
        assert found.pixels.dtype == GREY.dtype
        assert (found.pixels == means.round()).all()

    @pytest.mark.parametrize("in_memory", [2**26, 0])
    @pytest.mark.parametrize(("scale", "covers"), [(0.5, 1), (1, 1), (1.9, 1), (2, 2), (7, 4), (17, 16)])
    def test_a_view_is_nearly_as_coarse_as_is_asked_for(self, scene, monkeypatch, in_memory, scale, covers):
        monkeypatch.setattr(views, "_IN_MEMORY_PX", in_memory)
        view = at_scale(scene, scale)
        assert view.scale == (covers, covers)
        assert view.pixels.shape == (800 // covers, 600 // covers, 3)
        expected = scene.read(min(3, covers.bit_length() - 1)).astype(float)
        if covers == 16:  # coarser than any level
            expected = expected[:, :74].reshape(50, 2, 37, 2, 3).mean(axis=(1, 3))
        assert (view.pixels[10:30, 5:20] == expected[10:30, 5:20].round()).all()


class TestWhatCannotBeRead:
    def test_a_cut_pyramid_is_refused_by_its_check(self, tmp_path):
        write_pyramid(tmp_path / "a.tif", GREY, compression="zlib")
        content = (tmp_path / "a.tif").read_bytes()
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            page = file.series[0].levels[2][0]
            last = page.dataoffsets[-1]
        assert last > len(content) * 3 // 4
        (tmp_path / "a.tif").write_bytes(content[: last + 3])
        with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image: .*ends early"):
            open_image(tmp_path / "a.tif").check()

    def test_a_compression_that_nobody_knows_is_one_sentence(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", GREY, compression="zlib", metadata=None)
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
            file.pages.first.tags["Compression"].overwrite(60_000)
        with pytest.raises(InputError, match=r"a\.tif: expected .*compression.*60000"):
            open_image(tmp_path / "a.tif").read()

    def test_a_damaged_tile_is_one_sentence(self, tmp_path):
        write_pyramid(tmp_path / "a.tif", GREY, compression="zlib")
        with tifffile.TiffFile(tmp_path / "a.tif") as file:
            offset = file.pages.first.dataoffsets[3]
        with (tmp_path / "a.tif").open("r+b") as file:
            file.seek(offset)
            file.write(bytes(99))
        with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image: "):
            open_image(tmp_path / "a.tif").read()

    @pytest.mark.parametrize(("name", "start"), [("a.czi", b"ZISRAWFILE"), ("a.vsi", b"xx"), ("a.dcm", b"")])
    def test_without_the_package_it_says_which_extra_reads_it(self, tmp_path, monkeypatch, name, start):
        monkeypatch.setitem(sys.modules, "slideio", None)
        (tmp_path / name).write_bytes(start + bytes(200))
        with pytest.raises(InputError, match=rf"{name}: expected .*pip install 'atlalign-torch\[slides\]'"):
            open_slide(tmp_path / name)

    def test_without_zarr_it_says_which_extra_reads_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "zarr", None)
        (tmp_path / "a.ome.zarr").mkdir()
        with pytest.raises(
            InputError, match=r"a\.ome\.zarr: expected .*pip install 'atlalign-torch\[slides\]'"
        ):
            open_slide(tmp_path / "a.ome.zarr")

    @pytest.mark.parametrize("name", ["a.czi", "a.vsi", "a.zvi", "a.dcm"])
    def test_a_damaged_slide_is_one_sentence(self, tmp_path, name):
        pytest.importorskip("slideio")
        (tmp_path / name).write_bytes((b"ZISRAWFILE" if name == "a.czi" else b"") + bytes(200))
        with pytest.raises(
            InputError, match=rf"{name}: cannot be read as an image: a damaged .* file"
        ) as caught:
            open_slide(tmp_path / name)
        assert ".cpp" not in str(caught.value)


class TestFilesOfMicroscopes:
    """Sizes, channels and pixel sizes as Zeiss's own reader (pylibCZIrw) and OpenSlide give them."""

    @pytest.fixture(autouse=True)
    def _slideio(self):
        pytest.importorskip("slideio")

    @pytest.mark.parametrize(
        ("name", "shape", "is_color", "dtype", "channel", "mean"),
        [
            ("RGB-8bit.czi", (624, 924), True, np.uint8, Channel(), (13.809316, 28.024661, 14.771149)),
            ("mosaic_test.czi", (624, 1756), False, np.uint16, Channel("EGFP", (0, 255, 91)), 6481.1628),
            (
                "s_1_t_1_c_1_z_1.czi",
                (325, 475),
                False,
                np.uint16,
                Channel("Bright", (255, 255, 255)),
                3651.5592,
            ),
        ],
    )
    def test_zeiss(self, test_data, name, shape, is_color, dtype, channel, mean):
        [scene] = open_slide(test_data / "slides" / name).scenes
        assert (scene.shape, scene.is_color, scene.dtype) == (shape, is_color, dtype)
        assert scene.channels == (channel,)
        assert scene.pixel_um == pytest.approx((13 / 12, 13 / 12))
        whole = scene.read()
        assert whole.mean(axis=(0, 1)) == pytest.approx(mean)
        assert (scene.read(0, slice(100, 200), slice(50, 333)) == whole[100:200, 50:333]).all()

    def test_aperio(self, test_data):
        [scene] = open_slide(test_data / "slides" / "small.svs").scenes
        assert scene.shape == (16, 16)
        assert scene.is_color
        assert scene.pixel_um == (0.499, 0.499)
        assert scene.read().mean() == pytest.approx(236.3046875)

    def test_a_slide_is_read_as_one_channel(self, test_data):
        assert open_channels(test_data / "slides" / "mosaic_test.czi").of_channel("EGFP").shape == (624, 1756)
